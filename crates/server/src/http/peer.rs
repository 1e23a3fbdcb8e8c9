//! What other members may ask of this one, beside consensus (api.md 4.8).
//!
//! # Source
//!
//! Status codes and bodies: `spec/formats.md` 7.4.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use keelson_transport::{RemoteAddress, RouteAnswer, Routes};

use super::{method_not_allowed, not_found, version};
use crate::grpc::splice::Body;
use crate::serving::{Origin, Purpose};
use crate::state::State;

mod ask;

/// The header that names the cluster.
const CLUSTER_ID: &str = "x-etcd-cluster-id";

/// Answers what is not about consensus.
pub(crate) struct PeerRoutes(pub(crate) Arc<State>);

impl Routes for PeerRoutes {
    fn route(&self, request: Request<Bytes>) -> RouteAnswer {
        let state = Arc::clone(&self.0);
        Box::pin(async move {
            let remote = request.extensions().get::<RemoteAddress>();
            let origin = Origin {
                // Tickets of peers are those of the first serving thread.
                thread: 0,
                purpose: Purpose::Peer,
                remote: remote.and_then(|remote| remote.0),
            };
            let (head, body) = handle(&state, origin, request).await.into_parts();
            match body.collect().await {
                Ok(body) => Response::from_parts(head, body.to_bytes()),
                Err(_) => {
                    let mut broken = Response::new(Bytes::new());
                    *broken.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                    broken
                }
            }
        })
    }
}

async fn handle(state: &Arc<State>, origin: Origin, request: Request<Bytes>) -> Response<Body> {
    let get = request.method() == Method::GET;
    let mut response = match request.uri().path() {
        "/version" if get => return version(state),
        "/version" => return method_not_allowed(),
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

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
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
