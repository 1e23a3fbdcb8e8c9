//! The one writer's transaction.

use std::sync::MutexGuard;

use crate::bucket::Bucket;
use crate::cursor::{Cursor, Entry};
use crate::db::{Shared, Writer};
use crate::freelist::Freelist;
use crate::source::BucketId;
use crate::tree::Freer;
use crate::work::{TOP, Work};
use crate::{Error, TxId};

/// A write transaction: it holds the writer's place until it is committed or dropped.
///
/// Reads borrow it shared and see its own changes; changes borrow it exclusively, so nothing that
/// was read can be held across a change. Dropping it undoes everything.
pub struct WriteTx<'db> {
    pub(crate) shared: &'db Shared,
    pub(crate) writer: MutexGuard<'db, Writer>,
    pub(crate) work: Work,
    pub(crate) done: bool,
}

impl Drop for WriteTx<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.writer.freelist.rollback(self.work.meta.tx_id);
            self.shared.count_pages(&self.writer.freelist);
        }
    }
}

impl WriteTx<'_> {
    /// Its number: one more than that of the last commit.
    #[must_use]
    pub fn tx_id(&self) -> TxId {
        self.work.meta.tx_id
    }

    /// Bytes up to the last page in use; grows at the commit.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.work.meta.size()
    }

    fn top(&mut self) -> BucketMut<'_> {
        BucketMut {
            work: &mut self.work,
            freelist: &mut self.writer.freelist,
            id: TOP,
        }
    }

    /// The top-level bucket `name`, for reading.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket<'_>>, Error> {
        self.work.bucket(TOP).bucket(name)
    }

    /// A cursor over the names of the top-level buckets.
    #[must_use]
    pub fn cursor(&self) -> Cursor<'_> {
        self.work.bucket(TOP).cursor()
    }

    /// The top-level bucket `name`, for changes. It stays open until the transaction ends, with
    /// its fill percent, so asking again is cheap.
    ///
    /// # Errors
    /// `BucketNotFound`; `Corrupt` if a page on the way is damaged.
    pub fn bucket_mut(&mut self, name: &[u8]) -> Result<BucketMut<'_>, Error> {
        self.bucket_path_mut(&[name])
    }

    /// The bucket at `path`, outermost name first, for changes.
    ///
    /// # Errors
    /// `BucketNotFound` (also for an empty path); `Corrupt` if a page on the way is damaged.
    pub fn bucket_path_mut(&mut self, path: &[&[u8]]) -> Result<BucketMut<'_>, Error> {
        if path.is_empty() {
            return Err(Error::BucketNotFound);
        }
        let mut id = TOP;
        for name in path {
            id = self.work.open(id, name)?;
        }
        Ok(BucketMut {
            work: &mut self.work,
            freelist: &mut self.writer.freelist,
            id,
        })
    }

    /// Creates the top-level bucket `name`.
    ///
    /// # Errors
    /// `BucketNameRequired`, `BucketExists`; `Corrupt` if a page on the way is damaged.
    pub fn create_bucket(&mut self, name: &[u8]) -> Result<BucketMut<'_>, Error> {
        let id = self.work.create(TOP, name)?;
        Ok(BucketMut {
            work: &mut self.work,
            freelist: &mut self.writer.freelist,
            id,
        })
    }

    /// Opens the top-level bucket `name`, and creates it if it is missing.
    ///
    /// # Errors
    /// `BucketNameRequired`; `Corrupt` if a page on the way is damaged.
    pub fn create_bucket_if_not_exists(&mut self, name: &[u8]) -> Result<BucketMut<'_>, Error> {
        let id = create_or_open(&mut self.work, TOP, name)?;
        Ok(BucketMut {
            work: &mut self.work,
            freelist: &mut self.writer.freelist,
            id,
        })
    }

    /// Deletes the top-level bucket `name` with all that is in it.
    ///
    /// # Errors
    /// `BucketNotFound`; `Corrupt` if a page of the bucket is damaged, and then the transaction
    /// cannot be committed.
    pub fn delete_bucket(&mut self, name: &[u8]) -> Result<(), Error> {
        self.top().delete_bucket(name)
    }
}

