//! A read transaction: everything as of one commit.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::bucket::Bucket;
use crate::cursor::Cursor;
use crate::db::Shared;
use crate::freelist::read_page;
use crate::freelist::walk::free_pages;
use crate::meta::Meta;
use crate::page::Pages;
use crate::source::Source;
use crate::storage::View;
use crate::surgery::kind;
use crate::{Error, PageId, TxId};

/// Bytes that [`ReadTx::write_to`] reads at once.
const IMAGE_CHUNK: usize = 1 << 20;

/// A read transaction: everything as of the last commit before it began, whatever is committed
/// later. It owns what it needs and can be shared between threads. Pages that it can reach are
/// not reused before it is dropped, so one that is kept for long makes the file grow.
pub struct ReadTx {
    pub(crate) shared: Arc<Shared>,
    pub(crate) view: Arc<dyn View>,
    pub(crate) meta: Meta,
}

/// What a page's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageInfo {
    /// `meta`, `branch`, `leaf`, `freelist`, or what else is there.
    pub kind: String,
    /// Elements on it.
    pub count: u16,
    /// Pages behind it that belong to it.
    pub overflow: u32,
}

impl Drop for ReadTx {
    fn drop(&mut self) {
        self.shared.end_read(self.meta.tx_id);
    }
}

impl ReadTx {
    /// The number of the commit that it reads.
    #[must_use]
    pub fn tx_id(&self) -> TxId {
        self.meta.tx_id
    }

    /// Bytes up to the last page in use: the length of the image.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.meta.size()
    }

    pub(crate) fn pages(&self) -> Pages<'_> {
        Pages {
            view: &*self.view,
            page_size: self.meta.page_size,
            high_water: self.meta.high_water,
        }
    }

    fn top(&self) -> Bucket<'_> {
        let source = Source {
            pages: self.pages(),
            changes: None,
        };
        Bucket::top(source, self.meta.root, self.meta.sequence)
    }

    /// The top-level bucket `name`.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket<'_>>, Error> {
        self.top().bucket(name)
    }

    /// The bucket at `path`, outermost name first. An empty path is the bucket of the top-level
    /// buckets.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn bucket_path(&self, path: &[&[u8]]) -> Result<Option<Bucket<'_>>, Error> {
        self.top().path(path)
    }

    /// A cursor over the names of the top-level buckets.
    #[must_use]
    pub fn cursor(&self) -> Cursor<'_> {
        self.top().cursor()
    }

    /// Type, number of elements and of overflow pages of page `id`, as its header says; `None` at
    /// and past the high-water mark. What it says means nothing if the page is free.
    ///
    /// # Errors
    /// `Corrupt` if the file ends before it.
    pub fn page(&self, id: PageId) -> Result<Option<PageInfo>, Error> {
        if id >= self.meta.high_water {
            return Ok(None);
        }
        let header = self.pages().header(id)?;
        Ok(Some(PageInfo {
            kind: kind(header.flags),
            count: header.count,
            overflow: header.overflow,
        }))
    }

    /// All free pages, ascending, as the file lists them or, if it does not, as a walk through all
    /// trees finds them.
    ///
    /// # Errors
    /// `Corrupt` if the list, or without one a tree, is damaged.
    pub fn free_pages(&self) -> Result<Vec<PageId>, Error> {
        if self.meta.has_freelist() {
            return read_page(self.pages(), self.meta.freelist);
        }
        let found = free_pages(self.pages(), self.meta.root, &AtomicBool::new(false))?;
        Ok(found.unwrap_or_default())
    }

    /// Writes an image of the database as of this transaction, itself a database file, and gives
    /// its length (formats 1.15).
    ///
    /// # Errors
    /// `Io` if the file cannot be read or `out` refuses.
    pub fn write_to(&self, out: &mut dyn Write) -> Result<u64, Error> {
        let mut buf = vec![0; IMAGE_CHUNK];
        let mut offset = 0;
        loop {
            let n = self.image_chunk(offset, &mut buf)?;
            if n == 0 {
                return Ok(offset);
            }
            out.write_all(&buf[..n])
                .map_err(Error::io("write of the image"))?;
            offset += n as u64;
        }
    }

    /// Copies a part of the image that begins at `offset` into `buf` and gives its length: short
    /// of `buf` only at the end, and 0 behind it. Bytes of free pages may differ between calls.
    ///
    /// # Errors
    /// `Io` if the file cannot be read.
    pub fn image_chunk(&self, offset: u64, buf: &mut [u8]) -> Result<usize, Error> {
        let left = usize::try_from(self.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let n = buf.len().min(left);
        let buf = &mut buf[..n];
        let metas = 2 * u64::from(self.meta.page_size);
        let mut done = 0;
        if offset < metas {
            let head = self.metas();
            let at = usize::try_from(offset).expect("below two pages");
            done = n.min(head.len() - at);
            buf[..done].copy_from_slice(&head[at..at + done]);
        }
        if done < n {
            let storage = &self.shared.storage;
            let failed = || Error::io(format!("{}: read", storage.name()));
            let read = storage
                .read_at(offset + done as u64, &mut buf[done..])
                .map_err(failed())?;
            if read < n - done {
                return Err(failed()(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(n)
    }

    /// Both meta pages of the image: the same tree, the second with the number before.
    fn metas(&self) -> Vec<u8> {
        let mut head = self.meta.to_page(PageId(0));
        let mut second = self.meta;
        second.tx_id = TxId(self.meta.tx_id.0.wrapping_sub(1));
        head.extend_from_slice(&second.to_page(PageId(1)));
        head
    }
}
