//! A start on a terminal: a log for people, whose last line says what to type next; without one, and
//! under etcd's name, etcd's JSON.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use keelson_harness::free_port;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

const PROGRAM: &str = env!("CARGO_BIN_EXE_keelson");
/// Far more than a start takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Killed when dropped: by its own id.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Both ends of a new terminal.
fn terminal() -> (File, File) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let screen = openpt(flags).unwrap();
    grantpt(&screen).unwrap();
    unlockpt(&screen).unwrap();
    let name = ptsname(&screen, Vec::new()).unwrap();
    let name = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
    let mut options = OpenOptions::new();
    let typed = options.read(true).write(true).open(name).unwrap();
    (File::from(screen), typed)
}

/// Starts a member on a terminal, called by a name; its port, and what it writes until `last`.
fn start(called: &str, arguments: &[&str], dir: &Path, last: &str) -> (u16, Vec<String>) {
    let (screen, typed) = terminal();
    let (client, peer) = (free_port().unwrap(), free_port().unwrap());
    let mut command = Command::new(PROGRAM);
    command
        .arg0(called)
        .args(arguments)
        .arg(format!("--data-dir={}", dir.display()))
        .arg(format!("--listen-client-urls=http://127.0.0.1:{client}"))
        .arg(format!("--advertise-client-urls=http://127.0.0.1:{client}"))
        .arg(format!("--listen-peer-urls=http://127.0.0.1:{peer}"))
        .arg(format!(
            "--initial-advertise-peer-urls=http://127.0.0.1:{peer}"
        ))
        .arg(format!("--initial-cluster=default=http://127.0.0.1:{peer}"))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(typed);
    let _running = Running(command.spawn().unwrap());
    let (sender, lines) = mpsc::channel();
    // It ends with the terminal, which ends with the process.
    std::thread::spawn(move || {
        for line in BufReader::new(screen).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut seen = Vec::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => seen.push(line.trim_end().to_owned()),
            Err(error) => panic!("{error} after {seen:#?}"),
        }
        if seen.last().is_some_and(|line| line.contains(last)) {
            return (client, seen);
        }
    }
}

#[test]
fn on_a_terminal_people_are_told_where_it_listens_and_what_to_type_next() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (port, lines) = start("keelson", &["serve"], &data, "try: etcdctl");
    let last = lines.last().unwrap();
    for part in [
        format!("listening on http://127.0.0.1:{port}"),
        format!("data in {}", data.display()),
        format!("try: etcdctl --endpoints=http://127.0.0.1:{port} put hello world"),
    ] {
        assert!(last.contains(&part), "{last}");
    }
    assert!(
        lines.iter().all(|line| !line.starts_with('{')),
        "{lines:#?}"
    );
    let ready = "ready to serve client requests";
    assert!(lines.iter().any(|line| line.contains(ready)));
}

#[test]
fn called_as_etcd_or_asked_for_json_it_writes_json_on_a_terminal_too() {
    for (called, arguments) in [
        ("etcd", &[][..]),
        ("keelson", &["serve", "--log-format=json"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let last = "serving client traffic insecurely";
        let (_, lines) = start(called, arguments, &dir.path().join("data"), last);
        for line in &lines {
            let parsed: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(parsed["msg"].is_string(), "{line}");
        }
    }
}
