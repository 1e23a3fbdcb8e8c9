//! The members of the cluster. Changing them comes with the cluster itself.

use keelson_proto::ids::MemberId;
use keelson_proto::rpc::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberRemoveRequest, MemberUpdateRequest,
};
use keelson_proto::{ApiError, Code};
use keelson_store::auth::Need;
use keelson_store::member;

use super::call::Call;
use super::splice::Answer;
use super::status::Status;
use crate::url::Url;

pub(super) async fn member_list(call: &Call, request: MemberListRequest) -> Result<Answer, Status> {
    call.permit(&Need::Authenticated)?;
    if request.linearizable {
        call.read_barrier().await?;
    }
    Ok(Answer::message(&MemberListResponse {
        header: Some(call.header(0)),
        members: call.shared().members().members().map(shown).collect(),
    }))
}

pub(super) async fn member_add(call: &Call, request: MemberAddRequest) -> Result<Answer, Status> {
    let urls = &request.peer_ur_ls;
    if urls.is_empty() || urls.iter().any(|url| Url::parse(url).is_err()) {
        return Err(ApiError::MemberBadUrls.into());
    }
    call.permit(&Need::Admin)?;
    Err(not_yet())
}

pub(super) async fn member_remove(
    call: &Call,
    request: MemberRemoveRequest,
) -> Result<Answer, Status> {
    call.permit(&Need::Admin)?;
    known(call, request.id)?;
    Err(not_yet())
}

pub(super) async fn member_update(
    call: &Call,
    request: MemberUpdateRequest,
) -> Result<Answer, Status> {
    call.permit(&Need::Admin)?;
    known(call, request.id)?;
    Err(not_yet())
}

pub(super) async fn member_promote(
    call: &Call,
    request: MemberPromoteRequest,
) -> Result<Answer, Status> {
    call.permit(&Need::Admin)?;
    known(call, request.id)?;
    Err(ApiError::MemberNotLearner.into())
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

fn known(call: &Call, id: u64) -> Result<(), Status> {
    match call.shared().members().member(MemberId(id)) {
        Some(_) => Ok(()),
        None => Err(ApiError::MemberNotFound.into()),
    }
}

fn not_yet() -> Status {
    Status::new(
        Code::Unimplemented,
        "keelson: membership changes come with the cluster",
    )
}
