//! Damaged data directories of etcd 3.5, 3.6 and 3.7: a server that is started on one gives the kind of
//! answer that etcd gave, except where etcd neither serves nor ends.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use keelson_harness::{Launch, Process};
use keelson_proto::rpc::etcdserverpb::{PutRequest, RangeRequest};
use keelson_recorded::data_folder;
use keelson_recorded::dirs::{Directory, json};
use serde_json::Value;

/// What etcd says of a member that neither serves nor ends.
const NEVER_READY: &str = "running but not healthy after 8 s";

/// What must be in the last line of a server that ends, beside the recorded error of the log. etcd's
/// own end is given behind each.
const REFUSALS: [(&str, &[&str]); 9] = [
    // Never ready: the repair has cut entries that the database holds. A lone member would skip its
    // new entries up to there.
    (
        "truncated-in-big-entry",
        &["the log in", "has lost its end", "restore"],
    ),
    (
        "zeroed-from-big-entry",
        &["the log in", "has lost its end", "restore"],
    ),
    (
        "length-too-large-middle",
        &["the log in", "has lost its end", "restore"],
    ),
    // Exit code 1.
    ("bit-flip-middle", &["crc mismatch"]),
    ("bit-flip-last-record", &["crc mismatch"]),
    // A panic: a nil pointer.
    ("truncated-to-zero", &["no metadata found"]),
    // Never ready: a new log whose entries the old database takes for applied.
    ("no-wal-file", &["has a database", "but no log"]),
    // A panic.
    ("no-db", &["does not match with snapshot", "restore"]),
    // A panic.
    ("db-truncated", &["file size too small"]),
];

/// Where the files are others than those that the recorded server left: ours are as 3.7 leaves them.
const OTHER_FILES: [(&str, &str, &str); 7] = [
    // No database is made where one is missing.
    ("3.5", "no-db", "snap/db"),
    ("3.6", "no-db", "snap/db"),
    ("3.7", "no-db", "snap/db"),
    // `.snap` files are not read, so that none is found to be broken.
    (
        "3.6",
        "newest-snap-corrupt",
        "snap/0000000000000002-000000000000002a.snap",
    ),
    // No log is made where one is missing.
    (
        "3.5",
        "no-wal-file",
        "wal/0000000000000000-0000000000000000.wal",
    ),
    (
        "3.6",
        "no-wal-file",
        "wal/0000000000000000-0000000000000000.wal",
    ),
    (
        "3.7",
        "no-wal-file",
        "wal/0000000000000000-0000000000000000.wal",
    ),
];

fn apply(edit: &Value, member: &Path) -> Result<()> {
    let path = member.join(edit["file"].as_str().context("file")?);
    let number = |name: &str| edit[name].as_u64().with_context(|| name.to_owned());
    let open = || OpenOptions::new().read(true).write(true).open(&path);
    match edit["op"].as_str().context("op")? {
        "truncate" => open()?.set_len(number("at")?)?,
        "zero" => {
            let file = open()?;
            let len = file.metadata()?.len();
            file.set_len(number("from")?)?;
            file.set_len(len.max(number("to")?))?;
        }
        "xor" => {
            let (file, at) = (open()?, number("at")?);
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            byte[0] ^= u8::try_from(number("mask")?)?;
            file.write_all_at(&byte, at)?;
        }
        "remove" => fs::remove_file(&path)?,
        "write" => {
            let hex = edit["hex"].as_str().context("hex")?;
            let bytes: Result<Vec<u8>, _> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16))
                .collect();
            fs::write(&path, bytes?)?;
        }
        other => bail!("unknown edit {other}"),
    }
    Ok(())
}

/// The files that outlive a server; what it makes for later has other names.
fn files(member: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for folder in ["snap", "wal"] {
        // A server that refuses may not have made it.
        for entry in fs::read_dir(member.join(folder)).into_iter().flatten() {
            let name = entry?.file_name().to_string_lossy().into_owned();
            found.insert(format!("{folder}/{name}"));
        }
    }
    Ok(found)
}

fn is_kept(name: &str) -> bool {
    !name.contains(".tmp")
}

