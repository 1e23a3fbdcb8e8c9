//! Who leads, and what becomes of those who ask meanwhile.

use std::time::Duration;

use keelson_node::Order;
use keelson_node::StepRefused;
use keelson_proto::ApiError;
use keelson_proto::ids::{LogIndex, MemberId};
use keelson_proto::message::{Message, MessageKind};

use crate::rig::{Cluster, PATIENCE, put};

#[test]
fn three_members_begin_with_the_same_log_and_elect_one() {
    let cluster = Cluster::new(3);
    let leader = cluster.leader();
    let ids: Vec<MemberId> = (0..3).map(|number| cluster.id(number)).collect();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    for number in 0..3 {
        let node = cluster.node(number);
        let members: Vec<MemberId> = node.shared().members().members().map(|it| it.id).collect();
        assert_eq!(members, sorted);
        assert_eq!(node.cluster_id(), cluster.node(leader).cluster_id());
    }
    cluster.wait("a version", |cluster| {
        (0..3).all(|number| cluster.node(number).shared().members().version().is_some())
    });
    cluster.agree();
}

#[test]
fn the_survivors_elect_another_leader_and_nothing_is_lost() {
    let mut cluster = Cluster::new(3);
    let first = cluster.leader();
    cluster.put(first, "a", "1");
    cluster.kill(first);
    let second = cluster.leader();
    assert_ne!(first, second);
    assert_eq!(cluster.get(second, "a").as_deref(), Some("1"));
    cluster.put(second, "b", "2");
    cluster.start(first);
    cluster.ready();
    cluster.leader();
    assert_eq!(cluster.get(first, "b").as_deref(), Some("2"));
    cluster.agree();
}

#[test]
fn a_leader_that_is_cut_off_steps_down_and_commits_nothing() {
    let cluster = Cluster::new(3);
    let old = cluster.leader();
    cluster.put(old, "a", "1");
    cluster.net.isolate(cluster.id(old));
    let desk = &cluster.places[old].desk;
    let ticket = desk.ticket();
    cluster.node(old).propose(put("a", "lost"), ticket).unwrap();
    let rest: Vec<usize> = (0..3).filter(|number| *number != old).collect();
    let new = cluster.leader_of(&rest);
    cluster.put(new, "a", "2");
    cluster.wait("the old leader steps down", |cluster| {
        !cluster.node(old).is_leader()
    });
    assert_eq!(cluster.local(old, "a").as_deref(), Some("1"));
    cluster.net.heal();
    assert_eq!(cluster.get(old, "a").as_deref(), Some("2"));
    cluster.agree();
}

#[test]
fn a_member_that_cannot_hear_the_others_does_not_disturb_their_term() {
    let cluster = Cluster::new(3);
    let leader = cluster.leader();
    let deaf = cluster.follower();
    for number in (0..3).filter(|number| *number != deaf) {
        cluster.net.cut(cluster.id(number), cluster.id(deaf));
    }
    let votes = || cluster.net.passed_from(MessageKind::Vote, cluster.id(deaf));
    let before = votes();
    cluster.wait("it has lost its leader", |cluster| {
        cluster.node(deaf).status().leader.is_none()
    });
    let polls = cluster.net.passed(MessageKind::PreVote);
    cluster.wait("it asks for votes", |cluster| {
        cluster.net.passed(MessageKind::PreVote) >= polls + 4
    });
    cluster.put(leader, "a", "1");
    // Another one may be elected because the machine has other work; not for what the deaf one says.
    let term = |number: usize| cluster.node(number).status().term;
    assert!(term(deaf) <= term(leader));
    assert_eq!(votes(), before, "it only asks whether it would be elected");
    cluster.net.heal();
    assert_eq!(cluster.get(deaf, "a").as_deref(), Some("1"));
}

#[test]
fn leadership_goes_where_it_is_sent() {
    let cluster = Cluster::new(3);
    let from = cluster.leader();
    let to = cluster.follower();
    let order = Order::MoveLeader(cluster.id(to));
    cluster.node(from).order(order, None).unwrap();
    cluster.wait("the move", |cluster| cluster.node(to).is_leader());
    cluster.put(from, "a", "1");
    assert_eq!(cluster.get(to, "a").as_deref(), Some("1"));
}

