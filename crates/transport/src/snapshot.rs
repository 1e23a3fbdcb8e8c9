//! Snapshots in requests of their own: a message with its length before it, and then the database's
//! file, streamed from whoever has it to whoever stores it.
//!
//! 1. No more of a file than a few parts of [`PART_BYTES`] is in memory at once, on either side.
//! 2. A file that cannot be read to its end breaks the connection: etcd takes whatever ends well.
//! 3. Between members of this kind the length goes ahead in a header and a SHA-256 follows in a
//!    trailer; etcd sends neither, and looks at neither.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use keelson_proto::message::{Message, MessageKind};
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};

use crate::body::{Body, Part, Parts};
use crate::codec::{ENVELOPE_BYTES_MAX, put_message, within};
use crate::dial::{Limits, Patience};
use crate::handler::{failure, no_content};
use crate::inbound::{SnapshotBody, SnapshotRefused};
use crate::peer::Link;
use crate::peers::Context;
use crate::pipeline::{Answer, PostError, check};
use crate::stats::{PeerStats, SnapshotStats, add};

const PATH: &str = "/raft/snapshot";

/// Header: how many bytes the file has.
const FILE_BYTES: HeaderName = HeaderName::from_static("x-keelson-snapshot-bytes");

/// Trailer: the file's SHA-256, in hex.
const FILE_SHA256: HeaderName = HeaderName::from_static("x-keelson-snapshot-sha256");

/// How much of a file is read at once.
const PART_BYTES: usize = 64 << 10;

/// How many parts may wait for the other side of a channel.
const PARTS_WAITING: usize = 8;

/// How long a sender waits for the other end to take more, and then for its answer: it has to make
/// the whole file durable first.
const LIMITS: Limits = Limits {
    read: Some(Duration::from_secs(300)),
    write: Some(Duration::from_secs(60)),
};

/// Counts a transfer from its beginning to its end, whichever way that comes.
struct Transfer {
    stats: Arc<PeerStats>,
    of: fn(&PeerStats) -> &SnapshotStats,
    start: Instant,
    succeeded: bool,
}

