//! Compaction of the index, in slices.

use super::leaf::Budget;
use super::tree::Span;
use super::{IndexWriter, KEYS_PER_LOCK, REVISIONS_PER_LOCK};
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

/// Revisions after which a step ends.
const REVISIONS_PER_STEP: usize = 4 * REVISIONS_PER_LOCK;

/// A compaction under way.
///
/// What it drops of a key: the generation that counts is the first whose tombstone is not below the compact revision,
/// else the last one. Of that generation the newest revision that is not above the compact revision stays, and everything
/// before it goes. So a tombstone at exactly the compact revision stays, and one below it goes with its generation.
///
/// Where a key is deleted and put again by the very transaction compacted to, everything after that tombstone in it goes
/// too, as in etcd: the records are dropped while the index goes on naming them, so that later writes of the key get the
/// numbers, and the hashes the revisions, that they get there. Until the key is written again a read does not find it
/// (etcd's process ends when one does), and after a restart nobody knows of it.
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

    /// Looks at `max_keys` keys more, at most, drops no more than some ten thousand revisions, and appends them to
    /// `dead` with whether each is a tombstone, rising within a key. `floor` is the oldest main revision that somebody
    /// still reads at, `i64::MAX` for none. Changes may be applied between two steps.
    pub fn step(
        &mut self,
        writer: &mut IndexWriter,
        max_keys: usize,
        floor: i64,
        dead: &mut Vec<(Revision, bool)>,
    ) -> Progress {
        let reader = writer.reader();
        let (mut left, before) = (max_keys, dead.len());
        while let Some(from) = &self.next {
            if floor < self.compact_main {
                return Progress::Pinned;
            }
            if left == 0 || dead.len() - before >= REVISIONS_PER_STEP {
                return Progress::More;
            }
            let slice = left.min(KEYS_PER_LOCK);
            let mut budget = Budget {
                keys: slice,
                revisions: REVISIONS_PER_LOCK,
            };
            let span = Span {
                low: Some(from),
                high: None,
            };
            let next = reader
                .write()
                .compact(span, self.compact_main, &mut budget, dead);
            self.next = next;
            left -= slice - budget.keys;
        }
        Progress::Done
    }
}

#[cfg(test)]
mod tests {
    use super::super::{KeyRange, KeyState};
    use super::*;

    /// Revisions of one key: many times what one hold of the lock drops.
    const REVISIONS: i64 = 3 * REVISIONS_PER_STEP as i64;

    fn one_key(deleted_every: i64) -> IndexWriter {
        let mut writer = IndexWriter::new();
        for main in 2..2 + REVISIONS {
            if main % deleted_every == 0 {
                writer.tombstone(b"key", Revision::new(main, 0));
            } else {
                writer.put(b"key", Revision::new(main, 0), 100);
            }
        }
        writer.put(b"other", Revision::new(2 + REVISIONS, 0), 100);
        writer
    }

    fn seen(writer: &IndexWriter, from: i64) -> Vec<(Option<KeyState>, u64)> {
        let reader = writer.reader();
        let at = |main| {
            let at = Revision::end_of(main);
            (reader.get(b"key", at), reader.count(KeyRange::all(), at))
        };
        (from..3 + REVISIONS).step_by(97).map(at).collect()
    }

    #[test]
    fn a_key_with_many_revisions_is_pruned_in_bounded_holds_that_readers_do_not_notice() {
        for (deleted_every, compact_main) in [
            (i64::MAX, REVISIONS),
            (i64::MAX, REVISIONS / 2),
            (7, REVISIONS),
            (REVISIONS + 1, REVISIONS + 2),
        ] {
            let mut writer = one_key(deleted_every);
            let before = seen(&writer, compact_main);
            let mut pruner = writer.compact(compact_main);
            let mut dead = Vec::new();
            let mut holds = 0;
            while let Some(from) = pruner.next.take() {
                let mut budget = Budget {
                    keys: KEYS_PER_LOCK,
                    revisions: REVISIONS_PER_LOCK,
                };
                let span = Span {
                    low: Some(&from),
                    high: None,
                };
                let had = dead.len();
                pruner.next =
                    writer
                        .reader()
                        .write()
                        .compact(span, compact_main, &mut budget, &mut dead);
                // The newest revision of a key that goes is one more.
                assert!(dead.len() - had <= REVISIONS_PER_LOCK + 1);
                assert_eq!(seen(&writer, compact_main), before);
                writer.check();
                holds += 1;
            }
            assert!(dead.is_sorted(), "oldest first");
            assert!(dead.len() as i64 >= compact_main - 7 - 2);
            assert!(holds >= dead.len() / REVISIONS_PER_LOCK);
        }
    }

    #[test]
    fn a_step_ends_before_a_long_history_does() {
        let mut writer = one_key(i64::MAX);
        let mut pruner = writer.compact(REVISIONS);
        let mut dead = Vec::new();
        let mut steps = 1;
        loop {
            let had = dead.len();
            let progress = pruner.step(&mut writer, 1_000, i64::MAX, &mut dead);
            assert!(dead.len() - had <= REVISIONS_PER_STEP);
            if progress == Progress::Done {
                break;
            }
            steps += 1;
        }
        assert_eq!(dead.len() as i64, REVISIONS - 2);
        assert_eq!(steps, 3);
    }
}
