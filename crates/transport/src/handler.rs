//! What is asked on the peer port: messages, streams, snapshots and probes here, the rest by the
//! routes of the member above.
//!
//! Checks come in etcd's order, and are answered with its codes and texts.
//!
//! # Source
//!
//! `rafthttp/http.go` of etcd 3.7; statuses as recorded from running ones.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use keelson_proto::ids::MemberId;
use keelson_proto::message::Message;

use crate::body::Body;
use crate::codec::StreamKind;
use crate::dial::{Patience, root_cause};
use crate::peers::Context;
use crate::stats::add;
use crate::{probe, snapshot, version};

/// Header: the cluster that is meant, or that answers.
pub(crate) const CLUSTER_ID: &str = "x-etcd-cluster-id";
/// Header: who asks.
pub(crate) const SERVER_FROM: &str = "x-server-from";
/// Header: where whoever asks is reached.
pub(crate) const PEER_URLS: &str = "x-peerurls";
/// What the paths of streams begin with.
pub(crate) const STREAM_PREFIX: &str = "/raft/stream/";

/// The longest message that is taken in a request of its own, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// How many bytes of such messages may be on their way in at once, over all connections.
const MESSAGES_BYTES_MAX: usize = 256 << 20;

/// The longest body that a route is given, in bytes; a longer one is answered with 413.
pub const ROUTE_BODY_BYTES_MAX: usize = 64 << 10;

/// The other end of a connection, for routes that want to name it: an extension of their requests.
#[derive(Clone, Copy, Debug)]
pub struct RemoteAddress(pub Option<SocketAddr>);

/// Whose connection a request came over.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) patience: Patience,
}

/// Answers one request.
pub(crate) async fn handle(
    context: &Arc<Context>,
    origin: &Origin,
    request: Request<Incoming>,
) -> Response<Body> {
    match request.uri().path() {
        "/raft" => message(context, request).await,
        "/raft/snapshot" => snapshot(context, origin, request).await,
        probe::PATH => probed(),
        path if path.starts_with(STREAM_PREFIX) => stream(context, &request),
        path if path.starts_with("/raft/") => failure(StatusCode::NOT_FOUND, "404 page not found"),
        _ => route(context, origin, request).await,
    }
}

/// An error as Go writes it.
pub(crate) fn failure(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::of(format!("{text}\n")));
    *response.status_mut() = status;
    mark_as_error(response.headers_mut());
    response
}

fn mark_as_error(headers: &mut HeaderMap) {
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, plain);
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
}

pub(crate) fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn method_not_allowed(allowed: &'static str) -> Response<Body> {
    let mut response = failure(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    let allowed = HeaderValue::from_static(allowed);
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

/// With the cluster's id, as every answer has that is not about the method.
fn of_cluster(context: &Context, mut response: Response<Body>) -> Response<Body> {
    let id = context.cluster_header.clone();
    response.headers_mut().insert(CLUSTER_ID, id);
    response
}

fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn member_of(text: &str) -> Option<MemberId> {
    // Rust takes a sign where Go's parser does not.
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !digits {
        return None;
    }
    u64::from_str_radix(text, 16).ok().map(MemberId)
}

/// Whether the sender is of this cluster and of a release that we speak with.
fn compatible(context: &Context, headers: &HeaderMap) -> Result<(), &'static str> {
    let config = &context.config;
    let name = text_of(headers, SERVER_FROM);
    let server = text_of(headers, version::SERVER_VERSION);
    let min_cluster = text_of(headers, version::MIN_CLUSTER_VERSION);
    if let Err(error) = version::check(&config.versions, name, headers) {
        tracing::warn!(
            "local-member-id" = %config.member,
            "local-member-cluster-id" = %config.cluster,
            "local-member-server-version" = %config.versions.server,
            "local-member-server-minimum-cluster-version" = %config.versions.min_cluster,
            "remote-peer-server-name" = name,
            "remote-peer-server-version" = server,
            "remote-peer-server-minimum-cluster-version" = min_cluster,
            error,
            "failed version compatibility check"
        );
        return Err("incompatible version");
    }
    let cluster = text_of(headers, CLUSTER_ID);
    if cluster.as_bytes() != context.cluster_header.as_bytes() {
        tracing::warn!(
            "local-member-id" = %config.member,
            "local-member-cluster-id" = %config.cluster,
            "local-member-server-version" = %config.versions.server,
            "local-member-server-minimum-cluster-version" = %config.versions.min_cluster,
            "remote-peer-server-name" = name,
            "remote-peer-server-version" = server,
            "remote-peer-server-minimum-cluster-version" = min_cluster,
            "remote-peer-cluster-id" = cluster,
            "request cluster ID mismatch"
        );
        return Err("cluster ID mismatch");
    }
    Ok(())
}

/// Whoever speaks with us is answered, even before we know it as a member.
fn meet(context: &Arc<Context>, from: Option<MemberId>, headers: &HeaderMap) {
    let urls = text_of(headers, PEER_URLS);
    if let Some(from) = from.filter(|_| !urls.is_empty()) {
        let urls: Vec<&str> = urls.split(',').collect();
        context.meet(from, &urls);
    }
}

/// The bytes of messages that are on their way in.
#[derive(Debug, Default)]
pub(crate) struct Arriving(AtomicUsize);

/// A part of the room for them.
struct Room<'a> {
    of: &'a Arriving,
    bytes: usize,
}

