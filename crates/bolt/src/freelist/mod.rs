//! Which pages are free, which will be, and who gets them (formats 1.7, 1.8).

mod array;
mod map;
mod pending;
pub(crate) mod walk;

use std::collections::HashMap;

use fnv::FnvBuildHasher;

use self::array::ArraySet;
use self::map::MapSet;
use self::pending::Pending;
use crate::page::{FLAG_FREELIST, PAGE_HEADER, Pages, Writer, u64_at};
use crate::{Damage, Error, PageId, TxId};

/// From this many numbers on, the count stands in the first number's place.
const LONG: u64 = 0xFFFF;

/// How the free pages are kept in memory. The file is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FreelistKind {
    /// A sorted array; the lowest place that fits is taken. Slow with many free pages.
    Array,
    /// Spans by size; the smallest that fits is taken.
    #[default]
    Map,
}

#[derive(Debug)]
enum FreeSet {
    Array(ArraySet),
    Map(MapSet),
}

impl FreeSet {
    fn insert(&mut self, new: &[PageId]) {
        match self {
            FreeSet::Array(set) => set.insert(new),
            FreeSet::Map(set) => set.insert(new),
        }
    }

    fn allocate(&mut self, count: u64) -> Option<PageId> {
        match self {
            FreeSet::Array(set) => set.allocate(count),
            FreeSet::Map(set) => set.allocate(count),
        }
    }

    fn len(&self) -> u64 {
        match self {
            FreeSet::Array(set) => set.len(),
            FreeSet::Map(set) => set.len(),
        }
    }

    fn contains(&self, id: PageId) -> bool {
        match self {
            FreeSet::Array(set) => set.contains(id),
            FreeSet::Map(set) => set.contains(id),
        }
    }

    fn ids(&self) -> Vec<PageId> {
        match self {
            FreeSet::Array(set) => set.ids(),
            FreeSet::Map(set) => set.ids(),
        }
    }
}

/// Free and pending pages, with what is needed to undo the running transaction.
#[derive(Debug)]
pub(crate) struct Freelist {
    free: FreeSet,
    pending: Pending,
    /// First page of every allocation since the open, with the transaction that made it.
    allocated: HashMap<PageId, TxId, FnvBuildHasher>,
    /// What the running transaction took from the free set: first page and count.
    taken: Vec<(PageId, u64)>,
    /// First pages of all it allocated, at the end of the file too.
    fresh: Vec<PageId>,
}

impl Freelist {
    /// A list of `free`, which is sorted and holds no number twice.
    pub(crate) fn new(kind: FreelistKind, free: &[PageId]) -> Freelist {
        let mut set = match kind {
            FreelistKind::Array => FreeSet::Array(ArraySet::default()),
            FreelistKind::Map => FreeSet::Map(MapSet::default()),
        };
        set.insert(free);
        Freelist {
            free: set,
            pending: Pending::default(),
            allocated: HashMap::default(),
            taken: Vec::new(),
            fresh: Vec::new(),
        }
    }

    /// Pages that can be allocated now.
    pub(crate) fn free_pages(&self) -> u64 {
        self.free.len()
    }

    /// Pages that wait for readers.
    pub(crate) fn pending_pages(&self) -> u64 {
        self.pending.len()
    }

    /// Whether the page is free or pending.
    pub(crate) fn contains(&self, id: PageId) -> bool {
        self.free.contains(id) || self.pending.contains(id)
    }

    /// Takes `count` pages in a row for `tx` from the free ones, if there are such.
    pub(crate) fn allocate(&mut self, tx: TxId, count: u64) -> Option<PageId> {
        let first = self.free.allocate(count)?;
        self.taken.push((first, count));
        self.note(tx, first);
        Some(first)
    }

    /// Notes that `tx` took pages from `first` on at the end of the file.
    pub(crate) fn note(&mut self, tx: TxId, first: PageId) {
        self.allocated.insert(first, tx);
        self.fresh.push(first);
    }

    /// Frees a page and its overflow pages; they become free when no reader can reach them.
    ///
    /// # Errors
    /// `Corrupt` if one of them is free already: the tree refers to it twice.
    pub(crate) fn free(&mut self, tx: TxId, first: PageId, overflow: u32) -> Result<(), Error> {
        let ids = first.0..=first.0 + u64::from(overflow);
        if let Some(id) = ids
            .clone()
            .map(PageId)
            .find(|id| id.0 < 2 || self.contains(*id))
        {
            return Err(Error::corrupt(id, Damage::AlreadyFreed));
        }
        let allocated = self.allocated.remove(&first).unwrap_or_default();
        for id in ids {
            self.pending.add(tx, PageId(id), allocated);
        }
        Ok(())
    }

