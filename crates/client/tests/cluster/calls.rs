//! Which endpoint a call goes to, and where it goes on.

use h2::Reason;
use keelson_client::etcdserverpb as pb;
use keelson_client::{Client, Code, Error, Get, Put};
use std::time::Duration;

use crate::fake::{Fake, urls};
use crate::{Count, all_connected, counts, soon};

async fn counting(count: &Count) -> Fake {
    let count = count.clone();
    Fake::start(move |call| counts(count.clone(), call)).await
}

#[tokio::test]
async fn calls_go_to_the_endpoints_in_turn() {
    let seen = [Count::default(), Count::default(), Count::default()];
    let mut fakes = Vec::new();
    for count in &seen {
        fakes.push(counting(count).await);
    }
    let client = soon(crate::connect(&urls(&fakes))).await.unwrap();
    all_connected(&client, &seen).await;
    let before: Vec<usize> = seen.iter().map(Count::get).collect();
    for _ in 0..9 {
        soon(client.get(Get::key("a"))).await.unwrap();
    }
    for (count, before) in seen.iter().zip(before) {
        assert_eq!(count.get(), before + 3);
    }
}

#[tokio::test]
async fn a_read_goes_on_at_the_next_endpoint_when_one_is_not_available() {
    let (refused, served) = (Count::default(), Count::default());
    let counted = refused.clone();
    let first = Fake::start(move |call| {
        counted.add();
        async move { call.fail(Code::Unavailable, "etcdserver: no leader") }
    })
    .await;
    let second = counting(&served).await;
    let fakes = [first, second];
    let client = soon(crate::connect(&urls(&fakes))).await.unwrap();
    all_connected(&client, &[refused, served]).await;
}

#[tokio::test]
async fn a_write_is_never_repeated_after_an_answer() {
    let (refused, served) = (Count::default(), Count::default());
    let counted = refused.clone();
    let first = Fake::start(move |call| {
        counted.add();
        async move { call.fail(Code::Unavailable, "etcdserver: request timed out") }
    })
    .await;
    let second = counting(&served).await;
    let fakes = [first, second];
    let client = soon(crate::connect(&urls(&fakes))).await.unwrap();
    all_connected(&client, &[refused.clone(), served.clone()]).await;
    let before = refused.get() + served.get();
    let mut failed = 0;
    for _ in 0..8 {
        match soon(client.put(Put::new("a", "b"))).await {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.to_string(), "etcdserver: request timed out");
                failed += 1;
            }
        }
    }
    assert_eq!(refused.get() + served.get(), before + 8);
    assert_eq!(failed, 4);
}

