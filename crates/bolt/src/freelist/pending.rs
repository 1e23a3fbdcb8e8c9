//! Pages that were freed and that a reader may still reach (formats 1.8).

use std::collections::BTreeMap;

use crate::{PageId, TxId};

/// A page that was freed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Freed {
    pub(super) page: PageId,
    /// The transaction that allocated it; zero if that was before the open.
    pub(super) allocated: TxId,
    /// The transaction that freed it.
    freed: TxId,
}

/// Freed pages, each with one reader that still reaches it. Only when that reader ends is the page
/// looked at again, so a reader that stays for hours costs the commits meanwhile nothing.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// What the running transaction, or the one before, freed; not looked at yet.
    fresh: Vec<Freed>,
    /// By the oldest reader that reaches the page.
    waiting: BTreeMap<TxId, Vec<Freed>>,
    len: u64,
}

impl Pending {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Calls `each` with every page, in no order.
    pub(super) fn for_each(&self, each: impl FnMut(PageId)) {
        let waiting = self.waiting.values().flatten();
        self.fresh
            .iter()
            .chain(waiting)
            .map(|freed| freed.page)
            .for_each(each);
    }

    /// Adds a page that `freed` freed; the caller has checked that it is not here.
    pub(super) fn add(&mut self, page: PageId, allocated: TxId, freed: TxId) {
        self.len += 1;
        self.fresh.push(Freed {
            page,
            allocated,
            freed,
        });
    }

    /// How much was freed since the last [`Pending::release`]: a mark to go back to.
    pub(super) fn mark(&self) -> usize {
        self.fresh.len()
    }

    /// Forgets what was freed after `mark`: it did not happen.
    pub(super) fn take_back(&mut self, mark: usize) -> Vec<Freed> {
        let taken = self.fresh.split_off(mark.min(self.fresh.len()));
        self.len -= taken.len() as u64;
        taken
    }

    /// Takes out what no reader can reach, sorted. `readers` are the commits that live readers
    /// read, ascending; it is called when a write transaction begins.
    ///
    /// A reader of commit r reaches a page iff it was allocated by a transaction up to r and freed
    /// by one after r. Readers that come later see none of what is pending now.
    pub(super) fn release(&mut self, readers: &[TxId]) -> Vec<PageId> {
        let gone: Vec<TxId> = self
            .waiting
            .keys()
            .copied()
            .filter(|reader| readers.binary_search(reader).is_err())
            .collect();
        let mut look = std::mem::take(&mut self.fresh);
        for reader in gone {
            look.append(&mut self.waiting.remove(&reader).unwrap_or_default());
        }
        let mut free = Vec::new();
        for freed in look {
            let oldest = readers.partition_point(|reader| *reader < freed.allocated);
            match readers.get(oldest) {
                Some(reader) if *reader < freed.freed => {
                    self.waiting.entry(*reader).or_default().push(freed);
                }
                _ => free.push(freed.page),
            }
        }
        self.len -= free.len() as u64;
        free.sort_unstable();
        free
    }
}