fn create_or_open(work: &mut Work, parent: BucketId, name: &[u8]) -> Result<BucketId, Error> {
    match work.create(parent, name) {
        Err(Error::BucketExists) => work.open(parent, name),
        other => other,
    }
}

/// A bucket, for changes.
pub struct BucketMut<'a> {
    work: &'a mut Work,
    freelist: &'a mut Freelist,
    id: BucketId,
}

impl<'a> BucketMut<'a> {
    /// Creates the nested bucket `name` and goes into it.
    pub(crate) fn into_new_bucket(self, name: &[u8]) -> Result<BucketMut<'a>, Error> {
        let id = self.work.create(self.id, name)?;
        Ok(BucketMut {
            work: self.work,
            freelist: self.freelist,
            id,
        })
    }

    /// The same bucket, for reading.
    #[must_use]
    pub fn read(&self) -> Bucket<'_> {
        self.work.bucket(self.id)
    }

    /// The value of `key`. `None` if there is none, or if it is a nested bucket.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn get(&self, key: &[u8]) -> Result<Option<&[u8]>, Error> {
        self.read().get(key)
    }

    /// A cursor over keys and nested buckets, not yet positioned.
    #[must_use]
    pub fn cursor(&self) -> Cursor<'_> {
        self.read().cursor()
    }

    /// A cursor that can delete the entry it is on.
    pub fn cursor_mut(&mut self) -> CursorMut<'_> {
        CursorMut {
            work: self.work,
            id: self.id,
            at: None,
        }
    }

    /// Sets the value of `key`.
    ///
    /// # Errors
    /// `KeyRequired`, `KeyTooLarge`, `ValueTooLarge`; `IncompatibleValue` if the key is a nested
    /// bucket; `Corrupt` if a page on the way is damaged.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.work.put(self.id, key, value)
    }

    /// Deletes `key`; does nothing if it is missing.
    ///
    /// # Errors
    /// `IncompatibleValue` if the key is a nested bucket; `Corrupt` if a page on the way is
    /// damaged.
    pub fn delete(&mut self, key: &[u8]) -> Result<(), Error> {
        self.work.delete(self.id, key)
    }

    /// The nested bucket `name`, for changes.
    ///
    /// # Errors
    /// `BucketNotFound`; `Corrupt` if a page on the way is damaged.
    pub fn bucket_mut(&mut self, name: &[u8]) -> Result<BucketMut<'_>, Error> {
        let id = self.work.open(self.id, name)?;
        Ok(BucketMut {
            work: self.work,
            freelist: self.freelist,
            id,
        })
    }

    /// Creates the nested bucket `name`.
    ///
    /// # Errors
    /// `BucketNameRequired`, `BucketExists`, `TooDeep`; `IncompatibleValue` if the name is a key;
    /// `Corrupt` if a page on the way is damaged.
    pub fn create_bucket(&mut self, name: &[u8]) -> Result<BucketMut<'_>, Error> {
        let id = self.work.create(self.id, name)?;
        Ok(BucketMut {
            work: self.work,
            freelist: self.freelist,
            id,
        })
    }

    /// Opens the nested bucket `name`, and creates it if it is missing.
    ///
    /// # Errors
    /// As [`BucketMut::create_bucket`], but for `BucketExists`.
    pub fn create_bucket_if_not_exists(&mut self, name: &[u8]) -> Result<BucketMut<'_>, Error> {
        let id = create_or_open(self.work, self.id, name)?;
        Ok(BucketMut {
            work: self.work,
            freelist: self.freelist,
            id,
        })
    }

    /// Deletes the nested bucket `name` with all that is in it.
    ///
    /// # Errors
    /// `BucketNotFound`; `IncompatibleValue` if the name is a key; `Corrupt` if a page of the
    /// bucket is damaged, and then the transaction cannot be committed.
    pub fn delete_bucket(&mut self, name: &[u8]) -> Result<(), Error> {
        let tx = self.work.meta.tx_id;
        self.work.delete_bucket(
            self.id,
            name,
            &mut Freer {
                list: self.freelist,
                tx,
            },
        )
    }

    /// How full pages are left when a node is split, for the rest of the transaction: 0.5 unless
    /// set, taken as at least 0.1 and at most 1.0. Keys that come in ascending order want more.
    pub fn set_fill_percent(&mut self, fill: f64) {
        self.work.buckets[self.id].fill = fill;
    }

    /// The number kept with the bucket.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.work.buckets[self.id].sequence
    }

    /// Sets the number kept with the bucket.
    pub fn set_sequence(&mut self, sequence: u64) {
        let bucket = &mut self.work.buckets[self.id];
        bucket.sequence = sequence;
        bucket.changed = true;
    }

    /// Adds one to the number kept with the bucket, wrapping at its end, and gives the sum.
    pub fn next_sequence(&mut self) -> u64 {
        self.set_sequence(self.sequence().wrapping_add(1));
        self.sequence()
    }
}

