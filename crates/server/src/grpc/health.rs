//! The standard health service, for the one name that it knows: the member as a whole.

use futures_util::stream;
use keelson_proto::ApiError;
use keelson_proto::rpc::health::health_check_response::ServingStatus;
use keelson_proto::rpc::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};

use super::call::Call;
use super::splice::{Answer, Chunk, Ending, Framed};
use super::status::Status;

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

pub(super) async fn check(_call: &Call, request: HealthCheckRequest) -> Result<Answer, Status> {
    if !request.service.is_empty() {
        return Err(ApiError::UnknownHealthService.into());
    }
    Ok(Answer::message(&response(ServingStatus::Serving)))
}

pub(super) async fn list(_call: &Call, _request: HealthListRequest) -> Result<Answer, Status> {
    let all = [(String::new(), response(ServingStatus::Serving))];
    Ok(Answer::message(&HealthListResponse {
        statuses: all.into_iter().collect(),
    }))
}

/// Says how it stands, and nothing more until the member stops: then it serves no longer.
pub(super) fn watch(call: &Call, request: &HealthCheckRequest) -> Answer {
    let first = if request.service.is_empty() {
        ServingStatus::Serving
    } else {
        ServingStatus::ServiceUnknown
    };
    let draining = call.state.draining.clone();
    Answer::Pieces(Box::pin(stream::try_unfold(
        (Some(first), draining),
        |(next, draining)| async move {
            let status = match next {
                Some(first) => first,
                None => {
                    draining.cancelled().await;
                    return Err(ApiError::Stopped.into());
                }
            };
            let chunk = Chunk::from(Framed::message(&response(status)));
            Ok::<_, Ending>(Some((chunk, (None, draining))))
        },
    )))
}
