//! Data directories of etcd 3.5, 3.6 and 3.7, opened in place: a member starts from each, and says what the
//! recorded server said of it.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;
use keelson_bolt::Db;
use keelson_node::{Config, Env, Error, Node, Replies, Reply, Ticket, Watchers};
use keelson_proto::entry::EntryKind;
use keelson_proto::ids::MemberId;
use keelson_proto::raw_v2;
use keelson_recorded::data_folder;
use keelson_store::{EventRange, OpenOptions, hash};
use keelson_wal::RealFiles;
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);

/// Nobody asks anything.
struct Nobody;

impl Replies for Nobody {
    fn deliver(&self, _thread: u16, _replies: Vec<(Ticket, Reply)>) {}
}

impl Watchers for Nobody {
    fn events(&self, _batch: EventRange) {}

    fn restored(&self, _revision: i64) {}
}

fn start(dir: &Path) -> Result<Node, Error> {
    let mut config = Config::new("m1", dir, "http://127.0.0.1:12380");
    config.heartbeat = Duration::from_millis(20);
    config.election = Duration::from_millis(200);
    Node::start(config, Env::real(), Arc::new(Nobody), Arc::new(Nobody))
}

/// What a running member says must be what etcd said of the directory.
fn compare(node: &Node, expected: &Value) -> Result<()> {
    let shared = node.shared();
    ensure!(
        expected["revision"] == shared.revision(),
        "revision {} is not {}",
        shared.revision(),
        expected["revision"]
    );
    for row in expected["hashkv"].as_array().context("hashkv")? {
        let revision = row["revision"].as_i64().context("revision")?;
        match hash::hash_kv(shared, revision) {
            Ok(hash) => {
                ensure!(
                    row["hash"] == hash.hash,
                    "HashKV at {revision}: {} {row}",
                    hash.hash
                );
            }
            Err(error) => ensure!(
                row["error"]
                    .as_str()
                    .is_some_and(|text| text.ends_with(&error.to_string())),
                "HashKV at {revision}: {error} in place of {row}"
            ),
        }
    }
    let members = shared.members();
    let listed = expected["members"].as_array().context("members")?;
    ensure!(members.members().len() == listed.len(), "members");
    ensure!(
        members.member(node.member_id()).is_some(),
        "this member is one of them"
    );
    let leases = expected["leases"].as_array().map_or(0, Vec::len);
    ensure!(
        shared.leases().len() == leases,
        "{} leases, not {leases}",
        shared.leases().len()
    );
    Ok(())
}

/// What was recorded of the server; large recordings are packed.
fn expected(folder: &Path) -> Result<Value> {
    let plain = folder.join("expected.json");
    if plain.exists() {
        return Ok(serde_json::from_slice(&fs::read(plain)?)?);
    }
    let packed = File::open(folder.join("expected.json.gz"))?;
    Ok(serde_json::from_reader(BufReader::new(GzDecoder::new(
        packed,
    )))?)
}

fn run(version: &str, variant: &str) -> Result<TempDir> {
    let folder = data_folder()?.join("etcd").join(version).join(variant);
    let dir = tempfile::tempdir()?;
    let archive = File::open(folder.join("member.tar.gz"))?;
    tar::Archive::new(GzDecoder::new(archive)).unpack(dir.path())?;
    let expected = expected(&folder)?;
    let expected = &expected["reopened"];
    for round in 0..2 {
        let node = start(dir.path())?;
        node.wait_ready(PATIENCE)?;
        compare(&node, expected).with_context(|| format!("start {round}"))?;
        if round == 0 {
            node.kill();
        } else {
            node.stop();
        }
    }
    Ok(dir)
}

#[test]
fn directories_of_single_members_start_and_hold_what_they_held() -> Result<()> {
    for version in ["3.6", "3.7"] {
        let variants = [
            "auth",
            "autocompact",
            "basic",
            "defragged",
            "killed",
            "killed-compacting",
            "restored-bumped",
            "learner",
            "nospace",
            "segments",
        ];
        for variant in variants {
            run(version, variant).with_context(|| format!("{version}/{variant}"))?;
        }
    }
    for (version, variant) in [
        ("3.6", "upgraded-from-3.5"),
        ("3.7", "upgraded-from-3.5-and-3.6"),
        ("3.7", "downgrading"),
    ] {
        run(version, variant).with_context(|| format!("{version}/{variant}"))?;
    }
    Ok(())
}

/// Starts a member without its peers, and waits until it has applied what its log says is committed.
fn start_alone(dir: &Path) -> Result<Node> {
    let wal = dir.join("member/wal");
    let marks = keelson_wal::valid_snapshots(&RealFiles, &wal)?;
    let at = marks.last().copied().unwrap_or_default();
    let state = keelson_wal::read(&RealFiles, &wal, at)?.hard_state;
    let committed = state.context("a hard state")?.commit;
    let node = start(dir)?;
    let deadline = Instant::now() + PATIENCE;
    while node.status().applied < committed {
        ensure!(
            Instant::now() < deadline,
            "not replayed: {:?}",
            node.status()
        );
        std::thread::yield_now();
    }
    Ok(node)
}

