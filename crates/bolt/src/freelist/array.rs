//! Free pages as a sorted array of numbers.

use crate::PageId;

/// Sorted, without duplicates. Allocation is first fit: the lowest run that is long enough.
#[derive(Debug, Default)]
pub(super) struct ArraySet {
    ids: Vec<PageId>,
}

impl ArraySet {
    pub(super) fn len(&self) -> u64 {
        self.ids.len() as u64
    }

    pub(super) fn contains(&self, id: PageId) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    pub(super) fn ids(&self) -> Vec<PageId> {
        self.ids.clone()
    }

    /// Takes in `new`, which is sorted and holds nothing that is here.
    pub(super) fn insert(&mut self, new: &[PageId]) {
        let after_all = match (self.ids.last(), new.first()) {
            (Some(last), Some(first)) => last < first,
            _ => true,
        };
        self.ids.extend_from_slice(new);
        if !after_all {
            // Two sorted runs: a stable sort merges them in one pass.
            self.ids.sort();
        }
    }

    pub(super) fn allocate(&mut self, count: u64) -> Option<PageId> {
        let count = usize::try_from(count).ok()?;
        let mut start = 0;
        for at in 0..self.ids.len() {
            if at > 0 && self.ids[at].0 != self.ids[at - 1].0 + 1 {
                start = at;
            }
            if at + 1 - start == count {
                let first = self.ids[start];
                self.ids.drain(start..=at);
                return Some(first);
            }
        }
        None
    }
}
