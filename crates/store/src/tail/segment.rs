//! A run of records in revision order.

use std::sync::{RwLock, RwLockReadGuard};

use bytes::{Bytes, BytesMut};

use crate::Revision;

/// Up to how many bytes a record is copied while apply may wait for the lock: to share one, and give it
/// back, takes longer, since all readers count at the same place in memory.
const COPIED_LOCKED_MAX: usize = 4 << 10;

/// One stored change: the encoded `KeyValue` and whether it is a tombstone.
///
/// The bytes share a slab with their neighbours; a clone shares them too.
#[derive(Clone, Debug)]
pub struct Record {
    /// The stored encoding.
    pub bytes: Bytes,
    /// Whether the key ended here.
    pub tombstone: bool,
}

/// Records of consecutive main revisions, growing at its end until it is sealed.
///
/// Invariants:
/// 1. main revisions are dense: that of `starts[i]` is `first + i`;
/// 2. each main revision has at least one record, its sub revisions are dense from 0;
/// 3. only apply appends; what was appended never changes.
#[derive(Debug)]
pub struct Segment {
    first: i64,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    records: Vec<Record>,
    /// Where the records of each main revision begin.
    starts: Vec<u32>,
    bytes: u64,
}

impl Inner {
    /// The place of the records of the `nth` main revision.
    fn place(&self, nth: usize) -> Option<std::ops::Range<usize>> {
        let start = *self.starts.get(nth)? as usize;
        let end = self
            .starts
            .get(nth + 1)
            .map_or(self.records.len(), |&next| next as usize);
        Some(start..end)
    }

    /// The record of a revision, in a segment that begins at the main revision `first`.
    fn get(&self, first: i64, revision: Revision) -> Option<&Record> {
        let nth = usize::try_from(revision.main.checked_sub(first)?).ok()?;
        let place = self.place(nth)?;
        self.records.get(place)?.get(revision.sub as usize)
    }
}

impl Segment {
    /// An empty segment whose first record will have the main revision `first`.
    #[must_use]
    pub fn new(first: i64) -> Segment {
        Segment {
            first,
            inner: RwLock::default(),
        }
    }

    /// The main revision of the first record, or of the one that will come.
    #[must_use]
    pub fn first(&self) -> i64 {
        self.first
    }

    /// The main revision after the last one.
    #[must_use]
    pub fn end(&self) -> i64 {
        self.first + i64::try_from(self.read().starts.len()).expect("a segment fits in memory")
    }

