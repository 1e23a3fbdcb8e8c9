//! The peer port: messages and snapshots of other members, and what they may ask (api.md 4.8).
//!
//! # Source
//!
//! Status codes and bodies: `spec/formats.md` 7.3 and 7.4.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use keelson_proto::ids::MemberId;
use keelson_proto::message::Message;
use tokio::sync::mpsc;

use super::{method_not_allowed, not_found, text, version};
use crate::grpc::splice::Body;
use crate::peers::{CLUSTER_ID, FROM, MIN_VERSION, PEER_URLS, VERSION, version_of};
use crate::serving::Origin;
use crate::state::State;
use crate::url::Url;

mod ask;

/// The longest message that is taken outside of a snapshot, in bytes.
const MESSAGE_MAX: usize = 64 << 20;
/// The longest message that may stand before a snapshot's file, in bytes; the reference's limit.
const ENVELOPE_MAX: u64 = 64 << 20;
/// The bytes of the length before it.
const LENGTH_BYTES: usize = 8;
/// Pieces of a snapshot that have come and are not written yet.
const PIECES_MAX: usize = 4;
/// What a sender is taken for that does not say its release.
const OLDEST: &str = "2.0.0";

/// Answers what comes to the peer port.
pub(super) async fn handle(
    state: &Arc<State>,
    origin: Origin,
    request: Request<Incoming>,
) -> Response<Body> {
    let get = request.method() == Method::GET;
    let post = request.method() == Method::POST;
    let path = request.uri().path();
    let mut response = match path {
        "/version" if get => return version(state),
        "/version" => return method_not_allowed(),
        "/raft" if post => message(state, request).await,
        "/raft/snapshot" if post => snapshot(state, request).await,
        "/raft" | "/raft/snapshot" => only_post(),
        "/raft/probing" => probing(state),
        "/members" if get => members(state),
        "/members" => method_not_allowed(),
        _ => match ask::handle(state, origin, request).await {
            Some(response) => response,
            None => return not_found(),
        },
    };
    if let Ok(id) = HeaderValue::from_str(&state.node.cluster_id().to_string()) {
        let headers = response.headers_mut();
        headers.insert(HeaderName::from_static(CLUSTER_ID), id);
    }
    response
}

fn only_post() -> Response<Body> {
    let mut response = method_not_allowed();
    let headers = response.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
    response
}

fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether the sender is of this cluster and speaks what we speak. One that is not known yet is
/// remembered by what it says of itself.
fn check_sender(state: &State, headers: &HeaderMap) -> Result<(), Box<Response<Body>>> {
    let refuse = |code, what: &'static str| Err(Box::new(text(code, what)));
    let release = |name| version_of(header_text(headers, name).unwrap_or(OLDEST));
    let minor = |version: &semver::Version| (version.major, version.minor);
    let own = state.node.config().version.clone();
    let compatible = match (release(VERSION), release(MIN_VERSION)) {
        (Ok(theirs), Ok(min)) => minor(&theirs) >= (3, 0) && minor(&min) <= minor(&own),
        _ => false,
    };
    if !compatible {
        tracing::warn!(
            "remote-peer-server-version" = header_text(headers, VERSION).unwrap_or_default(),
            "failed version compatibility check"
        );
        return refuse(StatusCode::PRECONDITION_FAILED, "incompatible version\n");
    }
    let theirs = header_text(headers, CLUSTER_ID).unwrap_or_default();
    if theirs != state.node.cluster_id().to_string() {
        tracing::warn!(
            "local-member-cluster-id" = %state.node.cluster_id(),
            "remote-peer-cluster-id" = theirs,
            "request cluster ID mismatch"
        );
        return refuse(StatusCode::PRECONDITION_FAILED, "cluster ID mismatch\n");
    }
    let from = header_text(headers, FROM).and_then(|id| u64::from_str_radix(id, 16).ok());
    let from = from.map(MemberId);
    if let Some(id) = from
        && state.node.is_removed(id)
    {
        // It may never have heard of it: whoever removed it does not speak with it any more.
        let what = "cannot process message from removed member\n";
        return refuse(StatusCode::FORBIDDEN, what);
    }
    if let Some(id) = from
        && id != state.node.member_id()
    {
        let urls = header_text(headers, PEER_URLS).unwrap_or_default();
        if let Ok(urls) = Url::parse_list(urls) {
            state.peers.add_sender(id, &urls);
        }
        state.peers.heard_of(id, &state.node);
    }
    Ok(())
}

