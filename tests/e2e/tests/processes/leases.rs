//! Leases: keys go with them, renewals keep them.

use std::time::{Duration, Instant};

use keelson_client::{Get, LeaseState, Put};
use tokio::time::timeout;

use crate::server::{TTL, lease_of_two_keys, server};

/// Far more than anything here takes.
const PATIENCE: Duration = keelson_harness::wait::PATIENCE;
/// How often the end of a lease is looked for.
const POLL: Duration = Duration::from_millis(20);

#[tokio::test]
async fn keys_go_with_their_lease_and_not_before() {
    let server = server();
    let client = server.client().await.unwrap();
    let granted = Instant::now();
    let lease = lease_of_two_keys(&client).await;
    let left = client.lease_time_to_live(lease, true).await.unwrap();
    assert_eq!((left.granted_ttl, left.keys.len()), (TTL, 2));

    while client.get(Get::all()).await.unwrap().count > 0 {
        assert!(granted.elapsed() < PATIENCE, "the keys are still there");
        tokio::time::sleep(POLL).await;
    }
    assert!(granted.elapsed() >= Duration::from_secs(TTL.unsigned_abs()));
    let gone = client.get(Get::all()).await.unwrap();
    assert_eq!(gone.header.unwrap().revision, 4, "both go at one revision");
    assert_eq!(
        client.lease_time_to_live(lease, false).await.unwrap().ttl,
        -1
    );
}

#[tokio::test]
async fn a_lease_that_is_kept_alive_lives_until_it_is_revoked() {
    let server = server();
    let client = server.client().await.unwrap();
    let lease = client.lease_grant(TTL, 4711).await.unwrap();
    client.put(Put::new("k", "x").lease(4711)).await.unwrap();
    let mut alive = client.keep_alive(lease.id).await.unwrap();
    let began = Instant::now();
    // Longer than it would live by itself.
    while began.elapsed() < Duration::from_secs(TTL.unsigned_abs() * 3 / 2) {
        let state = timeout(PATIENCE, alive.changed()).await.unwrap();
        assert!(
            matches!(state, LeaseState::Alive { ttl: TTL, .. }),
            "{state:?}"
        );
    }
    assert_eq!(client.get(Get::key("k")).await.unwrap().count, 1);
    assert_eq!(client.lease_list().await.unwrap().leases.len(), 1);
    client.lease_revoke(lease.id).await.unwrap();
    let end = timeout(PATIENCE, alive.ended()).await.unwrap();
    assert!(matches!(end, LeaseState::Gone), "{end:?}");
    assert_eq!(client.get(Get::key("k")).await.unwrap().count, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_kept_alive_across_a_restart() {
    let mut server = server();
    let client = server.client().await.unwrap();
    let lease = client.lease_grant(60, 0).await.unwrap();
    let short = client.lease_grant(2 * TTL, 0).await.unwrap();
    client
        .put(Put::new("k", "x").lease(lease.id))
        .await
        .unwrap();
    let mut alive = client.keep_alive(short.id).await.unwrap();
    server.kill().unwrap();
    server.restart().unwrap();
    let left = client.lease_time_to_live(lease.id, true).await.unwrap();
    assert_eq!((left.granted_ttl, &left.keys[0][..]), (60, &b"k"[..]));
    for _ in 0..2 {
        let state = timeout(PATIENCE, alive.changed()).await.unwrap();
        assert!(matches!(state, LeaseState::Alive { .. }), "{state:?}");
    }
}