    /// The encoded bytes of all records.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.read().bytes
    }

    /// Whether nothing was appended yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.read().records.is_empty()
    }

    /// Appends the record of `revision`.
    ///
    /// # Panics
    ///
    /// If `revision` is not the next one: the same main with the next sub, or the next main with 0.
    pub(crate) fn push(&self, revision: Revision, record: Record) {
        let mut inner = self.inner.write().expect("no holder of this lock panics");
        let count = u32::try_from(inner.records.len()).expect("segments are sealed long before");
        let last = self.first + i64::try_from(inner.starts.len()).expect("fits in memory") - 1;
        if revision.sub == 0 {
            assert_eq!(revision.main, last + 1, "main revisions are dense");
            inner.starts.push(count);
        } else {
            assert_eq!(
                revision.main, last,
                "sub revisions belong to the newest main revision"
            );
            let start = inner.starts.last().copied().unwrap_or_default();
            assert_eq!(revision.sub, count - start, "sub revisions are dense");
        }
        inner.bytes += record.bytes.len() as u64;
        inner.records.push(record);
    }

    /// The record of a revision, if it is in this segment.
    #[must_use]
    pub fn get(&self, revision: Revision) -> Option<Record> {
        self.read().get(self.first, revision).cloned()
    }

    /// Appends the bytes of a record to `out`, after `prefix(length)`; false if it is not in this segment.
    pub(crate) fn append(
        &self,
        revision: Revision,
        out: &mut BytesMut,
        prefix: impl FnOnce(usize, &mut BytesMut),
    ) -> bool {
        let inner = self.read();
        let Some(record) = inner.get(self.first, revision) else {
            return false;
        };
        if record.bytes.len() <= COPIED_LOCKED_MAX {
            prefix(record.bytes.len(), out);
            out.extend_from_slice(&record.bytes);
        } else {
            let bytes = record.bytes.clone();
            drop(inner);
            prefix(bytes.len(), out);
            out.extend_from_slice(&bytes);
        }
        true
    }

    /// The records of main revisions `from..to` that are in this segment, with their revisions, at
    /// most `mains_max` main revisions of them.
    #[must_use]
    pub fn copy(&self, from: i64, to: i64, mains_max: usize) -> Vec<(Revision, Record)> {
        let mut copied = Vec::new();
        let from = from.max(self.first);
        let inner = self.read();
        for main in (from..to).take(mains_max) {
            let Some(place) = usize::try_from(main - self.first)
                .ok()
                .and_then(|nth| inner.place(nth))
            else {
                break;
            };
            let records = inner.records[place].iter().cloned();
            copied.extend(
                (0u32..)
                    .zip(records)
                    .map(|(sub, record)| (Revision { main, sub }, record)),
            );
        }
        copied
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &'static str) -> Record {
        Record {
            bytes: Bytes::from_static(text.as_bytes()),
            tombstone: false,
        }
    }

    #[test]
    fn a_record_is_found_by_arithmetic() {
        let segment = Segment::new(5);
        segment.push(Revision { main: 5, sub: 0 }, record("a"));
        segment.push(Revision { main: 6, sub: 0 }, record("b"));
        segment.push(Revision { main: 6, sub: 1 }, record("c"));
        segment.push(Revision { main: 7, sub: 0 }, record("d"));
        let get = |main, sub| segment.get(Revision { main, sub }).map(|r| r.bytes);
        assert_eq!(get(5, 0).as_deref(), Some(&b"a"[..]));
        assert_eq!(get(6, 1).as_deref(), Some(&b"c"[..]));
        assert_eq!(get(7, 0).as_deref(), Some(&b"d"[..]));
        assert_eq!(get(5, 1), None);
        assert_eq!(get(4, 0), None);
        assert_eq!(get(8, 0), None);
        assert_eq!(segment.end(), 8);
        assert_eq!(segment.bytes(), 4);
    }

    #[test]
    fn a_record_is_appended_behind_its_length_whether_it_is_short_or_long() {
        let segment = Segment::new(5);
        let long = vec![b'x'; COPIED_LOCKED_MAX + 1];
        segment.push(Revision { main: 5, sub: 0 }, record("short"));
        let bytes = Bytes::from(long.clone());
        let tombstone = false;
        segment.push(Revision { main: 6, sub: 0 }, Record { bytes, tombstone });
        let mut out = BytesMut::new();
        let mut append = |main| {
            let prefix = |len: usize, out: &mut BytesMut| {
                out.extend_from_slice(format!("{len}:").as_bytes());
            };
            segment.append(Revision { main, sub: 0 }, &mut out, prefix)
        };
        assert!(append(6));
        assert!(append(5));
        assert!(!append(7));
        let expected = [format!("{}:", long.len()).as_bytes(), &long, b"5:short"].concat();
        assert!(out == expected[..]);
    }

    #[test]
    fn a_copy_is_cut_at_main_revisions() {
        let segment = Segment::new(2);
        segment.push(Revision { main: 2, sub: 0 }, record("a"));
        segment.push(Revision { main: 3, sub: 0 }, record("b"));
        segment.push(Revision { main: 3, sub: 1 }, record("c"));
        segment.push(Revision { main: 4, sub: 0 }, record("d"));
        let revisions = |from, to, max| {
            let copied = segment.copy(from, to, max);
            copied
                .iter()
                .map(|(r, _)| (r.main, r.sub))
                .collect::<Vec<_>>()
        };
        assert_eq!(revisions(0, 9, 2), [(2, 0), (3, 0), (3, 1)]);
        assert_eq!(revisions(3, 4, 9), [(3, 0), (3, 1)]);
        assert_eq!(revisions(5, 9, 9), []);
    }
}
