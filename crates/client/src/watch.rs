//! Watches that survive the connection they run on.
//!
//! A [`Watcher`] has a stream of its own. Its invariant is `next`: every event before that revision
//! was delivered, none from it on. A broken stream is opened again from there, at the endpoint whose
//! turn it is, so that nothing is missed and nothing comes twice. It moves when a whole batch is handed out, and when the server
//! says that there was nothing up to a revision (progress).

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keelson_proto::Code;
use keelson_proto::rpc::etcdserverpb as pb;
use keelson_proto::rpc::etcdserverpb::watch_create_request::FilterType;
use keelson_proto::rpc::etcdserverpb::watch_request::RequestUnion;
use keelson_proto::rpc::mvccpb::Event;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::call::{Limit, Wire};
use crate::request::{over_spans, wraps};
use crate::{Client, Error, Span};

/// Requests that wait to be sent on one stream.
const REQUESTS_MAX: usize = 64;
/// The pause before a broken stream is opened again, doubled each time up to the maximum.
const REOPEN_MIN: Duration = Duration::from_millis(25);
const REOPEN_MAX: Duration = Duration::from_millis(800);
/// The id of answers that are for all watchers of a stream.
const ALL_WATCHERS: i64 = -1;

/// What to watch.
#[derive(Clone, Debug, Default)]
pub struct Watch(pb::WatchCreateRequest);

wraps!(Watch, pb::WatchCreateRequest);
over_spans!(Watch);

impl Watch {
    /// Of the keys of `span`.
    #[must_use]
    pub fn span(span: Span) -> Watch {
        Watch(pb::WatchCreateRequest {
            key: span.key,
            range_end: span.range_end,
            ..pb::WatchCreateRequest::default()
        })
    }

    /// From `revision` on, with it; 0: from now on.
    #[must_use]
    pub fn start_revision(mut self, revision: i64) -> Watch {
        self.0.start_revision = revision;
        self
    }

    /// With the keys as they were before.
    #[must_use]
    pub fn prev_kv(mut self) -> Watch {
        self.0.prev_kv = true;
        self
    }

    /// With a batch without events now and then while nothing happens.
    #[must_use]
    pub fn progress_notify(mut self) -> Watch {
        self.0.progress_notify = true;
        self
    }

    /// Lets the server send a large batch in pieces; it is put together again here.
    #[must_use]
    pub fn fragment(mut self) -> Watch {
        self.0.fragment = true;
        self
    }

    /// Without writes.
    #[must_use]
    pub fn no_puts(mut self) -> Watch {
        self.0.filters.push(FilterType::Noput.into());
        self
    }

    /// Without deletions.
    #[must_use]
    pub fn no_deletes(mut self) -> Watch {
        self.0.filters.push(FilterType::Nodelete.into());
        self
    }
}

/// What a watcher sees at once: whole revisions, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The cluster's revision when this was sent, as far as the watch knows; it does not go back on
    /// a server that lags behind another. Without events it may be less than that: all events up to it
    /// were delivered.
    pub revision: i64,
    /// The events; none: this is a notice of progress.
    pub events: Vec<Event>,
}