/// A cursor that can delete the entry it is on. It keeps its key, not a place in a page, so every
/// step is a search and changes do not disturb it.
pub struct CursorMut<'a> {
    work: &'a mut Work,
    id: BucketId,
    /// The key it is on, or that was deleted under it.
    at: Option<Vec<u8>>,
}

impl CursorMut<'_> {
    /// Goes to the first entry.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn first(&mut self) -> Result<Option<Entry<'_>>, Error> {
        self.go(|cursor, _| cursor.first())
    }

    /// Goes to the last entry.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn last(&mut self) -> Result<Option<Entry<'_>>, Error> {
        self.go(|cursor, _| cursor.last())
    }

    /// Goes to the first entry whose key is `key` or greater.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn seek(&mut self, key: &[u8]) -> Result<Option<Entry<'_>>, Error> {
        self.go(|cursor, _| cursor.seek(key))
    }

    /// Goes to the entry behind the one it is on, deleted or not; to the first if it is on none.
    /// At the end it gives `None` and stays.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    #[expect(clippy::should_implement_trait, reason = "its entries borrow from it")]
    pub fn next(&mut self) -> Result<Option<Entry<'_>>, Error> {
        self.go(|cursor, at| match at {
            None => cursor.first(),
            Some(at) => match cursor.seek(at)? {
                Some((key, _)) if key == at => cursor.next(),
                found => Ok(found),
            },
        })
    }

    /// Goes to the entry before the one it is on, deleted or not; to the last if it is on none.
    /// At the start it gives `None` and stays.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn prev(&mut self) -> Result<Option<Entry<'_>>, Error> {
        self.go(|cursor, at| match at {
            None => cursor.last(),
            Some(at) => match cursor.seek(at)? {
                Some(_) => cursor.prev(),
                None => cursor.last(),
            },
        })
    }

    /// Deletes the entry it is on. `next` then goes to its successor, `prev` to its predecessor.
    /// Does nothing if it is on none.
    ///
    /// # Errors
    /// `IncompatibleValue` if it is on a nested bucket; `Corrupt` if a page is damaged.
    pub fn delete(&mut self) -> Result<(), Error> {
        match &self.at {
            Some(key) => self.work.delete(self.id, key),
            None => Ok(()),
        }
    }

    fn go(
        &mut self,
        step: impl for<'t> FnOnce(&mut Cursor<'t>, Option<&[u8]>) -> Result<Option<Entry<'t>>, Error>,
    ) -> Result<Option<Entry<'_>>, Error> {
        let mut cursor = self.work.bucket(self.id).cursor();
        let found = step(&mut cursor, self.at.as_deref())?;
        if let Some((key, _)) = found {
            self.at = Some(key.to_vec());
        }
        Ok(found)
    }
}
