//! Compaction: schedule, slices, marks.
//!
//! 1. Apply publishes the new compact revision, so that reads below it are refused, and asks for a
//!    commit that carries the schedule mark.
//! 2. Between batches, apply prunes the index in slices of at most 1,000 keys and some ten thousand
//!    revisions, and collects the exact revisions that die.
//! 3. The commit thread, which has the mark in the file by then, walks the file once: it hashes what
//!    the compaction covers and deletes what died, in bounded batches, and at the end writes the
//!    finish mark.
//!
//! After a crash with a schedule above the finish the slices start again from the index.

use std::collections::VecDeque;

use keelson_proto::ids::LogIndex;

use crate::Revision;
use crate::index::{IndexWriter, Progress, Pruner};

/// Keys that one slice looks at.
const SLICE_KEYS: usize = 1_000;

/// What the commit thread has to remove for one compaction.
#[derive(Debug)]
pub struct CompactionJob {
    /// The compact revision.
    pub revision: i64,
    /// The one before, -1 for none: what the hash is said to follow.
    pub previous: i64,
    /// Whether the hash may be remembered: the compaction before had finished when this one came.
    pub remember_hash: bool,
    /// The entry that scheduled it: once the file holds this, it holds the mark.
    pub(crate) index: LogIndex,
    /// Whether anything at or below the compact revision stays: etcd's hash asks what stays only
    /// then.
    pub(crate) keeps_any: bool,
    /// What died, true marks tombstones; ascending once the commit thread has it.
    pub(crate) dead: Vec<(Revision, bool)>,
}

/// Compactions that apply has accepted and not pruned yet.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    queue: VecDeque<Running>,
}

#[derive(Debug)]
struct Running {
    pruner: Pruner,
    job: CompactionJob,
}

/// What a slice came to.
#[derive(Debug)]
pub enum Slice {
    /// Nothing is left to prune.
    Idle,
    /// More slices follow.
    More,
    /// A reader holds a revision below the compact revision: to be tried again later.
    Held,
    /// One compaction is through the index: the rest is the commit thread's.
    Pruned(CompactionJob),
}

impl Pending {
    /// Takes in a compaction.
    pub(crate) fn push(&mut self, index: &mut IndexWriter, job: CompactionJob) {
        let pruner = index.compact(job.revision);
        self.queue.push_back(Running { pruner, job });
    }

    /// The compact revision that is next.
    pub(crate) fn front(&self) -> Option<i64> {
        self.queue.front().map(|running| running.job.revision)
    }

    /// Prunes one slice. `oldest_pin` is the oldest revision that a reader holds.
    pub(crate) fn slice(&mut self, index: &mut IndexWriter, oldest_pin: Option<i64>) -> Slice {
        let Some(running) = self.queue.front_mut() else {
            return Slice::Idle;
        };
        let floor = oldest_pin.unwrap_or(i64::MAX);
        match running
            .pruner
            .step(index, SLICE_KEYS, floor, &mut running.job.dead)
        {
            Progress::More => Slice::More,
            Progress::Pinned => Slice::Held,
            Progress::Done => {
                let running = self
                    .queue
                    .pop_front()
                    .expect("the front was just looked at");
                Slice::Pruned(running.job)
            }
        }
    }
}
