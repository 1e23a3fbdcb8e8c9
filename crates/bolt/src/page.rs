//! Pages as they lie in the file: layouts, and the checks before anything is used (formats 1.1,
//! 1.2). Nothing here trusts a byte: a length, an offset or a count outside of the page is
//! [`Error::Corrupt`].

use std::cmp::Ordering;

use crate::key::first_word;
use crate::storage::View;
use crate::{Damage, Error, MAX_DEPTH, PageId};

/// Bytes of a page's header.
pub(crate) const PAGE_HEADER: usize = 16;
/// Bytes of an element's header, in branches and in leaves.
pub(crate) const ELEMENT: usize = 16;
/// Most elements of a page: the count is 16 bits wide and all ones is kept for freelists.
pub(crate) const MAX_ELEMENTS: usize = 0xFFFE;
pub(crate) const FLAG_BRANCH: u16 = 0x01;
pub(crate) const FLAG_LEAF: u16 = 0x02;
pub(crate) const FLAG_META: u16 = 0x04;
pub(crate) const FLAG_FREELIST: u16 = 0x10;
/// Flag of a leaf element whose value is a bucket.
pub(crate) const ELEMENT_BUCKET: u32 = 0x01;

/// What is asked for of a page that is to be searched: its header and those of 27 elements, a
/// branch's with keys of a hundred bytes. Else the page's is waited for, and then each of them.
const SEARCHED: usize = PAGE_HEADER + 27 * ELEMENT;

/// Reads a little-endian u16; the caller has checked the bounds.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a little-endian u32; the caller has checked the bounds.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of four bytes"))
}

/// Reads a little-endian u64; the caller has checked the bounds.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(
        bytes[at..at + 8]
            .try_into()
            .expect("a slice of eight bytes"),
    )
}

/// The pages of one transaction: its view of the file, cut at its high-water mark.
#[derive(Clone, Copy)]
pub(crate) struct Pages<'tx> {
    pub(crate) view: &'tx dyn View,
    pub(crate) page_size: u32,
    pub(crate) high_water: PageId,
}

/// The header of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) id: PageId,
    pub(crate) flags: u16,
    pub(crate) count: u16,
    pub(crate) overflow: u32,
}

impl Header {
    /// Decodes it; the caller has checked that there are sixteen bytes.
    #[inline]
    pub(crate) fn read(bytes: &[u8]) -> Header {
        Header {
            id: PageId(u64_at(bytes, 0)),
            flags: u16_at(bytes, 8),
            count: u16_at(bytes, 10),
            overflow: u32_at(bytes, 12),
        }
    }
}

impl<'tx> Pages<'tx> {
    /// The header of page `id`, without any judgement of it.
    #[inline]
    pub(crate) fn header(&self, id: PageId) -> Result<Header, Error> {
        let offset = id.0.checked_mul(u64::from(self.page_size));
        let header = offset
            .filter(|_| id < self.high_water)
            .and_then(|offset| self.view.slice(offset, PAGE_HEADER));
        Ok(Header::read(header.ok_or_else(|| self.out(id))?))
    }

    /// Header and bytes of page `id` with its overflow pages, whatever its type. Its number and
    /// its bounds are checked.
    #[inline]
    pub(crate) fn raw(&self, id: PageId) -> Result<(Header, &'tx [u8]), Error> {
        if id.0 < 2 {
            return Err(self.out(id));
        }
        let header = self.header(id)?;
        if header.id != id {
            return Err(Error::corrupt(
                id,
                Damage::WrongId {
                    expected: id,
                    found: header.id,
                },
            ));
        }
        let pages = u64::from(header.overflow) + 1;
        if pages > self.high_water.0 - id.0 {
            return Err(self.out(id));
        }
        let page_size = u64::from(self.page_size);
        let len = pages.checked_mul(page_size);
        let bytes = len
            .and_then(|len| usize::try_from(len).ok())
            // `header` has shown that the product fits.
            .and_then(|len| self.view.slice(id.0 * page_size, len));
        Ok((header, bytes.ok_or_else(|| self.out(id))?))
    }

    /// The error of a page that does not lie below the high-water mark.
    #[cold]
    fn out(&self, id: PageId) -> Error {
        let high_water = self.high_water;
        Error::corrupt(id, Damage::OutOfBounds { high_water })
    }

