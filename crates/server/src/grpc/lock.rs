//! Locks: a key under the name that hangs on a lease; the oldest one holds the lock.

use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::Code;
use keelson_proto::rpc::etcdserverpb::PutRequest;
use keelson_proto::rpc::etcdserverpb::request_op::Request;
use keelson_proto::rpc::etcdserverpb::response_op::Response;
use keelson_proto::rpc::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};

use super::call::Call;
use super::recipe::{self, Abandoned, Prefix};
use super::splice::Answer;
use super::status::Status;

pub(super) async fn lock(call: Call, request: LockRequest) -> Result<Answer, Status> {
    let call = Arc::new(call);
    let lease = recipe::session(&call, request.lease).await?;
    let prefix = Prefix::of(&request.name);
    let key = prefix.key(lease);
    let put = Request::RequestPut(PutRequest {
        key: key.clone(),
        lease,
        ..PutRequest::default()
    });
    let look = Request::RequestRange(recipe::range_of(&key));
    let absent = recipe::created_at(&key, 0);
    let entered = recipe::run(&call, absent, vec![put], vec![look]).await?;
    let header = entered.header.unwrap_or_default();
    let created = if entered.succeeded {
        header.revision
    } else {
        first_row(
            entered
                .responses
                .into_iter()
                .next()
                .and_then(|op| op.response),
        )
        .map_or(header.revision, |kv| kv.create_revision)
    };
    let (_, oldest) = recipe::oldest(&call, &prefix).await?;
    if oldest.is_none_or(|oldest| oldest.create_revision == created) {
        return Ok(answer(header, key));
    }
    let waiting = Abandoned::new(&call, &key);
    recipe::wait_for_older(&call, &prefix, created - 1).await?;
    // The lease may have run out while we waited, and taken the key with it.
    let found = recipe::range(&call, recipe::range_of(&key)).await?;
    waiting.keep();
    if found.kvs.is_empty() {
        return Err(Status::new(Code::Unknown, "mutex: session is expired"));
    }
    Ok(answer(found.header.unwrap_or_default(), key))
}

/// The first row of a range inside of a transaction.
pub(super) fn first_row(
    response: Option<Response>,
) -> Option<keelson_proto::rpc::mvccpb::KeyValue> {
    match response {
        Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
        _ => None,
    }
}

fn answer(header: keelson_proto::rpc::etcdserverpb::ResponseHeader, key: Bytes) -> Answer {
    Answer::message(&LockResponse {
        header: Some(header),
        key,
    })
}

pub(super) async fn unlock(call: &Call, request: UnlockRequest) -> Result<Answer, Status> {
    Ok(Answer::message(&UnlockResponse {
        header: Some(recipe::delete(call, &request.key).await?),
    }))
}
