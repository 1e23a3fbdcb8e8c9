//! Directories that were part of something larger, or of another release.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use keelson_node::{Config, Env, Error, Node};
use keelson_proto::entry::{ConfChange, ConfChangeKind, Entry, EntryKind, HardState};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::request;
use keelson_store::member::Member;
use keelson_wal::{RealFiles, SnapshotMark, Wal};
use semver::Version;

use crate::rig::{Desk, PATIENCE, Rig, config, put};

/// A directory with some writes, stopped; its member.
fn written(dir: &Path) -> MemberId {
    let rig = Rig::start(config(dir));
    for count in 0..10 {
        rig.put("k", &count.to_string());
    }
    rig.node.stop();
    rig.node.member_id()
}

fn other(number: u64, is_learner: bool) -> Member {
    let urls = vec![format!("http://127.0.0.1:{}", 3_000 + number)];
    Member {
        id: MemberId(number),
        peer_urls: urls,
        is_learner,
        ..Member::default()
    }
}

fn add(member: &Member) -> ConfChange {
    ConfChange {
        id: 0,
        kind: if member.is_learner {
            ConfChangeKind::AddLearnerNode
        } else {
            ConfChangeKind::AddNode
        },
        member: member.id,
        context: member.add_context().into(),
    }
}

fn remove(member: MemberId) -> ConfChange {
    ConfChange {
        id: 0,
        kind: ConfChangeKind::RemoveNode,
        member,
        context: Vec::new().into(),
    }
}

/// Writes to a log what a leader could have sent. `committed` entries of them count as committed.
fn append(config: &Config, contents: Vec<(EntryKind, bytes::Bytes)>, committed: usize) {
    let dir = config.wal_dir();
    let marks = keelson_wal::valid_snapshots(&RealFiles, &dir).unwrap();
    let at: SnapshotMark = marks.last().copied().unwrap_or_default();
    let options = keelson_wal::Options::default();
    let (mut wal, replay) = Wal::open(Arc::new(RealFiles), &dir, at, options).unwrap();
    let state: HardState = replay.hard_state.unwrap();
    let last = wal.last_index();
    let entries: Vec<Entry> = (last.0 + 1..)
        .zip(contents)
        .map(|(index, (kind, data))| Entry {
            kind,
            term: state.term,
            index: LogIndex(index),
            data,
        })
        .collect();
    let state = HardState {
        commit: LogIndex(last.0 + committed as u64),
        ..state
    };
    wal.append(Some(state), &entries).unwrap();
    wal.commit(true).unwrap();
}

fn changes(changes: &[ConfChange]) -> Vec<(EntryKind, bytes::Bytes)> {
    let encoded = changes.iter().map(ConfChange::encode);
    encoded.map(|data| (EntryKind::ConfChange, data)).collect()
}

/// A raw request, as 3.5 writes it.
fn raw(path: &str, value: &str) -> (EntryKind, bytes::Bytes) {
    let request = keelson_proto::raw_v2::RawRequest {
        id: Some(7),
        method: Some("PUT".to_owned()),
        path: Some(path.to_owned()),
        value: Some(value.to_owned()),
    };
    let data = prost::Message::encode_to_vec(&request).into();
    (EntryKind::Normal, data)
}

fn one_put(value: &str) -> (EntryKind, bytes::Bytes) {
    (EntryKind::Normal, request::encode(&put("k", value)))
}

/// Starts a member that nobody lets become ready, and waits until it has applied what its log says is
/// committed.
fn start_replayed(config: Config) -> Node {
    let marks = keelson_wal::valid_snapshots(&RealFiles, &config.wal_dir()).unwrap();
    let at = marks.last().copied().unwrap_or_default();
    let replay = keelson_wal::read(&RealFiles, &config.wal_dir(), at).unwrap();
    let committed = replay.hard_state.unwrap().commit;
    let desk = Arc::new(Desk::default());
    let node = Node::start(config, Env::real(), desk.clone(), desk).unwrap();
    let deadline = node.env().clock.now() + PATIENCE;
    while node.status().applied < committed {
        assert!(node.env().clock.now() < deadline, "not replayed");
        std::thread::yield_now();
    }
    node
}

fn refusal(config: Config) -> Error {
    match Rig::try_start(config) {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

#[test]
fn a_member_that_was_removed_refuses_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let own = written(dir.path());
    let config = config(dir.path());
    let gone = changes(&[add(&other(1, false)), remove(own)]);
    append(&config, gone, 2);
    for _ in 0..2 {
        let error = refusal(config.clone());
        assert!(
            error
                .to_string()
                .contains("the member has been permanently removed from the cluster"),
            "{error}"
        );
        assert!(matches!(error, Error::Removed { member, .. } if member == own));
    }
}

#[test]
fn a_removal_that_is_not_committed_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let own = written(dir.path());
    let config = config(dir.path());
    append(&config, changes(&[add(&other(1, false)), remove(own)]), 1);
    let node = start_replayed(config);
    assert_eq!(node.shared().members().members().len(), 2);
    assert!(!node.is_leader());
    node.stop();
}

