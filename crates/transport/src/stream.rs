//! Streams from a peer: dialled, read, and dialled again.
//!
//! Whoever wants messages dials, and reads them from the answer; so there is one task for each kind
//! of stream of each peer, for as long as the peer is a member.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use keelson_proto::message::{Message, MessageKind};
use tokio::time::Instant;

use crate::codec::{CodecError, Decoder, StreamKind, is_link_heartbeat};
use crate::dial::{self, Limits};
use crate::handler::STREAM_PREFIX;
use crate::inbound::StepRefused;
use crate::peer::Link;
use crate::pipeline::Answer;
use crate::stats::add;
use crate::url::PeerUrl;
use crate::{body::Body, version};

/// The shortest time between two attempts to dial; etcd's pace.
const DIAL_PAUSE: Duration = Duration::from_millis(100);

/// Why a stream could not be begun, or has ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("EOF")]
    Eof,
    #[error("unexpected EOF")]
    UnexpectedEof,
    #[error("{}", dial::root_cause(.0))]
    Io(#[from] io::Error),
    #[error("{}", dial::root_cause(.0))]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("unsupported stream type")]
    Unsupported,
    #[error("the member has been permanently removed from the cluster")]
    Removed,
    #[error("{0}")]
    Answer(String),
}

/// Keeps a stream of one kind up until the task is ended.
pub(crate) async fn read(link: Arc<Link>, kind: StreamKind) {
    let (local, remote) = (link.local(), link.member);
    tracing::info!(
        "stream-reader-type" = kind.name(),
        "local-member-id" = %local,
        "remote-peer-id" = %remote,
        "started stream reader with remote peer"
    );
    loop {
        let next = Instant::now() + DIAL_PAUSE;
        match dial(&link, kind).await {
            Err(StreamError::Unsupported) => {}
            Err(error) => {
                link.status
                    .deactivate(kind.name(), "dial", &error.to_string());
                if matches!(error, StreamError::Removed) {
                    link.context.inbound.removed_from_cluster();
                }
            }
            Ok(mut stream) => {
                link.status.activate();
                tracing::info!(
                    "stream-reader-type" = kind.name(),
                    "local-member-id" = %local,
                    "remote-peer-id" = %remote,
                    "established TCP streaming connection with remote peer"
                );
                let error = receive(&link, kind, &mut stream).await;
                tracing::warn!(
                    "stream-reader-type" = kind.name(),
                    "local-member-id" = %local,
                    "remote-peer-id" = %remote,
                    error = %error,
                    "lost TCP streaming connection with remote peer"
                );
                if !matches!(error, StreamError::Eof) {
                    link.status
                        .deactivate(kind.name(), "read", &error.to_string());
                }
            }
        }
        tokio::time::sleep_until(next).await;
    }
}

/// A stream that was begun; the connection lives as long.
struct Stream {
    body: Incoming,
    _link: dial::Link,
}

async fn dial(link: &Link, kind: StreamKind) -> Result<Stream, StreamError> {
    let url = link.picker.pick();
    let result = begin(link, kind, &url).await;
    if result.is_err() {
        link.picker.unreachable(&url);
    }
    result
}

async fn begin(link: &Link, kind: StreamKind, url: &PeerUrl) -> Result<Stream, StreamError> {
    let config = &link.context.config;
    let limits = Limits {
        read: Some(config.read_timeout),
        write: Some(config.write_timeout),
    };
    let mut connection = link.context.dialer.open(url, limits).await?;
    let path = format!("{STREAM_PREFIX}{}/{}", kind.folder(), config.member);
    let request = link
        .context
        .request(Method::GET, url, &path)
        .header("x-raft-to", link.member.to_string())
        .body(Body::empty())
        .map_err(io::Error::other)?;
    let response = connection.sender.send_request(request).await?;
    let remote = version::of_header(response.headers(), version::SERVER_VERSION);
    if !remote.is_some_and(|remote| version::has_streams(&remote)) {
        return Err(StreamError::Unsupported);
    }
    match response.status() {
        StatusCode::OK => Ok(Stream {
            body: response.into_body(),
            _link: connection,
        }),
        StatusCode::GONE => Err(StreamError::Removed),
        StatusCode::NOT_FOUND => Err(StreamError::Answer(format!(
            "peer {} failed to find local node {}",
            link.member, config.member
        ))),
        StatusCode::PRECONDITION_FAILED => {
            let answer = Answer::read(response, url, &path).await?;
            Err(StreamError::Answer(precondition(link, &answer)))
        }
        status => Err(StreamError::Answer(format!(
            "unhandled http status {}",
            status.as_u16()
        ))),
    }
}

fn precondition(link: &Link, answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.text);
    let text = text.trim_end_matches('\n');
    match text {
        "incompatible version" => tracing::warn!(
            "local-member-id" = %link.local(),
            "remote-peer-id" = %link.member,
            error = text,
            "request sent was ignored by remote peer due to server version incompatibility"
        ),
        "cluster ID mismatch" => tracing::warn!(
            "remote-peer-id" = %link.member,
            "remote-peer-cluster-id" = answer.cluster,
            "local-member-id" = %link.local(),
            "local-member-cluster-id" = %link.context.config.cluster,
            error = text,
            "request sent was ignored by remote peer due to cluster ID mismatch"
        ),
        _ => return format!("unhandled error {text:?} when precondition failed"),
    }
    text.to_owned()
}

/// Hands messages on until the stream ends, and says why it did.
async fn receive(link: &Link, kind: StreamKind, stream: &mut Stream) -> StreamError {
    let mut decoder = Decoder::new(kind, link.local(), link.member);
    let mut taken = Taken { link, any: false };
    loop {
        let frame = tokio::select! {
            biased;
            frame = stream.body.frame() => frame,
            // Nothing more is there.
            () = std::future::ready(()), if taken.any => {
                taken.handle();
                continue;
            }
        };
        match frame {
            None if decoder.is_inside_frame() => return StreamError::UnexpectedEof,
            None => return StreamError::Eof,
            Some(Err(error)) => return error.into(),
            Some(Ok(frame)) => {
                let Some(data) = frame.data_ref() else {
                    continue;
                };
                add(&link.stats.received_bytes, data.len() as u64);
                decoder.push(data);
                loop {
                    match decoder.next_message() {
                        Ok(Some(message)) => taken.step(message),
                        Ok(None) => break,
                        Err(error) => return error.into(),
                    }
                }
            }
        }
    }
}

/// Messages that came together, and are handled together: at the latest when the stream ends.
struct Taken<'a> {
    link: &'a Link,
    any: bool,
}

impl Taken<'_> {
    fn step(&mut self, message: Message) {
        if !is_link_heartbeat(&message) {
            self.any = true;
            step(self.link, message);
        }
    }

    fn handle(&mut self) {
        self.any = false;
        self.link.context.inbound.stepped();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.any {
            self.handle();
        }
    }
}

fn step(link: &Link, message: Message) {
    let (kind, from, to) = (message.kind, message.from, message.to);
    if kind == MessageKind::App {
        add(&link.stats.appends[1], 1);
    }
    match link.context.inbound.step(message) {
        Ok(()) => {}
        Err(StepRefused::Busy) => {
            add(&link.stats.receive_failures, 1);
            tracing::warn!(
                "message-type" = ?kind,
                "local-member-id" = %link.local(),
                from = %from,
                "remote-peer-id" = %to,
                "remote-peer-active" = link.status.since().is_some(),
                "dropped internal Raft message since receiving buffer is full (overloaded network)"
            );
        }
        Err(error) => tracing::warn!(error = %error, "failed to process Raft message"),
    }
}
