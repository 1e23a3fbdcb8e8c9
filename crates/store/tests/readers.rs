//! Readers on threads of their own, while one thread applies, commits and compacts: every answer is
//! the model's at its revision, or says that it was compacted.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use bytes::{Bytes, BytesMut};
use keelson_proto::ApiError;
use keelson_proto::rpc::etcdserverpb::{
    DeleteRangeRequest, InternalRaftRequest, PutRequest, RangeRequest, RangeResponse,
};
use keelson_store::hash::{self, HashKv};
use keelson_store::range::{self, EmitError, PlanError, Progress, ReadAt};
use keelson_store::watch::{self, Fetched, Filters, Shard, Spec, StreamId};
use keelson_store::{JobProgress, Shared, Slice};
use prost::Message as _;
use rig::Rig;

const KEYS: u64 = 40;
const CHANGES: i64 = 6_000;
const READERS: u64 = 3;

/// The state after each revision: key to the revision of its value.
struct Model {
    states: Vec<BTreeMap<String, i64>>,
    /// The change that made each revision; `None` for a deletion.
    changes: Vec<(String, bool)>,
}

fn random(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

impl Model {
    /// Every change makes a revision, so that a place in the list is a revision.
    fn new() -> Model {
        let mut state = 7;
        let mut model = Model {
            states: vec![BTreeMap::new(); 2],
            changes: vec![(String::new(), false); 2],
        };
        for revision in 2..CHANGES {
            let mut next = model.states.last().unwrap().clone();
            let key = format!("key/{:02}", random(&mut state) % KEYS);
            let delete = random(&mut state).is_multiple_of(4) && next.contains_key(&key);
            if delete {
                next.remove(&key);
            } else {
                next.insert(key.clone(), revision);
            }
            model.states.push(next);
            model.changes.push((key, delete));
        }
        model
    }

    fn request(&self, revision: i64) -> InternalRaftRequest {
        let (key, delete) = &self.changes[revision as usize];
        let key = Bytes::from(key.clone());
        let mut request = InternalRaftRequest::default();
        if *delete {
            request.delete_range = Some(DeleteRangeRequest {
                key,
                ..Default::default()
            });
        } else {
            request.put = Some(PutRequest {
                key,
                value: value(revision),
                ..Default::default()
            });
        }
        request
    }
}

fn value(revision: i64) -> Bytes {
    format!("{revision:0width$}", width = 10 + (revision % 90) as usize).into()
}

/// A hash, for each compact revision and revision that somebody asked for.
type Hashes = BTreeMap<(i64, i64), HashKv>;

struct Reader<'a> {
    shared: Arc<Shared>,
    model: &'a Model,
    state: u64,
    hashes: Hashes,
    answers: usize,
}

