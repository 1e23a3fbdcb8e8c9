//! The one writer's transaction.

use std::marker::PhantomData;
use std::ops::RangeBounds;
use std::sync::Arc;

use crate::bucket::Bucket;
use crate::cursor::Cursor;
use crate::cursor_mut::CursorMut;
use crate::db::{Db, Shared, Writer};
use crate::freelist::Freelist;
use crate::range::Range;
use crate::savepoint::Savepoint;
use crate::source::BucketId;
use crate::tree::Freer;
use crate::work::{TOP, Work};
use crate::{Error, TxId};

/// What makes a write transaction, free of the borrow of its database: a batch hands it from
/// thread to thread. Dropped, it undoes everything.
pub(crate) struct Hand {
    pub(crate) shared: Arc<Shared>,
    /// There until the drop.
    pub(crate) writer: Option<Box<Writer>>,
    pub(crate) work: Work,
    pub(crate) done: bool,
}

impl Hand {
    pub(crate) fn parts(&mut self) -> (&mut Work, &mut Writer) {
        let writer = self.writer.as_mut().expect("there until the drop");
        (&mut self.work, writer)
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        if let Some(mut writer) = self.writer.take() {
            if !self.done {
                writer.freelist.rollback();
            }
            self.shared.give_back(writer);
        }
    }
}

/// A write transaction: it holds the writer's place until it is committed or dropped.
///
/// Reads borrow it shared and see its own changes; changes borrow it exclusively, so nothing that
/// was read can be held across a change. Dropping it undoes everything. It can be sent to another
/// thread.
pub struct WriteTx<'db> {
    pub(crate) hand: Box<Hand>,
    db: PhantomData<&'db Db>,
}

impl<'db> WriteTx<'db> {
    pub(crate) fn of(hand: Box<Hand>) -> WriteTx<'db> {
        WriteTx {
            hand,
            db: PhantomData,
        }
    }

    pub(crate) fn into_hand(self) -> Box<Hand> {
        self.hand
    }

    pub(crate) fn parts(&mut self) -> (&mut Work, &mut Freelist) {
        let (work, writer) = self.hand.parts();
        (work, &mut writer.freelist)
    }

    /// Begins a part of the transaction that can be undone by itself.
    pub fn savepoint(&mut self) -> Savepoint<'_, 'db> {
        Savepoint::begin(self)
    }

    /// Its number: one more than that of the last commit.
    #[must_use]
    pub fn tx_id(&self) -> TxId {
        self.hand.work.meta.tx_id
    }

    /// Bytes up to the last page in use; grows at the commit.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.hand.work.meta.size()
    }

    fn bucket_of(&mut self, id: BucketId) -> BucketMut<'_> {
        let (work, freelist) = self.parts();
        BucketMut { work, freelist, id }
    }

    pub(crate) fn open_path(&mut self, path: &[&[u8]]) -> Result<BucketId, Error> {
        let work = &mut self.hand.work;
        path.iter().try_fold(TOP, |id, name| work.open(id, name))
    }

    /// The top-level bucket `name`, for reading.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket<'_>>, Error> {
        self.hand.work.bucket(TOP).bucket(name)
    }

    /// The bucket at `path`, outermost name first, for reading. An empty path is the bucket of
    /// the top-level buckets.
    ///
    /// # Errors
    /// `Corrupt` if a page on the way is damaged.
    pub fn bucket_path(&self, path: &[&[u8]]) -> Result<Option<Bucket<'_>>, Error> {
        self.hand.work.bucket(TOP).path(path)
    }

    /// A cursor over the names of the top-level buckets.
    #[must_use]
    pub fn cursor(&self) -> Cursor<'_> {
        self.hand.work.bucket(TOP).cursor()
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
        let id = self.open_path(path)?;
        Ok(self.bucket_of(id))
    }

    /// Creates the top-level bucket `name`.
    ///
    /// # Errors
    /// `BucketNameRequired`, `BucketExists`; `Corrupt` if a page on the way is damaged.
    pub fn create_bucket(&mut self, name: &[u8]) -> Result<BucketMut<'_>, Error> {
        let id = self.hand.work.create(TOP, name)?;
        Ok(self.bucket_of(id))
    }

    /// Opens the top-level bucket `name`, and creates it if it is missing.
    ///
    /// # Errors
    /// `BucketNameRequired`; `Corrupt` if a page on the way is damaged.
    pub fn create_bucket_if_not_exists(&mut self, name: &[u8]) -> Result<BucketMut<'_>, Error> {
        let id = create_or_open(&mut self.hand.work, TOP, name)?;
        Ok(self.bucket_of(id))
    }

    /// Deletes the top-level bucket `name` with all that is in it.
    ///
    /// # Errors
    /// `BucketNotFound`; `Corrupt` if a page of the bucket is damaged, and then the transaction
    /// cannot be committed.
    pub fn delete_bucket(&mut self, name: &[u8]) -> Result<(), Error> {
        self.bucket_of(TOP).delete_bucket(name)
    }

    /// Moves the bucket at `path` (outermost name first), with all that is in it, into the bucket
    /// at `into`, where it keeps its name; an empty `into` is the top level. Its pages stay where
    /// they are.
    ///
    /// # Errors
    /// `BucketNotFound` if one of them is missing; `IncompatibleValue` if a name on the way or the
    /// one at the new place is a key; `BucketExists` if the name is taken there; `SameBucket` if
    /// it is there already; `MoveIntoItself`; `TooDeep`; `Corrupt` if a page on the way is damaged.
    pub fn move_bucket(&mut self, path: &[&[u8]], into: &[&[u8]]) -> Result<(), Error> {
        let (name, parents) = path.split_last().ok_or(Error::BucketNameRequired)?;
        if into.starts_with(path) {
            return Err(Error::MoveIntoItself);
        }
        let from = self.open_path(parents)?;
        let to = self.open_path(into)?;
        self.hand.work.move_bucket(from, name, to)
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

    /// Keys and nested buckets, in order.
    #[must_use]
    pub fn iter(&self) -> Range<'_> {
        self.read().iter()
    }

    /// The entries whose keys lie in `bounds`, in order; see [`Bucket::range`].
    #[must_use]
    pub fn range<K: AsRef<[u8]>>(&self, bounds: impl RangeBounds<K>) -> Range<'_> {
        self.read().range(bounds)
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
        self.work.bucket_for_change(self.id).fill = fill;
    }

    /// The number kept with the bucket.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.work.buckets[self.id].sequence
    }

    /// Sets the number kept with the bucket.
    pub fn set_sequence(&mut self, sequence: u64) {
        let bucket = self.work.bucket_for_change(self.id);
        bucket.sequence = sequence;
        bucket.changed = true;
    }

    /// Adds one to the number kept with the bucket, wrapping at its end, and gives the sum.
    pub fn next_sequence(&mut self) -> u64 {
        self.set_sequence(self.sequence().wrapping_add(1));
        self.sequence()
    }
}
