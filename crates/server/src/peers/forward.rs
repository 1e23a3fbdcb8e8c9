//! What a follower asks the leader in its clients' name, over the peer port.

use std::sync::Arc;
use std::time::Duration;

use keelson_proto::ApiError;
use keelson_transport::ClientError;
use tokio::time::Instant;

use crate::state::State;

/// The longest that the leader may take with one request.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

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

    /// Where the leader is; nowhere if there is none, or it is this member.
    pub(crate) fn leader_urls(&self) -> Vec<String> {
        let node = &self.state.node;
        let leader = node.status().leader;
        if leader.is_none() || leader == node.member_id() {
            return Vec::new();
        }
        self.state.peers.urls_of(leader)
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

/// The status and the words with which the leader said no; `None` where it was not reached, or spoke
/// in a way that is not understood.
pub(crate) fn refusal(error: ClientError) -> Option<(u16, String)> {
    match error {
        ClientError::Answer { status, text } => Some((status, text)),
        error => {
            tracing::debug!(%error, "the leader does not answer");
            None
        }
    }
}
