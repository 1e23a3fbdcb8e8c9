//! Leases: grants and revokes go through the log; keep-alive and time-to-live ask the deadlines.

use std::time::{Duration, Instant};

use futures_util::stream;
use http::StatusCode;
use keelson_proto::ApiError;
use keelson_proto::ids::LeaseId;
use keelson_proto::rpc::etcdserverpb::{
    InternalRaftRequest, LeaseCheckpoint, LeaseCheckpointRequest, LeaseGrantRequest,
    LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use keelson_proto::rpc::leasepb::{LeaseInternalRequest, LeaseInternalResponse};
use keelson_store::auth::{Access, Need};
use keelson_store::lease::Renewal;
use keelson_store::{Outcome, quota};
use prost::Message as _;

use super::call::{Call, Caller, mismatched};
use super::inbound::Requests;
use super::splice::{Answer, Chunk, Ending, Framed};
use super::status::Status;
use crate::peers::forward::Forwarding;

/// How long to wait for what is committed to be applied, before a lease is called unknown.
const APPLY_PATIENCE: Duration = Duration::from_secs(1);

/// How long whoever asks the leader waits before it asks again: the reference's.
const FORWARD_PAUSE: Duration = Duration::from_millis(50);

/// How often to look whether it has been, and whether an expired lease has been revoked.
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(super) async fn grant(call: &Call, mut request: LeaseGrantRequest) -> Result<Answer, Status> {
    if request.id == 0 {
        request.id = new_id(call);
    }
    let request = InternalRaftRequest {
        lease_grant: Some(request),
        ..InternalRaftRequest::default()
    };
    call.check_space(quota::cost(&request)).await?;
    let Outcome::LeaseGrant { id, ttl, .. } = call.propose("LeaseGrant", request).await? else {
        return Err(mismatched());
    };
    Ok(Answer::message(&LeaseGrantResponse {
        header: Some(call.header_now()),
        id: id.0,
        ttl,
        error: String::new(),
    }))
}

/// A positive id that no other lease has.
fn new_id(call: &Call) -> i64 {
    let id = call.state.node.next_id().0 & (u64::MAX >> 1);
    i64::try_from(id.max(1)).expect("63 bits fit")
}

pub(super) async fn revoke(call: &Call, request: LeaseRevokeRequest) -> Result<Answer, Status> {
    let request = InternalRaftRequest {
        lease_revoke: Some(request),
        ..InternalRaftRequest::default()
    };
    let Outcome::LeaseRevoke { .. } = call.propose("LeaseRevoke", request).await? else {
        return Err(mismatched());
    };
    Ok(Answer::message(&LeaseRevokeResponse {
        header: Some(call.header_now()),
    }))
}

/// Answers each request in order; the stream ends with the client's side, with an error, or with the
/// member.
pub(super) fn keep_alive(call: Call, requests: Requests<LeaseKeepAliveRequest>) -> Answer {
    let lost = call.leader_lost();
    Answer::Pieces(Box::pin(stream::try_unfold(
        (call, requests, lost),
        |(call, mut requests, lost)| async move {
            let request = tokio::select! {
                request = requests.next() => request,
                () = call.state.draining.cancelled() => return Err(ApiError::Stopped.into()),
                () = lost.cancelled() => return Err(ApiError::NoLeader.into()),
            };
            let Some(request) = request else {
                return Ok(None);
            };
            let response = keep_one_alive(&call, LeaseId(request?.id)).await?;
            let chunk = Chunk::from(Framed::message(&response));
            Ok::<_, Ending>(Some((chunk, (call, requests, lost))))
        },
    )))
}

async fn keep_one_alive(call: &Call, id: LeaseId) -> Result<LeaseKeepAliveResponse, Status> {
    // Built before the lease is renewed: a revision that is too low is harmless.
    let header = call.header_now();
    permit_lease(call, id, Access::Write)?;
    let ttl = match renew(call, id).await? {
        Some(ttl) => {
            call.state.metrics.lease_renewed.inc();
            ttl
        }
        None => 0,
    };
    Ok(LeaseKeepAliveResponse {
        header: Some(header),
        id: id.0,
        ttl,
    })
}

/// Renews a lease, here or at the leader; what was granted, or `None` where there is no such lease.
async fn renew(call: &Call, id: LeaseId) -> Result<Option<i64>, Status> {
    let forwarding = Forwarding::begin(&call.state);
    loop {
        match renew_here(call, id).await {
            Err(status) if status == ApiError::NotPrimaryLessor.into() => {}
            done => return done,
        }
        let request = LeaseKeepAliveRequest { id: id.0 }.encode_to_vec();
        if let Some(response) = forwarding.post("/leases", None, request).await {
            match response.status() {
                StatusCode::OK => {
                    let answer = LeaseKeepAliveResponse::decode(response.into_body());
                    return Ok(Some(answer.map_err(|_| mismatched())?.ttl));
                }
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::REQUEST_TIMEOUT => {
                    return Err(ApiError::TimeoutWaitAppliedIndex.into());
                }
                _ => {}
            }
        }
        forwarding.pause(FORWARD_PAUSE).await?;
    }
}

/// Renews a lease by this member's own deadlines.
///
/// # Errors
///
/// [`ApiError::NotPrimaryLessor`] if it does not lead.
pub(crate) async fn renew_here(call: &Call, id: LeaseId) -> Result<Option<i64>, Status> {
    let mut caught_up = false;
    loop {
        let now = call.state.node.ticks();
        let renewal = call.shared().deadlines().renew(id, now);
        match renewal {
            Renewal::Renewed { ttl } => return Ok(Some(ttl)),
            Renewal::Unknown if caught_up => return Ok(None),
            Renewal::Unknown => {
                // Its grant may be committed and not applied.
                catch_up(call).await?;
                caught_up = true;
            }
            Renewal::ClearCheckpoint => {
                let checkpoint = LeaseCheckpoint {
                    id: id.0,
                    remaining_ttl: 0,
                };
                let request = InternalRaftRequest {
                    lease_checkpoint: Some(LeaseCheckpointRequest {
                        checkpoints: vec![checkpoint],
                    }),
                    ..InternalRaftRequest::default()
                };
                call.propose_as_is("LeaseCheckpoint", request).await?;
            }
            // Its revoke is under way; what is revoked does not come back.
            Renewal::Expired => tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = call.state.draining.cancelled() => return Err(ApiError::Stopped.into()),
            },
            Renewal::NotPrimary => return Err(ApiError::NotPrimaryLessor.into()),
        }
    }
}

