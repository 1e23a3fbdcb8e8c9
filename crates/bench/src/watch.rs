//! Watchers that see writes: fan-out.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use keelson_client::etcdserverpb::{WatchCreateRequest, watch_request::RequestUnion};
use keelson_client::{Client, Put, RawWatch, Watch};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::load::{Data, PREFIX, Schedule};
use crate::run::{Tally, histogram, record, stop_when_interrupted};
use crate::spec::Spec;

/// How long events are waited for after the last write.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time of sending, in the first bytes of a value, in nanoseconds since the begin.
const STAMP_LEN: usize = 8;

/// Streams with their watches, created and not yet read.
pub(crate) struct Watches {
    /// Each stream with the number of its watchers.
    streams: Vec<(RawWatch, u64)>,
}

/// Puts `watchers` watches on `streams` streams.
pub(crate) async fn prepare(
    clients: &[Client],
    watchers: usize,
    streams: usize,
) -> anyhow::Result<Watches> {
    let mut opened = Vec::with_capacity(streams);
    for stream in 0..streams {
        let share = watchers / streams + usize::from(stream < watchers % streams);
        let client = &clients[stream % clients.len()];
        let create = || WatchCreateRequest::from(Watch::prefix(PREFIX));
        let mut raw = client.watch_raw(create()).await?;
        for watcher in 0..share {
            if watcher > 0 {
                raw.send(RequestUnion::CreateRequest(create())).await?;
            }
            let answer = raw.next().await?.context("the watch stream ended")?;
            ensure!(
                answer.created && !answer.canceled,
                "the watch was refused: {}",
                answer.cancel_reason
            );
        }
        opened.push((raw, share as u64));
    }
    Ok(Watches { streams: opened })
}

/// Writes as scheduled, and reads events until each watcher has seen each write.
pub(crate) async fn run(
    spec: &Spec,
    clients: &[Client],
    data: &Data,
    watches: Watches,
    start: Instant,
) -> anyhow::Result<Tally> {
    // The number of writes, once it is known.
    let (written, total) = watch::channel(None);
    let mut readers = JoinSet::new();
    for (raw, watchers) in watches.streams {
        readers.spawn(read(raw, watchers, start, total.clone()));
    }
    drop(total);
    let schedule = Arc::new(Schedule::new(spec, start));
    let _interrupt = stop_when_interrupted(&schedule);
    let mut writers = JoinSet::new();
    for number in 0..spec.clients {
        let client = clients[number % clients.len()].clone();
        writers.spawn(write(client, data.clone(), start, Arc::clone(&schedule)));
    }
    let mut tally = Tally::default();
    while let Some(writer) = writers.join_next().await {
        tally.merge(writer?)?;
    }
    written.send_replace(Some(tally.items));
    let all = async {
        while let Some(reader) = readers.join_next().await {
            let (events, latencies) = reader??;
            tally.operations += events;
            tally.latencies.add(latencies)?;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, all)
        .await
        .with_context(|| format!("events were missing {PATIENCE:?} after the last write"))??;
    tally.elapsed = start.elapsed();
    Ok(tally)
}

/// Counts events until there was one for each watcher and write.
async fn read(
    mut raw: RawWatch,
    watchers: u64,
    start: Instant,
    mut total: watch::Receiver<Option<u64>>,
) -> anyhow::Result<(u64, Histogram<u64>)> {
    let mut latencies = histogram();
    let mut events = 0;
    let mut expected = u64::MAX;
    while events < expected {
        tokio::select! {
            answer = raw.next() => {
                let answer = answer?.context("the watch stream ended")?;
                ensure!(!answer.canceled, "a watch was canceled: {}", answer.cancel_reason);
                let now = start.elapsed();
                for event in &answer.events {
                    if let Some(sent) = event.kv.as_ref().and_then(|kv| stamp(&kv.value)) {
                        record(&mut latencies, now.saturating_sub(sent));
                        events += 1;
                    }
                }
            }
            known = total.changed(), if expected == u64::MAX => {
                known.context("the run was given up")?;
                if let Some(total) = *total.borrow_and_update() {
                    expected = total * watchers;
                }
            }
        }
    }
    Ok((events, latencies))
}

/// Writes as scheduled; its writes count as items.
async fn write(client: Client, data: Data, start: Instant, schedule: Arc<Schedule>) -> Tally {
    let mut tally = Tally::default();
    while let Some(turn) = schedule.turn().await {
        let since = turn.since.duration_since(start);
        let mut value = Vec::with_capacity(data.value.len());
        let nanos = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        value.extend_from_slice(&nanos.to_le_bytes());
        value.extend_from_slice(&data.value[STAMP_LEN..]);
        let put = Put::new(data.any_key(turn.number), value);
        match client.put(put).await {
            Ok(_) => tally.items += 1,
            Err(error) => {
                if tally.failed(&error).await {
                    break;
                }
            }
        }
    }
    tally
}

fn stamp(value: &Bytes) -> Option<Duration> {
    let nanos = value.first_chunk::<STAMP_LEN>()?;
    Some(Duration::from_nanos(u64::from_le_bytes(*nanos)))
}
