//! The lines that operators know: of slow disks, slow requests, a full quota, and of users and roles.
//! Slowness is made by the member's clock and disk, not by the machine.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use keelson_client::{Client, Compare, Get, Permission, Put, Relation, Span, Txn};
use keelson_harness::{Faults, TestMember};
use keelson_server::config::Config;
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = keelson_harness::wait::PATIENCE;
const POLL: Duration = Duration::from_millis(5);

/// The log of all members in this process: a file, as `--log-outputs` makes it.
fn log() -> PathBuf {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            log_outputs: vec![dir.path().join("log").display().to_string()],
            ..Config::default()
        };
        assert!(keelson_server::logging::init(&config).unwrap().is_some());
        dir
    });
    dir.path().join("log")
}

async fn start(
    faults: &Faults,
    adjust: impl Fn(&mut Config) + Send + 'static,
) -> (TestMember, Client) {
    log();
    let member = TestMember::start_faulty(faults, adjust).unwrap();
    let client = member.client().await.unwrap();
    (member, client)
}

/// Waits for the line with this message that `fits`.
async fn line(message: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string(log()).unwrap();
        // The last line may be half written.
        let found = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["msg"] == message && fits(line));
        if let Some(found) = found {
            return found;
        }
        assert!(Instant::now() < deadline, "no {message:?} in\n{text}");
        tokio::time::sleep(POLL).await;
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A duration as Go prints those of seconds and milliseconds.
fn seconds(value: &Value) -> f64 {
    let text = value.as_str().unwrap();
    match text.strip_suffix("ms") {
        Some(millis) => millis.parse::<f64>().unwrap() / 1000.0,
        None => text.strip_suffix('s').unwrap().parse().unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_is_told_of() {
    let faults = Faults::default();
    let (_member, client) = start(&faults, |_| {}).await;
    faults.syncs_take(millis(1500));
    client.put(Put::new("slow", "disk")).await.unwrap();
    let line = line("slow fdatasync", |_| true).await;
    assert_eq!(line["level"], "warn");
    assert_eq!(line["expected-duration"], "1s");
    assert!(seconds(&line["took"]) >= 1.5, "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_and_reading_that_take_too_long_are_told_of() {
    let faults = Faults::default();
    let (_member, client) = start(&faults, |_| {}).await;
    client.put(Put::new("before", "v")).await.unwrap();
    // Whatever is measured takes at least so long now.
    faults.step(millis(120));
    client.put(Put::new("slow/apply", "value")).await.unwrap();
    client.get(Get::key("slow/range")).await.unwrap();
    let compare = Compare::version(Span::key("slow/txn"), Relation::Equal, 0);
    let txn = Txn::new().when(compare).then(Get::key("slow/txn"));
    client.txn(txn).await.unwrap();
    faults.step(Duration::ZERO);
    let message = "apply request took too long";
    for (prefix, request) in [
        ("", "slow/apply"),
        ("read-only range ", "slow/range"),
        ("read-only txn ", "compare:1"),
    ] {
        let line = line(message, |line| {
            let text = line["request"].as_str().unwrap();
            line["prefix"] == prefix && text.contains(request)
        })
        .await;
        assert_eq!(line["level"], "warn");
        assert_eq!(line["expected-duration"], "100ms");
        assert!(seconds(&line["took"]) >= 0.12, "{line}");
        if prefix == "read-only range " {
            assert_eq!(line["request"], "key:\"slow/range\"");
            let response = line["response"].as_str().unwrap();
            assert!(response.starts_with("range_response_count:0 size:"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_is_told_of_when_all_of_it_is_read() {
    let faults = Faults::default();
    let (_member, client) = start(&faults, |config| {
        config.warning_apply_duration = Duration::from_nanos(1);
    })
    .await;
    for key in 0..30 {
        let put = Put::new(format!("list/{key:02}"), vec![b'v'; 50_000]);
        client.put(put).await.unwrap();
    }
    let list = client.get(Get::prefix("list/")).await.unwrap();
    assert_eq!(list.kvs.len(), 30);
    let line = line("apply request took too long", |line| {
        line["prefix"] == "read-only range " && line["request"].as_str().unwrap().contains("list/")
    })
    .await;
    let response = line["response"].as_str().unwrap();
    let size = response.strip_prefix("range_response_count:30 size:");
    assert!(size.unwrap().parse::<u64>().unwrap() > 1_500_000);
}

/// Runs a call that waits for the disk, and half a second by the member's clock.
async fn held<T: Send + 'static>(
    faults: &Faults,
    call: impl Future<Output = T> + Send + 'static,
) -> T {
    faults.hold_syncs();
    let call = tokio::spawn(call);
    let waiting = faults.clone();
    tokio::task::spawn_blocking(move || waiting.wait_until_held())
        .await
        .unwrap();
    faults.jump(millis(500));
    faults.release_syncs();
    call.await.unwrap()
}

fn is_trace(line: &Value, operation: &str) {
    assert_eq!(line["level"], "info");
    assert_eq!(line["operation"], operation);
    assert!(line["trace_id"].as_u64().unwrap() <= i32::MAX as u64);
    assert!(seconds(&line["duration"]) >= 0.5, "{line}");
    for field in ["start", "end"] {
        assert!(line[field].as_str().unwrap().starts_with("20"), "{line}");
    }
    let steps = line["steps"].as_array().unwrap();
    assert_eq!(line["step_count"], steps.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_time_of_slow_requests_went_is_told_step_by_step() {
    let faults = Faults::default();
    let (_member, client) = start(&faults, |_| {}).await;
    client.put(Put::new("traced", "v")).await.unwrap();

    let it = client.clone();
    let put = held(
        &faults,
        async move { it.put(Put::new("traced/put", "v")).await },
    )
    .await;
    let revision = put.unwrap().header.unwrap().revision;
    let detail = format!("{{key:traced/put; req_size:15; response_revision:{revision}; }}");
    let of = |detail: String| move |line: &Value| line["detail"] == detail.as_str();
    let put = line("trace", of(detail)).await;
    is_trace(&put, "put");
    let step = put["steps"][0].as_str().unwrap();
    assert!(
        step.starts_with("'process raft request'  (duration: "),
        "{step}"
    );

    let it = client.clone();
    let txn = Txn::new().then(Put::new("traced/txn", "v"));
    let txn = held(&faults, async move { it.txn(txn).await }).await;
    let revision = txn.unwrap().header.unwrap().revision;
    let detail =
        format!("{{read_only:false; number_of_response:1; response_revision:{revision}; }}");
    is_trace(&line("trace", of(detail)).await, "transaction");

    let it = client.clone();
    let compact = held(&faults, async move { it.compact(2, false).await }).await;
    let revision = compact.unwrap().header.unwrap().revision;
    let detail = format!("{{revision:2; response_revision:{revision}; }}");
    is_trace(&line("trace", of(detail)).await, "compact");

    faults.step(millis(200));
    let get = client.get(Get::prefix("traced/")).await.unwrap();
    faults.step(Duration::ZERO);
    let revision = get.header.unwrap().revision;
    let detail = format!(
        "{{range_begin:traced/; range_end:traced0; response_count:2; response_revision:{revision}; }}"
    );
    let range = line("trace", of(detail)).await;
    is_trace(&range, "range");
    let steps: Vec<_> = range["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step.as_str().unwrap().split("  (").next().unwrap())
        .collect();
    assert_eq!(
        steps,
        [
            "'agreement among raft nodes before linearized reading'",
            "'range keys from in-memory index tree'",
            "'assemble the response'"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn quick_requests_leave_no_trace() {
    let faults = Faults::default();
    let (_member, client) = start(&faults, |_| {}).await;
    faults.stop_clock();
    client.put(Put::new("quick", "v")).await.unwrap();
    client.get(Get::key("quick")).await.unwrap();
    faults.go_on();
    let it = client.clone();
    held(&faults, async move { it.put(Put::new("later", "v")).await })
        .await
        .unwrap();
    line("trace", |line| {
        line["detail"].as_str().unwrap().contains("key:later")
    })
    .await;
    let text = std::fs::read_to_string(log()).unwrap();
    assert!(!text.contains("key:quick") && !text.contains("range_begin:quick"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_quota_is_told_of_and_so_is_what_health_says_then() {
    let faults = Faults::default();
    let (member, client) = start(&faults, |config| config.quota_backend_bytes = 2 << 20).await;
    let quota = line("enabled backend quota", |line| {
        line["quota-size-bytes"] == 2 << 20
    })
    .await;
    assert_eq!(quota["quota-size"], "2.1 MB");
    // They all find room when they come; there is none when they are applied.
    faults.hold_syncs();
    let mut puts = Vec::new();
    for key in 0..10 {
        let client = client.clone();
        let put = Put::new(format!("{key}"), vec![b'v'; 300_000]);
        puts.push(tokio::spawn(async move { client.put(put).await }));
    }
    let deadline = Instant::now() + PATIENCE;
    while member.member().unwrap().node().depths().proposal_bytes < 3_000_000 {
        assert!(Instant::now() < deadline, "they were not proposed");
        tokio::time::sleep(POLL).await;
    }
    faults.release_syncs();
    let mut refused = 0;
    for put in puts {
        refused += usize::from(put.await.unwrap().is_err());
    }
    assert!((1..10).contains(&refused), "{refused} of 10 were refused");
    let raised = line("message exceeded backend quota; raising alarm", |_| true).await;
    assert_eq!(raised["level"], "warn");

    let url = member.client_url();
    let answer = tokio::task::spawn_blocking(move || http_get(&url, "/health"))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    line("serving /health false due to an alarm", |line| {
        line["alarm"] == "NOSPACE"
    })
    .await;
    let told = line("/health error", |line| line["status-code"] == 503).await;
    assert_eq!(
        told["output"],
        r#"{"health":"false","reason":"ALARM NOSPACE"}"#
    );
}

fn http_get(url: &str, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut socket = std::net::TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_users_and_roles_are_told_of() {
    let faults = Faults::default();
    let (_member, client) = start(&faults, |config| config.bcrypt_cost = 4).await;
    let by = |name: &'static str, value: &'static str| move |line: &Value| line[name] == value;

    for user in ["root", "op-anna", "op-ben"] {
        client.user_add(user, "secret").await.unwrap();
    }
    let told = line("added a user", by("user-name", "op-anna")).await;
    assert_eq!(
        (&told["level"], &told["logger"]),
        (&"info".into(), &Value::Null)
    );
    client.role_add("op-reader").await.unwrap();
    line("created a role", by("role-name", "op-reader")).await;
    let span = Span::range("op/a", "op/z");
    client
        .role_grant_permission("op-reader", Permission::Read, span.clone())
        .await
        .unwrap();
    let told = line(
        "granted/updated a permission to a user",
        by("user-name", "op-reader"),
    )
    .await;
    assert_eq!(told["permission-name"], "READ");
    assert_eq!(
        (&told["key"], &told["range-end"]),
        (&"op/a".into(), &"op/z".into())
    );

    client.user_grant_role("root", "root").await.unwrap();
    client
        .user_grant_role("op-anna", "op-reader")
        .await
        .unwrap();
    let told = line("granted a role to a user", by("user-name", "op-anna")).await;
    assert_eq!(told["user-roles"], serde_json::json!(["op-reader"]));
    assert_eq!(told["added-role-name"], "op-reader");
    client
        .user_grant_role("op-anna", "op-reader")
        .await
        .unwrap();
    let told = line(
        "ignored grant role request to a user",
        by("user-name", "op-anna"),
    )
    .await;
    assert_eq!(told["level"], "warn");
    assert_eq!(told["duplicate-role-name"], "op-reader");

    client.auth_enable().await.unwrap();
    line("enabled authentication", by("level", "info")).await;
    client.authenticate("op-anna", "wrong").await.unwrap_err();
    line("invalid password", by("user-name", "op-anna")).await;
    let told = line(
        "invalid authentication was requested",
        by("user", "op-anna"),
    )
    .await;
    assert_eq!(
        told["error"],
        "auth: authentication failed, invalid user ID or password"
    );
    client.set_token(Some("no.1")).unwrap();
    client.get(Get::key("x")).await.unwrap_err();
    let told = line("invalid auth token", |_| true).await;
    assert_eq!(told["token-fingerprint"].as_str().unwrap().len(), 12);

    client.set_token(None).unwrap();
    client.authenticate("root", "secret").await.unwrap();
    client.user_delete("root").await.unwrap_err();
    let told = line("cannot delete 'root' user", by("user-name", "root")).await;
    assert_eq!(told["level"], "error");
    client.role_delete("root").await.unwrap_err();
    line("cannot delete 'root' role", by("role-name", "root")).await;
    client.user_revoke_role("root", "root").await.unwrap_err();
    line(
        "'root' user cannot revoke 'root' role",
        by("level", "error"),
    )
    .await;

    client.auth_enable().await.unwrap();
    line(
        "authentication is already enabled; ignored auth enable request",
        by("level", "info"),
    )
    .await;
    client.user_change_password("op-anna", "new").await.unwrap();
    let told = line("changed a password of a user", by("user-name", "op-anna")).await;
    assert_eq!(told["user-roles"], serde_json::json!(["op-reader"]));
    client
        .user_revoke_role("op-anna", "op-reader")
        .await
        .unwrap();
    let told = line("revoked a role from a user", by("user-name", "op-anna")).await;
    assert_eq!(told["old-user-roles"], serde_json::json!(["op-reader"]));
    assert_eq!(told["new-user-roles"], serde_json::json!([]));
    assert_eq!(told["revoked-role-name"], "op-reader");
    client
        .role_revoke_permission("op-reader", span)
        .await
        .unwrap();
    let told = line(
        "revoked a permission on range",
        by("role-name", "op-reader"),
    )
    .await;
    assert_eq!(
        (&told["key"], &told["range-end"]),
        (&"op/a".into(), &"op/z".into())
    );
    client.role_delete("op-reader").await.unwrap();
    line("deleted a role", by("role-name", "op-reader")).await;
    client.user_delete("op-ben").await.unwrap();
    let told = line("deleted a user", by("user-name", "op-ben")).await;
    assert_eq!(told["user-roles"], serde_json::json!([]));
    client.auth_disable().await.unwrap();
    line("disabled authentication", by("level", "info")).await;
}
