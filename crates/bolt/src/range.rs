//! Entries between two keys, from both ends.

use std::ops::{Bound, RangeBounds};

use crate::Error;
use crate::cursor::{Cursor, Entry};

/// Entries of a bucket in key order; the values of nested buckets are `None`. Made by
/// [`crate::Bucket::range`]. After an error it ends.
#[derive(Clone)]
pub struct Range<'tx> {
    front: End<'tx>,
    back: End<'tx>,
    done: bool,
}

/// One end: its cursor, where it begins, and where it is.
#[derive(Clone)]
struct End<'tx> {
    cursor: Cursor<'tx>,
    bound: Bound<Vec<u8>>,
    /// The key that it gave last.
    at: Option<&'tx [u8]>,
}

impl<'tx> End<'tx> {
    fn new(cursor: Cursor<'tx>, bound: Bound<&[u8]>) -> End<'tx> {
        End {
            cursor,
            bound: bound.map(<[u8]>::to_vec),
            at: None,
        }
    }

    /// The next entry from the front.
    fn forward(&mut self) -> Result<Option<Entry<'tx>>, Error> {
        if self.at.is_some() {
            return self.cursor.next();
        }
        match &self.bound {
            Bound::Unbounded => self.cursor.first(),
            Bound::Included(key) => self.cursor.seek(key),
            Bound::Excluded(key) => match self.cursor.seek(key)? {
                Some((found, _)) if found == key => self.cursor.next(),
                found => Ok(found),
            },
        }
    }

    /// The next entry from the back.
    fn backward(&mut self) -> Result<Option<Entry<'tx>>, Error> {
        if self.at.is_some() {
            return self.cursor.prev();
        }
        let (key, inclusive) = match &self.bound {
            Bound::Unbounded => return self.cursor.last(),
            Bound::Included(key) => (key, true),
            Bound::Excluded(key) => (key, false),
        };
        match self.cursor.seek(key)? {
            None => self.cursor.last(),
            Some(entry) if inclusive && entry.0 == key => Ok(Some(entry)),
            Some(_) => self.cursor.prev(),
        }
    }
}

impl<'tx> Range<'tx> {
    pub(crate) fn new<K: AsRef<[u8]>>(
        cursor: Cursor<'tx>,
        bounds: &impl RangeBounds<K>,
    ) -> Range<'tx> {
        Range {
            front: End::new(cursor.clone(), bounds.start_bound().map(AsRef::as_ref)),
            back: End::new(cursor, bounds.end_bound().map(AsRef::as_ref)),
            done: false,
        }
    }

    pub(crate) fn of_prefix(cursor: Cursor<'tx>, prefix: &[u8]) -> Range<'tx> {
        // The least key above all with this prefix: the last byte that can be raised is.
        let mut end = prefix.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                break;
            }
        }
        let end = if end.is_empty() {
            Bound::Unbounded
        } else {
            Bound::Excluded(&end[..])
        };
        Range::new::<&[u8]>(cursor, &(Bound::Included(prefix), end))
    }

    fn end(
        &mut self,
        found: Result<Option<Entry<'tx>>, Error>,
    ) -> Option<Result<Entry<'tx>, Error>> {
        match found {
            Ok(Some(entry)) => Some(Ok(entry)),
            Ok(None) => {
                self.done = true;
                None
            }
            Err(error) => {
                self.done = true;
                Some(Err(error))
            }
        }
    }
}

impl<'tx> Iterator for Range<'tx> {
    type Item = Result<Entry<'tx>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let found = self.front.forward().map(|found| {
            let entry = found.filter(|(key, _)| {
                let inside = match &self.back.bound {
                    Bound::Unbounded => true,
                    Bound::Included(end) => *key <= &end[..],
                    Bound::Excluded(end) => *key < &end[..],
                };
                inside && self.back.at.is_none_or(|given| *key < given)
            })?;
            self.front.at = Some(entry.0);
            Some(entry)
        });
        self.end(found)
    }
}

impl DoubleEndedIterator for Range<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let found = self.back.backward().map(|found| {
            let entry = found.filter(|(key, _)| {
                let inside = match &self.front.bound {
                    Bound::Unbounded => true,
                    Bound::Included(start) => *key >= &start[..],
                    Bound::Excluded(start) => *key > &start[..],
                };
                inside && self.front.at.is_none_or(|given| *key > given)
            })?;
            self.back.at = Some(entry.0);
            Some(entry)
        });
        self.end(found)
    }
}
