//! Where a reader finds nodes: in the pages of the file, or among the nodes that its transaction
//! changed. Cursors and buckets read through it without knowing which.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::arena::Arena;
use crate::bucket::BucketHeader;
use crate::node::{Child, Node};
use crate::page::{LeafElement, Page, Pages};
use crate::{Damage, Error, MAX_DEPTH, PageId};

/// A bucket's place among the open ones of a transaction.
pub(crate) type BucketId = usize;

/// Where a bucket's tree begins.
#[derive(Clone, Debug)]
pub(crate) enum TreeRoot {
    /// The page inside the bucket's value, not yet changed.
    Inline(Bytes),
    Tree(Child),
}

/// A bucket that a write transaction has opened for changes.
#[derive(Debug)]
pub(crate) struct OpenBucket {
    pub(crate) root: TreeRoot,
    pub(crate) sequence: u64,
    /// The sequence or the existence is new: the header must be written.
    pub(crate) changed: bool,
    pub(crate) fill: f64,
    pub(crate) nesting: usize,
    pub(crate) children: BTreeMap<Bytes, BucketId>,
}

/// Everything that a read needs; cheap to copy.
#[derive(Clone, Copy)]
pub(crate) struct Source<'tx> {
    pub(crate) pages: Pages<'tx>,
    /// The nodes and the open buckets of a write transaction.
    pub(crate) changes: Option<(&'tx Arena, &'tx [OpenBucket])>,
}

/// The root of a bucket, for reading.
#[derive(Clone, Copy)]
pub(crate) enum ReadRoot<'tx> {
    Inline(&'tx [u8]),
    Tree(Child),
}

/// One node of a tree, as page or changed.
#[derive(Clone, Copy)]
pub(crate) enum NodeRef<'tx> {
    Page(Page<'tx>),
    Node(&'tx Node),
}

impl<'tx> Source<'tx> {
    #[inline]
    pub(crate) fn node(&self, child: Child) -> Result<NodeRef<'tx>, Error> {
        match child {
            Child::Page(id) => Ok(NodeRef::Page(self.pages.tree(id)?)),
            Child::Node(id) => {
                let (arena, _) = self.changes.expect("only a write transaction has nodes");
                Ok(NodeRef::Node(arena.get(id)))
            }
        }
    }

    pub(crate) fn root(&self, root: ReadRoot<'tx>) -> Result<NodeRef<'tx>, Error> {
        match root {
            ReadRoot::Inline(bytes) => Ok(NodeRef::Page(Page::inline(bytes, PageId(0))?)),
            ReadRoot::Tree(child) => self.node(child),
        }
    }

    /// The open bucket of this number.
    pub(crate) fn open(&self, id: BucketId) -> &'tx OpenBucket {
        let (_, buckets) = self
            .changes
            .expect("only a write transaction opens buckets");
        &buckets[id]
    }

    /// The element with exactly this key.
    pub(crate) fn find(
        &self,
        root: ReadRoot<'tx>,
        key: &[u8],
    ) -> Result<Option<LeafElement<'tx>>, Error> {
        let mut node = self.root(root)?;
        for _ in 0..MAX_DEPTH {
            let changed = match node {
                NodeRef::Page(page) => return self.pages.find(page, key),
                NodeRef::Node(changed) => changed,
            };
            let place = changed.search(key);
            if changed.leaf {
                return Ok(place.ok().map(|index| changed.leaf_element(index)));
            }
            let index = place.unwrap_or_else(|after| after.saturating_sub(1));
            node = self.node(changed.items[index].child())?;
        }
        Err(Error::corrupt(node.page(), Damage::Loop))
    }
}

impl OpenBucket {
    /// The root for reading.
    pub(crate) fn read_root(&self) -> ReadRoot<'_> {
        match &self.root {
            TreeRoot::Inline(bytes) => ReadRoot::Inline(bytes),
            TreeRoot::Tree(child) => ReadRoot::Tree(*child),
        }
    }

    /// Opens the bucket whose value is `value`.
    pub(crate) fn read(value: &[u8], nesting: usize, fill: f64) -> Result<OpenBucket, Error> {
        let header = BucketHeader::read(value, PageId(0))?;
        let root = match header.inline {
            Some(page) => TreeRoot::Inline(Bytes::copy_from_slice(page)),
            None => TreeRoot::Tree(Child::Page(header.root)),
        };
        let sequence = header.sequence;
        let children = BTreeMap::new();
        Ok(OpenBucket {
            root,
            sequence,
            changed: false,
            fill,
            nesting,
            children,
        })
    }
}

impl<'tx> NodeRef<'tx> {
    pub(crate) fn leaf(&self) -> bool {
        match self {
            NodeRef::Page(page) => page.leaf,
            NodeRef::Node(node) => node.leaf,
        }
    }

    pub(crate) fn count(&self) -> usize {
        match self {
            NodeRef::Page(page) => page.count(),
            NodeRef::Node(node) => node.items.len(),
        }
    }

    /// The page it was read from; zero if there is none.
    pub(crate) fn page(&self) -> PageId {
        match self {
            NodeRef::Page(page) => page.id,
            NodeRef::Node(node) => node.page.map_or(PageId(0), |(id, _)| id),
        }
    }

    /// Bytes in use: up to the end of the last element.
    pub(crate) fn used(&self) -> Result<usize, Error> {
        match self {
            NodeRef::Page(page) => page.used(),
            NodeRef::Node(node) => Ok(node.size()),
        }
    }

    /// Overflow pages that it has, or that it would take as one page.
    pub(crate) fn overflow(&self, page_size: usize) -> u64 {
        match self {
            NodeRef::Page(page) => u64::from(page.overflow),
            NodeRef::Node(node) => (node.size().div_ceil(page_size) - 1) as u64,
        }
    }

    pub(crate) fn child(&self, index: usize) -> Result<Child, Error> {
        match self {
            NodeRef::Page(page) => Ok(Child::Page(page.child(index)?)),
            NodeRef::Node(node) => Ok(node.items[index].child()),
        }
    }

    #[inline]
    pub(crate) fn leaf_element(&self, index: usize) -> Result<LeafElement<'tx>, Error> {
        match self {
            NodeRef::Page(page) => page.leaf_element(index),
            NodeRef::Node(node) => Ok(node.leaf_element(index)),
        }
    }

    pub(crate) fn search(&self, key: &[u8]) -> Result<Result<usize, usize>, Error> {
        match self {
            NodeRef::Page(page) => page.search(key),
            NodeRef::Node(node) => Ok(node.search(key)),
        }
    }
}
