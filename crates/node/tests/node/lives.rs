//! Writes, reads, orders, stops and crashes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keelson_node::{Env, Order, Reply};
use keelson_proto::ApiError;
use keelson_proto::entry::{ConfChange, ConfChangeKind};
use keelson_store::Outcome;
use keelson_store::member::Member;

use crate::rig::{JumpingClock, PATIENCE, Rig, compact, config, delete, put};

#[test]
fn a_new_directory_elects_itself_and_serves_what_is_put() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(&dir.path().join("data")));
    assert!(rig.node.is_leader());
    assert_eq!(rig.node.status().leader, rig.node.member_id());
    assert_eq!(rig.get("a"), None);
    assert_eq!(rig.put("a", "1"), 2);
    assert_eq!(rig.put("a", "2"), 3);
    assert_eq!(rig.get("a").as_deref(), Some("2"));
    let outcome = rig.run(delete("a"));
    assert!(
        matches!(
            outcome,
            Outcome::Delete {
                revision: 4,
                deleted: 1,
                ..
            }
        ),
        "{outcome:?}"
    );
    assert_eq!(rig.get("a"), None);
    rig.desk.wait_for_revision(4);
    let events = rig.desk.events.lock().unwrap().clone();
    assert_eq!(events, [(2, 2), (3, 3), (4, 4)]);
    rig.node.stop();
}

#[test]
fn a_revision_is_published_before_its_events_are_sent() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    for key in 0..50 {
        rig.put(&format!("k{}", key % 7), "v");
    }
    rig.desk.wait_for_revision(51);
    // Whoever begins to watch looks at the revision after it has asked for events: otherwise what falls
    // between would be lost.
    assert_eq!(rig.desk.early.load(Ordering::Relaxed), 0);
    rig.node.stop();
}

#[test]
fn what_was_written_is_there_after_a_stop_and_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    let (member, cluster) = (rig.node.member_id(), rig.node.cluster_id());
    for key in 0..50 {
        rig.put(&format!("k{key}"), "v");
    }
    rig.node.stop();
    drop(rig);
    let rig = Rig::start(config(dir.path()));
    assert_eq!(
        (rig.node.member_id(), rig.node.cluster_id()),
        (member, cluster)
    );
    assert_eq!(rig.node.shared().revision(), 51);
    assert_eq!(rig.get("k49").as_deref(), Some("v"));
    assert_eq!(rig.put("more", "v"), 52);
    rig.node.stop();
}

#[test]
fn a_kill_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = 1;
    for round in 0..4 {
        let rig = Rig::start(config(dir.path()));
        assert!(rig.node.shared().revision() >= expected, "round {round}");
        for key in 0..round * 10 {
            assert!(
                rig.get(&format!("r{}-k{key}", round - 1)).is_some(),
                "round {round}"
            );
        }
        for key in 0..10 * (round + 1) {
            expected = rig.put(&format!("r{round}-k{key}"), "v");
        }
        if round == 2 {
            rig.commit();
            expected = rig.put("after the commit", "v");
        }
        // These may be lost: nobody has been told.
        for _ in 0..50 {
            rig.propose(put("unacknowledged", "v"));
        }
        rig.node.kill();
    }
}

#[test]
fn writers_that_are_cut_off_find_all_that_they_were_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Arc::new(Rig::start(config(dir.path())));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let rig = rig.clone();
            let body = move || {
                let mut acknowledged = 0;
                for count in 1.. {
                    let ticket = rig.desk.ticket();
                    let request = put(&format!("w{writer}"), &count.to_string());
                    if rig.node.propose(request, ticket).is_err() {
                        break;
                    }
                    match rig.desk.wait(ticket) {
                        Reply::Applied(_) => acknowledged = count,
                        _ => break,
                    }
                }
                acknowledged
            };
            std::thread::Builder::new().spawn(body).unwrap()
        })
        .collect();
    rig.desk.wait_for_revision(200);
    // A handler that has put its ticket into the queue just now may never be answered: a killed
    // process answers nobody.
    rig.node.kill();
    rig.desk.give_up();
    let acknowledged: Vec<i32> = writers.into_iter().map(|it| it.join().unwrap()).collect();
    drop(rig);
    let rig = Rig::start(config(dir.path()));
    for (writer, count) in acknowledged.into_iter().enumerate() {
        let found: i32 = rig.get(&format!("w{writer}")).unwrap().parse().unwrap();
        assert!(found >= count, "writer {writer}: {found} < {count}");
    }
    rig.node.stop();
}

