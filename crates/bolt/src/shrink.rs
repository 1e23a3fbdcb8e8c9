//! Giving space back to the file system, while readers and the writer go on.
//!
//! Small write transactions rewrite what lies at the end of the file into the lowest free pages.
//! When the pages below the high-water mark have become free, and no reader needs them, the mark is
//! lowered. Before the file is cut both meta pages must carry the lower mark, for a crash can bring
//! back either, and the cut stops at the highest mark of any live reader, for a reader may copy
//! all pages below its own.

use crate::bucket::BucketHeader;
use crate::db::{Db, Shared, Writer};
use crate::freelist::Policy;
use crate::freelist::pages::PageSet;
use crate::node::Child;
use crate::page::Pages;
use crate::source::TreeRoot;
use crate::tree::Forest;
use crate::write_tx::WriteTx;
use crate::{Damage, Error, MAX_DEPTH, PageId};

/// Pages that one transaction moves at most.
const MOVES: usize = 256;

/// What [`Db::shrink`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shrunk {
    /// Length of the file before, in bytes.
    pub len_before: u64,
    /// Length of the file now, in bytes.
    pub len: u64,
    /// Pages that were written anew further down.
    pub pages_moved: u64,
    /// Write transactions that it took.
    pub commits: u64,
}

/// A page of a tree that lies at the end of the file.
struct Move {
    /// Names of the bucket that it belongs to, outermost first.
    path: Vec<Vec<u8>>,
    /// A key that is looked for to come by it; empty for the first.
    key: Vec<u8>,
    page: PageId,
    pages: u64,
}

impl Db {
    /// Moves pages from the end of the file into free ones further down and cuts the file, in
    /// many small write transactions: others can write between them, and read all the time.
    ///
    /// How far it comes depends on them: pages that a reader needs are neither used again nor cut.
    /// It ends when a round gives nothing back any more. The file is sound whenever it is broken
    /// off.
    ///
    /// # Errors
    /// As [`Db::begin_write`] and [`WriteTx::commit`].
    pub fn shrink(&self) -> Result<Shrunk, Error> {
        self.wait_for_freelist()?;
        let mut shrunk = Shrunk {
            len_before: self.shared.storage.len().map_err(self.failed("length"))?,
            ..Shrunk::default()
        };
        loop {
            let before = self.stats().size;
            self.round(&mut shrunk)?;
            // What the moves freed is free for the second of these, if no reader needs it.
            for _ in 0..2 {
                self.step(&[], &mut shrunk)?;
            }
            if self.stats().size >= before {
                break;
            }
        }
        self.cut(&mut shrunk)?;
        shrunk.len = self.shared.storage.len().map_err(self.failed("length"))?;
        Ok(shrunk)
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        Error::io(format!("{}: {what}", self.shared.storage.name()))
    }

    /// Moves everything that lies past where all would fit.
    fn round(&self, shrunk: &mut Shrunk) -> Result<(), Error> {
        let tx = self.begin_read()?;
        let stats = self.stats();
        let used = tx.meta.high_water.0 - stats.free_pages.min(tx.meta.high_water.0);
        let moves = moves(tx.pages(), tx.meta.root, PageId(used))?;
        // It would keep the pages that the moves free.
        drop(tx);
        let mut rest = &moves[..];
        while !rest.is_empty() {
            // Two that want several pages in a row could want the same.
            let single = rest
                .iter()
                .take(MOVES)
                .take_while(|wanted| wanted.pages == 1);
            let n = single.count().max(1);
            self.step(&rest[..n], shrunk)?;
            rest = &rest[n..];
        }
        Ok(())
    }

    /// One transaction: moves some pages and lowers the mark as far as it goes.
    fn step(&self, moves: &[Move], shrunk: &mut Shrunk) -> Result<(), Error> {
        let mut tx = self.begin_write()?;
        let mut moved = 0;
        for wanted in moves {
            moved += wanted.apply(&mut tx)?;
        }
        let (work, freelist) = tx.parts();
        work.trim = true;
        freelist.set_policy(Policy::Lowest);
        tx.commit()?;
        shrunk.pages_moved += moved;
        shrunk.commits += 1;
        Ok(())
    }

