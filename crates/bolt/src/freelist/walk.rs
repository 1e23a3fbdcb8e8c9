//! The free pages of a file that does not list them: all that the tree does not reach.

use crate::bucket::BucketHeader;
use crate::page::{Page, Pages};
use crate::{Damage, Error, MAX_DEPTH, MAX_NESTING, PageId};

/// A set of pages below a bound.
pub(crate) struct PageSet {
    bits: Vec<u64>,
}

impl PageSet {
    pub(crate) fn new(bound: PageId) -> PageSet {
        let words = usize::try_from(bound.0.div_ceil(64)).expect("the mark is within the file");
        PageSet {
            bits: vec![0; words],
        }
    }

    /// Whether it was absent.
    pub(crate) fn insert(&mut self, id: PageId) -> bool {
        let at = usize::try_from(id.0 / 64).expect("below the bound");
        let bit = 1 << (id.0 % 64);
        let absent = self.bits[at] & bit == 0;
        self.bits[at] |= bit;
        absent
    }

    pub(crate) fn contains(&self, id: PageId) -> bool {
        let at = usize::try_from(id.0 / 64).expect("below the bound");
        self.bits[at] & (1 << (id.0 % 64)) != 0
    }
}

/// Reads the whole tree below `root` and gives the pages that it does not reach, ascending.
pub(crate) fn free_pages(pages: Pages<'_>, root: PageId) -> Result<Vec<PageId>, Error> {
    let mut reached = PageSet::new(pages.high_water);
    // Page, depth in its tree, depth of nesting.
    let mut todo = vec![(root, 1, 0)];
    while let Some((id, depth, nesting)) = todo.pop() {
        if depth > MAX_DEPTH || nesting > MAX_NESTING {
            return Err(Error::corrupt(id, Damage::Loop));
        }
        let page = pages.tree(id)?;
        for id in id.0..=id.0 + u64::from(page.overflow) {
            if !reached.insert(PageId(id)) {
                return Err(Error::corrupt(PageId(id), Damage::MultipleReferences));
            }
        }
        push_children(&mut todo, page, depth, nesting)?;
    }
    Ok((2..pages.high_water.0)
        .map(PageId)
        .filter(|id| !reached.contains(*id))
        .collect())
}

fn push_children(
    todo: &mut Vec<(PageId, usize, usize)>,
    page: Page<'_>,
    depth: usize,
    nesting: usize,
) -> Result<(), Error> {
    for index in 0..page.count() {
        if !page.leaf {
            todo.push((page.child(index)?, depth + 1, nesting));
            continue;
        }
        let element = page.leaf_element(index)?;
        if element.bucket {
            let header = BucketHeader::read(element.value, page.id)?;
            if header.root.0 != 0 {
                todo.push((header.root, 1, nesting + 1));
            }
        }
    }
    Ok(())
}
