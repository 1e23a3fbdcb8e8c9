//! Free pages as spans, found by size and by place.

use std::collections::{BTreeMap, BTreeSet};

use crate::PageId;

/// Spans of free pages, none touching another. Allocation is best fit, lowest first.
#[derive(Debug, Default)]
pub(super) struct MapSet {
    /// First page to length.
    spans: BTreeMap<u64, u64>,
    /// The same as (length, first page).
    by_len: BTreeSet<(u64, u64)>,
    pages: u64,
}

impl MapSet {
    pub(super) fn len(&self) -> u64 {
        self.pages
    }

    pub(super) fn contains(&self, id: PageId) -> bool {
        self.spans
            .range(..=id.0)
            .next_back()
            .is_some_and(|(first, len)| id.0 - first < *len)
    }

    pub(super) fn ids(&self) -> Vec<PageId> {
        self.spans
            .iter()
            .flat_map(|(first, len)| (*first..first + len).map(PageId))
            .collect()
    }

    /// Takes in `new`, which is sorted and holds nothing that is here.
    pub(super) fn insert(&mut self, new: &[PageId]) {
        let mut rest = new;
        while let Some(first) = rest.first() {
            let len = rest
                .iter()
                .zip(first.0..)
                .take_while(|(id, want)| id.0 == *want)
                .count();
            self.add(first.0, len as u64);
            rest = &rest[len..];
        }
    }

    fn add(&mut self, mut first: u64, mut len: u64) {
        self.pages += len;
        if let Some((&before, &before_len)) = self.spans.range(..first).next_back()
            && before + before_len == first
        {
            self.by_len.remove(&(before_len, before));
            self.spans.remove(&before);
            first = before;
            len += before_len;
        }
        if let Some(after_len) = self.spans.remove(&(first + len)) {
            self.by_len.remove(&(after_len, first + len));
            len += after_len;
        }
        self.spans.insert(first, len);
        self.by_len.insert((len, first));
    }

    pub(super) fn allocate(&mut self, count: u64) -> Option<PageId> {
        let &(len, first) = self.by_len.range((count, 0)..).next()?;
        self.by_len.remove(&(len, first));
        self.spans.remove(&first);
        if len > count {
            self.spans.insert(first + count, len - count);
            self.by_len.insert((len - count, first + count));
        }
        self.pages -= count;
        Some(PageId(first))
    }
}
