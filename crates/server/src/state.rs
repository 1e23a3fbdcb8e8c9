//! What the handlers of a member share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keelson_node::{Barrier, Node, Reply};
use keelson_proto::ApiError;
use keelson_proto::rpc::etcdserverpb::ResponseHeader;
use keelson_store::Shared;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::grpc::trace::Trace;
use crate::hashing::Hashing;
use crate::leader::LeaderLoss;
use crate::metrics::Metrics;
use crate::peers::Links;
use crate::pool::Pool;
use crate::tickets::{Awaited, Tickets};
use crate::tokens::Tokens;
use crate::watching::Watching;

/// What gRPC takes beyond the largest request, in bytes (api.md 8.1).
const GRPC_OVERHEAD: usize = 512 << 10;

/// A member, as its handlers see it.
pub(crate) struct State {
    pub(crate) node: Node,
    pub(crate) peers: Arc<Links>,
    pub(crate) tickets: Arc<Tickets>,
    pub(crate) watching: Arc<Watching>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) hashing: Hashing,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) settings: Settings,
    /// Told whenever the store has changed; the few that wait look for themselves.
    pub(crate) changed: Arc<Notify>,
    /// Cancelled when the member begins to stop: endless streams end then.
    pub(crate) draining: CancellationToken,
    /// What streams that want a leader end with.
    pub(crate) leader_loss: LeaderLoss,
    /// Whether the cluster's version was seen to be known: it stays so.
    pub(crate) capable: AtomicBool,
}

/// What the configuration says to handlers.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The version of etcd that clients and peers are told (`DESIGN.md` 6).
    pub(crate) version: &'static str,
    /// Largest request, in bytes.
    pub(crate) max_request_bytes: usize,
    /// How often a watcher that wants it is told that nothing is missing.
    pub(crate) watch_progress_interval: Duration,
    /// Operations in one list of a transaction.
    pub(crate) max_txn_ops: usize,
    /// The quota as it was given; 0 is the default, a negative one is none.
    pub(crate) quota_backend_bytes: i64,
    /// Whether a client without a token is the user that its certificate names.
    pub(crate) names_clients: bool,
    /// Cost of hashing a password.
    pub(crate) bcrypt_cost: u32,
    /// How long an answer is waited for: 5 s and two election timeouts.
    pub(crate) request_timeout: Duration,
    /// How often streams that want a leader have a look for one.
    pub(crate) election_timeout: Duration,
    /// A read that takes longer is warned of.
    pub(crate) slow_apply: Duration,
    /// A unary call that takes longer is warned of; zero never.
    pub(crate) slow_call: Duration,
}

impl Settings {
    /// Largest message that gRPC takes, in bytes.
    pub(crate) fn message_max(&self) -> usize {
        self.max_request_bytes.saturating_add(GRPC_OVERHEAD)
    }
}

impl State {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.node.shared()
    }

    /// A response header at a revision; 0 where the response shows none.
    pub(crate) fn header(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.node.cluster_id().0,
            member_id: self.node.member_id().0,
            revision,
            raft_term: self.shared().applied().1.0,
        }
    }

    /// A response header at the current revision.
    pub(crate) fn header_now(&self) -> ResponseHeader {
        self.header(self.shared().revision())
    }
}

impl State {
    /// Whether the cluster's version is known: before, no client is served.
    pub(crate) fn is_capable(&self) -> bool {
        self.capable.load(Ordering::Relaxed) || {
            let known = self.shared().members().version().is_some();
            self.capable.store(known, Ordering::Relaxed);
            known
        }
    }
}

impl State {
    /// The reply, or `None` when the time is up.
    pub(crate) async fn wait(&self, awaited: Awaited) -> Option<Reply> {
        tokio::time::timeout(self.settings.request_timeout, awaited)
            .await
            .ok()
    }

    /// Waits until everything that was acknowledged before this call can be read here.
    ///
    /// # Errors
    ///
    /// [`ApiError::Timeout`] and what the node says.
    pub(crate) async fn read_barrier(&self, thread: u16) -> Result<(), ApiError> {
        let awaited = self.tickets.reserve(thread);
        match self.node.read_barrier(awaited.ticket())? {
            Barrier::Passed => return Ok(()),
            Barrier::Waiting => {}
        }
        let mut trace = Trace::begin(self, "linearizableReadLoop");
        let error = match self.wait(awaited).await {
            Some(Reply::Readable) => {
                let took = trace.step(self, "applied index is now lower than readState.Index");
                trace.tell_all_steps(took, |detail| {
                    let applied = self.node.status().applied;
                    detail.add("appliedIndex", applied.0);
                });
                return Ok(());
            }
            Some(Reply::Refused(error)) => error,
            Some(_) | None => {
                self.metrics.slow_read_indexes.inc();
                tracing::warn!(
                    timeout = ?self.settings.request_timeout,
                    "timed out waiting for read index response (local node might have slow network)"
                );
                ApiError::Timeout
            }
        };
        self.metrics.failed_read_indexes.inc();
        Err(error)
    }
}
