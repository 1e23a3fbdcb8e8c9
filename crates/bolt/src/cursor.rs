//! Walking a bucket in key order (formats 1.12).

use smallvec::SmallVec;

use crate::node::Child;
use crate::page::{ELEMENT, PAGE_HEADER};
use crate::source::{NodeRef, ReadRoot, Source};
use crate::{Damage, Error, MAX_DEPTH};

/// How many pages ahead of a walk are asked for: memory takes as long as reading that many.
const AHEAD: usize = 8;
/// What is asked for of each: its header, and those of the first elements.
const HEAD: usize = PAGE_HEADER + 3 * ELEMENT;

/// A key and its value; `None` stands for a nested bucket.
pub type Entry<'tx> = (&'tx [u8], Option<&'tx [u8]>);

/// A place in one bucket. Entries live as long as the transaction.
///
/// Before the first positioning `next` goes to the first entry and `prev` to the last.
#[derive(Clone)]
pub struct Cursor<'tx> {
    source: Source<'tx>,
    root: ReadRoot<'tx>,
    /// The branches from the root down to the leaf, each with the child that was taken.
    branches: SmallVec<[Frame<'tx>; 6]>,
    /// The leaf below them, with the entry it is on. `None` before the first positioning and where
    /// a page on the way down is damaged; a branch where one has no children.
    leaf: Option<Frame<'tx>>,
}

#[derive(Clone, Copy)]
struct Frame<'tx> {
    node: NodeRef<'tx>,
    index: usize,
}

/// Which child to take on the way down.
#[derive(Clone, Copy)]
enum Edge {
    First,
    Last,
}

