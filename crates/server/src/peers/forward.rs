//! What a follower asks the leader in its clients' name, over the peer port.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use keelson_proto::ApiError;
use keelson_store::member::Member;
use tokio::time::Instant;

use super::{FROM, line};
use crate::state::State;

/// The longest that the leader may take with one request.
const PATIENCE: Duration = Duration::from_secs(2);

/// A request that goes to whoever leads, until the time of a request is up.
pub(crate) struct Forwarding {
    state: Arc<State>,
    until: Instant,
}

impl Forwarding {
    pub(crate) fn begin(state: &Arc<State>) -> Forwarding {
        Forwarding {
            state: Arc::clone(state),
            until: Instant::now() + state.settings.request_timeout,
        }
    }

    /// Posts to the leader, at the first of its URLs that answers; `None` if there is no leader, or
    /// none of them does.
    pub(crate) async fn post(
        &self,
        path: &str,
        token: Option<HeaderValue>,
        body: impl Into<Bytes>,
    ) -> Option<Response<Bytes>> {
        let node = &self.state.node;
        let leader = node.status().leader;
        if leader.is_none() || leader == node.member_id() {
            return None;
        }
        let body: Bytes = body.into();
        for url in self.state.peers.urls_of(leader) {
            let mut request = Request::new(line::whole(body.clone()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = path.parse().ok()?;
            let headers = request.headers_mut();
            if let Ok(own) = HeaderValue::try_from(node.member_id().to_string()) {
                headers.insert(FROM, own);
            }
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/protobuf"),
            );
            if let Some(token) = &token {
                headers.insert(header::AUTHORIZATION, token.clone());
            }
            match line::once(&url, request, PATIENCE).await {
                Ok(response) => return Some(response),
                Err(error) => {
                    tracing::debug!(%url, %error, "the leader does not answer");
                }
            }
        }
        None
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    ///
    /// When the time is up: [`ApiError::NoLeader`] or [`ApiError::Timeout`]. [`ApiError::Stopped`].
    pub(crate) async fn pause(&self, pause: Duration) -> Result<(), ApiError> {
        if Instant::now() + pause >= self.until {
            return Err(if self.state.node.has_leader() {
                ApiError::Timeout
            } else {
                ApiError::NoLeader
            });
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = self.state.draining.cancelled() => Err(ApiError::Stopped),
        }
    }
}

/// The members in a JSON answer.
pub(crate) fn members(text: &str) -> Option<Vec<Member>> {
    let rows: Vec<serde_json::Value> = serde_json::from_str(text).ok()?;
    let member = |row: &serde_json::Value| Member::from_json(row.to_string().as_bytes()).ok();
    rows.iter().map(member).collect()
}