#[test]
fn a_leader_that_stops_hands_over_before_it_goes() {
    let mut cluster = Cluster::changed(3, |_, config| {
        // Long, so that nobody gets impatient while the leader waits for its successor.
        config.election = Duration::from_secs(3);
        config.heartbeat = Duration::from_millis(300);
    });
    let leader = cluster.leader();
    cluster.put(leader, "a", "1");
    cluster.stop(leader);
    let leads = |number: &usize| *number != leader && cluster.node(*number).is_leader();
    let next = (0..3).find(leads).expect("somebody leads by now");
    assert_eq!(cluster.get(next, "a").as_deref(), Some("1"));
}

#[test]
fn a_read_that_waits_learns_of_another_leader() {
    let cluster = Cluster::new(3);
    let leader = cluster.leader();
    let follower = cluster.follower();
    let other = (0..3).find(|it| ![leader, follower].contains(it)).unwrap();
    cluster.net.isolate(cluster.id(leader));
    let desk = &cluster.places[follower].desk;
    let ticket = desk.ticket();
    cluster.node(follower).read_barrier(ticket).unwrap();
    let reply = desk.wait(ticket);
    let refused = matches!(reply, keelson_node::Reply::Refused(ApiError::LeaderChanged));
    assert!(refused, "{reply:?}");
    cluster.leader_of(&[follower, other]);
    cluster.barrier(follower, PATIENCE).unwrap();
}

#[test]
fn without_a_leader_requests_and_reads_end_with_their_time() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader();
    let last = cluster.follower();
    for number in (0..3).filter(|number| *number != last) {
        cluster.kill(number);
    }
    assert_ne!(leader, last);
    cluster.wait("no leader", |cluster| {
        cluster.node(last).status().leader.is_none()
    });
    assert!(!cluster.node(last).has_leader());
    let desk = &cluster.places[last].desk;
    let write = desk.ticket();
    cluster.node(last).propose(put("a", "1"), write).unwrap();
    let reply = desk.wait(write);
    let refused = matches!(
        reply,
        keelson_node::Reply::Refused(ApiError::ContextDeadlineExceeded)
    );
    assert!(refused, "{reply:?}");
    assert_eq!(cluster.barrier(last, Duration::ZERO), Err(None));
}

#[test]
fn messages_of_strangers_and_for_others_are_refused() {
    let cluster = Cluster::new(1);
    let node = cluster.node(0);
    let heartbeat = |to| Message {
        kind: MessageKind::Heartbeat,
        from: MemberId(7),
        to,
        term: node.status().term,
        ..Message::default()
    };
    assert_eq!(
        node.step(heartbeat(MemberId(9))),
        Err(StepRefused::OtherMember)
    );
    let mut snapshot = heartbeat(node.member_id());
    snapshot.kind = MessageKind::Snap;
    assert!(node.step(snapshot).is_err(), "it comes without its file");
    let before = node.status();
    let answer = Message {
        kind: MessageKind::AppResp,
        index: LogIndex(1 << 40),
        ..heartbeat(node.member_id())
    };
    node.step(answer).unwrap();
    cluster.put(0, "a", "1");
    assert_eq!(node.status().term, before.term);
}

#[test]
fn an_answer_that_does_not_come_is_explained() {
    let cluster = Cluster::new(3);
    let leader = cluster.leader();
    let follower = cluster.follower();
    let now = |number: usize| cluster.places[number].env.clock.now();
    let begun = now(follower);
    cluster.put(leader, "a", "1");
    assert_eq!(
        cluster.node(follower).timeout_error(now(follower)),
        ApiError::Timeout
    );
    cluster.net.cut(cluster.id(leader), cluster.id(follower));
    assert_eq!(
        cluster.node(follower).timeout_error(begun),
        ApiError::TimeoutDueToConnectionLost
    );
    cluster.net.isolate(cluster.id(leader));
    let rest: Vec<usize> = (0..3).filter(|number| *number != leader).collect();
    let before = now(follower);
    cluster.leader_of(&rest);
    assert_eq!(
        cluster.node(follower).timeout_error(before),
        ApiError::TimeoutDueToLeaderFail
    );
}
