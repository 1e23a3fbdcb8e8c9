use bytes::{Bytes, BytesMut};
use keelson_bolt::{Db, MemStorage};
use keelson_proto::entry::{Entry, EntryKind};
use keelson_proto::ids::{LogIndex, Term};
use keelson_proto::request;
use keelson_proto::rpc::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_proto::rpc::etcdserverpb::{InternalRaftRequest, PutRequest, RangeRequest};

use super::*;
use crate::compaction::CompactionJob;
use crate::{Answer, JobProgress, OpenOptions, Opened, Quota, Revision, Store, open_db};

fn apply(store: &mut Store, request: &InternalRaftRequest) {
    let entry = Entry {
        kind: EntryKind::Normal,
        term: Term(1),
        index: LogIndex(store.applied().0.0 + 1),
        data: request::encode(request),
    };
    store.apply(&entry, Answer::Unwanted).unwrap();
}

/// A store whose index names the values of two keys, at the revisions 2 and 3; the first is not in the
/// file.
fn damaged() -> Opened {
    let options = OpenOptions {
        bolt: OpenOptions::bolt(),
        quota: Quota::new(-1),
        lease_ttl_min: 2,
        lease_checkpoints: false,
    };
    let storage = Box::new(MemStorage::default());
    let db = Db::open_storage(storage, options.bolt.clone()).unwrap();
    let mut opened = open_db(db, None, &options).unwrap();
    for key in ["a", "b"] {
        let put = PutRequest {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from_static(b"value"),
            ..PutRequest::default()
        };
        let request = InternalRaftRequest {
            put: Some(put),
            ..InternalRaftRequest::default()
        };
        apply(&mut opened.store, &request);
    }
    opened.committer.set_window_bytes(0);
    let sealed = opened.store.seal();
    opened.committer.commit(&sealed).unwrap();
    opened.committer.begin_compaction(CompactionJob {
        revision: 2,
        previous: -1,
        remember_hash: false,
        index: LogIndex(0),
        keeps_any: true,
        dead: vec![(Revision { main: 2, sub: 0 }, false)],
    });
    let progress = opened.committer.continue_compaction().unwrap();
    assert_eq!(progress, JobProgress::Finished { revision: 2 });
    opened
}

fn all(revision: i64) -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(&[0]),
        range_end: Bytes::from_static(&[0]),
        revision,
        ..RangeRequest::default()
    }
}

fn is_damage(error: &crate::Error) -> bool {
    error.to_string()
        == "database file: bucket key, key 00000000000000025f0000000000000000: the record of a revision \
            that is not compacted is missing"
}

#[test]
fn a_record_that_is_missing_without_a_compaction_is_damage() {
    let opened = damaged();
    let shared = opened.store.shared();
    for pinned in [true, false] {
        let plan = plan(shared, &all(2), ReadAt::Current).unwrap();
        let mut emitter = if pinned {
            plan.into_emitter(shared.clone())
        } else {
            plan.into_unpinned_emitter(shared.clone())
        };
        let error = emitter.next_chunk(100, &mut BytesMut::new()).unwrap_err();
        assert!(matches!(error, EmitError::Store(error) if is_damage(&error)));
    }
    let sorted = RangeRequest {
        sort_target: SortTarget::Value.into(),
        sort_order: SortOrder::Ascend.into(),
        ..all(0)
    };
    let error = plan(shared, &sorted, ReadAt::Current).unwrap_err();
    assert!(matches!(error, PlanError::Store(error) if is_damage(&error)));
    let missing = Revision { main: 2, sub: 0 };
    let error = held_record(shared, missing, Some(&shared.pin(2))).unwrap_err();
    assert!(matches!(error, EmitError::Store(error) if is_damage(&error)));
}

#[test]
fn a_record_that_a_compaction_took_from_a_read_that_nothing_holds_is_compacted() {
    let opened = damaged();
    let shared = opened.store.shared();
    let pinned = plan(shared, &all(2), ReadAt::Current).unwrap();
    let unpinned = plan(shared, &all(2), ReadAt::Current).unwrap();
    let pin = shared.pin(2);
    shared.publish_compaction(3);
    shared.break_pins(3);
    for mut emitter in [
        pinned.into_emitter(shared.clone()),
        unpinned.into_unpinned_emitter(shared.clone()),
    ] {
        let error = emitter.next_chunk(100, &mut BytesMut::new()).unwrap_err();
        assert!(matches!(error, EmitError::Compacted));
    }
    let missing = Revision { main: 2, sub: 0 };
    for pin in [Some(&pin), None] {
        let error = held_record(shared, missing, pin).unwrap_err();
        assert!(matches!(error, EmitError::Compacted));
    }
}

#[test]
fn a_read_inside_a_transaction_holds_back_a_compaction_to_it() {
    let opened = damaged();
    let shared = opened.store.shared();
    let at = Revision { main: 3, sub: 1 };
    let plan = plan(shared, &all(0), ReadAt::InTxn { at, header: 3 }).unwrap();
    assert_eq!(shared.oldest_pin(), Some(2));
    drop(plan);
    assert_eq!(shared.oldest_pin(), None);
}

#[test]
fn varints_are_measured_as_they_are_written() {
    for value in [
        0,
        1,
        127,
        128,
        16_383,
        16_384,
        u64::from(u32::MAX),
        u64::MAX,
    ] {
        let mut out = Vec::new();
        prost::encoding::encode_varint(value, &mut out);
        assert_eq!(varint_len(value), out.len() as u64, "{value}");
    }
}
