//! Watches that go on at another endpoint.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelson_client::etcdserverpb as pb;
use keelson_client::etcdserverpb::watch_request::RequestUnion;
use keelson_client::mvccpb::{Event, KeyValue};
use keelson_client::{Batch, Code, Error, Watch, Watcher};

use crate::fake::{Call, Fake, urls};
use crate::soon;

/// What the server to which a watch comes next does with it.
struct Turn {
    /// Its revision when the watch begins.
    revision: i64,
    /// What it sends.
    answers: Vec<pb::WatchResponse>,
    then: Then,
}

enum Then {
    /// The stream ends with this error.
    Fail(Code, &'static str),
    /// The connection breaks.
    Break,
    /// It stays silent.
    Hang,
}

/// What servers saw: which one, and where the watch was to begin.
type Seen = Arc<Mutex<Vec<(usize, i64)>>>;

struct Cluster {
    fakes: Vec<Fake>,
    seen: Seen,
}

impl Cluster {
    /// Two servers which take `turns`, whichever is asked.
    async fn start(turns: Vec<Turn>) -> Cluster {
        Cluster::hesitant(turns, Duration::ZERO).await
    }

    /// Which take so long to say that a watch stands.
    async fn hesitant(turns: Vec<Turn>, long: Duration) -> Cluster {
        let turns = Arc::new(Mutex::new(VecDeque::from(turns)));
        let seen = Seen::default();
        let mut fakes = Vec::new();
        for id in 0..2 {
            let (turns, seen) = (Arc::clone(&turns), Arc::clone(&seen));
            let fake = Fake::start(move |call| {
                let turn = turns.lock().unwrap().pop_front();
                let seen = Arc::clone(&seen);
                async move {
                    tokio::time::sleep(long).await;
                    take(turn, id, seen, call).await;
                }
            });
            fakes.push(fake.await);
        }
        Cluster { fakes, seen }
    }

    async fn watch(&self, from: i64) -> Watcher {
        let client = soon(crate::connect(&urls(&self.fakes))).await.unwrap();
        let watch = Watch::key("a").start_revision(from).fragment();
        soon(client.watch(watch)).await.unwrap()
    }

