//! Making a transaction durable: rebalance, spill, free list, grow, write, sync, meta, sync
//! (formats 1.10).

use bytes::Bytes;
use smallvec::SmallVec;

use crate::arena::NodeId;
use crate::bucket::BucketHeader;
use crate::db::{Shared, Writer};
use crate::dirty::{Dirty, Part};
use crate::freelist::Freelist;
use crate::meta::{Meta, NO_FREELIST};
use crate::node::{Body, Child, Item, Node, to_inline};
use crate::source::{BucketId, OpenBucket, TreeRoot};
use crate::tree::Freer;
use crate::work::{TOP, Work};
use crate::write_tx::{Hand, WriteTx};
use crate::{Error, PageId, TxId};

/// By how much the file grows once its map is larger than this: 16 MiB.
const GROW_STEP: u64 = 16 << 20;

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The number of the transaction.
    pub tx_id: TxId,
    /// Bytes up to the last page in use.
    pub size: u64,
    /// Bytes of free pages, those that wait for readers not counted.
    pub free_bytes: u64,
    /// Pages written, the meta page among them.
    pub pages_written: u64,
    /// Nodes decoded from pages or made.
    pub nodes: u64,
}

/// A part of a commit that has ended; they come in this order. Whoever has a clock can tell how long
/// each took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The commit begins.
    Begun,
    /// Nodes that had become too small were merged.
    Rebalanced,
    /// Nodes were split and given pages, and the free list too.
    Spilled,
    /// Pages and meta were written and synced.
    Written,
}

/// Spills one transaction: gives pages to its nodes and encodes them.
struct Spill<'a> {
    work: &'a mut Work,
    freelist: &'a mut Freelist,
    max_size: Option<u64>,
    dirty: Dirty,
}

impl WriteTx<'_> {
    /// Makes the changes durable and visible to transactions that begin later.
    ///
    /// # Errors
    /// `MaxSizeReached` and `Corrupt` leave file and database as they were. After `Io` (a write
    /// or a sync failed) it is unknown whether the commit will be found after the next open, and
    /// every later call answers `Poisoned`.
    pub fn commit(self) -> Result<Committed, Error> {
        self.commit_in_steps(&mut |_| {})
    }

    /// As [`WriteTx::commit`], telling of each part when it has ended.
    ///
    /// # Errors
    /// As [`WriteTx::commit`].
    pub fn commit_in_steps(mut self, ended: &mut dyn FnMut(Step)) -> Result<Committed, Error> {
        self.hand.commit(ended)
    }
}

impl Hand {
    fn commit(&mut self, ended: &mut dyn FnMut(Step)) -> Result<Committed, Error> {
        let shared = self.shared.clone();
        let (work, writer) = self.parts();
        let tx = work.meta.tx_id;
        shared.check_sound()?;
        // Savepoints that were neither dropped nor released are kept.
        work.release_savepoint(0);
        if work.failed {
            return Err(Error::Failed { tx });
        }
        let old_high_water = work.forest.base.high_water;
        let mut spill = Spill {
            dirty: Dirty::new(shared.page_size),
            max_size: shared.options.max_size,
            work,
            freelist: &mut writer.freelist,
        };
        ended(Step::Begun);
        if spill.work.forest.removed {
            spill.rebalance(TOP)?;
        }
        ended(Step::Rebalanced);
        spill.spill_top()?;
        spill.freelist(shared.options.no_freelist_sync)?;
        ended(Step::Spilled);
        let dirty = spill.dirty;
        if work.meta.high_water > old_high_water {
            grow(&shared, writer, work.meta.size())?;
        }
        let pages_written = write(&shared, work.meta, dirty)?;
        ended(Step::Written);
        writer.file_len = writer.file_len.max(work.meta.size());
        writer.older_mark = old_high_water;
        writer.freelist.commit();
        let free_bytes = shared.publish(work, pages_written, &writer.freelist);
        let committed = Committed {
            tx_id: tx,
            size: work.meta.size(),
            free_bytes,
            pages_written,
            nodes: work.forest.arena.len(),
        };
        self.done = true;
        Ok(committed)
    }
}

/// Makes the file longer for `size` bytes in use, if it must be (formats 1.9). Nothing of it is in
/// use yet, so a refusal harms nobody.
fn grow(shared: &Shared, writer: &mut Writer, size: u64) -> Result<(), Error> {
    if shared.options.no_grow_sync {
        return Ok(());
    }
    let wanted = size + u64::from(shared.page_size);
    if writer.file_len >= wanted {
        return Ok(());
    }
    let storage = &shared.storage;
    let mapped = storage.map_len(wanted);
    let len = if mapped <= GROW_STEP {
        mapped
    } else {
        wanted + GROW_STEP
    };
    let len = shared
        .options
        .max_size
        .map_or(len, |max| len.min(max.max(size)));
    storage
        .set_len(len)
        .map_err(Error::io(format!("{}: resize", storage.name())))?;
    shared.poison_on_error("resize sync", storage.sync_all())?;
    writer.file_len = len;
    Ok(())
}

