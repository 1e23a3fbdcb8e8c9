//! One call, and what every handler does with it: looking at its metadata, finding out who sent it,
//! proposing, waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};
use keelson_node::{Order, Reply};
use keelson_proto::entry::ConfChange;
use keelson_proto::rpc::etcdserverpb::alarm_request::AlarmAction;
use keelson_proto::rpc::etcdserverpb::{
    AlarmRequest, AlarmType, InternalRaftRequest, RequestHeader, ResponseHeader,
};
use keelson_proto::{ApiError, Code};
use keelson_store::auth::{self, AuthState, Need, Who};
use keelson_store::{Outcome, Shared, quota};
use prometheus::IntGauge;
use tokio_util::sync::CancellationToken;

use super::GRPC_TIMEOUT;
use super::method::Method;
use super::status::Status;
use crate::serving::{CommonName, Origin};
use crate::state::State;
use crate::tickets::Awaited;
use crate::tokens;

const TOKEN: HeaderName = HeaderName::from_static("token");
const AUTHORIZATION: HeaderName = http::header::AUTHORIZATION;
const HAS_LEADER: HeaderName = HeaderName::from_static("hasleader");
const CLIENT_API_VERSION: HeaderName = HeaderName::from_static("client-api-version");

/// Before a barrier that an election has ended is asked for again.
const BARRIER_PAUSE: Duration = Duration::from_millis(20);

/// Longest client version that is counted under its own name, in bytes: clients choose it, and each
/// one is a series that stays.
const CLIENT_VERSION_MAX: usize = 16;

/// One call.
pub(crate) struct Call {
    pub(crate) state: Arc<State>,
    pub(crate) origin: Origin,
    pub(crate) method: Method,
    metadata: HeaderMap,
    name: Option<CommonName>,
}

/// Who sent a call, while authentication is on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    user: String,
    /// 0 where nobody is known.
    auth_revision: u64,
}

impl Caller {
    pub(crate) fn who(&self) -> Who<'_> {
        Who {
            user: &self.user,
            auth_revision: self.auth_revision,
        }
    }
}

impl Call {
    pub(crate) fn new(
        state: Arc<State>,
        origin: Origin,
        method: Method,
        metadata: HeaderMap,
    ) -> Call {
        Call {
            state,
            origin,
            method,
            metadata,
            name: None,
        }
    }

    /// With what the certificate of its connection says.
    pub(crate) fn over(self, name: Option<CommonName>) -> Call {
        Call { name, ..self }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.state.shared()
    }

    /// Looks at the call as such, whatever its request says: steps a to e of api.md 2.1. Then waits until
    /// this member has applied the entry that made the call's token: another one has given it out, which is
    /// ahead. A token of an index that nobody has reached is waited for no longer than a read.
    ///
    /// # Errors
    ///
    /// The first step that fails; while waiting, as [`State::read_barrier`]. Of a call that has a deadline,
    /// time is up when that says so.
    pub(crate) async fn admit(&self, learner_may: bool) -> Result<(), Status> {
        if !self.state.is_capable() {
            return Err(ApiError::NotCapable.into());
        }
        if !learner_may && self.state.node.status().is_learner {
            return Err(ApiError::NotSupportedForLearner.into());
        }
        let version = match self.metadata.get(CLIENT_API_VERSION) {
            None => "unknown",
            Some(value) => std::str::from_utf8(value.as_bytes())
                .map_err(|_| ApiError::InvalidClientApiVersion)?,
        };
        let counted = if version.len() > CLIENT_VERSION_MAX {
            "unknown"
        } else {
            version
        };
        self.state
            .metrics
            .client_request(self.method.kind(), counted);
        if self.wants_leader() && !self.state.node.has_leader() {
            return Err(ApiError::NoLeader.into());
        }
        if self.has_token_ahead() {
            // Boxed: it is rare, and every call would carry its size.
            Box::pin(self.catch_up()).await?;
        }
        Ok(())
    }

    fn wants_leader(&self) -> bool {
        let value = self.metadata.get(HAS_LEADER);
        value.is_some_and(|value| value.as_bytes() == b"true")
    }

    /// For a stream that begins: cancelled when it is to end because there is no leader.
    pub(crate) fn leader_lost(&self) -> CancellationToken {
        if self.wants_leader() {
            self.state.leader_loss.token()
        } else {
            CancellationToken::new()
        }
    }

    /// Who sent the call: as its token says, or else its certificate where clients are to have one;
    /// nobody where there is neither or authentication is off.
    ///
    /// # Errors
    ///
    /// [`ApiError::InvalidAuthToken`].
    pub(crate) fn caller(&self, auth: &AuthState) -> Result<Caller, Status> {
        if !auth.enabled() {
            return Ok(Caller::default());
        }
        let Some(token) = self.token_text() else {
            return Ok(self.named(auth));
        };
        let Some(user) = self.state.tokens.user(token, Instant::now()) else {
            tracing::warn!(
                "token-fingerprint" = tokens::fingerprint(token),
                "invalid auth token"
            );
            return Err(ApiError::InvalidAuthToken.into());
        };
        Ok(Caller {
            user,
            auth_revision: auth.revision(),
        })
    }

