//! Maintenance, but for the snapshot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::assemble::{failed, refusal_of};
use super::call::{Call, mismatched};
use super::splice::Answer;
use super::status::Status;
use keelson_node::{Order, Reply};
use keelson_proto::ApiError;
use keelson_proto::ids::MemberId;
use keelson_proto::rpc::etcdserverpb::downgrade_request::DowngradeAction;
use keelson_proto::rpc::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeInfo, DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest,
    HashResponse, InternalRaftRequest, MoveLeaderRequest, MoveLeaderResponse, StatusResponse,
};
use keelson_proto::rpc::membershippb::DowngradeInfoSetRequest;
use keelson_store::auth::Need;
use keelson_store::{Durable, Outcome, alarm, hash, quota};

/// How often to look whether leadership has moved.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a hash is counted as in the reader pool, in bytes: it goes behind every chunk of a range.
pub(crate) const HASH_COST: u64 = 1 << 20;

pub(super) async fn alarm(call: &Call, request: AlarmRequest) -> Result<Answer, Status> {
    alarm::check_action(&request)?;
    let request = InternalRaftRequest {
        alarm: Some(request),
        ..InternalRaftRequest::default()
    };
    let Outcome::Alarm { alarms } = call.propose("Alarm", request).await? else {
        return Err(mismatched());
    };
    Ok(Answer::message(&AlarmResponse {
        header: Some(call.header_now()),
        alarms,
    }))
}

pub(super) fn status(call: &Call) -> Result<Answer, Status> {
    call.permit(&Need::Authenticated)?;
    let status = call.state.node.status();
    let shared = call.shared();
    let sizes = shared.sizes();
    let mut errors = Vec::new();
    if status.leader.is_none() {
        errors.push(ApiError::NoLeader.to_string());
    }
    let alarms = shared.alarms().get(AlarmType::None.into());
    errors.extend(alarms.iter().map(alarm_text));
    let configured = call.state.settings.quota_backend_bytes;
    let header = call.header_now();
    Ok(Answer::message(&StatusResponse {
        version: call.state.settings.version.to_owned(),
        db_size: i64::try_from(sizes.total).unwrap_or(i64::MAX),
        leader: status.leader.0,
        raft_index: status.committed.0,
        raft_term: header.raft_term,
        raft_applied_index: status.applied.0,
        errors,
        db_size_in_use: i64::try_from(sizes.in_use).unwrap_or(i64::MAX),
        is_learner: status.is_learner,
        storage_version: shared
            .schema_version()
            .map_or_else(String::new, |version| version.to_string()),
        db_size_quota: quota::effective(configured)
            .and_then(|quota| i64::try_from(quota).ok())
            .unwrap_or(configured),
        downgrade_info: Some(downgrade_info(call)),
        header: Some(header),
    }))
}

fn downgrade_info(call: &Call) -> DowngradeInfo {
    let downgrade = call.shared().members().downgrade();
    DowngradeInfo {
        enabled: downgrade.enabled,
        target_version: downgrade.target_version,
    }
}

/// An alarm as Go prints the message.
fn alarm_text(alarm: &AlarmMember) -> String {
    let mut parts = Vec::new();
    if alarm.member_id != 0 {
        parts.push(format!("memberID:{}", alarm.member_id));
    }
    match alarm.alarm() {
        AlarmType::None => {}
        kind => parts.push(format!("alarm:{}", kind.as_str_name())),
    }
    parts.join(" ")
}

pub(super) async fn defragment(call: &Call, _request: DefragmentRequest) -> Result<Answer, Status> {
    call.permit(&Need::Admin)?;
    tracing::info!("starting defragment");
    match call.order(Order::Defragment).await {
        Ok(Reply::Done) => {
            tracing::info!("finished defragment");
            Ok(Answer::message(&DefragmentResponse { header: None }))
        }
        Ok(_) => Err(mismatched()),
        Err(status) => {
            tracing::warn!(error = %status.text, "failed to defragment");
            Err(status)
        }
    }
}

/// What is in the file, with everything that was applied before.
pub(super) async fn durable(call: &Call) -> Result<Durable, Status> {
    match call.order(Order::Commit).await? {
        Reply::Durable(durable) => Ok(durable),
        _ => Err(mismatched()),
    }
}

