//! Watchers of a shard against a plain list of what happened: whatever the order in which batches,
//! history, full streams, commits, compactions and restarts come, each watcher gets each event of
//! its range once, in order, revision by revision, or is told that compaction has passed it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod rig;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use keelson_proto::rpc::etcdserverpb::request_op::Request;
use keelson_proto::rpc::etcdserverpb::{
    DeleteRangeRequest, InternalRaftRequest, PutRequest, RequestOp, TxnRequest,
};
use keelson_proto::rpc::mvccpb::KeyValue;
use keelson_store::watch::{
    self, Chunk, Fetched, Filters, Flow, Handle, Job, Shard, Spec, StreamId, Target,
};
use keelson_store::{EventRange, EventRecord, Shared};
use proptest::prelude::*;
use prost::Message as _;
use rig::Rig;

const KEYS: [&str; 6] = ["a", "aa", "b", "c", "ca", "d"];
const STREAMS: usize = 3;

/// One event as the model knows it.
#[derive(Clone, Debug)]
struct Event {
    sub: u32,
    key: &'static str,
    tombstone: bool,
    /// The revision of the value before.
    prev: Option<i64>,
}

/// What has happened, as a list.
struct Model {
    revision: i64,
    compacted: i64,
    history: BTreeMap<i64, Vec<Event>>,
    live: BTreeMap<&'static str, i64>,
}

impl Model {
    fn event(&mut self, key: &'static str, tombstone: bool) {
        let prev = if tombstone {
            self.live.remove(key)
        } else {
            self.live.insert(key, self.revision + 1)
        };
        if tombstone && prev.is_none() {
            return;
        }
        let events = self.history.entry(self.revision + 1).or_default();
        let sub = events.len() as u32;
        events.push(Event {
            sub,
            key,
            tombstone,
            prev,
        });
    }

    fn finish(&mut self) {
        if self.history.contains_key(&(self.revision + 1)) {
            self.revision += 1;
        }
    }
}

/// The far end of a watch: what it asked for, and how much it has seen.
struct Client {
    stream: usize,
    key: &'static str,
    end: &'static str,
    filters: Filters,
    start: i64,
    /// Whether it named no start revision.
    from_now: bool,
    handle: Handle,
    /// It has everything up to here.
    known: i64,
    /// Whether it got anything since progress was last asked for.
    active: bool,
    compacted: bool,
    removed: bool,
}

impl Client {
    fn wants(&self, event: &Event) -> bool {
        let inside = match self.end {
            "" => event.key == self.key,
            "\0" => event.key >= self.key,
            end => event.key >= self.key && event.key < end,
        };
        let filtered = if event.tombstone {
            self.filters.no_delete
        } else {
            self.filters.no_put
        };
        inside && !filtered
    }

    /// The first revision it lacks something of, up to `upto`, with what it lacks.
    fn lacks<'m>(&self, model: &'m Model, upto: i64) -> Option<(i64, Vec<&'m Event>)> {
        if self.known >= upto {
            return None;
        }
        model
            .history
            .range(self.known + 1..=upto)
            .map(|(main, events)| (*main, events.iter().filter(|e| self.wants(e)).collect()))
            .find(|(_, events): &(i64, Vec<&Event>)| !events.is_empty())
    }

    /// Checks that `events` are what must come next.
    fn check(&self, model: &Model, shared: &Shared, main: i64, events: &[&EventRecord]) {
        assert!(!self.removed, "a watcher that is gone gets nothing");
        assert!(!self.compacted, "a watcher that was cancelled gets nothing");
        let (expected_main, expected) = self.lacks(model, i64::MAX).unwrap();
        assert_eq!(main, expected_main);
        assert_eq!(events.len(), expected.len());
        for (event, expected) in events.iter().zip(expected) {
            assert_eq!(event.revision.main, main);
            assert_eq!(event.revision.sub, expected.sub);
            assert_eq!(event.record.tombstone, expected.tombstone);
            assert_eq!(watch::key(event).unwrap(), expected.key.as_bytes());
            let prev = watch::previous(shared, event).unwrap();
            let prev = prev.map(|bytes| KeyValue::decode(bytes).unwrap().mod_revision);
            if prev.is_some() || main > model.compacted {
                assert_eq!(prev, expected.prev);
            }
        }
    }
}

fn spec(key: &str, end: &str, filters: Filters, start: i64) -> Spec {
    Spec {
        key: key.as_bytes().into(),
        range_end: end.as_bytes().into(),
        filters,
        start,
    }
}

