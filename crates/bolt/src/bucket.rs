//! Buckets for reading (formats 1.3).

use std::ops::RangeBounds;

use crate::cursor::Cursor;
use crate::node::Child;
use crate::page::u64_at;
use crate::range::Range;
use crate::source::{BucketId, ReadRoot, Source};
use crate::stats::BucketStats;
use crate::{Damage, Error, MAX_DEPTH, MAX_NESTING, PageId};

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

    /// The bucket at `path` inside of this one, outermost name first; this one for an empty path.
    ///
    /// # Errors
    /// As [`Bucket::bucket`].
    pub fn path(&self, path: &[&[u8]]) -> Result<Option<Bucket<'tx>>, Error> {
        let mut at = *self;
        for name in path {
            let Some(inner) = at.bucket(name)? else {
                return Ok(None);
            };
            at = inner;
        }
        Ok(Some(at))
    }

    /// Keys and nested buckets, in order.
    #[must_use]
    pub fn iter(&self) -> Range<'tx> {
        self.range::<&[u8]>(..)
    }

    /// The entries whose keys lie in `bounds`, in order; from the other end with
    /// [`Iterator::rev`].
    ///
    /// ```
    /// # use keelson_bolt::{Db, Error, MemStorage, Options};
    /// # fn main() -> Result<(), Error> {
    /// # let db = Db::open_storage(Box::new(MemStorage::new()), Options::default())?;
    /// # let mut tx = db.begin_write()?;
    /// # let mut fruit = tx.create_bucket(b"fruit")?;
    /// for name in ["apple", "fig", "lemon", "pear"] {
    ///     fruit.put(name.as_bytes(), b"")?;
    /// }
    /// let found: Result<Vec<_>, Error> = fruit.range("b".."m").rev().collect();
    /// let keys: Vec<&[u8]> = found?.into_iter().map(|(key, _)| key).collect();
    /// assert_eq!(keys, [b"lemon".as_slice(), b"fig"]);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn range<K: AsRef<[u8]>>(&self, bounds: impl RangeBounds<K>) -> Range<'tx> {
        Range::new(self.cursor(), &bounds)
    }

    /// The entries whose keys begin with `prefix`, in order.
    #[must_use]
    pub fn prefix(&self, prefix: &[u8]) -> Range<'tx> {
        Range::of_prefix(self.cursor(), prefix)
    }

    /// Counts the pages and keys of the bucket and of all in it: it reads all of them.
    ///
    /// # Errors
    /// `Corrupt` if one of its pages is damaged.
    pub fn stats(&self) -> Result<BucketStats, Error> {
        // A damaged file can lead to a page again and again.
        let mut left = self.source.pages.high_water.0;
        self.stats_within(&mut left)
    }

    /// Fails where more pages are read than `left`.
    fn stats_within(&self, left: &mut u64) -> Result<BucketStats, Error> {
        let mut stats = BucketStats {
            buckets: 1,
            ..BucketStats::default()
        };
        let page_size = self.source.pages.page_size as usize;
        let mut nested = Vec::new();
        let inline = matches!(self.root, ReadRoot::Inline(_));
        stats.inline_buckets = u64::from(inline);
        let mut todo = vec![(self.source.root(self.root)?, 1)];
        while let Some((node, depth)) = todo.pop() {
            if depth > MAX_DEPTH {
                return Err(Error::corrupt(node.page(), Damage::Loop));
            }
            if node.page() != PageId(0) {
                let less = left.checked_sub(1);
                *left =
                    less.ok_or_else(|| Error::corrupt(node.page(), Damage::MultipleReferences))?;
            }
            let used = node.used()? as u64;
            let overflow = node.overflow(page_size);
            let bytes = (1 + overflow) * page_size as u64;
            stats.depth = stats.depth.max(depth as u64);
            if !node.leaf() {
                stats.branch_pages += 1;
                stats.branch_overflow_pages += overflow;
                stats.branch_bytes += bytes;
                stats.branch_used += used;
                for index in 0..node.count() {
                    todo.push((self.source.node(node.child(index)?)?, depth + 1));
                }
                continue;
            }
            stats.keys += node.count() as u64;
            if inline {
                stats.inline_used += used;
            } else {
                stats.leaf_pages += 1;
                stats.leaf_overflow_pages += overflow;
                stats.leaf_bytes += bytes;
                stats.leaf_used += used;
            }
            for index in 0..node.count() {
                let element = node.leaf_element(index)?;
                if element.bucket {
                    nested.push(element.key);
                }
            }
        }
        let mut inner = BucketStats::default();
        for name in nested {
            if let Some(bucket) = self.bucket(name)? {
                inner.add(&bucket.stats_within(left)?);
            }
        }
        let depth = stats.depth + inner.depth;
        stats.add(&inner);
        stats.depth = depth;
        Ok(stats)
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
