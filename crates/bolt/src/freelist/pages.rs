//! A set of page numbers, a bit each.

use crate::PageId;

/// Page numbers, a bit each. It grows with the highest number put into it.
#[derive(Debug, Default)]
pub(crate) struct PageSet {
    bits: Vec<u64>,
}

/// The word and the bit of a page.
fn place(id: PageId) -> (usize, u64) {
    // Pages are within a file that is mapped, so their numbers fit.
    let word = usize::try_from(id.0 / 64).expect("the page of a mapped file");
    (word, 1 << (id.0 % 64))
}

impl PageSet {
    /// Room for all pages below `bound`.
    pub(crate) fn new(bound: PageId) -> PageSet {
        let words = usize::try_from(bound.0.div_ceil(64)).expect("the mark is within the file");
        PageSet {
            bits: vec![0; words],
        }
    }

    /// Whether it was absent.
    pub(crate) fn insert(&mut self, id: PageId) -> bool {
        let (word, bit) = place(id);
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        let absent = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        absent
    }

    pub(crate) fn remove(&mut self, id: PageId) {
        let (word, bit) = place(id);
        if let Some(word) = self.bits.get_mut(word) {
            *word &= !bit;
        }
    }

    pub(crate) fn contains(&self, id: PageId) -> bool {
        let (word, bit) = place(id);
        self.bits.get(word).is_some_and(|word| word & bit != 0)
    }
}
