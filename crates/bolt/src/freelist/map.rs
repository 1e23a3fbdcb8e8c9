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

    pub(super) fn for_each(&self, each: impl FnMut(PageId)) {
        self.spans
            .iter()
            .flat_map(|(first, len)| (*first..first + len).map(PageId))
            .for_each(each);
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
        self.take(first, len, count);
        Some(PageId(first))
    }

    pub(super) fn allocate_lowest(&mut self, count: u64) -> Option<PageId> {
        let (first, len) = self.find_lowest(count)?;
        self.take(first, len, count);
        Some(PageId(first))
    }

    pub(super) fn lowest(&self, count: u64) -> Option<PageId> {
        self.find_lowest(count).map(|(first, _)| PageId(first))
    }

    fn find_lowest(&self, count: u64) -> Option<(u64, u64)> {
        self.spans
            .iter()
            .find(|(_, len)| **len >= count)
            .map(|(first, len)| (*first, *len))
    }

    /// Takes the first `count` pages of a span.
    fn take(&mut self, first: u64, len: u64, count: u64) {
        self.by_len.remove(&(len, first));
        self.spans.remove(&first);
        if len > count {
            self.spans.insert(first + count, len - count);
            self.by_len.insert((len - count, first + count));
        }
        self.pages -= count;
    }

    /// Takes out the span that ends right below `end`, and gives where it begins.
    pub(super) fn trim(&mut self, end: PageId) -> PageId {
        match self.spans.last_key_value() {
            Some((&first, &len)) if first + len == end.0 => {
                self.take(first, len, len);
                PageId(first)
            }
            _ => end,
        }
    }
}