impl Client {
    /// Watches keys: a [`Watch`] or the wire's request. The watch stands when this returns.
    ///
    /// # Errors
    /// [`Error::WatchCanceled`] if the server refuses it, else as [`Client::put`]. A start that has
    /// been compacted shows at the first [`Watcher::next`].
    pub async fn watch(
        &self,
        request: impl Into<pb::WatchCreateRequest>,
    ) -> Result<Watcher, Error> {
        let request = request.into();
        let mut watcher = Watcher {
            client: self.clone(),
            position: Position::new(request.start_revision),
            request,
            stream: None,
            opening: None,
            failed: None,
            pause: Duration::ZERO,
            due: Instant::now(),
            ended: false,
        };
        let until = self.deadline();
        loop {
            let request = watcher.request.clone();
            match open(self.clone(), request, None, until).await {
                Ok(opened) => {
                    watcher.stands(opened);
                    return Ok(watcher);
                }
                Err(error) if passes(&error) && Instant::now() + REOPEN_MIN < until => {
                    sleep(REOPEN_MIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A stream of watches without any help: no resume, no sorting out of answers.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn watch_raw(&self, first: pb::WatchCreateRequest) -> Result<RawWatch, Error> {
        RawWatch::open(self, first, self.deadline()).await
    }
}

/// A stream of watches as it is on the wire.
#[derive(Debug)]
pub struct RawWatch {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
    endpoint: Arc<str>,
}

impl RawWatch {
    async fn open(
        client: &Client,
        first: pb::WatchCreateRequest,
        until: Instant,
    ) -> Result<RawWatch, Error> {
        if client.wants_token() {
            client.renew_token(None, until).await?;
        }
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        // A server need not answer before it has a request. The channel is new and has room.
        let _has_room = requests.try_send(wire(RequestUnion::CreateRequest(first)));
        let request = ReceiverStream::new(receiver);
        let limit = Limit { until, told: false };
        let opened = client
            .attempt(request, limit, &|wire: Wire, request| async move {
                wire.watch().watch(request).await
            })
            .await?;
        Ok(RawWatch {
            requests,
            answers: opened.message,
            endpoint: opened.endpoint,
        })
    }

    /// Which endpoint it runs on.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Sends a request. Waits while many are waiting to be sent.
    ///
    /// # Errors
    /// [`Error::Status`] if the stream has ended.
    pub async fn send(&self, request: RequestUnion) -> Result<(), Error> {
        self.requests
            .send(wire(request))
            .await
            .map_err(|_| stream_ended())
    }

    /// The next answer; `None` if the server ended the stream. May be dropped and called again.
    ///
    /// # Errors
    /// [`Error::Broken`] or [`Error::Status`] if the stream broke.
    pub async fn next(&mut self) -> Result<Option<pb::WatchResponse>, Error> {
        Ok(self.answers.message().await?)
    }
}

/// A watch that resumes. Dropping it ends it.
#[derive(Debug)]
pub struct Watcher {
    client: Client,
    request: pb::WatchCreateRequest,
    position: Position,
    stream: Option<Open>,
    /// The next stream, as far as it has come.
    opening: Option<Opening>,
    /// The endpoint on which the last stream broke.
    failed: Option<Arc<str>>,
    pause: Duration,
    /// When it is opened again. A moment, and not what is left of it: who drops [`Watcher::next`] again
    /// and again does not put it off.
    due: Instant,
    ended: bool,
}

#[derive(Debug)]
struct Open {
    raw: RawWatch,
    id: i64,
}

/// A stream on which the watch stands, and the server's revision then.
type Opened = (Open, i64);

/// Opens one.
type Work = dyn Future<Output = Result<Opened, Error>> + Send;

/// A stream that is about to be opened. It outlives the call of [`Watcher::next`] that began with it: who
/// drops that again and again does not begin anew each time.
///
/// The lock is never taken: it makes a watcher something that threads may share.
struct Opening(Mutex<Pin<Box<Work>>>);

impl Opening {
    fn begin(opened: impl Future<Output = Result<Opened, Error>> + Send + 'static) -> Opening {
        Opening(Mutex::new(Box::pin(opened)))
    }

    /// Waits until it is open, or cannot be. May be dropped and called again, until then.
    async fn end(&mut self) -> Result<Opened, Error> {
        let opened = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        opened.as_mut().await
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opening")
    }
}

impl Watcher {
    /// The next events. While the server cannot be reached this waits for it: put a time-out around
    /// it, or drop it and call again; nothing is lost. `None` after the watch has ended.
    ///
    /// # Errors
    /// [`Error::WatchCompacted`] if the revision that is needed next is gone,
    /// [`Error::WatchCanceled`] if the server ended the watch, [`Error::Status`] if it refuses the
    /// stream. All of them end the watch.
    pub async fn next(&mut self) -> Result<Option<Batch>, Error> {
        while !self.ended {
            let Some(open) = &mut self.stream else {
                self.reopen().await?;
                continue;
            };
            let answer = match open.raw.next().await {
                Ok(Some(answer)) => answer,
                Ok(None) => {
                    self.broken(&stream_ended());
                    continue;
                }
                Err(error) if passes(&error) => {
                    self.broken(&error);
                    continue;
                }
                Err(error) => return Err(self.end(error)),
            };
            self.pause = Duration::ZERO;
            if answer.watch_id != open.id && answer.watch_id != ALL_WATCHERS {
                continue;
            }
            if answer.canceled {
                let error = refusal(&answer, self.position.next);
                return Err(self.end(error));
            }
            if let Some(batch) = self.position.take(answer) {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    /// Which endpoint it runs on; `None` between two.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.stream.as_ref().map(|open| open.raw.endpoint())
    }

    /// The revision from which the watch goes on; 0 before it is known.
    #[must_use]
    pub fn next_revision(&self) -> i64 {
        self.position.next
    }

    /// Asks for a notice of progress. The server sends none while the watch has something to catch
    /// up with, and a broken stream forgets the question.
    ///
    /// # Errors
    /// [`Error::Status`] if the stream has just ended; the next [`Watcher::next`] opens it again.
    pub async fn request_progress(&self) -> Result<(), Error> {
        match &self.stream {
            Some(open) => {
                let request = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
                open.raw.send(request).await
            }
            None => Ok(()),
        }
    }

    /// Ends the watch and waits until the server says so. Events that come until then are dropped.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the server does not answer; the watch has ended all the same.
    pub async fn cancel(mut self) -> Result<(), Error> {
        let Some(mut open) = self.stream.take() else {
            return Ok(());
        };
        let endpoint = Arc::clone(&open.raw.endpoint);
        let canceled = async move {
            let request = pb::WatchCancelRequest { watch_id: open.id };
            let sent = open.raw.send(RequestUnion::CancelRequest(request)).await;
            // A stream that is gone has no watch on it.
            while sent.is_ok() {
                match open.raw.next().await {
                    Ok(Some(answer)) if !(answer.canceled && answer.watch_id == open.id) => {}
                    _ => break,
                }
            }
            Ok(())
        };
        let until = self.client.deadline();
        self.client.within(until, &endpoint, canceled).await
    }

    async fn reopen(&mut self) -> Result<(), Error> {
        loop {
            sleep_until(self.due).await;
            let opening = match self.opening.take() {
                Some(begun) => begun,
                None => self.begin_to_open(),
            };
            let opening = self.opening.insert(opening);
            let opened = opening.end().await;
            self.opening = None;
            match opened {
                Ok(opened) => {
                    self.stands(opened);
                    return Ok(());
                }
                Err(error) if passes(&error) => {
                    tracing::debug!(%error, next = self.position.next, "watch not resumed yet");
                    self.wait_longer();
                }
                Err(error) => return Err(self.end(error)),
            }
        }
    }

    fn begin_to_open(&mut self) -> Opening {
        let mut request = self.request.clone();
        request.start_revision = self.position.next;
        let until = self.client.deadline();
        Opening::begin(open(
            self.client.clone(),
            request,
            self.failed.take(),
            until,
        ))
    }

    fn stands(&mut self, (open, revision): Opened) {
        tracing::debug!(endpoint = %open.raw.endpoint, next = self.position.next, "watch stands");
        self.position.stands_at(revision);
        self.stream = Some(open);
    }

    fn broken(&mut self, error: &Error) {
        tracing::debug!(%error, next = self.position.next, "watch stream broke, resuming");
        self.failed = self.stream.take().map(|open| open.raw.endpoint);
        self.position.partial.clear();
        self.wait_longer();
    }

    fn wait_longer(&mut self) {
        self.pause = (self.pause * 2).clamp(REOPEN_MIN, REOPEN_MAX);
        self.due = Instant::now() + self.pause;
    }

    fn end(&mut self, error: Error) -> Error {
        self.ended = true;
        self.stream = None;
        error
    }
}

/// Opens a stream, creates the watch on it, renews a token that ran out.
async fn open(
    client: Client,
    request: pb::WatchCreateRequest,
    failed: Option<Arc<str>>,
    until: Instant,
) -> Result<Opened, Error> {
    let used = client.token();
    let elsewhere = match failed {
        Some(failed) => client.elsewhere(&failed).await,
        None => client.clone(),
    };
    match create(&elsewhere, request.clone(), until).await {
        Err(error) if client.renews_for(&error) => {
            client.renew_token(used.as_ref(), until).await?;
            create(&client, request, until).await
        }
        created => created,
    }
}

async fn create(
    client: &Client,
    request: pb::WatchCreateRequest,
    until: Instant,
) -> Result<Opened, Error> {
    let next = request.start_revision;
    let mut raw = RawWatch::open(client, request, until).await?;
    let endpoint = Arc::clone(&raw.endpoint);
    let first = async {
        loop {
            let answer = raw.next().await?.ok_or_else(stream_ended)?;
            if answer.created {
                return Ok(answer);
            }
        }
    };
    let created = client.within(until, &endpoint, first).await?;
    if created.canceled {
        return Err(refusal(&created, next));
    }
    let open = Open {
        raw,
        id: created.watch_id,
    };
    Ok((open, revision_of(&created)))
}

/// Where a watch is in history.
#[derive(Debug)]
struct Position {
    /// Every event before this was delivered, none from it on; 0: not known yet.
    next: i64,
    /// The highest revision that a server has named. Another one may lag behind it.
    seen: i64,
    /// Events of a batch of which pieces are still to come.
    partial: Vec<Event>,
}

impl Position {
    fn new(next: i64) -> Position {
        Position {
            next,
            seen: 0,
            partial: Vec::new(),
        }
    }

    /// The watch was created while the server was at `revision`.
    fn stands_at(&mut self, revision: i64) {
        self.partial.clear();
        self.seen = self.seen.max(revision);
        if self.next == 0 {
            self.next = revision + 1;
        }
    }

    /// What an answer adds, if it makes a batch whole.
    fn take(&mut self, answer: pb::WatchResponse) -> Option<Batch> {
        self.seen = self.seen.max(revision_of(&answer));
        if answer.events.is_empty() {
            if answer.created || answer.fragment || !self.partial.is_empty() {
                return None;
            }
            self.next = self.next.max(revision_of(&answer).saturating_add(1));
            // Not what another server has named: its events up to there may still be to come.
            return Some(Batch {
                revision: self.next - 1,
                events: Vec::new(),
            });
        }
        let next = self.next;
        let unseen = answer
            .events
            .into_iter()
            .filter(|event| mod_revision(event) >= next);
        if self.partial.is_empty() {
            self.partial = unseen.collect();
        } else {
            self.partial.extend(unseen);
        }
        if answer.fragment {
            return None;
        }
        let events = std::mem::take(&mut self.partial);
        let last = events.last().map(mod_revision)?;
        self.next = last.saturating_add(1);
        Some(Batch {
            revision: self.seen,
            events,
        })
    }
}

fn wire(request: RequestUnion) -> pb::WatchRequest {
    pb::WatchRequest {
        request_union: Some(request),
    }
}

fn mod_revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

fn revision_of(answer: &pb::WatchResponse) -> i64 {
    answer.header.map_or(0, |header| header.revision)
}

fn refusal(answer: &pb::WatchResponse, needed: i64) -> Error {
    if answer.compact_revision > 0 {
        return Error::WatchCompacted {
            needed,
            compact_revision: answer.compact_revision,
        };
    }
    Error::WatchCanceled {
        reason: answer.cancel_reason.clone(),
    }
}

fn stream_ended() -> Error {
    Error::Status {
        code: Code::Unavailable,
        message: "the watch stream ended".to_owned(),
    }
}

/// Whether a watch resumes after this (api.md 3.4), or after we gave up waiting.
fn passes(error: &Error) -> bool {
    matches!(error.code(), Code::Unavailable | Code::Internal)
        || matches!(error, Error::TimedOut { .. })
}

#[cfg(test)]
mod tests;
