//! gRPC: from a request of HTTP/2 to the handler of its method, and back.
//!
//! The protocol is small, and this member wants three things of it that a general server does not
//! give: request messages that share the buffer they came in, answers that are spliced from stored
//! bytes and made while they are sent, and the exact texts of Go's gRPC. So it is spoken here, over
//! hyper: [`inbound`] cuts messages out of the request's body, [`splice`] is what goes back,
//! [`method`] knows the names, [`status`] the errors.
//!
//! The order of checks is etcd's (api.md 2.1): the message is decoded, then [`Call::admit`] looks at
//! the call as such, then the handler at the request.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use keelson_proto::{ApiError, Code};
use prost::Message;

use crate::metrics::CallMeter;
use crate::serving::Origin;
use crate::state::State;

mod assemble;
mod auth;
mod call;
pub(crate) mod cluster;
mod election;
mod gzip;
mod health;
pub(crate) mod inbound;
mod kv;
mod kv_stream;
pub(crate) mod lease;
mod lock;
mod maintenance;
pub(crate) mod method;
mod recipe;
mod slow;
mod snapshot;
pub(crate) mod splice;
pub(crate) mod status;
pub(crate) mod trace;
mod txn;
mod validate;
mod watch;
pub(crate) mod watch_response;

pub(crate) use call::Call;
pub(crate) use cluster as members;
use inbound::Inbound;
pub(crate) use maintenance::HASH_COST;
use method::Method;
use splice::{Answer, Body};
use status::Status;

const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GZIP: &[u8] = b"gzip";

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Whether a content type is that of a gRPC request.
pub(crate) fn is_grpc(content_type: &HeaderValue) -> bool {
    content_type.as_bytes().starts_with(b"application/grpc")
}

/// Answers a gRPC request.
pub(crate) async fn serve(
    state: &Arc<State>,
    origin: Origin,
    request: Request<Incoming>,
) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    let content_type = reply_type(&parts.headers);
    let method = match Method::find(parts.uri.path()) {
        Ok(method) => method,
        Err(status) => return refused(content_type, &status),
    };
    let wants_gzip = parts
        .headers
        .get(GRPC_ENCODING)
        .is_some_and(|encoding| encoding.as_bytes() == GZIP);
    let started = Instant::now();
    // Of a call on keys, in case that it turns out to take long.
    let mut seen = None;
    let mut meter = CallMeter::start(&state.metrics, method);
    let result = match Inbound::new(
        body,
        &parts.headers,
        state.settings.message_max(),
        meter.receiver(),
    ) {
        Ok(inbound) => {
            let timeout = parts.headers.get(GRPC_TIMEOUT).map(parse_timeout);
            let name = parts.extensions.remove();
            let call = Call::new(Arc::clone(state), origin, method, parts.headers).over(name);
            match timeout.transpose() {
                Ok(timeout) => {
                    // Pinned here and borrowed below: handed on by value it would be here twice, and
                    // every call is moved as a whole into its task.
                    let answer = pin!(route(call, inbound, &mut seen));
                    within(timeout, answer).await
                }
                Err(status) => Err(status),
            }
        }
        Err(status) => Err(status),
    };
    if method.kind().is_unary() {
        slow::tell(
            state,
            &slow::Answered {
                origin,
                method,
                started,
                request: seen,
                result: &result,
            },
        );
    }
    match result {
        Ok(answer) => {
            let (answer, is_gzip) = if wants_gzip {
                Box::pin(gzip::compressed(state, answer)).await
            } else {
                (answer, false)
            };
            let mut response = Response::new(Body::answer(answer, meter));
            if is_gzip {
                let encoding = HeaderValue::from_static("gzip");
                response.headers_mut().insert(GRPC_ENCODING, encoding);
            }
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, content_type);
            response
        }
        Err(status) => {
            meter.ended(status.code);
            refused(content_type, &status)
        }
    }
}

/// Gives a call no more time than its client does.
async fn within(
    timeout: Option<Duration>,
    answer: Pin<&mut impl Future<Output = Result<Answer, Status>>>,
) -> Result<Answer, Status> {
    match timeout {
        None => answer.await,
        Some(timeout) => match tokio::time::timeout(timeout, answer).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::ContextDeadlineExceeded.into()),
        },
    }
}

/// A response that is nothing but a status.
fn refused(content_type: HeaderValue, status: &Status) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    status.write(headers);
    response
}

/// The content type of the answer: the request's, with its subtype.
fn reply_type(headers: &HeaderMap) -> HeaderValue {
    match headers.get(header::CONTENT_TYPE) {
        Some(value) if value.as_bytes().starts_with(b"application/grpc+") => value.clone(),
        _ => HeaderValue::from_static("application/grpc"),
    }
}

/// Reads `grpc-timeout`: at most eight digits and a unit.
fn parse_timeout(value: &HeaderValue) -> Result<Duration, Status> {
    let malformed = || {
        Status::new(
            Code::Internal,
            format!(
                "malformed grpc-timeout: {:?}",
                String::from_utf8_lossy(value.as_bytes())
            ),
        )
    };
    let text = value.to_str().map_err(|_| malformed())?;
    let (digits, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or_else(malformed)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(malformed());
    }
    let number: u64 = digits.parse().map_err(|_| malformed())?;
    Ok(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return Err(malformed()),
    })
}

/// Reads and decodes the message of a call that has one, and looks at the call.
async fn one<Q: Message + Default>(call: &Call, inbound: Inbound) -> Result<Q, Status> {
    let message = inbound.single().await?;
    let request = inbound::decode(message)?;
    call.admit(false).await?;
    Ok(request)
}

