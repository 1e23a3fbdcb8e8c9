//! Pages that were freed and that a reader may still reach (formats 1.8).

use std::collections::{BTreeMap, HashSet};

use fnv::FnvBuildHasher;

use crate::{PageId, TxId};

/// What one transaction freed.
#[derive(Debug, Default)]
struct Batch {
    /// Each page with the transaction that allocated it; zero if that was before the open.
    pages: Vec<(PageId, TxId)>,
    /// The count of departed readers when this was last looked at.
    seen: Option<u64>,
}

/// Freed pages by the transaction that freed them.
#[derive(Debug, Default)]
pub(super) struct Pending {
    batches: BTreeMap<TxId, Batch>,
    members: HashSet<PageId, FnvBuildHasher>,
}

impl Pending {
    pub(super) fn len(&self) -> u64 {
        self.members.len() as u64
    }

    pub(super) fn contains(&self, id: PageId) -> bool {
        self.members.contains(&id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = PageId> + '_ {
        self.batches
            .values()
            .flat_map(|batch| batch.pages.iter().map(|(id, _)| *id))
    }

    /// Adds a page that `tx` freed; the caller has checked that it is not here.
    pub(super) fn add(&mut self, tx: TxId, id: PageId, allocated: TxId) {
        let fresh = self.members.insert(id);
        assert!(fresh, "a page is pending once");
        self.batches
            .entry(tx)
            .or_default()
            .pages
            .push((id, allocated));
    }

    /// Forgets what `tx` freed: it did not happen. Gives the pages with their allocators back.
    pub(super) fn take_back(&mut self, tx: TxId) -> Vec<(PageId, TxId)> {
        let pages = self.batches.remove(&tx).unwrap_or_default().pages;
        for (id, _) in &pages {
            self.members.remove(id);
        }
        pages
    }

    /// Takes out what no reader can reach, sorted. `readers` are the live ones, ascending;
    /// `departed` counts those that have left since the open.
    ///
    /// A reader of commit r reaches a page iff it was allocated by a transaction up to r and freed
    /// by one after r. Readers that come later see none of what is pending now, so a batch needs a
    /// second look only when a reader has left.
    pub(super) fn release(&mut self, readers: &[TxId], departed: u64) -> Vec<PageId> {
        let mut free = Vec::new();
        self.batches.retain(|freed_by, batch| {
            if batch.seen == Some(departed) {
                return true;
            }
            batch.seen = Some(departed);
            batch.pages.retain(|(id, allocated)| {
                let first = readers.partition_point(|reader| reader < allocated);
                let reached = readers.get(first).is_some_and(|reader| reader < freed_by);
                if !reached {
                    free.push(*id);
                }
                reached
            });
            !batch.pages.is_empty()
        });
        for id in &free {
            self.members.remove(id);
        }
        free.sort_unstable();
        free
    }
}
