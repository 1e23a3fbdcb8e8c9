//! Keeping a lease alive.

use std::time::Duration;

use keelson_proto::Code;
use keelson_proto::rpc::etcdserverpb as pb;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

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
        let ttl = renewal.once().await?;
        let (sender, state) = watch::channel(LeaseState::Alive { ttl, at });
        let task = tokio::spawn(renewal.run(ttl, at, sender));
        Ok(KeepAlive { id, state, task })
    }

    /// Renews the lease `id` once. Answers with the seconds it was renewed for.
    ///
    /// # Errors
    /// [`Error::LeaseGone`] if there is no such lease; else as [`Client::put`].
    pub async fn keep_alive_once(&self, id: i64) -> Result<i64, Error> {
        Renewal::new(self.clone(), id).once().await
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

/// A stream of renewals, opened when it is needed.
struct Renewal {
    client: Client,
    id: i64,
    stream: Option<Stream>,
}

struct Stream {
    requests: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    answers: Streaming<pb::LeaseKeepAliveResponse>,
}

impl Renewal {
    fn new(client: Client, id: i64) -> Renewal {
        Renewal {
            client,
            id,
            stream: None,
        }
    }

    /// Sends one renewal and waits for its answer. The stream is dropped on an error.
    async fn once(&mut self) -> Result<i64, Error> {
        let mut stream = self.stream.take();
        let client = self.client.clone();
        let id = self.id;
        let answer = client
            .within(client.deadline(), async {
                let open = match stream.take() {
                    Some(open) => {
                        // Full or closed both show in the answer.
                        let _full = open.requests.try_send(pb::LeaseKeepAliveRequest { id });
                        stream.insert(open)
                    }
                    None => stream.insert(Stream::open(&client, id).await?),
                };
                open.answers.message().await.map_err(Error::from)
            })
            .await?;
        let answer = answer.ok_or(Error::Status {
            code: Code::Unavailable,
            message: "the stream of renewals ended".to_owned(),
        })?;
        if answer.ttl <= 0 {
            return Err(Error::LeaseGone { id });
        }
        self.stream = stream;
        Ok(answer.ttl)
    }

    async fn run(mut self, mut ttl: i64, mut at: Instant, state: watch::Sender<LeaseState>) {
        let end = loop {
            let whole = Duration::from_secs(ttl.unsigned_abs().min(TTL_MAX));
            let expiry = at + whole;
            sleep(whole / 3).await;
            match timeout_at(expiry, self.renewed()).await {
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

    /// Tries until it is renewed, gone or refused.
    async fn renewed(&mut self) -> Result<(i64, Instant), Error> {
        loop {
            let sent = Instant::now();
            match self.once().await {
                Ok(ttl) => return Ok((ttl, sent)),
                Err(error) if passes(&error) => {
                    tracing::debug!(%error, lease = self.id, "renewal failed, opening again");
                    sleep(REOPEN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Stream {
    /// Opens a stream whose first request is on its way.
    async fn open(client: &Client, id: i64) -> Result<Stream, Error> {
        let opened = Stream::attempt(client, id).await;
        match opened {
            Err(error) if client.renews_for(&error) => {
                client.renew_token(client.token().as_ref()).await?;
                Stream::attempt(client, id).await
            }
            opened => opened,
        }
    }

    async fn attempt(client: &Client, id: i64) -> Result<Stream, Error> {
        let (requests, receiver) = mpsc::channel(1);
        // The channel is new and has room.
        let _has_room = requests.try_send(pb::LeaseKeepAliveRequest { id });
        let request = ReceiverStream::new(receiver);
        let answers = client
            .attempt(request, None, |wire, request| async move {
                wire.lease().lease_keep_alive(request).await
            })
            .await?;
        Ok(Stream { requests, answers })
    }
}

/// Whether trying again may help: the server or the way to it is not there now.
fn passes(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::Unavailable | Code::Internal | Code::DeadlineExceeded
    )
}
