//! Everything that comes over a connection: gRPC by its content type, the rest by its path.

use std::io::Write as _;
use std::sync::Arc;

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio_util::task::AbortOnDropHandle;

use crate::descriptors;
use crate::grpc;
use crate::grpc::splice::Body;
use crate::leader;
use crate::metrics;
use crate::serving::{Handle, Origin, Purpose};
use crate::state::State;

mod health;
pub(crate) mod peer;

const NOSNIFF: (HeaderName, HeaderValue) = (
    HeaderName::from_static("x-content-type-options"),
    HeaderValue::from_static("nosniff"),
);
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

impl Handle for State {
    async fn handle(
        self: &Arc<State>,
        origin: Origin,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let is_grpc = request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(grpc::is_grpc);
        match origin.purpose {
            Purpose::Client | Purpose::ClientGrpc if is_grpc => {
                grpc::serve(self, origin, request).await
            }
            Purpose::ClientGrpc => text(StatusCode::UNSUPPORTED_MEDIA_TYPE, ""),
            // Other members have listeners of their own.
            Purpose::Peer => not_found(),
            Purpose::Metrics => Box::pin(route(self, origin, request)).await,
            Purpose::Client | Purpose::ClientHttp => {
                let mut response = Box::pin(route(self, origin, request)).await;
                allow_origins(&mut response);
                response
            }
        }
    }

    async fn background(self: &Arc<State>, thread: u16) {
        let descriptors = async {
            if thread == 0 {
                tokio::join!(descriptors::watch(), leader::watch(self));
            }
        };
        let node = self.node.clone();
        let turns = Arc::clone(&self.tickets).turns(thread, move || node.take_turn());
        let turns = AbortOnDropHandle::new(tokio::spawn(turns));
        tokio::join!(
            descriptors,
            async {
                turns
                    .await
                    .expect("it ends only by a panic, which goes on here")
            },
            self.tickets.deliveries(thread),
            self.watching.run(thread, self)
        );
    }
}

/// The member as peers and metrics see it, before clients do: what runs on serving threads all the
/// time runs on those of the clients.
pub(crate) struct Early(pub(crate) Arc<State>);

impl Handle for Early {
    async fn handle(
        self: &Arc<Self>,
        origin: Origin,
        request: Request<Incoming>,
    ) -> Response<Body> {
        self.0.handle(origin, request).await
    }

    async fn background(self: &Arc<Self>, _thread: u16) {}
}

/// Every page may be read from everywhere, as etcd has it by default.
fn allow_origins(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("*"),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("accept, content-type, authorization"),
    );
}

async fn route(state: &Arc<State>, origin: Origin, request: Request<Incoming>) -> Response<Body> {
    if request.method() == Method::OPTIONS {
        return Response::new(Body::empty());
    }
    let path = request.uri().path();
    let query = request.uri().query().unwrap_or_default();
    let get = request.method() == Method::GET;
    match path {
        "/metrics" => exposition(state, request.headers()),
        "/debug/vars" if origin.purpose != Purpose::Metrics => variables(state),
        "/health" if get => health::health(state, origin, query).await,
        "/health" => method_not_allowed(),
        "/version" if origin.purpose == Purpose::Metrics => not_found(),
        "/version" if get => version(state),
        "/version" => method_not_allowed(),
        _ => match health::Probe::find(path) {
            Some(probe) if get => health::probe(state, origin, probe, query).await,
            Some(_) => method_not_allowed(),
            None => not_found(),
        },
    }
}

/// What Go programs show of themselves, as far as there is a source for it.
fn variables(state: &State) -> Response<Body> {
    let status = state.node.status();
    let (id, leader) = (state.node.member_id(), status.leader);
    let role = match (leader == id, status.is_learner) {
        (true, _) => "StateLeader",
        // Who knows no leader looks for one.
        (false, false) if leader.is_none() => "StateCandidate",
        (false, _) => "StateFollower",
    };
    let shown = serde_json::json!({
        "cmdline": std::env::args().collect::<Vec<_>>(),
        "file_descriptor_limit": descriptors::limit(),
        "raft.status": {
            "id": id.to_string(),
            "term": status.term.0,
            "commit": status.committed.0,
            "lead": leader.to_string(),
            "raftState": role,
            "applied": status.applied.0,
        },
    });
    let mut response = Response::new(Body::plain(format!("{shown:#}\n")));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    response
}

/// Whether the client takes gzip: it names it, and does not take that back with a weight of 0.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
            let refused = matches!(weight.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000");
            name.trim().eq_ignore_ascii_case("gzip") && !refused
        })
}

fn gzip(text: &str) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes())?;
    encoder.finish()
}

fn exposition(state: &State, headers: &HeaderMap) -> Response<Body> {
    let text = state.metrics.text(metrics::member::families(state));
    let packed = takes_gzip(headers).then(|| gzip(&text).ok()).flatten();
    let mut response = match packed {
        Some(packed) => {
            let mut response = Response::new(Body::plain(packed));
            response
                .headers_mut()
                .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
        }
        None => Response::new(Body::plain(text)),
    };
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8; escaping=underscores"),
    );
    response
}

/// The versions that others look at, and, beside them, our own.
fn version(state: &State) -> Response<Body> {
    let cluster = state
        .shared()
        .members()
        .version()
        .map_or_else(|| "not_decided".to_owned(), ToString::to_string);
    let storage = state
        .shared()
        .schema_version()
        .map_or_else(|| "unknown".to_owned(), |version| version.to_string());
    let own = env!("CARGO_PKG_VERSION");
    let server = state.settings.version;
    let body = format!(
        r#"{{"etcdserver":"{server}","etcdcluster":"{cluster}","storage":"{storage}","keelson":"{own}"}}"#
    );
    let mut response = Response::new(Body::plain(body));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// A plain answer, as Go's `http.Error` makes it.
fn text(status: StatusCode, body: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::plain(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, PLAIN);
    headers.insert(NOSNIFF.0, NOSNIFF.1);
    response
}

fn not_found() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn method_not_allowed() -> Response<Body> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_taken_where_it_is_named_and_not_refused() {
        let takes = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            takes_gzip(&headers)
        };
        for yes in ["gzip", "deflate, gzip", "GZIP;q=0.5", "gzip;q=1.0, *;q=0"] {
            assert!(takes(yes), "{yes}");
        }
        for no in ["", "identity", "gzip;q=0", "zstd, br", "x-gzip-like"] {
            assert!(!takes(no), "{no}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
