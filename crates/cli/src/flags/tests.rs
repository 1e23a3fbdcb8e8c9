use std::collections::BTreeSet;
use std::time::Duration;

use keelson_server::config::{ClusterState, Gate};

use super::*;

fn read(arguments: &[&str]) -> Result<CommandLine, FlagError> {
    parse(
        &arguments
            .iter()
            .map(|a| (*a).to_owned())
            .collect::<Vec<_>>(),
    )
}

fn config(arguments: &[&str]) -> Config {
    read(arguments).unwrap().config
}

fn error(arguments: &[&str]) -> String {
    read(arguments).unwrap_err().to_string()
}

fn with_environment(
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<(Config, Vec<Note>), EnvironmentError> {
    let mut config = config(arguments);
    let environment: Vec<_> = environment
        .iter()
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
        .collect();
    let notes = apply_environment(&mut config, &environment)?;
    Ok((config, notes))
}

#[test]
fn every_flag_has_a_name_of_its_own_and_clap_takes_the_table() {
    let names: BTreeSet<_> = FLAGS.iter().map(|flag| flag.name).collect();
    assert_eq!(names.len(), FLAGS.len());
    assert_eq!(
        FLAGS
            .iter()
            .filter(|flag| flag.group == Group::Hidden)
            .count(),
        15
    );
    command().debug_assert();
}

#[test]
fn every_default_that_is_shown_is_the_default_that_holds() {
    // These stand for what is worked out later, or are the program's own.
    let worded = [
        "data-dir",
        "initial-cluster",
        "config-file",
        "version",
        "feature-gates",
    ];
    for flag in FLAGS
        .iter()
        .filter(|f| f.group != Group::Hidden && !worded.contains(&f.name))
    {
        let mut config = Config::default();
        flag.set(&mut config, flag.default).unwrap();
        config.set_flags.clear();
        if flag.name == "backend-bbolt-freelist-type" {
            config.backend_bbolt_freelist_type.clear(); // empty means map, too
        }
        assert_eq!(
            format!("{config:?}"),
            format!("{:?}", Config::default()),
            "{}",
            flag.name
        );
    }
}

#[test]
fn flags_are_written_in_every_way_of_go() {
    let expected = "member-1";
    for arguments in [
        &["-name", "member-1"][..],
        &["--name", "member-1"],
        &["-name=member-1"],
        &["--name=member-1"],
        &["--name=other", "-name", "member-1"],
        &["--name", "--x", "--name=member-1"],
        &["--name=member-1", "--"],
    ] {
        assert_eq!(config(arguments).name, expected, "{arguments:?}");
    }
    assert_eq!(config(&["--name="]).name, "");
    assert_eq!(config(&["--name", "-a=b"]).name, "-a=b");
}

#[test]
fn booleans_take_a_value_only_with_an_equals_sign() {
    assert!(config(&["--socket-reuse-port"]).socket_reuse_port);
    assert!(config(&["-socket-reuse-port=T"]).socket_reuse_port);
    assert!(!config(&["--pre-vote=false"]).pre_vote);
    assert!(config(&["--force-new-cluster"]).force_new_cluster);
    let line = read(&["--pre-vote", "false"]).unwrap();
    assert!(line.config.pre_vote);
    assert_eq!(line.rest, ["false"]);
    assert_eq!(
        error(&["--pre-vote=maybe"]),
        "invalid boolean value \"maybe\" for -pre-vote: parse error"
    );
}

#[test]
fn what_follows_the_flags_is_kept() {
    assert_eq!(
        read(&["extra", "--name=x"]).unwrap().rest,
        ["extra", "--name=x"]
    );
    assert_eq!(read(&["--name=x", "--", "--y"]).unwrap().rest, ["--y"]);
    assert_eq!(read(&["-", "x"]).unwrap().rest, ["-", "x"]);
}

#[test]
fn wrong_arguments_get_the_words_of_go() {
    assert_eq!(
        error(&["--nosuchflag"]),
        "flag provided but not defined: -nosuchflag"
    );
    assert_eq!(
        error(&["--nosuchflag=3"]),
        "flag provided but not defined: -nosuchflag"
    );
    assert_eq!(error(&["-x"]), "flag provided but not defined: -x");
    assert_eq!(
        error(&["--experimental-x", "y"]),
        "flag provided but not defined: -experimental-x"
    );
    assert_eq!(error(&["--name"]), "flag needs an argument: -name");
    assert_eq!(error(&["---name"]), "bad flag syntax: ---name");
    assert_eq!(error(&["-=name"]), "bad flag syntax: -=name");
    assert_eq!(error(&["--help"]), "flag: help requested");
    assert_eq!(read(&["-h"]).unwrap_err(), FlagError::Help);
    let value = "invalid value \"x\" for flag -";
    assert_eq!(
        error(&["--snapshot-count", "x"]),
        format!("{value}snapshot-count: parse error")
    );
    assert_eq!(
        error(&["--max-learners=x"]),
        format!("{value}max-learners: parse error")
    );
    assert_eq!(
        error(&["--quota-backend-bytes=99999999999999999999"]),
        "invalid value \"99999999999999999999\" for flag -quota-backend-bytes: value out of range"
    );
    assert_eq!(
        error(&["--warning-apply-duration=x"]),
        format!("{value}warning-apply-duration: parse error")
    );
    assert_eq!(
        error(&["--max-concurrent-streams=x"]),
        format!("{value}max-concurrent-streams: strconv.ParseUint: parsing \"x\": invalid syntax")
    );
    assert_eq!(
        error(&["--initial-cluster-state=x"]),
        format!("{value}initial-cluster-state: invalid value \"x\"")
    );
    assert_eq!(
        error(&["--v2-deprecation", "not-yet"]),
        "invalid value \"not-yet\" for flag -v2-deprecation: invalid value \"not-yet\""
    );
    assert_eq!(
        error(&["--feature-gates=X=true"]),
        "invalid value \"X=true\" for flag -feature-gates: unrecognized feature gate: X"
    );
    assert_eq!(
        error(&["--listen-client-urls", "bad"]),
        "invalid value \"bad\" for flag -listen-client-urls: URL scheme must be http, https, unix, or unixs: bad"
    );
}

#[test]
fn an_unknown_flag_is_told_with_the_nearest() {
    let nearest = |argument: &str| match read(&[argument]).unwrap_err() {
        FlagError::Unknown { nearest, .. } => nearest,
        other => panic!("{other:?}"),
    };
    assert_eq!(nearest("--data-dri=x").as_deref(), Some("data-dir"));
    assert_eq!(
        nearest("-listen-client-url").as_deref(),
        Some("listen-client-urls")
    );
    assert_eq!(nearest("--qqqq"), None);
}

#[test]
fn old_flags_are_accepted_and_do_nothing() {
    let line = read(&["--snapshot", "--vv", "--config=x", "-test.outputdir=y"]).unwrap();
    assert!(line.rest.is_empty());
    assert_eq!(line.config.set_flags.len(), 4);
}

#[test]
fn values_reach_their_fields() {
    let config = config(&[
        "--data-dir=/d",
        "--listen-client-urls=http://127.0.0.1:2,http://127.0.0.1:1,http://127.0.0.1:1",
        "--advertise-client-urls=unix://localhost:20001",
        "--quota-backend-bytes=-1",
        "--warning-unary-request-duration=1\u{b5}s",
        "--log-outputs=stderr,a.log,stderr",
        "--initial-cluster-state=existing",
        "--initial-cluster=a=http://x:1",
        "--feature-gates=LeaseCheckpoint=true",
        "--max-concurrent-streams=3",
    ]);
    assert_eq!(config.data_dir, PathBuf::from("/d"));
    let urls: Vec<_> = config.listen_client_urls.iter().map(Url::as_str).collect();
    assert_eq!(urls, ["http://127.0.0.1:1", "http://127.0.0.1:2"]);
    assert_eq!(config.quota_backend_bytes, -1);
    assert_eq!(
        config.warning_unary_request_duration,
        Duration::from_micros(1)
    );
    assert_eq!(config.log_outputs, ["a.log", "stderr"]);
    assert_eq!(config.initial_cluster_state, ClusterState::Existing);
    assert_eq!(config.initial_cluster.as_deref(), Some("a=http://x:1"));
    assert!(config.feature_gates.enabled(Gate::LeaseCheckpoint));
    assert_eq!(config.max_concurrent_streams, 3);
}

#[test]
fn listen_urls_take_away_the_default_of_what_clients_are_told() {
    let listen = "--listen-client-urls=http://127.0.0.1:1";
    assert!(config(&[listen]).advertise_client_urls.is_empty());
    let both = config(&[listen, "--advertise-client-urls=http://127.0.0.1:1"]);
    assert_eq!(both.advertise_client_urls.len(), 1);
    assert!(!config(&[]).advertise_client_urls.is_empty());
}

#[test]
fn a_flag_without_a_function_is_accepted_at_its_default_alone() {
    let config = config(&[
        "--discovery-cert=",
        "--discovery-dial-timeout=2000ms",
        "--memory-mlock=false",
        "--cors=*",
        "--unsafe-no-fsync",
        "--unsafe-no-fsync=false",
        "--self-signed-cert-validity=01",
    ]);
    assert!(config.not_yet.is_empty(), "{:?}", config.not_yet);
    let refused = read(&["--unsafe-no-fsync"])
        .unwrap()
        .config
        .check()
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .starts_with("--unsafe-no-fsync=true is not supported yet")
    );
    assert_eq!(
        error(&["--discovery-fallback=x"]),
        "invalid value \"x\" for flag -discovery-fallback: invalid value \"x\""
    );
}

