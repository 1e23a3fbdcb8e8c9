//! Finding every inconsistency of a database (formats 1.14).

use std::fmt;

use crate::bucket::BucketHeader;
use crate::freelist::pages::PageSet;
use crate::freelist::read_raw;
use crate::page::{FLAG_BRANCH, FLAG_FREELIST, FLAG_LEAF, FLAG_META, Page, Pages};
use crate::read_tx::ReadTx;
use crate::{Damage, Error, MAX_DEPTH, PageId};

/// So many problems are told; a file with more is beyond telling.
const MAX_PROBLEMS: usize = 10_000;

/// One inconsistency. Its text is bbolt's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The page that it was found on, if it concerns one.
    pub page: Option<PageId>,
    /// What is wrong.
    pub text: String,
    /// What puts it right, if anything does.
    pub repair: Option<Repair>,
}

/// What puts an inconsistency right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// The list of free pages is wrong and the trees are not to blame: it is abandoned
    /// ([`crate::surgery::RawFile::abandon_freelist`]), and the next open makes it anew.
    Freelist,
}

/// How [`check_with`] looks at a database.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// Look only at what is below this page.
    pub from_page: Option<PageId>,
    /// How keys are written into the texts.
    pub key_text: fn(&[u8]) -> String,
}

impl Default for CheckOptions {
    fn default() -> CheckOptions {
        CheckOptions {
            from_page: None,
            key_text: hex,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Looks at every page that the transaction can reach, at the order of all keys and at the list
/// of free pages, and tells what is wrong; nothing if the database is sound. At damage that cannot
/// be stepped over the walk of the tree ends.
///
/// If the list of free pages is not in the file it is the one in memory that is compared, when it
/// is loaded and `tx` is of the last commit.
#[must_use]
pub fn check(tx: &ReadTx) -> Vec<Problem> {
    check_with(tx, &CheckOptions::default())
}

/// As [`check`], or only below one page.
#[must_use]
pub fn check_with(tx: &ReadTx, options: &CheckOptions) -> Vec<Problem> {
    let pages = tx.pages();
    let mut check = Check {
        key_text: options.key_text,
        pages,
        free: PageSet::new(pages.high_water),
        reached: PageSet::new(pages.high_water),
        ordered: PageSet::new(pages.high_water),
        problems: Vec::new(),
    };
    let complete = match check.metas().map(|()| check.free_list_or_blame(tx)) {
        Ok(listed) => match options.from_page {
            None => check.bucket(tx.meta.root).map(|()| listed),
            Some(page) if page.0 < 2 || page >= pages.high_water => {
                let bounds = format!("[2, {})", pages.high_water);
                check.add(None, format!("page ID ({page}) out of range {bounds}"));
                Ok(false)
            }
            Some(page) => check.bucket(page).map(|()| false),
        },
        Err(error) => Err(error),
    };
    match complete {
        Ok(true) => check.unreachable(),
        Ok(false) => {}
        Err(error) => check.add(page_of(&error), panic_text(&error)),
    }
    check.problems
}

struct Check<'tx> {
    key_text: fn(&[u8]) -> String,
    pages: Pages<'tx>,
    /// Free and pending pages.
    free: PageSet,
    /// Pages seen so far.
    reached: PageSet,
    /// Branches whose keys were compared.
    ordered: PageSet,
    problems: Vec<Problem>,
}

fn page_of(error: &Error) -> Option<PageId> {
    match error {
        Error::Corrupt { page, .. } => Some(*page),
        _ => None,
    }
}

/// The text that bbolt's check gives where its library panics.
fn panic_text(error: &Error) -> String {
    match error {
        Error::Corrupt {
            damage: Damage::WrongId { expected, found },
            ..
        } => format!(
            "panic: assertion failed: Page expected to be: {expected}, but self identifies as {found}"
        ),
        Error::Corrupt {
            page,
            damage: Damage::WrongType { flags },
        } => {
            format!("panic: assertion failed: page {page}: has unexpected type/flags: {flags:x}")
        }
        Error::Corrupt {
            damage: Damage::OutOfBounds { .. },
            ..
        } => error.to_string(),
        error => format!("panic: {error}"),
    }
}

/// Page numbers as bbolt prints a list of them.
fn stack_text(stack: &[PageId]) -> String {
    let mut text = String::from("[");
    for (i, id) in stack.iter().enumerate() {
        let space = if i > 0 { " " } else { "" };
        text += &format!("{space}{id}");
    }
    text.push(']');
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            text += &format!("{byte:02x}");
            text
        })
}

