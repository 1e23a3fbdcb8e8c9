//! What a write transaction has changed: its trees and its open buckets.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::arena::Arena;
use crate::bucket::{Bucket, BucketHeader};
use crate::meta::Meta;
use crate::node::{Body, Child, Node, to_inline};
use crate::page::Page;
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
        };
        Work {
            forest,
            buckets: vec![top],
            meta,
            failed: false,
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
        self.buckets[parent]
            .children
            .insert(Bytes::copy_from_slice(name), id);
        id
    }

    /// Creates the bucket `name` in `parent`.
    pub(crate) fn create(&mut self, parent: BucketId, name: &[u8]) -> Result<BucketId, Error> {
        if name.is_empty() {
            return Err(Error::BucketNameRequired);
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
            let node = Node::read(Page::inline(bytes, PageId(0))?)?;
            let child = Child::Node(self.forest.arena.add(node));
            self.buckets[id].root = TreeRoot::Tree(child);
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
        self.buckets[parent].children.remove(name);
        // Some pages are freed and others are not.
        self.failed |= result.is_err();
        result
    }

    /// Frees all pages of a bucket and of those in it.
    fn free_bucket(&mut self, id: BucketId, freer: &mut Freer<'_>) -> Result<(), Error> {
        let mut todo = match &self.buckets[id].root {
            TreeRoot::Inline(_) => return Ok(()),
            TreeRoot::Tree(child) => vec![(*child, 0)],
        };
        while let Some((child, depth)) = todo.pop() {
            if depth >= MAX_DEPTH {
                return Err(Error::corrupt(PageId(0), Damage::Loop));
            }
            let node = self.source().node(child)?;
            let mut nested = Vec::new();
            for index in 0..node.count() {
                if !node.leaf() {
                    todo.push((node.child(index)?, depth + 1));
                } else if node.leaf_element(index)?.bucket {
                    nested.push(Bytes::copy_from_slice(node.leaf_element(index)?.key));
                }
            }
            match child {
                Child::Page(page) => {
                    let overflow = self.forest.base.pages().header(page)?.overflow;
                    freer.list.free(freer.tx, page, overflow)?;
                }
                Child::Node(node) => freer.node(self.forest.arena.get_mut(node))?,
            }
            for name in nested {
                let inner = self.open(id, &name)?;
                self.free_bucket(inner, freer)?;
            }
        }
        Ok(())
    }
}
