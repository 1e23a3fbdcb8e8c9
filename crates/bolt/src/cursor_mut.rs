//! A cursor in a bucket that changes.

use crate::Error;
use crate::cursor::{Cursor, Entry};
use crate::source::BucketId;
use crate::work::Work;

/// A cursor that can delete the entry it is on. It keeps its key, not a place in a page, so every
/// step is a search and changes do not disturb it.
pub struct CursorMut<'a> {
    pub(crate) work: &'a mut Work,
    pub(crate) id: BucketId,
    /// The key it is on, or that was deleted under it.
    pub(crate) at: Option<Vec<u8>>,
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
