//! A crash at every change that the log makes to the disk.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::entry::{ConfState, Entry, HardState};
use keelson_proto::ids::{ClusterId, LogIndex, MemberId, Term};
use keelson_wal::{
    Error, Event, Fill, MemFiles, Metadata, Options, Replay, SnapshotMark, Wal, exists,
    valid_snapshots,
};

fn dir() -> &'static Path {
    Path::new("/wal")
}

fn metadata() -> Metadata {
    Metadata {
        node_id: MemberId(7),
        cluster_id: ClusterId(9),
    }
}

/// A small generator of numbers, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}

/// What went into the log, in order.
#[derive(Clone, Debug)]
enum Written {
    Entry(Entry),
    State(HardState),
    Snapshot,
}

/// What a log must hold after some of what was written.
fn model(written: &[Written]) -> (Vec<Entry>, Option<HardState>) {
    let (mut entries, mut state) = (Vec::<Entry>::new(), None);
    for record in written {
        match record {
            Written::Entry(entry) => {
                entries.truncate(entry.index.0 as usize - 1);
                entries.push(entry.clone());
            }
            Written::State(new) => state = Some(*new),
            Written::Snapshot => {}
        }
    }
    (entries, state)
}

struct Run {
    files: Arc<MemFiles>,
    options: Options,
    random: Random,
    written: Vec<Written>,
    /// How much of `written` was acknowledged as durable.
    durable: usize,
    created: bool,
    term: u64,
}

impl Run {
    /// Some batches, until all are done or the disk fails.
    fn work(&mut self) -> Result<(), Error> {
        let files: Arc<MemFiles> = self.files.clone();
        let mut wal = if self.created {
            Wal::open(files, dir(), SnapshotMark::default(), self.options)?.0
        } else {
            let wal = Wal::create(files, dir(), metadata(), self.options)?;
            self.created = true;
            wal
        };
        for _ in 0..8 {
            let batch = self.batch();
            let (entries, state) = (&batch.0, batch.1);
            self.written
                .extend(entries.iter().cloned().map(Written::Entry));
            self.written.push(Written::State(state));
            wal.append(Some(state), entries)?;
            let must_sync = wal.must_sync() && self.random.below(4) > 0;
            if wal.commit(must_sync)?.synced {
                self.durable = self.written.len();
            }
            if state.commit > LogIndex(0) && self.random.below(4) == 0 {
                let mark = SnapshotMark {
                    index: state.commit,
                    term: state.term,
                };
                self.written.push(Written::Snapshot);
                wal.save_snapshot(mark, &ConfState::default())?;
                self.durable = self.written.len();
            }
        }
        Ok(())
    }

    fn batch(&mut self) -> (Vec<Entry>, HardState) {
        let (entries, _) = model(&self.written);
        let last = entries.len() as u64;
        let commit = entries.len() as u64 / 2;
        let first = if self.random.below(5) == 0 {
            self.term += 1;
            commit + self.random.below(last - commit + 1)
        } else {
            last
        };
        let count = self.random.below(4);
        let entries = (first..first + count).map(|before| Entry {
            term: Term(self.term),
            index: LogIndex(before + 1),
            data: self.data(),
            ..Entry::default()
        });
        let entries: Vec<_> = entries.collect();
        let state = HardState {
            term: Term(self.term),
            vote: MemberId(7),
            commit: LogIndex(commit),
        };
        (entries, state)
    }

    /// Bytes of very different numbers, sometimes with zeros longer than a sector.
    fn data(&self) -> Bytes {
        let mut random = Random(0x9e37_79b9 + self.written.len() as u64 * 31 + self.term);
        random.below(2);
        let length = match random.below(6) {
            0 => 0,
            1 => 6000,
            2 => 1300,
            _ => random.below(200),
        };
        let zeros = random.below(4) == 0;
        (0..length)
            .map(|at| if zeros && at > 40 { 0 } else { at as u8 | 1 })
            .collect()
    }

    /// The disk after a crash must hold all that was acknowledged, and beyond that a part of
    /// what was written, from its beginning.
    fn check(&mut self, what: &str) {
        let at = SnapshotMark::default();
        if !exists(&*self.files, dir()) {
            assert_eq!(self.durable, 0, "{what}");
            assert!(!self.created, "{what}: an acknowledged log is gone");
            return;
        }
        let marks = valid_snapshots(&*self.files, dir()).unwrap();
        assert_eq!(marks.first(), Some(&at), "{what}");
        let opened = Wal::open(self.files.clone(), dir(), at, self.options);
        let (wal, replay) = opened.unwrap_or_else(|error| panic!("{what}: {error} {error:?}"));
        drop(wal);
        assert_eq!(replay.metadata, Some(metadata()), "{what}");
        assert!(replay.snapshot_found, "{what}");
        self.created = true;
        let kept = self.find(&replay, what);
        self.written.truncate(kept);
        self.durable = kept;
    }

