//! What a commit writes. A page is encoded when it is its turn, into the buffer that goes to the
//! storage, so its contents are copied once and a commit needs no second copy of what it changed.

use std::io;
use std::ops::Range;

use crate::PageId;
use crate::node::{Node, to_page};
use crate::storage::Storage;

/// Neighbouring pages are written together up to this many bytes.
const WRITE_AT_ONCE: usize = 1 << 20;

/// Pages that have their numbers, with what goes into them.
#[derive(Debug)]
pub(crate) struct Dirty {
    page_size: u32,
    /// Nodes that were cut into pages.
    nodes: Vec<Node>,
    pages: Vec<DirtyPage>,
}

/// A page with its overflow pages.
#[derive(Debug)]
struct DirtyPage {
    id: PageId,
    /// How many it is with its overflow pages.
    pages: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// Some items of a node, which is the one of this number.
    Node(usize, Range<usize>),
    Encoded(Vec<u8>),
}

/// A part of a node, with the pages it was given.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) id: PageId,
    /// How many pages it takes.
    pub(crate) pages: u64,
    /// Its items among those of the node.
    pub(crate) items: Range<usize>,
}

impl Dirty {
    pub(crate) fn new(page_size: u32) -> Dirty {
        Dirty {
            page_size,
            nodes: Vec::new(),
            pages: Vec::new(),
        }
    }

    /// Adds a node that was cut into `parts`. Its children are pages.
    pub(crate) fn add_node(&mut self, node: Node, parts: impl IntoIterator<Item = Part>) {
        let number = self.nodes.len();
        self.nodes.push(node);
        self.pages.extend(parts.into_iter().map(|part| DirtyPage {
            id: part.id,
            pages: part.pages,
            content: Content::Node(number, part.items),
        }));
    }

    /// Adds a page that is encoded already, with its overflow pages.
    pub(crate) fn add_encoded(&mut self, id: PageId, bytes: Vec<u8>) {
        self.pages.push(DirtyPage {
            id,
            pages: bytes.len() as u64 / u64::from(self.page_size),
            content: Content::Encoded(bytes),
        });
    }

    /// How many pages there are.
    pub(crate) fn count(&self) -> u64 {
        self.pages.iter().map(|page| page.pages).sum()
    }

    /// Writes all pages in the order of their numbers, neighbours together.
    ///
    /// # Errors
    /// What the storage answers; some pages are then written and others are not.
    pub(crate) fn write(&mut self, storage: &dyn Storage) -> io::Result<()> {
        self.pages.sort_unstable_by_key(|page| page.id);
        let page_size = u64::from(self.page_size);
        let mut buffer = Vec::new();
        // Where the buffer's contents belong.
        let mut start = 0;
        for page in &self.pages {
            let offset = page.id.0 * page_size;
            let len = usize::try_from(page.pages * page_size).expect("it fits memory");
            let joins = offset == start + buffer.len() as u64;
            if !buffer.is_empty() && (!joins || buffer.len() + len > WRITE_AT_ONCE) {
                storage.write_at(start, &buffer)?;
                buffer.clear();
            }
            if buffer.is_empty() {
                start = offset;
            }
            match &page.content {
                Content::Encoded(bytes) => buffer.extend_from_slice(bytes),
                Content::Node(number, items) => {
                    let node = &self.nodes[*number];
                    let items = &node.items[items.clone()];
                    buffer = to_page(
                        buffer,
                        items,
                        node.leaf,
                        page.id,
                        page.pages,
                        self.page_size,
                    );
                }
            }
        }
        if buffer.is_empty() {
            return Ok(());
        }
        storage.write_at(start, &buffer)
    }
}