    /// Where each stream was to begin.
    fn starts(&self) -> Vec<i64> {
        let seen = self.seen.lock().unwrap();
        seen.iter().map(|(_, start)| *start).collect()
    }
}

async fn take(turn: Option<Turn>, id: usize, seen: Seen, mut call: Call) {
    let Some(turn) = turn else {
        return call.hang().await;
    };
    let request: pb::WatchRequest = call.message().await.unwrap();
    let Some(RequestUnion::CreateRequest(create)) = request.request_union else {
        panic!("not a create: {request:?}");
    };
    seen.lock().unwrap().push((id, create.start_revision));
    let mut answers = call.begin();
    answers.send(&pb::WatchResponse {
        created: true,
        ..notice(turn.revision)
    });
    for answer in &turn.answers {
        answers.send(answer);
    }
    match turn.then {
        Then::Fail(code, text) => answers.end(code, text),
        Then::Break => call.break_connection().await,
        Then::Hang => call.hang().await,
    }
}

/// Says where the server is.
fn notice(revision: i64) -> pb::WatchResponse {
    pb::WatchResponse {
        header: Some(pb::ResponseHeader {
            revision,
            ..pb::ResponseHeader::default()
        }),
        ..pb::WatchResponse::default()
    }
}

/// The write of `revision`.
fn write(revision: i64) -> pb::WatchResponse {
    let kv = KeyValue {
        key: "a".into(),
        mod_revision: revision,
        ..KeyValue::default()
    };
    let event = Event {
        kv: Some(kv),
        ..Event::default()
    };
    pb::WatchResponse {
        events: vec![event],
        ..notice(revision)
    }
}

async fn next(watcher: &mut Watcher) -> Batch {
    soon(watcher.next()).await.unwrap().unwrap()
}

fn revisions(batch: &Batch) -> Vec<i64> {
    let revision = |event: &Event| event.kv.as_ref().unwrap().mod_revision;
    batch.events.iter().map(revision).collect()
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_without_gap_or_duplicate() {
    let cluster = Cluster::start(vec![
        Turn {
            revision: 5,
            answers: vec![write(6)],
            then: Then::Fail(Code::Unavailable, "etcdserver: no leader"),
        },
        // Sends again what was delivered before.
        Turn {
            revision: 8,
            answers: vec![write(6), write(7), write(8)],
            then: Then::Break,
        },
        Turn {
            revision: 8,
            answers: vec![write(9)],
            then: Then::Hang,
        },
    ])
    .await;
    let mut watcher = cluster.watch(0).await;
    for expected in 6..=9 {
        assert_eq!(revisions(&next(&mut watcher).await), [expected]);
    }
    assert_eq!(cluster.starts(), [0, 7, 9]);
}

#[tokio::test]
async fn a_watch_without_events_begins_again_where_it_was_created() {
    let cluster = Cluster::start(vec![
        Turn {
            revision: 5,
            answers: Vec::new(),
            then: Then::Break,
        },
        Turn {
            revision: 9,
            answers: vec![write(7)],
            then: Then::Hang,
        },
    ])
    .await;
    let mut watcher = cluster.watch(0).await;
    assert_eq!(revisions(&next(&mut watcher).await), [7]);
    assert_eq!(cluster.starts(), [0, 6]);
}

#[tokio::test]
async fn half_a_batch_is_dropped_with_its_stream() {
    let half = pb::WatchResponse {
        fragment: true,
        ..write(6)
    };
    let cluster = Cluster::start(vec![
        Turn {
            revision: 5,
            answers: vec![half.clone()],
            then: Then::Break,
        },
        Turn {
            revision: 6,
            answers: vec![half, write(6)],
            then: Then::Hang,
        },
    ])
    .await;
    let mut watcher = cluster.watch(0).await;
    assert_eq!(revisions(&next(&mut watcher).await), [6, 6]);
    assert_eq!(cluster.starts(), [0, 6]);
}

#[tokio::test]
async fn progress_moves_a_watch_on_and_never_back() {
    let cluster = Cluster::start(vec![
        Turn {
            revision: 5,
            answers: vec![notice(20)],
            then: Then::Break,
        },
        // Lags behind the first.
        Turn {
            revision: 10,
            answers: vec![notice(10), write(21)],
            then: Then::Hang,
        },
    ])
    .await;
    let mut watcher = cluster.watch(0).await;
    assert_eq!(next(&mut watcher).await.revision, 20);
    let lagging = next(&mut watcher).await;
    assert_eq!((lagging.revision, lagging.events.len()), (20, 0));
    assert_eq!(watcher.next_revision(), 21);
    assert_eq!(revisions(&next(&mut watcher).await), [21]);
    assert_eq!(cluster.starts(), [0, 21]);
}

#[tokio::test]
async fn a_watch_goes_on_though_nobody_waits_for_it_as_long_as_it_pauses() {
    let failing = || Turn {
        revision: 5,
        answers: Vec::new(),
        then: Then::Break,
    };
    let mut turns: Vec<Turn> = std::iter::repeat_with(failing).take(7).collect();
    turns.push(Turn {
        revision: 5,
        answers: vec![write(6)],
        then: Then::Hang,
    });
    let cluster = Cluster::start(turns).await;
    let mut watcher = cluster.watch(0).await;
    let patience = Duration::from_millis(100);
    let batch = soon(async {
        loop {
            if let Ok(batch) = tokio::time::timeout(patience, watcher.next()).await {
                return batch.unwrap().unwrap();
            }
        }
    });
    assert_eq!(revisions(&batch.await), [6]);
}

#[tokio::test]
async fn a_watch_goes_on_though_nobody_waits_for_it_as_long_as_a_server_takes() {
    let turns = vec![
        Turn {
            revision: 5,
            answers: Vec::new(),
            then: Then::Break,
        },
        Turn {
            revision: 6,
            answers: vec![write(6)],
            then: Then::Hang,
        },
    ];
    let cluster = Cluster::hesitant(turns, Duration::from_millis(300)).await;
    let mut watcher = cluster.watch(0).await;
    let batch = soon(async {
        loop {
            let waited = tokio::time::timeout(Duration::from_millis(5), watcher.next());
            if let Ok(batch) = waited.await {
                return batch.unwrap().unwrap();
            }
        }
    });
    assert_eq!(revisions(&batch.await), [6]);
    assert_eq!(cluster.starts(), [0, 6], "it was asked for once");
}

#[tokio::test]
async fn a_watch_that_comes_too_late_elsewhere_says_what_was_compacted() {
    let cluster = Cluster::start(vec![
        Turn {
            revision: 5,
            answers: Vec::new(),
            then: Then::Break,
        },
        Turn {
            revision: 30,
            answers: vec![pb::WatchResponse {
                canceled: true,
                compact_revision: 25,
                ..notice(0)
            }],
            then: Then::Hang,
        },
    ])
    .await;
    let mut watcher = cluster.watch(0).await;
    let error = soon(watcher.next()).await.unwrap_err();
    let expected = Error::WatchCompacted {
        needed: 6,
        compact_revision: 25,
    };
    assert_eq!(error.to_string(), expected.to_string());
    assert!(soon(watcher.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_watch_begins_at_an_endpoint_that_can_serve_it() {
    let seen = Arc::new(Mutex::new(0));
    let first = Fake::start(|call| async move {
        call.fail(Code::Unavailable, "etcdserver: no leader");
    })
    .await;
    let count = Arc::clone(&seen);
    let second = Fake::start(move |call| {
        *count.lock().unwrap() += 1;
        let turn = Turn {
            revision: 3,
            answers: vec![write(4)],
            then: Then::Hang,
        };
        take(Some(turn), 1, Seen::default(), call)
    })
    .await;
    let fakes = [first, second];
    let client = soon(crate::connect(&urls(&fakes))).await.unwrap();
    let mut watcher = soon(client.watch(Watch::key("a"))).await.unwrap();
    assert_eq!(revisions(&next(&mut watcher).await), [4]);
    assert_eq!(*seen.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_refusal_that_no_other_endpoint_changes_ends_the_watch() {
    let cluster = Cluster::start(vec![Turn {
        revision: 5,
        answers: Vec::new(),
        then: Then::Fail(Code::PermissionDenied, "etcdserver: permission denied"),
    }])
    .await;
    let mut watcher = cluster.watch(0).await;
    let error = soon(watcher.next()).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
}
