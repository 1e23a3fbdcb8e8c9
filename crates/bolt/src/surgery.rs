//! Changing single pages of a file that is not open: bbolt's surgery (formats 1.19).
//!
//! Nothing here looks at more than the pages it is asked for, and a file can be made worse with
//! it: work on a copy. Page size and high-water mark are taken from the first meta page, whether
//! its checksum fits or not; everything else is checked before it is used.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::freelist::read_ids;
use crate::meta::{MAGIC, META_SIZE, NO_FREELIST, VERSION, checksum};
use crate::open::valid_page_size;
use crate::page::{
    ELEMENT, FLAG_BRANCH, FLAG_FREELIST, FLAG_LEAF, FLAG_META, Header, LeafElement, PAGE_HEADER,
    Page, u32_at, u64_at,
};
use crate::{Error, PageId, TxId};

/// Bytes of the first look at a file.
const PROBE: usize = 4096;

/// A file whose pages are looked at and changed one by one, without a transaction and without a
/// lock.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    page_size: u64,
    high_water: u64,
}

/// A page with its overflow pages, as it lies in the file.
#[derive(Clone, Debug)]
pub struct RawPage {
    header: Header,
    bytes: Vec<u8>,
}

/// One element of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawElement<'a> {
    /// A key with its value.
    Value {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// A bucket with the bytes of its header and, if it is inline, of its page.
    Bucket {
        /// Its name.
        key: &'a [u8],
        /// Its root page; zero if it is inline.
        root: PageId,
        /// Its sequence.
        sequence: u64,
        /// The stored bytes.
        value: &'a [u8],
    },
    /// A branch's reference to a page.
    Child {
        /// The least key below it.
        key: &'a [u8],
        /// The page.
        page: PageId,
    },
}

/// A meta page's fields, sound or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawMeta {
    /// 0xED0CDAED in a sound one.
    pub magic: u32,
    /// 2 in a sound one.
    pub version: u32,
    /// Bytes of a page.
    pub page_size: u32,
    /// 0, but 4 after [`RawMeta::mend`].
    pub flags: u32,
    /// The root page of the bucket of buckets.
    pub root: PageId,
    /// That bucket's sequence.
    pub sequence: u64,
    /// The page of the list of free pages; all ones if there is none.
    pub freelist: PageId,
    /// One past the highest page ever used.
    pub high_water: PageId,
    /// The number of the commit.
    pub tx_id: TxId,
    /// The stored checksum.
    pub checksum: u64,
}

fn refused<T>(reason: impl Into<String>) -> Result<T, Error> {
    Err(Error::Surgery(reason.into()))
}

impl RawFile {
    /// Opens the file `path`; for changes if `write`.
    ///
    /// # Errors
    /// `Io`; `Surgery` if the first meta page is not one; `PageSize` if it names none.
    pub fn open(path: &Path, write: bool) -> Result<RawFile, Error> {
        let failed = |what: &str| Error::io(format!("{what} {}", path.display()));
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            .open(path)
            .map_err(failed("open"))?;
        let len = file.metadata().map_err(failed("length of"))?.len();
        if len < PROBE as u64 {
            return refused(if len == 0 { "EOF" } else { "unexpected EOF" });
        }
        let mut head = [0; PROBE];
        file.read_exact_at(&mut head, 0).map_err(failed("read"))?;
        let meta = RawMeta::read(&head)?;
        if meta.magic != MAGIC {
            return refused("the Meta Page has wrong (unexpected) magic");
        }
        if !valid_page_size(meta.page_size) {
            return Err(Error::PageSize(meta.page_size));
        }
        Ok(RawFile {
            file,
            page_size: u64::from(meta.page_size),
            high_water: meta.high_water.0,
        })
    }

    /// Bytes of a page, as the first meta page says.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// One past the highest page ever used, as the first meta page says.
    #[must_use]
    pub fn high_water(&self) -> PageId {
        PageId(self.high_water)
    }

    fn read(&self, id: PageId, pages: u64) -> Result<Vec<u8>, Error> {
        let failed = |source| Error::io("read")(source);
        let file_len = self.file.metadata().map_err(failed)?.len();
        let place = (id.0.checked_mul(self.page_size)).zip(pages.checked_mul(self.page_size));
        let Some((offset, len)) = place else {
            return refused("EOF");
        };
        if offset.checked_add(len).is_none_or(|end| end > file_len) {
            return refused("EOF");
        }
        let Ok(len) = usize::try_from(len) else {
            return refused("EOF");
        };
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(failed)?;
        Ok(bytes)
    }

