//! The server's flags against what etcd 3.7.1 says of its own: its help, and its answers to wrong
//! command lines.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use keelson_cli::flag_file::{self, FileError};
use keelson_cli::flags::{self, FLAGS, Group};
use keelson_server::config::{Config, ConfigError, Stage};
use serde_json::Value;

/// Named by etcd's help, but no longer flags: etcd itself ends with 2 on them.
const REMOVED: [&str; 2] = ["discovery", "discovery-proxy"];

fn recorded(name: &str) -> Vec<Value> {
    let folder = std::env::var_os("KEELSON_DATA").expect("KEELSON_DATA names the recordings");
    let path = PathBuf::from(folder).join("cli").join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn arguments(entry: &Value) -> Vec<String> {
    let texts = entry["args"].as_array().into_iter().flatten();
    texts
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

/// The flags that etcd's help names, with the default it shows where it shows one in quotes.
fn helped() -> Vec<(String, Option<String>)> {
    let entries = recorded("help.jsonl");
    let help = entries
        .iter()
        .find(|entry| arguments(entry) == ["etcd", "--help"])
        .unwrap();
    let lines = help["stdout"].as_str().unwrap().lines();
    let flag = |line: &str| {
        let (name, default) = match line.split_once(' ') {
            Some((name, default)) => (name, default.strip_prefix('\'')),
            None => (line, None),
        };
        let default = default.map(|text| text.trim_end_matches('\'').to_owned());
        (name.to_owned(), default)
    };
    lines
        .filter_map(|line| line.strip_prefix("  --"))
        .map(flag)
        .collect()
}

#[test]
fn every_flag_of_etcds_help_is_in_the_table() {
    let helped = helped();
    assert!(
        helped.len() > 100,
        "only {} flags were found in the help",
        helped.len()
    );
    for (name, _) in helped
        .iter()
        .filter(|(name, _)| !REMOVED.contains(&name.as_str()))
    {
        let flag = flags::find(name).unwrap_or_else(|| panic!("--{name} is missing"));
        assert_ne!(flag.group, Group::Hidden, "--{name}");
    }
    for name in REMOVED {
        assert!(flags::find(name).is_none(), "--{name}");
    }
    let own = ["config-file", "version", "announce-version"];
    for flag in FLAGS
        .iter()
        .filter(|f| f.group != Group::Hidden && !own.contains(&f.name))
    {
        assert!(
            helped.iter().any(|(name, _)| name == flag.name),
            "etcd has no --{}",
            flag.name
        );
    }
}

#[test]
fn the_defaults_of_etcds_help_are_ours() {
    // What etcd's help shows is a word, or differs from what the flag is set to.
    let otherwise = [
        "data-dir",
        "initial-cluster",
        "backend-batch-interval",
        "max-concurrent-streams",
        "watch-progress-notify-interval",
        "backend-bbolt-freelist-type",
    ];
    let mut compared = 0;
    for (name, default) in helped() {
        let (Some(flag), Some(default)) = (flags::find(&name), default) else {
            continue;
        };
        if otherwise.contains(&flag.name) {
            continue;
        }
        let mut config = Config::default();
        flag.set(&mut config, &default)
            .unwrap_or_else(|cause| panic!("--{name}: {cause}"));
        config.set_flags.clear();
        assert_eq!(
            format!("{config:?}"),
            format!("{:?}", Config::default()),
            "--{name}={default}"
        );
        compared += 1;
    }
    assert!(compared > 80, "only {compared} defaults were compared");
}

/// Exit code and reason of a command line that etcd does not start with.
fn refusal(arguments: &[String]) -> (i64, String) {
    let line = match flags::parse(arguments) {
        Ok(line) => line,
        Err(error) => return (2, error.to_string()),
    };
    if let Some(extra) = line.rest.first() {
        return (1, format!("\"{extra}\" is not a valid flag"));
    }
    let mut config = line.config;
    if let Some(path) = line.config_file {
        match flag_file::load(Path::new(&path)) {
            Ok(loaded) => config = loaded,
            Err(FileError::Verify(cause) | FileError::Plain(cause)) => return (1, cause),
        }
    }
    let refused = |error: ConfigError| match error.stage() {
        Stage::Panic => (2, format!("panic: {error}")),
        _ => (1, error.to_string()),
    };
    match config.check() {
        Ok(checked) => checked
            .bootstrap()
            .map_or_else(refused, |_| (0, String::new())),
        Err(error) => refused(error),
    }
}

#[test]
fn wrong_command_lines_end_as_etcds_do() {
    let mut compared = 0;
    for entry in recorded("commands.jsonl") {
        let arguments = arguments(&entry);
        let proxy = ["gateway", "grpc-proxy"];
        if arguments.first().map(String::as_str) != Some("etcd")
            || proxy.contains(&arguments[1].as_str())
        {
            continue;
        }
        let stderr = entry["stderr"].as_str().unwrap();
        let last = stderr.trim_end().lines().last().unwrap();
        let reason = match serde_json::from_str::<Value>(last) {
            Ok(line) => line["error"].as_str().unwrap().to_owned(),
            Err(_) => stderr.lines().next().unwrap().to_owned(),
        };
        let expected = (entry["exit"].as_i64().unwrap(), reason);
        assert_eq!(refusal(&arguments[1..]), expected, "{arguments:?}");
        compared += 1;
    }
    assert!(compared >= 13, "only {compared} command lines were found");
}
