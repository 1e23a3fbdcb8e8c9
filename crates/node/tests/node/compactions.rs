//! Compactions from the log to the file.

use std::time::Duration;

use keelson_node::Reply;
use keelson_proto::ApiError;
use keelson_store::Outcome;

use crate::rig::{Rig, compact, config};

/// Rows of the bucket `key` in the file.
fn rows(rig: &Rig) -> usize {
    let durable = rig.commit();
    let bucket = durable.read.bucket(b"key").unwrap().unwrap();
    let mut cursor = bucket.cursor();
    let mut rows = 0;
    let mut row = cursor.first().unwrap();
    while row.is_some() {
        rows += 1;
        row = cursor.next().unwrap();
    }
    rows
}

#[test]
fn a_physical_compaction_is_answered_when_the_rows_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    for round in 0..3 {
        for key in 0..100 {
            rig.put(&format!("k{key}"), &round.to_string());
        }
    }
    let revision = rig.node.shared().revision();
    assert!(matches!(
        rig.run(compact(revision, true)),
        Outcome::Compact { .. }
    ));
    assert_eq!(rows(&rig), 100);
    assert_eq!(rig.node.shared().compact_revision(), revision);
    let again = rig.run(compact(revision, true));
    assert!(
        matches!(again, Outcome::Refused(ApiError::Compacted)),
        "{again:?}"
    );
    rig.node.stop();
}

#[test]
fn a_reader_holds_back_the_physical_answer_but_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    for count in 0..20 {
        rig.put("k", &count.to_string());
    }
    let pin = rig.node.shared().pin(5);
    let physical = rig.propose(compact(20, true));
    assert!(matches!(
        rig.run(compact(20, false)),
        Outcome::Refused(ApiError::Compacted)
    ));
    let second = rig.propose(compact(20, true));
    rig.put("k", "more");
    rig.commit();
    assert!(!rig.desk.has(physical), "revision 5 is still read");
    assert!(
        !rig.desk.has(second),
        "what waits for the running one waits too"
    );
    drop(pin);
    assert!(matches!(
        rig.desk.wait(physical),
        Reply::Applied(Outcome::Compact { .. })
    ));
    let refused = rig.desk.wait(second);
    assert!(matches!(
        refused,
        Reply::Applied(Outcome::Refused(ApiError::Compacted))
    ));
    rig.node.stop();
}

#[test]
fn a_reader_that_never_ends_is_waited_for_only_so_long() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.reader_patience = Duration::from_millis(50);
    let rig = Rig::start(config);
    for count in 0..20 {
        rig.put("k", &count.to_string());
    }
    let pin = rig.node.shared().pin(5);
    assert!(matches!(
        rig.run(compact(20, true)),
        Outcome::Compact { .. }
    ));
    assert!(pin.is_broken());
    assert_eq!(rows(&rig), 2, "revisions 20 and 21");
    rig.node.stop();
}

#[test]
fn a_compaction_that_a_crash_interrupts_goes_on_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    for count in 0..20 {
        rig.put("k", &count.to_string());
    }
    let pin = rig.node.shared().pin(5);
    rig.run(compact(20, false));
    rig.commit();
    rig.node.kill();
    drop((pin, rig));
    let rig = Rig::start(config(dir.path()));
    assert_eq!(rig.node.shared().compact_revision(), 20);
    let outcome = rig.run(compact(20, true));
    assert!(matches!(outcome, Outcome::Refused(ApiError::Compacted)));
    assert_eq!(rows(&rig), 2, "revisions 20 and 21");
    rig.node.stop();
}
