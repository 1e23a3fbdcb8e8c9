//! The program as a process: names it is called by, exit codes, what it writes where.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_keelson");

/// A folder with links to the program under `names`; the processes run in it.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(names: &[&str]) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            std::os::unix::fs::symlink(PROGRAM, folder.path().join(name)).unwrap();
        }
        Bench { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(self.path(name));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
            .env_clear()
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    }

    fn etcd(&self, arguments: &[&str]) -> Output {
        self.run("etcd", arguments, &[])
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The lines of a log, each of which has to be JSON with what tools look for.
fn log(output: &Output) -> Vec<serde_json::Value> {
    let parse = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        for part in ["level", "ts", "caller", "msg"] {
            assert!(
                line[part].as_str().is_some_and(|text| !text.is_empty()),
                "{line}"
            );
        }
        line
    };
    text(&output.stderr).lines().map(parse).collect()
}

#[test]
fn called_as_etcd_it_says_etcds_version() {
    let output = Bench::new(&["etcd"]).etcd(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).starts_with("etcd Version: 3.7.1\n"));
    assert!(output.stderr.is_empty());
}

#[test]
fn called_as_keelson_it_says_both_versions() {
    let bench = Bench::new(&["keelson"]);
    for argument in ["version", "--version"] {
        let output = bench.run("keelson", &[argument], &[]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).ends_with("\nCompatible with etcd 3.7.1\n"));
    }
}

#[test]
fn help_goes_to_stdout_and_ends_well() {
    let bench = Bench::new(&["etcd", "keelson"]);
    let outputs = [
        bench.etcd(&["--help"]),
        bench.etcd(&["-h"]),
        bench.run("keelson", &["serve", "-h"], &[]),
    ];
    for output in outputs {
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("--listen-client-urls 'http://localhost:2379'"));
        assert!(text(&output.stderr).starts_with("Usage:\n"));
    }
    let top = bench.run("keelson", &["--help"], &[]);
    assert_eq!(top.status.code(), Some(0));
    assert!(text(&top.stdout).contains("serve") && text(&top.stdout).contains("version"));
}

#[test]
fn an_unknown_flag_ends_with_2_and_the_nearest_name() {
    let output = Bench::new(&["etcd"]).etcd(&["--data-dri", "x"]);
    assert_eq!(output.status.code(), Some(2));
    let start = "flag provided but not defined: -data-dri\ndid you mean --data-dir?\nUsage:\n";
    assert!(
        text(&output.stderr).starts_with(start),
        "{}",
        text(&output.stderr)
    );
    assert!(output.stdout.is_empty());
}

