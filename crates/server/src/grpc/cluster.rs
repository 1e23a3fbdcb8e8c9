//! The members of the cluster, and changing them.
//!
//! The checks that keep a quorum alive are made here, by the member that is asked, and not at apply:
//! what they look at is known to it alone (api.md 2.10).

use std::time::Duration;

use http::StatusCode;
use keelson_node::{Order, Reply};
use keelson_proto::ApiError;
use keelson_proto::entry::{ConfChange, ConfChangeKind};
use keelson_proto::ids::MemberId;
use keelson_proto::rpc::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse,
};
use keelson_store::Outcome;
use keelson_store::auth::Need;
use keelson_store::member::{self, Membership};

use super::call::{Call, mismatched};
use super::splice::Answer;
use super::status::Status;
use crate::peers::forward;
use crate::url::Url;

/// How long a member must have been connected to count as healthy: the reference's.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);

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
    may_add(call, &member)?;
    let kind = if member.is_learner {
        ConfChangeKind::AddLearnerNode
    } else {
        ConfChangeKind::AddNode
    };
    change(call, kind, member.id, member.add_context()).await?;
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
    may_remove(call, id)?;
    change(call, ConfChangeKind::RemoveNode, id, Vec::new()).await?;
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
    let member = member::Member {
        id,
        peer_urls: request.peer_ur_ls,
        ..member::Member::default()
    };
    change(call, ConfChangeKind::UpdateNode, id, member.to_json()).await?;
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
        Err(status) if status == ApiError::NotLeader.into() => {
            let members = promote_elsewhere(call, id).await?;
            members.iter().map(shown).collect()
        }
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
    let members = call.shared().members();
    let member = members.member(id).ok_or(ApiError::MemberNotFound)?;
    if !member.is_learner {
        return Err(ApiError::MemberNotLearner.into());
    }
    let Reply::Progress(progress) = call.order(Order::Progress).await? else {
        return Err(mismatched());
    };
    let matched = |of: MemberId| {
        let found = progress.iter().find(|it| it.member == of);
        found.map(|it| it.matched.0)
    };
    let own = matched(call.state.node.member_id()).ok_or(ApiError::NotLeader)?;
    let theirs = matched(id).unwrap_or(0);
    // In whole numbers, since an index may be past what a float tells apart.
    if u128::from(theirs) * 10 < u128::from(own) * 9 {
        return Err(ApiError::LearnerNotReady.into());
    }
    if call.state.node.config().strict_reconfig && !members.may_promote() {
        return Err(ApiError::MemberNotEnoughStarted.into());
    }
    let context = member::Member::promote_context(id);
    change(call, ConfChangeKind::AddNode, id, context).await
}

/// Asks the leader to promote, until it has, says why not, or the time is up.
async fn promote_elsewhere(call: &Call, id: MemberId) -> Result<Vec<member::Member>, Status> {
    let path = format!("/members/promote/{}", id.0);
    let refusals = [
        ApiError::MemberNotFound,
        ApiError::MemberNotLearner,
        ApiError::LearnerNotReady,
    ];
    let forwarding = forward::Forwarding::begin(&call.state);
    loop {
        if let Some(response) = forwarding.post(&path, call.token(), "").await {
            let text = String::from_utf8_lossy(response.body());
            match response.status() {
                StatusCode::OK => return forward::members(&text).ok_or_else(mismatched),
                StatusCode::NOT_FOUND => return Err(ApiError::MemberNotFound.into()),
                _ => {}
            }
            let says = |error: &&ApiError| {
                let short = error.text().trim_start_matches("etcdserver: ");
                text.contains(short)
            };
            if let Some(error) = refusals.iter().find(says) {
                return Err((*error).into());
            }
        }
        forwarding.pause(FORWARD_PAUSE).await?;
    }
}

/// Proposes a change and waits until consensus itself has applied it. There is no time-out of ours: it
/// takes as long as a quorum does, or until the caller has waited long enough.
async fn change(
    call: &Call,
    kind: ConfChangeKind,
    member: MemberId,
    context: Vec<u8>,
) -> Result<(), Status> {
    let change = ConfChange {
        id: 0,
        kind,
        member,
        context: context.into(),
    };
    match call.propose_conf_change(change).await? {
        Outcome::Refused(error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Whether adding a member keeps the quorum alive.
fn may_add(call: &Call, member: &member::Member) -> Result<(), Status> {
    if !call.state.node.config().strict_reconfig {
        return Ok(());
    }
    let members = call.shared().members();
    if !member.is_learner && !members.may_add_voter() {
        return Err(rejected("add", member.id, ApiError::MemberNotEnoughStarted));
    }
    let voters = members.voters().count();
    // The new one counts as down.
    if voters > 1 && healthy(call, &members) < quorum(voters + 1) {
        return Err(rejected("add", member.id, ApiError::Unhealthy));
    }
    Ok(())
}

/// Whether removing a member keeps the quorum alive.
fn may_remove(call: &Call, id: MemberId) -> Result<(), Status> {
    let node = &call.state.node;
    if !node.config().strict_reconfig {
        return Ok(());
    }
    let members = call.shared().members();
    if members.member(id).is_some_and(|member| member.is_learner) {
        return Ok(());
    }
    if !members.may_remove_voter(id) {
        return Err(rejected("remove", id, ApiError::MemberNotEnoughStarted));
    }
    let is_down = id != node.member_id() && !call.state.peers.connected().contains_key(&id);
    // One that is down is no part of the quorum that is alive.
    if is_down {
        return Ok(());
    }
    let left = members.voters().count().saturating_sub(1);
    if healthy(call, &members).saturating_sub(1) < quorum(left) {
        return Err(rejected("remove", id, ApiError::Unhealthy));
    }
    Ok(())
}

fn rejected(what: &'static str, id: MemberId, error: ApiError) -> Status {
    tracing::warn!(
        "requested-member-id" = %id,
        error = error.text(),
        "rejecting member {what} request"
    );
    error.into()
}

fn quorum(of: usize) -> usize {
    of / 2 + 1
}

/// Voters that have been connected for a while, this member with them.
fn healthy(call: &Call, members: &Membership) -> usize {
    let node = &call.state.node;
    let connected = call.state.peers.connected();
    let now = node.env().clock.now();
    let long = |id: MemberId| {
        let since = connected.get(&id);
        since.is_some_and(|since| *since + HEALTH_INTERVAL < now)
    };
    let own = node.member_id();
    let voters = members.voters().map(|member| member.id);
    voters.filter(|id| *id == own || long(*id)).count()
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
