use std::path::Path;

use super::*;

fn changed(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    change(&mut config);
    config
}

fn error(change: impl FnOnce(&mut Config)) -> String {
    changed(change).check().unwrap_err().to_string()
}

fn urls(text: &str) -> Vec<Url> {
    Url::parse_list(text).unwrap()
}

#[test]
fn the_defaults_pass_and_are_filled_in() {
    let checked = Config::default().check().unwrap();
    assert_eq!(checked.data_dir, Path::new("default.etcd"));
    assert_eq!(checked.wal_path(), Path::new("default.etcd/member/wal"));
    assert_eq!(checked.snap_path(), Path::new("default.etcd/member/snap"));
    assert_eq!(checked.tick(), Duration::from_millis(100));
    assert_eq!(checked.election_ticks(), 10);
    assert_eq!(checked.quota(), Some(DEFAULT_QUOTA));
    assert_eq!(checked.auto_compaction(), None);
    assert_eq!(checked.backend_batch_limit, 10_000);
    assert_eq!(checked.compaction_batch_limit, 1_000);
    assert_eq!(
        checked.watch_progress_notify_interval,
        Duration::from_secs(600)
    );
    let bootstrap = checked.bootstrap().unwrap();
    assert_eq!(bootstrap.name, "default");
    assert_eq!(bootstrap.peer_urls(), urls(DEFAULT_PEER_URL));
    assert_eq!(bootstrap.token, "etcd-cluster");
}

#[test]
fn urls_to_bind_need_an_ip() {
    assert_eq!(
        error(|c| c.listen_client_urls = urls("http://a.example:2379")),
        "expected IP in URL for binding (http://a.example:2379)"
    );
    assert_eq!(
        error(|c| c.listen_metrics_urls = urls("http://:1")),
        "expected IP in URL for binding (http://:1)"
    );
    assert!(error(|c| c.listen_peer_urls = urls("http://0.0.0.0:99999")).contains("invalid port"));
    assert_eq!(
        error(|c| c.listen_client_urls = Vec::new()),
        "--listen-client-urls must name at least one URL"
    );
    changed(|c| c.listen_client_urls = urls("unix://localhost:1,http://[::1]:5"))
        .check()
        .unwrap();
}

#[test]
fn urls_for_others_need_a_host() {
    assert_eq!(
        error(|c| c.advertise_peer_urls = urls("http://:2380")),
        "--initial-advertise-peer-urls \"http://:2380\" must be \"host:port\" (unexpected empty host (http://:2380))"
    );
    assert_eq!(
        error(|c| c.advertise_client_urls = urls("http://:2379")),
        "--advertise-client-urls \"http://:2379\" must be in the format \"host:port\", \"unix:/path/to/socket\" or \"unixs:/path/to/socket\" (unexpected empty host (http://:2379))"
    );
    assert_eq!(
        error(|c| c.advertise_client_urls = Vec::new()),
        "--advertise-client-urls is required when --listen-client-urls is set explicitly"
    );
}

#[test]
fn intervals_have_their_bounds() {
    assert_eq!(
        error(|c| c.heartbeat_ms = 0),
        "--heartbeat-interval must be >0 (set to 0ms)"
    );
    assert_eq!(
        error(|c| c.election_ms = 0),
        "--election-timeout must be >0 (set to 0ms)"
    );
    assert_eq!(
        error(|c| c.heartbeat_ms = 500),
        "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[500ms]"
    );
    assert_eq!(
        error(|c| c.election_ms = 60_000),
        "--election-timeout[60000ms] is too long, and should be set less than 50000ms"
    );
    assert!(error(|c| c.heartbeat_ms = u64::MAX).contains("at least as 5 times"));
    assert_eq!(
        error(|c| c.compact_hash_check_time = Duration::ZERO),
        "--compact-hash-check-time must be >0 (set to 0s)"
    );
}