#[test]
fn an_unknown_sub_command_ends_with_2() {
    let output = Bench::new(&["keelson"]).run("keelson", &["server"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("'serve'"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_broken_rule_ends_with_1_and_a_line_of_json() {
    let bench = Bench::new(&["etcd"]);
    let output = bench.etcd(&["--heartbeat-interval", "500"]);
    assert_eq!(output.status.code(), Some(1));
    let log = log(&output);
    let last = log.last().unwrap();
    assert_eq!(last["level"], "warn");
    assert_eq!(last["msg"], "failed to verify flags");
    assert_eq!(
        last["error"],
        "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[500ms]"
    );
    let running = log.iter().find(|line| line["msg"] == "Running: ").unwrap();
    assert_eq!(running["args"][1], "--heartbeat-interval");
    let entries = std::fs::read_dir(bench.folder.path()).unwrap().count();
    assert_eq!(entries, 1, "nothing is written before the rules are kept");
}

#[test]
fn a_leftover_argument_is_no_flag() {
    let output = Bench::new(&["etcd"]).etcd(&["extra"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        log(&output).last().unwrap()["error"],
        "\"extra\" is not a valid flag"
    );
}

#[test]
fn urls_for_clients_are_demanded_with_two_lines() {
    let output = Bench::new(&["etcd"]).etcd(&["--listen-client-urls", "http://127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    let messages: Vec<_> = log(&output)
        .into_iter()
        .map(|line| line["msg"].clone())
        .collect();
    let expected = [
        "failed to verify flags",
        "advertise client URLs are not set",
    ];
    assert_eq!(messages[messages.len() - 2..], expected);
}

#[test]
fn an_error_of_the_start_is_fatal_as_discovery() {
    let output = Bench::new(&["etcd"]).etcd(&["--auth-token", "x", "--data-dir", "dd"]);
    assert_eq!(output.status.code(), Some(1));
    let last = log(&output).pop().unwrap();
    assert_eq!(
        (&last["level"], &last["msg"]),
        (&"fatal".into(), &"discovery failed".into())
    );
    assert_eq!(last["error"], "auth: invalid auth options");
}

#[test]
fn a_level_that_does_not_exist_ends_with_2() {
    let output = Bench::new(&["etcd"]).etcd(&["--log-level", "x", "--data-dir", "dd"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stderr), "panic: unrecognized level: \"x\"\n\n");
}

#[test]
fn a_variable_beside_its_flag_is_fatal() {
    let bench = Bench::new(&["etcd"]);
    let output = bench.run("etcd", &["--name=a"], &[("ETCD_NAME", "a")]);
    assert_eq!(output.status.code(), Some(1));
    let last = log(&output).pop().unwrap();
    assert_eq!(
        (&last["level"], &last["environment-variable"]),
        (&"fatal".into(), &"ETCD_NAME".into())
    );
    assert_eq!(
        last["msg"],
        "conflicting environment variable is shadowed by corresponding command-line flag (either unset environment variable or disable flag))"
    );
}

#[test]
fn variables_that_were_used_or_not_known_are_logged() {
    let variables = [("ETCD_HEARTBEAT_INTERVAL", "500"), ("ETCD_VERIFY", "all")];
    let output = Bench::new(&["etcd"]).run("etcd", &[], &variables);
    assert_eq!(output.status.code(), Some(1));
    let log = log(&output);
    let find = |message: &str| log.iter().find(|line| line["msg"] == message).unwrap();
    let used = find("recognized and used environment variable");
    assert_eq!(used["variable-name"], "ETCD_HEARTBEAT_INTERVAL");
    let unknown = find("unrecognized environment variable");
    assert_eq!(unknown["environment-variable"], "ETCD_VERIFY=all");
}

#[test]
fn a_missing_file_is_told() {
    let output = Bench::new(&["etcd"]).etcd(&["--config-file", "missing.yml"]);
    assert_eq!(output.status.code(), Some(1));
    let error = "open missing.yml: no such file or directory";
    assert_eq!(log(&output).pop().unwrap()["error"], error);
}

#[test]
fn the_log_goes_where_it_is_told_to() {
    let bench = Bench::new(&["etcd"]);
    let output = bench.etcd(&["--log-outputs=a.log,stdout", "--heartbeat-interval=0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.is_empty());
    let file = std::fs::read(bench.path("a.log")).unwrap();
    assert_eq!(text(&file), text(&output.stdout));
    assert!(text(&file).contains("--heartbeat-interval must be >0 (set to 0ms)"));
}

#[test]
fn directories_of_a_proxy_are_refused() {
    let bench = Bench::new(&["etcd"]);
    std::fs::create_dir_all(bench.path("d/proxy")).unwrap();
    let output = bench.etcd(&["--data-dir=d"]);
    assert_eq!(output.status.code(), Some(2));
    std::fs::create_dir_all(bench.path("d/member")).unwrap();
    let output = bench.etcd(&["--data-dir=d"]);
    assert_eq!(output.status.code(), Some(1));
    let message = "invalid datadir; both member and proxy directories exist";
    assert_eq!(log(&output).pop().unwrap()["msg"], message);
}

#[test]
fn tools_that_come_later_say_so() {
    let bench = Bench::new(&["etcdctl", "etcdutl", "keelson", "etcd"]);
    let outputs = [
        bench.run("etcdctl", &["get", "a"], &[]),
        bench.run("etcdutl", &[], &[]),
        bench.run("keelson", &["ctl"], &[]),
        bench.etcd(&["gateway", "start"]),
    ];
    for output in outputs {
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("is not part of this release of Keelson yet"));
    }
}
