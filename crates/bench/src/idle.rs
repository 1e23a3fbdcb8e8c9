//! Connections and watchers that are there while a load runs, and do nothing.

use anyhow::{Context as _, ensure};
use keelson_client::etcdserverpb::{WatchCreateRequest, watch_request::RequestUnion};
use keelson_client::{Client, RawWatch, Watch};

use crate::run::connect;
use crate::spec::Spec;

/// Watchers that share a stream.
const STREAM_WATCHERS: usize = 100;

/// What lives as long as this.
pub(crate) struct Idle {
    _connections: Vec<Client>,
    _streams: Vec<RawWatch>,
}

/// Opens what `spec` wants, the watchers over `clients`; each watcher has a key of its own that nobody writes.
pub(crate) async fn prepare(spec: &Spec, clients: &[Client]) -> anyhow::Result<Idle> {
    let connections = connect(spec, spec.idle_connections).await?;
    let mut streams = Vec::new();
    for first in (0..spec.idle_watchers).step_by(STREAM_WATCHERS) {
        let last = (first + STREAM_WATCHERS).min(spec.idle_watchers);
        let client = &clients[streams.len() % clients.len()];
        streams.push(stream(client, first..last).await?);
    }
    Ok(Idle {
        _connections: connections,
        _streams: streams,
    })
}

async fn stream(client: &Client, numbers: std::ops::Range<usize>) -> anyhow::Result<RawWatch> {
    let create = |number| WatchCreateRequest::from(Watch::key(format!("idle/{number}")));
    let mut raw = client.watch_raw(create(numbers.start)).await?;
    for number in numbers.start + 1..numbers.end {
        let request = RequestUnion::CreateRequest(create(number));
        raw.send(request).await?;
    }
    for _ in numbers {
        let answer = raw.next().await?.context("the watch stream ended")?;
        ensure!(
            answer.created && !answer.canceled,
            "the watch was refused: {}",
            answer.cancel_reason
        );
    }
    Ok(raw)
}
