//! Watches of each serving thread: a shard, its streams, and what is on its way to them.
//!
//! Apply leaves one message a batch and thread that has watchers ([`Watchers::events`]); a task on
//! the thread's runtime matches it, packs one response a watcher and revision, and wakes each stream
//! that got something. Watchers that lag are fed from the reader pool by the same task, many a
//! fetch. All of it happens on the thread that serves the streams; its lock is never contended but
//! by that thread.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use keelson_store::watch::{
    Chunk, FETCH_BYTES, Fetched, Flow, Handle, Shard, Spec, State as ShardState, StreamId, Target,
    fetch,
};
use keelson_store::{EventRange, EventRecord};
use tokio::sync::Notify;

use crate::grpc::splice;
use crate::grpc::watch_response::{self as response, Flags};
use crate::state::State;

/// Bytes that may wait to be sent on one stream; its watchers lag beyond that.
const STREAM_BYTES_MAX: usize = 1 << 20;

/// Small responses are packed up to so many bytes: what most clients take in one frame.
const PACK: usize = 16 << 10;

/// Bytes that are handed to HTTP/2 at once: what is handed over is no longer counted here.
const PIECE: usize = 64 << 10;

/// Watchers that one fetch feeds.
const JOBS_MAX: usize = 64;

/// Bytes that may wait to be sent on all streams of a thread before fetches become small.
const HUB_BYTES: usize = 32 << 20;

/// Bytes that a fetch reads then.
const SMALL_FETCH_BYTES: usize = 256 << 10;

/// What one fetch is said to cost the reader pool, in bytes.
const FETCH_COST: u64 = 4 << 20;

/// The watches of all serving threads.
pub(crate) struct Watching {
    threads: Box<[Hub]>,
    /// Events that were sent.
    events: AtomicU64,
}

/// Numbers of all watches.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Numbers {
    pub(crate) watchers: u64,
    pub(crate) streams: u64,
    /// Watchers that lag.
    pub(crate) lagging: u64,
    /// Responses that wait to be sent.
    pub(crate) queued: u64,
    /// Events sent so far.
    pub(crate) events: u64,
}

/// What apply tells a thread.
#[derive(Clone)]
enum News {
    /// The records of a batch.
    Events(EventRange),
    /// The state went on to this revision by a snapshot of the leader.
    Restored(i64),
}

struct Hub {
    /// Whether batches are wanted.
    open: AtomicBool,
    inbox: Mutex<Vec<News>>,
    arrived: Notify,
    core: Mutex<Core>,
}

/// The watchers of a thread and the streams that they belong to.
#[derive(Default)]
pub(crate) struct Core {
    shard: Shard,
    streams: BTreeMap<StreamId, Stream>,
    next_stream: u64,
}

/// One stream of a client.
#[derive(Default)]
struct Stream {
    watches: BTreeMap<i64, Watch>,
    next_id: i64,
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    /// Watchers that wait for room.
    blocked: Vec<Handle>,
    /// A request for progress that is to be answered once the shard is this far.
    progress_at: Option<i64>,
    waker: Option<Waker>,
}

#[derive(Clone, Copy)]
struct Watch {
    handle: Handle,
    flags: Flags,
    progress_notify: bool,
}

/// A response that waits to be sent.
struct Queued {
    bytes: Bytes,
    /// The watcher whose events these are: they are dropped with it.
    events_of: Option<i64>,
    /// Whether a part of it is on its way: then the rest must follow.
    begun: bool,
}

/// What is handed to HTTP/2 at once: a part of a response, or several whole ones.
pub(crate) struct Piece {
    pub(crate) chunk: splice::Chunk,
    /// Whether a response ends with it.
    pub(crate) last: bool,
}

impl Stream {
    fn is_full(&self) -> bool {
        self.queued_bytes >= STREAM_BYTES_MAX
    }

