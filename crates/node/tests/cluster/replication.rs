//! Entries on every member, whoever takes them in; reads that see them.

use keelson_node::Order;
use keelson_proto::message::MessageKind;

use crate::rig::{Cluster, PATIENCE};

#[test]
fn a_follower_passes_proposals_on_and_answers_them_itself() {
    let cluster = Cluster::new(3);
    let follower = cluster.follower();
    for count in 0..20 {
        cluster.put(follower, &format!("k{count}"), "v");
    }
    assert!(cluster.net.passed(MessageKind::Prop) > 0);
    for number in 0..3 {
        assert_eq!(cluster.get(number, "k19").as_deref(), Some("v"));
    }
    cluster.agree();
}

#[test]
fn a_write_is_seen_by_the_next_read_on_every_member() {
    let cluster = Cluster::new(3);
    for count in 0..30 {
        let value = count.to_string();
        cluster.put(count % 3, "k", &value);
        assert_eq!(cluster.get((count + 1) % 3, "k"), Some(value.clone()));
        assert_eq!(cluster.get((count + 2) % 3, "k"), Some(value));
    }
}

#[test]
fn one_round_serves_all_reads_that_wait_for_it() {
    let cluster = Cluster::new(3);
    let follower = cluster.follower();
    cluster.barrier(follower, PATIENCE).unwrap();
    let before = cluster.net.passed(MessageKind::ReadIndex);
    let desk = &cluster.places[follower].desk;
    let tickets: Vec<_> = (0..500).map(|_| desk.ticket()).collect();
    for ticket in &tickets {
        cluster.node(follower).read_barrier(*ticket).unwrap();
    }
    for ticket in tickets {
        let reply = desk.wait(ticket);
        assert!(matches!(reply, keelson_node::Reply::Readable), "{reply:?}");
    }
    let rounds = cluster.net.passed(MessageKind::ReadIndex) - before;
    assert!((1..250).contains(&rounds), "{rounds} rounds");
}

#[test]
fn two_of_three_commit_and_the_third_catches_up_from_the_log() {
    let mut cluster = Cluster::new(3);
    let dead = cluster.follower();
    cluster.kill(dead);
    let leader = cluster.leader();
    for count in 0..200 {
        cluster.put(leader, &format!("k{count}"), "v");
    }
    cluster.start(dead);
    assert_eq!(cluster.get(dead, "k199").as_deref(), Some("v"));
    assert_eq!(cluster.net.snapshots(), 0);
    cluster.agree();
}

#[test]
fn a_whole_cluster_that_is_killed_comes_back_with_everything() {
    let mut cluster = Cluster::new(3);
    for count in 0..50 {
        cluster.put(count % 3, &format!("k{count}"), "v");
    }
    cluster.order(0, Order::Commit);
    for number in 0..3 {
        cluster.kill(number);
    }
    for number in 0..3 {
        cluster.start(number);
    }
    cluster.ready();
    for count in 0..50 {
        let value = cluster.get(count % 3, &format!("k{count}"));
        assert_eq!(value.as_deref(), Some("v"), "k{count}");
    }
    cluster.agree();
}

#[test]
fn members_that_die_in_turn_lose_nothing() {
    let mut cluster = Cluster::new(3);
    for round in 0..6 {
        let dead = round % 3;
        cluster.kill(dead);
        let leader = cluster.leader();
        cluster.put(leader, &format!("round{round}"), "v");
        cluster.start(dead);
        cluster.node(dead).wait_ready(PATIENCE).unwrap();
    }
    for round in 0..6 {
        let value = cluster.get(round % 3, &format!("round{round}"));
        assert_eq!(value.as_deref(), Some("v"));
    }
    cluster.agree();
}
