//! What a write transaction has changed: its trees and its open buckets.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::arena::Arena;
use crate::bucket::{Bucket, BucketHeader};
use crate::meta::Meta;
use crate::node::{Body, Child, Node, to_inline};
use crate::page::{LeafElement, Page};
use crate::savepoint::Frame;
use crate::source::{BucketId, OpenBucket, Source, TreeRoot};
use crate::tree::{Base, Forest, Freer};
use crate::{
    DEFAULT_FILL, Damage, Error, MAX_DEPTH, MAX_KEY_SIZE, MAX_NESTING, MAX_VALUE_SIZE, PageId,
};

/// The bucket of buckets.
pub(crate) const TOP: BucketId = 0;

pub(crate) struct Work {
    pub(crate) forest: Forest,
    /// Open buckets; those of deleted ones stay, with nothing referring to them.
    pub(crate) buckets: Vec<OpenBucket>,
    /// The meta to be written, with this transaction's number.
    pub(crate) meta: Meta,
    /// A change stopped half-way.
    pub(crate) failed: bool,
    /// Open savepoints, outermost first.
    pub(crate) frames: Vec<Frame>,
    pub(crate) counts: Counts,
    /// The commit gives up free pages right below the high-water mark.
    pub(crate) trim: bool,
}

/// What a commit did, for the statistics.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Pages that were allocated.
    pub(crate) allocated: u64,
    /// Cuts of nodes.
    pub(crate) splits: u64,
}

impl Work {
    pub(crate) fn new(base: Base, meta: Meta) -> Work {
        let top = OpenBucket {
            root: TreeRoot::Tree(Child::Page(meta.root)),
            sequence: meta.sequence,
            changed: false,
            fill: DEFAULT_FILL,
            nesting: 0,
            children: BTreeMap::new(),
        };
        let forest = Forest {
            base,
            arena: Arena::default(),
            merges: 0,
            removed: false,
        };
        Work {
            forest,
            buckets: vec![top],
            meta,
            failed: false,
            frames: Vec::new(),
            counts: Counts::default(),
            trim: false,
        }
    }