    fn push(&mut self, bytes: Bytes, events_of: Option<i64>) {
        self.queued_bytes += bytes.len();
        self.queue.push_back(Queued {
            bytes,
            events_of,
            begun: false,
        });
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Takes out what is to be sent next: a part of a response that is too long to be handed over at
    /// once, or whole responses.
    fn next_piece(&mut self) -> Option<Piece> {
        while let Some(next) = self.queue.front_mut() {
            let ended = |id| !self.watches.contains_key(&id);
            if !next.begun && next.events_of.is_some_and(ended) {
                drop(self.pop_next());
                continue;
            }
            if !next.begun && next.bytes.len() <= PIECE {
                let chunk = self.pack()?;
                return Some(Piece { chunk, last: true });
            }
            let first = !std::mem::replace(&mut next.begun, true);
            let last = next.bytes.len() <= PIECE;
            let part = next.bytes.split_to(next.bytes.len().min(PIECE));
            self.queued_bytes -= part.len();
            if last {
                self.queue.pop_front();
            }
            let chunk = if first {
                splice::Chunk::first(part)
            } else {
                splice::Chunk::further(part)
            };
            return Some(Piece { chunk, last });
        }
        None
    }

    /// Takes out the next response, with those behind it as far as they fit into one frame: a frame
    /// of HTTP/2 costs more than a small response. What a watcher got that has ended is left out.
    fn pack(&mut self) -> Option<splice::Chunk> {
        let first = self.pop()?;
        let mut packed = BytesMut::new();
        let mut messages = 1;
        while let Some(next) = self.queue.front()
            && first.len().max(packed.len()) + next.bytes.len() <= PACK
        {
            if packed.is_empty() {
                packed.reserve(PACK.min(first.len() + self.queued_bytes));
                packed.extend_from_slice(&first);
            }
            if let Some(next) = self.pop_next() {
                packed.extend_from_slice(&next);
                messages += 1;
            }
        }
        let bytes = if packed.is_empty() {
            first
        } else {
            packed.freeze()
        };
        Some(splice::Chunk::packed(bytes, messages))
    }

    fn pop(&mut self) -> Option<Bytes> {
        while !self.queue.is_empty() {
            if let Some(bytes) = self.pop_next() {
                return Some(bytes);
            }
        }
        None
    }

    /// Takes out the next response; nothing where its watcher has ended, or where there is none.
    fn pop_next(&mut self) -> Option<Bytes> {
        let Queued {
            bytes, events_of, ..
        } = self.queue.pop_front()?;
        self.queued_bytes -= bytes.len();
        let ended = events_of.is_some_and(|id| !self.watches.contains_key(&id));
        (!ended).then_some(bytes)
    }
}

/// Why a watcher was not made; the text goes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Duplicate;

impl Watching {
    pub(crate) fn new(threads: u16) -> Watching {
        let hub = || Hub {
            open: AtomicBool::new(false),
            inbox: Mutex::default(),
            arrived: Notify::new(),
            core: Mutex::default(),
        };
        Watching {
            threads: (0..threads.max(1)).map(|_| hub()).collect(),
            events: AtomicU64::new(0),
        }
    }

    fn hub(&self, thread: u16) -> &Hub {
        self.threads
            .get(usize::from(thread))
            .expect("handlers name threads that were made")
    }

    /// Numbers of all threads, for metrics.
    pub(crate) fn numbers(&self) -> Numbers {
        let mut numbers = Numbers {
            events: self.events.load(Ordering::Relaxed),
            ..Numbers::default()
        };
        for hub in &self.threads {
            let core = lock(&hub.core);
            numbers.watchers += core.shard.len() as u64;
            numbers.streams += core.streams.len() as u64;
            for stream in core.streams.values() {
                let lags =
                    |watch: &&Watch| core.shard.state(watch.handle) == Some(ShardState::Lagging);
                numbers.lagging += stream.watches.values().filter(lags).count() as u64;
                numbers.queued += stream.queue.len() as u64;
            }
        }
        numbers
    }

    /// Serves the watches of a thread; runs on its runtime, without end.
    pub(crate) async fn run(&self, thread: u16, state: &Arc<State>) {
        let hub = self.hub(thread);
        loop {
            hub.arrived.notified().await;
            hub.take_batches(state);
            while let Some(jobs) = hub.jobs() {
                let shared = Arc::clone(state.shared());
                let bytes_max = hub.fetch_bytes();
                let fetched = state
                    .pool
                    .run(FETCH_COST, move || fetch(&shared, jobs, bytes_max))
                    .await;
                match fetched {
                    Ok(Ok(chunks)) => hub.feed(state, chunks),
                    Ok(Err(error)) => {
                        tracing::error!(%error, "failed to read history for watchers");
                        hub.break_streams();
                    }
                    // The pool has stopped: so does the member.
                    Err(_) => return,
                }
                hub.take_batches(state);
            }
        }
    }
}

impl Watching {
    /// Leaves a batch for each thread that has watchers; called by apply.
    pub(crate) fn events(&self, batch: EventRange) {
        self.tell(&News::Events(batch));
    }

    /// Tells each thread that has watchers that they lag behind this revision; called by apply.
    pub(crate) fn restored(&self, revision: i64) {
        self.tell(&News::Restored(revision));
    }