/// Each member of a cluster, without its peers: it holds what the cluster held, and does not lead.
fn run_member(version: &str, member: &str, reopened: &str) -> Result<()> {
    let folder = data_folder()?.join("etcd").join(version).join("cluster3");
    let dir = tempfile::tempdir()?;
    let archive = File::open(folder.join(format!("{member}.tar.gz")))?;
    tar::Archive::new(GzDecoder::new(archive)).unpack(dir.path())?;
    let expected = expected(&folder)?;
    for round in 0..2 {
        let node = start_alone(dir.path())?;
        compare(&node, &expected[reopened]).with_context(|| format!("start {round}"))?;
        ensure!(!node.is_leader(), "one of three leads alone");
        if round == 0 {
            node.kill();
        } else {
            node.stop();
        }
    }
    Ok(())
}

/// Nothing that a start reads of the log is a raw request: etcd 3.7 could not start from it.
fn old_log_is_left_behind(dir: &Path) -> Result<()> {
    let wal = dir.join("member/wal");
    let marks = keelson_wal::valid_snapshots(&RealFiles, &wal)?;
    let at = marks.last().copied().context("a snapshot was taken")?;
    let replay = keelson_wal::read(&RealFiles, &wal, at)?;
    let raw = replay
        .entries
        .iter()
        .find(|entry| entry.kind == EntryKind::Normal && raw_v2::is_raw(&entry.data));
    ensure!(raw.is_none(), "{raw:?} lies behind {at:?}");
    let snap = format!("{:016x}-{:016x}.snap", at.term.0, at.index.0);
    ensure!(
        dir.join("member/snap").join(&snap).exists(),
        "{snap} is missing"
    );
    Ok(())
}

#[test]
fn directories_of_3_5_start_hold_what_they_held_and_leave_their_log_behind() -> Result<()> {
    for variant in [
        "auth",
        "autocompact",
        "basic",
        "defragged",
        "killed",
        "killed-compacting",
        "learner",
        "nospace",
        "restored",
        "segments",
    ] {
        let dir = run("3.5", variant).with_context(|| variant.to_owned())?;
        old_log_is_left_behind(dir.path()).with_context(|| variant.to_owned())?;
    }
    Ok(())
}

/// Some patches of 3.5 left members that were removed in the database, and learners that were promoted.
#[test]
fn what_3_5_left_wrong_in_its_database_is_mended() -> Result<()> {
    let folder = data_folder()?.join("etcd/3.5/cluster3");
    let expected = expected(&folder)?;
    let dir = tempfile::tempdir()?;
    let archive = File::open(folder.join("m1.tar.gz"))?;
    tar::Archive::new(GzDecoder::new(archive)).unpack(dir.path())?;
    let db = dir.path().join("member/snap/db");
    let mut found = Vec::new();
    for round in 0..2 {
        if round == 0 {
            let file = Db::open(&db, OpenOptions::bolt())?;
            let mut tx = file.begin_write()?;
            let mut members = tx.bucket_mut(b"members")?;
            let zombie = br#"{"id":9,"peerURLs":["http://127.0.0.1:9"],"name":"zombie"}"#;
            members.put(b"9", zombie)?;
            let key = b"9e737febb6b99eee";
            let row = members.get(key)?.context("m2 is a member")?;
            let row = String::from_utf8(row.to_vec())?
                .replace(r#","name""#, r#","isLearner":true,"name""#);
            ensure!(row.contains("isLearner"), "{row}");
            members.put(key, row.as_bytes())?;
            tx.commit()?;
            file.close()?;
        }
        let node = start_alone(dir.path())?;
        compare(&node, &expected["reopened"]).with_context(|| format!("start {round}"))?;
        found.push(node.shared().members());
        node.stop();
    }
    for members in found {
        ensure!(members.voters().count() == 3, "{members:?}");
        ensure!(members.member(MemberId(9)).is_none(), "{members:?}");
    }
    let file = Db::open(&db, OpenOptions::bolt())?;
    let read = file.begin_read()?;
    let members = read.bucket(b"members")?.context("the bucket")?;
    ensure!(members.get(b"9")?.is_none(), "the row is still there");
    Ok(())
}

#[test]
fn members_of_clusters_start_without_their_peers_and_hold_what_they_held() -> Result<()> {
    for version in ["3.5", "3.6", "3.7"] {
        for (member, reopened) in [
            ("m1", "reopened"),
            ("m2", "reopened_m2"),
            ("m3", "reopened_m3"),
        ] {
            run_member(version, member, reopened)
                .with_context(|| format!("{version}/cluster3/{member}"))?;
        }
    }
    Ok(())
}