    /// Makes free what none of `readers` (ascending) can reach.
    pub(crate) fn release(&mut self, readers: &[TxId], departed: u64) {
        let free = self.pending.release(readers, departed);
        self.free.insert(&free);
    }

    /// Undoes all that `tx` did.
    pub(crate) fn rollback(&mut self, tx: TxId) {
        for first in self.fresh.drain(..) {
            self.allocated.remove(&first);
        }
        for (id, allocated) in self.pending.take_back(tx) {
            // Only the first page of a run had an entry; one for an overflow page is never asked.
            if allocated != TxId::default() {
                self.allocated.insert(id, allocated);
            }
        }
        let mut ids: Vec<PageId> = Vec::new();
        for (first, count) in self.taken.drain(..) {
            ids.extend((first.0..first.0 + count).map(PageId));
        }
        ids.sort_unstable();
        self.free.insert(&ids);
    }

    /// Forgets how to undo: the transaction is committed.
    pub(crate) fn commit(&mut self) {
        self.taken.clear();
        self.fresh.clear();
    }

    /// All free and pending pages, ascending: what the freelist page holds.
    pub(crate) fn ids(&self) -> Vec<PageId> {
        let mut ids = self.free.ids();
        ids.extend(self.pending.ids());
        ids.sort_unstable();
        ids
    }

    /// Bytes of the freelist page for what is in the list now.
    pub(crate) fn page_bytes(&self) -> u64 {
        let n = self.free_pages() + self.pending_pages();
        PAGE_HEADER as u64 + 8 * (n + u64::from(n >= LONG))
    }

    /// The freelist page, `pages` pages long.
    pub(crate) fn to_page(&self, id: PageId, pages: u64, page_size: u32) -> Vec<u8> {
        let ids = self.ids();
        let n = ids.len() as u64;
        let count = u16::try_from(n.min(LONG)).expect("at most 0xFFFF");
        let overflow = u32::try_from(pages - 1).expect("a freelist is far below 2^32 pages");
        let len = usize::try_from(pages * u64::from(page_size)).expect("it fits memory");
        let mut out = Writer::page(len, id, FLAG_FREELIST, count, overflow);
        if n >= LONG {
            out.u64(n);
        }
        for id in ids {
            out.u64(id.0);
        }
        out.finish(len)
    }
}

/// Reads the freelist page `id`: the numbers, ascending, each once, all of them possible.
pub(crate) fn read_page(pages: Pages<'_>, id: PageId) -> Result<Vec<PageId>, Error> {
    let mut ids = read_raw(pages, id)?;
    ids.sort_unstable();
    let impossible = |id: &PageId| id.0 < 2 || *id >= pages.high_water;
    if let Some(bad) = ids.iter().copied().find(impossible) {
        return Err(Error::corrupt(id, Damage::FreelistEntry { id: bad }));
    }
    // bbolt opens a file whose list names a page twice; taken once it does no harm.
    let listed = ids.len();
    ids.dedup();
    if ids.len() < listed {
        tracing::warn!(
            page = id.0,
            twice = listed - ids.len(),
            "free pages are listed twice"
        );
    }
    Ok(ids)
}

/// Reads the freelist page `id`: the numbers as they stand there.
pub(crate) fn read_raw(pages: Pages<'_>, id: PageId) -> Result<Vec<PageId>, Error> {
    let (header, bytes) = pages.raw(id)?;
    if header.flags != FLAG_FREELIST {
        return Err(Error::corrupt(
            id,
            Damage::WrongType {
                flags: header.flags,
            },
        ));
    }
    let mut count = u64::from(header.count);
    let mut at = PAGE_HEADER;
    if count == LONG {
        // A page has at least 1024 bytes.
        count = u64_at(bytes, at);
        at += 8;
    }
    let room = (bytes.len() - at) as u64 / 8;
    if count > room {
        return Err(Error::corrupt(id, Damage::Count { count }));
    }
    Ok(bytes[at..]
        .chunks_exact(8)
        .take(count as usize)
        .map(|b| PageId(u64_at(b, 0)))
        .collect())
}

#[cfg(test)]
mod tests;