impl Room<'_> {
    fn take(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        self.of.0.fetch_add(bytes, Ordering::Relaxed) + bytes <= MESSAGES_BYTES_MAX
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reads a body of up to `limit` bytes.
async fn read(
    mut body: Incoming,
    limit: usize,
    room: &Arriving,
) -> Result<Bytes, (StatusCode, String)> {
    let mut room = Room { of: room, bytes: 0 };
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| (StatusCode::BAD_REQUEST, root_cause(&error)))?;
        if let Some(data) = frame.data_ref() {
            if read.len() + data.len() > limit || !room.take(data.len()) {
                let text = "request body too large".to_owned();
                return Err((StatusCode::PAYLOAD_TOO_LARGE, text));
            }
            read.extend_from_slice(data);
        }
    }
    Ok(read.freeze())
}

/// `POST /raft`: one message.
async fn message(context: &Arc<Context>, request: Request<Incoming>) -> Response<Body> {
    if request.method() != Method::POST {
        return method_not_allowed("POST");
    }
    let (head, body) = request.into_parts();
    if let Err(text) = compatible(context, &head.headers) {
        return of_cluster(context, failure(StatusCode::PRECONDITION_FAILED, text));
    }
    let from = member_of(text_of(&head.headers, SERVER_FROM));
    meet(context, from, &head.headers);
    of_cluster(context, taken(context, body).await)
}

async fn taken(context: &Arc<Context>, body: Incoming) -> Response<Body> {
    let local = context.config.member;
    let bytes = match read(body, MESSAGE_BYTES_MAX, &context.arriving).await {
        Ok(bytes) => bytes,
        Err((_, error)) => {
            add(&context.stats.bad_requests, 1);
            tracing::warn!("local-member-id" = %local, error, "failed to read Raft message");
            return failure(StatusCode::BAD_REQUEST, "error reading raft message");
        }
    };
    let length = bytes.len() as u64;
    let message = match Message::decode(bytes) {
        Ok(message) => message,
        Err(error) => {
            add(&context.stats.bad_requests, 1);
            tracing::warn!(
                "local-member-id" = %local,
                error = %error,
                "failed to unmarshal Raft message"
            );
            return failure(StatusCode::BAD_REQUEST, "error unmarshalling raft message");
        }
    };
    add(&context.stats.of(message.from).received_bytes, length);
    let stepped = context.inbound.step(message);
    context.inbound.stepped();
    match stepped {
        Ok(()) => no_content(),
        Err(error) => {
            tracing::warn!(
                "local-member-id" = %local,
                error = %error,
                "failed to process Raft message"
            );
            let mut response = failure(StatusCode::INTERNAL_SERVER_ERROR, "");
            *response.body_mut() = Body::cut_after("error processing raft message\n");
            response
        }
    }
}