    /// The bytes of one page, without its overflow pages and whatever is in it.
    ///
    /// # Errors
    /// `Surgery` if the file ends before it; `Io`.
    pub fn page_bytes(&self, id: PageId) -> Result<Vec<u8>, Error> {
        self.read(id, 1)
    }

    /// A page with its overflow pages.
    ///
    /// # Errors
    /// `Surgery` if the file ends before it, if it names itself otherwise, or if it claims more
    /// overflow pages than the file can have; `Io`.
    pub fn page(&self, id: PageId) -> Result<RawPage, Error> {
        let bytes = self.read(id, 1)?;
        let header = Header::read(&bytes);
        if header.id != id {
            let text = "error: invalid value due to unexpected Page id";
            return refused(format!("{text}: {} != {id}", header.id));
        }
        let overflow = header.overflow;
        // The two meta pages and this one are not among them.
        if u64::from(overflow) >= self.high_water.saturating_sub(3) {
            return refused(format!(
                "error: invalid value, Page claims to have {overflow} overflow pages (>=hwm={}). Interrupting to avoid risky OOM",
                self.high_water
            ));
        }
        let bytes = match overflow {
            0 => bytes,
            overflow => self.read(id, u64::from(overflow) + 1)?,
        };
        Ok(RawPage { header, bytes })
    }

    fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        let header = Header::read(bytes);
        let len = (u64::from(header.overflow) + 1) * self.page_size;
        assert_eq!(
            bytes.len() as u64,
            len,
            "a page is written with its overflow pages"
        );
        let Some(offset) = header.id.0.checked_mul(self.page_size) else {
            return refused("page outside of any file");
        };
        self.file
            .write_all_at(bytes, offset)
            .and_then(|()| self.file.sync_all())
            .map_err(Error::io("write"))
    }

    /// Copies a page, with its overflow pages, to the place of another.
    ///
    /// # Errors
    /// As [`RawFile::page`].
    pub fn copy_page(&self, from: PageId, to: PageId) -> Result<(), Error> {
        let mut page = self.page(from)?;
        page.bytes[..8].copy_from_slice(&to.0.to_le_bytes());
        self.write(&page.bytes)
    }

    /// Overwrites the meta page of the last commit with the other one: the commit is undone.
    ///
    /// # Errors
    /// As [`RawFile::page`].
    pub fn revert_meta_page(&self) -> Result<(), Error> {
        let first = self.page(PageId(0))?.meta()?;
        let second = self.page(PageId(1))?.meta()?;
        if first.tx_id < second.tx_id {
            self.copy_page(PageId(0), PageId(1))
        } else {
            self.copy_page(PageId(1), PageId(0))
        }
    }

    /// Removes the elements from `from` up to `to`, or to the end if that is -1, of a branch or
    /// leaf page. Whether pages may now be neither used nor free, so that the list of free pages
    /// should be made anew.
    ///
    /// # Errors
    /// `Surgery` if the page is of another type or has no such elements; as [`RawFile::page`].
    pub fn clear_elements(&self, id: PageId, from: i64, to: i64) -> Result<bool, Error> {
        let page = match self.page(id) {
            Ok(page) => page,
            Err(Error::Surgery(reason)) => return refused(format!("ReadPage failed: {reason}")),
            Err(error) => return Err(error),
        };
        if page.header.flags != FLAG_LEAF && page.header.flags != FLAG_BRANCH {
            return refused(format!("can't clear elements in {:?} page", page.kind()));
        }
        let count = i64::from(page.header.count);
        if count == 0 {
            return Ok(false);
        }
        if !(0..count).contains(&from) {
            return refused(format!(
                "the start index ({from}) is out of range [0, {count})"
            ));
        }
        if (to < 0 || to > count) && to != -1 {
            return refused(format!("the end index ({to}) is out of range [0, {count}]"));
        }
        if from > to && to != -1 {
            return refused(format!(
                "the start index ({from}) is bigger than the end index ({to})"
            ));
        }
        if from == to {
            return refused(format!(
                "invalid: the start index ({from}) is equal to the end index ({to})"
            ));
        }
        let to = if to == -1 { count } else { to };
        let index = |at: i64| usize::try_from(at).expect("checked to be in range");
        let bytes = page.without(index(from), index(to), self.page_size)?;
        let before = page.header.overflow;
        let after = Header::read(&bytes).overflow;
        self.write(&bytes)?;
        Ok(before != after || page.header.flags == FLAG_BRANCH)
    }

    /// Takes the list of free pages out of both meta pages; the next open finds the free pages by
    /// reading all trees.
    ///
    /// # Errors
    /// As [`RawFile::page`].
    pub fn abandon_freelist(&self) -> Result<(), Error> {
        for id in [PageId(0), PageId(1)] {
            let mut page = self.page(id)?;
            let mut meta = page.meta()?;
            meta.freelist = NO_FREELIST;
            meta.checksum = meta.sum();
            page.bytes[PAGE_HEADER..PAGE_HEADER + META_SIZE].copy_from_slice(&meta.encode());
            self.write(&page.bytes)?;
        }
        Ok(())
    }
}

