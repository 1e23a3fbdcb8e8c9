//! The tail: what has been applied and is not in the file yet, and a window of what is.
//!
//! Apply encodes each change once into the open segment. The tail is write buffer, read path for
//! everything the file does not hold, and the event window from which lagging watchers catch up.
//!
//! Invariants:
//! 1. segments hold consecutive main revisions, and each record is in one segment only;
//! 2. rows of other buckets are kept with the segment that was open when they changed;
//! 3. a segment is sealed between two entries, never inside one.

mod boundary;
mod segment;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

pub use boundary::{Boundary, Durable, Sealed};
pub use segment::{Record, Segment};

use crate::Revision;
use crate::row::RowChange;

/// Records are encoded into slabs of this many bytes; a larger record has one of its own. A slab
/// lives as long as one of its records, so that a slow watcher can keep no more than this for one.
const SLAB_BYTES: usize = 64 << 10;

/// A segment is full at this many bytes of records and rows.
pub const SEGMENT_BYTES_MAX: u64 = 16 << 20;

/// What a record costs in memory beyond its encoding: its handle and its place.
const RECORD_OVERHEAD_BYTES: u64 = 48;

/// A record with its revision, as it goes to watchers.
#[derive(Clone, Debug)]
pub struct EventRecord {
    /// When it happened.
    pub revision: Revision,
    /// What was stored.
    pub record: Record,
}

/// The records of consecutive main revisions, `from` to `to` inclusive: what one batch changed.
#[derive(Clone, Debug)]
pub struct EventRange {
    /// The first main revision.
    pub from: i64,
    /// The last main revision.
    pub to: i64,
    /// All records, in revision order.
    pub records: Arc<[EventRecord]>,
}

/// The growing end of the tail; owned by apply.
#[derive(Debug)]
pub(crate) struct Tail {
    open: Arc<Segment>,
    slab: BytesMut,
    /// The last change of each row since the segment was opened.
    rows: BTreeMap<(&'static str, Vec<u8>), Option<Vec<u8>>>,
    row_bytes: u64,
    records: u64,
    /// What this batch has appended.
    batch: Vec<EventRecord>,
}

impl Tail {
    /// An empty tail whose first record will have main revision `next`.
    pub(crate) fn new(next: i64) -> Tail {
        Tail {
            open: Arc::new(Segment::new(next)),
            slab: BytesMut::new(),
            rows: BTreeMap::new(),
            row_bytes: 0,
            records: 0,
            batch: Vec::new(),
        }
    }

    /// The segment that grows.
    pub(crate) fn open(&self) -> &Arc<Segment> {
        &self.open
    }

    /// Encodes one record of exactly `len` bytes into a slab.
    ///
    /// # Panics
    ///
    /// If `encode` appends another number of bytes than `len`.
    pub(crate) fn encode(&mut self, len: usize, encode: impl FnOnce(&mut BytesMut)) -> Bytes {
        let own_slab = len > SLAB_BYTES / 4;
        if own_slab {
            let mut slab = BytesMut::with_capacity(len);
            encode(&mut slab);
            assert_eq!(slab.len(), len, "a record is as long as was said");
            return slab.freeze();
        }
        if self.slab.capacity() - self.slab.len() < len {
            self.slab = BytesMut::with_capacity(SLAB_BYTES);
        }
        encode(&mut self.slab);
        let record = self.slab.split().freeze();
        assert_eq!(record.len(), len, "a record is as long as was said");
        record
    }

    /// Appends a record.
    pub(crate) fn push(&mut self, revision: Revision, record: Record) {
        self.open.push(revision, record.clone());
        self.records += 1;
        self.batch.push(EventRecord { revision, record });
    }

    /// Takes in changed rows.
    pub(crate) fn change_rows(&mut self, changes: Vec<RowChange>) {
        for RowChange { bucket, key, value } in changes {
            let key_bytes = key.len() as u64;
            let cost = |value: &Option<Vec<u8>>| {
                key_bytes + value.as_ref().map_or(0, |value| value.len() as u64)
            };
            self.row_bytes += cost(&value);
            if let Some(before) = self.rows.insert((bucket, key), value) {
                self.row_bytes -= cost(&before);
            }
        }
    }

    /// The memory that sealing would hand over, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.open.bytes() + self.row_bytes + self.records * RECORD_OVERHEAD_BYTES
    }

    /// What has been appended since this was last asked for; `None` if nothing.
    pub(crate) fn take_events(&mut self) -> Option<EventRange> {
        let from = self.batch.first()?.revision.main;
        let to = self.batch.last()?.revision.main;
        let records = self.batch.drain(..).collect();
        Some(EventRange { from, to, records })
    }

    /// Seals the open segment and opens the next one.
    pub(crate) fn seal(&mut self, boundary: Boundary) -> Sealed {
        let bytes = self.bytes();
        let next = Arc::new(Segment::new(boundary.revision + 1));
        let segment = std::mem::replace(&mut self.open, next);
        assert_eq!(
            segment.end(),
            boundary.revision + 1,
            "a segment ends at its boundary"
        );
        let rows = std::mem::take(&mut self.rows)
            .into_iter()
            .map(|((bucket, key), value)| RowChange { bucket, key, value })
            .collect();
        self.row_bytes = 0;
        self.records = 0;
        Sealed {
            segment,
            rows,
            boundary,
            bytes,
        }
    }
}

const _: () = assert!(SLAB_BYTES as u64 <= SEGMENT_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_costs_what_it_holds_now() {
        let mut tail = Tail::new(2);
        let row = |value: &[u8]| RowChange::put("auth", "key", value);
        tail.change_rows(vec![row(b"v")]);
        assert_eq!(tail.bytes(), 4);
        tail.change_rows(vec![row(&[0; 1_000])]);
        assert_eq!(tail.bytes(), 1_003);
        tail.change_rows(vec![RowChange::delete("auth", "key")]);
        assert_eq!(tail.bytes(), 3);
    }
}
