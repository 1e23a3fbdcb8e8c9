//! A member that the log does not reach back to gets the file.

use std::fs;
use std::time::Duration;

use keelson_proto::ids::LeaseId;
use keelson_wal::{RealFiles, SnapFiles, valid_snapshots};

use crate::net::Spoil;
use crate::rig::{Cluster, PATIENCE, addition, grant, newcomer, put_with_lease};

/// More than the log in memory keeps.
fn outrun(cluster: &Cluster, at: usize) {
    let value = "x".repeat(600_000);
    for count in 0..40 {
        cluster.put(at, &format!("large{}", count % 4), &value);
    }
}

/// A cluster with a dead member that needs a snapshot.
fn with_one_behind() -> (Cluster, usize) {
    let mut cluster = Cluster::new(3);
    let dead = cluster.follower();
    cluster.put(dead, "before", "1");
    cluster.kill(dead);
    let leader = cluster.leader();
    cluster.run(leader, &grant(77, 1_000));
    cluster.run(leader, &put_with_lease("leased", 77));
    outrun(&cluster, leader);
    cluster.put(leader, "after", "2");
    (cluster, dead)
}

#[test]
fn a_member_that_is_far_behind_goes_on_from_a_snapshot() {
    let (mut cluster, behind) = with_one_behind();
    cluster.start(behind);
    assert_eq!(cluster.get(behind, "after").as_deref(), Some("2"));
    assert_eq!(cluster.local(behind, "before").as_deref(), Some("1"));
    assert!(cluster.net.snapshots() >= 1);
    let place = &cluster.places[behind];
    let told = place.wires.told.lock().unwrap().clone();
    assert!(told.contains(&"replace by 2".to_owned()), "{told:?}");
    assert!(!place.desk.restored.lock().unwrap().is_empty());
    {
        let leases = place.node().shared().leases();
        assert_eq!(leases.lease_of(b"leased"), LeaseId(77));
    }
    // It goes on by entries from there.
    cluster.put(behind, "again", "3");
    assert_eq!(cluster.get(behind, "again").as_deref(), Some("3"));
    cluster.agree();

    // Log and directory say the same: a `.snap` file with its mark, and no file left over.
    let config = cluster.places[behind].config.clone();
    let marks = valid_snapshots(&RealFiles, &config.wal_dir()).unwrap();
    let files = SnapFiles::new(std::sync::Arc::new(RealFiles), &config.snap_dir());
    let newest = files.load_newest(&marks).unwrap().unwrap();
    assert!(newest.index.0 > 0);
    assert!(!files.database_path(newest.index).exists());

    cluster.kill(behind);
    cluster.start(behind);
    assert_eq!(cluster.get(behind, "again").as_deref(), Some("3"));
    cluster.agree();
}

/// A new member tells its attributes as soon as it hears of a leader, and the snapshot that it gets is
/// often of a later entry: it never applied the one that told them, and was not ready before it had told
/// them again, seven seconds after its start.
#[test]
fn a_new_member_is_ready_by_a_snapshot_that_holds_its_attributes() {
    let mut cluster = Cluster::new(1);
    outrun(&cluster, 0);
    let member = newcomer(1, true);
    cluster.change(0, &addition(&member));
    cluster.join(member.id, 1);
    // It would tell them again later than anybody waits here.
    cluster.places[1].config.election = Duration::from_secs(50);
    cluster.net.spoil_snapshots(Some(Spoil::Cut));
    cluster.start(1);
    let name = cluster.places[1].config.name.clone();
    cluster.wait("the attributes", |cluster| {
        let members = cluster.node(0).shared().members();
        members.member(member.id).is_some_and(|it| it.name == name)
    });
    outrun(&cluster, 0);
    cluster.net.spoil_snapshots(None);
    cluster.node(1).wait_ready(PATIENCE).unwrap();
    assert!(cluster.net.snapshots() >= 2);
}

#[test]
fn a_member_that_runs_takes_a_snapshot_in_the_place_of_its_state() {
    let cluster = Cluster::new(3);
    let leader = cluster.leader();
    let behind = cluster.follower();
    cluster.put(leader, "before", "1");
    cluster.wait("the write", |cluster| {
        cluster.local(behind, "before").is_some()
    });
    cluster.net.isolate(cluster.id(behind));
    let old = cluster.node(behind).shared().view();
    let revision = cluster.node(behind).shared().revision();
    outrun(&cluster, leader);
    cluster.put(leader, "after", "2");
    cluster.net.heal();
    assert_eq!(cluster.get(behind, "after").as_deref(), Some("2"));
    let restored = cluster.places[behind].desk.restored.lock().unwrap().clone();
    assert!(restored.iter().all(|to| *to > revision) && !restored.is_empty());
    assert_eq!(
        old.file_revision(),
        1,
        "whoever had the old view still has it"
    );
    cluster.agree();
}

#[test]
fn a_crash_between_log_and_file_is_made_good_at_the_next_start() {
    let (mut cluster, behind) = with_one_behind();
    cluster.start(behind);
    assert_eq!(cluster.get(behind, "after").as_deref(), Some("2"));
    // As if the crash had come after the mark and before the rename: the old file, and the new one
    // under the name that it was received with.
    let config = cluster.places[behind].config.clone();
    cluster.stop(behind);
    let marks = valid_snapshots(&RealFiles, &config.wal_dir()).unwrap();
    let mark = *marks.last().unwrap();
    let files = SnapFiles::new(std::sync::Arc::new(RealFiles), &config.snap_dir());
    fs::rename(config.db_path(), files.database_path(mark.index)).unwrap();
    cluster.start(behind);
    assert_eq!(cluster.get(behind, "after").as_deref(), Some("2"));
    cluster.agree();
}

#[test]
fn a_spoilt_snapshot_is_refused_and_asked_for_again() {
    for spoil in [Spoil::Cut, Spoil::Checksum] {
        let (mut cluster, behind) = with_one_behind();
        cluster.net.spoil_snapshots(Some(spoil));
        cluster.start(behind);
        cluster.wait("two attempts", |cluster| cluster.net.snapshots() >= 2);
        assert_eq!(cluster.local(behind, "after"), None);
        assert!(
            cluster.places[behind]
                .desk
                .restored
                .lock()
                .unwrap()
                .is_empty()
        );
        cluster.net.spoil_snapshots(None);
        assert_eq!(cluster.get(behind, "after").as_deref(), Some("2"));
        let left = fs::read_dir(cluster.places[behind].config.snap_dir()).unwrap();
        let names: Vec<String> = left
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        assert!(
            !names.iter().any(|name| name.starts_with("tmp")),
            "{names:?}"
        );
        cluster.agree();
    }
}

#[test]
fn leases_of_a_snapshot_expire_under_a_leader_that_got_it() {
    let (mut cluster, behind) = with_one_behind();
    cluster.start(behind);
    assert_eq!(cluster.get(behind, "leased").as_deref(), Some("leased"));
    let order = keelson_node::Order::MoveLeader(cluster.id(behind));
    let leader = cluster.leader();
    cluster.node(leader).order(order, None).unwrap();
    cluster.wait("the move", |cluster| cluster.node(behind).is_leader());
    cluster.put(behind, "term", "mine");
    cluster.places[behind]
        .clock
        .jump(Duration::from_secs(1_100));
    cluster.wait("the end of the lease", |cluster| {
        cluster.local(behind, "leased").is_none()
    });
}
