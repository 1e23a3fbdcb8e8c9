//! A leaf: packed keys, and the history of each.

use super::history::{History, Left};
use super::keys::{PackedKeys, make_room};
use crate::revision::Revision;

/// Keys in a leaf, at most.
pub(super) const LEAF_KEYS_MAX: usize = 64;
/// Bytes of keys in a leaf past which it is split while it has more than one key.
pub(super) const LEAF_BYTES_MAX: usize = 16 << 10;

/// What one hold of the lock may do for a compaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Keys to look at.
    pub(super) keys: usize,
    /// Revisions to drop.
    pub(super) revisions: usize,
}

/// Keys in order, each with its history.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    pub(super) keys: PackedKeys,
    pub(super) histories: Vec<History>,
}

impl Leaf {
    pub(super) fn len(&self) -> usize {
        self.histories.len()
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&History> {
        self.keys.search(key).ok().map(|i| &self.histories[i])
    }

    pub(super) fn insert(&mut self, i: usize, key: &[u8], history: History) {
        self.keys.insert(i, key);
        make_room(&mut self.histories, 1);
        self.histories.insert(i, history);
    }

    pub(super) fn is_over(&self) -> bool {
        self.len() > LEAF_KEYS_MAX || (self.len() > 1 && self.keys.used() > LEAF_BYTES_MAX)
    }

    /// Moves the keys from place `at` on into a leaf of their own.
    pub(super) fn split_off(&mut self, at: usize) -> Leaf {
        let right = Leaf {
            keys: self.keys.split_off(at),
            histories: self.histories.split_off(at),
        };
        self.histories.shrink_to_fit();
        right
    }

    /// Whether the keys of both may stand in one leaf, with room for more.
    pub(super) fn may_append(&self, right: &Leaf) -> bool {
        self.len() + right.len() <= LEAF_KEYS_MAX * 3 / 4
            && self.keys.used() + right.keys.used() <= LEAF_BYTES_MAX / 2
    }

    /// Adds the keys of `right`, all of which lie above those here.
    pub(super) fn append(&mut self, right: Leaf) {
        self.keys.append(&right.keys);
        make_room(&mut self.histories, right.histories.len());
        self.histories.extend(right.histories);
    }

    pub(super) fn live(&self) -> u64 {
        self.histories
            .iter()
            .filter(|history| history.is_live())
            .count() as u64
    }

    /// Compacts the keys at `places` to transaction `at` as far as `budget` allows, appends what is dropped to `dead`, and
    /// takes keys out of which nothing is left. Returns how many it took out, and the key that is not done with.
    pub(super) fn compact(
        &mut self,
        places: std::ops::Range<usize>,
        at: i64,
        budget: &mut Budget,
        dead: &mut Vec<(Revision, bool)>,
    ) -> (usize, Option<Vec<u8>>) {
        // One bit a key.
        const _: () = assert!(LEAF_KEYS_MAX <= 64);
        let mut empty = 0u64;
        let mut unfinished = None;
        for i in places {
            match self.histories[i].compact(at, &mut budget.revisions, dead) {
                Left::Some => {}
                Left::Nothing => empty |= 1 << i,
                Left::Unfinished => {
                    unfinished = Some(self.keys.get(i));
                    break;
                }
            }
            budget.keys -= 1;
        }
        if empty == 0 {
            return (0, unfinished);
        }
        self.keys.retain(|i| empty & 1 << i == 0);
        let mut i = 0;
        self.histories.retain(|_| {
            i += 1;
            empty & 1 << (i - 1) == 0
        });
        self.histories.shrink_to_fit();
        (empty.count_ones() as usize, unfinished)
    }

    /// Bytes of heap taken, without the histories' own.
    pub(super) fn heap(&self) -> usize {
        self.keys.heap() + self.histories.capacity() * size_of::<History>()
    }
}
