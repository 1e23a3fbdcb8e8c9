//! Messages on their way to one peer over one kind of stream: the queue, and the body of the answer
//! that takes from it.
//!
//! 1. Nobody waits: a message that finds the queue full, or no stream, is given back.
//! 2. A newer stream takes the place of the one before, whose body ends.
//! 3. What is lost with a stream is reported, so that the leader sends it again.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use keelson_proto::message::{Message, MessageKind};
use tokio::time::{Instant, Sleep};

use crate::codec::{Encoder, StreamKind};
use crate::peer::Link;
use crate::stats::add;

/// How many messages wait for one stream; etcd's number.
pub(crate) const MESSAGES_MAX: usize = 4096;

/// How many bytes of entries wait for one stream. A message is taken while fewer wait, so that the
/// largest one gets through.
pub(crate) const BYTES_MAX: usize = 64 << 20;

/// About how many bytes are encoded before they are handed to the connection.
const PIECE_BYTES: usize = 256 << 10;

/// The room that a message takes besides its entries' data.
const MESSAGE_BYTES: usize = 128;

/// What a message costs while it waits.
pub(crate) fn cost(message: &Message) -> usize {
    let data: usize = message.entries.iter().map(|entry| entry.data.len()).sum();
    data + MESSAGE_BYTES
}

/// The queue of one stream.
#[derive(Debug)]
pub(crate) struct Outbox {
    kind: StreamKind,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Which body takes from the queue now; none, then nothing is queued.
    stream: Option<u64>,
    streams: u64,
    queue: VecDeque<Message>,
    bytes: usize,
    waker: Option<Waker>,
    closed: bool,
}

/// What became of a message.
#[derive(Debug)]
pub(crate) enum Push {
    /// It waits to be sent.
    Queued,
    /// There is no stream.
    NoStream(Message),
    /// Too many messages wait.
    Full(Message),
}

impl Outbox {
    pub(crate) fn new(kind: StreamKind) -> Outbox {
        Outbox {
            kind,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, message: Message) -> Push {
        let waker = {
            let mut state = self.state();
            if state.stream.is_none() {
                return Push::NoStream(message);
            }
            if state.queue.len() >= MESSAGES_MAX || state.bytes >= BYTES_MAX {
                return Push::Full(message);
            }
            state.bytes += cost(&message);
            state.queue.push_back(message);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Push::Queued
    }

    /// Begins a stream; the one before ends, and what waited for it is lost.
    pub(crate) fn attach(self: &Arc<Self>, link: &Arc<Link>) -> Option<StreamBody> {
        let (number, lost, waker) = {
            let mut state = self.state();
            if state.closed {
                return None;
            }
            state.streams += 1;
            let number = state.streams;
            let replaced = state.stream.replace(number).is_some();
            let lost = state.clear();
            (number, replaced.then_some(lost), state.waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        let (local, remote, kind) = (link.local(), link.member, self.kind.name());
        if let Some(lost) = lost {
            if lost {
                link.report_unreachable();
            }
            tracing::warn!(
                "stream-writer-type" = kind,
                "local-member-id" = %local,
                "remote-peer-id" = %remote,
                "closed TCP streaming connection with remote peer"
            );
        }
        link.status.activate();
        tracing::info!(
            "stream-writer-type" = kind,
            "local-member-id" = %local,
            "remote-peer-id" = %remote,
            "established TCP streaming connection with remote peer"
        );
        let interval = link.heartbeat_interval();
        Some(StreamBody {
            outbox: Arc::clone(self),
            link: Arc::clone(link),
            number,
            encoder: Encoder::new(self.kind),
            interval,
            heartbeat: Box::pin(tokio::time::sleep(interval)),
        })
    }

    /// Ends the stream there is, and takes no other.
    pub(crate) fn close(&self) {
        let waker = {
            let mut state = self.state();
            state.closed = true;
            state.stream = None;
            state.clear();
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl State {
    /// Forgets what waits, and says whether anything did.
    fn clear(&mut self) -> bool {
        let lost = !self.queue.is_empty();
        self.queue.clear();
        self.bytes = 0;
        lost
    }
}

/// The body of the answer to a peer that asked for a stream: whatever waits in the outbox, and a
/// sign of life now and then. Dropping it means that the connection is gone.
pub(crate) struct StreamBody {
    outbox: Arc<Outbox>,
    link: Arc<Link>,
    number: u64,
    encoder: Encoder,
    interval: Duration,
    heartbeat: Pin<Box<Sleep>>,
}

impl StreamBody {
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let mut piece = BytesMut::new();
        let batch = {
            let mut state = self.outbox.state();
            if state.stream != Some(self.number) {
                return Poll::Ready(None);
            }
            let batch = take_batch(&mut state);
            if batch.is_empty() {
                state.waker = Some(cx.waker().clone());
            }
            batch
        };
        for message in &batch {
            if message.kind == MessageKind::App {
                add(&self.link.stats.appends[0], 1);
            }
            self.encoder.encode(message, &mut piece);
        }
        if batch.is_empty() {
            if self.heartbeat.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.encoder.heartbeat(&mut piece);
        }
        // What is sent is a sign of life too, but readers of etcd count on the fixed pace only.
        if self.heartbeat.is_elapsed() {
            let next = Instant::now() + self.interval;
            self.heartbeat.as_mut().reset(next);
        }
        self.link
            .stats
            .sent_bytes
            .fetch_add(piece.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece.freeze()))))
    }
}

fn take_batch(state: &mut State) -> Vec<Message> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while bytes < PIECE_BYTES {
        let Some(message) = state.queue.pop_front() else {
            break;
        };
        bytes += cost(&message);
        batch.push(message);
    }
    state.bytes = state.bytes.saturating_sub(bytes);
    batch
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        {
            let mut state = self.outbox.state();
            if state.stream != Some(self.number) {
                return;
            }
            state.stream = None;
            state.clear();
        }
        if self.link.is_stopping() {
            return;
        }
        let kind = self.outbox.kind.name();
        self.link
            .status
            .deactivate(kind, "write", "the connection is gone");
        add(&self.link.stats.send_failures, 1);
        tracing::warn!(
            "stream-writer-type" = kind,
            "local-member-id" = %self.link.local(),
            "remote-peer-id" = %self.link.member,
            "lost TCP streaming connection with remote peer"
        );
        // What the connection had taken may be lost as well.
        self.link.report_unreachable();
    }
}
