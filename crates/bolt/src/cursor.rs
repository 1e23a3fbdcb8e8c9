//! Walking a bucket in key order (formats 1.12).

use smallvec::SmallVec;

use crate::source::{NodeRef, ReadRoot, Source};
use crate::{Damage, Error, MAX_DEPTH};

/// A key and its value; `None` stands for a nested bucket.
pub type Entry<'tx> = (&'tx [u8], Option<&'tx [u8]>);

/// A place in one bucket. Entries live as long as the transaction.
///
/// Before the first positioning `next` goes to the first entry and `prev` to the last.
#[derive(Clone)]
pub struct Cursor<'tx> {
    source: Source<'tx>,
    root: ReadRoot<'tx>,
    /// From the root to a leaf.
    stack: SmallVec<[Frame<'tx>; 6]>,
}

#[derive(Clone, Copy)]
struct Frame<'tx> {
    node: NodeRef<'tx>,
    index: usize,
}

/// Which child to take on the way down.
enum Edge {
    First,
    Last,
}

impl<'tx> Cursor<'tx> {
    pub(crate) fn new(source: Source<'tx>, root: ReadRoot<'tx>) -> Cursor<'tx> {
        Cursor {
            source,
            root,
            stack: SmallVec::new(),
        }
    }

    /// Goes to the first entry.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn first(&mut self) -> Result<Option<Entry<'tx>>, Error> {
        self.stack.clear();
        self.push(self.source.root(self.root)?, &Edge::First)?;
        self.descend(&Edge::First)?;
        self.entry_or_next()
    }

    /// Goes to the last entry.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn last(&mut self) -> Result<Option<Entry<'tx>>, Error> {
        self.stack.clear();
        self.push(self.source.root(self.root)?, &Edge::Last)?;
        self.descend(&Edge::Last)?;
        if self.leaf().node.count() > 0 {
            return self.entry();
        }
        self.prev()
    }

    /// Goes to the first entry whose key is `key` or greater.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn seek(&mut self, key: &[u8]) -> Result<Option<Entry<'tx>>, Error> {
        self.stack.clear();
        let mut node = self.source.root(self.root)?;
        loop {
            let place = node.search(key)?;
            if node.leaf() {
                let index = place.unwrap_or_else(|after| after);
                self.stack.push(Frame { node, index });
                return self.entry_or_next();
            }
            let index = place.unwrap_or_else(|after| after.saturating_sub(1));
            self.check_depth(&node)?;
            self.stack.push(Frame { node, index });
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
        if let Some(leaf) = self.stack.last_mut().filter(|leaf| leaf.node.leaf())
            && leaf.index + 1 < leaf.node.count()
        {
            leaf.index += 1;
            return self.entry();
        }
        if self.stack.is_empty() {
            return self.first();
        }
        loop {
            let on = self
                .stack
                .iter()
                .rposition(|frame| frame.index + 1 < frame.node.count());
            let Some(level) = on else { return Ok(None) };
            self.stack.truncate(level + 1);
            self.stack[level].index += 1;
            self.descend(&Edge::First)?;
            if self.leaf().node.count() > 0 {
                return self.entry();
            }
        }
    }

    /// Goes one entry back. At the start it gives `None` and stays on the first entry.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn prev(&mut self) -> Result<Option<Entry<'tx>>, Error> {
        if self.stack.is_empty() {
            return self.last();
        }
        loop {
            let Some(level) = self.stack.iter().rposition(|frame| frame.index > 0) else {
                return Ok(None);
            };
            self.stack.truncate(level + 1);
            self.stack[level].index -= 1;
            self.descend(&Edge::Last)?;
            if self.leaf().node.count() > 0 {
                return self.entry();
            }
        }
    }

    fn leaf(&self) -> &Frame<'tx> {
        self.stack
            .last()
            .expect("positioned: the root at least is on the stack")
    }

    fn check_depth(&self, node: &NodeRef<'tx>) -> Result<(), Error> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(Error::corrupt(node.page(), Damage::Loop));
        }
        Ok(())
    }

    fn push(&mut self, node: NodeRef<'tx>, edge: &Edge) -> Result<(), Error> {
        self.check_depth(&node)?;
        let index = match edge {
            Edge::First => 0,
            Edge::Last => node.count().saturating_sub(1),
        };
        self.stack.push(Frame { node, index });
        Ok(())
    }

    /// From the branch on top of the stack down to a leaf.
    fn descend(&mut self, edge: &Edge) -> Result<(), Error> {
        loop {
            let Frame { node, index } = *self.leaf();
            // A changed branch can be without children until the commit.
            if node.leaf() || node.count() == 0 {
                return Ok(());
            }
            let child = self.source.node(node.child(index)?)?;
            self.push(child, edge)?;
        }
    }

    /// The entry at the place, or the next one if the place is behind its leaf's last.
    fn entry_or_next(&mut self) -> Result<Option<Entry<'tx>>, Error> {
        let Frame { node, index } = *self.leaf();
        if index < node.count() {
            self.entry()
        } else {
            self.next()
        }
    }

    fn entry(&self) -> Result<Option<Entry<'tx>>, Error> {
        let Frame { node, index } = *self.leaf();
        let element = node.leaf_element(index)?;
        Ok(Some((
            element.key,
            (!element.bucket).then_some(element.value),
        )))
    }
}
