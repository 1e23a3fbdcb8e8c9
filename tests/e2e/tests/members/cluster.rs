//! Several members as one: they survive the loss of any of them, grow and shrink while they serve, and
//! clients go on meanwhile.

use std::time::Duration;

use keelson_client::{ApiError, Client, Error, Get, LeaseState, Put, Watch, Watcher};
use keelson_e2e::counted;
use keelson_harness::{TestCluster, wait};
use keelson_server::config::Config;

/// The longest that anything may take.
const PATIENCE: Duration = keelson_harness::wait::PATIENCE;

/// Of leases, in seconds: longer than an election and a few calls take on a machine that has other work.
const TTL: i64 = 20;

/// For members of which nobody is to be elected because the machine has other work.
fn unhurried(config: &mut Config) {
    config.heartbeat_ms = 500;
    config.election_ms = 5000;
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("it ends in time")
}

/// Writes until it is acknowledged: what is not known to be written is written again.
async fn write(client: &Client, key: &str, value: &str) {
    soon(async {
        loop {
            match client.put(Put::new(key.to_owned(), value.to_owned())).await {
                Ok(_) => return,
                Err(
                    error @ (Error::Status { .. } | Error::Broken { .. } | Error::TimedOut { .. }),
                ) => {
                    // The leader may have gone between.
                    assert!(
                        matches!(
                            error.code(),
                            keelson_client::Code::Unavailable
                                | keelson_client::Code::DeadlineExceeded
                        ),
                        "{error}"
                    );
                }
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
}

async fn value(client: &Client, key: &str) -> String {
    let answer = soon(client.get(Get::key(key.to_owned()))).await.unwrap();
    String::from_utf8(answer.kvs[0].value.to_vec()).unwrap()
}

/// The hash of all keys is the same on all members that run.
async fn all_equal(cluster: &TestCluster) {
    let mut hashes = Vec::new();
    let running = (0..cluster.len()).filter(|it| cluster.member(*it).is_some());
    let client = cluster.client().await.unwrap();
    let revision = soon(client.get(Get::key("none"))).await.unwrap();
    let revision = revision.header.unwrap().revision;
    for number in running {
        let client = cluster.client_of(number).await.unwrap();
        // A linearizable read: the member is at least there.
        soon(client.get(Get::key("none"))).await.unwrap();
        let hash = soon(client.hash_kv(revision)).await.unwrap();
        hashes.push((hash.hash, hash.compact_revision, hash.hash_revision));
    }
    assert!(
        hashes.windows(2).all(|pair| pair[0] == pair[1]),
        "{hashes:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_survive_the_loss_of_any_one() {
    let mut cluster = TestCluster::start(3).unwrap();
    let client = cluster.client().await.unwrap();
    for lost in 0..3 {
        let before = format!("before {lost}");
        write(&client, "key", &before).await;
        cluster.kill(lost);
        assert_eq!(value(&client, "key").await, before);
        write(&client, "key", &format!("without {lost}")).await;
        cluster.restart(lost).unwrap();
        let back = cluster.client_of(lost).await.unwrap();
        assert_eq!(value(&back, "key").await, format!("without {lost}"));
    }
    all_equal(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_a_leader_takes_with_it_says_why_it_timed_out() {
    let cluster = TestCluster::start(3).unwrap();
    let why = [
        "etcdserver: request timed out, possibly due to previous leader failure",
        "etcdserver: request timed out, possibly due to connection lost",
    ];
    // Should the leader step down before the write reaches it, that one is kept for the next leader; should
    // there be none for long, it ends with its time. Then the next one tells.
    let mut others = Vec::new();
    for _ in 0..20 {
        let old = cluster.wait_for_leader().unwrap();
        let client = cluster.client_of(old).await.unwrap();
        soon(client.get(Get::key("none"))).await.unwrap();
        cluster.isolate(old);
        let put = tokio::spawn(async move { client.put(Put::new("lost", "value")).await });
        wait::until(|| cluster.leader().filter(|leader| *leader != old)).unwrap();
        cluster.heal();
        match soon(put).await.unwrap() {
            Err(error) if why.contains(&&*error.to_string()) => return,
            other => others.push(other),
        }
    }
    panic!("no write was lost with its leader: {others:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_hands_over() {
    let mut cluster = TestCluster::start_with(3, unhurried).unwrap();
    let leader = cluster.wait_for_leader().unwrap();
    let term = cluster.member(leader).unwrap().node().status().term;
    // It hands over to somebody that it is connected with.
    wait::until(|| {
        let node = cluster.member(leader)?.node();
        let config = node.config();
        (config.initial_cluster.len() == 3 && node.status().applied.0 > 5).then_some(())
    })
    .unwrap();
    // A watch is open meanwhile, which is given time to end.
    let client = cluster.client_of(leader).await.unwrap();
    let _watcher = soon(client.watch(Watch::key("key"))).await.unwrap();
    cluster.stop(leader);
    let next = cluster.leader().expect("another member leads at once");
    assert_ne!(next, leader);
    let after = cluster.member(next).unwrap().node().status().term;
    assert_eq!(after.0, term.0 + 1, "nobody had to wait for an election");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_and_shrinks_under_load() {
    let mut cluster = TestCluster::start_with(1, unhurried).unwrap();
    let client = cluster.client().await.unwrap();
    let load = {
        let client = client.clone();
        tokio::spawn(async move {
            for number in 0_u64.. {
                write(&client, &format!("load/{}", number % 100), "value").await;
            }
        })
    };
    let room = cluster.make_room().unwrap();
    let number = room.number();
    let added = soon(client.member_add(vec![room.peer_url().to_owned()], true)).await;
    let id = added.unwrap().member.unwrap().id;
    cluster.join(room, &[0]).unwrap();
    let learner = cluster.member(number).unwrap();
    assert!(learner.node().status().is_learner);
    // It can be promoted once it has caught up; until then the leader says so.
    soon(async {
        while let Err(error) = client.member_promote(id).await {
            assert_eq!(
                error.to_string(),
                "etcdserver: can only promote a learner member which is in sync with leader"
            );
        }
    })
    .await;
    let members = soon(client.member_list()).await.unwrap().members;
    assert_eq!(members.iter().filter(|it| !it.is_learner).count(), 2);
    // The leader knows it first, and the member refuses what a learner may not do until it does.
    wait::until(|| {
        let learner = cluster.member(number)?.node().status().is_learner;
        (!learner).then_some(())
    })
    .unwrap();
    let grown = cluster.client_of(number).await.unwrap();
    write(&grown, "from the new one", "yes").await;
    load.abort();
    all_equal(&cluster).await;
    // One of two may go once the two have known each other for five seconds.
    soon(async {
        while let Err(error) = client.member_remove(id).await {
            assert_eq!(error.to_string(), "etcdserver: unhealthy cluster");
        }
    })
    .await;
    let members = soon(client.member_list()).await.unwrap().members;
    assert_eq!(members.len(), 1);
    wait::until(|| cluster.member(number)?.is_removed().then_some(())).unwrap();
    assert_eq!(value(&client, "from the new one").await, "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_cut_off_refuses_and_comes_back() {
    let cluster = TestCluster::start(3).unwrap();
    let leader = cluster.wait_for_leader().unwrap();
    let client = cluster.client().await.unwrap();
    write(&client, "key", "before").await;
    cluster.isolate(leader);
    wait::until(|| {
        let led = |it: usize| it != leader && cluster.member(it).unwrap().node().is_leader();
        (0..3).any(led).then_some(())
    })
    .unwrap();
    wait::until(|| {
        let node = cluster.member(leader)?.node();
        (!node.has_leader()).then_some(())
    })
    .unwrap();
    let alone = cluster.client_of(leader).await.unwrap();
    let alone = alone.with_require_leader(true);
    let error = soon(alone.put(Put::new("key", "alone"))).await.unwrap_err();
    assert_eq!(error.to_string(), "etcdserver: no leader");
    // Whoever requires a leader goes on with the others.
    let client = client.with_require_leader(true);
    write(&client, "key", "after").await;
    cluster.heal();
    let back = cluster.client_of(leader).await.unwrap();
    soon(async { while back.get(Get::key("key")).await.is_err() {} }).await;
    assert_eq!(value(&back, "key").await, "after");
    all_equal(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_misses_nothing_while_members_come_and_go() {
    let mut cluster = TestCluster::start(3).unwrap();
    let client = cluster.client().await.unwrap();
    let mut watcher = soon(client.watch(Watch::prefix("n/"))).await.unwrap();
    let mut written = 0;
    for lost in 0..3 {
        for _ in 0..10 {
            // One key a write, so that one that is written twice shows by its version.
            write(&client, &format!("n/{written}"), "value").await;
            written += 1;
        }
        cluster.kill(lost);
        for _ in 0..10 {
            write(&client, &format!("n/{written}"), "value").await;
            written += 1;
        }
        cluster.restart(lost).unwrap();
    }
    let seen = soon(every(&mut watcher, written)).await;
    let mut sorted = seen.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(seen, sorted, "revisions are in order and each comes once");
}

/// The revisions of a watcher's events, until it has seen so many different keys.
async fn every(watcher: &mut Watcher, keys: usize) -> Vec<i64> {
    let mut seen = std::collections::BTreeSet::new();
    let mut revisions = Vec::new();
    while seen.len() < keys {
        for event in watcher.next().await.unwrap().unwrap().events {
            let kv = event.kv.unwrap();
            seen.insert(kv.key);
            revisions.push(kv.mod_revision);
        }
    }
    revisions
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_kept_alive_through_followers_and_across_leaders() {
    let mut cluster = TestCluster::start(3).unwrap();
    let client = cluster.client().await.unwrap();
    let lease = soon(client.lease_grant(TTL, 0)).await.unwrap().id;
    let put = Put::new("held", "value").lease(lease);
    soon(client.put(put)).await.unwrap();
    let leader = cluster.wait_for_leader().unwrap();
    for number in 0..3 {
        let of = cluster.client_of(number).await.unwrap();
        assert_eq!(soon(of.keep_alive_once(lease)).await.unwrap(), TTL);
        let left = soon(of.lease_time_to_live(lease, true)).await.unwrap();
        assert_eq!(left.granted_ttl, TTL);
        assert!((0..=TTL).contains(&left.ttl), "{left:?}");
        assert_eq!(left.keys, ["held"]);
        let gone = soon(of.lease_time_to_live(12345, false)).await.unwrap();
        assert_eq!(gone.ttl, -1);
    }
    let mut keep_alive = soon(client.keep_alive(lease)).await.unwrap();
    cluster.kill(leader);
    // Renewed twice after the leader went.
    for _ in 0..2 {
        let state = soon(keep_alive.changed()).await;
        assert!(matches!(state, LeaseState::Alive { .. }), "{state:?}");
    }
    assert_eq!(value(&client, "held").await, "value");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_for_long_gets_a_snapshot() {
    let mut cluster = TestCluster::start_with(3, |config| {
        unhurried(config);
        config.snapshot_count = 50;
        config.set_flags.push("snapshot-count");
    })
    .unwrap();
    let client = cluster.client().await.unwrap();
    let leader = cluster.wait_for_leader().unwrap();
    let away = (leader + 1) % 3;
    cluster.kill(away);
    let writers: Vec<_> = (0..20)
        .map(|writer| {
            let client = client.clone();
            tokio::spawn(async move {
                for number in 0..300 {
                    write(
                        &client,
                        &format!("k/{}", (300 * writer + number) % 500),
                        "value",
                    )
                    .await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    cluster.restart(away).unwrap();
    let back = cluster.client_of(away).await.unwrap();
    let answer = soon(back.get(Get::prefix("k/"))).await.unwrap();
    assert_eq!(answer.count, 500);
    all_equal(&cluster).await;
}

/// How many calls of a method a member has begun with.
fn begun(cluster: &TestCluster, number: usize, method: &str) -> u64 {
    counted(
        &cluster.client_url(number),
        "grpc_server_started_total",
        method,
    )
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_lags_waits_for_what_made_a_token() {
    let cluster = TestCluster::start_with(3, |config| {
        unhurried(config);
        config.bcrypt_cost = 4;
    })
    .unwrap();
    let leader = cluster.wait_for_leader().unwrap();
    let behind = (leader + 1) % 3;
    let root = cluster.client_of(leader).await.unwrap();
    root.user_add("root", "root's").await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.auth_enable().await.unwrap();
    root.authenticate("root", "root's").await.unwrap();
    root.put(Put::new("key", "value")).await.unwrap();
    // It knows that users are asked for who they are, and knows the first token.
    let other = cluster.client_of(behind).await.unwrap();
    other.authenticate("root", "root's").await.unwrap();
    assert_eq!(value(&other, "key").await, "value");
    // Nobody has reached that index: nobody has given out that token.
    other
        .set_token(Some("abcdefghijklmnop.999999999999"))
        .unwrap();
    let refused = soon(other.get(Get::key("key"))).await.unwrap_err();
    assert_eq!(refused.api(), Some(ApiError::InvalidAuthToken));

    cluster.isolate(behind);
    let token = root.authenticate("root", "root's").await.unwrap();
    other.set_token(Some(&token.token)).unwrap();
    let before = begun(&cluster, behind, "Range");
    let get = Get::key("key").serializable();
    let asked = tokio::spawn(async move { other.get(get).await });
    wait::until(|| (begun(&cluster, behind, "Range") > before).then_some(())).unwrap();
    cluster.heal();
    let answer = soon(asked).await.unwrap().unwrap();
    assert_eq!(answer.kvs[0].value, "value");
}