#[derive(Clone, Debug)]
enum Start {
    Past(i64),
    /// What revision 0 of a request comes to.
    Now,
    Future(i64),
    Beginning,
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize, usize),
    Delete(usize, usize),
    /// Changes of several keys under one revision; true deletes.
    Txn([Option<bool>; 6]),
    Burst(usize, usize),
    TakeBatch,
    DeliverBatch,
    Add {
        stream: usize,
        key: usize,
        end: usize,
        filters: (bool, bool),
        start: Start,
    },
    Remove(usize),
    /// How many more messages a stream takes in.
    Room(usize, usize),
    Jobs(usize),
    Fetch(usize),
    Land(usize),
    Progress(usize),
    Commit,
    Compact(i64),
    FinishCompactions,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..KEYS.len();
    let size = prop_oneof![12 => 0usize..40, 1 => Just(400_000)];
    let start = prop_oneof![
        4 => (0i64..30).prop_map(Start::Past),
        2 => Just(Start::Now),
        1 => (1i64..6).prop_map(Start::Future),
        1 => Just(Start::Beginning),
    ];
    let add = (
        0..STREAMS,
        key(),
        0usize..9,
        any::<(bool, bool)>(),
        0u8..3,
        start,
    );
    let change = prop_oneof![2 => Just(None), 2 => Just(Some(false)), 1 => Just(Some(true))];
    prop_oneof![
        8 => (key(), size).prop_map(|(key, size)| Step::Put(key, size)),
        3 => (key(), 0usize..9).prop_map(|(key, end)| Step::Delete(key, end)),
        4 => prop::array::uniform6(change).prop_map(Step::Txn),
        1 => (key(), prop_oneof![9 => 1usize..40, 1 => Just(1_100)])
            .prop_map(|(key, times)| Step::Burst(key, times)),
        8 => Just(Step::TakeBatch),
        8 => Just(Step::DeliverBatch),
        5 => add.prop_map(|(stream, key, end, filters, filtered, start)| Step::Add {
            stream,
            key,
            end,
            filters: if filtered == 0 { filters } else { (false, false) },
            start,
        }),
        1 => any::<usize>().prop_map(Step::Remove),
        4 => (0..STREAMS, prop_oneof![0usize..5, Just(1_000_000)])
            .prop_map(|(stream, room)| Step::Room(stream, room)),
        5 => (1usize..4).prop_map(Step::Jobs),
        5 => (1usize..4).prop_map(Step::Fetch),
        6 => any::<usize>().prop_map(Step::Land),
        4 => any::<usize>().prop_map(Step::Progress),
        3 => Just(Step::Commit),
        2 => (0i64..25).prop_map(Step::Compact),
        2 => Just(Step::FinishCompactions),
        1 => Just(Step::Restart),
    ]
}

struct Run {
    rig: Rig,
    window: u64,
    model: Model,
    shard: Shard,
    clients: Vec<Client>,
    batches: VecDeque<EventRange>,
    jobs: Vec<Job>,
    chunks: Vec<Chunk>,
    room: [usize; STREAMS],
}

fn end(place: usize) -> &'static str {
    ["", "", "", "\0", "\0", "b", "ca", "d", "a"][place]
}

