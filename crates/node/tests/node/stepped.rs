//! A member without threads, whose parts are given turns.

use std::path::Path;
use std::sync::Arc;

use keelson_node::{Barrier, Env, NoPeers, Order, Part, Reply, Stepped, Turn};
use keelson_store::Outcome;

use crate::rig::{Desk, config, put};

fn start(dir: &Path) -> (Stepped, Arc<Desk>) {
    let desk = Arc::new(Desk::default());
    let (of, env) = (desk.clone(), Env::real());
    let stepped = Stepped::start(config(dir), env, of.clone(), of, Arc::new(NoPeers)).unwrap();
    (stepped, desk)
}

/// Gives turns to these parts as long as anything waits for one of them.
fn settle(stepped: &mut Stepped, parts: &[Part]) {
    while parts.iter().any(|part| stepped.has_mail(*part)) {
        for part in parts {
            stepped.turn(*part).unwrap();
        }
    }
}

#[test]
fn nothing_happens_in_a_stepped_member_but_by_turns() {
    let dir = tempfile::tempdir().unwrap();
    let (mut stepped, desk) = start(dir.path());
    assert!(!stepped.node().is_leader(), "its vote is not written");
    settle(&mut stepped, &Part::ALL);
    assert!(stepped.node().is_leader());

    let ticket = desk.ticket();
    stepped.node().propose(put("a", "1"), ticket).unwrap();
    stepped.turn(Part::Consensus).unwrap();
    assert!(stepped.has_mail(Part::Log));
    assert_eq!(stepped.turn(Part::Apply).unwrap(), Turn::Idle);
    settle(&mut stepped, &[Part::Log, Part::Consensus]);
    assert!(!desk.has(ticket), "it is committed and not applied");
    assert_eq!(stepped.turn(Part::Apply).unwrap(), Turn::Worked);
    let reply = desk.wait(ticket);
    assert!(
        matches!(reply, Reply::Applied(Outcome::Put { revision: 2, .. })),
        "{reply:?}"
    );
    let barrier = stepped.node().read_barrier(desk.ticket());
    assert_eq!(barrier, Ok(Barrier::Passed));
}

#[test]
fn a_stepped_member_has_what_it_acknowledged_after_a_crash_and_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    for (revision, crash) in (1..).zip([true, false, true]) {
        let (mut stepped, desk) = start(dir.path());
        settle(&mut stepped, &Part::ALL);
        assert_eq!(stepped.node().shared().revision(), revision);
        let ticket = desk.ticket();
        stepped.node().propose(put("a", "1"), ticket).unwrap();
        settle(&mut stepped, &Part::ALL);
        assert!(desk.has(ticket));
        if crash {
            stepped.crash();
        } else {
            stepped.stop().unwrap();
        }
    }
}

#[test]
fn apply_says_that_it_would_wait_while_two_segments_wait_for_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (mut stepped, desk) = start(dir.path());
    settle(&mut stepped, &Part::ALL);
    let others = [Part::Consensus, Part::Log, Part::Apply];
    for _ in 0..2 {
        let ticket = desk.ticket();
        stepped.node().propose(put("a", "1"), ticket).unwrap();
        settle(&mut stepped, &others);
        stepped.node().order(Order::Commit, None).unwrap();
        assert_eq!(stepped.turn(Part::Apply).unwrap(), Turn::Worked);
    }
    let ticket = desk.ticket();
    stepped.node().order(Order::Commit, Some(ticket)).unwrap();
    assert_eq!(stepped.turn(Part::Apply).unwrap(), Turn::Blocked);
    assert!(stepped.has_mail(Part::Apply), "nothing was taken");
    assert_eq!(stepped.turn(Part::Commit).unwrap(), Turn::Worked);
    assert_eq!(stepped.turn(Part::Apply).unwrap(), Turn::Worked);
    settle(&mut stepped, &[Part::Commit]);
    assert!(matches!(desk.wait(ticket), Reply::Durable(_)));
}
