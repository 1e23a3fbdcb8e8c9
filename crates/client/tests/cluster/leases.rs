//! Leases that are kept alive at another endpoint.

use keelson_client::etcdserverpb as pb;
use keelson_client::{Code, LeaseState};

use crate::fake::{Call, Fake, urls};
use crate::{Count, soon};

/// The time to live of all leases here, in seconds.
const TTL: i64 = 3;

/// Renews whatever comes, and counts.
async fn renews(count: Count, mut call: Call) {
    let mut answers = call.begin();
    while let Some(request) = call.message::<pb::LeaseKeepAliveRequest>().await {
        count.add();
        answers.send(&pb::LeaseKeepAliveResponse {
            header: None,
            id: request.id,
            ttl: TTL,
        });
    }
}

/// Waits until one of `counts` has gone up `times` more.
async fn renewed(keep_alive: &mut keelson_client::KeepAlive, count: &Count, times: usize) {
    let goal = count.get() + times;
    soon(async {
        while count.get() < goal {
            let state = keep_alive.changed().await;
            assert!(matches!(state, LeaseState::Alive { .. }), "{state:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_lease_lives_on_when_its_endpoint_stops() {
    let counts = [Count::default(), Count::default()];
    let mut fakes = Vec::new();
    for count in &counts {
        let count = count.clone();
        fakes.push(Some(
            Fake::start(move |call| renews(count.clone(), call)).await,
        ));
    }
    let both = fakes.iter().flatten().map(Fake::url).collect::<Vec<_>>();
    let client = soon(crate::connect(&both.join(","))).await.unwrap();
    let mut keep_alive = soon(client.keep_alive(7)).await.unwrap();
    let serving = usize::from(counts[0].get() == 0);
    fakes[serving].take().unwrap().stop().await;
    renewed(&mut keep_alive, &counts[1 - serving], 1).await;
}

#[tokio::test]
async fn a_lease_lives_on_when_its_endpoint_hangs() {
    let alive = Count::default();
    let hung = Count::default();
    let count = hung.clone();
    // Renews once and then says nothing, with its connection open.
    let first = Fake::start(move |mut call| {
        let count = count.clone();
        async move {
            let mut answers = call.begin();
            let request: pb::LeaseKeepAliveRequest = call.message().await.unwrap();
            if count.add() == 1 {
                answers.send(&pb::LeaseKeepAliveResponse {
                    header: None,
                    id: request.id,
                    ttl: TTL,
                });
            }
            call.hang().await;
        }
    })
    .await;
    let client = soon(crate::connect(&first.url())).await.unwrap();
    let mut keep_alive = soon(client.keep_alive(7)).await.unwrap();
    assert_eq!(hung.get(), 1);
    let count = alive.clone();
    let second = Fake::start(move |call| renews(count.clone(), call)).await;
    client
        .set_endpoints(vec![
            first.url().parse().unwrap(),
            second.url().parse().unwrap(),
        ])
        .unwrap();
    renewed(&mut keep_alive, &alive, 1).await;
}

#[tokio::test]
async fn a_member_without_a_leader_does_not_end_a_lease() {
    let alive = Count::default();
    let first = Fake::start(|call| async move {
        call.fail(Code::Unavailable, "etcdserver: no leader");
    })
    .await;
    let learner = Fake::start(|call| async move {
        call.fail(
            Code::FailedPrecondition,
            "etcdserver: rpc not supported for learner",
        );
    })
    .await;
    let count = alive.clone();
    let third = Fake::start(move |call| renews(count.clone(), call)).await;
    let fakes = [first, learner, third];
    let client = soon(crate::connect(&urls(&fakes))).await.unwrap();
    let mut keep_alive = soon(client.keep_alive(7)).await.unwrap();
    renewed(&mut keep_alive, &alive, 1).await;
}

#[tokio::test]
async fn a_lease_that_is_gone_ends() {
    let fake = Fake::start(|mut call| async move {
        let mut answers = call.begin();
        let mut ttl = TTL;
        while let Some(request) = call.message::<pb::LeaseKeepAliveRequest>().await {
            answers.send(&pb::LeaseKeepAliveResponse {
                header: None,
                id: request.id,
                ttl,
            });
            ttl = 0;
        }
    })
    .await;
    let client = soon(crate::connect(&fake.url())).await.unwrap();
    let mut keep_alive = soon(client.keep_alive(7)).await.unwrap();
    let end = soon(keep_alive.ended()).await;
    assert!(matches!(end, LeaseState::Gone), "{end:?}");
}
