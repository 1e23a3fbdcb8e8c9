//! `/metrics` shows what etcd's shows: the same families with the same types, labels and buckets.
//!
//! What differs on purpose stands in [`ABSENT`] and [`OWN`]. The server is `keelson` from the folder
//! that this test was built into (`cargo build -p keelson-cli` first), or what `KEELSON_ETCD_BINARY`
//! names.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::SocketAddr;
use std::time::Duration;

use keelson_proto::rpc::etcdserverpb as pb;
use keelson_recorded::data_folder;
use keelson_recorded::wire::call::{self, Connection};
use keelson_recorded::wire::script::HttpRequest;
use keelson_recorded::wire::server::Server;
use prost::Message;

/// Families of etcd that have no honest source here, by the beginning of their names.
const ABSENT: [(&str, &str); 4] = [
    ("go_", "there is no Go runtime"),
    ("etcd_server_go_version", "there is no Go runtime"),
    (
        "etcd_debugging_store_",
        "there is no store of API version 2",
    ),
    ("etcd_grpc_proxy_", "the server is no proxy"),
];

/// Families of ours that etcd does not have.
const OWN: [(&str, &str); 3] = [
    ("keelson_version", "our own version"),
    (
        "keelson_server_reads_waited_total",
        "how the file is read is our own",
    ),
    (
        "process_threads",
        "of the library that reads the process's numbers",
    ),
];

const PATIENCE: Duration = Duration::from_secs(60);

/// A family as far as it is the same on every run.
#[derive(Debug, Default, PartialEq)]
struct Family {
    kind: String,
    /// The labels of each series, sorted, without their values and without bounds of buckets.
    labels: BTreeSet<Vec<String>>,
    /// Upper bounds of buckets, in order of appearance.
    bounds: Vec<String>,
    /// Labels with their values.
    series: BTreeSet<Vec<(String, String)>>,
}

fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            let family = families.entry(name.to_owned()).or_default();
            assert!(family.kind.is_empty(), "{name} is there twice");
            kind.clone_into(&mut family.kind);
        } else if !line.starts_with('#') && !line.is_empty() {
            let (series, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
            add(&mut families, series);
        }
    }
    families
}

fn add(families: &mut BTreeMap<String, Family>, series: &str) {
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let parts = ["_bucket", "_sum", "_count"];
    let base = parts.iter().find_map(|part| name.strip_suffix(part));
    let base = base.filter(|base| families.contains_key(*base));
    let family = families
        .get_mut(base.unwrap_or(name))
        .unwrap_or_else(|| panic!("{name} has no type"));
    let labels = labels.strip_suffix('}').unwrap();
    let mut pairs = Vec::new();
    for pair in labels.split("\",").filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once("=\"").unwrap();
        let value = value.trim_end_matches('"');
        if name == "le" {
            let bound: f64 = value.replace("+Inf", "inf").parse().unwrap();
            let bound = bound.to_string();
            if !family.bounds.contains(&bound) {
                family.bounds.push(bound);
            }
        } else {
            pairs.push((name.to_owned(), value.to_owned()));
        }
    }
    pairs.sort();
    let names = pairs.iter().map(|(name, _)| name.clone());
    family.labels.insert(names.collect());
    family.series.insert(pairs);
}

fn is_in(table: &[(&str, &str)], name: &str) -> bool {
    table.iter().any(|(prefix, _)| name.starts_with(prefix))
}

/// What differs beyond the tables. `values` names families whose labels have the same values too.
fn differences(recorded: &str, ours: &str, values: &[&str]) -> Vec<String> {
    let (recorded, ours) = (parse(recorded), parse(ours));
    let mut found = Vec::new();
    for (name, family) in &recorded {
        let absent = is_in(&ABSENT, name);
        let Some(own) = ours.get(name) else {
            if !absent {
                found.push(format!("{name} is missing"));
            }
            continue;
        };
        if absent {
            found.push(format!("{name} is there, but said to be absent"));
        }
        if (&own.kind, &own.labels, &own.bounds) != (&family.kind, &family.labels, &family.bounds) {
            found.push(format!(
                "{name}: recorded {} {:?} {:?}, ours {} {:?} {:?}",
                family.kind, family.labels, family.bounds, own.kind, own.labels, own.bounds
            ));
        }
        if values.contains(&name.as_str()) && own.series != family.series {
            let missing: Vec<_> = family.series.difference(&own.series).collect();
            let more: Vec<_> = own.series.difference(&family.series).collect();
            found.push(format!("{name}: missing {missing:?}, unknown {more:?}"));
        }
    }
    let unknown = ours
        .keys()
        .filter(|name| !recorded.contains_key(*name) && !is_in(&OWN, name));
    found.extend(unknown.map(|name| format!("{name} is not etcd's")));
    found
}

fn recorded(name: &str) -> String {
    let file = data_folder().unwrap().join("wire").join(name);
    let bytes = std::fs::read(file).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(&bytes[..])
        .read_to_string(&mut text)
        .unwrap();
    text
}

