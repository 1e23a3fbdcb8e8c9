//! Buckets for reading (formats 1.3).

use crate::cursor::Cursor;
use crate::node::Child;
use crate::page::u64_at;
use crate::source::{BucketId, ReadRoot, Source};
use crate::{Damage, Error, MAX_NESTING, PageId};

/// Bytes of the header in front of a bucket's value.
pub(crate) const BUCKET_HEADER: usize = 16;

/// A bucket's value: root page and sequence, or the page itself.
#[derive(Clone, Copy)]
pub(crate) struct BucketHeader<'a> {
    /// Zero if the bucket is inline.
    pub(crate) root: PageId,
    pub(crate) sequence: u64,
    pub(crate) inline: Option<&'a [u8]>,
}

impl<'a> BucketHeader<'a> {
    /// Decodes a bucket's value; `holder` is the page that holds it, for errors.
    pub(crate) fn read(value: &'a [u8], holder: PageId) -> Result<BucketHeader<'a>, Error> {
        if value.len() < BUCKET_HEADER {
            return Err(Error::corrupt(holder, Damage::BucketHeader));
        }
        let root = PageId(u64_at(value, 0));
        let inline = (root.0 == 0).then(|| &value[BUCKET_HEADER..]);
        Ok(BucketHeader {
            root,
            sequence: u64_at(value, 8),
            inline,
        })
    }

    /// The header's bytes.
    pub(crate) fn encode(root: PageId, sequence: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(BUCKET_HEADER);
        out.extend_from_slice(&root.0.to_le_bytes());
        out.extend_from_slice(&sequence.to_le_bytes());
        out
    }
}

/// A bucket, for reading. In a write transaction it shows the transaction's own changes.
#[derive(Clone, Copy)]
pub struct Bucket<'tx> {
    source: Source<'tx>,
    root: ReadRoot<'tx>,
    sequence: u64,
    /// Its place among the open buckets of a write transaction.
    open: Option<BucketId>,
    nesting: usize,
}

impl<'tx> Bucket<'tx> {
    /// The bucket of buckets at `root`, of a read transaction.
    pub(crate) fn top(source: Source<'tx>, root: PageId, sequence: u64) -> Bucket<'tx> {
        Bucket {
            source,
            root: ReadRoot::Tree(Child::Page(root)),
            sequence,
            open: None,
            nesting: 0,
        }
    }

    /// A bucket that a write transaction has open.
    pub(crate) fn of_open(source: Source<'tx>, id: BucketId) -> Bucket<'tx> {
        let open = source.open(id);
        Bucket {
            source,
            root: open.read_root(),
            sequence: open.sequence,
            open: Some(id),
            nesting: open.nesting,
        }
    }

    /// The value of `key`. `None` if there is none, or if it is a nested bucket.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn get(&self, key: &[u8]) -> Result<Option<&'tx [u8]>, Error> {
        let found = self.source.find(self.root, key)?;
        Ok(found
            .filter(|element| !element.bucket)
            .map(|element| element.value))
    }

    /// The nested bucket `name`. `None` if there is none, or if it is a value.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged; `TooDeep` where a damaged file has a bucket inside
    /// of itself, so that going into nested buckets ends.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket<'tx>>, Error> {
        if let Some(id) = self.open
            && let Some(child) = self.source.open(id).children.get(name)
        {
            return Ok(Some(Bucket::of_open(self.source, *child)));
        }
        let Some(element) = self
            .source
            .find(self.root, name)?
            .filter(|found| found.bucket)
        else {
            return Ok(None);
        };
        if self.nesting >= MAX_NESTING {
            // Most likely a bucket that is inside of itself.
            return Err(Error::TooDeep);
        }
        let header = BucketHeader::read(element.value, PageId(0))?;
        let root = match header.inline {
            Some(page) => ReadRoot::Inline(page),
            None => ReadRoot::Tree(Child::Page(header.root)),
        };
        Ok(Some(Bucket {
            source: self.source,
            root,
            sequence: header.sequence,
            open: None,
            nesting: self.nesting + 1,
        }))
    }

    /// A cursor over keys and nested buckets, not yet positioned.
    #[must_use]
    pub fn cursor(&self) -> Cursor<'tx> {
        Cursor::new(self.source, self.root)
    }

    /// The number kept with the bucket; see [`crate::BucketMut::next_sequence`].
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}