impl Transfer {
    fn begin(stats: &Arc<PeerStats>, of: fn(&PeerStats) -> &SnapshotStats) -> Transfer {
        of(stats).in_flight.fetch_add(1, Ordering::Relaxed);
        Transfer {
            stats: Arc::clone(stats),
            of,
            start: Instant::now(),
            succeeded: false,
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let stats = (self.of)(&self.stats);
        stats.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.succeeded {
            add(&stats.successes, 1);
            stats.took.observe(self.start.elapsed());
        } else {
            add(&stats.failures, 1);
        }
    }
}

/// Sends a snapshot, and tells its body and whoever asks how that went.
pub(crate) async fn send(link: Arc<Link>, message: Message, body: Box<dyn SnapshotBody>) {
    let mut transfer = Transfer::begin(&link.stats, |stats| &stats.snapshots_sent);
    let index = message.snapshot.as_ref().map_or(0, |snap| snap.index.0);
    let bytes = body.size();
    tracing::info!(
        "snapshot-index" = index,
        "remote-peer-id" = %link.member,
        bytes,
        size = human(bytes),
        "sending database snapshot"
    );
    let url = link.picker.pick();
    let (parts, receiver) = mpsc::channel(PARTS_WAITING);
    let (end, trailers) = oneshot::channel();
    let mut envelope = BytesMut::new();
    put_message(&mut envelope, &message);
    let total = bytes + envelope.len() as u64;
    let envelope = envelope.freeze();
    let pump = tokio::task::spawn_blocking(move || pump(body, envelope, &parts, end));
    let outgoing = Body::Parts(Parts {
        parts: receiver,
        end: Some(trailers),
    });
    let mut result = post(&link, &url, bytes, outgoing).await;
    // The connection and the channel are gone, so the reader is through or gives up.
    let body = match pump.await {
        Ok((body, read)) => {
            // Where the source failed, that is the reason, and no answer makes it good.
            if let Err(error) = read
                && (result.is_ok() || error.kind() != io::ErrorKind::BrokenPipe)
            {
                result = Err(error.into());
            }
            Some(body)
        }
        Err(error) => {
            result = Err(io::Error::other(error).into());
            None
        }
    };
    match &result {
        Ok(()) => {
            link.status.activate();
            transfer.succeeded = true;
            add(&link.stats.sent_bytes, total);
            tracing::info!(
                "snapshot-index" = index,
                "remote-peer-id" = %link.member,
                bytes,
                size = human(bytes),
                "sent database snapshot"
            );
        }
        Err(error) => {
            tracing::warn!(
                "snapshot-index" = index,
                "remote-peer-id" = %link.member,
                bytes,
                size = human(bytes),
                error = %error,
                "failed to send database snapshot"
            );
            link.picker.unreachable(&url);
            link.status
                .deactivate("sendMsgSnap", "post", &error.to_string());
            link.report_unreachable();
            add(&link.stats.send_failures, 1);
            if matches!(error, PostError::Removed) {
                link.context.inbound.removed_from_cluster();
            }
        }
    }
    if let Some(body) = body {
        body.finish(result.is_ok());
    }
}

async fn post(
    link: &Link,
    url: &crate::url::PeerUrl,
    bytes: u64,
    body: Body,
) -> Result<(), PostError> {
    let mut connection = link.context.dialer.open(url, LIMITS).await?;
    let request = link
        .context
        .request(Method::POST, url, PATH)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::TRAILER, HeaderValue::from(FILE_SHA256))
        .header(FILE_BYTES, bytes)
        .body(body)
        .map_err(io::Error::other)?;
    let response = connection.sender.send_request(request).await;
    let response = response.map_err(io::Error::other)?;
    let answer = Answer::read(response, url, PATH).await?;
    check(link.member, &link.context, answer)
}

/// Reads the file, on a thread that may block, and gives it on part by part.
fn pump(
    mut body: Box<dyn SnapshotBody>,
    envelope: Bytes,
    parts: &mpsc::Sender<Part>,
    end: oneshot::Sender<HeaderMap>,
) -> (Box<dyn SnapshotBody>, io::Result<()>) {
    let read = pump_parts(&mut *body, envelope, parts, end);
    if let Err(error) = &read {
        // The other side ends the request by this; it may be gone already.
        let told = io::Error::new(error.kind(), error.to_string());
        let _ = parts.blocking_send(Err(told));
    }
    (body, read)
}

fn pump_parts(
    body: &mut dyn SnapshotBody,
    envelope: Bytes,
    parts: &mpsc::Sender<Part>,
    end: oneshot::Sender<HeaderMap>,
) -> io::Result<()> {
    let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the transfer has ended");
    let mut left = body.size();
    let mut hash = Sha256::new();
    parts.blocking_send(Ok(envelope)).map_err(|_| gone())?;
    loop {
        let mut part = vec![0; PART_BYTES];
        let read = match body.read(&mut part) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if read == 0 {
            break;
        }
        part.truncate(read);
        left = left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("the snapshot is longer than it was said to be"))?;
        hash.update(&part);
        parts.blocking_send(Ok(part.into())).map_err(|_| gone())?;
    }
    if left != 0 {
        let text = format!("the snapshot ends {left} bytes early");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
    }
    let mut trailers = HeaderMap::new();
    let text = HeaderValue::from_str(&hex(&hash.finalize())).map_err(io::Error::other)?;
    trailers.insert(FILE_SHA256, text);
    end.send(trailers).map_err(|_| gone())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What comes to whoever stores the file.
enum Arrival {
    Data(Bytes),
    End { sha256: Option<String> },
    Broken(io::Error),
}

/// The file as it arrives, for a thread that may block.
struct Arriving {
    arrivals: mpsc::Receiver<Arrival>,
    part: Bytes,
    promised: Option<u64>,
    taken: u64,
    hash: Option<Sha256>,
    over: bool,
}

