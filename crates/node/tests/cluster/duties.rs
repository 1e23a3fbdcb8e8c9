//! What only a leader does: checks, leases, versions.

use std::time::Duration;

use keelson_node::Config;
use keelson_proto::rpc::etcdserverpb::{
    AlarmType, CompactionRequest, InternalRaftRequest, LeaseRevokeRequest,
};

use crate::rig::{Cluster, grant, put_with_lease};

fn checked(_: usize, config: &mut Config) {
    config.corrupt_check = Some(Duration::from_millis(50));
    config.compact_hash_check = Some(Duration::from_millis(50));
}

fn corrupt(cluster: &Cluster, at: usize) -> Vec<u64> {
    let alarms = cluster.node(at).shared().alarms();
    let corrupt = alarms.get(AlarmType::Corrupt.into());
    corrupt.into_iter().map(|alarm| alarm.member_id).collect()
}

#[test]
fn members_that_agree_raise_no_alarm_and_one_that_differs_is_named() {
    let cluster = Cluster::changed(3, checked);
    let leader = cluster.leader();
    for count in 0..50 {
        cluster.put(count % 3, "k", &count.to_string());
    }
    assert!(corrupt(&cluster, leader).is_empty());
    let liar = cluster.follower();
    cluster.net.corrupt(cluster.id(liar));
    cluster.wait("the alarm", |cluster| {
        (0..3).all(|number| corrupt(cluster, number) == [cluster.id(liar).0])
    });
}

#[test]
fn the_hashes_of_a_compaction_are_compared_and_the_minority_is_named() {
    let cluster = Cluster::changed(3, |_, config| {
        config.compact_hash_check = Some(Duration::from_millis(50));
    });
    let leader = cluster.leader();
    for count in 0..20 {
        cluster.put(leader, "k", &count.to_string());
    }
    let compaction = InternalRaftRequest {
        compaction: Some(CompactionRequest {
            revision: 10,
            physical: false,
        }),
        ..InternalRaftRequest::default()
    };
    let liar = cluster.follower();
    cluster.net.corrupt(cluster.id(liar));
    cluster.run(leader, &compaction);
    cluster.wait("the alarm", |cluster| {
        corrupt(cluster, leader) == [cluster.id(liar).0]
    });
}

#[test]
fn a_leader_without_a_quorum_revokes_nothing() {
    let cluster = Cluster::new(3);
    let old = cluster.leader();
    cluster.run(old, &grant(9, 60));
    cluster.run(old, &put_with_lease("leased", 9));
    cluster.net.isolate(cluster.id(old));
    let rest: Vec<usize> = (0..3).filter(|number| *number != old).collect();
    let new = cluster.leader_of(&rest);
    cluster.put(new, "a", "1");
    // The old one thinks that the lease is long over; the others do not.
    cluster.places[old].clock.jump(Duration::from_secs(600));
    cluster.wait("the old leader steps down", |cluster| {
        !cluster.node(old).is_leader()
    });
    assert!(!cluster.node(old).shared().deadlines().is_primary());
    assert_eq!(cluster.local(old, "leased").as_deref(), Some("leased"));
    cluster.net.heal();
    assert_eq!(cluster.get(old, "leased").as_deref(), Some("leased"));
    assert!(cluster.node(new).shared().deadlines().is_primary());
    // And its new leader does revoke.
    cluster.places[new].clock.jump(Duration::from_secs(600));
    cluster.wait("the end of the lease", |cluster| {
        (0..3).all(|number| cluster.local(number, "leased").is_none())
    });
}

#[test]
fn a_lease_that_was_revoked_is_gone_everywhere() {
    let cluster = Cluster::new(2);
    let follower = cluster.follower();
    cluster.run(follower, &grant(5, 600));
    cluster.run(follower, &put_with_lease("leased", 5));
    let revoke = InternalRaftRequest {
        lease_revoke: Some(LeaseRevokeRequest { id: 5 }),
        ..InternalRaftRequest::default()
    };
    cluster.run(follower, &revoke);
    for number in 0..2 {
        assert_eq!(cluster.get(number, "leased"), None);
        assert!(cluster.node(number).shared().leases().is_empty());
    }
    cluster.agree();
}