impl Run {
    fn new(window: u64) -> Run {
        let mut rig = Rig::new();
        rig.committer.set_window_bytes(window);
        let mut shard = Shard::default();
        shard.open_at(rig.store.shared().revision());
        let model = Model {
            revision: 1,
            compacted: -1,
            history: BTreeMap::new(),
            live: BTreeMap::new(),
        };
        Run {
            rig,
            window,
            model,
            shard,
            clients: Vec::new(),
            batches: VecDeque::new(),
            jobs: Vec::new(),
            chunks: Vec::new(),
            room: [1_000_000; STREAMS],
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Put(key, size) => self.put(KEYS[key], size),
            Step::Burst(key, times) => {
                for place in 0..times {
                    self.put(KEYS[(key + place * (times & 1)) % KEYS.len()], 3);
                }
            }
            Step::Delete(key, to) => self.delete(KEYS[key], end(to)),
            Step::Txn(changes) => self.txn(changes),
            Step::TakeBatch => self.batches.extend(self.rig.store.take_events()),
            Step::DeliverBatch => self.deliver(),
            Step::Add {
                stream,
                key,
                end: to,
                filters,
                start,
            } => {
                let filters = Filters {
                    no_put: filters.0,
                    no_delete: filters.1,
                };
                self.add(stream, KEYS[key], end(to), filters, start);
            }
            Step::Remove(client) => self.remove(client),
            Step::Room(stream, room) => self.make_room(stream, room),
            Step::Jobs(max) => self.take_jobs(max),
            Step::Fetch(count) => {
                let jobs = self.jobs.drain(..count.min(self.jobs.len())).collect();
                let chunks =
                    watch::fetch(self.rig.store.shared(), jobs, watch::FETCH_BYTES).unwrap();
                self.chunks.extend(chunks);
            }
            Step::Land(chunk) => self.land(chunk),
            Step::Progress(client) => self.progress(client),
            Step::Commit => drop(self.rig.commit()),
            Step::Compact(back) => {
                let to = self.model.revision - back;
                let accepted = self.rig.compact(to);
                assert_eq!(accepted, to > self.model.compacted);
                self.model.compacted = self.model.compacted.max(to);
            }
            Step::FinishCompactions => self.rig.finish_compactions(),
            Step::Restart => self.restart(),
        }
        assert_eq!(self.rig.store.shared().revision(), self.model.revision);
    }

    fn put(&mut self, key: &'static str, size: usize) {
        self.model.event(key, false);
        self.model.finish();
        let revision = self.rig.put(key, &vec![b'v'; size]);
        assert_eq!(revision, self.model.revision);
    }

    fn delete(&mut self, key: &'static str, end: &'static str) {
        for gone in KEYS {
            let inside = match end {
                "" => gone == key,
                "\0" => gone >= key,
                end => gone >= key && gone < end,
            };
            if inside {
                self.model.event(gone, true);
            }
        }
        self.model.finish();
        let delete = DeleteRangeRequest {
            key: Bytes::from_static(key.as_bytes()),
            range_end: Bytes::from_static(end.as_bytes()),
            ..Default::default()
        };
        self.rig.apply(&InternalRaftRequest {
            delete_range: Some(delete),
            ..Default::default()
        });
    }

    fn txn(&mut self, changes: [Option<bool>; 6]) {
        let mut success = Vec::new();
        for (key, change) in KEYS.into_iter().zip(changes) {
            let Some(tombstone) = change else { continue };
            self.model.event(key, tombstone);
            let key = Bytes::from_static(key.as_bytes());
            let request = if tombstone {
                Request::RequestDeleteRange(DeleteRangeRequest {
                    key,
                    ..Default::default()
                })
            } else {
                Request::RequestPut(PutRequest {
                    key,
                    ..Default::default()
                })
            };
            success.push(RequestOp {
                request: Some(request),
            });
        }
        self.model.finish();
        let txn = TxnRequest {
            success,
            ..Default::default()
        };
        self.rig.apply(&InternalRaftRequest {
            txn: Some(txn),
            ..Default::default()
        });
    }

    fn add(
        &mut self,
        stream: usize,
        key: &'static str,
        end: &'static str,
        filters: Filters,
        start: Start,
    ) {
        let id = self.clients.len() as i64;
        let now = self.model.revision;
        let from_now = matches!(start, Start::Now);
        let start = match start {
            Start::Past(back) => (now - back).max(1),
            Start::Now => now + 1,
            Start::Future(on) => now + on,
            Start::Beginning => 0,
        };
        let stream_id = StreamId(stream as u64);
        let handle = if from_now {
            let spec = spec(key, end, filters, 0);
            self.shard.add_from_now(stream_id, id, spec, now)
        } else {
            let spec = spec(key, end, filters, start);
            self.shard.add(stream_id, id, spec)
        };
        self.clients.push(Client {
            stream,
            key,
            end,
            filters,
            start,
            from_now,
            handle,
            known: start - 1,
            active: false,
            compacted: false,
            removed: false,
        });
    }

    fn remove(&mut self, client: usize) {
        if self.clients.is_empty() {
            return;
        }
        let place = client % self.clients.len();
        let client = &mut self.clients[place];
        assert_eq!(self.shard.remove(client.handle), !client.removed);
        client.removed = true;
        assert!(self.shard.state(client.handle).is_none());
    }

    fn make_room(&mut self, stream: usize, room: usize) {
        self.room[stream] = room;
        if room == 0 {
            return;
        }
        for client in &self.clients {
            if client.stream == stream {
                self.shard.resume(client.handle);
            }
        }
    }