impl<'tx> Check<'tx> {
    fn add(&mut self, page: Option<PageId>, text: String) {
        if self.problems.len() < MAX_PROBLEMS {
            let repair = None;
            self.problems.push(Problem { page, text, repair });
        }
    }

    /// Adds what a new list of free pages puts right.
    fn add_free(&mut self, page: PageId, text: String) {
        let before = self.problems.len();
        self.add(Some(page), text);
        if let Some(problem) = self.problems.get_mut(before) {
            problem.repair = Some(Repair::Freelist);
        }
    }

    /// As [`Check::free_list`]. A list that cannot be read is one problem, which a new list puts
    /// right; the trees may be sound all the same, and are looked at.
    fn free_list_or_blame(&mut self, tx: &ReadTx) -> bool {
        match self.free_list(tx) {
            Ok(listed) => listed,
            Err(error) => {
                let page = page_of(&error).unwrap_or(tx.meta.freelist);
                self.add_free(page, panic_text(&error));
                false
            }
        }
    }

    /// The two meta pages must say that they are.
    fn metas(&mut self) -> Result<(), Error> {
        for id in [PageId(0), PageId(1)] {
            let header = self.pages.header(id)?;
            if header.flags != FLAG_META {
                return Err(Error::corrupt(
                    id,
                    Damage::WrongType {
                        flags: header.flags,
                    },
                ));
            }
            if header.id != id {
                let damage = Damage::WrongId {
                    expected: id,
                    found: header.id,
                };
                return Err(Error::corrupt(id, damage));
            }
            self.reached.insert(id);
        }
        Ok(())
    }

    /// Reads the list of free pages; whether there is one.
    fn free_list(&mut self, tx: &ReadTx) -> Result<bool, Error> {
        let ids = if tx.meta.has_freelist() {
            let ids = read_raw(self.pages, tx.meta.freelist)?;
            let overflow = self.pages.header(tx.meta.freelist)?.overflow;
            for id in tx.meta.freelist.0..=tx.meta.freelist.0 + u64::from(overflow) {
                self.reached.insert(PageId(id));
            }
            ids
        } else if let Some(ids) = tx.shared.free_ids(tx.meta.tx_id) {
            ids
        } else {
            return Ok(false);
        };
        for id in ids {
            if id >= self.pages.high_water {
                let damage = Damage::FreelistEntry { id };
                self.add_free(id, Error::corrupt(tx.meta.freelist, damage).to_string());
            } else if !self.free.insert(id) {
                self.add_free(id, format!("page {id}: already freed"));
            }
        }
        Ok(true)
    }

    /// Pages that nothing refers to and that are not free.
    fn unreachable(&mut self) {
        for id in (0..self.pages.high_water.0).map(PageId) {
            if !self.reached.contains(id) && !self.free.contains(id) {
                self.add_free(id, format!("page {id}: unreachable unfreed"));
            }
        }
    }

    /// Checks the tree at `root`, then the buckets in it, each before those that come after it.
    fn bucket(&mut self, root: PageId) -> Result<(), Error> {
        let mut todo = vec![root];
        while let Some(root) = todo.pop() {
            let mut nested = Vec::new();
            self.reach(root, &mut Vec::new(), &mut nested)?;
            self.order(root, None, None, &mut Vec::new())?;
            // A bucket inside of itself ends here: its pages were reached, so nothing below them
            // is looked at again.
            todo.extend(nested.into_iter().rev());
        }
        Ok(())
    }

