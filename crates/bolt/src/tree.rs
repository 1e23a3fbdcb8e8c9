//! Changes of one bucket's tree: decode the path, insert, remove, rebalance (formats 1.5, 1.6).

use std::sync::Arc;

use bytes::Bytes;

use crate::arena::{Arena, NodeId};
use crate::freelist::Freelist;
use crate::node::{Body, Child, Item, Node};
use crate::page::Pages;
use crate::storage::View;
use crate::{Damage, Error, MAX_DEPTH, PageId, TxId};

/// From so many elements on a leaf is looked at for being cut in two.
const HALVE_AT: usize = 512;
/// It is looked at when its length is a multiple of this.
const HALVE_STEP: usize = 64;
/// A leaf of fewer pages is left as it is.
const HALVE_PAGES: usize = 8;

/// The pages that a write transaction started from.
pub(crate) struct Base {
    pub(crate) view: Arc<dyn View>,
    pub(crate) page_size: u32,
    pub(crate) high_water: PageId,
}

impl Base {
    pub(crate) fn pages(&self) -> Pages<'_> {
        Pages {
            view: &*self.view,
            page_size: self.page_size,
            high_water: self.high_water,
        }
    }

    /// Decodes a page. It stays in the view, which the node keeps: a page that a transaction
    /// started from is not written before the transaction is gone.
    fn node(&self, id: PageId) -> Result<Node, Error> {
        let page = self.pages().tree(id)?;
        let held = HeldPage {
            view: self.view.clone(),
            // The page was read from there.
            offset: id.0 * u64::from(self.page_size),
            len: page.bytes().len(),
        };
        Node::read(page, &Bytes::from_owner(held))
    }
}

/// A page in a view that it keeps.
struct HeldPage {
    view: Arc<dyn View>,
    offset: u64,
    len: usize,
}

impl AsRef<[u8]> for HeldPage {
    fn as_ref(&self) -> &[u8] {
        self.view
            .slice(self.offset, self.len)
            .expect("a view does not change, and the page was read from it")
    }
}

/// What frees a transaction's old pages.
pub(crate) struct Freer<'a> {
    pub(crate) list: &'a mut Freelist,
    pub(crate) tx: TxId,
}

impl Freer<'_> {
    /// Frees the page that a node was decoded from.
    pub(crate) fn node(&mut self, node: &mut Node) -> Result<(), Error> {
        match node.page.take() {
            Some((id, overflow)) => self.list.free(self.tx, id, overflow),
            None => Ok(()),
        }
    }
}

/// The trees of a write transaction: the pages below, the changed nodes above.
pub(crate) struct Forest {
    pub(crate) base: Base,
    pub(crate) arena: Arena,
    /// Nodes that were merged into another or removed.
    pub(crate) merges: u64,
    /// Something was removed, so that nodes may be too small.
    pub(crate) removed: bool,
}

impl Forest {
    /// The node of `child`, decoded if it is still a page.
    pub(crate) fn node(&mut self, child: Child) -> Result<NodeId, Error> {
        match child {
            Child::Node(id) => Ok(id),
            Child::Page(id) => {
                let node = self.base.node(id)?;
                Ok(self.arena.add(node))
            }
        }
    }

    /// The node of the branch's child number `index`; the branch refers to it from now on.
    fn open_child(&mut self, branch: NodeId, index: usize) -> Result<NodeId, Error> {
        match self.arena.get(branch).items[index].child() {
            Child::Node(id) => Ok(id),
            page @ Child::Page(_) => {
                let id = self.node(page)?;
                self.arena.get_mut(branch).items[index].body = Body::Child(Child::Node(id));
                Ok(id)
            }
        }
    }

