//! One call: metadata, time-out, retries.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use keelson_proto::rpc::etcdserverpb::auth_client::AuthClient;
use keelson_proto::rpc::etcdserverpb::cluster_client::ClusterClient;
use keelson_proto::rpc::etcdserverpb::kv_client::KvClient;
use keelson_proto::rpc::etcdserverpb::lease_client::LeaseClient;
use keelson_proto::rpc::etcdserverpb::maintenance_client::MaintenanceClient;
use keelson_proto::rpc::etcdserverpb::watch_client::WatchClient;
use keelson_proto::{ApiError, Code};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use crate::transport::Connection;
use crate::{Client, Error};

/// Attempts of one call at most.
const ATTEMPTS: usize = 100;
/// Tokens that one call fetches at most: each endpoint may have lost what it knew of the last.
const RENEWALS: usize = 3;
/// The pause when as many attempts as make a quorum have failed.
const BACK_OFF: Duration = Duration::from_millis(25);
/// The largest answer that is taken, in bytes: that of the Go client.
pub(crate) const ANSWER_MAX: usize = i32::MAX as usize;
/// A longer time-out is taken as this one: what gRPC can say, and a clock can add.
const TIMEOUT_MAX: Duration = Duration::from_secs(99_999_999);
/// What servers count calls by.
const API_VERSION: &str = "3.7";

/// Whether a call may be sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Repeated whenever the server is not available.
    Read,
    /// Repeated only if no server began with it.
    Write,
}

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    /// When it has taken too long.
    pub(crate) until: Instant,
    /// Whether the server is told. Streams have no limit there.
    pub(crate) told: bool,
}

/// An answer, and who gave it.
pub(crate) struct Answer<A> {
    pub(crate) message: A,
    pub(crate) endpoint: Arc<str>,
}

/// What the generated stubs are made of.
pub(crate) struct Wire(pub(crate) Connection);

macro_rules! stubs {
    ($($name:ident: $stub:ident),* $(,)?) => {
        impl Wire {
            $(pub(crate) fn $name(self) -> $stub<Connection> {
                let origin = self.0.origin().clone();
                $stub::with_origin(self.0, origin)
                    .max_decoding_message_size(ANSWER_MAX)
            })*
        }
    };
}

stubs! {
    kv: KvClient,
    watch: WatchClient,
    lease: LeaseClient,
    cluster: ClusterClient,
    auth: AuthClient,
    maintenance: MaintenanceClient,
}

impl Client {
    /// Calls until an answer, an error that repeating does not help, or the time-out.
    pub(crate) async fn call<Q, A, F, R>(&self, kind: Kind, request: Q, send: F) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Wire, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let limit = Limit {
            until: self.deadline(),
            told: true,
        };
        let answer = self.with_token(kind, request, limit, send).await?;
        Ok(answer.message)
    }

    /// Opens a stream: the time-out is for its beginning, and the server is told of none.
    pub(crate) async fn open<Q, A, F, R>(
        &self,
        kind: Kind,
        request: Q,
        send: F,
    ) -> Result<Answer<A>, Error>
    where
        Q: Clone,
        F: Fn(Wire, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let limit = Limit {
            until: self.deadline(),
            told: false,
        };
        self.with_token(kind, request, limit, send).await
    }

    /// When a call that begins now has taken too long.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout.min(TIMEOUT_MAX)
    }

    /// `work` of `endpoint`, or the error that it took too long.
    pub(crate) async fn within<A>(
        &self,
        until: Instant,
        endpoint: &str,
        work: impl Future<Output = Result<A, Error>>,
    ) -> Result<A, Error> {
        timeout_at(until, work).await.unwrap_or_else(|_| {
            Err(Error::TimedOut {
                endpoint: endpoint.to_owned(),
                after: self.timeout,
            })
        })
    }

    /// With the token that there is, or a new one if that may help.
    async fn with_token<Q, A, F, R>(
        &self,
        kind: Kind,
        request: Q,
        limit: Limit,
        send: F,
    ) -> Result<Answer<A>, Error>
    where
        Q: Clone,
        F: Fn(Wire, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        if self.wants_token() {
            self.renew_token(None, limit.until).await?;
        }
        let mut renewals = 0;
        loop {
            let used = self.token();
            match self.repeat(kind, request.clone(), limit, &send).await {
                Err(error) if self.renews_for(&error) && renewals < RENEWALS => {
                    renewals += 1;
                    self.renew_token(used.as_ref(), limit.until).await?;
                }
                done => return done,
            }
        }
    }

    /// Attempts, as many as `kind` allows and help.
    pub(crate) async fn repeat<Q, A, F, R>(
        &self,
        kind: Kind,
        request: Q,
        limit: Limit,
        send: &F,
    ) -> Result<Answer<A>, Error>
    where
        Q: Clone,
        F: Fn(Wire, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let mut attempt = 1;
        loop {
            let error = match self.attempt(request.clone(), limit, send).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let again = match kind {
                Kind::Read => error.code() == Code::Unavailable,
                Kind::Write => error.is_not_sent(),
            };
            if !again || attempt == ATTEMPTS {
                return Err(error);
            }
            // A pause when as many as make a quorum have said no. One that was not sent said nothing.
            let quorum = self.choice().len() / 2 + 1;
            if attempt % quorum == 0 && !error.is_not_sent() {
                sleep_until((Instant::now() + BACK_OFF).min(limit.until)).await;
            }
            // The last error says more than that time ran out.
            if Instant::now() >= limit.until {
                return Err(error);
            }
            attempt += 1;
        }
    }

    /// One attempt on the endpoint whose turn it is, without a retry.
    pub(crate) async fn attempt<Q, A, F, R>(
        &self,
        request: Q,
        limit: Limit,
        send: &F,
    ) -> Result<Answer<A>, Error>
    where
        F: Fn(Wire, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let balancer = &self.shared.balancer;
        let connection = balancer.pick(|| self.choice(), limit.until).await?;
        let endpoint = Arc::clone(connection.endpoint());
        let request = self.with_metadata(request, limit);
        let sent = async { Ok(send(Wire(connection), request).await?) };
        let answer = self.within(limit.until, &endpoint, sent).await?;
        Ok(Answer {
            message: answer.into_inner(),
            endpoint,
        })
    }

    fn with_metadata<Q>(&self, message: Q, limit: Limit) -> Request<Q> {
        let mut request = Request::new(message);
        if limit.told {
            request.set_timeout(limit.until.saturating_duration_since(Instant::now()));
        }
        let metadata = request.metadata_mut();
        metadata.insert(
            "client-api-version",
            MetadataValue::from_static(API_VERSION),
        );
        if let Some(token) = self.token() {
            metadata.insert("token", token);
        }
        if self.require_leader {
            metadata.insert("hasleader", MetadataValue::from_static("true"));
        }
        request
    }
}

impl Client {
    /// Whether a fresh token may help after `error`, and can be had.
    pub(crate) fn renews_for(&self, error: &Error) -> bool {
        self.shared.options.user.is_some() && asks_for_a_token(error)
    }
}

/// Whether a fresh token may help: it ran out, the users changed, or none was sent.
fn asks_for_a_token(error: &Error) -> bool {
    matches!(
        error.api(),
        Some(ApiError::InvalidAuthToken | ApiError::AuthOldRevision | ApiError::UserEmpty)
    )
}
