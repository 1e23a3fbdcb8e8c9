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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemStorage;

    #[test]
    fn pages_come_to_their_places_in_any_order_and_size() {
        let mut dirty = Dirty::new(1024);
        let part = |id, pages| Part {
            id: PageId(id),
            pages,
            items: 0..0,
        };
        // A gap at 4, and more than is written at once from 6 on.
        dirty.add_encoded(PageId(6), vec![6; WRITE_AT_ONCE]);
        dirty.add_node(Node::empty_leaf(), [part(5, 1), part(2, 2)]);
        let behind = 6 + WRITE_AT_ONCE as u64 / 1024;
        dirty.add_node(Node::empty_leaf(), [part(behind, 1)]);
        let storage = MemStorage::new();
        storage.write_at(0, &[9; 8 * 1024]).unwrap();
        dirty.write(&storage).unwrap();

        assert_eq!(dirty.count(), 4 + WRITE_AT_ONCE as u64 / 1024);
        let contents = storage.contents();
        let page = |id: u64| &contents[id as usize * 1024..][..1024];
        for (id, overflow) in [(2, 1), (5, 0), (behind, 0)] {
            assert_eq!(page(id)[..8], id.to_le_bytes());
            assert_eq!(page(id)[12..16], u32::to_le_bytes(overflow));
        }
        assert_eq!(page(3), [0; 1024], "overflow");
        for (id, byte) in [(0, 9), (1, 9), (4, 9), (6, 6), (behind - 1, 6)] {
            assert_eq!(page(id), [byte; 1024]);
        }
        assert_eq!(contents.len() as u64, (behind + 1) * 1024);
    }
}
