//! Watches: what they see, how they end, that they survive the connection.

use std::time::Duration;

use keelson_client::mvccpb::event::EventType;
use keelson_client::{ApiError, Client, Delete, Error, Get, Put, Txn, Watch, Watcher};
use keelson_e2e::patient;
use tokio::time::timeout;

use crate::server::{lease_of_two_keys, server, write_and_compact};

/// Far more than anything here takes.
const PATIENCE: Duration = keelson_harness::wait::PATIENCE;

/// Reads events until one is at `last`.
async fn revisions_until(watcher: &mut Watcher, last: i64) -> Vec<i64> {
    let mut revisions = Vec::new();
    while revisions.last() != Some(&last) {
        let batch = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
        for event in batch.unwrap().events {
            revisions.push(event.kv.unwrap().mod_revision);
        }
    }
    revisions
}

#[tokio::test]
async fn a_watch_sees_whole_revisions_with_what_was_before() {
    let server = server();
    let client = server.client().await.unwrap();
    client.put(Put::new("w/a", "1")).await.unwrap();
    let past = Watch::prefix("w/").start_revision(2).prev_kv();
    let mut watcher = client.watch(past).await.unwrap();
    let mut deletions = client.watch(Watch::prefix("w/").no_puts()).await.unwrap();
    let first = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
    let first = first.unwrap();
    assert_eq!(
        (first.events.len(), first.events[0].prev_kv.is_none()),
        (1, true)
    );
    let txn = Txn::new()
        .then(Delete::key("w/a"))
        .then(Put::new("w/b", "2"));
    client.txn(txn).await.unwrap();

    let second = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
    let second = second.unwrap().events;
    assert_eq!(second.len(), 2);
    assert_eq!(second[0].prev_kv.as_ref().unwrap().value, "1");
    let only = timeout(PATIENCE, deletions.next()).await.unwrap().unwrap();
    let only = only.unwrap().events;
    assert_eq!((only.len(), only[0].r#type()), (1, EventType::Delete));
    watcher.cancel().await.unwrap();
}

#[tokio::test]
async fn a_watch_that_begins_before_what_is_kept_is_told_what_is_kept() {
    let server = server();
    let client = server.client().await.unwrap();
    write_and_compact(&client).await;
    let mut late = client
        .watch(Watch::key("k").start_revision(2))
        .await
        .unwrap();
    let Err(Error::WatchCompacted {
        compact_revision, ..
    }) = late.next().await
    else {
        panic!("a watch began before what is kept");
    };
    assert_eq!(compact_revision, 3);
    assert!(late.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_watch_sees_the_keys_go_with_their_lease_at_one_revision() {
    let server = server();
    let client = server.client().await.unwrap();
    lease_of_two_keys(&client).await;
    let mut watcher = client.watch(Watch::all()).await.unwrap();
    let batch = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
    let events = batch.unwrap().events;
    assert_eq!(events.len(), 2);
    assert!(
        events
            .iter()
            .all(|event| event.r#type() == EventType::Delete)
    );
    assert_eq!(client.get(Get::all()).await.unwrap().count, 0);
}

#[tokio::test]
async fn a_watch_that_is_not_permitted_says_so() {
    let server = server();
    let root = server.client().await.unwrap();
    root.user_add("root", "secret").await.unwrap();
    root.role_add("root").await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.user_add("bob", "bob").await.unwrap();
    root.auth_enable().await.unwrap();
    let mut options = patient();
    options.user = Some(("bob".to_owned(), "bob".to_owned()));
    let bob = Client::connect_with(&server.client_url(), options)
        .await
        .unwrap();
    let denied = bob.watch(Watch::all()).await.unwrap_err();
    assert_eq!(denied.api(), Some(ApiError::PermissionDenied));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_resumes_across_restarts_without_gap_or_duplicate() {
    let mut server = server();
    let client = server.client().await.unwrap();
    let mut watcher = client.watch(Watch::prefix("w/")).await.unwrap();
    let mut seen = Vec::new();
    for round in 0..3 {
        let mut last = 0;
        for number in 0..20 {
            let put = Put::new(format!("w/{round}/{number}"), "x");
            last = client.put(put).await.unwrap().header.unwrap().revision;
        }
        if round == 1 {
            // These are read only after the restart.
            server.kill().unwrap();
            server.restart().unwrap();
        }
        seen.extend(revisions_until(&mut watcher, last).await);
        if round == 0 {
            server.stop().unwrap();
            server.restart().unwrap();
        }
    }
    assert_eq!(seen, (2..62).collect::<Vec<_>>());
    watcher.cancel().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_moves_the_point_from_which_a_watch_resumes() {
    let mut server = server();
    let client = server.client().await.unwrap();
    let mut watcher = client.watch(Watch::key("watched")).await.unwrap();
    for _ in 0..5 {
        client.put(Put::new("other", "x")).await.unwrap();
    }
    assert_eq!(watcher.next_revision(), 2);
    watcher.request_progress().await.unwrap();
    let notice = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
    assert_eq!(notice.unwrap().revision, 6);
    assert_eq!(watcher.next_revision(), 7);
    // What lies before that point may go: the watch does not need it.
    client.compact(6, true).await.unwrap();
    server.kill().unwrap();
    server.restart().unwrap();
    client.put(Put::new("watched", "x")).await.unwrap();
    assert_eq!(revisions_until(&mut watcher, 7).await, [7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_watcher_sees_every_revision_in_order_while_many_write() {
    const WRITERS: usize = 16;
    const WRITES: usize = 40;
    const WATCHERS: usize = 20;
    let server = server();
    let client = server.client().await.unwrap();
    let mut watchers = Vec::new();
    let last = i64::try_from(WRITERS * WRITES).unwrap() + 1;
    for _ in 0..WATCHERS {
        let mut watcher = client.watch(Watch::all()).await.unwrap();
        let seen = async move { revisions_until(&mut watcher, last).await };
        watchers.push(tokio::spawn(seen));
    }
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let client = client.clone();
        writers.push(tokio::spawn(async move {
            for number in 0..WRITES {
                let key = format!("{writer}/{number}");
                client.put(Put::new(key, "x")).await.unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    for watcher in watchers {
        assert_eq!(watcher.await.unwrap(), (2..=last).collect::<Vec<_>>());
    }
}