#[test]
fn a_length_below_zero_is_refused() {
    assert!(error(&["--compact-hash-check-time=-5s"]).ends_with("must be >0 (set to -5s)"));
    assert!(error(&["--corrupt-check-time=-5s"]).ends_with("must not be negative (set to -5s)"));
}

#[test]
fn variables_set_what_the_command_line_left() {
    let (config, notes) = with_environment(
        &["--name=a"],
        &[
            ("ETCD_DATA_DIR", "/d"),
            ("ETCD_WAL_DIR", ""),
            ("HOME", "/"),
            ("ETCD_PRE_VOTE", "0"),
        ],
    )
    .unwrap();
    assert_eq!(
        (config.data_dir, config.pre_vote),
        (PathBuf::from("/d"), false)
    );
    let used = |name: &str, value: &str| Note::Used {
        name: name.into(),
        value: value.into(),
    };
    let empty = Note::Unrecognized("ETCD_WAL_DIR=".to_owned());
    assert_eq!(
        notes,
        [
            used("ETCD_DATA_DIR", "/d"),
            used("ETCD_PRE_VOTE", "0"),
            empty
        ]
    );
}

#[test]
fn a_variable_beside_its_flag_is_fatal() {
    let error = with_environment(&["--name=a"], &[("ETCD_NAME", "a")]).unwrap_err();
    assert_eq!(error, EnvironmentError::Shadowed("ETCD_NAME".to_owned()));
}

