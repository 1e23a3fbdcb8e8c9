//! What is left after a stop and after a kill.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keelson_client::{Client, Delete, Get, Put, Txn, Watch};
use keelson_e2e::patient;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::server::server;

/// Far more than anything here takes.
const PATIENCE: Duration = keelson_harness::wait::PATIENCE;
const WRITERS: usize = 8;
/// Kills when `KEELSON_E2E_ROUNDS` does not say otherwise.
const ROUNDS: u64 = 4;
/// Acknowledged writes of a round before the kill.
const WRITES: u64 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_keys_history_leases_users_and_the_hash() {
    let mut server = server();
    let client = server.client().await.unwrap();
    for number in 0..200 {
        let key = format!("k/{:02}", number % 50);
        client
            .put(Put::new(key, format!("{number}")))
            .await
            .unwrap();
    }
    let both = Txn::new()
        .then(Put::new("x", "1"))
        .then(Delete::key("k/07"));
    client.txn(both).await.unwrap();
    client.lease_grant(1000, 5).await.unwrap();
    client.put(Put::new("leased", "1").lease(5)).await.unwrap();
    client.user_add_without_password("ann").await.unwrap();
    client.compact(100, true).await.unwrap();
    let now = client.get(Get::all()).await.unwrap();
    let then = client.get(Get::all().revision(120)).await.unwrap();
    let hash = client.hash_kv(0).await.unwrap();
    let before = server.stop().unwrap();
    assert!(
        before.code() == Some(0) || before.signal() == Some(15),
        "{before:?}"
    );

    server.restart().unwrap();
    let again = client.get(Get::all()).await.unwrap();
    assert_eq!((&again.kvs, again.count), (&now.kvs, now.count));
    assert_eq!(
        client.get(Get::all().revision(120)).await.unwrap().kvs,
        then.kvs
    );
    let rehash = client.hash_kv(0).await.unwrap();
    assert_eq!(
        (rehash.hash, rehash.hash_revision),
        (hash.hash, hash.hash_revision)
    );
    let lease = client.lease_time_to_live(5, true).await.unwrap();
    assert_eq!((lease.granted_ttl, lease.keys.len()), (1000, 1));
    assert_eq!(client.user_list().await.unwrap().users, ["ann"]);
    let next = client.put(Put::new("k", "v")).await.unwrap();
    assert_eq!(
        next.header.unwrap().revision,
        now.header.unwrap().revision + 1
    );
}

struct Written {
    key: String,
    revision: i64,
}

/// Writes until an error; gives what was acknowledged, in order.
async fn write(
    client: Client,
    writer: usize,
    round: u64,
    count: Arc<AtomicU64>,
    enough: Arc<Notify>,
) -> Vec<Written> {
    let mut written = Vec::new();
    for number in 0_u64.. {
        let key = format!("load/{round}/{writer}/{number}");
        let Ok(answer) = client.put(Put::new(key.clone(), key.clone())).await else {
            break;
        };
        let revision = answer.header.unwrap().revision;
        written.push(Written { key, revision });
        if count.fetch_add(1, Ordering::Relaxed) + 1 == WRITES * (round + 1) {
            enough.notify_one();
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_under_load_loses_nothing_acknowledged_and_reorders_nothing() {
    let rounds = std::env::var("KEELSON_E2E_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let mut server = server();
    let mut all = Vec::new();
    for round in 0..rounds {
        let enough = Arc::new(Notify::new());
        let count = Arc::new(AtomicU64::new(WRITES * round));
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            // A put that finds no connection waits for one, which does not come until all writers have ended.
            let client = server.client().await.unwrap();
            let client = client.with_timeout(PATIENCE / 8);
            let load = write(
                client,
                writer,
                round,
                Arc::clone(&count),
                Arc::clone(&enough),
            );
            writers.push(tokio::spawn(load));
        }
        timeout(PATIENCE, enough.notified()).await.unwrap();
        server.kill().unwrap();
        for writer in writers {
            let written = timeout(PATIENCE, writer).await.unwrap().unwrap();
            assert!(written.is_sorted_by(|a, b| a.revision < b.revision));
            all.extend(written);
        }
        server.restart().unwrap();
        check(&server.client().await.unwrap(), &all).await;
    }
}

/// Every acknowledged write is there under its revision, and history has no hole.
async fn check(client: &Client, acknowledged: &[Written]) {
    let now = client.get(Get::all()).await.unwrap();
    let current = now.header.unwrap().revision;
    for written in acknowledged {
        let at = now
            .kvs
            .binary_search_by(|kv| kv.key[..].cmp(written.key.as_bytes()))
            .unwrap_or_else(|_| panic!("{} is lost", written.key));
        assert_eq!(
            now.kvs[at].mod_revision, written.revision,
            "{}",
            written.key
        );
    }
    // Each key was written once, so together they are all of history.
    let mut revisions: Vec<_> = now.kvs.iter().map(|kv| kv.mod_revision).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (2..=current).collect::<Vec<_>>());
    let mut seen = VecDeque::new();
    let from_the_first = Watch::all().start_revision(1);
    let mut history = client.watch(from_the_first).await.unwrap();
    for revision in 2..=current {
        if seen.is_empty() {
            let batch = timeout(PATIENCE, history.next()).await.unwrap();
            seen.extend(batch.unwrap().unwrap().events);
        }
        let event = seen.pop_front().unwrap().kv.unwrap();
        assert_eq!(event.mod_revision, revision, "history has its order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_end_in_time_when_nobody_answers() {
    let mut server = server();
    let mut options = patient();
    options.call_timeout = Duration::from_millis(300);
    let client = Client::connect_with(&server.client_url(), options)
        .await
        .unwrap();
    server.kill().unwrap();
    let began = std::time::Instant::now();
    let read = client.get(Get::key("k")).await.unwrap_err();
    let write = client.put(Put::new("k", "v")).await.unwrap_err();
    assert!(began.elapsed() < PATIENCE, "{read} {write}");
    server.restart().unwrap();
    assert_eq!(
        client
            .with_timeout(PATIENCE)
            .get(Get::key("k"))
            .await
            .unwrap()
            .count,
        0
    );
}
