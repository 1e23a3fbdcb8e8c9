//! What an operator and tools read: one JSON object a line, from the first to the last.

use keelson_client::{Get, Put, Txn, Watch};
use keelson_e2e::{Exit, Process};
use serde_json::Value;

use crate::server::tested;

fn start(arguments: &[&str]) -> Process {
    let mut launch = tested();
    for argument in arguments {
        launch = launch.argument(*argument);
    }
    Process::start(launch).unwrap()
}

/// Every line, each of which must be an object with the parts that tools look for.
fn lines(exit: &Exit) -> Vec<Value> {
    let text = exit.text();
    let parse = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        for part in ["level", "ts", "caller", "msg"] {
            let text = value[part].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "{part} is not there: {line}");
        }
        value
    };
    text.lines().map(parse).collect()
}

fn find<'a>(lines: &'a [Value], message: &str) -> &'a Value {
    let found = lines.iter().find(|line| line["msg"] == message);
    found.unwrap_or_else(|| panic!("no line {message:?} in {lines:#?}"))
}

fn has(line: &Value, fields: &[&str]) {
    for field in fields {
        assert!(!line[*field].is_null(), "no {field} in {line}");
    }
}

#[tokio::test]
async fn every_line_is_an_object_and_none_is_an_error() {
    let mut server = start(&["--log-level=debug"]);
    let client = server.client().await.unwrap();
    for number in 0..20 {
        client
            .put(Put::new(format!("k{number}"), "v"))
            .await
            .unwrap();
    }
    client.get(Get::prefix("k")).await.unwrap();
    client.compact(10, true).await.unwrap();
    client.defragment().await.unwrap();
    let exit = server.stop().unwrap();
    let lines = lines(&exit);
    for line in &lines {
        let level = line["level"].as_str().unwrap();
        assert!(["debug", "info", "warn"].contains(&level), "{line}");
    }
    let urls = [
        "name",
        "data-dir",
        "advertise-peer-urls",
        "advertise-client-urls",
    ];
    has(find(&lines, "closing etcd server"), &urls);
    has(find(&lines, "received signal; shutting down"), &["signal"]);
    has(
        find(&lines, "finished scheduled compaction"),
        &[
            "compact-revision",
            "took",
            "number-of-keys-compacted",
            "hash",
            "current-db-size-bytes",
            "current-db-size",
            "current-db-size-in-use-bytes",
            "current-db-size-in-use",
        ],
    );
    find(&lines, "starting defragment");
    find(&lines, "finished defragment");
    find(&lines, "cluster version is updated");
    let elected = lines.iter().find(|line| {
        let message = line["msg"].as_str().unwrap();
        line["logger"] == "raft" && message.contains("elected leader")
    });
    assert!(elected.is_some(), "consensus tells who leads");
    let last = lines.last().unwrap();
    assert_eq!(last["msg"], "closed etcd server", "{last}");
}

// On threads of its own, a client goes when the server wants to.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_watch_holds_no_stop() {
    let dropped = "connections are dropped that did not end in time";
    let mut server = start(&["--log-level=debug"]);
    // Where other work holds the threads for longer than a stop waits, another stop tells.
    for _ in 0..10 {
        let client = server.client().await.unwrap();
        let _watcher = client.watch(Watch::prefix("k")).await.unwrap();
        let exit = server.stop().unwrap();
        if !exit.text().contains(dropped) {
            find(&lines(&exit), "closed etcd server");
            return;
        }
        server.restart().unwrap();
    }
    panic!("each stop waited for its watch");
}

#[tokio::test]
async fn slow_calls_and_slow_reads_are_told_with_etcds_fields() {
    let mut server = start(&[
        "--warning-unary-request-duration=1us",
        "--warning-apply-duration=1us",
        "--snapshot-count=3",
        "--max-request-bytes=20000000",
    ]);
    let client = server.client().await.unwrap();
    for _ in 0..5 {
        client.put(Put::new("key", "value")).await.unwrap();
    }
    client.get(Get::key("key")).await.unwrap();
    client.txn(Txn::new().then(Get::key("key"))).await.unwrap();
    let exit = server.stop().unwrap();
    let lines = lines(&exit);
    let of = |message: &str, field: &str, value: &str| {
        let found = lines
            .iter()
            .find(|line| line["msg"] == message && line[field] == value);
        found
            .unwrap_or_else(|| panic!("no {message:?} with {field}={value:?}"))
            .clone()
    };
    let slow = "apply request took too long";
    for prefix in ["", "read-only range ", "read-only txn "] {
        let line = of(slow, "prefix", prefix);
        has(&line, &["took", "expected-duration", "request", "response"]);
        assert_eq!(line["level"], "warn");
    }
    let stats = of("request stats", "response type", "/etcdserverpb.KV/Put");
    assert_eq!(stats["level"], "warn");
    assert_eq!(stats["request count"], 1);
    assert_eq!(stats["request size"], 12);
    assert_eq!(stats["request content"], "key:\"key\" value_size:5 ");
    has(
        &stats,
        &["start time", "time spent", "remote", "response size"],
    );
    let stats = of("request stats", "response type", "/etcdserverpb.KV/Range");
    assert_eq!(stats["response count"], 1);
    let recommended = find(&lines, "exceeded recommended request limit");
    assert_eq!(recommended["max-request-size"], "20 MB");
    assert_eq!(recommended["recommended-request-size"], "10 MB");
    has(
        find(&lines, "triggering snapshot"),
        &[
            "local-member-id",
            "local-member-applied-index",
            "local-member-snapshot-index",
            "local-member-snapshot-count",
        ],
    );
    has(find(&lines, "saved snapshot to disk"), &["snapshot-index"]);
}
