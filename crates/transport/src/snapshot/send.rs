//! A snapshot on its way out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, header};
use keelson_proto::message::Message;
use tokio::sync::{mpsc, oneshot};

use super::{FILE_BYTES, FILE_SUM, PART_BYTES, PARTS_WAITING, PATH, Sum, Transfer, human};
use crate::body::{Body, Part, Parts};
use crate::codec::put_message;
use crate::dial::Limits;
use crate::inbound::SnapshotBody;
use crate::peer::Link;
use crate::pipeline::{Answer, PostError, check};
use crate::stats::add;
use crate::url::PeerUrl;

/// How long a sender waits for the other end to take more, and then for its answer: it has to make
/// the whole file durable first.
const LIMITS: Limits = Limits {
    read: Some(Duration::from_secs(300)),
    write: Some(Duration::from_secs(60)),
};

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
        Err(error) => failed(&link, &url, index, bytes, error),
    }
    if let Some(body) = body {
        body.finish(result.is_ok());
    }
}

fn failed(link: &Link, url: &PeerUrl, index: u64, bytes: u64, error: &PostError) {
    tracing::warn!(
        "snapshot-index" = index,
        "remote-peer-id" = %link.member,
        bytes,
        size = human(bytes),
        error = %error,
        "failed to send database snapshot"
    );
    link.picker.unreachable(url);
    link.status
        .deactivate("sendMsgSnap", "post", &error.to_string());
    link.report_unreachable();
    add(&link.stats.send_failures, 1);
    if matches!(error, PostError::Removed) {
        link.context.inbound.removed_from_cluster();
    }
}

async fn post(link: &Link, url: &PeerUrl, bytes: u64, body: Body) -> Result<(), PostError> {
    let mut connection = link.context.dialer.open(url, LIMITS).await?;
    let request = link
        .context
        .request(Method::POST, url, PATH)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::TRAILER, HeaderValue::from(FILE_SUM))
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
    let mut sum = Sum::default();
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
        sum.update(&part);
        parts.blocking_send(Ok(part.into())).map_err(|_| gone())?;
    }
    if left != 0 {
        let text = format!("the snapshot ends {left} bytes early");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
    }
    let mut trailers = HeaderMap::new();
    let text = HeaderValue::from_str(&sum.finish()).map_err(io::Error::other)?;
    trailers.insert(FILE_SUM, text);
    end.send(trailers).map_err(|_| gone())
}
