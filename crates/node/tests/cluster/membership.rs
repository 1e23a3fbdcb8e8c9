//! Members that come and go.

use std::sync::atomic::Ordering;

use keelson_proto::ApiError;
use keelson_proto::entry::{ConfChange, ConfChangeKind};
use keelson_store::Outcome;
use keelson_store::member::Member;

use crate::rig::{Cluster, PATIENCE, addition, newcomer, removal};

#[test]
fn a_member_joins_by_the_log_and_votes() {
    let mut cluster = Cluster::new(1);
    cluster.put(0, "a", "1");
    let member = newcomer(1, false);
    assert!(matches!(
        cluster.change(0, &addition(&member)),
        Outcome::ConfChange
    ));
    cluster.join(member.id, 1);
    cluster.start(1);
    cluster.ready();
    assert_eq!(cluster.id(1), member.id);
    assert_eq!(cluster.get(1, "a").as_deref(), Some("1"));
    let members = cluster.node(0).shared().members();
    assert_eq!(members.voters().count(), 2);
    cluster.put(1, "b", "2");
    cluster.agree();
    // Two voters: one alone commits nothing.
    cluster.kill(0);
    cluster.wait("no leader", |cluster| !cluster.node(1).has_leader());
    cluster.start(0);
    cluster.put(0, "c", "3");
}

#[test]
fn a_learner_follows_without_a_vote_and_is_promoted() {
    let mut cluster = Cluster::new(1);
    let learner = newcomer(1, true);
    assert!(matches!(
        cluster.change(0, &addition(&learner)),
        Outcome::ConfChange
    ));
    let second = newcomer(5, true);
    let outcome = cluster.change(0, &addition(&second));
    assert!(
        matches!(outcome, Outcome::Refused(ApiError::TooManyLearners)),
        "{outcome:?}"
    );
    cluster.join(learner.id, 1);
    // The leader commits alone: learners do not count.
    cluster.put(0, "a", "1");
    cluster.start(1);
    cluster.ready();
    cluster.wait("the learner's state", |cluster| {
        cluster.local(1, "a").as_deref() == Some("1")
    });
    assert!(cluster.node(1).status().is_learner);
    let promotion = ConfChange {
        kind: ConfChangeKind::AddNode,
        member: learner.id,
        context: Member::promote_context(learner.id).into(),
        ..ConfChange::default()
    };
    assert!(matches!(cluster.change(0, &promotion), Outcome::ConfChange));
    cluster.wait("the promotion", |cluster| {
        !cluster.node(1).status().is_learner
    });
    cluster.put(1, "b", "2");
    cluster.agree();
}

#[test]
fn a_removed_member_ends_by_itself_and_nobody_listens_to_it() {
    let cluster = Cluster::new(3);
    let leader = cluster.leader();
    let gone = cluster.follower();
    let outcome = cluster.change(leader, &removal(cluster.id(gone)));
    assert!(matches!(outcome, Outcome::ConfChange));
    cluster.wait("the end of the removed member", |cluster| {
        cluster.places[gone].desk.removed.load(Ordering::SeqCst) == 1
    });
    assert!(cluster.node(leader).is_removed(cluster.id(gone)));
    let told = cluster.places[leader].wires.told.lock().unwrap().clone();
    assert!(told.contains(&format!("remove {}", cluster.id(gone))));
    let again = cluster.change(leader, &removal(cluster.id(gone)));
    assert!(matches!(again, Outcome::Refused(ApiError::MemberNotFound)));
    cluster.put(leader, "a", "1");
}

#[test]
fn a_leader_that_removes_itself_is_followed_by_another() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let outcome = cluster.change(leader, &removal(cluster.id(leader)));
    assert!(matches!(outcome, Outcome::ConfChange));
    cluster.wait("its end", |cluster| {
        cluster.places[leader].desk.removed.load(Ordering::SeqCst) == 1
    });
    cluster.stop(leader);
    let next = cluster.leader();
    cluster.put(next, "a", "1");
    assert_eq!(cluster.node(next).shared().members().voters().count(), 2);
    cluster.agree();
}

#[test]
fn a_member_with_other_urls_is_told_of_in_the_order_of_the_entries() {
    let cluster = Cluster::new(2);
    let leader = cluster.leader();
    let other = cluster.follower();
    let moved = Member {
        id: cluster.id(other),
        peer_urls: vec!["http://127.0.0.1:9999".to_owned()],
        ..Member::default()
    };
    let change = ConfChange {
        kind: ConfChangeKind::UpdateNode,
        member: moved.id,
        context: moved.to_json().into(),
        ..ConfChange::default()
    };
    assert!(matches!(
        cluster.change(leader, &change),
        Outcome::ConfChange
    ));
    let told = cluster.places[leader].wires.told.lock().unwrap().clone();
    assert_eq!(
        told.last().unwrap(),
        &format!("update {} http://127.0.0.1:9999", moved.id)
    );
}

#[test]
fn a_member_joins_by_a_snapshot() {
    let mut cluster = Cluster::new(1);
    let value = "x".repeat(600_000);
    for count in 0..40 {
        cluster.put(0, &format!("k{}", count % 3), &value);
    }
    cluster.put(0, "last", "1");
    let member = newcomer(1, true);
    cluster.change(0, &addition(&member));
    cluster.join(member.id, 1);
    cluster.start(1);
    cluster.node(1).wait_ready(PATIENCE).unwrap();
    assert!(cluster.net.snapshots() >= 1);
    assert_eq!(cluster.get(1, "last").as_deref(), Some("1"));
    cluster.agree();
    cluster.kill(1);
    cluster.start(1);
    assert_eq!(cluster.get(1, "last").as_deref(), Some("1"));
}
