//! A snapshot on its way to a member: its message, then the file, never whole in memory.

use std::io;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use keelson_node::{Node, OutgoingSnapshot};
use tokio::sync::mpsc;

use super::line::{self, Line};
use super::{POST_PATIENCE, Target};

/// The file is sent in pieces of so many bytes.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that were read and are not sent yet.
const PIECES_MAX: usize = 4;
/// The longest that a member may take with a whole snapshot.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Sends it, and says how it went.
pub(super) async fn send(target: Target, snapshot: OutgoingSnapshot) {
    let Some(node) = target.node().await else {
        return;
    };
    let (id, index, bytes) = (target.id, snapshot.index(), snapshot.size());
    tracing::info!("remote-peer-id" = %id, "snapshot-index" = index.0, bytes, "sending database snapshot");
    let envelope = envelope(&snapshot);
    let (pieces, read) = mpsc::channel(PIECES_MAX);
    let reading = tokio::task::spawn_blocking(move || {
        read_into(&snapshot, &pieces);
        snapshot
    });
    let posted = tokio::time::timeout(PATIENCE, post(&target, &node, envelope, read)).await;
    let posted = posted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let delivered = match posted {
        Ok(()) => {
            tracing::info!("remote-peer-id" = %id, "snapshot-index" = index.0, bytes, "sent database snapshot");
            true
        }
        Err(error) => {
            tracing::warn!("remote-peer-id" = %id, "snapshot-index" = index.0, %error, "failed to send database snapshot");
            node.report_unreachable(id);
            false
        }
    };
    // Reading ends with the receiver of its pieces. One that panicked has said that it failed.
    if let Ok(snapshot) = reading.await {
        snapshot.finish(delivered);
    }
}

/// The message with its length before it.
fn envelope(snapshot: &OutgoingSnapshot) -> Bytes {
    let message = snapshot.message().encode();
    let mut out = BytesMut::with_capacity(8 + message.len());
    out.put_u64(message.len() as u64);
    out.put(message);
    out.freeze()
}

fn read_into(snapshot: &OutgoingSnapshot, pieces: &mpsc::Sender<io::Result<Bytes>>) {
    let mut offset = 0;
    let size = snapshot.size();
    while offset < size {
        let mut piece = BytesMut::zeroed(PIECE_BYTES);
        let read = match snapshot.read_at(offset, &mut piece) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                piece.truncate(read);
                offset += read as u64;
                Ok(piece.freeze())
            }
            Err(error) => Err(error),
        };
        let failed = read.is_err();
        if pieces.blocking_send(read).is_err() || failed {
            return;
        }
    }
}

async fn post(
    target: &Target,
    node: &Node,
    envelope: Bytes,
    pieces: mpsc::Receiver<io::Result<Bytes>>,
) -> io::Result<()> {
    let opened = tokio::time::timeout(POST_PATIENCE, Line::open(&target.urls[0])).await;
    let mut line = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let frames = stream::unfold((Some(envelope), pieces), |(envelope, mut pieces)| async {
        let piece = match envelope {
            Some(envelope) => Ok(envelope),
            None => pieces.recv().await?,
        };
        Some((piece.map(Frame::data), (None, pieces)))
    });
    let body = StreamBody::new(frames).boxed_unsync();
    let mut request = target.request(node, Method::POST, "/raft/snapshot", body);
    request.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    let response = line.send(request).await?;
    match response.status() {
        StatusCode::NO_CONTENT => Ok(()),
        _ => Err(line::refused(&response)),
    }
}
