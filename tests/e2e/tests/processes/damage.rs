//! Directories that cannot be served: the program ends and says why, and the directory is as it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use keelson_client::Put;
use keelson_e2e::{Exit, Process};

use crate::server::tested;

/// Every file below a directory with what is in it.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let content = std::fs::read(&path).unwrap();
                files.insert(path, content);
            }
        }
    }
    files
}

/// A member that has stopped, with some keys in its directory.
fn stopped() -> Process {
    let mut process = Process::start(tested()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = process.client().await.unwrap();
        for key in 0..50 {
            let put = Put::new(format!("key{key}"), vec![7; 200]);
            client.put(put).await.unwrap();
        }
    });
    process.stop().unwrap();
    process
}

/// Starts it, and expects it to end with a code that is no success, to say `words`, and to have
/// changed no file.
fn refused(process: &mut Process, words: &[&str]) -> Exit {
    let before = tree(process.data_dir());
    let exit = process.run_to_end().unwrap();
    let text = exit.text();
    assert!(
        matches!(exit.code(), Some(1 | 2)),
        "{:?}\n{text}",
        exit.code()
    );
    for word in words {
        assert!(text.contains(word), "{word:?} is not said:\n{text}");
    }
    assert!(tree(process.data_dir()) == before, "it was changed\n{text}");
    exit
}

fn log_of(process: &Process) -> PathBuf {
    let dir = process.data_dir().join("member/wal");
    let name = "0000000000000000-0000000000000000.wal";
    dir.join(name)
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_log_with_a_flipped_bit_is_refused_and_serves_again_once_it_is_mended() {
    let mut process = stopped();
    let log = log_of(&process);
    // In a value in the middle of the entries, with whole records behind it.
    let bytes = std::fs::read(&log).unwrap();
    let value = bytes[4_000..].windows(100).position(|it| it == [7; 100]);
    let at = 4_000 + value.unwrap();
    flip(&log, at);
    refused(
        &mut process,
        &["crc", "0000000000000000-0000000000000000.wal"],
    );
    flip(&log, at);
    process.restart().unwrap();
}

#[test]
fn a_log_that_is_gone_is_not_begun_anew_over_its_database() {
    let mut process = stopped();
    let log = log_of(&process);
    let away = process.data_dir().with_extension("away");
    std::fs::rename(&log, &away).unwrap();
    refused(&mut process, &["wal"]);
    std::fs::rename(&away, &log).unwrap();
    process.restart().unwrap();
}

#[test]
fn a_database_that_is_cut_short_is_refused() {
    let mut process = stopped();
    let db = process.data_dir().join("member/snap/db");
    let whole = std::fs::read(&db).unwrap();
    for len in [1, 4096, 3 * 4096 + 5] {
        std::fs::write(&db, &whole[..len]).unwrap();
        refused(
            &mut process,
            &["member/snap/db", "restore it from a snapshot"],
        );
    }
    std::fs::write(&db, &whole).unwrap();
    process.restart().unwrap();
}

#[test]
fn a_file_in_place_of_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let mut process = Process::prepared(tested(), file.clone()).unwrap();
    let exit = process.run_to_end().unwrap();
    let text = exit.text();
    assert_eq!(exit.code(), Some(1), "{text}");
    assert!(text.contains(&file.display().to_string()), "{text}");
    assert!(text.to_lowercase().contains("not a directory"), "{text}");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[test]
fn what_else_is_in_a_directory_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("photos")).unwrap();
    std::fs::write(dir.path().join("photos/one"), "precious").unwrap();
    std::fs::write(dir.path().join("letter"), "precious").unwrap();
    let before = tree(dir.path());
    let mut process = Process::start_in(tested(), dir.path()).unwrap();
    process.stop().unwrap();
    let after = tree(dir.path());
    assert!(
        before
            .iter()
            .all(|(path, content)| after.get(path) == Some(content))
    );
    let new = after.keys().filter(|path| !before.contains_key(*path));
    let member = dir.path().join("member");
    assert!(new.clone().count() > 0);
    assert!(new.into_iter().all(|path| path.starts_with(&member)));
}

#[test]
fn a_peer_port_in_use_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut process = Process::prepared(tested(), data.clone()).unwrap();
    let taken = std::net::TcpListener::bind(("127.0.0.1", process.peer_port())).unwrap();
    let exit = process.run_to_end().unwrap();
    let text = exit.text();
    assert_eq!(exit.code(), Some(1), "{text}");
    assert!(text.contains("address already in use"), "{text}");
    assert!(!data.join("member").exists());
    drop(taken);
    process.restart().unwrap();
}
