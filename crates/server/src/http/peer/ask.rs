//! What followers ask the leader in their clients' name, and what members ask one another.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use keelson_proto::ApiError;
use keelson_proto::ids::{LeaseId, MemberId};
use keelson_proto::rpc::etcdserverpb::{
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, ResponseHeader,
};
use keelson_proto::rpc::leasepb::{LeaseInternalRequest, LeaseInternalResponse};
use keelson_store::auth::Need;
use keelson_store::hash;
use prost::Message;

use super::super::{method_not_allowed, text};
use super::{CLUSTER_ID, header_text, json, member_rows, only_post};
use crate::grpc::method::Method as Rpc;
use crate::grpc::splice::Body;
use crate::grpc::status::Status;
use crate::grpc::{Call, HASH_COST, lease, members};
use crate::serving::Origin;
use crate::state::State;

const PROMOTE: &str = "/members/promote/";

/// Answers a question; `None` where there is no such.
pub(super) async fn handle(
    state: &Arc<State>,
    origin: Origin,
    request: Request<Bytes>,
) -> Option<Response<Body>> {
    let get = request.method() == Method::GET;
    let post = request.method() == Method::POST;
    let path = request.uri().path();
    if let Some(id) = path.strip_prefix(PROMOTE) {
        if !post {
            return Some(only_post());
        }
        let id = id.to_owned();
        let headers = request.into_parts().0.headers;
        return Some(promote(state, origin, &id, headers).await);
    }
    Some(match path {
        "/leases" | "/leases/internal" if !post => method_not_allowed(),
        "/leases" => keep_alive(state, origin, request).await,
        "/leases/internal" => time_to_live(state, origin, request).await,
        "/downgrade/enabled" if get => downgrade(state, origin).await,
        "/downgrade/enabled" => method_not_allowed(),
        "/members/hashkv" if get => hash_kv(state, request).await,
        "/members/hashkv" => method_not_allowed(),
        _ => return None,
    })
}

fn protobuf(message: &impl Message) -> Response<Body> {
    let mut response = Response::new(Body::plain(message.encode_to_vec()));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/protobuf"),
    );
    response
}

/// How an error of a lease is said here.
fn lease_error(status: &Status) -> Response<Body> {
    if *status == ApiError::TimeoutWaitAppliedIndex.into() {
        let what = "waiting for node to catch up its applied index has timed out\n";
        return text(StatusCode::REQUEST_TIMEOUT, what);
    }
    text(StatusCode::BAD_REQUEST, format!("{}\n", status.text))
}

fn lease_not_found() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "lease not found\n")
}

async fn keep_alive(state: &Arc<State>, origin: Origin, request: Request<Bytes>) -> Response<Body> {
    let body = request.into_body();
    let Ok(request) = LeaseKeepAliveRequest::decode(body) else {
        return text(StatusCode::BAD_REQUEST, "error unmarshalling request\n");
    };
    let call = nameless(state, origin, Rpc::LeaseKeepAlive);
    match lease::renew_here(&call, LeaseId(request.id)).await {
        Ok(Some(ttl)) => protobuf(&LeaseKeepAliveResponse {
            header: None,
            id: request.id,
            ttl,
        }),
        Ok(None) => lease_not_found(),
        Err(status) => lease_error(&status),
    }
}

/// A call for which another member has looked at who sent it.
fn nameless(state: &Arc<State>, origin: Origin, method: Rpc) -> Call {
    Call::new(Arc::clone(state), origin, method, HeaderMap::new())
}

async fn time_to_live(
    state: &Arc<State>,
    origin: Origin,
    request: Request<Bytes>,
) -> Response<Body> {
    let body = request.into_body();
    let request = LeaseInternalRequest::decode(body)
        .ok()
        .and_then(|request| request.lease_time_to_live_request);
    let Some(request) = request else {
        return text(StatusCode::BAD_REQUEST, "error unmarshalling request\n");
    };
    let call = nameless(state, origin, Rpc::LeaseTimeToLive);
    match lease::look_here(&call, &request).await {
        Ok(Some(mut response)) => {
            // Whoever asked fills it in, and must find it.
            response.header = Some(ResponseHeader::default());
            protobuf(&LeaseInternalResponse {
                lease_time_to_live_response: Some(response),
            })
        }
        Ok(None) => lease_not_found(),
        Err(status) if status == ApiError::LeaderChanged.into() => {
            let what = "not a primary lessor\n";
            text(StatusCode::INTERNAL_SERVER_ERROR, what)
        }
        Err(status) => lease_error(&status),
    }
}