#[tokio::test]
async fn a_write_goes_elsewhere_if_it_was_not_sent() {
    let (gone, served) = (Count::default(), Count::default());
    let first = counting(&gone).await;
    let second = counting(&served).await;
    let both = format!("{},{}", first.url(), second.url());
    let client = soon(crate::connect(&both)).await.unwrap();
    all_connected(&client, &[gone.clone(), served.clone()]).await;
    first.stop().await;
    // The connection that has just broken may still take one that is then lost.
    let mut lost = 0;
    for _ in 0..10 {
        match soon(client.put(Put::new("a", "b"))).await {
            Ok(_) => {}
            Err(Error::Broken { endpoint, .. }) if both.starts_with(&endpoint) => lost += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(lost <= 1, "{lost} writes were lost");
}

#[tokio::test]
async fn a_write_goes_elsewhere_if_the_server_says_it_did_not_begin_with_it() {
    for refuses in [true, false] {
        let (refused, served) = (Count::default(), Count::default());
        let counted = refused.clone();
        let first = Fake::start(move |call| {
            let count = counted.clone();
            async move {
                if call.method() == "Put" {
                    count.add();
                    call.reset(if refuses {
                        Reason::REFUSED_STREAM
                    } else {
                        Reason::INTERNAL_ERROR
                    });
                } else {
                    counts(count, call).await;
                }
            }
        })
        .await;
        let second = counting(&served).await;
        let fakes = [first, second];
        let client = soon(crate::connect(&urls(&fakes))).await.unwrap();
        all_connected(&client, &[refused.clone(), served.clone()]).await;
        let mut failed = 0;
        for _ in 0..4 {
            if let Err(error) = soon(client.put(Put::new("a", "b"))).await {
                assert!(matches!(error, Error::Broken { .. }), "{error}");
                assert!(!error.is_not_sent());
                failed += 1;
            }
        }
        assert_eq!(failed, if refuses { 0 } else { 2 });
    }
}

#[tokio::test]
async fn a_connection_that_breaks_under_a_write_is_an_error_that_names_the_endpoint() {
    let first = Fake::start(|call| call.break_connection()).await;
    let client = soon(crate::connect(&first.url())).await.unwrap();
    let error = soon(client.put(Put::new("a", "b"))).await.unwrap_err();
    let Error::Broken {
        endpoint,
        unprocessed,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(*endpoint, first.url());
    assert!(!unprocessed);
    assert!(error.to_string().contains(&first.url()), "{error}");
    assert_eq!(error.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_call_that_nobody_can_take_names_every_endpoint() {
    let one = Fake::start(|call| call.hang()).await;
    let two = Fake::start(|call| call.hang()).await;
    let (first, second) = (one.url(), two.url());
    one.stop().await;
    two.stop().await;
    let both = format!("{first},{second}");
    let mut options = crate::patient();
    options.call_timeout = Duration::from_millis(200);
    let refused = soon(Client::connect_with(&both, options.clone()))
        .await
        .unwrap_err();
    let lazy = Client::lazy(&both, options.clone()).unwrap();
    let waited = soon(lazy.put(Put::new("a", "b"))).await.unwrap_err();
    for error in [refused, waited] {
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        assert!(error.is_not_sent());
        let text = error.to_string();
        assert!(text.contains(&first) && text.contains(&second), "{text}");
    }
    let lone = Client::lazy(&first, options).unwrap();
    let error = soon(lone.get(Get::key("a"))).await.unwrap_err();
    assert!(matches!(error, Error::Connect { endpoint, .. } if endpoint == first));
}

#[tokio::test]
async fn a_call_that_is_not_answered_names_the_endpoint() {
    let fake = Fake::start(|call| call.hang()).await;
    let mut options = crate::patient();
    options.call_timeout = Duration::from_millis(200);
    let client = soon(Client::connect_with(&fake.url(), options))
        .await
        .unwrap();
    let error = soon(client.get(Get::key("a"))).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { endpoint, .. } if endpoint == fake.url()));
}

#[tokio::test]
async fn an_endpoint_that_comes_back_is_used_again() {
    let (restarted, stays) = (Count::default(), Count::default());
    let first = counting(&restarted).await;
    let second = counting(&stays).await;
    let both = format!("{},{}", first.url(), second.url());
    let client = soon(crate::connect(&both)).await.unwrap();
    all_connected(&client, &[restarted.clone(), stays.clone()]).await;
    let port = first.port();
    first.stop().await;
    for _ in 0..4 {
        soon(client.get(Get::key("a"))).await.unwrap();
    }
    let count = restarted.clone();
    let _first = Fake::start_at(port, move |call| counts(count.clone(), call)).await;
    all_connected(&client, &[restarted, stays]).await;
}

#[tokio::test]
async fn a_call_waits_for_an_endpoint_that_starts_meanwhile() {
    let fake = Fake::start(|call| call.hang()).await;
    let (port, url) = (fake.port(), fake.url());
    fake.stop().await;
    let client = Client::lazy(&url, crate::patient()).unwrap();
    let write = client.put(Put::new("a", "b"));
    tokio::pin!(write);
    // Until it has found that nobody listens.
    let early = tokio::time::timeout(Duration::from_millis(100), &mut write).await;
    assert!(early.is_err());
    let count = Count::default();
    let served = count.clone();
    let _fake = Fake::start_at(port, move |call| counts(served.clone(), call)).await;
    soon(write).await.unwrap();
    assert_eq!(count.get(), 1);
}

#[tokio::test]
async fn a_client_of_one_endpoint_asks_no_other() {
    let seen = [Count::default(), Count::default()];
    let fakes = [counting(&seen[0]).await, counting(&seen[1]).await];
    let client = soon(crate::connect(&urls(&fakes))).await.unwrap();
    all_connected(&client, &seen).await;
    let before = seen[0].get();
    let only = client.only(fakes[1].url().parse().unwrap());
    for _ in 0..4 {
        soon(only.get(Get::key("a"))).await.unwrap();
    }
    assert_eq!(seen[0].get(), before);
    assert_eq!(only.endpoints().len(), 1);
}

#[tokio::test]
async fn only_a_client_that_requires_a_leader_says_so() {
    let fake = Fake::start(|call| async move {
        let asked = call.metadata("hasleader") == Some("true");
        call.answer(&pb::RangeResponse {
            count: i64::from(asked),
            ..pb::RangeResponse::default()
        });
    })
    .await;
    let client = soon(crate::connect(&fake.url())).await.unwrap();
    let plain = soon(client.get(Get::key("a"))).await.unwrap();
    let requires = client.with_require_leader(true);
    let asked = soon(requires.get(Get::key("a"))).await.unwrap();
    assert_eq!((plain.count, asked.count), (0, 1));
}
