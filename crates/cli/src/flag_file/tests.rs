use std::path::PathBuf;
use std::time::Duration;

use keelson_server::config::ClusterState;

use super::*;

fn error(text: &str) -> String {
    match parse(text).unwrap_err() {
        FileError::Verify(cause) => cause,
        FileError::Plain(line) => format!("plain: {line}"),
    }
}

#[test]
fn yaml_and_json_set_the_same() {
    let yaml = "
# a comment
name: 'member-1'
data-dir: /d
snapshot-count: 10
initial-cluster-state: 'existing'
listen-client-urls: http://127.0.0.1:2,http://127.0.0.1:1
warning-apply-duration: 200000000
pre-vote: false
log-outputs: [stderr]
socket-options: {reuse-port: true}
";
    let json = r#"{"name": "member-1", "data-dir": "/d", "snapshot-count": 10,
        "initial-cluster-state": "existing", "warning-apply-duration": 200000000,
        "listen-client-urls": "http://127.0.0.1:2,http://127.0.0.1:1", "pre-vote": false,
        "log-outputs": ["stderr"], "socket-options": {"reuse-port": true}}"#;
    for text in [yaml, json] {
        let config = parse(text).unwrap();
        assert_eq!(config.name, "member-1");
        assert_eq!(config.data_dir, PathBuf::from("/d"));
        assert_eq!(config.snapshot_count, 10);
        assert_eq!(config.initial_cluster_state, ClusterState::Existing);
        assert_eq!(config.listen_client_urls[0].as_str(), "http://127.0.0.1:1");
        assert_eq!(config.warning_apply_duration, Duration::from_millis(200));
        assert!(!config.pre_vote && config.socket_reuse_port);
        assert_eq!(config.log_outputs, ["stderr"]);
        assert!(
            !config.advertise_client_urls.is_empty(),
            "only flags take the default away"
        );
    }
}

#[test]
fn keys_match_without_regard_to_case_and_unknown_ones_pass() {
    let config = parse("NAME: a\nno-such-key: {x: [1]}\nMax-Txn-Ops: 7\n5: x\n").unwrap();
    assert_eq!((config.name.as_str(), config.max_txn_ops), ("a", 7));
    let config = parse("Name: b\nname: a\n").unwrap();
    assert_eq!(config.name, "a", "the exact key wins");
}

#[test]
fn an_empty_file_sets_nothing() {
    for text in ["", "# nothing\n", "---\n", "{}", "name:\ncors:\n"] {
        let config = parse(text).unwrap();
        assert_eq!(
            format!("{config:?}"),
            format!("{:?}", Config::default()),
            "{text:?}"
        );
    }
}

#[test]
fn a_value_of_another_type_is_told_with_its_key() {
    let start = "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal ";
    assert_eq!(
        error("snapshot-count: x"),
        format!("{start}string into Go struct field configYAML.snapshot-count of type uint64")
    );
    assert_eq!(
        error("warning-apply-duration: 10m"),
        format!(
            "{start}string into Go struct field configYAML.warning-apply-duration of type time.Duration"
        )
    );
    assert!(
        error("name: 5").contains("number into Go struct field configYAML.name of type string")
    );
    assert!(error("log-outputs: stderr").contains("of type []string"));
    assert!(error("max-txn-ops: -1").contains("of type uint"));
    assert!(error("max-concurrent-streams: '3'").contains("max-concurrent-streams"));
    assert!(error("- a\n- b\n").contains("cannot unmarshal array"));
    assert!(error("a: [").starts_with("error converting YAML to JSON: yaml: "));
    assert!(error("a: 1\n\tb: 2").starts_with("error converting YAML to JSON: yaml: "));
    assert_eq!(
        error("peer-transport-security: x"),
        "invalid peer-transport-security"
    );
}

#[test]
fn a_bad_list_of_urls_is_a_line_of_its_own() {
    assert_eq!(
        error("listen-client-urls: bad"),
        "plain: unexpected error setting up listen-client-urls: URL scheme must be http, https, unix, or unixs: bad"
    );
}