    fn deliver(&mut self) {
        let Some(batch) = self.batches.pop_front() else {
            return;
        };
        let Run {
            shard,
            clients,
            model,
            room,
            rig,
            ..
        } = self;
        shard.events(&batch, &mut |target, main, events| {
            let client = client_of(clients, target);
            client.check(model, rig.store.shared(), main, events);
            if room[client.stream] == 0 {
                client.known = main - 1;
                return Flow::Full;
            }
            room[client.stream] -= 1;
            client.known = main;
            client.active = true;
            Flow::Taken
        });
        assert_eq!(self.shard.last(), batch.to);
    }

    fn land(&mut self, chunk: usize) {
        if self.chunks.is_empty() {
            return;
        }
        let place = chunk % self.chunks.len();
        let Chunk { target, fetched } = self.chunks.swap_remove(place);
        let gone = self.clients[target.watch_id as usize].removed;
        match fetched {
            Fetched::Events { upto, .. } if gone => self.shard.fetched(target.handle, upto, true),
            Fetched::Compacted { .. } if gone => self.shard.compacted(target.handle),
            Fetched::Compacted { revision } => {
                let client = client_of(&mut self.clients, target);
                assert!(revision <= self.model.compacted);
                assert!(client.known + 1 < revision, "it was not passed");
                client.compacted = true;
                self.shard.compacted(target.handle);
            }
            Fetched::Events {
                events,
                previous,
                upto,
            } => {
                self.check_previous(&events, &previous);
                self.land_events(target, &events, upto);
            }
        }
    }

    /// Half of the jobs want the values that events replaced.
    fn take_jobs(&mut self, max: usize) {
        let jobs = self.shard.jobs(max).into_iter();
        self.jobs.extend(jobs.map(|job| Job {
            previous: job.from % 2 == 0,
            ..job
        }));
    }

    fn check_previous(&self, events: &[EventRecord], previous: &[Option<Bytes>]) {
        assert!(previous.is_empty() || previous.len() == events.len());
        for (event, value) in events.iter().zip(previous) {
            let main = event.revision.main;
            let happened = &self.model.history[&main];
            let expected = happened.iter().find(|it| it.sub == event.revision.sub);
            let value = value.clone().map(|bytes| KeyValue::decode(bytes).unwrap());
            if value.is_some() || main > self.model.compacted {
                let found = value.map(|kv| kv.mod_revision);
                assert_eq!(found, expected.unwrap().prev);
            }
        }
    }

    fn land_events(&mut self, target: Target, events: &[EventRecord], upto: i64) {
        let client = client_of(&mut self.clients, target);
        if self.room[client.stream] == 0 {
            self.shard.block(target.handle);
            return;
        }
        for group in events.chunk_by(|a, b| a.revision.main == b.revision.main) {
            let main = group[0].revision.main;
            let group: Vec<&EventRecord> = group.iter().collect();
            assert!(main <= upto);
            client.check(&self.model, self.rig.store.shared(), main, &group);
            client.known = main;
            client.active = true;
            self.room[client.stream] = self.room[client.stream].saturating_sub(1);
        }
        assert!(
            client.lacks(&self.model, upto).is_none(),
            "a chunk is whole"
        );
        client.known = client.known.max(upto);
        self.shard.fetched(target.handle, upto, !events.is_empty());
    }

    fn progress(&mut self, client: usize) {
        if self.clients.is_empty() {
            return;
        }
        let place = client % self.clients.len();
        let client = &mut self.clients[place];
        let last = self.shard.last();
        let complete = self.shard.is_complete(client.handle);
        if complete {
            assert!(!client.compacted && !client.removed);
            assert!(client.start <= last + i64::from(client.from_now));
            assert!(
                client.lacks(&self.model, last).is_none(),
                "progress is told of what was sent"
            );
            client.known = client.known.max(last);
        }
        let quiet = !std::mem::take(&mut client.active);
        let due = self.shard.progress_due(client.handle);
        assert_eq!(due, complete && quiet);
    }

    /// The member starts again, and its clients watch on from where they were.
    fn restart(&mut self) {
        self.rig = std::mem::replace(&mut self.rig, Rig::new()).restart();
        self.rig.committer.set_window_bytes(self.window);
        self.batches.clear();
        self.jobs.clear();
        self.chunks.clear();
        self.shard = Shard::default();
        self.shard.open_at(self.model.revision);
        for (id, client) in (0..).zip(&mut self.clients) {
            let stream = StreamId(client.stream as u64);
            client.start = client.known + 1;
            client.from_now = false;
            client.active = false;
            let spec = spec(client.key, client.end, client.filters, client.start);
            client.handle = self.shard.add(stream, id, spec);
            if client.compacted {
                self.shard.compacted(client.handle);
            }
            if client.removed {
                assert!(self.shard.remove(client.handle));
            }
        }
    }