#[test]
fn compaction_is_read_as_etcd_reads_it() {
    let read = |mode: &str, retention: &str| {
        changed(|c| {
            c.auto_compaction_mode = mode.to_owned();
            c.auto_compaction_retention = retention.to_owned();
        })
        .check()
        .map(|checked| checked.auto_compaction())
        .map_err(|error| error.to_string())
    };
    let hours = |n: u64| {
        Ok(Some(AutoCompaction::Periodic(Duration::from_secs(
            n * 3600,
        ))))
    };
    assert_eq!(read("periodic", "2"), hours(2));
    assert_eq!(read("periodic", "60m"), hours(1));
    assert_eq!(read("periodic", "0"), Ok(None));
    assert_eq!(read("revision", "0"), Ok(None));
    assert_eq!(
        read("revision", "1000"),
        Ok(Some(AutoCompaction::Revision(1000)))
    );
    assert_eq!(
        read("", "0"),
        Err("undefined auto-compaction-mode".to_owned())
    );
    assert_eq!(
        read("x", "0"),
        Err("unknown auto-compaction-mode \"x\"".to_owned())
    );
    let cause = "error parsing CompactionRetention: time: invalid duration \"x\"";
    assert_eq!(read("periodic", "x"), Err(cause.to_owned()));
    assert!(read("periodic", "-1h").is_err());
    assert!(read("periodic", "9999999999999").is_err());
}

