//! A store that takes the state of a snapshot in place of its own, under readers and watchers.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod rig;

use bytes::Bytes;
use keelson_proto::ApiError;
use keelson_proto::ids::LogIndex;
use keelson_proto::rpc::etcdserverpb::RangeRequest;
use keelson_store::range::{self, EmitError, ReadAt};
use keelson_store::watch::{Fetched, Filters, Shard, Spec, State, StreamId, fetch};
use keelson_store::{Revision, hash};
use rig::Rig;

/// Two stores with the same beginning, the second of which has gone on.
fn two(more: usize) -> (Rig, Rig) {
    let (mut behind, mut ahead) = (Rig::new(), Rig::new());
    for count in 0..10 {
        let value = format!("{count}").into_bytes();
        behind.put("k", &value);
        ahead.put("k", &value);
    }
    for count in 0..more {
        ahead.put("k", format!("more {count}").as_bytes());
    }
    (behind, ahead.restart())
}

fn take_over(behind: &mut Rig, ahead: Rig) {
    let Rig {
        store, committer, ..
    } = ahead;
    behind.committer.take_over(committer);
    behind.store.take_over(store);
}

fn key() -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(b"k"),
        ..RangeRequest::default()
    }
}

#[test]
fn everything_is_that_of_the_snapshot_and_goes_on_from_there() {
    let (mut behind, ahead) = two(20);
    behind.commit();
    behind.put("open", b"never reaches the file");
    let shared = behind.store.shared().clone();
    let expected = hash::hash_kv(ahead.store.shared(), 0).unwrap();
    take_over(&mut behind, ahead);
    assert_eq!(shared.applied().0, LogIndex(30));
    assert_eq!(shared.revision(), 31);
    assert_eq!(hash::hash_kv(&shared, 0).unwrap(), expected);
    assert_eq!(behind.range(&key()).unwrap().kvs[0].value, "more 19");
    let past = RangeRequest {
        revision: 5,
        ..key()
    };
    assert_eq!(behind.range(&past).unwrap().kvs[0].value, "3");
    assert_eq!(behind.put("k", b"next"), 32);
    let durable = behind.commit();
    assert_eq!(durable.boundary.index, LogIndex(31));
    assert_eq!(behind.range(&key()).unwrap().kvs[0].value, "next");
}

#[test]
fn a_reader_of_an_older_revision_goes_on_unless_that_is_compacted() {
    for compacted in [false, true] {
        let (mut behind, mut ahead) = two(20);
        if compacted {
            assert!(ahead.compact(20));
            ahead.finish_compactions();
            ahead = ahead.restart();
        }
        let shared = behind.store.shared().clone();
        let view = shared.view();
        let plan = range::plan(&shared, &key(), ReadAt::Current).unwrap();
        take_over(&mut behind, ahead);
        let mut emitter = plan.into_emitter(shared.clone());
        let mut body = bytes::BytesMut::new();
        let emitted = emitter.next_chunk(1 << 16, &mut body);
        if compacted {
            assert!(matches!(emitted, Err(EmitError::Compacted)));
            let past = RangeRequest {
                revision: 11,
                ..key()
            };
            let refused = behind.range(&past).unwrap_err();
            assert_eq!(refused, ApiError::Compacted);
        } else {
            emitted.unwrap();
        }
        let old = view.record(Revision { main: 11, sub: 0 }).unwrap();
        assert!(old.is_some(), "whoever has the old view reads on in it");
    }
}

#[test]
fn watchers_that_had_everything_read_what_they_missed_from_the_file() {
    let (mut behind, ahead) = two(20);
    let mut shard = Shard::default();
    shard.open_at(11);
    let spec = Spec {
        key: b"k".as_slice().into(),
        range_end: b"".as_slice().into(),
        filters: Filters::default(),
        start: 0,
    };
    let synced = shard.add_from_now(StreamId(1), 1, spec.clone(), 11);
    let future = shard.add(StreamId(1), 2, Spec { start: 40, ..spec });
    assert_eq!(shard.state(synced), Some(State::Synced));
    let _ = behind.store.take_events();
    take_over(&mut behind, ahead);
    assert!(behind.store.take_events().is_none());
    let shared = behind.store.shared().clone();
    shard.skip_to(shared.revision());
    assert_eq!(shard.state(synced), Some(State::Lagging));
    assert_eq!(shard.state(future), Some(State::Synced));
    let jobs = shard.jobs(10);
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0].from, 12);
    let chunks = fetch(&shared, jobs, 1 << 20).unwrap();
    let Fetched::Events { events, upto, .. } = &chunks[0].fetched else {
        panic!("{chunks:?}")
    };
    assert_eq!(events.len(), 20);
    assert_eq!(*upto, 31);
}