    /// Tells that the first `len` bytes of page `id` are read soon. The number need not be sound.
    pub(crate) fn will_read(&self, id: PageId, len: usize) {
        if let Some(offset) = id.0.checked_mul(u64::from(self.page_size)) {
            self.view.will_read(offset, len);
        }
    }

    /// A branch or leaf page of the tree.
    #[inline]
    pub(crate) fn tree(&self, id: PageId) -> Result<Page<'tx>, Error> {
        let (header, bytes) = self.raw(id)?;
        Page::tree(id, header, bytes)
    }

    /// The element with exactly this key in the tree below `page`, which is one of pages alone.
    pub(crate) fn find(
        &self,
        mut page: Page<'tx>,
        key: &[u8],
    ) -> Result<Option<LeafElement<'tx>>, Error> {
        for _ in 0..MAX_DEPTH {
            let place = page.search(key)?;
            if page.leaf {
                return place.ok().map(|index| page.leaf_element(index)).transpose();
            }
            let index = place.unwrap_or_else(|after| after.saturating_sub(1));
            let child = page.child(index)?;
            self.will_read(child, SEARCHED);
            page = self.tree(child)?;
        }
        Err(Error::corrupt(page.id, Damage::Loop))
    }
}

/// A branch or leaf page whose element array lies inside of it.
#[derive(Clone, Copy)]
pub(crate) struct Page<'a> {
    /// Zero for the page inside an inline bucket.
    pub(crate) id: PageId,
    pub(crate) leaf: bool,
    pub(crate) overflow: u32,
    /// Elements; their headers lie inside of the page.
    count: u16,
    bytes: &'a [u8],
}

/// One element of a leaf.
#[derive(Clone, Copy)]
pub(crate) struct LeafElement<'a> {
    pub(crate) bucket: bool,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

impl<'a> Page<'a> {
    /// Of these bytes; the array of its elements is checked.
    #[inline]
    pub(crate) fn tree(id: PageId, header: Header, bytes: &'a [u8]) -> Result<Page<'a>, Error> {
        let leaf = match header.flags {
            FLAG_LEAF => true,
            FLAG_BRANCH => false,
            flags => return Err(Error::corrupt(id, Damage::WrongType { flags })),
        };
        let count = header.count;
        if PAGE_HEADER + ELEMENT * usize::from(count) > bytes.len() {
            return Err(Error::corrupt(
                id,
                Damage::Count {
                    count: u64::from(count),
                },
            ));
        }
        if !leaf && count == 0 {
            return Err(Error::corrupt(id, Damage::EmptyBranch));
        }
        Ok(Page {
            id,
            leaf,
            overflow: header.overflow,
            count,
            bytes,
        })
    }

    /// The leaf page inside an inline bucket's value. `holder` is only named in errors.
    pub(crate) fn inline(bytes: &'a [u8], holder: PageId) -> Result<Page<'a>, Error> {
        if bytes.len() < PAGE_HEADER {
            return Err(Error::corrupt(holder, Damage::BucketHeader));
        }
        let header = Header::read(bytes);
        if header.flags != FLAG_LEAF {
            return Err(Error::corrupt(holder, Damage::BucketHeader));
        }
        let mut page = Page::tree(holder, header, bytes)?;
        page.id = PageId(0);
        page.overflow = 0;
        Ok(page)
    }

    pub(crate) fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// All bytes of the page and its overflow pages.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    #[cold]
    fn bad(&self, index: usize) -> Error {
        Error::corrupt(self.id, Damage::Element { index })
    }

    /// Where the header of element `index` stands, and its four words.
    #[inline]
    fn element(&self, index: usize) -> (usize, [u32; 4]) {
        assert!(index < self.count(), "an element of the page");
        let at = PAGE_HEADER + ELEMENT * index;
        let words = &self.bytes[at..at + ELEMENT];
        (at, [0, 4, 8, 12].map(|word| u32_at(words, word)))
    }

    /// Where key and value of leaf element `index` stand: flags, start, key and value length.
    #[inline]
    pub(crate) fn leaf_span(&self, index: usize) -> Result<(u32, usize, usize, usize), Error> {
        assert!(self.leaf, "an element of a leaf");
        let (at, [flags, start, key, value]) = self.element(index);
        let (start, key, value) = (at + start as usize, key as usize, value as usize);
        if key == 0 || start + key + value > self.bytes.len() {
            return Err(self.bad(index));
        }
        Ok((flags, start, key, value))
    }

    /// Where the key of branch element `index` stands: start, length, and its child.
    #[inline]
    pub(crate) fn branch_span(&self, index: usize) -> Result<(usize, usize, PageId), Error> {
        assert!(!self.leaf, "an element of a branch");
        let (at, [start, key, low, high]) = self.element(index);
        let (start, key) = (at + start as usize, key as usize);
        if key == 0 || start + key > self.bytes.len() {
            return Err(self.bad(index));
        }
        let child = u64::from(high) << 32 | u64::from(low);
        Ok((start, key, PageId(child)))
    }

    /// Leaf element `index`.
    #[inline]
    pub(crate) fn leaf_element(&self, index: usize) -> Result<LeafElement<'a>, Error> {
        assert!(self.leaf, "an element of a leaf");
        let (at, [flags, start, key, value]) = self.element(index);
        let parts = self.bytes.get(at + start as usize..).and_then(|data| {
            let (key, data) = data.split_at_checked(key as usize)?;
            Some((key, data.get(..value as usize)?))
        });
        match parts {
            Some((key, value)) if !key.is_empty() => Ok(LeafElement {
                bucket: flags & ELEMENT_BUCKET != 0,
                key,
                value,
            }),
            _ => Err(self.bad(index)),
        }
    }

    /// Bytes in use: up to the end of the last element.
    pub(crate) fn used(&self) -> Result<usize, Error> {
        let Some(last) = self.count().checked_sub(1) else {
            return Ok(PAGE_HEADER);
        };
        if self.leaf {
            let (_, start, key, value) = self.leaf_span(last)?;
            Ok(start + key + value)
        } else {
            let (start, key, _) = self.branch_span(last)?;
            Ok(start + key)
        }
    }

    pub(crate) fn child(&self, index: usize) -> Result<PageId, Error> {
        Ok(self.branch_span(index)?.2)
    }

    #[inline]
    pub(crate) fn key(&self, index: usize) -> Result<&'a [u8], Error> {
        let (at, words) = self.element(index);
        let [start, len] = if self.leaf {
            [words[1], words[2]]
        } else {
            [words[0], words[1]]
        };
        let start = at + start as usize;
        match self.bytes.get(start..start + len as usize) {
            Some(key) if !key.is_empty() => Ok(key),
            _ => Err(self.bad(index)),
        }
    }