    /// The leaf in which `key` belongs, with every node on the way decoded, and its place in its
    /// parent if it is not the root.
    fn leaf_for(
        &mut self,
        root: &mut Child,
        key: &[u8],
    ) -> Result<(NodeId, Option<(NodeId, usize)>), Error> {
        let mut id = self.node(*root)?;
        let mut parent = None;
        *root = Child::Node(id);
        for _ in 0..MAX_DEPTH {
            let node = self.arena.get(id);
            if node.leaf {
                return Ok((id, parent));
            }
            let index = node.child_for(key);
            parent = Some((id, index));
            id = self.open_child(id, index)?;
        }
        Err(Error::corrupt(PageId(0), Damage::Loop))
    }

    /// Decodes what lies on the way to `key`, down to `page`, so that the commit writes it anew.
    pub(crate) fn touch(
        &mut self,
        root: &mut Child,
        key: &[u8],
        page: PageId,
    ) -> Result<(), Error> {
        let mut at = *root;
        let mut id = self.node(at)?;
        *root = Child::Node(id);
        for _ in 0..MAX_DEPTH {
            let node = self.arena.get(id);
            if at == Child::Page(page) || node.leaf || node.items.is_empty() {
                return Ok(());
            }
            let index = node.child_for(key);
            at = node.items[index].child();
            id = self.open_child(id, index)?;
        }
        Err(Error::corrupt(page, Damage::Loop))
    }

    /// Sets what stands behind `key`.
    ///
    /// # Errors
    /// `IncompatibleValue` if that would make a bucket a value or a value a bucket.
    pub(crate) fn put(&mut self, root: &mut Child, key: &[u8], body: Body) -> Result<(), Error> {
        let (id, parent) = self.leaf_for(root, key)?;
        let leaf = self.arena.get_mut(id);
        match leaf.search(key) {
            Ok(index) => {
                let old = &mut leaf.items[index].body;
                if matches!(old, Body::Bucket(_)) != matches!(body, Body::Bucket(_)) {
                    return Err(Error::IncompatibleValue);
                }
                *old = body;
            }
            Err(index) => {
                let key = Bytes::copy_from_slice(key).into();
                let len = leaf.items.len();
                leaf.items.insert(index, Item { key, body });
                // Nodes are cut into pages at the commit. Until then a leaf may grow at its end
                // as it likes, but every insertion before that moves what comes after.
                if index < len && len >= HALVE_AT && len.is_multiple_of(HALVE_STEP) {
                    self.halve(root, id, parent);
                }
            }
        }
        Ok(())
    }

    /// Cuts a leaf of many pages in two.
    fn halve(&mut self, root: &mut Child, id: NodeId, parent: Option<(NodeId, usize)>) {
        let page_size = self.base.page_size as usize;
        let leaf = self.arena.get_mut(id);
        if leaf.size() < HALVE_PAGES * page_size {
            return;
        }
        let items = leaf.items.split_off(leaf.items.len() / 2);
        let left = leaf.items[0].key.clone();
        let key = items[0].key.clone();
        let unbalanced = leaf.unbalanced;
        let right = self.arena.add(Node {
            page: None,
            leaf: true,
            unbalanced,
            items,
        });
        let right = Item {
            key,
            body: Body::Child(Child::Node(right)),
        };
        match parent {
            Some((parent, index)) => self.arena.get_mut(parent).items.insert(index + 1, right),
            None => {
                let left = Item {
                    key: left,
                    body: Body::Child(Child::Node(id)),
                };
                let items = vec![left, right];
                let branch = Node {
                    page: None,
                    leaf: false,
                    unbalanced: false,
                    items,
                };
                *root = Child::Node(self.arena.add(branch));
            }
        }
    }

    /// Removes `key`, if it is there.
    pub(crate) fn remove(&mut self, root: &mut Child, key: &[u8]) -> Result<(), Error> {
        let (leaf, _) = self.leaf_for(root, key)?;
        let leaf = self.arena.get_mut(leaf);
        if let Ok(index) = leaf.search(key) {
            leaf.items.remove(index);
            leaf.unbalanced = true;
            self.removed = true;
        }
        Ok(())
    }

