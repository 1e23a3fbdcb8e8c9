//! What a start finds, and what it refuses.

use std::fs;
use std::path::Path;

use keelson_node::Error;

use crate::rig::{Rig, config};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A directory with some writes, stopped.
fn written(dir: &Path, snapshot_count: Option<u64>) {
    let mut config = config(dir);
    config.snapshot_count = snapshot_count;
    let rig = Rig::start(config);
    for count in 0..30 {
        rig.put("k", &count.to_string());
    }
    rig.node.stop();
}

fn refusal(dir: &Path) -> Error {
    match Rig::try_start(config(dir)) {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

#[test]
fn a_database_without_its_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), None);
    fs::remove_dir_all(config(dir.path()).wal_dir()).unwrap();
    let error = refusal(dir.path());
    assert!(matches!(error, Error::DatabaseWithoutLog { .. }), "{error}");
    assert!(config(dir.path()).db_path().exists(), "it is left alone");
}

#[test]
fn a_lost_database_is_made_again_from_a_log_that_reaches_back_to_the_beginning() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), None);
    fs::remove_file(config(dir.path()).db_path()).unwrap();
    let rig = Rig::start(config(dir.path()));
    assert_eq!(rig.get("k").as_deref(), Some("29"));
    assert_eq!(rig.node.shared().revision(), 31);
    rig.node.stop();
}

#[test]
fn a_lost_database_is_missed_once_the_log_starts_from_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), Some(10));
    fs::remove_file(config(dir.path()).db_path()).unwrap();
    let error = refusal(dir.path());
    assert!(
        matches!(error, Error::DatabaseBehindSnapshot { .. }),
        "{error}"
    );
}

#[test]
fn a_received_database_is_installed_in_place_of_the_lost_one() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), Some(10));
    let config = config(dir.path());
    let marks = keelson_wal::valid_snapshots(&keelson_wal::RealFiles, &config.wal_dir()).unwrap();
    let name = format!("{:016x}.snap.db", marks.last().unwrap().index.0);
    fs::rename(config.db_path(), config.snap_dir().join(name)).unwrap();
    let rig = Rig::start(config);
    assert_eq!(rig.get("k").as_deref(), Some("29"));
    rig.node.stop();
}

#[test]
fn a_log_that_lost_its_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    written(&data, None);
    let wal = config(&data).wal_dir();
    let saved = dir.path().join("saved");
    copy(&wal, &saved);
    written(&data, None);
    fs::remove_dir_all(&wal).unwrap();
    copy(&saved, &wal);
    let error = refusal(&data);
    assert!(matches!(error, Error::LogBehindDatabase { .. }), "{error}");
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    let error = refusal(dir.path());
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    rig.put("a", "still works");
    rig.node.stop();
}

#[test]
fn a_torn_end_of_the_log_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    rig.put("a", "1");
    for _ in 0..5 {
        rig.put("b", "what the cut below may take away");
    }
    rig.node.kill();
    drop(rig);
    let segment = fs::read_dir(config(dir.path()).wal_dir())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|it| it == "wal"))
        .unwrap();
    // The last frame that is there: its first word is the last one that is not zero.
    let mut bytes = fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes.truncate(end - 3);
    fs::write(&segment, bytes).unwrap();
    let rig = Rig::start(config(dir.path()));
    assert_eq!(rig.get("a").as_deref(), Some("1"));
    rig.node.stop();
}

#[test]
fn a_start_that_was_cut_off_right_after_making_the_log_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    let (member_id, cluster_id) = (rig.node.member_id(), rig.node.cluster_id());
    rig.node.stop();
    drop(rig);
    let again = tempfile::tempdir().unwrap();
    let config = config(again.path());
    fs::create_dir_all(config.snap_dir()).unwrap();
    let metadata = keelson_wal::Metadata {
        node_id: member_id,
        cluster_id,
    };
    let files = std::sync::Arc::new(keelson_wal::RealFiles);
    let options = keelson_wal::Options::default();
    drop(keelson_wal::Wal::create(files, &config.wal_dir(), metadata, options).unwrap());
    let rig = Rig::start(config);
    assert_eq!(rig.node.member_id(), member_id);
    assert_eq!(rig.put("a", "1"), 2);
    rig.node.stop();
}
