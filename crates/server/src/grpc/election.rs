//! Elections: as locks, with a value that the leader proclaims.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use keelson_proto::rpc::etcdserverpb::request_op::Request;
use keelson_proto::rpc::etcdserverpb::{DeleteRangeRequest, PutRequest, ResponseHeader};
use keelson_proto::rpc::mvccpb::KeyValue;
use keelson_proto::rpc::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use keelson_proto::{ApiError, Code};
use keelson_store::Revision;

use super::call::Call;
use super::lock::first_row;
use super::recipe::{self, Abandoned, Prefix};
use super::splice::{Answer, Chunk, Ending, Framed};
use super::status::Status;

fn unknown(text: &'static str) -> Status {
    Status::new(Code::Unknown, text)
}

fn leader_of(leader: Option<LeaderKey>) -> Result<LeaderKey, Status> {
    leader.ok_or_else(|| unknown("\"leader\" field must be provided"))
}

pub(super) async fn campaign(call: Call, request: CampaignRequest) -> Result<Answer, Status> {
    let call = Arc::new(call);
    let lease = recipe::session(&call, request.lease).await?;
    let prefix = Prefix::of(&request.name);
    let key = prefix.key(lease);
    let put = Request::RequestPut(PutRequest {
        key: key.clone(),
        value: request.value.clone(),
        lease,
        ..PutRequest::default()
    });
    let look = Request::RequestRange(recipe::range_of(&key));
    let absent = recipe::created_at(&key, 0);
    let entered = recipe::run(&call, absent, vec![put], vec![look]).await?;
    let header = entered.header.unwrap_or_default();
    let waiting = Abandoned::new(&call, &key);
    let mut rev = header.revision;
    if !entered.succeeded {
        let found = first_row(
            entered
                .responses
                .into_iter()
                .next()
                .and_then(|op| op.response),
        );
        let found = found.unwrap_or_default();
        rev = found.create_revision;
        if found.value != request.value {
            put_as_leader(&call, &key, rev, lease, request.value).await?;
        }
    }
    recipe::wait_for_older(&call, &prefix, rev - 1).await?;
    waiting.keep();
    Ok(Answer::message(&CampaignResponse {
        header: Some(header),
        leader: Some(LeaderKey {
            name: request.name,
            key,
            rev,
            lease,
        }),
    }))
}

/// Puts a value under a key that was created at this revision and is still there.
async fn put_as_leader(
    call: &Call,
    key: &Bytes,
    rev: i64,
    lease: i64,
    value: Bytes,
) -> Result<ResponseHeader, Status> {
    let put = Request::RequestPut(PutRequest {
        key: key.clone(),
        value,
        lease,
        ..PutRequest::default()
    });
    let mine = recipe::created_at(key, rev);
    let done = recipe::run(call, mine, vec![put], Vec::new()).await?;
    if !done.succeeded {
        return Err(unknown("election: not leader"));
    }
    Ok(done.header.unwrap_or_default())
}

pub(super) async fn proclaim(call: &Call, request: ProclaimRequest) -> Result<Answer, Status> {
    let leader = leader_of(request.leader)?;
    let lease = recipe::session(call, leader.lease).await?;
    let header = put_as_leader(call, &leader.key, leader.rev, lease, request.value).await?;
    Ok(Answer::message(&ProclaimResponse {
        header: Some(header),
    }))
}

pub(super) async fn resign(call: &Call, request: ResignRequest) -> Result<Answer, Status> {
    let leader = leader_of(request.leader)?;
    let delete = Request::RequestDeleteRange(DeleteRangeRequest {
        key: leader.key.clone(),
        ..DeleteRangeRequest::default()
    });
    let mine = recipe::created_at(&leader.key, leader.rev);
    let done = recipe::run(call, mine, vec![delete], Vec::new()).await?;
    Ok(Answer::message(&ResignResponse {
        header: done.header,
    }))
}

pub(super) async fn leader(call: &Call, request: LeaderRequest) -> Result<Answer, Status> {
    let (header, kv) = recipe::oldest(call, &Prefix::of(&request.name)).await?;
    if kv.is_none() {
        return Err(unknown("election: no leader"));
    }
    Ok(Answer::message(&LeaderResponse {
        header: Some(header),
        kv,
    }))
}

/// Tells the leader and every value that it proclaims, then the next leader, without end.
pub(super) fn observe(call: Call, request: &LeaderRequest) -> Answer {
    let prefix = Prefix::of(&request.name);
    let lost = call.leader_lost();
    let observer = Observer {
        call,
        prefix,
        leader: None,
    };
    Answer::Pieces(Box::pin(stream::try_unfold(
        (observer, lost),
        |(mut observer, lost)| async move {
            let (header, kv) = tokio::select! {
                next = observer.next() => next?,
                () = lost.cancelled() => return Err(ApiError::NoLeader.into()),
            };
            let message = Framed::message(&LeaderResponse {
                header: Some(header),
                kv: Some(kv),
            });
            Ok::<_, Ending>(Some((Chunk::from(message), (observer, lost))))
        },
    )))
}

struct Observer {
    call: Call,
    prefix: Prefix,
    /// The leader's key, and the revision up to which it has been told.
    leader: Option<(Bytes, i64)>,
}

impl Observer {
    async fn next(&mut self) -> Result<(ResponseHeader, KeyValue), Status> {
        loop {
            let state = Arc::clone(&self.call.state);
            let changed = state.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // Before the look, so that no change falls between.
            changed.as_mut().enable();
            match self.leader.take() {
                None => {
                    let (header, kv) = recipe::oldest(&self.call, &self.prefix).await?;
                    if let Some(kv) = kv {
                        self.leader = Some((kv.key.clone(), kv.mod_revision));
                        return Ok((header, kv));
                    }
                }
                Some((key, told)) => match self.following(&key, told) {
                    Some((revision, false)) => {
                        let mut request = recipe::range_of(&key);
                        request.revision = revision;
                        let found = recipe::range(&self.call, request).await?;
                        self.leader = Some((key, revision));
                        if let Some(kv) = found.kvs.into_iter().next() {
                            return Ok((self.call.header(revision), kv));
                        }
                        continue;
                    }
                    // It has resigned, or its lease has run out: on to the next one.
                    Some((_, true)) => continue,
                    None => self.leader = Some((key, told)),
                },
            }
            recipe::changed_or_stopped(&self.call, changed).await?;
        }
    }

    /// The next revision of a key after one, and whether it is the key's end.
    fn following(&self, key: &[u8], after: i64) -> Option<(i64, bool)> {
        let shared = self.call.shared();
        let upto = Revision::end_of(shared.revision());
        let mut next = None;
        shared.index().since(
            key,
            after.saturating_add(1),
            upto,
            &mut |revision, tombstone| {
                next.get_or_insert((revision.main, tombstone));
            },
        );
        next
    }
}
