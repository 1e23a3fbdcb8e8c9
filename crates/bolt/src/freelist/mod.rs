//! Which pages are free, which will be, and who gets them (formats 1.7, 1.8).

mod array;
mod map;
pub(crate) mod pages;
mod pending;
pub(crate) mod walk;

use std::collections::HashMap;

use fnv::FnvBuildHasher;

use self::array::ArraySet;
use self::map::MapSet;
use self::pages::PageSet;
use self::pending::Pending;
use crate::page::{FLAG_FREELIST, Header, PAGE_HEADER, Pages, Writer, u64_at};
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

    fn allocate_lowest(&mut self, count: u64) -> Option<PageId> {
        match self {
            FreeSet::Array(set) => set.allocate(count),
            FreeSet::Map(set) => set.allocate_lowest(count),
        }
    }

    fn lowest(&self, count: u64) -> Option<PageId> {
        match self {
            FreeSet::Array(set) => set.lowest(count),
            FreeSet::Map(set) => set.lowest(count),
        }
    }

    fn trim(&mut self, end: PageId) -> PageId {
        match self {
            FreeSet::Array(set) => set.trim(end),
            FreeSet::Map(set) => set.trim(end),
        }
    }

    fn len(&self) -> u64 {
        match self {
            FreeSet::Array(set) => set.len(),
            FreeSet::Map(set) => set.len(),
        }
    }

    fn for_each(&self, each: impl FnMut(PageId)) {
        match self {
            FreeSet::Array(set) => set.for_each(each),
            FreeSet::Map(set) => set.for_each(each),
        }
    }
}

/// Free and pending pages, with what is needed to undo the running transaction.
#[derive(Debug)]
pub(crate) struct Freelist {
    free: FreeSet,
    pending: Pending,
    /// All that is in `free` and in `pending`.
    members: PageSet,
    /// First page of an allocation, with the transaction that made it, as long as that can matter
    /// to a reader.
    allocated: HashMap<PageId, TxId, FnvBuildHasher>,
    /// The size of `allocated` at which old entries are dropped.
    prune_at: usize,
    /// What the running transaction took from the free set: first page and count.
    taken: Vec<(PageId, u64)>,
    /// First pages of all it allocated, at the end of the file too.
    fresh: Vec<PageId>,
    /// Whether all free pages are here. Until the walk of a file without a list is done it is
    /// those only that were freed since the open.
    known: bool,
    policy: Policy,
}

/// Which of the free places that fit is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// What the kind of list finds fastest.
    Fast,
    /// The lowest, so that the end of the file empties.
    Lowest,
}

/// `allocated` is not looked through below this size.
const PRUNE_MIN: usize = 4096;

impl Freelist {
    /// A list of `free`, which is sorted and holds no number twice.
    pub(crate) fn new(kind: FreelistKind, free: &[PageId]) -> Freelist {
        let free_set = match kind {
            FreelistKind::Array => FreeSet::Array(ArraySet::default()),
            FreelistKind::Map => FreeSet::Map(MapSet::default()),
        };
        let mut list = Freelist {
            free: free_set,
            pending: Pending::default(),
            members: PageSet::default(),
            allocated: HashMap::default(),
            prune_at: PRUNE_MIN,
            taken: Vec::new(),
            fresh: Vec::new(),
            known: true,
            policy: Policy::Fast,
        };
        list.insert(free);
        list
    }

    /// A list of a file whose free pages are not known yet.
    pub(crate) fn unknown(kind: FreelistKind) -> Freelist {
        Freelist {
            known: false,
            ..Freelist::new(kind, &[])
        }
    }

    /// Whether all free pages are here.
    pub(crate) fn known(&self) -> bool {
        self.known
    }

    /// Takes in what the walk found free as of the open.
    ///
    /// # Errors
    /// `Corrupt` if one of them was freed since: then the file is damaged, and nothing is taken.
    pub(crate) fn learn(&mut self, free: &[PageId]) -> Result<(), Error> {
        if let Some(id) = free.iter().find(|id| self.members.contains(**id)) {
            return Err(Error::corrupt(*id, Damage::AlreadyFreed));
        }
        self.insert(free);
        self.known = true;
        Ok(())
    }

    fn insert(&mut self, free: &[PageId]) {
        for id in free {
            self.members.insert(*id);
        }
        self.free.insert(free);
    }

    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Pages that can be allocated now.
    pub(crate) fn free_pages(&self) -> u64 {
        self.free.len()
    }

    /// Pages that wait for readers.
    pub(crate) fn pending_pages(&self) -> u64 {
        self.pending.len()
    }

    /// Takes `count` free pages in a row for `tx`.
    pub(crate) fn allocate(&mut self, tx: TxId, count: u64) -> Option<PageId> {
        let first = match self.policy {
            Policy::Fast => self.free.allocate(count)?,
            Policy::Lowest => self.free.allocate_lowest(count)?,
        };
        for id in first.0..first.0 + count {
            self.members.remove(PageId(id));
        }
        self.taken.push((first, count));
        self.note(tx, first);
        Some(first)
    }