    pub(crate) fn source(&self) -> Source<'_> {
        let changes = Some((&self.forest.arena, &self.buckets[..]));
        Source {
            pages: self.forest.base.pages(),
            changes,
        }
    }

    pub(crate) fn bucket(&self, id: BucketId) -> Bucket<'_> {
        Bucket::of_open(self.source(), id)
    }

    /// Opens the bucket `name` in `parent`, or finds it open.
    pub(crate) fn open(&mut self, parent: BucketId, name: &[u8]) -> Result<BucketId, Error> {
        if let Some(id) = self.buckets[parent].children.get(name) {
            return Ok(*id);
        }
        let source = self.source();
        let found = source.find(self.buckets[parent].read_root(), name)?;
        let element = found
            .filter(|found| found.bucket)
            .ok_or(Error::BucketNotFound)?;
        let nesting = self.nesting_below(parent)?;
        let bucket = OpenBucket::read(element.value, nesting, DEFAULT_FILL)?;
        Ok(self.enter(parent, name, bucket))
    }

    fn nesting_below(&self, parent: BucketId) -> Result<usize, Error> {
        let nesting = self.buckets[parent].nesting + 1;
        if nesting > MAX_NESTING {
            Err(Error::TooDeep)
        } else {
            Ok(nesting)
        }
    }

    fn enter(&mut self, parent: BucketId, name: &[u8], bucket: OpenBucket) -> BucketId {
        let id = self.buckets.len();
        self.buckets.push(bucket);
        self.link(parent, Bytes::copy_from_slice(name), id);
        id
    }

    /// Creates the bucket `name` in `parent`.
    pub(crate) fn create(&mut self, parent: BucketId, name: &[u8]) -> Result<BucketId, Error> {
        if name.is_empty() {
            return Err(Error::BucketNameRequired);
        }
        if name.len() > MAX_KEY_SIZE {
            return Err(Error::KeyTooLarge);
        }
        let root = self.buckets[parent].read_root();
        if let Some(found) = self.source().find(root, name)? {
            let exists = found.bucket;
            return Err(if exists {
                Error::BucketExists
            } else {
                Error::IncompatibleValue
            });
        }
        let nesting = self.nesting_below(parent)?;
        // As it is written if nothing is ever put into it.
        let mut value = BucketHeader::encode(PageId(0), 0);
        value.extend_from_slice(&to_inline(&[]));
        let body = Body::Bucket(value.into());
        self.change(parent, |forest, root| forest.put(root, name, body))?;
        let root = TreeRoot::Tree(Child::Node(self.forest.arena.add(Node::empty_leaf())));
        let bucket = OpenBucket {
            root,
            sequence: 0,
            changed: true,
            fill: DEFAULT_FILL,
            nesting,
            children: BTreeMap::new(),
        };
        Ok(self.enter(parent, name, bucket))
    }

    /// Decodes the page inside an inline bucket, before a change.
    fn decode_inline(&mut self, id: BucketId) -> Result<(), Error> {
        if let TreeRoot::Inline(bytes) = &self.buckets[id].root {
            let node = Node::read(Page::inline(bytes, PageId(0))?, bytes)?;
            let child = Child::Node(self.forest.arena.add(node));
            self.bucket_for_change(id).root = TreeRoot::Tree(child);
        }
        Ok(())
    }

    /// Runs `change` on the tree of an open bucket.
    pub(crate) fn change<T>(
        &mut self,
        id: BucketId,
        change: impl FnOnce(&mut Forest, &mut Child) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.decode_inline(id)?;
        if !self.frames.is_empty() {
            self.bucket_for_change(id);
        }
        let TreeRoot::Tree(root) = &mut self.buckets[id].root else {
            unreachable!("it was decoded above")
        };
        change(&mut self.forest, root)
    }

    pub(crate) fn put(&mut self, id: BucketId, key: &[u8], value: &[u8]) -> Result<(), Error> {
        if key.is_empty() {
            return Err(Error::KeyRequired);
        }
        if key.len() > MAX_KEY_SIZE {
            return Err(Error::KeyTooLarge);
        }
        if value.len() > MAX_VALUE_SIZE {
            return Err(Error::ValueTooLarge);
        }
        let body = Body::Value(Bytes::copy_from_slice(value));
        self.change(id, |forest, root| forest.put(root, key, body))
    }

    pub(crate) fn delete(&mut self, id: BucketId, key: &[u8]) -> Result<(), Error> {
        match self.source().find(self.buckets[id].read_root(), key)? {
            None => Ok(()),
            Some(found) if found.bucket => Err(Error::IncompatibleValue),
            Some(_) => self.change(id, |forest, root| forest.remove(root, key)),
        }
    }

    /// Deletes the bucket `name` of `parent` with all that is in it.
    pub(crate) fn delete_bucket(
        &mut self,
        parent: BucketId,
        name: &[u8],
        freer: &mut Freer<'_>,
    ) -> Result<(), Error> {
        match self.source().find(self.buckets[parent].read_root(), name)? {
            None => return Err(Error::BucketNotFound),
            Some(found) if !found.bucket => return Err(Error::IncompatibleValue),
            Some(_) => {}
        }
        let id = self.open(parent, name)?;
        let result = self
            .free_bucket(id, freer)
            .and_then(|()| self.change(parent, |forest, root| forest.remove(root, name)));
        self.unlink(parent, name);
        // Some pages are freed and others are not.
        self.failed |= result.is_err();
        result
    }

    /// Frees all pages of a bucket and of those in it.
    fn free_bucket(&mut self, id: BucketId, freer: &mut Freer<'_>) -> Result<(), Error> {
        // Root, and the number of the bucket if it is open. A page that is met twice is an error,
        // so this ends.
        let mut buckets = vec![(self.buckets[id].root.clone(), Some(id))];
        while let Some((root, open)) = buckets.pop() {
            let mut todo = match root {
                // No buckets are in it.
                TreeRoot::Inline(_) => continue,
                TreeRoot::Tree(child) => vec![(child, 0)],
            };
            while let Some((child, depth)) = todo.pop() {
                if depth >= MAX_DEPTH {
                    return Err(Error::corrupt(PageId(0), Damage::Loop));
                }
                let node = self.source().node(child)?;
                for index in 0..node.count() {
                    if !node.leaf() {
                        todo.push((node.child(index)?, depth + 1));
                        continue;
                    }
                    let element = node.leaf_element(index)?;
                    if element.bucket {
                        buckets.extend(self.nested_root(open, element, node.page())?);
                    }
                }
                match child {
                    Child::Page(page) => {
                        let overflow = self.forest.base.pages().header(page)?.overflow;
                        freer.list.free(freer.tx, page, overflow)?;
                    }
                    Child::Node(node) => freer.node(self.forest.arena.get_mut(node))?,
                }
            }
        }
        Ok(())
    }

    /// The root of the bucket in `element`, as this transaction has it. `None` if it is inline and
    /// not open.
    fn nested_root(
        &self,
        parent: Option<BucketId>,
        element: LeafElement<'_>,
        holder: PageId,
    ) -> Result<Option<(TreeRoot, Option<BucketId>)>, Error> {
        let open = parent.and_then(|parent| self.buckets[parent].children.get(element.key));
        if let Some(id) = open {
            return Ok(Some((self.buckets[*id].root.clone(), Some(*id))));
        }
        let header = BucketHeader::read(element.value, holder)?;
        Ok(match header.inline {
            Some(_) => None,
            None => Some((TreeRoot::Tree(Child::Page(header.root)), None)),
        })
    }

    /// Moves the bucket `name` of `from` into `to`, which is not inside of it.
    pub(crate) fn move_bucket(
        &mut self,
        from: BucketId,
        name: &[u8],
        to: BucketId,
    ) -> Result<(), Error> {
        let source = self.source();
        let found = source.find(self.buckets[from].read_root(), name)?;
        let found = found.ok_or(Error::BucketNotFound)?;
        if !found.bucket {
            return Err(Error::IncompatibleValue);
        }
        if from == to {
            return Err(Error::SameBucket);
        }
        let value = Bytes::copy_from_slice(found.value);
        match source.find(self.buckets[to].read_root(), name)? {
            Some(taken) if taken.bucket => return Err(Error::BucketExists),
            Some(_) => return Err(Error::IncompatibleValue),
            None => {}
        }
        let nesting = self.nesting_below(to)?;
        let id = self.open(from, name)?;
        self.change(to, |forest, root| {
            forest.put(root, name, Body::Bucket(value))
        })?;
        let removed = self.change(from, |forest, root| forest.remove(root, name));
        // It would be in both.
        self.failed |= removed.is_err();
        removed?;
        self.unlink(from, name);
        self.link(to, Bytes::copy_from_slice(name), id);
        let mut todo = vec![(id, nesting)];
        while let Some((id, nesting)) = todo.pop() {
            self.bucket_for_change(id).nesting = nesting;
            let children = self.buckets[id].children.values();
            todo.extend(children.map(|child| (*child, nesting + 1)));
        }
        Ok(())
    }
}