    fn tell(&self, news: &News) {
        for hub in self
            .threads
            .iter()
            .filter(|hub| hub.open.load(Ordering::SeqCst))
        {
            lock(&hub.inbox).push(news.clone());
            hub.arrived.notify_one();
        }
    }
}

impl Hub {
    /// Hands the batches that have arrived to the shard.
    fn take_batches(&self, state: &State) {
        // Under the core's lock, so that batches reach the shard in the order of the inbox whoever
        // takes them.
        let mut core = lock(&self.core);
        let batches = std::mem::take(&mut *lock(&self.inbox));
        if batches.is_empty() {
            return;
        }
        let watching = &state.watching;
        let (begun, before) = (Instant::now(), watching.events.load(Ordering::Relaxed));
        let Core { shard, streams, .. } = &mut *core;
        for news in &batches {
            match news {
                News::Events(batch) => shard.events(batch, &mut |target, revision, events| {
                    live(state, streams, target, revision, events)
                }),
                News::Restored(revision) => shard.skip_to(*revision),
            }
        }
        // Other threads may have sent some meanwhile: what is told of one event is no more exact.
        let sent = watching.events.load(Ordering::Relaxed) - before;
        state.metrics.watch_events(begun.elapsed(), sent);
        let last = core.shard.last();
        let due: Vec<StreamId> = core
            .streams
            .iter()
            .filter(|(_, stream)| stream.progress_at.is_some_and(|at| at <= last))
            .map(|(id, _)| *id)
            .collect();
        for stream in due {
            core.answer_progress(state, stream);
        }
    }

    /// How much to fetch at once: little while many streams are slow, since each of them holds what was
    /// fetched for it.
    fn fetch_bytes(&self) -> usize {
        let core = lock(&self.core);
        let queued: usize = core.streams.values().map(|it| it.queued_bytes).sum();
        if queued < HUB_BYTES {
            FETCH_BYTES
        } else {
            SMALL_FETCH_BYTES
        }
    }

    /// What to fetch next; watchers whose stream is full wait until it is not.
    fn jobs(&self) -> Option<Vec<keelson_store::watch::Job>> {
        let mut core = lock(&self.core);
        let Core { shard, streams, .. } = &mut *core;
        while shard.wants_history() {
            let mut jobs = shard.jobs(JOBS_MAX);
            jobs.retain(|job| {
                let stream = streams.get_mut(&job.target.stream);
                let full = stream.as_ref().is_some_and(|stream| stream.is_full());
                if let (true, Some(stream)) = (full, stream) {
                    shard.block(job.target.handle);
                    stream.blocked.push(job.target.handle);
                }
                !full
            });
            if !jobs.is_empty() {
                return Some(jobs);
            }
        }
        None
    }

    /// Sends what was fetched.
    fn feed(&self, state: &State, chunks: Vec<Chunk>) {
        let mut core = lock(&self.core);
        let Core { shard, streams, .. } = &mut *core;
        for Chunk { target, fetched } in chunks {
            let Some(stream) = streams.get_mut(&target.stream) else {
                continue;
            };
            let Some(watch) = stream.watches.get(&target.watch_id).copied() else {
                continue;
            };
            if watch.handle != target.handle {
                continue;
            }
            if stream.is_full() {
                // Others of its watchers were quicker: it is fetched again when there is room.
                shard.block(target.handle);
                stream.blocked.push(target.handle);
                continue;
            }
            match fetched {
                Fetched::Compacted { revision } => {
                    shard.compacted(target.handle);
                    stream.push(response::compacted(state, target.watch_id, revision), None);
                }
                Fetched::Events { events, upto } => {
                    shard.fetched(target.handle, upto, !events.is_empty());
                    if events.is_empty() {
                        continue;
                    }
                    state
                        .watching
                        .events
                        .fetch_add(events.len() as u64, Ordering::Relaxed);
                    let events: Vec<&EventRecord> = events.iter().collect();
                    let header = state.header_now();
                    for bytes in
                        response::events(state, &header, target.watch_id, &events, watch.flags)
                    {
                        stream.push(bytes, Some(target.watch_id));
                    }
                }
            }
        }
    }

