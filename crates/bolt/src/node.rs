//! A page that a transaction changed: decoded, in memory until the commit (formats 1.5).

use bytes::Bytes;

use crate::arena::NodeId;
use crate::key::{Key, first_word};
use crate::page::{
    ELEMENT, ELEMENT_BUCKET, FLAG_BRANCH, FLAG_LEAF, LeafElement, MAX_ELEMENTS, PAGE_HEADER, Page,
    Writer,
};
use crate::{Damage, Error, PageId};

/// Fewest elements on each side of a split.
const MIN_SPLIT: usize = 2;

/// What a branch refers to: a page of the file, or a node of the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Child {
    Page(PageId),
    Node(NodeId),
}

/// What stands behind a key.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Value(Bytes),
    /// A bucket's header, with the inline page if there is one.
    Bucket(Bytes),
    Child(Child),
}

#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) key: Key,
    pub(crate) body: Body,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// The page it was decoded from, with its overflow: to be freed.
    pub(crate) page: Option<(PageId, u32)>,
    pub(crate) leaf: bool,
    /// Something was removed: it may have become too small.
    pub(crate) unbalanced: bool,
    pub(crate) items: Vec<Item>,
}

impl Item {
    /// Bytes in the file: element header, key, value.
    pub(crate) fn size(&self) -> usize {
        let value = match &self.body {
            Body::Value(value) | Body::Bucket(value) => value.len(),
            Body::Child(_) => 0,
        };
        ELEMENT + self.key.len() + value
    }

    pub(crate) fn child(&self) -> Child {
        match self.body {
            Body::Child(child) => child,
            Body::Value(_) | Body::Bucket(_) => unreachable!("a branch holds children"),
        }
    }
}

impl Node {
    pub(crate) fn empty_leaf() -> Node {
        Node {
            page: None,
            leaf: true,
            unbalanced: false,
            items: Vec::new(),
        }
    }

    /// Decodes a page. `bytes` are the page's own; keys and values share them.
    pub(crate) fn read(page: Page<'_>, bytes: &Bytes) -> Result<Node, Error> {
        assert_eq!(
            bytes.len(),
            page.bytes().len(),
            "the bytes of the page that is decoded"
        );
        let mut items = Vec::with_capacity(page.count() + 1);
        for index in 0..page.count() {
            items.push(if page.leaf {
                let (flags, start, key, value) = page.leaf_span(index)?;
                let body = bytes.slice(start + key..start + key + value);
                let bucket = flags & ELEMENT_BUCKET != 0;
                let body = if bucket {
                    Body::Bucket(body)
                } else {
                    Body::Value(body)
                };
                Item {
                    key: bytes.slice(start..start + key).into(),
                    body,
                }
            } else {
                let (start, key, child) = page.branch_span(index)?;
                let key = bytes.slice(start..start + key).into();
                Item {
                    key,
                    body: Body::Child(Child::Page(child)),
                }
            });
        }
        let from = (page.id.0 != 0).then_some((page.id, page.overflow));
        let node = Node {
            page: from,
            leaf: page.leaf,
            unbalanced: false,
            items,
        };
        if node.size() > bytes.len() {
            // Written out, elements that share bytes could take any amount of memory.
            return Err(Error::corrupt(page.id, Damage::Overlap));
        }
        Ok(node)
    }

    /// Bytes that it takes in the file.
    pub(crate) fn size(&self) -> usize {
        PAGE_HEADER + self.items.iter().map(Item::size).sum::<usize>()
    }

    /// The place of `key`: `Ok` if it is there, `Err` with the first greater key's place if not.
    pub(crate) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        // Keys mostly come in ascending order.
        let word = first_word(key);
        if let Some(last) = self.items.last()
            && last.key.order(word, key).is_lt()
        {
            return Err(self.items.len());
        }
        self.items
            .binary_search_by(|item| item.key.order(word, key))
    }

    /// The child of a branch in which `key` belongs.
    pub(crate) fn child_for(&self, key: &[u8]) -> usize {
        match self.search(key) {
            Ok(index) => index,
            Err(after) => after.saturating_sub(1),
        }
    }

    pub(crate) fn leaf_element(&self, index: usize) -> LeafElement<'_> {
        let item = &self.items[index];
        match &item.body {
            Body::Value(value) => LeafElement {
                bucket: false,
                key: &item.key,
                value,
            },
            Body::Bucket(value) => LeafElement {
                bucket: true,
                key: &item.key,
                value,
            },
            Body::Child(_) => unreachable!("a leaf holds values"),
        }
    }

    /// Where it is cut into pages: the end of each part (formats 1.5).
    pub(crate) fn split(&self, page_size: usize, fill: f64) -> Vec<usize> {
        let count = self.items.len();
        // Truncation is the format's rule; the product is far below 2^53.
        let threshold = (page_size as f64 * fill.clamp(0.1, 1.0)) as usize;
        let mut rest = self.size() - PAGE_HEADER;
        let mut ends = Vec::new();
        let mut start = 0;
        loop {
            let left = count - start;
            let fits = left <= 2 * MIN_SPLIT || rest + PAGE_HEADER < page_size;
            if fits && left <= MAX_ELEMENTS {
                ends.push(count);
                return ends;
            }
            let mut size = PAGE_HEADER;
            let mut end = start;
            while end < count - MIN_SPLIT {
                let item = self.items[end].size();
                let taken = end - start;
                if (taken >= MIN_SPLIT && size + item > threshold) || taken == MAX_ELEMENTS {
                    break;
                }
                size += item;
                end += 1;
            }
            rest -= size - PAGE_HEADER;
            ends.push(end);
            start = end;
        }
    }
}