#[test]
fn discovery_and_tls_are_refused_with_what_etcd_says_first() {
    let with = |settings: &[(&'static str, &str)]| {
        error(|c| {
            c.not_yet = settings
                .iter()
                .map(|(f, v)| (*f, (*v).to_owned()))
                .collect()
        })
    };
    assert_eq!(
        with(&[("discovery-token", "t")]),
        "both --discovery-token and --discovery-endpoints must be set"
    );
    assert_eq!(
        with(&[("discovery-token", "t"), ("discovery-endpoints", "a,")]),
        "--discovery-endpoints must not contain empty endpoints"
    );
    assert!(
        with(&[("discovery-srv", "a.example"), ("discovery-endpoints", "a")])
            .starts_with("multiple discovery or bootstrap flags are set.")
    );
    assert_eq!(
        with(&[("discovery-srv", "a.example")]),
        "--discovery-srv=a.example is not supported yet by this release of Keelson"
    );
    assert_eq!(
        with(&[("discovery-fallback", "proxy")]),
        "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\""
    );
    assert_eq!(
        error(|c| c.tls_min_version = "TLS1.1".to_owned()),
        "unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)"
    );
    assert_eq!(
        error(|c| {
            c.tls_min_version = "TLS1.3".to_owned();
            c.tls_max_version = "TLS1.2".to_owned();
        }),
        "min version (TLS1.3) is greater than max version (TLS1.2)"
    );
    assert_eq!(
        error(|c| {
            c.tls_min_version = "TLS1.3".to_owned();
            c.cipher_suites = vec!["X".to_owned()];
        }),
        "cipher suites cannot be configured when only TLS1.3 is enabled"
    );
    assert_eq!(
        with(&[("enable-log-rotation", "true")]),
        "--log-outputs requires a single file path when --log-rotate-config-json is defined"
    );
    let rate = [
        ("enable-distributed-tracing", "true"),
        ("distributed-tracing-sampling-rate", "-1"),
    ];
    assert!(with(&rate).starts_with("distributed tracing configurition is not valid: ("));
}

#[test]
fn what_is_not_there_yet_is_refused_by_name() {
    let gate = error(|c| c.feature_gates.set("PriorityRequest=true").unwrap());
    assert!(gate.starts_with("--feature-gates=PriorityRequest=true is not supported"));
    let token = error(|c| c.auth_token = "jwt,pub-key=a,sign-method=RS256".to_owned());
    assert!(token.starts_with("--auth-token=jwt,pub-key=a,sign-method=RS256 is not supported"));
}

#[test]
fn a_lease_checkpoint_that_persists_needs_checkpoints() {
    assert_eq!(
        error(|c| c.feature_gates.set("LeaseCheckpointPersist=true").unwrap()),
        "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint"
    );
}

#[test]
fn a_bad_token_or_retention_is_found_when_the_member_starts() {
    let stage = |change: fn(&mut Config)| changed(change).check().unwrap_err().stage();
    assert_eq!(stage(|c| c.auth_token = "x".to_owned()), Stage::Start);
    assert_eq!(
        stage(|c| c.auth_token = "simple,x".to_owned()),
        Stage::Start
    );
    assert_eq!(
        stage(|c| c.auto_compaction_retention = "x".to_owned()),
        Stage::Start
    );
    assert_eq!(stage(|c| c.log_level = "x".to_owned()), Stage::Panic);
    assert_eq!(stage(|c| c.heartbeat_ms = 0), Stage::Verify);
}

#[test]
fn the_initial_cluster_follows_the_name_and_what_is_advertised() {
    let checked = changed(|c| {
        c.name = "a".to_owned();
        c.advertise_peer_urls = urls("http://10.0.0.1:1,http://10.0.0.2:1");
    });
    let checked = checked.check().unwrap();
    assert_eq!(
        checked.initial_cluster(),
        "a=http://10.0.0.1:1,a=http://10.0.0.2:1"
    );
    assert_eq!(checked.bootstrap().unwrap().peer_urls().len(), 2);
}

#[test]
fn a_wrong_initial_cluster_is_found_at_bootstrap_only() {
    let error = |cluster: &str| {
        let config = changed(|c| c.initial_cluster = Some(cluster.to_owned()));
        config.check().unwrap().bootstrap().unwrap_err().to_string()
    };
    assert_eq!(
        error("a=http://127.0.0.1:1"),
        "couldn't find local name \"default\" in the initial cluster configuration"
    );
    let other = error("default=http://127.0.0.9:1");
    assert!(
        other.starts_with(
            "--initial-cluster has default=http://127.0.0.9:1 but missing from \
             --initial-advertise-peer-urls=http://localhost:2380 ("
        ),
        "{other}"
    );
    assert_eq!(
        error("default=http://localhost:2380,default=http://localhost:2380"),
        "initial cluster default=http://localhost:2380,default=http://localhost:2380 has duplicate url"
    );
    assert!(error("default=x").starts_with("error setting up initial cluster: URL scheme"));
}

#[test]
fn the_first_members_are_read_by_name() {
    let born = changed(|c| {
        c.name = "b".to_owned();
        c.advertise_peer_urls = urls("http://10.0.0.2:1,http://10.0.0.2:2");
        c.initial_cluster = Some(
            "b=http://10.0.0.2:2,a=http://10.0.0.1:1,b=http://10.0.0.2:1,c=http://10.0.0.3:1"
                .to_owned(),
        );
        c.initial_cluster_state = ClusterState::Existing;
        c.initial_cluster_token = "t".to_owned();
    });
    let born = born.check().unwrap().bootstrap().unwrap();
    let names: Vec<&str> = born.members.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(
        born.peer_urls(),
        urls("http://10.0.0.2:1,http://10.0.0.2:2")
    );
    assert_eq!(
        (born.state, born.token.as_str()),
        (ClusterState::Existing, "t")
    );
}

#[test]
fn tls_between_members_is_checked_as_etcd_does() {
    let with = |change: fn(&mut TlsSettings)| error(|c| change(&mut c.peer_tls));
    assert_eq!(
        with(|tls| tls.cert_file = "c.pem".into()),
        "KeyFile and CertFile must both be present[key: , cert: c.pem]"
    );
    assert_eq!(
        with(|tls| tls.client_key_file = "k.pem".into()),
        "ClientKeyFile and ClientCertFile must both be present or both absent: key: k.pem, cert: ]"
    );
    assert_eq!(
        with(|tls| {
            tls.allowed_cn = vec!["a".to_owned(), "b".to_owned()];
            tls.allowed_hostname = vec!["c".to_owned()];
        }),
        "AllowedCNs and AllowedHostnames are mutually exclusive (cns=[\"a\" \"b\"], hostnames=[\"c\"])"
    );
}

#[test]
fn https_for_clients_needs_a_certificate_given_or_made() {
    let listen = |c: &mut Config| c.listen_client_urls = urls("https://127.0.0.1:1");
    assert_eq!(
        error(listen),
        "TLS key/cert (--cert-file, --key-file) must be provided for client url \
         https://127.0.0.1:1 with HTTPS scheme"
    );
    assert_eq!(
        error(|c| c.listen_metrics_urls = urls("https://127.0.0.1:1")),
        "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url"
    );
    assert_eq!(
        error(|c| c.client_tls.key_file = "k.pem".into()),
        "KeyFile and CertFile must both be present[key: k.pem, cert: ]"
    );
    let given = |c: &mut Config| {
        listen(c);
        c.client_tls.cert_file = "c.pem".into();
        c.client_tls.key_file = "k.pem".into();
    };
    changed(given).check().unwrap();
    let made = |c: &mut Config| {
        listen(c);
        c.client_tls.auto_tls = true;
    };
    changed(made).check().unwrap();
}

#[test]
fn a_member_says_it_is_3_6_or_3_7() {
    let says = |release: &str| {
        let config = changed(|c| c.announce_version = release.to_owned()).check();
        config
            .map(|checked| checked.announced_version())
            .map_err(|error| error.to_string())
    };
    assert_eq!(says("3.6"), Ok("3.6.14"));
    assert_eq!(says("3.7"), Ok("3.7.1"));
    let refused = "--announce-version=3.5 must be one of 3.6, 3.7";
    assert_eq!(says("3.5"), Err(refused.to_owned()));
}

#[test]
fn names_of_the_same_address_are_equal() {
    let config = changed(|c| {
        c.initial_cluster = Some("default=http://127.0.0.1:2380".to_owned());
    });
    let bootstrap = config.check().unwrap().bootstrap().unwrap();
    assert_eq!(
        bootstrap.peer_urls(),
        urls("http://127.0.0.1:2380"),
        "the listed ones go into the ids"
    );
}

#[test]
fn listeners_that_are_bound_decide_the_urls() {
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, peer) = (bind(), bind());
    let client_url = Url::of_address(client.local_addr().unwrap(), false);
    let peer_url = Url::of_address(peer.local_addr().unwrap(), false);
    let mut checked = changed(|c| {
        c.client_listeners.push(client);
        c.peer_listeners.push(peer);
    })
    .check()
    .unwrap();
    assert_eq!(
        checked.listen_client_urls,
        std::slice::from_ref(&client_url)
    );
    assert_eq!(checked.advertise_client_urls, [client_url]);
    assert_eq!(checked.bootstrap().unwrap().peer_urls(), [peer_url]);
    assert_eq!(checked.take_client_listeners().len(), 1);
    assert_eq!(checked.take_client_listeners().len(), 0);
}

