//! A start that cannot be: a clear error, an exit code, nothing lost.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use keelson_e2e::{Exit, Process};

use crate::server::tested;

/// It ended by itself, with `code`, and said each of `words`.
fn refused(exit: &Exit, code: i32, words: &[&str]) {
    let text = exit.text();
    assert_eq!(exit.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not said:\n{text}");
    }
}

#[test]
fn a_directory_in_use_is_refused_and_its_user_goes_on() {
    let first = Process::start(tested()).unwrap();
    let mut second = Process::prepared(tested(), first.data_dir().to_owned()).unwrap();
    let exit = second.run_to_end().unwrap();
    let dir = first.data_dir().display().to_string();
    refused(&exit, 1, &[&dir]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { first.client().await.unwrap().status().await.unwrap() });
}

#[test]
fn a_port_in_use_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut process = Process::prepared(tested(), data.clone()).unwrap();
    let taken = TcpListener::bind(("127.0.0.1", process.client_port())).unwrap();
    let exit = process.run_to_end().unwrap();
    let port = process.client_port().to_string();
    refused(&exit, 1, &[&port, "address already in use"]);
    assert!(!data.join("member").exists());
    drop(taken);
    process.restart().unwrap();
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    // What is not a directory cannot be written into, whoever runs this.
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let data = file.join("data");
    let exit = Process::prepared(tested(), data.clone())
        .unwrap()
        .run_to_end()
        .unwrap();
    refused(&exit, 1, &[&data.display().to_string()]);

    let locked = dir.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o555)).unwrap();
    // Root may write everywhere.
    if std::fs::write(locked.join("probe"), "").is_err() {
        let data = locked.join("data");
        let exit = Process::prepared(tested(), data.clone())
            .unwrap()
            .run_to_end()
            .unwrap();
        refused(
            &exit,
            1,
            &[&data.display().to_string(), "permission denied"],
        );
    }
}

#[test]
fn an_unknown_flag_is_wrong_use() {
    let launch = tested().bare().argument("--data-dri=/nowhere");
    let exit = Process::prepared(launch, "/nowhere".into())
        .unwrap()
        .run_to_end()
        .unwrap();
    refused(&exit, 2, &["data-dri"]);
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_as_it_is() {
    let mut process = Process::start(tested()).unwrap();
    process.stop().unwrap();
    let db = process.data_dir().join("member/snap/db");
    let garbage = vec![0x5a; 64 * 1024];
    std::fs::write(&db, &garbage).unwrap();
    let exit = process.run_to_end().unwrap();
    assert_ne!(exit.code(), Some(0), "{}", exit.text());
    assert!(exit.text().contains("invalid database"), "{}", exit.text());
    assert_eq!(std::fs::read(&db).unwrap(), garbage);
}

#[test]
fn a_server_takes_its_memory_in_small_pages() {
    let server = Process::start(tested()).unwrap();
    let status = format!("/proc/{}/status", server.pid().unwrap());
    let status = std::fs::read_to_string(status).unwrap();
    // Systems before Linux 5.0 do not tell.
    let told = status
        .lines()
        .find_map(|line| line.strip_prefix("THP_enabled:"));
    assert!(told.is_none_or(|told| told.trim() == "0"), "{told:?}");
}