/// Encodes `items` as the page `id` of `pages` pages, behind what is in `out`.
pub(crate) fn to_page(
    out: Vec<u8>,
    items: &[Item],
    leaf: bool,
    id: PageId,
    pages: u64,
    page_size: u32,
) -> Vec<u8> {
    let len = usize::try_from(pages * u64::from(page_size)).expect("it fits memory");
    let overflow = u32::try_from(pages - 1).expect("a node is far below 2^32 pages");
    encode(out, items, leaf, id, overflow, len)
}

/// The page inside an inline bucket: as long as its contents.
pub(crate) fn to_inline(items: &[Item]) -> Vec<u8> {
    let len = PAGE_HEADER + items.iter().map(Item::size).sum::<usize>();
    encode(Vec::new(), items, true, PageId(0), 0, len)
}

fn encode(
    out: Vec<u8>,
    items: &[Item],
    leaf: bool,
    id: PageId,
    overflow: u32,
    len: usize,
) -> Vec<u8> {
    assert!(
        items.len() <= MAX_ELEMENTS,
        "split keeps nodes below the format's count"
    );
    let flags = if leaf { FLAG_LEAF } else { FLAG_BRANCH };
    let count = u16::try_from(items.len()).expect("asserted above");
    let mut out = Writer::behind(out, len, id, flags, count, overflow);
    let mut data = ELEMENT * items.len();
    for item in items {
        // Distances count from the element's own header. Lengths are below 2^31 each, checked
        // when they were put; a node of more than 4 GiB would need several such values.
        let pos = u32::try_from(data).expect("a node is below 4 GiB");
        let key = u32::try_from(item.key.len()).expect("checked at put");
        match &item.body {
            Body::Child(Child::Page(child)) => {
                out.u32(pos);
                out.u32(key);
                out.u64(child.0);
            }
            Body::Child(Child::Node(_)) => unreachable!("children are written before parents"),
            Body::Value(value) | Body::Bucket(value) => {
                let bucket = matches!(item.body, Body::Bucket(_));
                out.u32(if bucket { ELEMENT_BUCKET } else { 0 });
                out.u32(pos);
                out.u32(key);
                out.u32(u32::try_from(value.len()).expect("checked at put"));
            }
        }
        data = data + item.size() - 2 * ELEMENT;
    }
    for item in items {
        out.bytes(&item.key);
        if let Body::Value(value) | Body::Bucket(value) = &item.body {
            out.bytes(value);
        }
    }
    out.finish(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(sizes: &[usize]) -> Node {
        let mut node = Node::empty_leaf();
        for (i, size) in sizes.iter().enumerate() {
            let key = Bytes::from(format!("{i:04}")).into();
            let value = Bytes::from(vec![0; size - ELEMENT - 4]);
            node.items.push(Item {
                key,
                body: Body::Value(value),
            });
        }
        node
    }

    #[test]
    fn small_nodes_and_nodes_of_few_elements_stay_whole() {
        assert_eq!(leaf(&[100; 40]).split(4096, 0.5), [40]);
        assert_eq!(leaf(&[3000; 4]).split(4096, 0.5), [4]);
    }

    #[test]
    fn a_split_fills_up_to_the_threshold_and_leaves_two_elements() {
        // 16 + 20 * 100 is under 2048, one more is above.
        assert_eq!(leaf(&[100; 60]).split(4096, 0.5), [20, 60]);
        assert_eq!(leaf(&[3000; 5]).split(4096, 0.5), [2, 5]);
        assert_eq!(leaf(&[100; 100]).split(4096, 1.0), [40, 80, 100]);
    }

    #[test]
    fn a_node_of_exactly_a_page_is_split() {
        // 16 + 40 * 102 = 4096.
        assert_eq!(leaf(&[102; 40]).split(4096, 1.0), [38, 40]);
    }

    #[test]
    fn a_page_reads_back() {
        let node = leaf(&[40, 50, 60]);
        let bytes = Bytes::from(to_inline(&node.items));
        let read = Node::read(Page::inline(&bytes, PageId(9)).unwrap(), &bytes).unwrap();
        assert_eq!(read.items.len(), 3);
        for (a, b) in node.items.iter().zip(&read.items) {
            assert_eq!((&a.key, a.size()), (&b.key, b.size()));
        }
    }
}
