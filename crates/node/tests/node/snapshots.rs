//! Disk snapshots.

use keelson_proto::ids::LogIndex;
use keelson_wal::{RealFiles, SnapFiles, read_snap, valid_snapshots};

use crate::rig::{Rig, config};

#[test]
fn a_snapshot_count_of_ten_writes_snap_files_that_the_log_has_marks_of() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.snapshot_count = Some(10);
    let rig = Rig::start(config.clone());
    for count in 0..45 {
        rig.put("k", &count.to_string());
    }
    let (member, applied) = (rig.node.member_id(), rig.node.status().applied);
    rig.node.stop();
    drop(rig);

    let marks = valid_snapshots(&RealFiles, &config.wal_dir()).unwrap();
    // 0, and one whenever more than ten entries have passed.
    assert_eq!(
        marks.len(),
        1 + usize::try_from(applied.0 / 11).unwrap(),
        "{marks:?}"
    );
    let files = SnapFiles::new(std::sync::Arc::new(RealFiles), &config.snap_dir());
    let names = files.list().unwrap();
    assert_eq!(names.len(), marks.len() - 1);
    for name in names {
        let snapshot = read_snap(&RealFiles, &config.snap_dir().join(name)).unwrap();
        assert_eq!(snapshot.conf_state.voters, [member]);
        assert!(
            marks
                .iter()
                .any(|mark| (mark.index, mark.term) == (snapshot.index, snapshot.term))
        );
        let dump = keelson_store::v2json::Dump::decode(&snapshot.data).unwrap();
        assert_eq!(dump.members[0].name, "m1");
        assert_eq!(dump.members[0].client_urls, ["http://127.0.0.1:2379"]);
        assert_eq!(dump.cluster_version.as_deref(), Some("3.7.0"));
    }

    let rig = Rig::start(config.clone());
    assert_eq!(rig.get("k").as_deref(), Some("44"));
    for count in 0..20 {
        rig.put("k", &format!("again {count}"));
    }
    rig.node.kill();
    drop(rig);
    let rig = Rig::start(config);
    assert_eq!(rig.get("k").as_deref(), Some("again 19"));
    rig.node.stop();
}

#[test]
fn by_default_snapshots_follow_commits_and_these_are_rare() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let rig = Rig::start(config.clone());
    for count in 0..100 {
        rig.put("k", &count.to_string());
    }
    rig.commit();
    rig.node.stop();
    let marks = valid_snapshots(&RealFiles, &config.wal_dir()).unwrap();
    assert_eq!(marks.len(), 1);
    assert_eq!(marks[0].index, LogIndex(0));
}
