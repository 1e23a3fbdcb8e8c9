//! One call: metadata, time-out, retries.

use std::future::Future;
use std::time::Duration;

use http::Uri;
use keelson_proto::rpc::etcdserverpb::auth_client::AuthClient;
use keelson_proto::rpc::etcdserverpb::cluster_client::ClusterClient;
use keelson_proto::rpc::etcdserverpb::kv_client::KvClient;
use keelson_proto::rpc::etcdserverpb::lease_client::LeaseClient;
use keelson_proto::rpc::etcdserverpb::maintenance_client::MaintenanceClient;
use keelson_proto::rpc::etcdserverpb::watch_client::WatchClient;
use keelson_proto::{ApiError, Code};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use crate::transport::Transport;
use crate::{Client, Error};

/// Attempts of one call at most.
const ATTEMPTS: u32 = 100;
/// The pause between two attempts.
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
    /// Repeated only if it was certainly not sent.
    Write,
}

/// What the generated stubs are made of.
pub(crate) struct Wire {
    pub(crate) transport: Transport,
    pub(crate) origin: Uri,
}

macro_rules! stubs {
    ($($name:ident: $stub:ident),* $(,)?) => {
        impl Wire {
            $(pub(crate) fn $name(self) -> $stub<Transport> {
                $stub::with_origin(self.transport, self.origin)
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
        let deadline = self.deadline();
        let calls = self.attempts(kind, request, Some(deadline), send);
        self.within(deadline, calls).await
    }

    /// Opens a stream: the time-out is for its beginning, and the server is told of none.
    pub(crate) async fn open<Q, A, F, R>(&self, kind: Kind, request: Q, send: F) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Wire, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let calls = self.attempts(kind, request, None, send);
        self.within(self.deadline(), calls).await
    }

    /// When a call that begins now has taken too long.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout.min(TIMEOUT_MAX)
    }

    /// `work`, or the error that it took too long.
    pub(crate) async fn within<A>(
        &self,
        deadline: Instant,
        work: impl Future<Output = Result<A, Error>>,
    ) -> Result<A, Error> {
        timeout_at(deadline, work).await.unwrap_or_else(|_| {
            Err(Error::TimedOut {
                after: self.timeout,
            })
        })
    }

    async fn attempts<Q, A, F, R>(
        &self,
        kind: Kind,
        request: Q,
        deadline: Option<Instant>,
        send: F,
    ) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Wire, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        if self.wants_token() {
            self.renew_token(None).await?;
        }
        let mut renewed = false;
        let mut attempt = 1;
        loop {
            let token = self.token();
            let error = match self.attempt(request.clone(), deadline, &send).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !renewed && self.shared.options.user.is_some() && asks_for_a_token(&error) {
                renewed = true;
                self.renew_token(token.as_ref()).await?;
                continue;
            }
            let again = match kind {
                Kind::Read => error.code() == Code::Unavailable,
                Kind::Write => matches!(error, Error::Connect { .. }),
            };
            if !again || attempt == ATTEMPTS {
                return Err(error);
            }
            attempt += 1;
            sleep(BACK_OFF).await;
        }
    }

    /// One attempt, with no retry and no time-out of ours; `deadline` goes to the server.
    pub(crate) async fn attempt<Q, A, F, R>(
        &self,
        request: Q,
        deadline: Option<Instant>,
        send: F,
    ) -> Result<A, Error>
    where
        F: Fn(Wire, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let request = self.with_metadata(request, deadline);
        let answer = send(self.wire(), request).await?;
        Ok(answer.into_inner())
    }

    pub(crate) fn with_metadata<Q>(&self, message: Q, deadline: Option<Instant>) -> Request<Q> {
        let mut request = Request::new(message);
        if let Some(deadline) = deadline {
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        let metadata = request.metadata_mut();
        metadata.insert(
            "client-api-version",
            MetadataValue::from_static(API_VERSION),
        );
        if let Some(token) = self.token() {
            metadata.insert("token", token);
        }
        if self.shared.options.require_leader {
            metadata.insert("hasleader", MetadataValue::from_static("true"));
        }
        request
    }
}

/// Whether a fresh token may help: it ran out, the users changed, or none was sent.
pub(crate) fn asks_for_a_token(error: &Error) -> bool {
    matches!(
        error.api(),
        Some(ApiError::InvalidAuthToken | ApiError::AuthOldRevision | ApiError::UserEmpty)
    )
}
