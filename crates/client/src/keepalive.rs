//! Keeping a lease alive.

use std::sync::Arc;
use std::time::Duration;

use keelson_proto::rpc::etcdserverpb as pb;
use keelson_proto::{ApiError, Code};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::call::{Limit, Wire};
use crate::{Client, Error};

/// The pause before a broken stream is opened again (api.md 8.3).
const REOPEN: Duration = Duration::from_millis(500);
/// A longer time to live is counted as this one, which a clock can add: ten years.
const TTL_MAX: u64 = 10 * 365 * 24 * 3600;

/// What is known of a lease that is kept alive.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LeaseState {
    /// Renewed for `ttl` seconds, which were counted from `at` or later.
    Alive {
        /// Seconds.
        ttl: i64,
        /// When the request was sent.
        at: Instant,
    },
    /// It has expired or was revoked. The end.
    Gone,
    /// No answer came while it lived: it may have expired. The end.
    Lapsed,
    /// The server refuses to renew it. The end.
    Failed(Error),
}

/// A lease that is renewed, every third of its time, until this is dropped.
#[derive(Debug)]
pub struct KeepAlive {
    id: i64,
    state: watch::Receiver<LeaseState>,
    task: JoinHandle<()>,
}

impl Client {
    /// Renews the lease `id` once, and then in the background for as long as the answer lives.
    ///
    /// # Errors
    /// [`Error::LeaseGone`] if there is no such lease; else as [`Client::put`].
    pub async fn keep_alive(&self, id: i64) -> Result<KeepAlive, Error> {
        let mut renewal = Renewal::new(self.clone(), id);
        let at = Instant::now();
        let ttl = renewal.within(self.deadline()).await?;
        let (sender, state) = watch::channel(LeaseState::Alive { ttl, at });
        let task = tokio::spawn(renewal.run(ttl, at, sender));
        Ok(KeepAlive { id, state, task })
    }

    /// Renews the lease `id` once. Answers with the seconds it was renewed for.
    ///
    /// # Errors
    /// [`Error::LeaseGone`] if there is no such lease; else as [`Client::put`].
    pub async fn keep_alive_once(&self, id: i64) -> Result<i64, Error> {
        self.renewal(id).renew().await
    }

    /// For renewing the lease `id` at times of one's own, on one stream. Sends nothing yet.
    #[must_use]
    pub fn renewal(&self, id: i64) -> Renewal {
        Renewal::new(self.clone(), id)
    }
}

