//! Endpoints that follow the cluster's members.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelson_client::etcdserverpb as pb;
use keelson_client::{Client, Endpoint, Error};

use crate::fake::Fake;
use crate::soon;

fn member(name: &str, url: &str, is_learner: bool) -> pb::Member {
    pb::Member {
        name: name.to_owned(),
        client_ur_ls: vec![url.to_owned()],
        is_learner,
        ..pb::Member::default()
    }
}

/// A server that names these members.
async fn naming(members: Arc<Mutex<Vec<pb::Member>>>) -> Fake {
    Fake::start(move |call| {
        let members = members.lock().unwrap().clone();
        async move {
            call.answer(&pb::MemberListResponse {
                header: None,
                members,
            });
        }
    })
    .await
}

fn endpoints(urls: &[&str]) -> Vec<Endpoint> {
    urls.iter().map(|url| url.parse().unwrap()).collect()
}

#[tokio::test]
async fn sync_takes_the_voters_that_have_started() {
    let members = Arc::new(Mutex::new(Vec::new()));
    let fake = naming(Arc::clone(&members)).await;
    let url = fake.url();
    let client = soon(crate::connect(&url)).await.unwrap();
    let error = soon(client.sync()).await.unwrap_err();
    assert!(matches!(error, Error::Answer { .. }), "{error}");
    assert_eq!(client.endpoints(), endpoints(&[&url]));
    *members.lock().unwrap() = vec![
        member("one", &url, false),
        member("", "http://127.0.0.1:1", false),
        member("two", "http://127.0.0.1:2", false),
        member("learner", "http://127.0.0.1:3", true),
    ];
    soon(client.sync()).await.unwrap();
    assert_eq!(client.endpoints(), endpoints(&[&url, "http://127.0.0.1:2"]));
    // Only one of them is there, and calls find it.
    soon(client.sync()).await.unwrap();
}

#[tokio::test]
async fn auto_sync_follows_members_that_come_and_go() {
    let members = Arc::new(Mutex::new(Vec::new()));
    let first = naming(Arc::clone(&members)).await;
    let second = naming(Arc::clone(&members)).await;
    *members.lock().unwrap() = vec![member("one", &first.url(), false)];
    let mut options = crate::patient();
    options.auto_sync = Some(Duration::from_millis(1));
    let client = soon(Client::connect_with(&first.url(), options))
        .await
        .unwrap();
    *members.lock().unwrap() = vec![member("two", &second.url(), false)];
    soon(async {
        while client.endpoints() != endpoints(&[&second.url()]) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    first.stop().await;
    soon(client.member_list()).await.unwrap();
}