/// Bytes of a meta page that are looked at where the page size is not known.
const META_PROBE: usize = 1024;

impl RawMeta {
    /// Decodes the meta behind the header of a page.
    fn read(page: &[u8]) -> Result<RawMeta, Error> {
        let Some(bytes) = page.get(PAGE_HEADER..PAGE_HEADER + META_SIZE) else {
            return refused("EOF");
        };
        Ok(RawMeta {
            magic: u32_at(bytes, 0),
            version: u32_at(bytes, 4),
            page_size: u32_at(bytes, 8),
            flags: u32_at(bytes, 12),
            root: PageId(u64_at(bytes, 16)),
            sequence: u64_at(bytes, 24),
            freelist: PageId(u64_at(bytes, 32)),
            high_water: PageId(u64_at(bytes, 40)),
            tx_id: TxId(u64_at(bytes, 48)),
            checksum: u64_at(bytes, 56),
        })
    }

    fn encode(&self) -> [u8; META_SIZE] {
        let mut out = [0; META_SIZE];
        let words = [self.magic, self.version, self.page_size, self.flags];
        for (at, word) in words.iter().enumerate() {
            out[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let longs = [
            self.root.0,
            self.sequence,
            self.freelist.0,
            self.high_water.0,
            self.tx_id.0,
            self.checksum,
        ];
        for (at, long) in longs.iter().enumerate() {
            out[16 + 8 * at..24 + 8 * at].copy_from_slice(&long.to_le_bytes());
        }
        out
    }

    /// The checksum that its fields have.
    fn sum(&self) -> u64 {
        checksum(&self.encode()[..META_SIZE - 8])
    }

    /// Reads the meta at `offset` of the file `path`, whatever is there.
    ///
    /// # Errors
    /// `Io`; `Surgery` if the file is too short.
    pub fn read_at(path: &Path, offset: u64) -> Result<RawMeta, Error> {
        let failed = |source| Error::io(format!("read {}", path.display()))(source);
        let mut bytes = [0; META_PROBE];
        match File::open(path)
            .map_err(failed)?
            .read_exact_at(&mut bytes, offset)
        {
            Ok(()) => RawMeta::read(&bytes),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => refused("EOF"),
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes it, with the page header left as it is, at `offset` of the file `path`.
    ///
    /// # Errors
    /// `Io`.
    pub fn write_at(&self, path: &Path, offset: u64) -> Result<(), Error> {
        let failed = |source| Error::io(format!("write {}", path.display()))(source);
        let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
        file.write_all_at(&self.encode(), offset + PAGE_HEADER as u64)
            .and_then(|()| file.sync_all())
            .map_err(failed)
    }

    /// What is wrong with it.
    ///
    /// # Errors
    /// `InvalidDatabase`, `VersionMismatch`, `Checksum`.
    pub fn validate(&self) -> Result<(), Error> {
        if self.magic != MAGIC {
            return Err(Error::InvalidDatabase);
        }
        if self.version != VERSION {
            return Err(Error::VersionMismatch);
        }
        if self.checksum != self.sum() {
            return Err(Error::Checksum);
        }
        Ok(())
    }

    /// Whether it names a list of free pages.
    #[must_use]
    pub fn has_freelist(&self) -> bool {
        self.freelist != NO_FREELIST
    }

    /// Makes magic, version, flags and checksum those of a sound one. Whether that changed
    /// anything.
    pub fn mend(&mut self) -> bool {
        let before = *self;
        self.magic = MAGIC;
        self.version = VERSION;
        self.flags = u32::from(FLAG_META);
        self.checksum = self.sum();
        before != *self
    }
}

impl RawPage {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> PageId {
        self.header.id
    }

    /// Elements on it; a long list of free pages has its count elsewhere.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.header.count
    }

    /// Pages behind it that belong to it.
    #[must_use]
    pub fn overflow(&self) -> u32 {
        self.header.overflow
    }

    /// All bytes, those of its overflow pages too.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The name of its type.
    #[must_use]
    pub fn kind(&self) -> String {
        kind(self.header.flags)
    }

    /// The fields of a meta page.
    ///
    /// # Errors
    /// `Surgery` if it is too short for that.
    pub fn meta(&self) -> Result<RawMeta, Error> {
        RawMeta::read(&self.bytes)
    }

    /// The page numbers in a list of free pages.
    ///
    /// # Errors
    /// `Corrupt` if it is none or is shorter than it says.
    pub fn free_pages(&self) -> Result<Vec<PageId>, Error> {
        read_ids(self.header, &self.bytes)
    }

    /// Element `index` of a leaf or branch.
    ///
    /// # Errors
    /// `Corrupt` if the page is of another type, has no such element, or that lies outside of it.
    pub fn element(&self, index: usize) -> Result<RawElement<'_>, Error> {
        let page = Page::tree(self.header.id, self.header, &self.bytes)?;
        if index >= page.count() {
            return Err(Error::corrupt(page.id, crate::Damage::Element { index }));
        }
        if !page.leaf {
            let page_of = page.child(index)?;
            return Ok(RawElement::Child {
                key: page.key(index)?,
                page: page_of,
            });
        }
        let LeafElement { bucket, key, value } = page.leaf_element(index)?;
        if !bucket {
            return Ok(RawElement::Value { key, value });
        }
        let header = crate::bucket::BucketHeader::read(value, page.id)?;
        Ok(RawElement::Bucket {
            key,
            root: header.root,
            sequence: header.sequence,
            value,
        })
    }

    /// Its bytes without the elements from `from` up to `to`. What is left stands closer together;
    /// the rest of the page keeps its bytes, as bbolt does it.
    fn without(&self, from: usize, to: usize, page_size: u64) -> Result<Vec<u8>, Error> {
        let page = Page::tree(self.header.id, self.header, &self.bytes)?;
        let spans = (0..page.count()).filter(|index| !(from..to).contains(index));
        let kept: Vec<(usize, usize, usize)> = spans
            .map(|index| {
                let (start, len) = if page.leaf {
                    let (_, start, key, value) = page.leaf_span(index)?;
                    (start, key + value)
                } else {
                    let (start, key, _) = page.branch_span(index)?;
                    (start, key)
                };
                Ok((index, start, len))
            })
            .collect::<Result<_, Error>>()?;
        let mut out = self.bytes.clone();
        let mut data = PAGE_HEADER + ELEMENT * kept.len();
        let used = data + kept.iter().map(|(_, _, len)| len).sum::<usize>();
        if used > out.len() {
            return Err(Error::corrupt(page.id, crate::Damage::Overlap));
        }
        // Behind a removed end nothing moves, but for the count.
        if to < page.count() {
            for (place, (index, start, len)) in kept.iter().enumerate() {
                let at = PAGE_HEADER + ELEMENT * place;
                let from = PAGE_HEADER + ELEMENT * index;
                out[at..at + ELEMENT].copy_from_slice(&self.bytes[from..from + ELEMENT]);
                let pos = u32::try_from(data - at).expect("inside of a page below 4 GiB");
                let field = if page.leaf { at + 4 } else { at };
                out[field..field + 4].copy_from_slice(&pos.to_le_bytes());
                out[data..data + len].copy_from_slice(&self.bytes[*start..start + len]);
                data += len;
            }
        }
        let count = u16::try_from(kept.len()).expect("not more than before");
        out[10..12].copy_from_slice(&count.to_le_bytes());
        let pages = (used as u64).div_ceil(page_size);
        let overflow = u32::try_from(pages - 1).expect("not more than before");
        out[12..16].copy_from_slice(&overflow.to_le_bytes());
        out.truncate(usize::try_from(pages * page_size).expect("not more than before"));
        Ok(out)
    }
}

/// The name of a page's type.
pub(crate) fn kind(flags: u16) -> String {
    match flags {
        FLAG_BRANCH => "branch".to_owned(),
        FLAG_LEAF => "leaf".to_owned(),
        FLAG_META => "meta".to_owned(),
        FLAG_FREELIST => "freelist".to_owned(),
        flags => format!("unknown<{flags:02x}>"),
    }
}