#[test]
fn the_log_of_a_member_of_several_goes_on_from_its_database_if_it_ends_before() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    written(&data);
    let config = config(&data);
    append(&config, changes(&[add(&other(1, false))]), 1);
    let saved = dir.path().join("saved");
    copy(&config.wal_dir(), &saved);
    append(&config, vec![one_put("later"), one_put("latest")], 2);
    let node = start_replayed(config.clone());
    let (applied, revision) = (node.status().applied, node.shared().revision());
    node.stop();
    drop(node);
    fs::remove_dir_all(config.wal_dir()).unwrap();
    copy(&saved, &config.wal_dir());
    for _ in 0..2 {
        let node = start_replayed(config.clone());
        assert_eq!(node.status().applied, applied);
        assert_eq!(node.shared().revision(), revision);
        node.stop();
    }
    let marks = keelson_wal::valid_snapshots(&RealFiles, &config.wal_dir()).unwrap();
    assert_eq!(marks.last().map(|mark| mark.index), Some(applied));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_member_of_several_can_be_made_the_only_one() {
    let dir = tempfile::tempdir().unwrap();
    let own = written(dir.path());
    let mut config = config(dir.path());
    let mut contents = changes(&[
        add(&other(1, false)),
        add(&other(2, false)),
        add(&other(3, true)),
    ]);
    contents.extend([one_put("kept"), one_put("dropped")]);
    append(&config, contents, 4);
    config.force_new_cluster = true;
    let rig = Rig::start(config.clone());
    assert_eq!(rig.node.member_id(), own);
    assert_eq!(rig.get("k").as_deref(), Some("kept"));
    let members = rig.node.shared().members();
    let left: Vec<MemberId> = members.members().map(|member| member.id).collect();
    assert_eq!(left, [own]);
    assert_eq!(members.removed().len(), 3);
    rig.put("k", "alone");
    rig.node.kill();
    drop(rig);
    config.force_new_cluster = false;
    let rig = Rig::start(config);
    assert_eq!(rig.get("k").as_deref(), Some("alone"));
    rig.node.stop();
}

#[test]
fn a_learner_that_is_made_the_only_member_votes() {
    let dir = tempfile::tempdir().unwrap();
    let own = written(dir.path());
    let mut config = config(dir.path());
    let learner = Member {
        id: own,
        ..other(1, true)
    };
    rewrite_members(&config, &[learner, other(2, false)]);
    config.force_new_cluster = true;
    let rig = Rig::start(config);
    let members = rig.node.shared().members();
    assert!(members.member(own).is_some_and(|member| !member.is_learner));
    assert_eq!(members.members().len(), 1);
    rig.put("k", "alone");
    rig.node.stop();
}

/// Puts rows about members into the database.
fn rewrite_members(config: &Config, rows: &[Member]) {
    let options = keelson_store::OpenOptions::bolt();
    let db = keelson_bolt::Db::open(&config.db_path(), options).unwrap();
    let mut tx = db.begin_write().unwrap();
    let mut members = tx.bucket_mut(b"members").unwrap();
    for member in rows {
        let key = member.id.to_string();
        members.put(key.as_bytes(), &member.to_json()).unwrap();
    }
    tx.commit().unwrap();
    db.close().unwrap();
}

#[test]
fn raw_requests_of_3_5_are_applied_and_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let own = written(dir.path());
    let config = config(dir.path());
    let attributes = r#"{"name":"renamed","clientURLs":["http://127.0.0.1:9"]}"#;
    let contents = vec![
        raw(&format!("/0/members/{own}/attributes"), attributes),
        raw("/0/version", "3.7.0"),
        one_put("after"),
    ];
    let contents = [changes(&[add(&other(1, false))]), contents].concat();
    append(&config, contents, 4);
    let node = start_replayed(config.clone());
    let members = node.shared().members();
    let name = members.member(own).map(|member| member.name.clone());
    assert_eq!(name.as_deref(), Some("renamed"));
    node.stop();
    let marks = keelson_wal::valid_snapshots(&RealFiles, &config.wal_dir()).unwrap();
    let at = marks.last().copied().unwrap();
    let replay = keelson_wal::read(&RealFiles, &config.wal_dir(), at).unwrap();
    let is_raw = |entry: &Entry| keelson_proto::raw_v2::is_raw(&entry.data);
    assert!(!replay.entries.iter().any(is_raw), "{replay:?}");
    assert!(at.term > Term(0));
}

#[test]
fn a_request_of_the_v2_api_that_changes_keys_stops_the_member() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    let config = config(dir.path());
    append(&config, vec![raw("/1/key", "value")], 1);
    let desk = Arc::new(Desk::default());
    let node = Node::start(config, Env::real(), desk.clone(), desk).unwrap();
    assert!(node.wait_ready(PATIENCE).is_err());
    let failure = node.failure().unwrap();
    assert!(failure.contains("v2 API, PUT \"/1/key\""), "{failure}");
}

#[test]
fn a_member_held_at_3_6_keeps_its_directory_at_3_6() {
    let dir = tempfile::tempdir().unwrap();
    let mut held = config(dir.path());
    held.version = Version::new(3, 6, 0);
    let rig = Rig::start(held.clone());
    rig.put_until("the storage version", |node| {
        node.shared().storage_version() == Some(Version::new(3, 6, 0))
    });
    rig.node.stop();
    drop(rig);
    let rig = Rig::start(config(dir.path()));
    rig.put_until("the storage version", |node| {
        node.shared().storage_version() == Some(Version::new(3, 7, 0))
    });
    rig.node.stop();
    drop(rig);
    let error = refusal(held);
    assert!(
        error.to_string().starts_with(
            "invalid downgrade; server version is lower than determined cluster version"
        ),
        "{error}"
    );
}