impl<'tx> Cursor<'tx> {
    pub(crate) fn new(source: Source<'tx>, root: ReadRoot<'tx>) -> Cursor<'tx> {
        Cursor {
            source,
            root,
            branches: SmallVec::new(),
            leaf: None,
        }
    }

    /// Goes to the first entry.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn first(&mut self) -> Result<Option<Entry<'tx>>, Error> {
        self.clear();
        self.descend(self.source.root(self.root)?, Edge::First)?;
        match &self.leaf {
            Some(leaf) if leaf.node.count() > 0 => leaf.entry(),
            _ => self.next_leaf(),
        }
    }

    /// Goes to the last entry.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn last(&mut self) -> Result<Option<Entry<'tx>>, Error> {
        self.clear();
        self.descend(self.source.root(self.root)?, Edge::Last)?;
        match &self.leaf {
            Some(leaf) if leaf.node.count() > 0 => leaf.entry(),
            _ => self.prev_leaf(),
        }
    }

    /// Goes to the first entry whose key is `key` or greater.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn seek(&mut self, key: &[u8]) -> Result<Option<Entry<'tx>>, Error> {
        self.clear();
        let mut node = self.source.root(self.root)?;
        loop {
            let place = node.search(key)?;
            if node.leaf() {
                let index = place.unwrap_or_else(|after| after);
                let leaf = self.leaf.insert(Frame { node, index });
                if index < node.count() {
                    return leaf.entry();
                }
                return self.next_leaf();
            }
            let index = place.unwrap_or_else(|after| after.saturating_sub(1));
            self.push(Frame { node, index })?;
            node = self.source.node(node.child(index)?)?;
        }
    }

    /// Goes one entry on. At the end it gives `None` and stays on the last entry.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    #[expect(
        clippy::should_implement_trait,
        reason = "it can fail, and it can be turned back"
    )]
    pub fn next(&mut self) -> Result<Option<Entry<'tx>>, Error> {
        match &mut self.leaf {
            Some(leaf) if leaf.index + 1 < leaf.node.count() => {
                leaf.index += 1;
                leaf.entry()
            }
            _ => self.next_leaf(),
        }
    }

    /// Goes one entry back. At the start it gives `None` and stays on the first entry.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn prev(&mut self) -> Result<Option<Entry<'tx>>, Error> {
        match &mut self.leaf {
            Some(leaf) if leaf.index > 0 => {
                leaf.index -= 1;
                leaf.entry()
            }
            _ => self.prev_leaf(),
        }
    }

    /// Goes to the first entry behind the leaf.
    fn next_leaf(&mut self) -> Result<Option<Entry<'tx>>, Error> {
        if self.branches.is_empty() && self.leaf.is_none() {
            return self.first();
        }
        loop {
            let more = |frame: &Frame<'_>| frame.index + 1 < frame.node.count();
            let Some(level) = self.branches.iter().rposition(more) else {
                return Ok(None);
            };
            self.branches[level].index += 1;
            self.descend_from(level, Edge::First)?;
            if let Some(leaf) = &self.leaf
                && leaf.node.count() > 0
            {
                return leaf.entry();
            }
        }
    }

    /// Goes to the last entry before the leaf.
    fn prev_leaf(&mut self) -> Result<Option<Entry<'tx>>, Error> {
        if self.branches.is_empty() && self.leaf.is_none() {
            return self.last();
        }
        loop {
            let Some(level) = self.branches.iter().rposition(|frame| frame.index > 0) else {
                return Ok(None);
            };
            self.branches[level].index -= 1;
            self.descend_from(level, Edge::Last)?;
            if let Some(leaf) = &self.leaf
                && leaf.node.count() > 0
            {
                return leaf.entry();
            }
        }
    }

    fn clear(&mut self) {
        self.branches.clear();
        self.leaf = None;
    }

    fn push(&mut self, branch: Frame<'tx>) -> Result<(), Error> {
        if self.branches.len() >= MAX_DEPTH {
            return Err(Error::corrupt(branch.node.page(), Damage::Loop));
        }
        self.branches.push(branch);
        Ok(())
    }

    /// From `node` down to the leaf at its edge.
    fn descend(&mut self, mut node: NodeRef<'tx>, edge: Edge) -> Result<(), Error> {
        loop {
            let index = match edge {
                Edge::First => 0,
                Edge::Last => node.count().saturating_sub(1),
            };
            let frame = Frame { node, index };
            // A changed branch can be without children until the commit.
            if node.leaf() || node.count() == 0 {
                self.leaf = Some(frame);
                return Ok(());
            }
            self.push(frame)?;
            node = self.child(frame, edge)?;
        }
    }

    /// From the child taken in the branch at `level` down to the leaf at its edge.
    fn descend_from(&mut self, level: usize, edge: Edge) -> Result<(), Error> {
        self.branches.truncate(level + 1);
        self.leaf = None;
        let child = self.child(self.branches[level], edge)?;
        self.descend(child, edge)
    }

    /// The child taken in a branch. Asks for the pages that come after it, so that they are on
    /// their way while the ones before them are read: all the next ones at the branch's edge, and
    /// one more with every step from there.
    fn child(&self, branch: Frame<'tx>, edge: Edge) -> Result<NodeRef<'tx>, Error> {
        let Frame { node, index } = branch;
        let count = node.count();
        let ahead = match edge {
            Edge::First if index == 0 => 1..count.min(AHEAD + 1),
            Edge::First => index + AHEAD..count.min(index + AHEAD + 1),
            Edge::Last if index + 1 == count => index.saturating_sub(AHEAD)..index,
            Edge::Last => index.saturating_sub(AHEAD)..(index + 1).saturating_sub(AHEAD),
        };
        for sibling in ahead {
            // What is wrong with it is said when its turn comes.
            if let Ok(Child::Page(id)) = node.child(sibling) {
                self.source.pages.will_read(id, HEAD);
            }
        }
        self.source.node(node.child(index)?)
    }
}

impl<'tx> Frame<'tx> {
    /// The entry of a leaf at the place.
    #[inline]
    fn entry(&self) -> Result<Option<Entry<'tx>>, Error> {
        let element = self.node.leaf_element(self.index)?;
        Ok(Some((
            element.key,
            (!element.bucket).then_some(element.value),
        )))
    }
}