/// `POST /raft/snapshot`: a message, and a file after it.
async fn snapshot(
    context: &Arc<Context>,
    origin: &Origin,
    request: Request<Incoming>,
) -> Response<Body> {
    if request.method() != Method::POST {
        return method_not_allowed("POST");
    }
    if let Err(text) = compatible(context, request.headers()) {
        return of_cluster(context, failure(StatusCode::PRECONDITION_FAILED, text));
    }
    let from = member_of(text_of(request.headers(), SERVER_FROM));
    meet(context, from, request.headers());
    let response = snapshot::receive(context, request, &origin.patience).await;
    of_cluster(context, response)
}

/// `/raft/probing`: that we are here, and what our clock says.
fn probed() -> Response<Body> {
    let mut response = Response::new(Body::of(probe::answer(SystemTime::now())));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// `GET /raft/stream/…`: messages without end.
fn stream(context: &Arc<Context>, request: &Request<Incoming>) -> Response<Body> {
    if request.method() != Method::GET {
        return method_not_allowed("GET");
    }
    let response = match begin_stream(context, request) {
        Ok(body) => Response::new(body),
        Err((status, text)) => failure(status, text),
    };
    let mut response = of_cluster(context, response);
    let server = context.server_header.clone();
    response
        .headers_mut()
        .insert(version::SERVER_VERSION, server);
    response
}

fn begin_stream(
    context: &Arc<Context>,
    request: &Request<Incoming>,
) -> Result<Body, (StatusCode, &'static str)> {
    let (local, headers) = (context.config.member, request.headers());
    let refused = |text| (StatusCode::PRECONDITION_FAILED, text);
    compatible(context, headers).map_err(refused)?;
    let path = request.uri().path();
    let rest = path.strip_prefix(STREAM_PREFIX).unwrap_or_default();
    let (kind, from) = match rest.split_once('/') {
        Some(("message", from)) => (StreamKind::Message, from),
        Some(("msgapp", from)) => (StreamKind::Append, from),
        _ => {
            tracing::debug!(
                "local-member-id" = %local,
                "remote-peer-id-stream-handler" = %local,
                path,
                "ignored unexpected streaming request path"
            );
            return Err((StatusCode::NOT_FOUND, "invalid path"));
        }
    };
    let Some(from) = member_of(from) else {
        tracing::warn!(
            "local-member-id" = %local,
            "remote-peer-id-stream-handler" = %local,
            path = from,
            "failed to parse path into ID"
        );
        return Err((StatusCode::NOT_FOUND, "invalid from"));
    };
    if context.inbound.is_removed(from) {
        tracing::warn!(
            "local-member-id" = %local,
            "remote-peer-id-stream-handler" = %local,
            "remote-peer-id-from" = %from,
            "rejected stream from remote peer because it was removed"
        );
        return Err((StatusCode::GONE, "removed member"));
    }
    let Some(peer) = context.peer(from) else {
        meet(context, Some(from), headers);
        tracing::warn!(
            "local-member-id" = %local,
            "remote-peer-id-stream-handler" = %local,
            "remote-peer-id-from" = %from,
            "cluster-id" = %context.config.cluster,
            "failed to find remote peer in cluster"
        );
        return Err((StatusCode::NOT_FOUND, "error sender not found"));
    };
    let to = text_of(headers, "x-raft-to");
    if to != local.to_string() {
        tracing::warn!(
            "local-member-id" = %local,
            "remote-peer-id-stream-handler" = %local,
            "remote-peer-id-header" = to,
            "remote-peer-id-from" = %from,
            "cluster-id" = %context.config.cluster,
            "ignored streaming request; ID mismatch"
        );
        return Err(refused("to field mismatch"));
    }
    // It was stopped this moment.
    let stopped = (StatusCode::NOT_FOUND, "error sender not found");
    let body = peer.outbox(kind).attach(peer.link()).ok_or(stopped)?;
    Ok(Body::Stream(body))
}

/// Everything else is answered above.
async fn route(
    context: &Arc<Context>,
    origin: &Origin,
    request: Request<Incoming>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let bytes = match read(body, ROUTE_BODY_BYTES_MAX, &context.arriving).await {
        Ok(bytes) => bytes,
        Err((status, text)) => return failure(status, &text),
    };
    let mut request = Request::from_parts(head, bytes);
    request
        .extensions_mut()
        .insert(RemoteAddress(origin.remote));
    let _held = origin.patience.hold();
    context.routes.route(request).await.map(Body::of)
}