async fn start() -> Server {
    let args = [
        "etcd",
        "--data-dir",
        "",
        "--listen-client-urls",
        "",
        "--advertise-client-urls",
        "http://127.0.0.1:2379",
        "--listen-peer-urls",
        "",
    ];
    Server::start(&args.map(str::to_owned)).await.unwrap()
}

async fn get(address: SocketAddr, path: &str) -> String {
    let request = HttpRequest {
        method: "GET".to_owned(),
        path: path.to_owned(),
        headers: Vec::new(),
        body: None,
        status: 200,
        response_headers: Vec::new(),
        response_body: String::new(),
    };
    let (status, _, body) = call::http(address, &request).await.unwrap();
    assert_eq!(status, 200, "{path}: {body}");
    body
}

/// One call that must succeed.
async fn unary(connection: &Connection, method: &str, request: impl Message) {
    let path = format!("/etcdserverpb.{method}");
    let bytes = request.encode_to_vec();
    let (_, status) = connection
        .call(&path, &[], &bytes, None, PATIENCE)
        .await
        .unwrap();
    assert_eq!(status.code, 0, "{method}: {}", status.message);
}

fn put(key: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: "value".into(),
        ..pb::PutRequest::default()
    }
}

fn operation(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(request),
    }
}

/// One of everything that the recorded load did.
async fn load(address: SocketAddr) {
    let server = Connection::open(address).await.unwrap();
    unary(&server, "KV/Put", put("a")).await;
    unary(&server, "KV/Put", put("b")).await;
    let range = pb::RangeRequest {
        key: "a".into(),
        ..pb::RangeRequest::default()
    };
    unary(&server, "KV/Range", range.clone()).await;
    let txn = pb::TxnRequest {
        success: vec![
            operation(pb::request_op::Request::RequestPut(put("c"))),
            operation(pb::request_op::Request::RequestRange(range)),
        ],
        ..pb::TxnRequest::default()
    };
    unary(&server, "KV/Txn", txn).await;
    let delete = pb::DeleteRangeRequest {
        key: "a".into(),
        range_end: "c".into(),
        ..pb::DeleteRangeRequest::default()
    };
    unary(&server, "KV/DeleteRange", delete).await;
    let grant = pb::LeaseGrantRequest { ttl: 300, id: 7 };
    unary(&server, "Lease/LeaseGrant", grant).await;
    let revoke = pb::LeaseRevokeRequest { id: 7 };
    unary(&server, "Lease/LeaseRevoke", revoke).await;
    let compact = pb::CompactionRequest {
        revision: 3,
        physical: true,
    };
    unary(&server, "KV/Compact", compact).await;
    unary(&server, "Maintenance/Alarm", pb::AlarmRequest::default()).await;
    unary(&server, "Auth/AuthStatus", pb::AuthStatusRequest::default()).await;
    unary(&server, "Auth/UserList", pb::AuthUserListRequest::default()).await;
    unary(&server, "Auth/RoleList", pb::AuthRoleListRequest::default()).await;
    get(address, "/livez").await;
    get(address, "/readyz").await;
}

#[tokio::test]
async fn a_fresh_server_shows_etcds_families() {
    let server = start().await;
    let ours = get(server.address(), "/metrics").await;
    let values = [
        "grpc_server_started_total",
        "grpc_server_handled_total",
        "etcd_server_feature_enabled",
        "etcd_server_apply_duration_seconds",
        "promhttp_metric_handler_requests_total",
    ];
    let found = differences(&recorded("metrics-fresh.txt.gz"), &ours, &values);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[tokio::test]
async fn a_used_server_shows_etcds_families_and_counts_what_was_done() {
    let server = start().await;
    load(server.address()).await;
    let ours = get(server.address(), "/metrics").await;
    let values = [
        "etcd_server_apply_duration_seconds",
        "etcd_server_request_duration_seconds",
        "etcd_server_healthcheck",
        "etcd_server_healthchecks_total",
    ];
    let found = differences(&recorded("metrics-after-load.txt.gz"), &ours, &values);
    assert!(found.is_empty(), "{}", found.join("\n"));
    for line in [
        "etcd_mvcc_put_total 3",
        "etcd_mvcc_delete_total 1",
        // The put and the range of the transaction are one; etcd counts no other.
        "etcd_mvcc_txn_total 1",
        "etcd_debugging_mvcc_total_put_size_in_bytes 18",
        "etcd_debugging_mvcc_keys_total 1",
        "etcd_debugging_lease_granted_total 1",
        "etcd_debugging_lease_revoked_total 1",
        "etcd_debugging_lease_ttl_total_sum 300",
        "etcd_debugging_mvcc_compact_revision 3",
    ] {
        assert!(
            ours.lines().any(|own| own == line),
            "no line {line:?} in:\n{ours}"
        );
    }
}