    /// Cuts the file behind the pages that somebody could still want.
    fn cut(&self, shrunk: &mut Shrunk) -> Result<(), Error> {
        let mut tx = self.begin_write()?;
        if tx.hand.parts().1.older_mark.0 > tx.hand.work.meta.high_water.0 {
            // The other meta page carries a higher mark still.
            drop(tx);
            self.step(&[], shrunk)?;
            tx = self.begin_write()?;
        }
        let shared = self.shared.clone();
        let (work, writer) = tx.hand.parts();
        shared.cut(writer, work.forest.base.high_water)
    }
}

impl Shared {
    fn cut(&self, writer: &mut Writer, mark: PageId) -> Result<(), Error> {
        let keep = mark.max(writer.older_mark).max(self.readers_mark());
        let len = keep.0 * u64::from(self.page_size);
        if len >= writer.file_len {
            return Ok(());
        }
        self.poison_on_error("cut", self.storage.set_len(len))?;
        if !self.options.no_sync {
            self.poison_on_error("sync of the cut", self.storage.sync_all())?;
        }
        writer.file_len = len;
        Ok(())
    }
}

impl Move {
    /// Makes the transaction write the page anew, if it is still where it was and there is room
    /// further down. How many pages that moves.
    fn apply(&self, tx: &mut WriteTx<'_>) -> Result<u64, Error> {
        let path: Vec<&[u8]> = self.path.iter().map(Vec::as_slice).collect();
        let id = match tx.open_path(&path) {
            Ok(id) => id,
            // Somebody has deleted it meanwhile.
            Err(Error::BucketNotFound) => return Ok(0),
            Err(error) => return Err(error),
        };
        let (work, freelist) = tx.parts();
        if freelist
            .lowest(self.pages)
            .is_none_or(|low| low >= self.page)
        {
            return Ok(0);
        }
        let TreeRoot::Tree(root) = work.buckets[id].root else {
            return Ok(0);
        };
        if !on_path(&work.forest, root, &self.key, self.page)? {
            return Ok(0);
        }
        work.change(id, |forest, root| forest.touch(root, &self.key, self.page))?;
        Ok(self.pages)
    }
}

/// Whether the search for `key` still comes by `page`.
fn on_path(forest: &Forest, root: Child, key: &[u8], page: PageId) -> Result<bool, Error> {
    let mut child = root;
    for _ in 0..MAX_DEPTH {
        match child {
            Child::Page(id) if id == page => return Ok(true),
            Child::Page(id) => {
                let at = forest.base.pages().tree(id)?;
                if at.leaf {
                    return Ok(false);
                }
                let index = at
                    .search(key)?
                    .unwrap_or_else(|after| after.saturating_sub(1));
                child = Child::Page(at.child(index)?);
            }
            Child::Node(id) => {
                let node = forest.arena.get(id);
                if node.leaf || node.items.is_empty() {
                    return Ok(false);
                }
                child = node.items[node.child_for(key)].child();
            }
        }
    }
    Err(Error::corrupt(page, Damage::Loop))
}

/// All pages of trees from `bound` on, in the order of the file's buckets and keys. A page that is met twice
/// is an error, so this ends: also where a bucket lies in itself.
fn moves(pages: Pages<'_>, root: PageId, bound: PageId) -> Result<Vec<Move>, Error> {
    let mut moves = Vec::new();
    let mut met = PageSet::new(pages.high_water);
    let mut buckets = vec![(root, Vec::new())];
    while let Some((root, path)) = buckets.pop() {
        let mut todo = vec![(root, Vec::new(), 0)];
        while let Some((id, key, depth)) = todo.pop() {
            if depth > MAX_DEPTH {
                return Err(Error::corrupt(id, Damage::Loop));
            }
            let page = pages.tree(id)?;
            let last = id.0 + u64::from(page.overflow);
            for id in (id.0..=last).map(PageId) {
                if !met.insert(id) {
                    return Err(Error::corrupt(id, Damage::MultipleReferences));
                }
            }
            for index in 0..page.count() {
                if !page.leaf {
                    todo.push((page.child(index)?, page.key(index)?.to_vec(), depth + 1));
                    continue;
                }
                let element = page.leaf_element(index)?;
                if element.bucket {
                    let header = BucketHeader::read(element.value, id)?;
                    if header.inline.is_none() {
                        let mut path: Vec<Vec<u8>> = path.clone();
                        path.push(element.key.to_vec());
                        buckets.push((header.root, path));
                    }
                }
            }
            if last >= bound.0 {
                moves.push(Move {
                    path: path.clone(),
                    key,
                    page: id,
                    pages: u64::from(page.overflow) + 1,
                });
            }
        }
    }
    Ok(moves)
}