/// Waits until what is committed now has been applied.
async fn catch_up(call: &Call) -> Result<(), Status> {
    let node = &call.state.node;
    let committed = node.status().committed;
    let deadline = Instant::now() + APPLY_PATIENCE;
    while node.status().applied < committed {
        if Instant::now() >= deadline {
            return Err(ApiError::TimeoutWaitAppliedIndex.into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

fn permit_lease(call: &Call, id: LeaseId, access: Access) -> Result<Caller, Status> {
    if !call.shared().auth().enabled() {
        return Ok(Caller::default());
    }
    let leases = call.shared().leases();
    call.permit(&Need::lease(&*leases, id, access))
}

pub(super) async fn time_to_live(
    call: &Call,
    request: LeaseTimeToLiveRequest,
) -> Result<Answer, Status> {
    let id = LeaseId(request.id);
    let caller = if request.keys {
        permit_lease(call, id, Access::Read)?
    } else {
        call.permit(&Need::Authenticated)?
    };
    let mut response = look(call, &request)
        .await?
        .unwrap_or(LeaseTimeToLiveResponse {
            ttl: -1,
            id: request.id,
            ..LeaseTimeToLiveResponse::default()
        });
    response.header = Some(call.header_now());
    if request.keys {
        call.still_permitted(&caller)?;
    }
    Ok(Answer::message(&response))
}

/// What is left of a lease, by the leader's deadlines; `None` where there is no such lease.
async fn look(
    call: &Call,
    request: &LeaseTimeToLiveRequest,
) -> Result<Option<LeaseTimeToLiveResponse>, Status> {
    let forwarding = Forwarding::begin(&call.state);
    loop {
        if call.state.node.is_leader() {
            let found = look_here(call, request).await?;
            if request.keys {
                // Others may have been attached since they were looked at.
                permit_lease(call, LeaseId(request.id), Access::Read)?;
            }
            return Ok(found);
        }
        let question = LeaseInternalRequest {
            lease_time_to_live_request: Some(*request),
        };
        let posted = forwarding.post("/leases/internal", None, question.encode_to_vec());
        if let Some(response) = posted.await {
            match response.status() {
                StatusCode::OK => {
                    let answer = LeaseInternalResponse::decode(response.into_body());
                    let answer = answer
                        .map_err(|_| mismatched())?
                        .lease_time_to_live_response;
                    let answer = answer.ok_or_else(mismatched)?;
                    if request.keys {
                        // Others may have been attached since they were looked at.
                        let id = LeaseId(request.id);
                        permit_lease(call, id, Access::Read)?;
                    }
                    return Ok(Some(answer));
                }
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::REQUEST_TIMEOUT => {
                    return Err(ApiError::TimeoutWaitAppliedIndex.into());
                }
                _ => {}
            }
        }
        forwarding.pause(FORWARD_PAUSE).await?;
    }
}

/// What is left of a lease, by this member's own deadlines.
///
/// # Errors
///
/// [`ApiError::LeaderChanged`] if it does not lead.
pub(crate) async fn look_here(
    call: &Call,
    request: &LeaseTimeToLiveRequest,
) -> Result<Option<LeaseTimeToLiveResponse>, Status> {
    let id = LeaseId(request.id);
    catch_up(call).await?;
    let now = call.state.node.ticks();
    // One lock after the other, as apply takes them.
    let remaining = call.shared().deadlines().remaining(id, now);
    let Some(remaining) = remaining else {
        return Ok(None);
    };
    let leases = call.shared().leases();
    let Some(lease) = leases.get(id) else {
        return Ok(None);
    };
    let mut response = LeaseTimeToLiveResponse {
        header: None,
        id: request.id,
        ttl: remaining.seconds().ok_or(ApiError::LeaderChanged)?,
        granted_ttl: lease.ttl(),
        keys: Vec::new(),
    };
    if request.keys {
        let keys = lease.keys();
        response.keys = keys.iter().map(bytes::Bytes::copy_from_slice).collect();
    }
    Ok(Some(response))
}

pub(super) async fn leases(call: &Call, _request: LeaseLeasesRequest) -> Result<Answer, Status> {
    // Before the check: no lease is shown that was not looked at.
    let listed = call.shared().deadlines().by_remaining();
    if call.shared().auth().enabled() {
        let leases = call.shared().leases();
        let keys = leases.iter().map(|(_, lease)| lease.keys());
        call.permit(&Need::every_lease(keys, Access::Read))?;
    }
    Ok(Answer::message(&LeaseLeasesResponse {
        header: Some(call.header_now()),
        leases: listed
            .into_iter()
            .map(|id| LeaseStatus { id: id.0 })
            .collect(),
    }))
}
