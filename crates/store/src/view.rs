//! What a reader stands on: tail and file at one moment.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use keelson_bolt::ReadTx;

use crate::tail::{Durable, EventRecord, Record, Segment};
use crate::{BucketKey, Error, Revision, schema};

/// Segments and one shared read transaction of the file, immutable but for the growth of the last
/// segment.
///
/// A revision that a segment holds is read there, an earlier one from the file. A reader takes the
/// published revision first, then the view, then index and records (`INTERNALS` 1): what the index
/// names at that revision is then in the view, unless compaction has removed it since.
#[derive(Clone)]
pub struct View {
    /// Ascending and consecutive; the last one grows, those up to `file_revision` are a window.
    segments: Vec<Arc<Segment>>,
    read: Arc<ReadTx>,
    file_revision: i64,
}

impl View {
    pub(crate) fn new(open: Arc<Segment>, read: Arc<ReadTx>, file_revision: i64) -> View {
        View {
            segments: vec![open],
            read,
            file_revision,
        }
    }

    /// The file.
    #[must_use]
    pub fn read(&self) -> &Arc<ReadTx> {
        &self.read
    }

    /// The last main revision that the file holds.
    #[must_use]
    pub fn file_revision(&self) -> i64 {
        self.file_revision
    }

    /// The first main revision that a segment holds: history from here on needs no disk.
    #[must_use]
    pub fn window_start(&self) -> i64 {
        self.segments
            .first()
            .map_or(i64::MAX, |segment| segment.first())
    }

    /// The same view with another segment open.
    pub(crate) fn with_open(&self, open: Arc<Segment>) -> View {
        let mut segments = self.segments.clone();
        segments.push(open);
        View {
            segments,
            ..self.clone()
        }
    }

    /// The view after a commit: the file has moved on, and of what it holds now no more than
    /// `window_bytes_max` stay in memory.
    pub(crate) fn after_commit(&self, durable: &Durable, window_bytes_max: u64) -> View {
        let file_revision = durable.boundary.revision;
        assert!(
            file_revision >= self.file_revision,
            "the file never goes back"
        );
        let mut window: u64 = self
            .segments
            .iter()
            .filter(|segment| segment.end() <= file_revision + 1)
            .map(|segment| segment.bytes())
            .sum();
        let mut segments = Vec::with_capacity(self.segments.len());
        for (place, segment) in self.segments.iter().enumerate() {
            let open = place + 1 == self.segments.len();
            let in_file = segment.end() <= file_revision + 1;
            if in_file && !open && (window > window_bytes_max || segment.is_empty()) {
                window -= segment.bytes();
                continue;
            }
            segments.push(segment.clone());
        }
        View {
            segments,
            read: durable.read.clone(),
            file_revision,
        }
    }

    /// The same moment over a newer state of the file, from which only dead records have gone.
    pub(crate) fn with_read(&self, read: Arc<ReadTx>) -> View {
        View {
            read,
            ..self.clone()
        }
    }

    fn segment(&self, main: i64) -> Option<&Arc<Segment>> {
        if main < self.window_start() {
            return None;
        }
        let after = self
            .segments
            .partition_point(|segment| segment.first() <= main);
        self.segments.get(after.checked_sub(1)?)
    }

    /// Whether what was stored at a revision is looked for in memory, so that reading it waits for no disk.
    #[must_use]
    pub fn in_memory(&self, revision: Revision) -> bool {
        revision.main >= self.window_start()
    }

    /// The value stored at a revision; `None` if it is not there (compacted, or never was).
    ///
    /// # Errors
    ///
    /// [`Error::Bolt`] if the file is damaged or cannot be read.
    pub fn record(&self, revision: Revision) -> Result<Option<Bytes>, Error> {
        if let Some(segment) = self.segment(revision.main) {
            return Ok(segment.get(revision).map(|record| record.bytes));
        }
        Ok(self
            .file_record(revision, false)?
            .map(Bytes::copy_from_slice))
    }

    /// What was stored at a revision, a tombstone if it was one; `None` if it is not there.
    pub(crate) fn event(
        &self,
        revision: Revision,
        tombstone: bool,
    ) -> Result<Option<Bytes>, Error> {
        match self.segment(revision.main) {
            Some(segment) => Ok(segment.get(revision).map(|record| record.bytes)),
            None => Ok(self
                .file_record(revision, tombstone)?
                .map(Bytes::copy_from_slice)),
        }
    }

    /// Appends the value stored at a revision to `out`, after `prefix(length)`; false if it is not
    /// there.
    ///
    /// # Errors
    ///
    /// [`Error::Bolt`] if the file is damaged or cannot be read.
    pub fn append_record(
        &self,
        revision: Revision,
        out: &mut BytesMut,
        prefix: impl FnOnce(usize, &mut BytesMut),
    ) -> Result<bool, Error> {
        if let Some(segment) = self.segment(revision.main) {
            return Ok(segment.append(revision, out, prefix));
        }
        let Some(bytes) = self.file_record(revision, false)? else {
            return Ok(false);
        };
        prefix(bytes.len(), out);
        out.extend_from_slice(bytes);
        Ok(true)
    }