pub(super) async fn hash(call: &Call, _request: HashRequest) -> Result<Answer, Status> {
    call.permit(&Need::Admin)?;
    let started = Instant::now();
    let durable = durable(call).await?;
    let hash = call
        .state
        .pool
        .run(HASH_COST, move || hash::hash(&durable))
        .await?
        .map_err(|error| failed(&error))?;
    let took = started.elapsed().as_secs_f64();
    call.state.metrics.hash_seconds.observe(took);
    Ok(Answer::message(&HashResponse {
        header: Some(call.header_now()),
        hash,
    }))
}

pub(super) async fn hash_kv(call: &Call, request: HashKvRequest) -> Result<Answer, Status> {
    call.permit(&Need::Admin)?;
    let started = Instant::now();
    let shared = Arc::clone(call.shared());
    let hash = call
        .state
        .pool
        .run(HASH_COST, move || hash::hash_kv(&shared, request.revision))
        .await?
        .map_err(refusal_of)?;
    let took = started.elapsed().as_secs_f64();
    call.state.metrics.hash_kv_seconds.observe(took);
    Ok(Answer::message(&HashKvResponse {
        header: Some(call.header_now()),
        hash: hash.hash,
        compact_revision: hash.compact_revision,
        hash_revision: hash.hash_revision,
    }))
}

pub(super) async fn move_leader(call: &Call, request: MoveLeaderRequest) -> Result<Answer, Status> {
    call.permit(&Need::Admin)?;
    let node = &call.state.node;
    if node.status().leader != node.member_id() {
        return Err(ApiError::NotLeader.into());
    }
    let target = MemberId(request.target_id);
    let members = call.shared().members();
    let eligible = members.voters().any(|member| member.id == target);
    if !eligible {
        return Err(ApiError::BadLeaderTransferee.into());
    }
    if target != node.member_id() {
        node.order(Order::MoveLeader(target), None)?;
        // Without a time-out of its own, as with etcd: the caller's is the limit.
        while node.status().leader != target {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = call.state.draining.cancelled() => return Err(ApiError::Stopped.into()),
            }
        }
    }
    Ok(Answer::message(&MoveLeaderResponse { header: None }))
}

pub(super) async fn downgrade(call: &Call, request: DowngradeRequest) -> Result<Answer, Status> {
    call.permit(&Need::Admin)?;
    let action = DowngradeAction::try_from(request.action).map_err(|_| ApiError::UnknownMethod)?;
    let set = |info: DowngradeInfoSetRequest| InternalRaftRequest {
        downgrade_info_set: Some(info),
        ..InternalRaftRequest::default()
    };
    match action {
        DowngradeAction::Validate => {
            call.read_barrier().await?;
            call.shared().members().check_downgrade(&request.version)?;
        }
        DowngradeAction::Enable => {
            call.read_barrier().await?;
            let info = DowngradeInfoSetRequest {
                enabled: true,
                ver: call
                    .shared()
                    .members()
                    .check_downgrade(&request.version)?
                    .to_string(),
            };
            call.propose_as_is("DowngradeInfoSet", set(info)).await?;
        }
        DowngradeAction::Cancel => {
            let info = DowngradeInfoSetRequest::default();
            if let Err(status) = call.propose_as_is("DowngradeInfoSet", set(info)).await {
                // As etcd: whatever happens, the answer is that there is no job any more.
                tracing::warn!(error = %status.text, "failed to cancel downgrade");
            }
        }
    }
    let version = call
        .shared()
        .members()
        .version()
        .map(|version| format!("{}.{}", version.major, version.minor))
        .unwrap_or_default();
    Ok(Answer::message(&DowngradeResponse {
        header: Some(call.header_now()),
        version,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_shown_as_go_prints_them() {
        let alarm = AlarmMember {
            member_id: 15_985_099_378_392_235_387,
            alarm: AlarmType::Corrupt.into(),
        };
        assert_eq!(
            alarm_text(&alarm),
            "memberID:15985099378392235387 alarm:CORRUPT"
        );
    }
}