#[test]
fn a_quota_below_zero_is_none() {
    let quota = |bytes: i64| {
        changed(|c| c.quota_backend_bytes = bytes)
            .check()
            .unwrap()
            .quota()
    };
    assert_eq!(quota(-1), None);
    assert_eq!(quota(5120), Some(5120));
}

#[test]
fn values_out_of_bounds_are_raised_or_replaced() {
    let checked = changed(|c| {
        c.watch_progress_notify_interval = Duration::from_millis(1);
        c.raft_read_timeout = Duration::from_secs(1);
        c.bcrypt_cost = 3;
        c.auth_token_ttl = 0;
        c.snapshot_count = 0;
    })
    .check()
    .unwrap();
    assert_eq!(
        checked.watch_progress_notify_interval,
        Duration::from_millis(100)
    );
    assert_eq!(checked.raft_read_timeout, Duration::from_secs(5));
    assert_eq!((checked.bcrypt_cost, checked.auth_token_ttl), (10, 300));
    assert_eq!(checked.snapshot_count, 10_000);
}

#[test]
fn details_of_what_is_off_change_nothing() {
    let details = [
        ("discovery-dial-timeout", "9s"),
        ("distributed-tracing-address", "a:1"),
    ];
    let not_yet: BTreeMap<_, _> = details.map(|(f, v)| (f, v.to_owned())).into();
    changed(|c| c.not_yet = not_yet.clone()).check().unwrap();
    let asked = error(|c| {
        c.not_yet = not_yet;
        c.not_yet
            .insert("enable-distributed-tracing", "true".to_owned());
    });
    assert!(asked.starts_with("--enable-distributed-tracing=true is not supported yet"));
}