    /// Lets everything arrive, and looks whether anything is missing.
    fn settle(mut self) {
        self.batches.extend(self.rig.store.take_events());
        while !self.batches.is_empty() {
            self.deliver();
        }
        assert_eq!(self.shard.last(), self.model.revision);
        let mut rounds = 0;
        loop {
            for stream in 0..STREAMS {
                self.make_room(stream, usize::MAX);
            }
            self.take_jobs(4);
            if self.jobs.is_empty() && self.chunks.is_empty() {
                break;
            }
            self.step(Step::Fetch(4));
            while !self.chunks.is_empty() {
                self.land(0);
            }
            rounds += 1;
            assert!(rounds < 10_000, "history comes to an end");
        }
        assert!(!self.shard.wants_history());
        let alive = self.clients.iter().filter(|client| !client.removed);
        assert_eq!(self.shard.len(), alive.count());
        for client in &self.clients {
            if client.removed || client.compacted {
                continue;
            }
            assert!(client.lacks(&self.model, self.model.revision).is_none());
            let due = client.start <= self.shard.last() + i64::from(client.from_now);
            assert_eq!(self.shard.is_complete(client.handle), due);
        }
    }
}

fn client_of(clients: &mut [Client], target: Target) -> &mut Client {
    let client = &mut clients[target.watch_id as usize];
    assert_eq!(client.handle, target.handle);
    assert_eq!(StreamId(client.stream as u64), target.stream);
    client
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_watcher_gets_everything_once_and_in_order(
        window in prop::sample::select(vec![0, 300, 16 << 20]),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut run = Run::new(window);
        for step in steps {
            run.step(step);
        }
        run.settle();
    }
}

#[test]
fn a_chunk_of_history_is_bounded_in_bytes() {
    for range_end in ["", "\0"] {
        let mut rig = Rig::new();
        rig.committer.set_window_bytes(0);
        for _ in 0..40 {
            rig.put("a", &vec![b'v'; 300_000]);
        }
        rig.commit();
        let last = rig.store.shared().revision();
        let mut shard = Shard::default();
        shard.open_at(last);
        shard.add(StreamId(0), 0, spec("a", range_end, Filters::default(), 1));
        let mut seen = Vec::new();
        while shard.wants_history() {
            let jobs = shard.jobs(1);
            let chunk = watch::fetch(rig.store.shared(), jobs, watch::FETCH_BYTES)
                .unwrap()
                .remove(0);
            let Fetched::Events { events, upto, .. } = chunk.fetched else {
                panic!()
            };
            let bytes: usize = events.iter().map(|event| event.record.bytes.len()).sum();
            assert!(bytes <= watch::FETCH_BYTES + 400_000, "{bytes}");
            seen.extend(events.iter().map(|event| event.revision.main));
            shard.fetched(chunk.target.handle, upto, true);
        }
        assert_eq!(seen, (2..=last).collect::<Vec<_>>());
    }
}

#[test]
fn what_many_watchers_of_single_keys_fetch_together_is_bounded_in_bytes() {
    let mut rig = Rig::new();
    for _ in 0..40 {
        rig.put("a", &[b'v'; 10_000]);
    }
    let last = rig.store.shared().revision();
    let mut shard = Shard::default();
    shard.open_at(last);
    for id in 0..64 {
        shard.add(StreamId(0), id, spec("a", "", Filters::default(), 1));
    }
    let mut events = 0;
    while shard.wants_history() {
        let jobs = shard.jobs(64);
        let mut bytes = 0;
        for chunk in watch::fetch(rig.store.shared(), jobs, 1 << 20).unwrap() {
            let Fetched::Events {
                events: some, upto, ..
            } = chunk.fetched
            else {
                panic!()
            };
            events += some.len();
            bytes += some
                .iter()
                .map(|event| event.record.bytes.len())
                .sum::<usize>();
            shard.fetched(chunk.target.handle, upto, true);
        }
        assert!(bytes <= 2 << 20, "{bytes}");
    }
    assert_eq!(events, 64 * 40);
}