impl Arriving {
    /// The end has come: whether the file is what was promised.
    fn check_end(&mut self, sha256: Option<&str>) -> io::Result<usize> {
        let bad = |text: String| Err(io::Error::new(io::ErrorKind::InvalidData, text));
        if let Some(promised) = self.promised
            && promised != self.taken
        {
            return bad(format!("{} bytes came of {promised}", self.taken));
        }
        if let Some(hash) = self.hash.take() {
            let found = hex(&hash.finalize());
            match sha256 {
                Some(promised) if promised == found => {}
                Some(promised) => {
                    return bad(format!("SHA-256 is {found}, the sender's is {promised}"));
                }
                None => return bad("the checksum that was promised did not come".to_owned()),
            }
        }
        Ok(0)
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            if self.over {
                return Ok(0);
            }
            match self.arrivals.blocking_recv() {
                Some(Arrival::Data(part)) => self.part = part,
                Some(Arrival::End { sha256 }) => {
                    self.check_end(sha256.as_deref())?;
                    self.over = true;
                }
                Some(Arrival::Broken(error)) => return Err(error),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = self.part.len().min(buffer.len());
        self.part.copy_to_slice(&mut buffer[..count]);
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..count]);
        }
        self.taken += count as u64;
        Ok(count)
    }
}

/// Reads what goes before the file; gives the message, its length, and what was read of the file.
async fn envelope(body: &mut Incoming) -> Result<(Message, usize, BytesMut), String> {
    let mut read = BytesMut::new();
    let mut missing = 8;
    let mut length = None;
    loop {
        if read.len() >= missing {
            match length {
                None => {
                    let bytes = within(read.get_u64(), ENVELOPE_BYTES_MAX);
                    missing = bytes.map_err(|error| error.to_string())?;
                    length = Some(missing);
                    continue;
                }
                Some(length) => {
                    let bytes = read.split_to(length).freeze();
                    let message = Message::decode(bytes).map_err(|error| error.to_string())?;
                    return Ok((message, length, read));
                }
            }
        }
        match body.frame().await {
            None if read.is_empty() => return Err("EOF".to_owned()),
            None => return Err("unexpected EOF".to_owned()),
            Some(Err(error)) => return Err(crate::dial::root_cause(&error)),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    read.extend_from_slice(data);
                }
            }
        }
    }
}

