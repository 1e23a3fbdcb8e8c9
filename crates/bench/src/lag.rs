//! Watchers that come again and again from far behind, beside writes that are measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use keelson_client::etcdserverpb::WatchCreateRequest;
use keelson_client::{Client, Put, Watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::load::{Data, Schedule};

/// Writes at a time while the history is made.
const LANES: u64 = 256;

/// How often a watcher that stays away looks whether the run is over.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Where the history begins, and which watchers read it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Past {
    begin: i64,
    /// From here on each watcher has an event again.
    end: i64,
    watchers: u64,
}

/// Makes a history of `behind` revisions, of which each watcher has a key of its own that was
/// written at its begin and at its end.
pub(crate) async fn prepare(
    clients: &[Client],
    data: &Data,
    watchers: usize,
    behind: u64,
) -> anyhow::Result<Past> {
    let watchers = watchers as u64;
    let first = write(clients, data, 0..watchers).await?;
    write(clients, data, 0..behind).await?;
    let last = write(clients, data, 0..watchers).await?;
    Ok(Past {
        begin: first,
        end: last,
        watchers,
    })
}

/// Writes the keys of these numbers, each a revision, many at a time. Answers with the lowest
/// revision.
async fn write(
    clients: &[Client],
    data: &Data,
    numbers: std::ops::Range<u64>,
) -> anyhow::Result<i64> {
    let next = Arc::new(AtomicU64::new(numbers.start));
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let client = clients[lane as usize % clients.len()].clone();
        let (data, next, end) = (data.clone(), Arc::clone(&next), numbers.end);
        lanes.spawn(async move {
            let mut lowest = i64::MAX;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return anyhow::Ok(lowest);
                }
                let put = Put::new(data.key(number % data.keys), data.value.clone());
                let header = client.put(put).await?.header;
                lowest = lowest.min(header.context("an answer without a header")?.revision);
            }
        });
    }
    let mut lowest = i64::MAX;
    while let Some(lane) = lanes.join_next().await {
        lowest = lowest.min(lane?.context("write the history")?);
    }
    Ok(lowest)
}

/// Watchers that catch up, each again so long after it came before or when it has caught up, until the
/// schedule has ended; counts how often.
pub(crate) fn spawn(
    clients: &[Client],
    data: &Data,
    past: Past,
    every: Duration,
    schedule: &Arc<Schedule>,
) -> JoinSet<anyhow::Result<u64>> {
    let mut watchers = JoinSet::new();
    for number in 0..past.watchers {
        let client = clients[number as usize % clients.len()].clone();
        let (data, schedule) = (data.clone(), Arc::clone(schedule));
        watchers.spawn(async move {
            let mut times = 0;
            while !schedule.has_ended() {
                let again = Instant::now() + every;
                let watch = Watch::key(data.key(number % data.keys)).start_revision(past.begin);
                catch_up(&client, watch.into(), past.end).await?;
                times += 1;
                while !schedule.has_ended() && Instant::now() < again {
                    sleep_until(again.min(Instant::now() + LOOK_AGAIN)).await;
                }
            }
            Ok(times)
        });
    }
    watchers
}

/// Reads the history until there was an event of its end.
async fn catch_up(client: &Client, create: WatchCreateRequest, end: i64) -> anyhow::Result<()> {
    let mut stream = client.watch_raw(create).await?;
    loop {
        let answer = stream.next().await?.context("the watch stream ended")?;
        ensure!(
            !answer.canceled,
            "a watch was canceled: {}",
            answer.cancel_reason
        );
        let changed = answer.events.iter().filter_map(|event| event.kv.as_ref());
        if changed.map(|kv| kv.mod_revision).max() >= Some(end) {
            return Ok(());
        }
    }
}
