//! The free pages of a file that does not list them: all that the tree does not reach.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::{io, thread};

use crate::bucket::BucketHeader;
use crate::freelist::pages::PageSet;
use crate::page::{Page, Pages};
use crate::read_tx::ReadTx;
use crate::{Damage, Error, MAX_DEPTH, PageId};

/// Reads the whole tree below `root` and gives the pages that it does not reach, ascending;
/// `None` if `stop` was set meanwhile.
pub(crate) fn free_pages(
    pages: Pages<'_>,
    root: PageId,
    stop: &AtomicBool,
) -> Result<Option<Vec<PageId>>, Error> {
    let mut reached = PageSet::new(pages.high_water);
    // Page and depth in its tree. A bucket inside of itself is found out by its pages.
    let mut todo = vec![(root, 1)];
    while let Some((id, depth)) = todo.pop() {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if depth > MAX_DEPTH {
            return Err(Error::corrupt(id, Damage::Loop));
        }
        let page = pages.tree(id)?;
        for id in id.0..=id.0 + u64::from(page.overflow) {
            if !reached.insert(PageId(id)) {
                return Err(Error::corrupt(PageId(id), Damage::MultipleReferences));
            }
        }
        push_children(&mut todo, page, depth)?;
    }
    let free = (2..pages.high_water.0).map(PageId);
    Ok(Some(free.filter(|id| !reached.contains(*id)).collect()))
}

fn push_children(
    todo: &mut Vec<(PageId, usize)>,
    page: Page<'_>,
    depth: usize,
) -> Result<(), Error> {
    for index in 0..page.count() {
        if !page.leaf {
            todo.push((page.child(index)?, depth + 1));
            continue;
        }
        let element = page.leaf_element(index)?;
        if element.bucket {
            let header = BucketHeader::read(element.value, page.id)?;
            if header.root.0 != 0 {
                todo.push((header.root, 1));
            }
        }
    }
    Ok(())
}

/// The thread that walks a file after its open. It ends with the last handle of the database.
pub(crate) struct Walker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Walker {
    /// Starts to walk what `tx` sees; `done` gets what [`free_pages`] gives.
    ///
    /// The transaction keeps every page that it can reach from being used again, so what is not
    /// reached is free for as long as nobody else frees it.
    pub(crate) fn start(
        tx: Arc<ReadTx>,
        done: impl FnOnce(&ReadTx, Result<Option<Vec<PageId>>, Error>) + Send + 'static,
    ) -> io::Result<Walker> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = thread::Builder::new()
            .name("bolt-walk".to_owned())
            .spawn(move || {
                let found = free_pages(tx.pages(), tx.meta.root, &seen);
                done(&tx, found);
            })?;
        Ok(Walker {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Walker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic, if any, has been told; there is nothing left to do.
            drop(thread.join());
        }
    }
}