    /// Where the lowest `count` free pages in a row begin.
    pub(crate) fn lowest(&self, count: u64) -> Option<PageId> {
        self.free.lowest(count)
    }

    /// Gives up the free pages right below `high_water` and gives the lower mark.
    pub(crate) fn trim(&mut self, high_water: PageId) -> PageId {
        let mark = self.free.trim(high_water);
        for id in mark.0..high_water.0 {
            self.members.remove(PageId(id));
        }
        // Undone by the rollback of a commit that fails.
        if mark < high_water {
            self.taken.push((mark, high_water.0 - mark.0));
        }
        mark
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
            .find(|id| id.0 < 2 || self.members.contains(*id))
        {
            return Err(Error::corrupt(id, Damage::AlreadyFreed));
        }
        let allocated = self.allocated.remove(&first).unwrap_or_default();
        for id in ids.map(PageId) {
            self.members.insert(id);
            self.pending.add(id, allocated, tx);
        }
        Ok(())
    }

    /// Makes free what none of `readers` (ascending) can reach. `last` is the last commit.
    pub(crate) fn release(&mut self, readers: &[TxId], last: TxId) {
        let free = self.pending.release(readers);
        self.free.insert(&free);
        if self.allocated.len() >= self.prune_at {
            // A page that is at least as old as every reader is as good as one from before the
            // open.
            let oldest = readers.first().copied().unwrap_or(last);
            self.allocated.retain(|_, tx| *tx > oldest);
            self.prune_at = PRUNE_MIN.max(2 * self.allocated.len());
        }
    }

    /// How much the running transaction has freed: a mark for [`Freelist::undo_free`].
    pub(crate) fn mark(&self) -> usize {
        self.pending.mark()
    }

    /// Undoes what the running transaction freed after `mark`.
    pub(crate) fn undo_free(&mut self, mark: usize) {
        for freed in self.pending.take_back(mark) {
            self.members.remove(freed.page);
            // Only the first page of a run had an entry; one for an overflow page is never asked.
            if freed.allocated != TxId::default() {
                self.allocated.insert(freed.page, freed.allocated);
            }
        }
    }

    /// Undoes all that the running transaction did.
    pub(crate) fn rollback(&mut self) {
        for first in self.fresh.drain(..) {
            self.allocated.remove(&first);
        }
        self.undo_free(0);
        let mut ids: Vec<PageId> = Vec::new();
        for (first, count) in self.taken.drain(..) {
            ids.extend((first.0..first.0 + count).map(PageId));
        }
        ids.sort_unstable();
        self.insert(&ids);
    }

    /// Forgets how to undo: the transaction is committed.
    pub(crate) fn commit(&mut self) {
        self.taken.clear();
        self.fresh.clear();
    }

    /// Calls `each` with all free and pending pages, ascending: what the freelist page holds.
    fn for_each(&self, mut each: impl FnMut(PageId)) {
        let mut pending = Vec::with_capacity(usize::try_from(self.pending.len()).unwrap_or(0));
        self.pending.for_each(|id| pending.push(id));
        pending.sort_unstable();
        let mut pending = pending.into_iter().peekable();
        self.free.for_each(|id| {
            while let Some(before) = pending.next_if(|pending| *pending < id) {
                each(before);
            }
            each(id);
        });
        pending.for_each(each);
    }

    /// All free and pending pages, ascending.
    pub(crate) fn ids(&self) -> Vec<PageId> {
        let mut ids = Vec::new();
        self.for_each(|id| ids.push(id));
        ids
    }

    /// Bytes of the freelist page for what is in the list now.
    pub(crate) fn page_bytes(&self) -> u64 {
        let n = self.free_pages() + self.pending_pages();
        PAGE_HEADER as u64 + 8 * (n + u64::from(n >= LONG))
    }

    /// The freelist page, `pages` pages long.
    pub(crate) fn to_page(&self, id: PageId, pages: u64, page_size: u32) -> Vec<u8> {
        let n = self.free_pages() + self.pending_pages();
        let count = u16::try_from(n.min(LONG)).expect("at most 0xFFFF");
        let overflow = u32::try_from(pages - 1).expect("a freelist is far below 2^32 pages");
        let len = usize::try_from(pages * u64::from(page_size)).expect("it fits memory");
        let mut out = Writer::page(len, id, FLAG_FREELIST, count, overflow);
        if n >= LONG {
            out.u64(n);
        }
        self.for_each(|id| out.u64(id.0));
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
    read_ids(header, bytes)
}

/// The numbers in the freelist page of these bytes, as they stand there.
pub(crate) fn read_ids(header: Header, bytes: &[u8]) -> Result<Vec<PageId>, Error> {
    let id = header.id;
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
