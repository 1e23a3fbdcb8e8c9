//! What a member does by itself.

use keelson_proto::ApiError;
use keelson_proto::rpc::etcdserverpb::{
    AlarmType, InternalRaftRequest, LeaseGrantRequest, PutRequest,
};
use keelson_store::{Outcome, Quota};

use crate::rig::{Rig, by_root, config, put};

#[test]
fn attributes_and_version_are_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    let members = rig.node.shared().members();
    let own = members.member(rig.node.member_id()).unwrap();
    assert_eq!(own.name, "m1");
    assert_eq!(own.client_urls, ["http://127.0.0.1:2379"]);
    rig.put_until("the cluster's version", |node| {
        node.shared()
            .members()
            .version()
            .is_some_and(|version| version.to_string() == "3.7.0")
    });
    assert_eq!(
        rig.node.shared().storage_version().unwrap().to_string(),
        "3.7.0"
    );
    rig.node.stop();
}

fn grant(ttl: i64, id: i64) -> InternalRaftRequest {
    InternalRaftRequest {
        lease_grant: Some(LeaseGrantRequest { ttl, id }),
        ..InternalRaftRequest::default()
    }
}

fn attach(key: &str, lease: i64) -> InternalRaftRequest {
    InternalRaftRequest {
        put: Some(PutRequest {
            key: key.to_owned().into(),
            lease,
            ..PutRequest::default()
        }),
        ..InternalRaftRequest::default()
    }
}

#[test]
fn a_lease_that_runs_out_takes_its_keys_with_it_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    let outcome = rig.run(grant(1, 7));
    assert!(
        matches!(outcome, Outcome::LeaseGrant { ttl: 1, .. }),
        "{outcome:?}"
    );
    rig.run(attach("short", 7));
    rig.desk.wait_for_revision(3);
    assert_eq!(rig.get("short"), None);
    assert_eq!(rig.node.stats().leases_expired.get(), 1);
    rig.run(grant(1, 8));
    rig.run(attach("across", 8));
    rig.node.kill();
    drop(rig);
    let rig = Rig::start(config(dir.path()));
    rig.desk.wait_for_revision(5);
    assert_eq!(rig.get("across"), None);
    rig.node.stop();
}

#[test]
fn a_lease_that_runs_out_takes_its_keys_with_it_also_while_authentication_is_on() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    rig.turn_auth_on();
    rig.run(grant(1, 7));
    let put = rig.run(by_root(attach("short", 7)));
    assert!(matches!(put, Outcome::Put { .. }), "{put:?}");
    rig.desk.wait_for_revision(3);
    assert_eq!(rig.get("short"), None);
    rig.node.stop();
}

#[test]
fn a_full_database_raises_the_alarm_before_the_writer_learns_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.quota = Quota::new(300_000);
    let rig = Rig::start(config);
    let large = "x".repeat(50_000);
    let mut written = 0;
    let refused = loop {
        match rig.run(put(&format!("k{written}"), &large)) {
            Outcome::Put { .. } => written += 1,
            other => break other,
        }
        assert!(written < 20, "the quota never filled up");
    };
    assert!(matches!(refused, Outcome::Refused(ApiError::NoSpace)));
    let members = rig.node.shared().alarms().get(AlarmType::Nospace.into());
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].member_id, rig.node.member_id().0);
    let outcome = rig.run(put("small", "x"));
    assert!(matches!(outcome, Outcome::Refused(ApiError::NoSpace)));
    rig.node.stop();
}