async fn route(call: Call, inbound: Inbound, seen: &mut Option<Bytes>) -> Result<Answer, Status> {
    match call.method {
        Method::Range => {
            let message = inbound.single().await?;
            *seen = Some(message.clone());
            let request: keelson_proto::rpc::etcdserverpb::RangeRequest = inbound::decode(message)?;
            call.admit(request.serializable).await?;
            kv::range(&call, request).await
        }
        Method::Put => {
            let message = inbound.single().await?;
            *seen = Some(message.clone());
            let request = inbound::decode(message)?;
            call.admit(false).await?;
            kv::put(&call, request).await
        }
        Method::Txn => {
            let message = inbound.single().await?;
            *seen = Some(message.clone());
            let request = inbound::decode_txn(message)?;
            call.admit(false).await?;
            Box::pin(txn::txn(&call, request)).await
        }
        // Boxed, so that the calls above do not carry the size of the largest of all others.
        _ => Box::pin(route_rare(call, inbound, seen)).await,
    }
}

async fn route_rare(
    call: Call,
    inbound: Inbound,
    seen: &mut Option<Bytes>,
) -> Result<Answer, Status> {
    macro_rules! unary {
        ($handler:path) => {{
            let request = one(&call, inbound).await?;
            $handler(&call, request).await
        }};
    }
    match call.method {
        Method::Range | Method::Put | Method::Txn => {
            // Routed before.
            Err(ApiError::UnknownMethod.into())
        }
        Method::RangeStream => {
            let request = one(&call, inbound).await?;
            kv_stream::range_stream(call, request).await
        }
        Method::DeleteRange => {
            let message = inbound.single().await?;
            *seen = Some(message.clone());
            let request = inbound::decode(message)?;
            call.admit(false).await?;
            kv::delete_range(&call, request).await
        }
        Method::Compact => unary!(kv::compact),
        Method::Watch => {
            call.admit(false).await?;
            Ok(watch::watch(call, inbound.decoded()))
        }
        Method::LeaseGrant => unary!(lease::grant),
        Method::LeaseRevoke => unary!(lease::revoke),
        Method::LeaseKeepAlive => {
            call.admit(false).await?;
            Ok(lease::keep_alive(call, inbound.decoded()))
        }
        Method::LeaseTimeToLive => unary!(lease::time_to_live),
        Method::LeaseLeases => unary!(lease::leases),
        Method::MemberAdd => unary!(cluster::member_add),
        Method::MemberRemove => unary!(cluster::member_remove),
        Method::MemberUpdate => unary!(cluster::member_update),
        Method::MemberList => unary!(cluster::member_list),
        Method::MemberPromote => unary!(cluster::member_promote),
        Method::AuthEnable => unary!(auth::enable),
        Method::AuthDisable => unary!(auth::disable),
        Method::AuthStatus => unary!(auth::status),
        Method::Authenticate => unary!(auth::authenticate),
        Method::UserAdd => unary!(auth::user_add),
        Method::UserGet => unary!(auth::user_get),
        Method::UserList => unary!(auth::user_list),
        Method::UserDelete => unary!(auth::user_delete),
        Method::UserChangePassword => unary!(auth::user_change_password),
        Method::UserGrantRole => unary!(auth::user_grant_role),
        Method::UserRevokeRole => unary!(auth::user_revoke_role),
        Method::RoleAdd => unary!(auth::role_add),
        Method::RoleGet => unary!(auth::role_get),
        Method::RoleList => unary!(auth::role_list),
        Method::RoleDelete => unary!(auth::role_delete),
        Method::RoleGrantPermission => unary!(auth::role_grant_permission),
        Method::RoleRevokePermission => unary!(auth::role_revoke_permission),
        Method::HealthCheck => unary!(health::check),
        Method::HealthList => unary!(health::list),
        Method::HealthWatch => {
            let request = one(&call, inbound).await?;
            Ok(health::watch(&call, &request))
        }
        Method::Alarm => unary!(maintenance::alarm),
        Method::Status => {
            inbound.single().await?;
            call.admit(true).await?;
            maintenance::status(&call)
        }
        Method::Defragment => unary!(maintenance::defragment),
        Method::Hash => unary!(maintenance::hash),
        Method::HashKv => unary!(maintenance::hash_kv),
        Method::Snapshot => {
            inbound.single().await?;
            call.admit(true).await?;
            snapshot::snapshot(call).await
        }
        Method::MoveLeader => unary!(maintenance::move_leader),
        Method::Downgrade => unary!(maintenance::downgrade),
        Method::Campaign => {
            let request = one(&call, inbound).await?;
            election::campaign(call, request).await
        }
        Method::Proclaim => unary!(election::proclaim),
        Method::Leader => unary!(election::leader),
        Method::Observe => {
            let request = one(&call, inbound).await?;
            Ok(election::observe(call, &request))
        }
        Method::Resign => unary!(election::resign),
        Method::Lock => {
            let request = one(&call, inbound).await?;
            lock::lock(call, request).await
        }
        Method::Unlock => unary!(lock::unlock),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_digits_and_a_unit() {
        let parse = |text: &'static str| parse_timeout(&HeaderValue::from_static(text)).ok();
        assert_eq!(parse("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(
            parse("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        assert_eq!(parse("7u"), Some(Duration::from_micros(7)));
        for wrong in ["", "S", "5", "5x", "-1S", "123456789S", "+1S"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_answer_has_the_subtype_of_the_request() {
        let mut headers = HeaderMap::new();
        assert_eq!(reply_type(&headers), "application/grpc");
        headers.insert(
            "content-type",
            HeaderValue::from_static("application/grpc+proto"),
        );
        assert_eq!(reply_type(&headers), "application/grpc+proto");
    }
}