    /// How much of what was written a log holds.
    fn find(&self, replay: &Replay, what: &str) -> usize {
        let found = (replay.entries.clone(), replay.hard_state);
        (self.durable..=self.written.len())
            .rev()
            .find(|count| model(&self.written[..*count]) == found)
            .unwrap_or_else(|| {
                panic!(
                    "{what}: {} entries, {:?}, of {} records with {} durable",
                    found.0.len(),
                    found.1,
                    self.written.len(),
                    self.durable
                )
            })
    }
}

/// Runs until the disk fails at a change, crashes, opens; twice. False when it never failed.
fn run_with_crash(seed: u64, fill: Fill, at: u64) -> bool {
    let what = format!("seed {seed} {fill:?} change {at}");
    let mut run = Run {
        files: Arc::new(MemFiles::new()),
        options: Options {
            segment_bytes: 4096,
            fill,
            unsafe_no_fsync: false,
        },
        random: Random(0x1234_5678_9abc_def1 ^ (seed << 32)),
        written: Vec::new(),
        durable: 0,
        created: false,
        term: 1,
    };
    run.files.fail_from(at);
    let failed = run.work().is_err();
    let mut crash = Random(0xdead_beef ^ (seed << 20) ^ (at + 1));
    run.files = Arc::new(run.files.crash(|bound| crash.below(bound)));
    run.check(&what);

    // A second life, which ends within the opening as often as later.
    run.files.fail_from(run.files.changes() + crash.below(12));
    drop(run.work());
    run.files = Arc::new(run.files.crash(|bound| crash.below(bound)));
    run.check(&format!("{what}, second crash"));
    failed
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_any_change() {
    for seed in 0..12 {
        for fill in [Fill::Zeros, Fill::Reserve] {
            let mut at = 0;
            while run_with_crash(seed, fill, at) {
                at += 1;
            }
            assert!(at > 20, "only {at} changes");
        }
    }
}

#[test]
fn a_failed_write_or_sync_poisons_the_log() {
    let files = Arc::new(MemFiles::new());
    let options = Options {
        segment_bytes: 4096,
        ..Options::default()
    };
    let mut wal = Wal::create(files.clone(), dir(), metadata(), options).unwrap();
    let entry = Entry {
        index: LogIndex(1),
        ..Entry::default()
    };
    wal.append(None, std::slice::from_ref(&entry)).unwrap();
    // The write goes through, the sync does not.
    files.fail_from(files.changes() + 1);
    let error = wal.commit(true).unwrap_err();
    assert!(
        error.to_string().contains("failed to sync /wal/"),
        "{error}"
    );
    files.fail_from(u64::MAX);
    for result in [
        wal.append(None, &[]).err(),
        wal.commit(true).err(),
        wal.release_to(LogIndex(1)).err(),
        wal.save_snapshot(SnapshotMark::default(), &ConfState::default())
            .err(),
    ] {
        assert!(matches!(result, Some(Error::Poisoned { .. })));
    }
}

#[test]
fn a_batch_is_one_write_and_one_sync() {
    let files = Arc::new(MemFiles::new());
    let options = Options {
        segment_bytes: 4 << 20,
        ..Options::default()
    };
    let mut wal = Wal::create(files.clone(), dir(), metadata(), options).unwrap();
    let before = files.events().len();
    let entries: Vec<_> = (1..=500)
        .map(|index| Entry {
            index: LogIndex(index),
            data: vec![1; index as usize % 7 * 1000].into(),
            ..Entry::default()
        })
        .collect();
    let state = HardState {
        term: Term(1),
        ..HardState::default()
    };
    for some in entries.chunks(50) {
        wal.append(Some(state), some).unwrap();
    }
    assert!(wal.must_sync());
    assert!(!wal.commit(true).unwrap().cut);
    let events = files.events().split_off(before);
    assert!(
        matches!(events[..], [Event::Write { .. }, Event::Sync(_)]),
        "{events:?}"
    );

    // A commit index alone is written and need not be synced; a sync later catches up on it.
    let state = HardState {
        commit: LogIndex(9),
        ..state
    };
    let before = files.events().len();
    wal.append(Some(state), &[]).unwrap();
    assert!(!wal.must_sync());
    wal.commit(false).unwrap();
    wal.commit(true).unwrap();
    wal.commit(true).unwrap();
    let events = files.events().split_off(before);
    assert!(
        matches!(events[..], [Event::Write { .. }, Event::Sync(_)]),
        "{events:?}"
    );
}