    /// Ends every stream: what cannot be read cannot be left out.
    fn break_streams(&self) {
        let mut core = lock(&self.core);
        for (_, stream) in std::mem::take(&mut core.streams) {
            for watch in stream.watches.values() {
                core.shard.remove(watch.handle);
            }
            if let Some(waker) = stream.waker {
                waker.wake();
            }
        }
    }
}

/// Sends the events of one revision to a synced watcher.
fn live(
    state: &State,
    streams: &mut BTreeMap<StreamId, Stream>,
    target: Target,
    revision: i64,
    events: &[&EventRecord],
) -> Flow {
    let Some(stream) = streams.get_mut(&target.stream) else {
        return Flow::Taken;
    };
    if stream.is_full() {
        stream.blocked.push(target.handle);
        return Flow::Full;
    }
    let Some(watch) = stream.watches.get(&target.watch_id) else {
        return Flow::Taken;
    };
    state
        .watching
        .events
        .fetch_add(events.len() as u64, Ordering::Relaxed);
    let header = state.header(revision);
    let flags = watch.flags;
    for bytes in response::events(state, &header, target.watch_id, events, flags) {
        stream.push(bytes, Some(target.watch_id));
    }
    Flow::Taken
}

impl Core {
    /// Answers a request for progress if every watcher of the stream is complete; otherwise it is
    /// dropped, as in etcd.
    fn answer_progress(&mut self, state: &State, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.progress_at = None;
        let complete = !stream.watches.is_empty()
            && stream
                .watches
                .values()
                .all(|watch| self.shard.is_complete(watch.handle));
        if complete {
            let header = state.header(self.shard.last());
            stream.push(response::progress(&header, -1), None);
        }
    }
}

/// One stream, as its handler holds it; dropping it ends its watchers.
pub(crate) struct StreamHandle {
    watching: Arc<Watching>,
    thread: u16,
    id: StreamId,
}

impl StreamHandle {
    pub(crate) fn open(watching: &Arc<Watching>, thread: u16) -> StreamHandle {
        let mut core = lock(&watching.hub(thread).core);
        let id = StreamId(core.next_stream);
        core.next_stream += 1;
        core.streams.insert(id, Stream::default());
        StreamHandle {
            watching: Arc::clone(watching),
            thread,
            id,
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        lock(&self.watching.hub(self.thread).core)
    }

    fn wake_task(&self) {
        self.watching.hub(self.thread).arrived.notify_one();
    }

    /// Makes a watcher, and says so; `asked` is the id that the client chose, 0 for any. A start of
    /// 0 is the next revision.
    ///
    /// # Errors
    ///
    /// [`Duplicate`] if the id is in use on this stream.
    pub(crate) fn create(
        &self,
        state: &State,
        asked: i64,
        spec: Spec,
        flags: Flags,
        progress_notify: bool,
    ) -> Result<(), Duplicate> {
        let hub = self.watching.hub(self.thread);
        let mut core = self.core();
        if core.shard.is_empty() {
            // From here on every batch comes; what was published before is behind us.
            hub.open.store(true, Ordering::SeqCst);
            lock(&hub.inbox).clear();
            core.shard.open_at(state.shared().revision());
        }
        let Core { shard, streams, .. } = &mut *core;
        let Some(stream) = streams.get_mut(&self.id) else {
            return Ok(());
        };
        let watch_id = if asked == 0 {
            while stream.watches.contains_key(&stream.next_id) {
                stream.next_id += 1;
            }
            stream.next_id += 1;
            stream.next_id - 1
        } else {
            asked
        };
        if stream.watches.contains_key(&watch_id) {
            return Err(Duplicate);
        }
        let current = state.shared().revision();
        stream.push(response::created(&state.header(current), watch_id), None);
        let handle = match spec.start {
            0 => shard.add_from_now(self.id, watch_id, spec, current),
            _ => shard.add(self.id, watch_id, spec),
        };
        stream.watches.insert(
            watch_id,
            Watch {
                handle,
                flags,
                progress_notify,
            },
        );
        drop(core);
        self.wake_task();
        Ok(())
    }

    /// Ends a watcher, and says so; an unknown id is passed over.
    pub(crate) fn cancel(&self, state: &State, watch_id: i64) {
        let mut core = self.core();
        let Core { shard, streams, .. } = &mut *core;
        let Some(stream) = streams.get_mut(&self.id) else {
            return;
        };
        let Some(watch) = stream.watches.remove(&watch_id) else {
            return;
        };
        shard.remove(watch.handle);
        stream.push(response::canceled(&state.header_now(), watch_id), None);
        self.watching.close_if_idle(self.thread, &core);
    }

    /// Sends a response as it is.
    pub(crate) fn send(&self, bytes: Bytes) {
        if let Some(stream) = self.core().streams.get_mut(&self.id) {
            stream.push(bytes, None);
        }
    }

    /// Asks for progress: answered once the shard has what is published now.
    pub(crate) fn ask_progress(&self, state: &State) {
        let revision = state.shared().revision();
        let mut core = self.core();
        if core.shard.is_empty() {
            return;
        }
        if core.shard.last() >= revision {
            core.answer_progress(state, self.id);
        } else if let Some(stream) = core.streams.get_mut(&self.id) {
            stream.progress_at = Some(revision);
        }
    }

    /// Tells of progress, to each watcher that wants it and got nothing since the last time.
    pub(crate) fn tick(&self, state: &State) {
        let begun = Instant::now();
        let mut core = self.core();
        let Core { shard, streams, .. } = &mut *core;
        let Some(stream) = streams.get_mut(&self.id) else {
            return;
        };
        let watches: Vec<(i64, Watch)> = stream
            .watches
            .iter()
            .map(|(id, watch)| (*id, *watch))
            .collect();
        for (watch_id, watch) in watches {
            if shard.progress_due(watch.handle) && watch.progress_notify {
                let header = state.header(shard.last());
                stream.push(response::progress(&header, watch_id), None);
            }
        }
        let took = begun.elapsed().as_secs_f64();
        state.metrics.watch_progress.observe(took);
    }

    /// Whether so much waits to be sent that no further request should be read.
    pub(crate) fn is_full(&self) -> bool {
        self.core()
            .streams
            .get(&self.id)
            .is_some_and(Stream::is_full)
    }

    /// The next responses, or a part of a long one; `None` if the stream was broken.
    pub(crate) fn poll_next(&self, waker: &Waker) -> Poll<Option<Piece>> {
        let mut core = self.core();
        let Core { shard, streams, .. } = &mut *core;
        let Some(stream) = streams.get_mut(&self.id) else {
            return Poll::Ready(None);
        };
        let piece = stream.next_piece();
        if stream.queued_bytes <= STREAM_BYTES_MAX / 2 && !stream.blocked.is_empty() {
            for handle in std::mem::take(&mut stream.blocked) {
                shard.resume(handle);
            }
            self.wake_task();
        }
        if piece.is_none() {
            stream.waker = Some(waker.clone());
            return Poll::Pending;
        }
        Poll::Ready(piece)
    }
}

impl Watching {
    /// Without watchers a thread wants no batches.
    fn close_if_idle(&self, thread: u16, core: &Core) {
        if core.shard.is_empty() {
            self.hub(thread).open.store(false, Ordering::SeqCst);
        }
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        let mut core = self.core();
        if let Some(stream) = core.streams.remove(&self.id) {
            for watch in stream.watches.values() {
                core.shard.remove(watch.handle);
            }
        }
        self.watching.close_if_idle(self.thread, &core);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics while it holds a lock but for a broken invariant, which ends the member.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_response_leaves_in_pieces_and_counts_until_the_last_of_them() {
        let watching = Arc::new(Watching::new(1));
        let stream = StreamHandle::open(&watching, 0);
        let long: Vec<u8> = (0..STREAM_BYTES_MAX + PIECE / 2)
            .map(|at| (at % 251) as u8)
            .collect();
        stream.send(Bytes::from(long.clone()));
        stream.send(Bytes::from_static(b"short"));
        assert!(stream.is_full());
        let mut received = Vec::new();
        let mut last = false;
        while !last {
            let Poll::Ready(Some(piece)) = stream.poll_next(Waker::noop()) else {
                panic!("a piece is there");
            };
            assert!(piece.chunk.bytes().len() <= PIECE);
            assert_eq!(piece.chunk.messages(), u64::from(received.is_empty()));
            assert!(!stream.is_full() || received.len() < PIECE);
            received.extend_from_slice(piece.chunk.bytes());
            last = piece.last;
        }
        assert_eq!(received, long);
        let Poll::Ready(Some(piece)) = stream.poll_next(Waker::noop()) else {
            panic!("the next response is there");
        };
        assert_eq!(
            (piece.chunk.bytes(), piece.chunk.messages(), piece.last),
            (&b"short"[..], 1, true)
        );
        assert!(stream.poll_next(Waker::noop()).is_pending());
    }

    #[test]
    fn what_waits_is_packed_in_order_without_what_an_ended_watcher_got() {
        let mut stream = Stream::default();
        stream.push(Bytes::from_static(b"created"), None);
        stream.push(Bytes::from_static(b"gone"), Some(7));
        stream.push(Bytes::from_static(b"canceled"), None);
        stream.push(Bytes::from(vec![1; PACK]), None);
        stream.push(Bytes::from_static(b"last"), None);
        let pieces: Vec<_> = std::iter::from_fn(|| stream.pack()).collect();
        let bytes: Vec<_> = pieces.iter().map(splice::Chunk::bytes).collect();
        assert_eq!(bytes, [&b"createdcanceled"[..], &[1; PACK], b"last"]);
        assert_eq!(stream.queued_bytes, 0);
    }
}
