use std::fs;

use tracing::{debug, error, info, warn};

use super::*;
use crate::config::GoDuration;

/// What `events` write to a file in `style` from `level` on, and the handle meanwhile.
fn written(style: Style, level: LogLevel, events: impl FnOnce(&LogHandle)) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let outputs = open(&[path.display().to_string()]).unwrap();
    let (subscriber, handle) = subscriber(style, level, outputs);
    tracing::subscriber::with_default(subscriber, || events(&handle));
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_line_has_the_parts_of_zap_in_their_order() {
    let lines = written(Style::Json, LogLevel::Info, |_| {
        info!(
            logger = "raft",
            "local-member-id" = "8e9e05c52164694d",
            "took" = %GoDuration(4_136_262),
            "index" = 7_u64,
            "ok" = true,
            "args:json" = json(&["etcd", "a\"b"]),
            "became leader\nat term 2"
        );
    });
    let (head, tail) = lines[0].split_once("\",\"logger\"").unwrap();
    assert!(
        head.starts_with("{\"level\":\"info\",\"ts\":\"20"),
        "{head}"
    );
    assert_eq!(
        head.len(),
        "{\"level\":\"info\",\"ts\":\"2026-11-22T03:55:29.416894Z".len()
    );
    let (caller, fields) = tail.split_once("\",\"msg\"").unwrap();
    assert!(
        caller.starts_with(":\"raft\",\"caller\":\"server/logging/tests.rs:"),
        "{caller}"
    );
    assert_eq!(
        fields,
        ":\"became leader\\nat term 2\",\"local-member-id\":\"8e9e05c52164694d\",\
         \"took\":\"4.136262ms\",\"index\":7,\"ok\":true,\"args\":[\"etcd\",\"a\\\"b\"]}"
    );
}

#[test]
fn every_line_is_json_whatever_a_field_holds() {
    let lines = written(Style::Json, LogLevel::Debug, |_| {
        let hostile = "\u{1}\"},{\\ \u{7f} \u{2028}";
        debug!(
            "value" = hostile,
            "list:json" = "[1,",
            "number" = f64::NAN,
            "{hostile}"
        );
        error!(level = "fatal", "error" = %ConfigError::AuthToken, "discovery failed");
    });
    let parsed: Vec<serde_json::Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(parsed[0]["value"], "\u{1}\"},{\\ \u{7f} \u{2028}");
    assert_eq!(parsed[0]["list"], "[1,", "what is not JSON is text");
    assert_eq!(parsed[0]["number"], "NaN");
    assert_eq!(parsed[1]["level"], "fatal");
    assert_eq!(parsed[1]["error"], "auth: invalid auth options");
}

#[test]
fn the_level_can_be_changed_while_the_log_runs() {
    let lines = written(Style::Json, LogLevel::Info, |handle| {
        debug!("hidden");
        handle.set_level(LogLevel::Debug);
        debug!("shown");
        handle.set_level(LogLevel::Error);
        warn!("hidden");
        error!("shown too");
    });
    assert_eq!(lines.len(), 2);
    assert!(lines[0].contains("\"msg\":\"shown\"") && lines[1].contains("\"shown too\""));
}

#[test]
fn libraries_are_heard_only_from_warn_on() {
    let lines = written(Style::Json, LogLevel::Debug, |_| {
        info!(target: "h2::codec", "frame");
        warn!(target: "h2::codec", "odd frame");
        debug!(target: "keelson_wal::writer", "cut");
    });
    assert_eq!(lines.len(), 2);
    assert!(lines[0].contains("odd frame") && lines[1].contains("cut"));
}

#[test]
fn above_error_only_the_gravest_lines_remain() {
    let lines = written(Style::Json, LogLevel::Fatal, |_| {
        error!("an error");
        error!(level = "fatal", "the end");
    });
    assert_eq!(lines.len(), 1);
    assert!(lines[0].contains("the end"));
}

#[test]
fn the_console_form_is_separated_by_tabs() {
    let lines = written(Style::Console, LogLevel::Info, |_| {
        info!("path" = "a.db", "size" = 20, "saved");
        warn!("alone");
    });
    let parts: Vec<_> = lines[0].split('\t').collect();
    assert_eq!((parts[1], parts[3], parts.len()), ("info", "saved", 5));
    assert_eq!(parts[4], "{\"path\": \"a.db\", \"size\": 20}");
    assert_eq!(lines[1].split('\t').count(), 4);
}

#[test]
fn the_form_for_people_sends_no_controls_of_a_value() {
    let lines = written(Style::People, LogLevel::Info, |_| {
        info!("key" = "\x1b[2Jx", "put")
    });
    assert!(lines[0].contains("\\u{1b}[2Jx"), "{}", lines[0]);
}

#[test]
fn days_become_dates() {
    let at = |seconds: u64| {
        let parts = Parts {
            message: "m".to_owned(),
            ..Parts::default()
        };
        let time = UNIX_EPOCH + std::time::Duration::from_micros(seconds * 1_000_000 + 7);
        let line = Style::Json.line(LogLevel::Info, time, "c", &parts);
        line.split('"').nth(7).unwrap().to_owned()
    };
    assert_eq!(at(0), "1970-01-01T00:00:00.000007Z");
    assert_eq!(at(951_782_399), "2000-02-28T23:59:59.000007Z");
    assert_eq!(at(951_868_799), "2000-02-29T23:59:59.000007Z");
    assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000007Z");
    assert_eq!(at(1_795_319_729), "2026-11-22T03:55:29.000007Z");
}

#[test]
fn wrong_settings_get_the_texts_of_etcd() {
    let error = |change: fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        check(&config).unwrap_err().to_string()
    };
    assert_eq!(
        error(|c| c.logger = "capnslog".to_owned()),
        "--logger=capnslog is removed in v3.5"
    );
    assert_eq!(
        error(|c| c.logger = "x".to_owned()),
        "unknown logger option \"x\""
    );
    assert_eq!(
        error(|c| c.log_level = "x".to_owned()),
        "unrecognized level: \"x\""
    );
    assert_eq!(
        error(|c| c.log_format = "x".to_owned()),
        "unknown log format: x, supported values json, console"
    );
    assert_eq!(
        error(|c| c.log_outputs.push("stderr".to_owned())),
        "multi logoutput for \"default\" is not supported yet"
    );
    let missing = "/nonexistent-folder/log".to_owned();
    let open = open(&[missing]).err().unwrap().to_string();
    assert!(
        open.starts_with("open /nonexistent-folder/log: No such file"),
        "{open}"
    );
}

#[test]
fn an_output_named_twice_gets_a_line_once() {
    let names = ["stderr", "default", "systemd/journal"].map(str::to_owned);
    assert_eq!(open(&names).unwrap().len(), 1);
    assert_eq!(open(&[]).unwrap().len(), 1, "nothing named is stderr");
}