#[test]
fn an_order_to_commit_is_answered_with_everything_applied_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    rig.put("a", "1");
    let durable = rig.commit();
    assert_eq!(durable.boundary.index, rig.node.status().applied);
    assert_eq!(durable.boundary.revision, 2);
    let again = rig.commit();
    assert_eq!(again.boundary.index, durable.boundary.index);
    assert_eq!(
        rig.node.stats().backend_commit.snapshot().count,
        1,
        "nothing was new"
    );
    rig.node.stop();
}

#[test]
fn a_full_segment_and_an_old_one_go_to_the_file_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(JumpingClock::default());
    let env = Env {
        clock: clock.clone(),
        ..Env::real()
    };
    let rig = Rig::start_in(config(dir.path()), env);
    let commits = || rig.node.stats().backend_commit.snapshot().count;
    let large = "x".repeat(1 << 20);
    for _ in 0..17 {
        rig.put("large", &large);
    }
    rig.commit();
    assert_eq!(
        commits(),
        2,
        "one for the full segment, one that was asked for"
    );
    clock.jump(Duration::from_secs(31));
    rig.put("young", "1");
    rig.order(Order::Defragment);
    assert_eq!(commits(), 3);
    rig.put("old", "1");
    clock.jump(Duration::from_secs(31));
    rig.put_until("the commit of an old segment", |node| {
        node.stats().backend_commit.snapshot().count == 4
    });
    rig.node.stop();
}

#[test]
fn a_configuration_change_is_answered_and_carried_out() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    let mut own = rig
        .node
        .shared()
        .members()
        .member(rig.node.member_id())
        .unwrap()
        .clone();
    own.peer_urls = vec!["http://127.0.0.1:9999".to_owned()];
    let learner = Member::new(
        String::new(),
        vec!["http://127.0.0.1:1".to_owned()],
        "",
        Some(1),
        true,
    );
    for (kind, member) in [
        (ConfChangeKind::UpdateNode, &own),
        (ConfChangeKind::AddLearnerNode, &learner),
    ] {
        let change = ConfChange {
            kind,
            member: member.id,
            context: member.add_context().into(),
            ..ConfChange::default()
        };
        let ticket = rig.desk.ticket();
        rig.node
            .propose_conf_change(change.clone(), ticket)
            .unwrap();
        let reply = rig.desk.wait(ticket);
        assert!(
            matches!(reply, Reply::Applied(Outcome::ConfChange)),
            "{reply:?}"
        );
        if kind == ConfChangeKind::AddLearnerNode {
            let ticket = rig.desk.ticket();
            rig.node.propose_conf_change(change, ticket).unwrap();
            let reply = rig.desk.wait(ticket);
            assert!(
                matches!(reply, Reply::Applied(Outcome::Refused(_))),
                "it is there already"
            );
        }
    }
    rig.put("a", "a learner is not waited for");
    assert_eq!(rig.get("a").as_deref(), Some("a learner is not waited for"));
    rig.node.stop();
    drop(rig);
    let rig = Rig::start(config(dir.path()));
    let members = rig.node.shared().members();
    assert_eq!(members.member(own.id).unwrap().peer_urls, own.peer_urls);
    assert!(members.member(learner.id).unwrap().is_learner);
    rig.node.stop();
}

#[test]
fn a_defragmented_file_is_used_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    let large = "x".repeat(10_000);
    for key in 0..100 {
        rig.put(&format!("k{key}"), &large);
    }
    rig.run(compact(101, true));
    assert!(matches!(rig.order(Order::Defragment), Reply::Done));
    rig.put("after", "1");
    assert_eq!(rig.get("k7"), Some(large));
    rig.node.stop();
    drop(rig);
    let rig = Rig::start(config(dir.path()));
    assert_eq!(rig.get("after").as_deref(), Some("1"));
    rig.node.stop();
}

#[test]
fn a_stopped_member_takes_nothing_and_may_be_stopped_again() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    rig.node.stop();
    rig.node.stop();
    let ticket = rig.desk.ticket();
    assert_eq!(
        rig.node.propose(put("a", "1"), ticket),
        Err(ApiError::Stopped)
    );
    assert_eq!(rig.node.read_barrier(ticket), Err(ApiError::Stopped));
    assert_eq!(rig.node.order(Order::Commit, None), Err(ApiError::Stopped));
    assert!(
        matches!(rig.node.wait_ready(PATIENCE), Ok(())),
        "it was ready once"
    );
}

#[test]
fn a_request_past_the_limit_is_refused_before_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.max_request_bytes = 1_000;
    let rig = Rig::start(config);
    let before = rig.node.status().applied;
    let ticket = rig.desk.ticket();
    let request = put("a", &"x".repeat(1_000));
    assert_eq!(
        rig.node.propose(request, ticket),
        Err(ApiError::RequestTooLarge)
    );
    rig.put("a", "small");
    assert!(rig.node.status().applied.0 <= before.0 + 2);
    rig.node.stop();
}