    /// Merges what became too small by removals, from the leaves up, and lowers the tree if its
    /// root has one child left.
    pub(crate) fn rebalance(
        &mut self,
        root: &mut Child,
        fill: f64,
        freer: &mut Freer<'_>,
    ) -> Result<(), Error> {
        let Child::Node(mut id) = *root else {
            return Ok(());
        };
        // Truncation is the format's rule.
        let threshold = (f64::from(self.base.page_size) * fill) as usize / 2;
        self.rebalance_below(id, threshold, freer, 0)?;
        while self.arena.get(id).unbalanced && !self.arena.get(id).leaf {
            match self.arena.get(id).items.len() {
                0 => {
                    let node = self.arena.get_mut(id);
                    node.leaf = true;
                }
                1 => {
                    let child = self.open_child(id, 0)?;
                    freer.node(self.arena.get_mut(id))?;
                    // It was the root's only content, so the root's fate is its own.
                    self.arena.get_mut(child).unbalanced = true;
                    id = child;
                    *root = Child::Node(id);
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// Rebalances the children of `id`, after those below them.
    fn rebalance_below(
        &mut self,
        id: NodeId,
        threshold: usize,
        freer: &mut Freer<'_>,
        depth: usize,
    ) -> Result<(), Error> {
        if self.arena.get(id).leaf {
            return Ok(());
        }
        assert!(depth <= MAX_DEPTH, "the path was decoded within the bound");
        let mut index = 0;
        while index < self.arena.get(id).items.len() {
            if let Child::Node(child) = self.arena.get(id).items[index].child() {
                self.rebalance_below(child, threshold, freer, depth + 1)?;
            }
            index += 1;
        }
        let mut index = 0;
        while index < self.arena.get(id).items.len() {
            if !self.merge_child(id, index, threshold, freer)? {
                index += 1;
            }
        }
        Ok(())
    }

    /// Removes or merges child `index` if it is too small. Whether an element of the branch at or
    /// before `index` went away, so that the same place must be looked at again.
    fn merge_child(
        &mut self,
        id: NodeId,
        index: usize,
        threshold: usize,
        freer: &mut Freer<'_>,
    ) -> Result<bool, Error> {
        let Child::Node(child) = self.arena.get(id).items[index].child() else {
            return Ok(false);
        };
        let node = self.arena.get(child);
        if !node.unbalanced {
            return Ok(false);
        }
        let least = if node.leaf { 1 } else { 2 };
        if node.items.len() > least && node.size() > threshold {
            self.arena.get_mut(child).unbalanced = false;
            return Ok(false);
        }
        if node.items.is_empty() {
            self.merges += 1;
            freer.node(self.arena.get_mut(child))?;
            let parent = self.arena.get_mut(id);
            parent.items.remove(index);
            parent.unbalanced = true;
            return Ok(true);
        }
        if self.arena.get(id).items.len() == 1 {
            // No sibling: the branch itself is merged one level up.
            return Ok(false);
        }
        let (left, right) = if index == 0 {
            (0, 1)
        } else {
            (index - 1, index)
        };
        let into = self.open_child(id, left)?;
        let from = self.open_child(id, right)?;
        if self.arena.get(into).leaf != self.arena.get(from).leaf {
            let page = self
                .arena
                .get(from)
                .page
                .map_or(PageId(0), |(page, _)| page);
            let flags = if self.arena.get(from).leaf { 2 } else { 1 };
            return Err(Error::corrupt(page, Damage::WrongType { flags }));
        }
        self.merges += 1;
        let mut gone = self.arena.take(from);
        freer.node(&mut gone)?;
        if let Some(first) = gone.items.first_mut().filter(|_| !gone.leaf) {
            // The leftmost child may hold keys below its own separator, but none below its
            // parent's; merged into the middle of a branch it must be found by those too.
            first.key = self.arena.get(id).items[right].key.clone();
        }
        let target = self.arena.get_mut(into);
        target.items.append(&mut gone.items);
        // The right one, swallowed by the first, may itself have been waiting for its turn; the
        // merged node has had it.
        target.unbalanced = false;
        let parent = self.arena.get_mut(id);
        parent.items.remove(right);
        parent.unbalanced = true;
        Ok(true)
    }
}
