//! A disk that takes no more, as the process sees it: a limit on the size of files stands in for it,
//! so that nobody needs a file system of a size of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use keelson_client::{Get, Put};
use keelson_e2e::{Launch, Process};
use keelson_harness::{DiskState, Faults, Part, TestMember};

/// The program, with files of at most 64,000,000 bytes: a segment of the log fits exactly, but its last
/// record crosses that end, and so does the database; which comes first is a matter of time.
const LIMITED: &str = "#!/bin/bash
[[ -e \"$0.free\" ]] || { trap '' XFSZ; ulimit -f 62500; }
exec -a etcd BINARY \"$@\"
";

#[test]
fn files_that_cannot_grow_end_the_server_with_one_fatal_line_and_keeps_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let wrapper = dir.path().join("limited");
    let script = LIMITED.replace("BINARY", env!("CARGO_BIN_EXE_keelson-under-test"));
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let data = dir.path().join("data");
    let mut process = Process::start_in(Launch::new(&wrapper), &data).unwrap();

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let acknowledged = runtime.block_on(async {
        let client = process.client().await.unwrap();
        let value = vec![b'v'; 1_400_000];
        for count in 0..100 {
            let key = format!("key/{count:02}");
            if client.put(Put::new(key, value.clone())).await.is_err() {
                return count;
            }
        }
        100
    });
    assert!((20..100).contains(&acknowledged), "{acknowledged} fit");
    let exit = process.wait_for_end().unwrap();
    assert_eq!(exit.code(), Some(1), "{}", exit.text());
    let fatal: Vec<_> = exit
        .log
        .iter()
        .filter(|it| it.contains("\"fatal\""))
        .collect();
    assert_eq!(fatal.len(), 1, "{}", exit.text());
    assert!(
        fatal[0].contains("/data/member/") && fatal[0].contains("File too large"),
        "{}",
        fatal[0]
    );

    // As long as there is no room, a start ends with an error, or serves what is there.
    if process.restart().is_ok() {
        process.kill().unwrap();
    }
    fs::write(dir.path().join("limited.free"), "").unwrap();
    process.restart().unwrap();
    runtime.block_on(async {
        let client = process.client().await.unwrap();
        for count in 0..acknowledged {
            let found = client
                .get(Get::key(format!("key/{count:02}")))
                .await
                .unwrap();
            assert_eq!(found.kvs.len(), 1, "key {count} of {acknowledged}");
        }
        client.put(Put::new("more", "room")).await.unwrap();
    });
}

#[test]
fn a_start_on_a_full_disk_tells_of_the_disk() {
    let faults = Faults::default();
    let mut member = TestMember::start_faulty(&faults, |_| {}).unwrap();
    member.kill();
    let full = DiskState {
        full: true,
        ..DiskState::default()
    };
    faults.set_disk(Part::Log, full);
    let refused = member.restart().unwrap_err();
    assert!(
        format!("{refused:#}").contains("No space left on device"),
        "{refused:#}"
    );
    faults.set_disk(Part::Log, DiskState::default());
    member.restart().unwrap();
}