    /// The place of `key`: `Ok` if it is there, `Err` with the first greater key's place if not.
    #[inline]
    pub(crate) fn search(&self, key: &[u8]) -> Result<Result<usize, usize>, Error> {
        // Most keys differ in their first bytes, and those are compared without a call.
        let word = first_word(key);
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = low + (high - low) / 2;
            let other = self.key(middle)?;
            match first_word(other).cmp(&word).then_with(|| other.cmp(key)) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(Ok(middle)),
            }
        }
        Ok(Err(low))
    }
}

/// Writes a page behind what is in a buffer: header first, then little-endian fields, then zeros up
/// to whole pages.
pub(crate) struct Writer {
    out: Vec<u8>,
    /// Where the page begins.
    start: usize,
}

impl Writer {
    /// Starts a page of `len` bytes in all.
    pub(crate) fn page(len: usize, id: PageId, flags: u16, count: u16, overflow: u32) -> Writer {
        Writer::behind(Vec::new(), len, id, flags, count, overflow)
    }

    /// Starts a page of `len` bytes in all behind what is in `out`.
    pub(crate) fn behind(
        mut out: Vec<u8>,
        len: usize,
        id: PageId,
        flags: u16,
        count: u16,
        overflow: u32,
    ) -> Writer {
        out.reserve(len);
        let start = out.len();
        let mut writer = Writer { out, start };
        writer.u64(id.0);
        writer.out.extend_from_slice(&flags.to_le_bytes());
        writer.out.extend_from_slice(&count.to_le_bytes());
        writer.u32(overflow);
        writer
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.out.extend_from_slice(value);
    }

    pub(crate) fn len(&self) -> usize {
        self.out.len()
    }

    pub(crate) fn since(&self, start: usize) -> &[u8] {
        &self.out[start..]
    }

    /// Fills the page up with zeros to `len` bytes.
    pub(crate) fn finish(mut self, len: usize) -> Vec<u8> {
        let end = self.start + len;
        assert!(
            self.out.len() <= end,
            "a page is written into the pages allocated for it"
        );
        self.out.resize(end, 0);
        self.out
    }
}
