//! The members of the cluster, and changing them.
//!
//! The checks that keep a quorum alive are made by the member that is asked, and not at apply: what they
//! look at is known to it alone (`keelson_node::conf`).

use std::time::Duration;

use keelson_node::{Order, Reply};
use keelson_proto::ApiError;
use keelson_proto::entry::ConfChange;
use keelson_proto::ids::MemberId;
use keelson_proto::rpc::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse,
};
use keelson_store::Outcome;
use keelson_store::auth::Need;
use keelson_store::member;
use keelson_transport::MemberInfo;

use super::call::{Call, mismatched};
use super::splice::Answer;
use super::status::Status;
use crate::peers::forward::{Forwarding, PATIENCE, refusal};
use crate::url::Url;

/// How long whoever forwards waits before it tries again.
const FORWARD_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn member_list(call: &Call, request: MemberListRequest) -> Result<Answer, Status> {
    call.permit(&Need::Authenticated)?;
    if request.linearizable {
        call.read_barrier().await?;
    }
    Ok(Answer::message(&MemberListResponse {
        header: Some(call.header(0)),
        members: all(call),
    }))
}

pub(super) async fn member_add(call: &Call, request: MemberAddRequest) -> Result<Answer, Status> {
    let urls = request.peer_ur_ls;
    if urls.is_empty() || urls.iter().any(|url| Url::parse(url).is_err()) {
        return Err(ApiError::MemberBadUrls.into());
    }
    call.permit(&Need::Admin)?;
    let now = call.state.node.env().clock.wall().as_secs();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let member = member::Member::new(String::new(), urls, "", Some(now), request.is_learner);
    let added = call.state.node.surroundings(|it| it.add(&member));
    let added = added.map_err(|error| rejected("add", member.id, error))?;
    change(call, added).await?;
    Ok(Answer::message(&MemberAddResponse {
        header: Some(call.header(0)),
        member: Some(shown(&member)),
        members: all(call),
    }))
}

pub(super) async fn member_remove(
    call: &Call,
    request: MemberRemoveRequest,
) -> Result<Answer, Status> {
    call.permit(&Need::Admin)?;
    let id = MemberId(request.id);
    let removed = call.state.node.surroundings(|it| it.remove(id));
    let removed = removed.map_err(|error| rejected("remove", id, error))?;
    change(call, removed).await?;
    Ok(Answer::message(&MemberRemoveResponse {
        header: Some(call.header(0)),
        members: all(call),
    }))
}

pub(super) async fn member_update(
    call: &Call,
    request: MemberUpdateRequest,
) -> Result<Answer, Status> {
    call.permit(&Need::Admin)?;
    let id = MemberId(request.id);
    let urls = request.peer_ur_ls;
    let updated = call.state.node.surroundings(|it| it.update(id, urls));
    change(call, updated).await?;
    Ok(Answer::message(&MemberUpdateResponse {
        header: Some(call.header(0)),
        members: all(call),
    }))
}

pub(super) async fn member_promote(
    call: &Call,
    request: MemberPromoteRequest,
) -> Result<Answer, Status> {
    call.permit(&Need::Admin)?;
    let id = MemberId(request.id);
    let members = match promote(call, id).await {
        Err(status) if status == ApiError::NotLeader.into() => promote_elsewhere(call, id).await?,
        done => {
            done?;
            all(call)
        }
    };
    Ok(Answer::message(&MemberPromoteResponse {
        header: Some(call.header(0)),
        members,
    }))
}

/// Makes a voter of a learner, if this member leads.
///
/// # Errors
///
/// [`ApiError::NotLeader`]; [`ApiError::LearnerNotReady`] and what the membership says against it.
pub(crate) async fn promote(call: &Call, id: MemberId) -> Result<(), Status> {
    if !call.state.node.is_leader() {
        return Err(ApiError::NotLeader.into());
    }
    let promoted = promote_here(call, id).await;
    let metrics = &call.state.metrics;
    match &promoted {
        Ok(()) => metrics.promotions.inc(),
        Err(status) => {
            let reason = metrics
                .failed_promotions
                .with_label_values(&[&*status.text]);
            reason.inc();
        }
    }
    promoted
}

async fn promote_here(call: &Call, id: MemberId) -> Result<(), Status> {
    let members = call.shared().members();
    let member = members.member(id).ok_or(ApiError::MemberNotFound)?;
    if !member.is_learner {
        return Err(ApiError::MemberNotLearner.into());
    }
    let Reply::Progress(progress) = call.order(Order::Progress).await? else {
        return Err(mismatched());
    };
    let promoted = call
        .state
        .node
        .surroundings(|it| it.promote(id, &progress))?;
    change(call, promoted).await
}

/// Asks the leader to promote, until it has, says why not, or the time is up.
async fn promote_elsewhere(call: &Call, id: MemberId) -> Result<Vec<Member>, Status> {
    let client = &call.state.peers.client;
    let token = call.token();
    let token = token.as_ref().and_then(|token| token.to_str().ok());
    let forwarding = Forwarding::begin(&call.state);
    loop {
        for url in forwarding.leader_urls() {
            let refused = match client.promote(&url, id, token, PATIENCE).await {
                Ok(members) => return Ok(members.into_iter().map(told).collect()),
                Err(error) => refusal(error),
            };
            match refused {
                Some((404, _)) => return Err(ApiError::MemberNotFound.into()),
                Some((412, text)) if text.contains("in sync with leader") => {
                    return Err(ApiError::LearnerNotReady.into());
                }
                Some((412, _)) => return Err(ApiError::MemberNotLearner.into()),
                Some(_) => break,
                None => {}
            }
        }
        forwarding.pause(FORWARD_PAUSE).await?;
    }
}

/// A member as the leader told it.
fn told(member: MemberInfo) -> Member {
    Member {
        id: member.id,
        name: member.name,
        peer_ur_ls: member.peer_urls,
        client_ur_ls: member.client_urls,
        is_learner: member.is_learner,
    }
}

/// Proposes a change and waits until consensus itself has applied it. There is no time-out of ours: it
/// takes as long as a quorum does, or until the caller has waited long enough.
async fn change(call: &Call, change: ConfChange) -> Result<(), Status> {
    match call.propose_conf_change(change).await? {
        Outcome::Refused(error) => Err(error.into()),
        _ => Ok(()),
    }
}

fn rejected(what: &'static str, id: MemberId, error: ApiError) -> Status {
    tracing::warn!(
        "requested-member-id" = %id,
        error = error.text(),
        "rejecting member {what} request"
    );
    error.into()
}

fn all(call: &Call) -> Vec<Member> {
    call.shared().members().members().map(shown).collect()
}

fn shown(member: &member::Member) -> Member {
    Member {
        id: member.id.0,
        name: member.name.clone(),
        peer_ur_ls: member.peer_urls.clone(),
        client_ur_ls: member.client_urls.clone(),
        is_learner: member.is_learner,
    }
}
