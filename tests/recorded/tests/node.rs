//! Data directories of etcd 3.6 and 3.7, opened in place: a member starts from each, and says what the
//! recorded server said of it.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;
use keelson_node::{Config, Env, Error, Node, Replies, Reply, Ticket, Watchers};
use keelson_recorded::data_folder;
use keelson_store::{EventRange, hash};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

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

fn run(version: &str, variant: &str) -> Result<()> {
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
    Ok(())
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

#[test]
fn directories_that_are_not_followed_yet_are_refused_with_a_reason() -> Result<()> {
    for (version, archive, reason) in [
        (
            "3.5",
            "basic/member.tar.gz",
            "a data directory of etcd 3.5.0 is not supported yet",
        ),
        ("3.7", "cluster3/m1.tar.gz", "several voting members"),
    ] {
        let path = data_folder()?.join("etcd").join(version).join(archive);
        let dir = tempfile::tempdir()?;
        tar::Archive::new(GzDecoder::new(File::open(path)?)).unpack(dir.path())?;
        let Err(error) = start(dir.path()) else {
            panic!("{version} {archive} started")
        };
        ensure!(error.to_string().contains(reason), "{error}");
    }
    Ok(())
}