#[test]
fn variables_of_no_flag_are_only_noted() {
    let (_, notes) = with_environment(
        &[],
        &[
            ("ETCD_VERIFY", "all"),
            ("ETCD_VERSION", "3.7"),
            ("ETCD", "x"),
        ],
    )
    .unwrap();
    let expected = [
        Note::Special("3.7".to_owned()),
        Note::Unrecognized("ETCD_VERIFY=all".to_owned()),
    ];
    assert_eq!(notes, expected);
}

#[test]
fn a_wrong_variable_is_told_by_its_name() {
    let error = with_environment(&[], &[("ETCD_SNAPSHOT_COUNT", "x")]).unwrap_err();
    let text = "invalid value \"x\" for ETCD_SNAPSHOT_COUNT: parse error";
    assert_eq!(error, EnvironmentError::Value(text.to_owned()));
}

#[test]
fn listen_urls_of_a_variable_demand_what_clients_are_told_too() {
    let listen = ("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:1");
    let (config, _) = with_environment(&[], &[listen]).unwrap();
    assert!(config.advertise_client_urls.is_empty());
    let told = ("ETCD_ADVERTISE_CLIENT_URLS", "http://127.0.0.1:1");
    let (config, _) = with_environment(&[], &[told, listen]).unwrap();
    assert_eq!(config.advertise_client_urls.len(), 1);
}

#[test]
fn the_help_shows_every_flag_once() {
    let help = help();
    for flag in FLAGS {
        let line = format!("  --{} '{}'\n", flag.name, flag.default);
        let times = usize::from(flag.group != Group::Hidden);
        assert_eq!(help.matches(&line).count(), times, "{}", flag.name);
    }
}

/// With `KEELSON_WRITE_DOCS=1` the page is written instead.
#[test]
fn the_page_holds_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let page = std::fs::read_to_string(path).unwrap();
    let start = "<!-- flags: written from the table in crates/cli/src/flags/table.rs -->\n";
    let (before, _) = page
        .split_once(start)
        .expect("the page has the mark of the table");
    let expected = format!("{before}{start}\n{}", markdown().trim_end()) + "\n";
    if std::env::var_os("KEELSON_WRITE_DOCS").is_some() {
        std::fs::write(path, expected).unwrap();
        return;
    }
    assert!(
        page == expected,
        "run this test once with KEELSON_WRITE_DOCS=1"
    );
}