    /// Marks the pages below `id` and collects the roots of nested buckets.
    fn reach(
        &mut self,
        id: PageId,
        stack: &mut Vec<PageId>,
        nested: &mut Vec<PageId>,
    ) -> Result<(), Error> {
        if stack.len() >= MAX_DEPTH {
            return Err(Error::corrupt(id, Damage::Loop));
        }
        stack.push(id);
        let (header, _) = self.pages.raw(id)?;
        let mut again = false;
        for id in (id.0..=id.0 + u64::from(header.overflow)).map(PageId) {
            if !self.reached.insert(id) {
                again = true;
                let stack = stack_text(stack);
                self.add(
                    Some(id),
                    format!("page {id}: multiple references (stack: {stack})"),
                );
            }
        }
        if self.free.contains(id) {
            self.add_free(id, format!("page {id}: reachable freed"));
        } else if header.flags == FLAG_META || header.flags == FLAG_FREELIST {
            let kind = if header.flags == FLAG_META {
                "meta"
            } else {
                "freelist"
            };
            let stack = stack_text(stack);
            self.add(
                Some(id),
                format!("page {id}: invalid type: {kind} (stack: {stack})"),
            );
        } else if header.flags != FLAG_BRANCH && header.flags != FLAG_LEAF {
            return Err(Error::corrupt(
                id,
                Damage::WrongType {
                    flags: header.flags,
                },
            ));
        }
        // What is below a page that was reached before has been looked at.
        if !again && (header.flags == FLAG_BRANCH || header.flags == FLAG_LEAF) {
            let page = self.pages.tree(id)?;
            for index in 0..page.count() {
                if !page.leaf {
                    self.reach(page.child(index)?, stack, nested)?;
                    continue;
                }
                let element = page.leaf_element(index)?;
                if element.bucket {
                    let header = BucketHeader::read(element.value, id)?;
                    match header.inline {
                        Some(bytes) => inline(bytes, id)?,
                        None => nested.push(header.root),
                    }
                }
            }
        }
        stack.pop();
        Ok(())
    }

    /// Compares the keys below `id`: not below `least`, below `bound`. Gives the greatest.
    fn order(
        &mut self,
        id: PageId,
        least: Option<&'tx [u8]>,
        bound: Option<&'tx [u8]>,
        stack: &mut Vec<PageId>,
    ) -> Result<Option<&'tx [u8]>, Error> {
        if stack.len() >= MAX_DEPTH {
            return Err(Error::corrupt(id, Damage::Loop));
        }
        let flags = self.pages.raw(id)?.0.flags;
        if flags == FLAG_META || flags == FLAG_FREELIST {
            let text = format!("unexpected page type (flags: {flags:x}) for pgId:{id}");
            self.add(Some(id), text);
            return Ok(least);
        }
        stack.push(id);
        let page = self.pages.tree(id)?;
        let mut previous = least;
        // A branch that is reached twice is told as such; going down again could take for ever.
        if page.leaf || self.ordered.insert(id) {
            for index in 0..page.count() {
                let key = page.key(index)?;
                if page.leaf {
                    self.compare(id, "leaf", index, key, previous, bound, stack);
                    previous = Some(key);
                    continue;
                }
                let child = page.child(index)?;
                self.compare(child, "branch", index, key, previous, bound, stack);
                let last = index + 1 == page.count();
                let bound = if last {
                    bound
                } else {
                    Some(page.key(index + 1)?)
                };
                previous = self.order(child, Some(key), bound, stack)?;
            }
        }
        stack.pop();
        Ok(previous)
    }

    #[expect(clippy::too_many_arguments, reason = "each is a part of the message")]
    fn compare(
        &mut self,
        id: PageId,
        kind: &str,
        index: usize,
        key: &[u8],
        previous: Option<&[u8]>,
        bound: Option<&[u8]>,
        stack: &[PageId],
    ) {
        let key_text = self.key_text;
        let place = || {
            format!(
                "key[{index}]=(hex){} on {kind} page({id}) needs to be",
                key_text(key)
            )
        };
        let stack = || stack_text(stack);
        if let Some(previous) = previous {
            let before = key_text(previous);
            if index == 0 && previous > key {
                let text = format!(
                    "the first {} >= the key in the ancestor ({before}). Stack: {}",
                    place(),
                    stack()
                );
                self.add(Some(id), text);
            }
            if index > 0 && previous >= key {
                let found = if previous > key { '<' } else { '=' };
                let text = format!(
                    "{} > (found {found}) than previous element (hex){before}. Stack: {}",
                    place(),
                    stack()
                );
                self.add(Some(id), text);
            }
        }
        if bound.is_some_and(|bound| key >= bound) {
            // The text says "next" and bbolt shows the previous key there; so do we.
            let text = format!(
                "{} < than key of the next element in ancestor (hex){}. Pages stack: {}",
                place(),
                key_text(previous.unwrap_or_default()),
                stack()
            );
            self.add(Some(id), text);
        }
    }
}

/// Reads through an inline page; bbolt passes over them, but what cannot be read is damage.
fn inline(bytes: &[u8], holder: PageId) -> Result<(), Error> {
    let page = Page::inline(bytes, holder)?;
    for index in 0..page.count() {
        page.leaf_element(index)?;
    }
    Ok(())
}