/// Takes a snapshot from a peer whose headers were found good.
pub(crate) async fn receive(
    context: &Arc<Context>,
    request: Request<Incoming>,
    patience: &Patience,
) -> Response<Body> {
    let local = context.config.member;
    let (head, mut body) = request.into_parts();
    let (message, length, rest) = match envelope(&mut body).await {
        Ok(read) => read,
        Err(error) => {
            add(&context.stats.bad_requests, 1);
            tracing::warn!("local-member-id" = %local, error, "failed to decode Raft message");
            let text = format!("failed to decode raft message ({error})");
            return failure(StatusCode::BAD_REQUEST, &text);
        }
    };
    let from = message.from;
    if message.kind != MessageKind::Snap {
        add(&context.stats.bad_requests, 1);
        tracing::warn!(
            "local-member-id" = %local,
            "remote-snapshot-sender-id" = %from,
            "message-type" = ?message.kind,
            "unexpected Raft message type"
        );
        return failure(StatusCode::BAD_REQUEST, "wrong raft message type");
    }
    let index = message.snapshot.as_ref().map_or(0, |snap| snap.index.0);
    let stats = context.stats.of(from);
    add(&stats.received_bytes, length as u64);
    let mut transfer = Transfer::begin(&stats, |stats| &stats.snapshots_received);
    tracing::info!(
        "local-member-id" = %local,
        "remote-snapshot-sender-id" = %from,
        "incoming-snapshot-index" = index,
        "incoming-snapshot-message-size-bytes" = length,
        "incoming-snapshot-message-size" = human(length as u64),
        "receiving database snapshot"
    );
    let (sender, arrivals) = mpsc::channel(PARTS_WAITING);
    let mut arriving = Arriving {
        arrivals,
        part: rest.freeze(),
        promised: number(&head.headers),
        taken: 0,
        hash: promises_checksum(&head.headers).then(Sha256::new),
        over: false,
    };
    let inbound = Arc::clone(&context.inbound);
    let store = tokio::task::spawn_blocking(move || {
        let result = inbound.receive_snapshot(message, &mut arriving);
        (result, arriving.taken)
    });
    forward(&mut body, sender).await;
    let _held = patience.hold();
    let (result, taken) = match store.await {
        Ok(done) => done,
        Err(error) => (Err(SnapshotRefused::Save(error.to_string())), 0),
    };
    match result {
        Ok(()) => {
            transfer.succeeded = true;
            add(&stats.received_bytes, taken);
            tracing::info!(
                "local-member-id" = %local,
                "remote-snapshot-sender-id" = %from,
                "incoming-snapshot-index" = index,
                "incoming-snapshot-size-bytes" = taken,
                "incoming-snapshot-size" = human(taken),
                "download-took" = ?transfer.start.elapsed(),
                "received and saved database snapshot"
            );
            no_content()
        }
        Err(refused) => {
            let (line, text) = match &refused {
                SnapshotRefused::Save(_) => (
                    "failed to save incoming database snapshot",
                    format!("failed to save KV snapshot ({refused})"),
                ),
                SnapshotRefused::Message(_) => (
                    "failed to process Raft message",
                    format!("failed to process raft message ({refused})"),
                ),
            };
            tracing::warn!(
                "local-member-id" = %local,
                "remote-snapshot-sender-id" = %from,
                "incoming-snapshot-index" = index,
                error = %refused,
                "{line}"
            );
            failure(StatusCode::INTERNAL_SERVER_ERROR, &text)
        }
    }
}

fn number(headers: &HeaderMap) -> Option<u64> {
    headers.get(FILE_BYTES)?.to_str().ok()?.parse().ok()
}

fn promises_checksum(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::TRAILER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case(FILE_SHA256.as_str()))
}

/// Gives what arrives to the thread that stores it, no faster than it is taken.
async fn forward(body: &mut Incoming, arrivals: mpsc::Sender<Arrival>) {
    let mut sha256 = None;
    loop {
        let arrival = match body.frame().await {
            None => Arrival::End {
                sha256: sha256.take(),
            },
            Some(Err(error)) => {
                let text = crate::dial::root_cause(&error);
                Arrival::Broken(io::Error::new(io::ErrorKind::UnexpectedEof, text))
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Arrival::Data(data),
                Err(frame) => {
                    let trailer = frame
                        .trailers_ref()
                        .and_then(|trailers| trailers.get(FILE_SHA256));
                    sha256 = trailer
                        .and_then(|value| value.to_str().ok())
                        .map(str::to_owned);
                    continue;
                }
            },
        };
        let last = !matches!(arrival, Arrival::Data(_));
        // Whoever stores it may have given up.
        if arrivals.send(arrival).await.is_err() || last {
            return;
        }
    }
}

/// A size as logs show it: powers of 1000, one digit after the point below 10.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut tenths, mut unit) = (u128::from(bytes) * 10, 0);
    let mut divisor = 1_u128;
    while tenths / divisor >= 10_000 {
        divisor *= 1000;
        unit += 1;
    }
    tenths = (tenths + divisor / 2) / divisor;
    if tenths < 100 && unit > 0 {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    } else {
        format!("{} {}", (tenths + 5) / 10, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_in_etcds_log() {
        for (bytes, text) in [
            (0, "0 B"),
            (9009, "9.0 kB"),
            (82_854_982, "83 MB"),
            (3_067_904, "3.1 MB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