/// One message of consensus.
async fn message(state: &Arc<State>, request: Request<Incoming>) -> Response<Body> {
    if let Err(response) = check_sender(state, request.headers()) {
        return *response;
    }
    let body = http_body_util::Limited::new(request.into_body(), MESSAGE_MAX);
    let Ok(body) = body.collect().await else {
        return text(StatusCode::BAD_REQUEST, "error reading raft message\n");
    };
    let Ok(message) = Message::decode(body.to_bytes()) else {
        let what = "error unmarshalling raft message\n";
        return text(StatusCode::BAD_REQUEST, what);
    };
    match state.node.step(message) {
        Ok(()) => no_content(),
        Err(error) => {
            tracing::debug!(%error, "failed to process Raft message");
            let what = "error processing raft message\n";
            text(StatusCode::INTERNAL_SERVER_ERROR, what)
        }
    }
}

/// A message, and the database as of it.
async fn snapshot(state: &Arc<State>, request: Request<Incoming>) -> Response<Body> {
    if let Err(response) = check_sender(state, request.headers()) {
        return *response;
    }
    let mut body = request.into_body();
    let (message, rest) = match envelope(&mut body).await {
        Ok(read) => read,
        Err(error) => {
            let what = format!("failed to decode raft message ({error})\n");
            return text(StatusCode::BAD_REQUEST, what);
        }
    };
    tracing::info!(
        "remote-snapshot-sender-id" = %message.from,
        "incoming-snapshot-index" = message.snapshot.as_ref().map_or(0, |it| it.index.0),
        "receiving database snapshot"
    );
    let (pieces, read) = mpsc::channel(PIECES_MAX);
    let node = state.node.clone();
    let receiving = tokio::task::spawn_blocking(move || {
        let mut file = Pieces {
            now: rest,
            pieces: read,
        };
        node.receive_snapshot(message, &mut file)
    });
    pass_on(body, &pieces).await;
    drop(pieces);
    match receiving.await {
        Ok(Ok(())) => no_content(),
        Ok(Err(error)) => {
            tracing::error!(%error, "failed to save incoming database snapshot");
            let what = format!("failed to save KV snapshot ({error})\n");
            text(StatusCode::INTERNAL_SERVER_ERROR, what)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// The message that stands before the file, and what has come of the file.
async fn envelope(body: &mut Incoming) -> io::Result<(Message, Bytes)> {
    let mut read = BytesMut::new();
    fill(body, &mut read, LENGTH_BYTES).await?;
    let len = read.get_u64();
    let too_long = || io::Error::new(io::ErrorKind::InvalidData, "error limit exceeded");
    if len > ENVELOPE_MAX {
        return Err(too_long());
    }
    let len = usize::try_from(len).map_err(|_| too_long())?;
    fill(body, &mut read, len).await?;
    let message = read.split_to(len).freeze();
    let message = Message::decode(message)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok((message, read.freeze()))
}

/// Reads until so many bytes are there.
async fn fill(body: &mut Incoming, read: &mut BytesMut, len: usize) -> io::Result<()> {
    while read.len() < len {
        let frame = body.frame().await.ok_or(io::ErrorKind::UnexpectedEof)?;
        if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
            read.extend_from_slice(&data);
        }
    }
    Ok(())
}

/// Gives the file to who writes it, piece by piece, until it ends or nobody takes it any more.
async fn pass_on(mut body: Incoming, pieces: &mpsc::Sender<io::Result<Bytes>>) {
    while let Some(frame) = body.frame().await {
        let piece = match frame {
            Ok(frame) => match frame.into_data() {
                Ok(data) => Ok(data),
                Err(_) => continue,
            },
            Err(error) => Err(io::Error::other(error)),
        };
        let failed = piece.is_err();
        if pieces.send(piece).await.is_err() || failed {
            return;
        }
    }
}

/// A file that comes in pieces.
struct Pieces {
    now: Bytes,
    pieces: mpsc::Receiver<io::Result<Bytes>>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.now = piece?,
                None => return Ok(0),
            }
        }
        let len = buffer.len().min(self.now.len());
        self.now.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}

/// Says that the member is there, and what its clock shows.
fn probing(state: &State) -> Response<Body> {
    let wall = SystemTime::UNIX_EPOCH + state.node.env().clock.wall();
    let now = crate::logging::timestamp(wall);
    let mut response = Response::new(Body::plain(format!("{{\"OK\":true,\"Now\":\"{now}\"}}\n")));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, super::PLAIN);
    response
}

fn members(state: &State) -> Response<Body> {
    json(member_rows(state) + "\n")
}

/// The members as a JSON array.
fn member_rows(state: &State) -> String {
    let members = state.shared().members();
    let rows: Vec<_> = members
        .members()
        .map(|member| String::from_utf8_lossy(&member.to_json()).into_owned())
        .collect();
    format!("[{}]", rows.join(","))
}

fn json(body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::plain(body));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}
