//! Several endpoints: turns, failures, and what goes on elsewhere.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where it fails"
)]

mod calls;
#[path = "../fake/mod.rs"]
mod fake;
mod leases;
mod members;
mod security;
mod tokens;
mod watches;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keelson_client::etcdserverpb as pb;
use keelson_client::{Client, Error, Get, Options};

use fake::Call;

/// The longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// `work`, which must end.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("it ends in time")
}

/// What clients are made with where no time-out is meant to end a call.
fn patient() -> Options {
    let mut options = Options::default();
    options.connect_timeout = PATIENCE;
    options.call_timeout = PATIENCE;
    options
}

async fn connect(endpoints: &str) -> Result<Client, Error> {
    Client::connect_with(endpoints, patient()).await
}

/// How often something happened.
#[derive(Clone, Default)]
struct Count(Arc<AtomicUsize>);

impl Count {
    fn add(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// Answers every call with success and nothing in it, and counts.
async fn counts(count: Count, call: Call) {
    count.add();
    match call.method() {
        "Range" => call.answer(&pb::RangeResponse::default()),
        "Put" => call.answer(&pb::PutResponse::default()),
        other => panic!("unexpected call of {other}"),
    }
}

/// Reads until each of `counts` has gone up: each endpoint is connected.
async fn all_connected(client: &Client, counts: &[Count]) {
    let before: Vec<usize> = counts.iter().map(Count::get).collect();
    soon(async {
        while counts
            .iter()
            .zip(&before)
            .any(|(count, before)| count.get() == *before)
        {
            client.get(Get::key("a")).await.unwrap();
        }
    })
    .await;
}