impl Reader<'_> {
    /// A revision that may be there: the current one, an old one, one just below the compaction.
    fn revision(&mut self) -> i64 {
        let (low, high) = (self.shared.compact_revision(), self.shared.revision());
        match random(&mut self.state) % 4 {
            0 => 0,
            1 => (low - 1).max(1),
            2 => low.max(1),
            _ => low.max(1) + random(&mut self.state) as i64 % (high - low.max(1) + 1),
        }
    }

    fn range(&mut self) {
        let revision = self.revision();
        let (from, to) = (
            random(&mut self.state) % KEYS,
            random(&mut self.state) % KEYS,
        );
        let (from, to) = (format!("key/{from:02}"), format!("key/{to:02}"));
        let request = RangeRequest {
            key: from.clone().into(),
            range_end: to.clone().into(),
            revision,
            ..Default::default()
        };
        let plan = match range::plan(&self.shared, &request, ReadAt::Current) {
            Ok(plan) => plan,
            Err(PlanError::Refused(ApiError::Compacted)) => {
                assert!(revision > 0 && revision < self.shared.compact_revision());
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let header = plan.revision;
        let at = if revision == 0 { header } else { revision };
        let pinned = random(&mut self.state).is_multiple_of(2);
        let mut emitter = if pinned {
            plan.into_emitter(self.shared.clone())
        } else {
            plan.into_unpinned_emitter(self.shared.clone())
        };
        let mut body = BytesMut::new();
        loop {
            match emitter.next_chunk(200, &mut body) {
                Ok(Progress::More) => std::thread::yield_now(),
                Ok(Progress::Done) => break,
                Err(EmitError::Compacted) if !pinned => {
                    assert!(at < self.shared.compact_revision());
                    return;
                }
                Err(error) => panic!("{error}"),
            }
        }
        let answer = RangeResponse::decode(Bytes::from(body)).unwrap();
        let found: Vec<(&[u8], i64)> = answer
            .kvs
            .iter()
            .map(|kv| {
                assert_eq!(kv.value, value(kv.mod_revision));
                (&kv.key[..], kv.mod_revision)
            })
            .collect();
        let state = &self.model.states[at as usize];
        let expected: Vec<(&[u8], i64)> = if from < to {
            let bounds = (Bound::Included(from), Bound::Excluded(to));
            let inside = state.range::<String, _>(bounds);
            inside.map(|(key, at)| (key.as_bytes(), *at)).collect()
        } else {
            Vec::new()
        };
        assert_eq!(found, expected, "at {at}");
        assert_eq!(answer.count, expected.len() as i64);
        self.answers += 1;
    }

    fn hash(&mut self) {
        let revision = self.revision();
        match hash::hash_kv(&self.shared, revision) {
            Ok(found) => {
                let at = (found.compact_revision, found.hash_revision);
                let known = self.hashes.entry(at).or_insert(found);
                assert_eq!(*known, found, "a hash does not change");
                self.answers += 1;
            }
            Err(PlanError::Refused(ApiError::Compacted)) => {
                assert!(revision < self.shared.compact_revision());
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// The history of one key or of all, from some revision on.
    fn history(&mut self) {
        let from = self.revision().max(1);
        let single = random(&mut self.state).is_multiple_of(2);
        let key = format!("key/{:02}", random(&mut self.state) % KEYS);
        let mut shard = Shard::default();
        shard.open_at(self.shared.revision());
        let spec = Spec {
            key: key.as_bytes().into(),
            range_end: if single { [].into() } else { [0].into() },
            filters: Filters::default(),
            start: from,
        };
        shard.add(StreamId(0), 0, spec);
        let chunk = watch::fetch(&self.shared, shard.jobs(1), watch::FETCH_BYTES)
            .unwrap()
            .pop();
        match chunk.unwrap().fetched {
            Fetched::Compacted { revision } => assert!(from < revision),
            Fetched::Events { events, upto, .. } => {
                let found = events.iter().map(|event| event.revision.main);
                let expected = (from.max(2)..=upto).filter(|revision| {
                    let changed = &self.model.changes[*revision as usize].0;
                    if single {
                        *changed == key
                    } else {
                        *changed >= key
                    }
                });
                assert!(found.eq(expected), "from {from} up to {upto}");
                self.answers += 1;
            }
        }
    }
}

/// Applies everything, with commits, and compactions whose slices and transactions come in between.
fn write(rig: &mut Rig, model: &Model, readers: &AtomicUsize) {
    let mut state = 11;
    let mut job_runs = false;
    for revision in 2..CHANGES {
        assert_eq!(readers.load(Ordering::Relaxed), 0, "a reader has failed");
        rig.apply(&model.request(revision));
        match random(&mut state) % 64 {
            0..4 => drop(rig.commit()),
            4 => {
                rig.compact(revision - random(&mut state) as i64 % 200);
                rig.commit();
            }
            _ => {}
        }
        if job_runs {
            if rig.committer.continue_compaction().unwrap() != JobProgress::More {
                rig.store.compaction_finished();
                job_runs = false;
            }
        } else if let Slice::Pruned(job) = rig.store.compact_slice() {
            rig.committer.begin_compaction(job);
            job_runs = true;
        }
        if revision % 8 == 0 {
            std::thread::yield_now();
        }
    }
}

/// Marks that a thread has panicked.
struct Alarm<'a>(&'a AtomicUsize);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Ends the readers, also when the writer panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn readers_see_their_revision_whatever_the_writer_does() {
    let model = Model::new();
    let mut rig = Rig::new();
    rig.committer.set_window_bytes(4_000);
    let shared = rig.store.shared().clone();
    let (stop, failed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let start = Barrier::new(READERS as usize + 1);
    let mut observed = Hashes::new();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|seed| {
                let (stop, failed, start, model) = (&stop, &failed, &start, &model);
                let shared = shared.clone();
                scope.spawn(move || {
                    let _alarm = Alarm(failed);
                    let mut reader = Reader {
                        shared,
                        model,
                        state: seed,
                        hashes: Hashes::new(),
                        answers: 0,
                    };
                    start.wait();
                    while !stop.load(Ordering::Relaxed) {
                        match random(&mut reader.state) % 8 {
                            0..3 => reader.hash(),
                            3 => reader.history(),
                            _ => reader.range(),
                        }
                    }
                    (reader.hashes, reader.answers)
                })
            })
            .collect();
        start.wait();
        let done = Done(&stop);
        write(&mut rig, &model, &failed);
        drop(done);
        for reader in readers {
            let (hashes, answers) = reader.join().unwrap();
            assert!(answers > 50, "{answers} answers");
            for (at, hash) in hashes {
                assert_eq!(*observed.entry(at).or_insert(hash), hash);
            }
        }
    });
    check_hashes(&model, &observed);
}

/// Asks for the same hashes once more, where nothing else goes on.
fn check_hashes(model: &Model, observed: &Hashes) {
    let compactions: BTreeSet<i64> = observed.keys().map(|(compacted, _)| *compacted).collect();
    assert!(
        compactions.len() > 3,
        "compactions went on: {compactions:?}"
    );
    let mut rig = Rig::new();
    for revision in 2..CHANGES {
        rig.apply(&model.request(revision));
    }
    for compacted in compactions {
        if compacted > 0 {
            assert!(rig.compact(compacted));
        }
        for (_, hash) in observed.range((compacted, 0)..(compacted + 1, 0)) {
            let again = hash::hash_kv(rig.store.shared(), hash.hash_revision).unwrap();
            assert_eq!(again, *hash);
        }
        rig.finish_compactions();
    }
}
