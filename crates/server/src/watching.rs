//! Watches of each serving thread: a shard, its streams, and what is on its way to them.
//!
//! Apply leaves one message a batch and thread that has watchers ([`Watchers::events`]); a task on
//! the thread's runtime matches it, encodes events once for all that want the same ([`live`]), queues them
//! for each watcher, and wakes each stream that got something. Watchers that lag are fed from the reader pool by the same task, many a
//! fetch. Values that events replaced are taken from memory, or else read by the pool while their place
//! in the stream is kept. All of it happens on the thread that serves the streams; its lock is never contended but
//! by that thread.

mod live;
mod previous;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use keelson_store::watch::{
    Chunk, FETCH_BYTES, Fetched, Shard, Spec, State as ShardState, StreamId, fetch,
};
use keelson_store::{EventRange, EventRecord};
use tokio::sync::Notify;

use crate::grpc::watch_response::{self as response, Flags};
use crate::state::State;
use live::Live;
pub(crate) use stream::Piece;
use stream::{Stream, Watch};

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
    /// Told when values are to be read.
    wanted: Notify,
    core: Mutex<Core>,
}

/// The watchers of a thread and the streams that they belong to.
#[derive(Default)]
pub(crate) struct Core {
    shard: Shard,
    streams: BTreeMap<StreamId, Stream>,
    next_stream: u64,
    /// Events whose replaced values are to be read.
    wanted: VecDeque<previous::Wanted>,
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
            wanted: Notify::new(),
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
                numbers.queued += stream.queued() as u64;
            }
        }
        numbers
    }

    /// Serves the watches of a thread; runs on its runtime, without end.
    pub(crate) async fn run(&self, thread: u16, state: &Arc<State>) {
        let hub = self.hub(thread);
        tokio::join!(
            Watching::serve(hub, state),
            previous::read(hub, state.shared(), &state.pool)
        );
    }

    async fn serve(hub: &Hub, state: &Arc<State>) {
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
                        hub.break_streams(&unreadable(&error));
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
    /// Begins to take batches. Apply publishes a revision first and looks then at whether its batch is
    /// wanted; here it is the other way round. So either the batch comes, or its revision is seen.
    fn join_in(&self, core: &mut Core, published: impl FnOnce() -> i64) {
        self.open.store(true, Ordering::SeqCst);
        // What was left from earlier, and what came just now, is published.
        lock(&self.inbox).clear();
        core.shard.open_at(published());
    }

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
        let Core {
            shard,
            streams,
            wanted,
            ..
        } = &mut *core;
        let mut failed = Vec::new();
        let mut live = Live::new(state, streams, wanted, &mut failed);
        for news in &batches {
            match news {
                News::Events(batch) => shard.events(batch, &mut |target, revision, events| {
                    live.send(target, revision, events)
                }),
                News::Restored(revision) => shard.skip_to(*revision),
            }
        }
        if !wanted.is_empty() {
            self.wanted.notify_one();
        }
        for (stream, reason) in failed {
            core.break_stream(stream, &reason);
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
        let queued: usize = core.streams.values().map(Stream::queued_bytes).sum();
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
            jobs.retain_mut(|job| {
                let stream = streams.get_mut(&job.target.stream);
                let watch = stream
                    .as_ref()
                    .and_then(|stream| stream.watches.get(&job.target.watch_id));
                job.previous = watch.is_some_and(|watch| watch.flags.prev_kv);
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
                Fetched::Events {
                    mut events,
                    previous,
                    mut upto,
                } => {
                    let max = state.settings.message_max();
                    // As from etcd, all that one fetch brings is one answer, for who reads what it is sent.
                    let room = if stream.has_room() {
                        usize::MAX
                    } else {
                        stream.room()
                    };
                    let fitting = fitting(&events, &previous, room);
                    if let Some(next) = events.get(fitting) {
                        // The rest is fetched again when there is room.
                        upto = next.revision.main - 1;
                        events.truncate(fitting);
                    }
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
                    let fragment = watch.flags.fragment.then_some(max);
                    for bytes in
                        response::events(&header, target.watch_id, &events, &previous, fragment)
                    {
                        stream.push(bytes, Some(target.watch_id));
                    }
                }
            }
        }
    }

    /// Ends every stream: what cannot be read cannot be left out.
    fn break_streams(&self, reason: &str) {
        let mut core = lock(&self.core);
        let streams: Vec<StreamId> = core.streams.keys().copied().collect();
        for stream in streams {
            core.break_stream(stream, reason);
        }
    }
}