    fn file_record(&self, revision: Revision, tombstone: bool) -> Result<Option<&[u8]>, Error> {
        let Some(bucket) = self.read.bucket(schema::KEY.as_bytes())? else {
            return Ok(None);
        };
        Ok(bucket.get(BucketKey::encode(revision, tombstone).as_bytes())?)
    }

    /// The records of main revisions from `from` on, up to `to` inclusive, in revision order, at
    /// most about `mains_max` main revisions and `bytes_max` bytes of them, always whole ones.
    ///
    /// The second value is the last main revision that the answer covers: everything up to it is
    /// in the answer.
    ///
    /// # Errors
    ///
    /// [`Error::Bolt`] if the file is damaged or cannot be read, [`Error::CorruptRow`] if it holds
    /// something else than revisions.
    pub fn scan(
        &self,
        from: i64,
        to: i64,
        mains_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<EventRecord>, i64), Error> {
        let mut scan = Scan {
            found: Vec::new(),
            mains: 0,
            mains_max,
            bytes: 0,
            bytes_max,
        };
        let file_end = to.min(self.file_revision).min(self.window_start() - 1);
        let mut next = from;
        if next <= file_end {
            let mut cut = None;
            walk_file(&self.read, next, file_end, |row| {
                let record = || Record {
                    bytes: Bytes::copy_from_slice(row.value),
                    tombstone: row.tombstone,
                };
                if scan.push(row.revision, record) {
                    return ControlFlow::Continue(());
                }
                cut = Some(row.revision.main - 1);
                ControlFlow::Break(())
            })?;
            if let Some(last) = cut {
                return Ok((scan.found, last));
            }
            next = file_end + 1;
        }
        while next <= to
            && let Some(segment) = self.segment(next)
        {
            let copied = segment.copy(next, to + 1, mains_max);
            if copied.is_empty() {
                break;
            }
            for (revision, record) in copied {
                if !scan.push(revision, || record) {
                    return Ok((scan.found, revision.main - 1));
                }
                next = revision.main + 1;
            }
        }
        Ok((scan.found, next - 1))
    }

    /// Calls `f` with every record of main revisions `from` to `to` inclusive, in revision order,
    /// until it breaks.
    ///
    /// # Errors
    ///
    /// As [`View::scan`].
    pub(crate) fn walk(
        &self,
        from: i64,
        to: i64,
        mut f: impl FnMut(Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut flow = ControlFlow::Continue(());
        walk_file(&self.read, from, to.min(self.file_revision), |row| {
            flow = f(row);
            flow
        })?;
        for segment in &self.segments {
            let start = segment.first().max(self.file_revision + 1).max(from);
            if flow.is_break() || start > to {
                continue;
            }
            for (revision, record) in segment.copy(start, to + 1, usize::MAX) {
                let key = BucketKey::encode(revision, record.tombstone);
                let row = Row {
                    key: key.as_bytes(),
                    revision,
                    tombstone: record.tombstone,
                    value: &record.bytes,
                };
                flow = f(row);
                if flow.is_break() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Records that are being gathered, within bounds.
struct Scan {
    found: Vec<EventRecord>,
    mains: usize,
    mains_max: usize,
    bytes: usize,
    bytes_max: usize,
}

impl Scan {
    /// Takes in a record; false if it begins a main revision for which there is no room.
    fn push(&mut self, revision: Revision, record: impl FnOnce() -> Record) -> bool {
        let last = self.found.last().map(|event| event.revision.main);
        if last != Some(revision.main) {
            if self.mains >= self.mains_max || self.bytes > self.bytes_max {
                return false;
            }
            self.mains += 1;
        }
        let record = record();
        self.bytes += record.bytes.len();
        self.found.push(EventRecord { revision, record });
        true
    }
}

/// One row of the `key` bucket.
pub(crate) struct Row<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) revision: Revision,
    pub(crate) tombstone: bool,
    pub(crate) value: &'a [u8],
}

/// Calls `f` with every row of main revisions `from` to `to` inclusive, in order, until it breaks.
///
/// # Errors
///
/// [`Error::Bolt`] if the file is damaged or cannot be read, [`Error::CorruptRow`] if it holds
/// something else than revisions.
pub(crate) fn walk_file(
    read: &ReadTx,
    from: i64,
    to: i64,
    mut f: impl FnMut(Row<'_>) -> ControlFlow<()>,
) -> Result<(), Error> {
    let Some(bucket) = read.bucket(schema::KEY.as_bytes())? else {
        return Ok(());
    };
    let mut cursor = bucket.cursor();
    let start = BucketKey::encode(
        Revision {
            main: from.max(0),
            sub: 0,
        },
        false,
    );
    let mut row = cursor.seek(start.as_bytes())?;
    while let Some((key, value)) = row {
        let (revision, tombstone) = schema::revision(key)?;
        if revision.main > to {
            break;
        }
        let value = value.unwrap_or_default();
        if f(Row {
            key,
            revision,
            tombstone,
            value,
        })
        .is_break()
        {
            break;
        }
        row = cursor.next()?;
    }
    Ok(())
}
