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

    pub(super) fn for_each(&self, each: impl FnMut(PageId)) {
        self.ids.iter().copied().for_each(each);
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
        let (start, end) = self.find(count)?;
        let first = self.ids[start];
        self.ids.drain(start..end);
        Some(first)
    }

    pub(super) fn lowest(&self, count: u64) -> Option<PageId> {
        self.find(count).map(|(start, _)| self.ids[start])
    }

    /// Where the lowest run of `count` pages stands.
    fn find(&self, count: u64) -> Option<(usize, usize)> {
        let count = usize::try_from(count).ok()?;
        let mut start = 0;
        for at in 0..self.ids.len() {
            if at > 0 && self.ids[at].0 != self.ids[at - 1].0 + 1 {
                start = at;
            }
            if at + 1 - start == count {
                return Some((start, at + 1));
            }
        }
        None
    }

    /// Takes out the run that ends right below `end`, and gives where it begins.
    pub(super) fn trim(&mut self, mut end: PageId) -> PageId {
        while end.0 > 0 && self.ids.last() == Some(&PageId(end.0 - 1)) {
            self.ids.pop();
            end.0 -= 1;
        }
        end
    }
}