/// Writes data, syncs, writes the meta, syncs, and gives the number of pages written. Any failure
/// poisons the database.
fn write(shared: &Shared, meta: Meta, mut dirty: Dirty) -> Result<u64, Error> {
    let page_size = u64::from(shared.page_size);
    assert!(
        meta.root < meta.high_water,
        "the root lies below the high-water mark"
    );
    let freelist_inside = !meta.has_freelist() || meta.freelist < meta.high_water;
    assert!(
        freelist_inside,
        "the free list lies below the high-water mark"
    );
    shared.poison_on_error("write", dirty.write(&*shared.storage))?;
    let sync = !shared.options.no_sync;
    if sync {
        shared.poison_on_error("sync", shared.storage.sync_data())?;
    }
    let page = meta.page();
    let bytes = meta.to_page(page);
    let written = shared.storage.write_at(page.0 * page_size, &bytes);
    shared.poison_on_error("write of the meta page", written)?;
    if sync {
        shared.poison_on_error("sync of the meta page", shared.storage.sync_data())?;
    }
    Ok(dirty.count() + 1)
}

impl Spill<'_> {
    /// Rebalances the trees of an open bucket and of those in it.
    fn rebalance(&mut self, id: BucketId) -> Result<(), Error> {
        let bucket = &mut self.work.buckets[id];
        let fill = bucket.fill;
        let children: Vec<BucketId> = bucket.children.values().copied().collect();
        if let TreeRoot::Tree(root) = &mut bucket.root {
            let mut freer = Freer {
                list: self.freelist,
                tx: self.work.meta.tx_id,
            };
            self.work.forest.rebalance(root, fill, &mut freer)?;
        }
        for child in children {
            self.rebalance(child)?;
        }
        Ok(())
    }

    /// Spills everything; the meta then refers to the new root.
    fn spill_top(&mut self) -> Result<(), Error> {
        self.spill_children(TOP)?;
        if let Some(root) = self.spill_tree(TOP)? {
            self.work.meta.root = root;
        }
        self.work.meta.sequence = self.work.buckets[TOP].sequence;
        Ok(())
    }

    /// Spills the open buckets in `id` and puts their new headers into its tree.
    fn spill_children(&mut self, id: BucketId) -> Result<(), Error> {
        let children = std::mem::take(&mut self.work.buckets[id].children);
        for (name, child) in &children {
            if let Some(value) = self.spill_bucket(*child)? {
                self.work.change(id, |forest, root| {
                    forest.put(root, name, Body::Bucket(value))
                })?;
            }
        }
        self.work.buckets[id].children = children;
        Ok(())
    }

    /// Spills a bucket and gives its new value, if that changed.
    fn spill_bucket(&mut self, id: BucketId) -> Result<Option<Bytes>, Error> {
        self.spill_children(id)?;
        if let Some(items) = self.inline_items(id)? {
            let mut value = BucketHeader::encode(PageId(0), self.work.buckets[id].sequence);
            value.extend_from_slice(&to_inline(&items));
            return Ok(Some(value.into()));
        }
        let root = self.spill_tree(id)?;
        let bucket: &OpenBucket = &self.work.buckets[id];
        if root.is_none() && !bucket.changed {
            return Ok(None);
        }
        Ok(Some(match &bucket.root {
            TreeRoot::Tree(Child::Page(root)) => {
                BucketHeader::encode(*root, bucket.sequence).into()
            }
            TreeRoot::Tree(Child::Node(_)) => unreachable!("the tree was spilled above"),
            TreeRoot::Inline(page) => {
                let mut value = BucketHeader::encode(PageId(0), bucket.sequence);
                value.extend_from_slice(page);
                value.into()
            }
        }))
    }

    /// If the changed bucket is small enough to live inside its value (formats 1.3): its items,
    /// with the page it had freed.
    fn inline_items(&mut self, id: BucketId) -> Result<Option<Vec<Item>>, Error> {
        let TreeRoot::Tree(Child::Node(root)) = self.work.buckets[id].root else {
            return Ok(None);
        };
        let node = self.work.forest.arena.get(root);
        let limit = self.work.meta.page_size as usize / 4;
        let nested = node
            .items
            .iter()
            .any(|item| matches!(item.body, Body::Bucket(_)));
        if !node.leaf || nested || node.size() > limit {
            return Ok(None);
        }
        let mut node = self.work.forest.arena.take(root);
        Freer {
            list: self.freelist,
            tx: self.work.meta.tx_id,
        }
        .node(&mut node)?;
        Ok(Some(node.items))
    }

    /// Spills the changed nodes of a bucket's tree. Gives the new root page; `None` if nothing
    /// changed.
    fn spill_tree(&mut self, id: BucketId) -> Result<Option<PageId>, Error> {
        let TreeRoot::Tree(Child::Node(mut root)) = self.work.buckets[id].root else {
            return Ok(None);
        };
        let fill = self.work.buckets[id].fill;
        let page = loop {
            let mut parts = self.spill_node(root, fill, true)?;
            match (parts.len(), parts.pop()) {
                (
                    1,
                    Some(Item {
                        body: Body::Child(Child::Page(page)),
                        ..
                    }),
                ) => break page,
                (_, last) => {
                    parts.extend(last);
                    let node = Node {
                        page: None,
                        leaf: false,
                        unbalanced: false,
                        items: parts,
                    };
                    root = self.work.forest.arena.add(node);
                }
            }
        };
        self.work.buckets[id].root = TreeRoot::Tree(Child::Page(page));
        Ok(Some(page))
    }

    /// Spills a node with what is below it. Gives what its parent refers to from now on: one
    /// element for each page; none if it is empty and not the root.
    fn spill_node(&mut self, id: NodeId, fill: f64, root: bool) -> Result<Vec<Item>, Error> {
        let mut node = self.work.forest.arena.take(id);
        Freer {
            list: self.freelist,
            tx: self.work.meta.tx_id,
        }
        .node(&mut node)?;
        if !node.leaf {
            let mut items = Vec::with_capacity(node.items.len());
            for item in node.items {
                match item.child() {
                    Child::Page(_) => items.push(item),
                    Child::Node(child) => items.append(&mut self.spill_node(child, fill, false)?),
                }
            }
            node.items = items;
        }
        if node.items.is_empty() {
            if !root {
                return Ok(Vec::new());
            }
            node.leaf = true;
        }
        let page_size = self.work.meta.page_size;
        let mut elements = Vec::new();
        let mut parts: SmallVec<[Part; 1]> = SmallVec::new();
        let mut start = 0;
        let ends = node.split(page_size as usize, fill);
        self.work.counts.splits += ends.len() as u64 - 1;
        for end in ends {
            let items = &node.items[start..end];
            let size = crate::page::PAGE_HEADER + items.iter().map(Item::size).sum::<usize>();
            let pages = (size as u64).div_ceil(u64::from(page_size));
            let page = self.allocate(pages)?;
            let key = items
                .first()
                .map(|item| item.key.clone())
                .unwrap_or_default();
            elements.push(Item {
                key,
                body: Body::Child(Child::Page(page)),
            });
            parts.push(Part {
                id: page,
                pages,
                items: start..end,
            });
            start = end;
        }
        self.dirty.add_node(node, parts);
        Ok(elements)
    }

    /// Frees the old free list and writes the new one, or none.
    fn freelist(&mut self, leave_out: bool) -> Result<(), Error> {
        let old = self.work.meta.freelist;
        let tx = self.work.meta.tx_id;
        if self.work.meta.has_freelist() {
            let overflow = self.work.forest.base.pages().raw(old)?.0.overflow;
            self.freelist.free(tx, old, overflow)?;
            self.work.meta.freelist = NO_FREELIST;
        }
        // As long as not all are known a list would lose the others.
        if leave_out || !self.freelist.known() {
            self.trim();
            return Ok(());
        }
        let page_size = self.work.meta.page_size;
        let pages = self.freelist.page_bytes() / u64::from(page_size) + 1;
        let page = self.allocate(pages)?;
        self.trim();
        self.dirty
            .add_encoded(page, self.freelist.to_page(page, pages, page_size));
        self.work.meta.freelist = page;
        Ok(())
    }

    /// Lowers the high-water mark below what is free there, if that is wanted.
    fn trim(&mut self) {
        if self.work.trim {
            self.work.meta.high_water = self.freelist.trim(self.work.meta.high_water);
        }
    }

    /// Takes `count` pages in a row: free ones, or new ones at the end.
    fn allocate(&mut self, count: u64) -> Result<PageId, Error> {
        self.work.counts.allocated += count;
        let meta = &mut self.work.meta;
        if let Some(first) = self.freelist.allocate(meta.tx_id, count) {
            return Ok(first);
        }
        let first = meta.high_water;
        let next = PageId(first.0.checked_add(count).ok_or(Error::MaxSizeReached)?);
        let size = next
            .0
            .checked_mul(u64::from(meta.page_size))
            .ok_or(Error::MaxSizeReached)?;
        if self.max_size.is_some_and(|max| size > max) {
            return Err(Error::MaxSizeReached);
        }
        meta.high_water = next;
        self.freelist.note(meta.tx_id, first);
        Ok(first)
    }
}
