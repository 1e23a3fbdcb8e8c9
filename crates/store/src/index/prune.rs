//! Compaction of the index, in slices.

use super::tree::Span;
use super::{IndexWriter, KEYS_PER_LOCK};
use crate::revision::Revision;

/// How far a compaction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Everything is dropped that had to be.
    Done,
    /// There are more keys to look at.
    More,
    /// Somebody still reads below the compact revision. Nothing was done; it is worth another try when the oldest pin
    /// has moved.
    Pinned,
}

/// A compaction under way.
///
/// What it drops of a key: the generation that counts is the first whose tombstone is not below the compact revision,
/// else the last one. Of that generation the newest revision that is not above the compact revision stays, and everything
/// before it goes. So a tombstone at exactly the compact revision stays, and one below it goes with its generation.
///
/// Where a key is deleted and put again by the very transaction compacted to, etcd also drops the record of the new value
/// while its index goes on naming it. Here that value stays.
///
/// # Source
///
/// `keyIndex.compact` of etcd 3.7 (server/storage/mvcc/key_index.go).
#[derive(Debug)]
pub struct Pruner {
    compact_main: i64,
    /// The first key that is still to be looked at.
    next: Option<Vec<u8>>,
}

impl Pruner {
    pub(super) fn new(compact_main: i64) -> Pruner {
        Pruner {
            compact_main,
            next: Some(Vec::new()),
        }
    }

    /// The transaction compacted to.
    #[must_use]
    pub fn compact_main(&self) -> i64 {
        self.compact_main
    }

    /// Looks at `max_keys` keys more, at most, and appends what it drops to `dead`: revisions and whether each is a
    /// tombstone, rising within a key. `floor` is the oldest main revision that somebody still reads at, `i64::MAX` for
    /// none. Changes may be applied between two steps.
    pub fn step(
        &mut self,
        writer: &mut IndexWriter,
        max_keys: usize,
        floor: i64,
        dead: &mut Vec<(Revision, bool)>,
    ) -> Progress {
        let reader = writer.reader();
        let mut left = max_keys;
        while let Some(from) = &self.next {
            if floor < self.compact_main {
                return Progress::Pinned;
            }
            if left == 0 {
                return Progress::More;
            }
            let slice = left.min(KEYS_PER_LOCK);
            let span = Span {
                low: Some(from),
                high: None,
            };
            let next = reader.write().compact(span, self.compact_main, slice, dead);
            self.next = next;
            left -= slice;
        }
        Progress::Done
    }
}