async fn promote(
    state: &Arc<State>,
    origin: Origin,
    id: &str,
    headers: HeaderMap,
) -> Response<Body> {
    let Ok(number) = id.parse::<u64>() else {
        let what = format!("member {id} not found in cluster\n");
        return text(StatusCode::NOT_FOUND, what);
    };
    let call = Call::new(Arc::clone(state), origin, Rpc::MemberPromote, headers);
    let promoted = match call.permit(&Need::Admin) {
        Ok(_) => members::promote(&call, MemberId(number)).await,
        Err(status) => Err(status),
    };
    let Err(status) = promoted else {
        return json(member_rows(state));
    };
    if status == ApiError::MemberNotFound.into() {
        text(StatusCode::NOT_FOUND, "membership: ID not found\n")
    } else if status == ApiError::MemberNotLearner.into() {
        let what = "membership: can only promote a learner member\n";
        text(StatusCode::PRECONDITION_FAILED, what)
    } else if status == ApiError::LearnerNotReady.into() {
        let what = format!("{}\n", status.text);
        text(StatusCode::PRECONDITION_FAILED, what)
    } else {
        tracing::warn!(
            "member-id" = %MemberId(number),
            error = %status.text,
            "failed to promote a member"
        );
        let mut response = json("{\"message\":\"Internal Server Error\"}");
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    }
}

/// Whether a downgrade is under way, as a quorum knows it.
async fn downgrade(state: &Arc<State>, origin: Origin) -> Response<Body> {
    if let Err(error) = state.read_barrier(origin.thread).await {
        let what = format!("failed linearized read: {error}\n");
        return text(StatusCode::INTERNAL_SERVER_ERROR, what);
    }
    let enabled = state.shared().members().downgrade().enabled;
    let mut response = Response::new(Body::plain(enabled.to_string()));
    let kind = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The hash of the keys up to a revision.
async fn hash_kv(state: &Arc<State>, request: Request<Bytes>) -> Response<Body> {
    let own = state.node.cluster_id().to_string();
    if header_text(request.headers(), CLUSTER_ID).is_some_and(|id| id != own) {
        return text(StatusCode::PRECONDITION_FAILED, "cluster ID mismatch\n");
    }
    let body = request.into_body();
    let Ok(question) = serde_json::from_slice::<serde_json::Value>(&body) else {
        return text(StatusCode::BAD_REQUEST, "error unmarshalling request\n");
    };
    let revision = question["revision"].as_i64().unwrap_or(0);
    let shared = Arc::clone(state.shared());
    let work = move || hash::hash_kv(&shared, revision);
    match state.pool.run(HASH_COST, work).await {
        Ok(Ok(hash)) => {
            // In the order of the message's fields, without those that are zero.
            let now = state.shared().revision();
            let mut answer = format!("{{\"header\":{{\"revision\":{now}}}");
            let fields = [
                ("hash", i64::from(hash.hash)),
                ("compact_revision", hash.compact_revision),
                ("hash_revision", hash.hash_revision),
            ];
            for (name, value) in fields {
                if value != 0 {
                    answer.push_str(&format!(",\"{name}\":{value}"));
                }
            }
            answer.push('}');
            json(answer)
        }
        Ok(Err(error)) => {
            // Members know the refusals by the store's own words, without what clients see before.
            let error = error.to_string();
            let words = error.strip_prefix("etcdserver: ").unwrap_or(&error);
            text(StatusCode::BAD_REQUEST, format!("{words}\n"))
        }
        Err(status) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("{}\n", ApiError::text(status)),
        ),
    }
}