async fn compare(process: &Process, expected: &Value, version: &str) -> Result<()> {
    let client = process.client().await?;
    let status = client.status().await?;
    let header = status.header.as_ref().context("header")?;
    let recorded = &expected["status"];
    let same = [
        ("revision", &expected["revision"], header.revision.into()),
        (
            "cluster",
            &recorded["header"]["cluster_id"],
            header.cluster_id.into(),
        ),
        (
            "member",
            &recorded["header"]["member_id"],
            header.member_id.into(),
        ),
        ("leader", &recorded["leader"], status.leader.into()),
        ("term", &recorded["raftTerm"], status.raft_term.into()),
    ];
    for (what, recorded, ours) in same {
        let ours: Value = ours;
        ensure!(*recorded == ours, "{what}: {ours} is not {recorded}");
    }
    if version == "3.7" {
        ensure!(
            recorded["storageVersion"] == status.storage_version,
            "storage version"
        );
    }
    let hash = client.hash_kv(0).await?;
    let recorded = &expected["hashkv_latest"];
    ensure!(
        recorded["hash"] == hash.hash,
        "hash {} is not {recorded}",
        hash.hash
    );
    ensure!(
        recorded["compact_revision"] == hash.compact_revision,
        "compact revision"
    );
    let all = RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        count_only: true,
        ..RangeRequest::default()
    };
    let count = client.get(all).await?.count;
    ensure!(expected["key_count"] == count, "{count} keys");
    let none: [Value; 2] = [expected["leases"].clone(), expected["alarms"].clone()];
    ensure!(
        none.iter()
            .all(|it| it.as_array().is_some_and(Vec::is_empty)),
        "leases, alarms"
    );
    ensure!(client.alarms().await?.alarms.is_empty(), "an alarm");
    let members = client.member_list().await?.members;
    let ids: Vec<Value> = members.iter().map(|it| it.id.into()).collect();
    let recorded: Vec<Value> = expected["members"]
        .as_array()
        .context("members")?
        .iter()
        .map(|it| it["id"].clone())
        .collect();
    ensure!(ids == recorded, "members {ids:?}");
    // It serves.
    let put = PutRequest {
        key: "after the damage".into(),
        ..PutRequest::default()
    };
    let after = client.put(put).await?.header.context("header")?;
    ensure!(after.revision == header.revision + 1, "the next revision");
    Ok(())
}

/// One case on one version's directory.
fn check(version: &str, name: &str, case: &Value) -> Result<()> {
    let folder = data_folder()?.join("wal-server");
    let directory = Directory::unpack(&folder.join(format!("{version}.tar.gz")))?;
    let member = directory.path().join("member");
    for edit in case["edits"].as_array().context("edits")? {
        apply(edit, &member)?;
    }
    let before = files(&member)?;
    let launch = Launch::new(env!("CARGO_BIN_EXE_keelson-recorded-server"));
    let mut process = Process::prepared(launch, directory.path().to_owned())?;
    if case["started"] == true {
        process.restart()?;
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(compare(&process, &case["observed"], version))?;
        let exit = process.stop()?;
        // As etcd: by the signal that it was sent.
        ensure!(exit.signal() == Some(15), "its end: {:?}", exit.status);
    } else {
        let ends = case["exit"].is_u64() || case["note"] == NEVER_READY;
        ensure!(ends, "neither served nor ended: {case}");
        refuse(&mut process, name, case)?;
        ensure!(
            files(&member)?.contains("snap/db") == before.contains("snap/db"),
            "the database"
        );
    }
    let recorded: BTreeSet<String> = case["files_after"]
        .as_array()
        .context("files_after")?
        .iter()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .filter(|name| is_kept(name))
        .collect();
    let found: BTreeSet<String> = files(&member)?
        .into_iter()
        .filter(|it| is_kept(it))
        .collect();
    for name_of_file in recorded.symmetric_difference(&found) {
        let known = OTHER_FILES
            .iter()
            .any(|other| *other == (version, name, name_of_file.trim_end_matches(".broken")));
        ensure!(
            known,
            "{name_of_file} is in one of {recorded:?} and {found:?}"
        );
    }
    Ok(())
}

/// It must end with code 1 and one line that says why, however often it is started.
fn refuse(process: &mut Process, name: &str, case: &Value) -> Result<()> {
    let (_, words) = REFUSALS
        .iter()
        .find(|(refused, _)| *refused == name)
        .context("not known to be refused")?;
    let recorded = case["log"].as_array().context("log")?.iter();
    let crc = recorded
        .filter_map(|line| line["error"].as_str())
        .find(|error| error.contains("crc mismatch"));
    for _ in 0..2 {
        let exit = process.run_to_end()?;
        let text = exit.text();
        ensure!(
            exit.code() == Some(1),
            "ended with {:?}: {text}",
            exit.status
        );
        let last = exit.log.last().context("it says nothing")?;
        for word in words.iter().copied().chain(crc) {
            ensure!(
                last.contains(word),
                "{word:?} is not in the last line of {text}"
            );
        }
        ensure!(!text.contains("panicked"), "{text}");
    }
    Ok(())
}

fn check_all(version: &str) {
    let folder = data_folder().unwrap().join("wal-server");
    let recorded = json(&folder.join(format!("{version}.json"))).unwrap();
    let cases = recorded["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 15);
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|(name, case)| {
            let error = check(version, name, case).err()?;
            Some(format!("{version} {name}: {error:#}"))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[test]
fn damaged_directories_of_3_7_get_the_kind_of_answer_that_etcd_gives() {
    check_all("3.7");
}

#[test]
fn damaged_directories_of_3_5_get_the_kind_of_answer_that_etcd_gives() {
    check_all("3.5");
}

#[test]
fn damaged_directories_of_3_6_get_the_kind_of_answer_that_etcd_gives() {
    check_all("3.6");
}
