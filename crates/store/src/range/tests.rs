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

/// An empty store in memory.
fn empty() -> Opened {
    let options = OpenOptions {
        bolt: OpenOptions::bolt(),
        quota: Quota::new(-1),
        lease_ttl_min: 2,
        lease_checkpoints: false,
    };
    let storage = Box::new(MemStorage::default());
    let db = Db::open_storage(storage, options.bolt.clone()).unwrap();
    open_db(db, None, &options).unwrap()
}

fn put(store: &mut Store, key: impl Into<Bytes>, value: impl Into<Bytes>) {
    let put = PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    };
    let request = InternalRaftRequest {
        put: Some(put),
        ..InternalRaftRequest::default()
    };
    apply(store, &request);
}

/// A store whose index names the values of two keys, at the revisions 2 and 3; the first is not in the
/// file.
fn damaged() -> Opened {
    let mut opened = empty();
    for key in ["a", "b"] {
        put(&mut opened.store, key, "value");
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

#[test]
fn a_chunk_fits_into_the_room_that_is_made_for_it_and_takes_no_more() {
    let mut opened = empty();
    for number in 0..300usize {
        let value = vec![b'v'; number * 17 % 5000];
        put(&mut opened.store, format!("key {number}"), value);
    }
    let shared = opened.store.shared();
    for keys_only in [false, true] {
        let request = RangeRequest {
            keys_only,
            limit: 200,
            ..all(0)
        };
        for bytes_max in [1, 100, 4096, 100_000, usize::MAX] {
            let plan = plan(shared, &request, ReadAt::Current).unwrap();
            let (body_len, tail_len) = (plan.body_len(), plan.tail_len());
            let mut emitter = plan.into_emitter(shared.clone());
            let mut emitted = 0;
            loop {
                let room = emitter.chunk_len(bytes_max);
                let mut out = BytesMut::new();
                let progress = emitter.next_chunk(bytes_max, &mut out).unwrap();
                emitted += out.len() as u64;
                if progress == Progress::Done {
                    assert_eq!(out.len(), room);
                    break;
                }
                assert_eq!(out.len() + tail_len as usize, room);
            }
            assert_eq!(emitted, body_len);
        }
    }
}

#[test]
fn a_plan_keeps_no_more_room_than_its_rows_take() {
    let mut opened = empty();
    for number in 0..500 {
        put(&mut opened.store, format!("key {number}"), "value");
    }
    let shared = opened.store.shared();
    for limit in [0, 100] {
        let request = RangeRequest {
            limit,
            // What is sorted is found as a whole before it is cut.
            sort_target: SortTarget::Mod.into(),
            sort_order: SortOrder::Descend.into(),
            ..all(0)
        };
        let plan = plan(shared, &request, ReadAt::Current).unwrap();
        let plan::Rows::Stored(rows) = &plan.rows else {
            unreachable!("values are asked for");
        };
        assert_eq!(rows.capacity(), rows.len());
    }
}