impl KeepAlive {
    /// The lease.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.id
    }

    /// What is known now.
    #[must_use]
    pub fn state(&self) -> LeaseState {
        self.state.borrow().clone()
    }

    /// Waits for the next answer, or the end, and gives what is known then.
    pub async fn changed(&mut self) -> LeaseState {
        // An error says that the task has ended; what it said last stands.
        let _ended = self.state.changed().await;
        self.state()
    }

    /// Waits until the lease is not kept alive any more, and says why.
    pub async fn ended(&mut self) -> LeaseState {
        loop {
            let state = self.state();
            if !matches!(state, LeaseState::Alive { .. }) || self.state.changed().await.is_err() {
                return self.state();
            }
        }
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A stream of renewals of one lease, opened when it is needed, and again when it has broken.
#[derive(Debug)]
pub struct Renewal {
    client: Client,
    id: i64,
    stream: Option<Stream>,
    /// The endpoint on which a renewal has just failed.
    failed: Option<Arc<str>>,
}

#[derive(Debug)]
struct Stream {
    requests: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    answers: Streaming<pb::LeaseKeepAliveResponse>,
    endpoint: Arc<str>,
}

impl Renewal {
    fn new(client: Client, id: i64) -> Renewal {
        Renewal {
            client,
            id,
            stream: None,
            failed: None,
        }
    }

    /// The lease.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.id
    }

    /// Renews the lease once. Answers with the seconds it was renewed for.
    ///
    /// # Errors
    /// [`Error::LeaseGone`] if there is no such lease; else as [`Client::put`].
    pub async fn renew(&mut self) -> Result<i64, Error> {
        self.within(self.client.deadline()).await
    }

    /// Tries until it is renewed, gone or refused, or `until`.
    async fn within(&mut self, until: Instant) -> Result<i64, Error> {
        loop {
            match self.once(until).await {
                Err(error) if passes(&error) && Instant::now() + REOPEN < until => {
                    tracing::debug!(%error, lease = self.id, "renewal failed, opening again");
                    sleep(REOPEN).await;
                }
                done => return done,
            }
        }
    }

    /// Sends one renewal and waits for its answer. The stream is dropped on an error.
    async fn once(&mut self, until: Instant) -> Result<i64, Error> {
        let id = self.id;
        let mut stream = match self.stream.take() {
            Some(open) => {
                // Full or closed both show in the answer.
                let _full = open.requests.try_send(pb::LeaseKeepAliveRequest { id });
                open
            }
            None => {
                let client = match self.failed.take() {
                    Some(failed) => self.client.elsewhere(&failed).await,
                    None => self.client.clone(),
                };
                Stream::open(&client, id, until).await?
            }
        };
        self.failed = Some(Arc::clone(&stream.endpoint));
        let answer = async { Ok(stream.answers.message().await?) };
        let answer = self.client.within(until, &stream.endpoint, answer).await?;
        let answer = answer.ok_or(Error::Status {
            code: Code::Unavailable,
            message: "the stream of renewals ended".to_owned(),
        })?;
        if answer.ttl <= 0 {
            return Err(Error::LeaseGone { id });
        }
        self.stream = Some(stream);
        self.failed = None;
        Ok(answer.ttl)
    }

    async fn run(mut self, mut ttl: i64, mut at: Instant, state: watch::Sender<LeaseState>) {
        let end = loop {
            let whole = Duration::from_secs(ttl.unsigned_abs().min(TTL_MAX));
            let expiry = at + whole;
            sleep(whole / 3).await;
            match timeout_at(expiry, self.renewed(whole / 3)).await {
                Ok(Ok((renewed, sent))) => {
                    ttl = renewed;
                    at = sent;
                    state.send_replace(LeaseState::Alive { ttl, at });
                }
                Ok(Err(Error::LeaseGone { .. })) => break LeaseState::Gone,
                Ok(Err(error)) => break LeaseState::Failed(error),
                Err(_) => break LeaseState::Lapsed,
            }
        };
        state.send_replace(end);
    }

    /// Tries until it is renewed, gone or refused. A server that does not answer within `patience`
    /// is left for another one while there is time.
    async fn renewed(&mut self, patience: Duration) -> Result<(i64, Instant), Error> {
        let patience = patience.min(self.client.timeout);
        let mut pause = Duration::ZERO;
        loop {
            let sent = Instant::now();
            match self.once(sent + patience).await {
                Ok(ttl) => return Ok((ttl, sent)),
                Err(error) if passes(&error) => {
                    tracing::debug!(%error, lease = self.id, "renewal failed, opening again");
                    // At once the first time: the next endpoint may well be there.
                    sleep(pause.min(patience)).await;
                    pause = REOPEN;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Stream {
    /// Opens a stream whose first request is on its way.
    async fn open(client: &Client, id: i64, until: Instant) -> Result<Stream, Error> {
        if client.wants_token() {
            client.renew_token(None, until).await?;
        }
        let used = client.token();
        match Stream::attempt(client, id, until).await {
            Err(error) if client.renews_for(&error) => {
                client.renew_token(used.as_ref(), until).await?;
                Stream::attempt(client, id, until).await
            }
            opened => opened,
        }
    }

    async fn attempt(client: &Client, id: i64, until: Instant) -> Result<Stream, Error> {
        let (requests, receiver) = mpsc::channel(1);
        // The channel is new and has room.
        let _has_room = requests.try_send(pb::LeaseKeepAliveRequest { id });
        let request = ReceiverStream::new(receiver);
        let limit = Limit { until, told: false };
        let opened = client
            .attempt(request, limit, &|wire: Wire, request| async move {
                wire.lease().lease_keep_alive(request).await
            })
            .await?;
        Ok(Stream {
            requests,
            answers: opened.message,
            endpoint: opened.endpoint,
        })
    }
}

/// Whether trying again may help: the server or the way to it is not there now, or another member
/// can do it.
fn passes(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::Unavailable | Code::Internal | Code::DeadlineExceeded
    ) || error.api() == Some(ApiError::NotSupportedForLearner)
}
