//! The same entries make the same bytes, whoever waits for answers and whenever the file is written.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod rig;
#[path = "rig/script.rs"]
mod script;

use keelson_proto::entry::{Entry, EntryKind};
use keelson_proto::ids::LogIndex;
use keelson_proto::rpc::etcdserverpb::{DeleteRangeRequest, InternalRaftRequest};
use keelson_store::hash::{self, HashKv};
use keelson_store::{Answer, Effect};
use rig::Rig;
use script::{Random, entries};

type Rows = Vec<(&'static str, Vec<u8>, Vec<u8>)>;

/// What a run left behind.
#[derive(PartialEq, Debug)]
struct Trace {
    /// The hash after each entry.
    hashes: Vec<HashKv>,
    /// How many records each batch of one entry brought, with the last revision.
    events: Vec<Option<(i64, usize)>>,
    rows: Rows,
}

/// Applies everything, with commits, restarts and the end of compactions where `random` says.
fn run(entries: &[Entry], answer: Answer, mut random: Random) -> Trace {
    let mut rig = Rig::new();
    let (mut hashes, mut events) = (Vec::new(), Vec::new());
    for entry in entries {
        let applied = rig.store.apply(entry, answer).unwrap();
        for effect in &applied.effects {
            assert!(!matches!(effect, Effect::Stop(_)), "{effect:?}");
        }
        drop(applied);
        let batch = rig.store.take_events();
        events.push(batch.map(|batch| (batch.to, batch.records.len())));
        hashes.push(hash::hash_kv(rig.store.shared(), 0).unwrap());
        match random.below(12) {
            0 | 1 => drop(rig.commit()),
            2 => rig.finish_compactions(),
            3 => rig = rig.restart(),
            _ => {}
        }
    }
    rig.finish_compactions();
    rig.commit();
    Trace {
        hashes,
        events,
        rows: rig.rows(),
    }
}

#[test]
fn an_entry_of_a_kind_that_is_never_written_stops_the_member_by_its_index() {
    let mut rig = Rig::new();
    for entry in entries(1, 3) {
        drop(rig.store.apply(&entry, Answer::Unwanted).unwrap());
    }
    let (index, term) = rig.store.applied();
    let joint = Entry {
        kind: EntryKind::ConfChangeV2,
        index: LogIndex(index.0 + 1),
        term,
        ..Entry::default()
    };
    let applied = rig.store.apply(&joint, Answer::Unwanted).unwrap();
    let [Effect::Stop(reason)] = applied.effects.as_slice() else {
        panic!("{:?}", applied.effects);
    };
    let text = format!("entry {} of term {term} cannot be applied: ", joint.index);
    assert!(reason.starts_with(&text), "{reason}");
    assert!(reason.contains("joint configuration change"), "{reason}");
}

#[test]
fn the_same_entries_make_the_same_bytes() {
    for seed in 0..12 {
        let entries = entries(seed, 200);
        let first = run(&entries, Answer::Wanted, Random(seed));
        assert!(
            first.rows.len() > 20,
            "seed {seed}: the entries do something"
        );
        for other in 1..3 {
            let answer = if other == 1 {
                Answer::Unwanted
            } else {
                Answer::Wanted
            };
            let again = run(&entries, answer, Random(seed * 100 + other));
            for (index, (a, b)) in first.hashes.iter().zip(&again.hashes).enumerate() {
                assert_eq!(a, b, "seed {seed}, entry {}", index + 1);
            }
            assert_eq!(first, again, "seed {seed}");
        }
    }
}

#[test]
fn a_hash_does_not_depend_on_how_far_a_compaction_has_come() {
    let mut rig = Rig::new();
    for (key, value) in [("a", b"1"), ("a", b"2"), ("b", b"1")] {
        rig.put(key, value);
    }
    let everything = DeleteRangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        ..Default::default()
    };
    rig.outcome(&InternalRaftRequest {
        delete_range: Some(everything),
        ..Default::default()
    });
    assert!(rig.compact(4));
    let before = hash::hash_kv(rig.store.shared(), 0).unwrap();
    rig.finish_compactions();
    let after = hash::hash_kv(rig.store.shared(), 0).unwrap();
    assert_eq!(before, after, "nothing is alive, and one row stays");
}
