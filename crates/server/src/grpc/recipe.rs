//! What locks and elections are made of: keys that hang on a lease, ordered by when they were
//! created, and waiting for those that are older.
//!
//! Everything is done through the handlers of KV and Lease, in the name of the caller, as a client
//! would do it; errors are told as those of an inner call (api.md 2.13).

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use keelson_proto::Code;
use keelson_proto::rpc::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::rpc::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_proto::rpc::etcdserverpb::request_op::Request;
use keelson_proto::rpc::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse,
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
};
use keelson_proto::rpc::mvccpb::KeyValue;
use prost::Message;

use super::call::{Call, mismatched};
use super::inbound::decode;
use super::splice::{Answer, Ending};
use super::status::Status;
use super::{kv, lease, txn};

/// What a lease is granted that nobody brought, in seconds.
const SESSION_TTL: i64 = 60;

/// The response that an answer holds.
async fn response<R: Message + Default>(answer: Answer) -> Result<R, Status> {
    match answer {
        Answer::Whole(framed) => decode(framed.into_message()),
        Answer::Pieces(mut chunks) => {
            let mut all = BytesMut::new();
            while let Some(chunk) = chunks.next().await {
                match chunk {
                    Ok(chunk) => all.extend_from_slice(chunk.bytes()),
                    Err(Ending::Status(status)) => return Err(status),
                    Err(Ending::Reset) => return Err(mismatched()),
                }
            }
            decode(super::splice::Framed::finished(all).into_message())
        }
    }
}

/// An error of an inner call goes out as unknown, with its text.
fn inner(status: Status) -> Status {
    Status {
        code: Code::Unknown,
        text: status.text,
    }
}

/// All keys of a name: `name/` and what follows it.
pub(super) struct Prefix {
    pub(super) prefix: Bytes,
    end: Bytes,
}

impl Prefix {
    pub(super) fn of(name: &[u8]) -> Prefix {
        let with = |last: u8| {
            let mut out = BytesMut::with_capacity(name.len() + 1);
            out.put_slice(name);
            out.put_u8(last);
            out.freeze()
        };
        Prefix {
            prefix: with(b'/'),
            // The byte after the slash.
            end: with(b'0'),
        }
    }

    /// The key of a lease: its number in lower-case hex, without padding.
    pub(super) fn key(&self, lease: i64) -> Bytes {
        let mut out = BytesMut::from(&self.prefix[..]);
        out.put_slice(format!("{lease:x}").as_bytes());
        out.freeze()
    }

    /// The oldest key, by its creation.
    fn oldest(&self) -> RangeRequest {
        let mut request = RangeRequest {
            key: self.prefix.clone(),
            range_end: self.end.clone(),
            limit: 1,
            ..RangeRequest::default()
        };
        request.set_sort_order(SortOrder::Ascend);
        request.set_sort_target(SortTarget::Create);
        request
    }

    /// The youngest of the keys that were created at this revision or before.
    fn youngest_upto(&self, revision: i64) -> RangeRequest {
        RangeRequest {
            max_create_revision: revision,
            sort_order: SortOrder::Descend.into(),
            ..self.oldest()
        }
    }
}

pub(super) fn range_of(key: &Bytes) -> RangeRequest {
    RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    }
}

fn op(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

/// Holds when the key was created at this revision; 0 for a key that is not there.
pub(super) fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

/// A range, in the name of the caller.
pub(super) async fn range(call: &Call, request: RangeRequest) -> Result<RangeResponse, Status> {
    let answer = kv::range(call, request).await.map_err(inner)?;
    response(answer).await.map_err(inner)
}

/// A transaction, in the name of the caller.
pub(super) async fn run(
    call: &Call,
    compare: Compare,
    success: Vec<Request>,
    failure: Vec<Request>,
) -> Result<TxnResponse, Status> {
    let request = TxnRequest {
        compare: vec![compare],
        success: success.into_iter().map(op).collect(),
        failure: failure.into_iter().map(op).collect(),
    };
    let answer = txn::txn(call, request).await.map_err(inner)?;
    response(answer).await.map_err(inner)
}

/// A deletion of one key, in the name of the caller.
pub(super) async fn delete(call: &Call, key: &Bytes) -> Result<ResponseHeader, Status> {
    let request = DeleteRangeRequest {
        key: key.clone(),
        ..DeleteRangeRequest::default()
    };
    let answer = kv::delete_range(call, request).await.map_err(inner)?;
    let response: DeleteRangeResponse = response(answer).await.map_err(inner)?;
    Ok(response.header.unwrap_or_default())
}

/// The lease to work with: the caller's, or a new one that is not kept alive.
pub(super) async fn session(call: &Call, lease: i64) -> Result<i64, Status> {
    if lease != 0 {
        return Ok(lease);
    }
    let request = LeaseGrantRequest {
        ttl: SESSION_TTL,
        id: 0,
    };
    let answer = lease::grant(call, request).await.map_err(inner)?;
    let granted: LeaseGrantResponse = response(answer).await.map_err(inner)?;
    Ok(granted.id)
}

/// The oldest key of a prefix, with the header of the look.
pub(super) async fn oldest(
    call: &Call,
    prefix: &Prefix,
) -> Result<(ResponseHeader, Option<KeyValue>), Status> {
    let found = range(call, prefix.oldest()).await?;
    Ok((
        found.header.unwrap_or_default(),
        found.kvs.into_iter().next(),
    ))
}

/// Waits until none of the keys is left that were created at this revision or before.
pub(super) async fn wait_for_older(
    call: &Call,
    prefix: &Prefix,
    revision: i64,
) -> Result<(), Status> {
    loop {
        let changed = call.state.changed.notified();
        let mut changed = std::pin::pin!(changed);
        // Before the look, so that no change falls between.
        changed.as_mut().enable();
        let older = range(call, prefix.youngest_upto(revision)).await?;
        if older.kvs.is_empty() {
            return Ok(());
        }
        changed_or_stopped(call, changed).await?;
    }
}

/// Waits for the next change of the store.
///
/// # Errors
///
/// When the member stops.
pub(super) async fn changed_or_stopped(
    call: &Call,
    changed: impl Future<Output = ()>,
) -> Result<(), Status> {
    tokio::select! {
        () = changed => Ok(()),
        () = call.state.draining.cancelled() => Err(keelson_proto::ApiError::Stopped.into()),
    }
}

/// Deletes a waiting key when its waiting is given up, by an error or because nobody waits any more.
pub(super) struct Abandoned {
    call: Option<(Arc<Call>, Bytes)>,
}

impl Abandoned {
    pub(super) fn new(call: &Arc<Call>, key: &Bytes) -> Abandoned {
        Abandoned {
            call: Some((Arc::clone(call), key.clone())),
        }
    }

    /// The key has what it waited for, and stays.
    pub(super) fn keep(mut self) {
        self.call = None;
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        let Some((call, key)) = self.call.take() else {
            return;
        };
        // Without a runtime the member is gone, and the lease will take the key.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(status) = delete(&call, &key).await {
                    tracing::warn!(error = %status.text, "failed to delete a waiting key");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_name_a_slash_and_the_lease_in_hex() {
        let prefix = Prefix::of(b"lk");
        assert_eq!(&prefix.key(101)[..], b"lk/65");
        assert_eq!(&prefix.key(-1)[..], b"lk/ffffffffffffffff");
        assert_eq!(
            (&prefix.prefix[..], &prefix.end[..]),
            (&b"lk/"[..], &b"lk0"[..])
        );
    }
}