#[test]
fn words_that_only_flags_know_are_refused_in_the_files_words() {
    assert_eq!(
        error("initial-cluster-state: x"),
        "unexpected clusterState \"x\""
    );
    assert_eq!(
        error("feature-gates: X=true"),
        "unrecognized feature gate: X"
    );
    assert_eq!(
        error("compact-hash-check-time: -5"),
        "--compact-hash-check-time must be >0 (set to -5ns)"
    );
}

#[test]
fn what_has_no_function_yet_is_refused_from_its_section() {
    let config = parse(
        "discovery-config:\n  client:\n    secure: {cert: a.pem, insecure-transport: true}\n    \
         dial-timeout: 2000000000\nself-signed-cert-validity: 0\n",
    )
    .unwrap();
    let refused: Vec<_> = config
        .not_yet
        .iter()
        .map(|(f, v)| (*f, v.as_str()))
        .collect();
    assert_eq!(refused, [("discovery-cert", "a.pem")]);
}

#[test]
fn tls_of_clients_has_a_section() {
    let config = parse(
        "client-transport-security:\n  cert-file: a.pem\n  key-file: a.key\n  \
         client-cert-auth: true\n  trusted-ca-file: ca.pem\n  allowed-hostname: [a, b]\n",
    )
    .unwrap();
    let tls = &config.client_tls;
    let files = [&tls.cert_file, &tls.key_file, &tls.trusted_ca_file];
    assert_eq!(
        files.map(|file| file.to_str().unwrap()),
        ["a.pem", "a.key", "ca.pem"]
    );
    assert!(tls.client_cert_auth && !tls.auto_tls);
    assert_eq!(tls.allowed_hostname, ["a", "b"]);
}

#[test]
fn the_words_of_older_yaml_are_booleans() {
    assert!(!parse("pre-vote: no").unwrap().pre_vote);
    assert!(
        parse("socket-options: {reuse-port: yes}")
            .unwrap()
            .socket_reuse_port
    );
}

#[test]
fn a_file_that_is_not_there_is_told_in_the_words_of_go() {
    let cause = FileError::Verify("open missing.yml: no such file or directory".to_owned());
    assert_eq!(load(Path::new("missing.yml")).unwrap_err(), cause);
}

#[test]
fn a_file_with_a_value_for_nearly_everything_starts_a_member() {
    // The settings of etcd's sample file.
    let text = "
name: 'default'
data-dir:
wal-dir:
snapshot-count: 10000
heartbeat-interval: 100
election-timeout: 1000
quota-backend-bytes: 0
listen-peer-urls: http://localhost:2380
listen-client-urls: http://localhost:2379
max-wals: 5
cors:
initial-advertise-peer-urls: http://localhost:2380
advertise-client-urls: http://localhost:2379
discovery:
discovery-fallback: 'proxy'
discovery-proxy:
discovery-srv:
initial-cluster:
initial-cluster-token: 'etcd-cluster'
initial-cluster-state: 'new'
strict-reconfig-check: false
enable-pprof: true
client-transport-security: {cert-file: , key-file: , client-cert-auth: false, auto-tls: false}
peer-transport-security:
  cert-file:
  client-cert-auth: false
  allowed-cn:
self-signed-cert-validity: 1
log-level: debug
logger: zap
log-outputs: [stderr]
force-new-cluster: false
auto-compaction-mode: periodic
auto-compaction-retention: \"1\"
cipher-suites: [
  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
  TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
]
tls-min-version: 'TLS1.2'
tls-max-version: 'TLS1.3'
";
    let checked = parse(text).unwrap().check().unwrap();
    let hour = keelson_server::config::AutoCompaction::Periodic(Duration::from_secs(3600));
    assert_eq!(checked.auto_compaction(), Some(hour));
    assert_eq!(checked.bootstrap().unwrap().name, "default");
}