/// How many events from the first on fit into `room` bytes: whole revisions, and the first one in any case.
fn fitting(events: &[EventRecord], previous: &[Option<Bytes>], room: usize) -> usize {
    let (mut fitting, mut bytes) = (0, 0);
    for revision in events.chunk_by(|a, b| a.revision.main == b.revision.main) {
        let end = fitting + revision.len();
        let own = revision.iter().map(|event| event.record.bytes.len());
        let replaced = previous.iter().take(end).skip(fitting).flatten();
        bytes += own.chain(replaced.map(Bytes::len)).sum::<usize>();
        if fitting > 0 && bytes > room {
            break;
        }
        fitting = end;
    }
    fitting
}

/// What a client is told whose stream ends because of the database.
fn unreadable(error: &keelson_store::Error) -> String {
    format!("keelson: history could not be read: {error}")
}

impl Core {
    /// Ends a stream with a reason: its watchers get nothing more.
    fn break_stream(&mut self, id: StreamId, reason: &str) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        for watch in stream.watches.values() {
            self.shard.remove(watch.handle);
        }
        stream.blocked.clear();
        stream.break_off(reason.to_owned());
    }

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
            hub.join_in(&mut core, || state.shared().revision());
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

    /// The next responses, or a part of a long one.
    ///
    /// # Errors
    ///
    /// Why the stream has to end.
    pub(crate) fn poll_next(&self, waker: &Waker) -> Poll<Result<Piece, String>> {
        let mut core = self.core();
        let Core { shard, streams, .. } = &mut *core;
        let stream = streams
            .get_mut(&self.id)
            .expect("a stream is there as long as its handle");
        let piece = stream.next_piece();
        if stream.has_room() && !stream.blocked.is_empty() {
            for handle in std::mem::take(&mut stream.blocked) {
                shard.resume(handle);
            }
            self.wake_task();
        }
        if let Some(piece) = piece {
            return Poll::Ready(Ok(piece));
        }
        if let Some(reason) = stream.broken() {
            return Poll::Ready(Err(reason.to_owned()));
        }
        stream.waker = Some(waker.clone());
        Poll::Pending
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
    use keelson_proto::rpc::etcdserverpb::watch_request::RequestUnion;
    use keelson_proto::rpc::etcdserverpb::{
        PutRequest, PutResponse, WatchCreateRequest, WatchRequest,
    };
    use keelson_store::{Record, Revision};

    use super::stream::{PIECE, STREAM_BYTES_MAX};
    use super::*;
    use crate::wire::{Both, Client, start, within};

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
            let Poll::Ready(Ok(piece)) = stream.poll_next(Waker::noop()) else {
                panic!("a piece is there");
            };
            assert!(piece.chunk.bytes().len() <= PIECE);
            assert_eq!(piece.chunk.messages(), u64::from(received.is_empty()));
            assert!(!stream.is_full() || received.len() < PIECE);
            received.extend_from_slice(piece.chunk.bytes());
            last = piece.last;
        }
        assert_eq!(received, long);
        let Poll::Ready(Ok(piece)) = stream.poll_next(Waker::noop()) else {
            panic!("the next response is there");
        };
        assert_eq!(
            (piece.chunk.bytes(), piece.chunk.messages(), piece.last),
            (&b"short"[..], 1, true)
        );
        assert!(stream.poll_next(Waker::noop()).is_pending());
    }

    fn record(main: i64, len: usize) -> EventRecord {
        EventRecord {
            revision: Revision { main, sub: 0 },
            record: Record {
                bytes: vec![0; len].into(),
                tombstone: false,
            },
        }
    }

    #[test]
    fn as_many_whole_revisions_as_fit_are_queued_and_one_at_least() {
        let events = [
            record(2, 10),
            record(3, 10),
            record(3, 10),
            record(4, 10),
            record(9, 1),
        ];
        for (room, expected) in [(0, 1), (10, 1), (29, 1), (30, 3), (40, 4), (41, 5)] {
            assert_eq!(fitting(&events, &[], room), expected, "{room} bytes");
        }
        let value = |len: usize| Some(Bytes::from(vec![0; len]));
        let previous = [None, value(5), None, value(100), None];
        for (room, expected) in [(34, 1), (35, 3), (144, 3), (145, 4), (146, 5)] {
            assert_eq!(fitting(&events, &previous, room), expected, "{room} bytes");
        }
        assert_eq!(fitting(&[], &[], 10), 0);
    }

    fn batch(main: i64) -> EventRange {
        EventRange {
            from: main,
            to: main,
            records: [record(main, 0)].into(),
        }
    }

    /// What a thread that joins in while revision 5 is on its way gets to know of: up to which revision
    /// it takes as past, and the batches that come.
    fn joined(apply: impl FnOnce(&Watching) -> i64) -> (i64, Vec<i64>) {
        let watching = Watching::new(1);
        let hub = watching.hub(0);
        let mut core = lock(&hub.core);
        hub.join_in(&mut core, || apply(&watching));
        drop(core);
        watching.events(batch(6));
        let last = lock(&hub.core).shard.last();
        let to = |news: &News| match news {
            News::Events(batch) => batch.to,
            News::Restored(revision) => *revision,
        };
        let batches = lock(&hub.inbox).iter().map(to).collect();
        (last, batches)
    }

    #[test]
    fn a_batch_is_sent_or_its_revision_is_seen_whenever_a_thread_joins_in() {
        // All of it before the thread looks; but for the sending; after the look.
        let before = joined(|watching| {
            watching.events(batch(5));
            5
        });
        assert_eq!(before, (5, vec![5, 6]));
        let between = joined(|_| 5);
        assert_eq!(between, (5, vec![6]));
        let after = joined(|watching| {
            let seen = 4;
            watching.events(batch(5));
            seen
        });
        assert_eq!(after, (4, vec![5, 6]));
    }

    /// The largest revision of the test below, in bytes.
    const LARGEST: usize = 200 << 10;

    #[tokio::test]
    async fn a_stream_that_is_not_read_holds_no_more_than_its_budget_and_a_revision() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let member = std::thread::spawn(move || start(&path)).join().unwrap();
        let url = &member.client_urls()[0];
        let client = Client::connect(url).await;
        let put = async |number: usize| {
            let request = PutRequest {
                key: format!("k{}", number % 7).into(),
                value: vec![0; LARGEST / 2 - 100].into(),
                ..PutRequest::default()
            };
            let answer = client.call::<PutResponse>("/etcdserverpb.KV/Put", &request);
            within(answer).await.unwrap();
        };
        for number in 0..60 {
            put(number).await;
        }
        let mut streams = Vec::new();
        for (start_revision, prev_kv) in [(0, false), (0, true), (1, false), (1, true)] {
            let stream = Both::open(url, "/etcdserverpb.Watch/Watch").await;
            let create = WatchCreateRequest {
                key: "k".into(),
                range_end: "l".into(),
                start_revision,
                prev_kv,
                ..WatchCreateRequest::default()
            };
            stream.send(&WatchRequest {
                request_union: Some(RequestUnion::CreateRequest(create)),
            });
            streams.push(stream);
        }
        let all_are = |wanted: fn(Numbers) -> bool| {
            let watching = &member.state().watching;
            async move {
                while !wanted(watching.numbers()) {
                    tokio::task::yield_now().await;
                }
            }
        };
        within(all_are(|numbers| numbers.watchers == 4)).await;
        for number in 0..60 {
            put(number).await;
        }
        within(all_are(|numbers| numbers.lagging == 4)).await;
        let hubs = member.state().watching.threads.iter();
        let queued: Vec<usize> = hubs
            .flat_map(|hub| {
                let core = lock(&hub.core);
                core.streams
                    .values()
                    .map(Stream::queued_bytes)
                    .collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(queued.len(), 4);
        // Half full, a fetch with the values that its events replaced, and a revision more of each.
        let most = STREAM_BYTES_MAX / 2 + 2 * FETCH_BYTES + 2 * LARGEST;
        for bytes in queued {
            assert!(
                bytes > STREAM_BYTES_MAX / 2,
                "it lags for a reason: {bytes}"
            );
            assert!(bytes <= most, "{bytes} of {most} bytes wait");
        }
        drop((streams, client));
        std::thread::spawn(move || member.stop()).join().unwrap();
    }
}
