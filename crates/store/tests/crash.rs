//! The power goes at every write and sync: the file opens at a moment that was committed, and the
//! log carries it to the same state.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod rig;
#[path = "rig/script.rs"]
mod script;

use std::io;
use std::sync::{Arc, Mutex};

use keelson_bolt::{MemStorage, Storage, View};
use keelson_proto::entry::Entry;
use keelson_store::hash::{self, HashKv};
use keelson_store::{Answer, JobProgress, Slice};
use rig::Rig;
use script::{Random, entries};

type Rows = Vec<(&'static str, Vec<u8>, Vec<u8>)>;

/// What a disk could hold if the power went now.
struct Image {
    /// Transactions that were acknowledged before.
    committed: usize,
    storage: MemStorage,
}

#[derive(Default)]
struct Seen {
    committed: usize,
    images: Vec<Image>,
    random: Option<Random>,
}

/// A disk that is photographed at every operation, as it would be after a crash.
struct Photographed {
    disk: MemStorage,
    seen: Arc<Mutex<Seen>>,
}

impl Photographed {
    fn photograph(&self) {
        let mut seen = self.seen.lock().unwrap();
        let Some(mut random) = seen.random.take() else {
            return;
        };
        let image = Image {
            committed: seen.committed,
            storage: self.disk.crash(&mut || random.next()),
        };
        seen.random = Some(random);
        seen.images.push(image);
    }
}

impl Storage for Photographed {
    fn name(&self) -> String {
        self.disk.name()
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.disk.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.write_at(offset, data)?;
        self.photograph();
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(len)?;
        self.photograph();
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.photograph();
        self.disk.sync_data()?;
        self.photograph();
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn view(&self, len: u64) -> io::Result<Arc<dyn View>> {
        self.disk.view(len)
    }

    fn map_len(&self, size: u64) -> u64 {
        self.disk.map_len(size)
    }
}

/// A store on such a disk, and every state that its file was to be in.
struct Run {
    rig: Rig,
    seen: Arc<Mutex<Seen>>,
    states: Vec<Rows>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let disk = MemStorage::new();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let engine = Photographed {
            disk: disk.clone(),
            seen: seen.clone(),
        };
        let rig = Rig::open_on(Box::new(engine), disk);
        let states = vec![rig.rows()];
        // What an engine does to an empty file is its own matter.
        seen.lock().unwrap().random = Some(Random(seed));
        Run { rig, seen, states }
    }

    /// Notes that a transaction has been acknowledged.
    fn acknowledged(&mut self) {
        self.states.push(self.rig.rows());
        self.seen.lock().unwrap().committed += 1;
    }

    fn commit(&mut self) {
        self.rig.commit();
        self.acknowledged();
    }

    /// Prunes what waits, and removes it from the file by transactions of their own.
    fn compact(&mut self) {
        if !self.rig.store.is_compacting() {
            return;
        }
        self.commit();
        loop {
            match self.rig.store.compact_slice() {
                Slice::Idle => return,
                Slice::More => {}
                Slice::Held => panic!("nobody reads"),
                Slice::Pruned(job) => {
                    self.rig.committer.begin_compaction(job);
                    loop {
                        let progress = self.rig.committer.continue_compaction().unwrap();
                        self.acknowledged();
                        if progress != JobProgress::More {
                            break;
                        }
                    }
                    self.rig.store.compaction_finished();
                }
            }
        }
    }
}

/// Hashes of every revision that can be read, but for the last compaction's own, which a member
/// remembers as it was.
fn hashes(rig: &Rig) -> Vec<HashKv> {
    let shared = rig.store.shared();
    let first = shared.compact_revision().max(0) + 1;
    (first..=shared.revision())
        .map(|revision| hash::hash_kv(shared, revision).unwrap())
        .collect()
}

/// Everything that is kept in memory, as text.
fn memory(rig: &Rig) -> String {
    let shared = rig.store.shared();
    format!(
        "{:?} {} {} {:?} {:?} {:?} {:?} {:?} {:?}",
        shared.applied(),
        shared.revision(),
        shared.compact_revision(),
        shared.auth(),
        shared.members(),
        shared.alarms(),
        shared.storage_version(),
        rig.store.conf_state(),
        shared.leases().iter().collect::<Vec<_>>(),
    )
}

/// Applies what the file does not hold, and carries compactions to their end.
fn finish(rig: &mut Rig, log: &[Entry]) {
    let applied = rig.store.applied().0.0 as usize;
    for entry in &log[applied..] {
        rig.store.apply(entry, Answer::Unwanted).unwrap();
    }
    rig.finish_compactions();
    rig.commit();
}

fn crashes(seed: u64, count: u64) -> usize {
    let log = entries(seed, count);
    let mut random = Random(seed ^ 0x5eed);
    let mut run = Run::new(seed);
    for entry in &log {
        run.rig.store.apply(entry, Answer::Unwanted).unwrap();
        match random.below(20) {
            0 | 1 => run.commit(),
            2 => run.compact(),
            _ => {}
        }
    }
    run.seen.lock().unwrap().random = None;
    let images = std::mem::take(&mut run.seen.lock().unwrap().images);
    finish(&mut run.rig, &log);
    let (rows, all_hashes, in_memory) = (run.rig.rows(), hashes(&run.rig), memory(&run.rig));

    let count = images.len();
    for (place, image) in images.into_iter().enumerate() {
        let mut rig = Rig::open(image.storage);
        let found = rig.rows();
        let states = &run.states;
        let next = states.get(image.committed + 1);
        assert!(
            found == states[image.committed] || Some(&found) == next,
            "seed {seed}, image {place}: neither before nor after transaction {}",
            image.committed + 1
        );
        finish(&mut rig, &log);
        assert_eq!(rig.rows(), rows, "seed {seed}, image {place}");
        assert_eq!(memory(&rig), in_memory, "seed {seed}, image {place}");
        assert_eq!(hashes(&rig), all_hashes, "seed {seed}, image {place}");
    }
    count
}

#[test]
fn after_a_crash_the_file_is_at_a_commit_and_the_log_does_the_rest() {
    let images: usize = (0..6).map(|seed| crashes(seed, 120)).sum();
    assert!(images > 300, "{images} images");
}

/// So many rows that the compaction takes several transactions.
#[test]
fn a_compaction_that_was_interrupted_is_finished_at_the_next_start() {
    const KEYS: usize = 3_000;
    let mut rig = Rig::new();
    for place in 0..KEYS * 8 {
        rig.put(&format!("{:04}", place % KEYS), b"value");
    }
    let revision = rig.store.shared().revision();
    assert!(rig.compact(revision - 1));
    rig.commit();
    // Nothing has been removed yet.
    let expected = hash::hash_kv(rig.store.shared(), 0).unwrap();

    let mut stops = 0;
    loop {
        // As far as the last attempt came and one transaction more, then the power goes.
        let storage = rig.disk();
        let mut cut = Rig::open(storage.copy());
        let Some(job) = pruned(&mut cut) else {
            panic!("a scheduled compaction is taken up again");
        };
        cut.committer.begin_compaction(job);
        let mut progress = JobProgress::More;
        for _ in 0..=stops {
            assert_eq!(hash::hash_kv(cut.store.shared(), 0).unwrap(), expected);
            progress = cut.committer.continue_compaction().unwrap();
        }
        let crashed = cut.disk().copy();
        drop(cut);
        let mut again = Rig::open(crashed);
        assert_eq!(hash::hash_kv(again.store.shared(), 0).unwrap(), expected);
        let done = progress != JobProgress::More;
        assert_eq!(again.store.is_compacting(), !done);
        again.finish_compactions();
        assert_eq!(hash::hash_kv(again.store.shared(), 0).unwrap(), expected);
        let keys = again.rows().iter().filter(|row| row.0 == "key").count();
        assert_eq!(keys, KEYS + 1);
        if done {
            break;
        }
        stops += 1;
    }
    assert!(stops >= 2, "it took several transactions");
}

#[test]
#[should_panic(expected = "a compaction's mark is in the file before its deletions")]
fn nothing_is_removed_before_the_file_knows_of_the_compaction() {
    let mut rig = Rig::new();
    rig.put("a", b"1");
    rig.put("a", b"2");
    rig.commit();
    let revision = rig.store.shared().revision();
    assert!(rig.compact(revision));
    let job = pruned(&mut rig).unwrap();
    rig.committer.begin_compaction(job);
}

#[test]
fn a_compaction_that_removes_nothing_writes_once() {
    let mut rig = Rig::new();
    for place in 0..25_000 {
        rig.put(&format!("{place:05}"), b"value");
    }
    let revision = rig.store.shared().revision();
    assert!(rig.compact(revision));
    rig.commit();
    let job = pruned(&mut rig).unwrap();
    let (_, before) = rig.disk().operations();
    rig.committer.begin_compaction(job);
    while rig.committer.continue_compaction().unwrap() == JobProgress::More {}
    let (_, after) = rig.disk().operations();
    assert!(after - before <= 3, "{} syncs", after - before);
}

fn pruned(rig: &mut Rig) -> Option<keelson_store::CompactionJob> {
    loop {
        match rig.store.compact_slice() {
            Slice::Pruned(job) => return Some(job),
            Slice::More => {}
            Slice::Idle | Slice::Held => return None,
        }
    }
}