    /// The token that came with the call, without what may stand before it; empty if it is no text.
    fn token_text(&self) -> Option<&str> {
        let value = self.metadata.get(TOKEN);
        let value = value.or_else(|| self.metadata.get(AUTHORIZATION))?;
        let token = std::str::from_utf8(value.as_bytes()).unwrap_or_default();
        Some(token.strip_prefix("Bearer ").unwrap_or(token))
    }

    fn has_token_ahead(&self) -> bool {
        let Some(token) = self.token_text() else {
            return false;
        };
        let needs_none = matches!(
            self.method,
            Method::Authenticate
                | Method::HealthCheck
                | Method::HealthList
                | Method::HealthWatch
                | Method::Status
        );
        // The last entry may be applied while its token is about to become known.
        let is_ahead = |index| index >= self.state.node.status().applied.0;
        !needs_none
            && tokens::index(token).is_some_and(is_ahead)
            && self.shared().auth().enabled()
            && !self.state.tokens.knows(token)
    }

    /// The token was given out before the call, so that what the barrier waits for is no earlier.
    async fn catch_up(&self) -> Result<(), Status> {
        let has_deadline = self.metadata.contains_key(GRPC_TIMEOUT);
        loop {
            match self.state.read_barrier(self.origin.thread).await {
                Ok(()) => return Ok(()),
                Err(ApiError::LeaderChanged) => {}
                Err(ApiError::Timeout) if has_deadline => {}
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(BARRIER_PAUSE).await;
        }
    }

    /// Whom the certificate of the connection names.
    fn named(&self, auth: &AuthState) -> Caller {
        match &self.name {
            Some(CommonName(name)) if self.state.settings.names_clients => Caller {
                user: (**name).to_owned(),
                auth_revision: auth.revision(),
            },
            _ => Caller::default(),
        }
    }

    /// Finds out who sent the call and whether that one has what the request needs.
    ///
    /// # Errors
    ///
    /// As [`Call::caller`] and [`auth::permit`].
    pub(crate) fn permit(&self, need: &Need<'_>) -> Result<Caller, Status> {
        let auth = self.shared().auth();
        let caller = self.caller(&auth)?;
        auth::permit(&auth, &caller.who(), need)?;
        Ok(caller)
    }

    /// Whether what has been read for somebody may still be shown.
    ///
    /// # Errors
    ///
    /// [`ApiError::AuthOldRevision`].
    pub(crate) fn still_permitted(&self, caller: &Caller) -> Result<(), Status> {
        Ok(auth::is_current(&self.shared().auth(), &caller.who())?)
    }

    /// A response header at a revision; 0 where the response shows none.
    pub(crate) fn header(&self, revision: i64) -> ResponseHeader {
        self.state.header(revision)
    }

    /// A response header at the current revision.
    pub(crate) fn header_now(&self) -> ResponseHeader {
        self.state.header_now()
    }

    /// Waits until everything that was acknowledged before this call can be read here.
    ///
    /// # Errors
    ///
    /// [`ApiError::Timeout`], [`ApiError::LeaderChanged`] and what the node says.
    pub(crate) async fn read_barrier(&self) -> Result<(), Status> {
        Ok(self.state.read_barrier(self.origin.thread).await?)
    }

    /// Proposes a request in the name of the caller and waits until it has been applied.
    /// `kind` names it in the metrics.
    ///
    /// # Errors
    ///
    /// What apply refused it with, that it could not be proposed, or that the time is up.
    pub(crate) fn propose<'a>(
        &'a self,
        kind: &'a str,
        mut request: InternalRaftRequest,
    ) -> impl Future<Output = Result<Outcome, Status>> + Send + 'a {
        let proposed = self.sign(&mut request).and_then(|()| self.submit(request));
        async move { self.outcome(kind, proposed?).await }
    }

    /// Writes into a request who sent it, if that one may.
    ///
    /// # Errors
    ///
    /// As [`Call::permit`].
    fn sign(&self, request: &mut InternalRaftRequest) -> Result<(), Status> {
        let auth = self.shared().auth();
        let caller = self.caller(&auth)?;
        auth::permit(&auth, &caller.who(), &auth::before_proposal(request))?;
        request.header = Some(RequestHeader {
            id: 0,
            username: caller.user,
            auth_revision: caller.auth_revision,
        });
        Ok(())
    }

    /// As [`Call::propose`], in nobody's name.
    ///
    /// # Errors
    ///
    /// As [`Call::propose`].
    pub(crate) fn propose_as_is<'a>(
        &'a self,
        kind: &'a str,
        request: InternalRaftRequest,
    ) -> impl Future<Output = Result<Outcome, Status>> + Send + 'a {
        let proposed = self.submit(request);
        async move { self.outcome(kind, proposed?).await }
    }

    /// Puts a request on its way. Not part of a future: a request is large, and what a future holds
    /// is moved with every call.
    ///
    /// # Errors
    ///
    /// What the node says.
    fn submit(&self, request: InternalRaftRequest) -> Result<Proposed, Status> {
        let started = Instant::now();
        let awaited = self.reserve();
        self.state
            .node
            .propose(request, awaited.ticket())
            .inspect_err(|_| self.state.metrics.failed_proposals.inc())?;
        Ok(Proposed { awaited, started })
    }

    /// Waits until a request has been applied.
    ///
    /// # Errors
    ///
    /// What apply refused it with, or that the time is up.
    async fn outcome(&self, kind: &str, proposed: Proposed) -> Result<Outcome, Status> {
        let metrics = &self.state.metrics;
        let Proposed { awaited, started } = proposed;
        let pending = Pending::count(&metrics.pending_proposals);
        let reply = self.state.wait(awaited).await;
        drop(pending);
        let result = match reply {
            // The entry was applied: that its request was refused is not the proposal's fault.
            Some(Reply::Applied(outcome)) => {
                metrics.request(kind, true, started.elapsed());
                return match outcome {
                    Outcome::Refused(error) => Err(error.into()),
                    outcome => Ok(outcome),
                };
            }
            Some(Reply::Refused(error)) => Err(error.into()),
            Some(_) => Err(mismatched()),
            // Without a leader the hand-over itself gets no further, and etcd says so in other words.
            None if !self.state.node.has_leader() => Err(ApiError::ContextDeadlineExceeded.into()),
            None => {
                let node = &self.state.node;
                let now = node.env().clock.now();
                let began = now.saturating_sub(started.elapsed());
                Err(node.timeout_error(began).into())
            }
        };
        metrics.failed_proposals.inc();
        metrics.request(kind, false, started.elapsed());
        result
    }

    /// Proposes a change of the membership and waits until it is applied, with no time-out but the
    /// caller's.
    ///
    /// # Errors
    ///
    /// That it could not be proposed.
    pub(crate) async fn propose_conf_change(&self, change: ConfChange) -> Result<Outcome, Status> {
        let awaited = self.reserve();
        self.state
            .node
            .propose_conf_change(change, awaited.ticket())
            .inspect_err(|_| self.state.metrics.failed_proposals.inc())?;
        match awaited.await {
            Reply::Applied(outcome) => Ok(outcome),
            Reply::Refused(error) => Err(error.into()),
            _ => Err(mismatched()),
        }
    }

    /// The token that came with the call.
    pub(crate) fn token(&self) -> Option<HeaderValue> {
        let token = self.metadata.get(TOKEN);
        token.or_else(|| self.metadata.get(AUTHORIZATION)).cloned()
    }

    /// Gives the node an order and waits for its reply.
    ///
    /// # Errors
    ///
    /// What the node says. Orders have no time-out of their own: how long a disk takes is not known.
    pub(crate) async fn order(&self, order: Order) -> Result<Reply, Status> {
        let awaited = self.reserve();
        self.state.node.order(order, Some(awaited.ticket()))?;
        match awaited.await {
            Reply::Refused(error) => Err(error.into()),
            Reply::Failed(reason) => Err(Status::new(Code::Unknown, reason)),
            reply => Ok(reply),
        }
    }

    fn reserve(&self) -> Awaited {
        self.state.tickets.reserve(self.origin.thread)
    }

    /// Refuses a request for which the file has no room, and raises the alarm. Asked before anything
    /// is looked at, as etcd does.
    ///
    /// # Errors
    ///
    /// [`ApiError::NoSpace`].
    pub(crate) async fn check_space(&self, cost: u64) -> Result<(), Status> {
        let limit = quota::effective(self.state.settings.quota_backend_bytes);
        if quota::fits(self.shared().sizes().total, cost, limit) {
            return Ok(());
        }
        let raise = InternalRaftRequest {
            alarm: Some(AlarmRequest {
                action: AlarmAction::Activate.into(),
                member_id: self.state.node.member_id().0,
                alarm: AlarmType::Nospace.into(),
            }),
            ..InternalRaftRequest::default()
        };
        // Boxed: it is rare, and every put would carry its size.
        if let Err(status) = Box::pin(self.propose_as_is("Alarm", raise)).await {
            tracing::warn!(error = %status.text, "failed to raise alarm");
        }
        Err(ApiError::NoSpace.into())
    }
}

/// A request on its way.
struct Proposed {
    awaited: Awaited,
    started: Instant,
}

/// Counts a proposal for as long as somebody waits for it.
struct Pending<'a>(&'a IntGauge);

impl Pending<'_> {
    fn count(gauge: &IntGauge) -> Pending<'_> {
        gauge.inc();
        Pending(gauge)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The reply is of another kind than the request asks for: a bug here, said rather than died of.
pub(crate) fn mismatched() -> Status {
    Status::new(Code::Internal, "keelson: the outcome is of another request")
}
