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
            let Some(record) = segment.get(revision) else {
                return Ok(false);
            };
            prefix(record.bytes.len(), out);
            out.extend_from_slice(&record.bytes);
            return Ok(true);
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
        let mut found = Vec::new();
        if let Some(segment) = self.segment(from) {
            let copied = segment.copy(from, to + 1, mains_max);
            let mut bytes = 0;
            let mut last = from - 1;
            for (revision, record) in copied {
                if revision.main != last && bytes > bytes_max {
                    return Ok((found, last));
                }
                last = revision.main;
                bytes += record.bytes.len();
                found.push(EventRecord { revision, record });
            }
            return Ok((found, last.max(from - 1)));
        }
        let to = to.min(self.file_revision).min(self.window_start() - 1);
        let last = self.scan_file(from, to, mains_max, bytes_max, &mut found)?;
        Ok((found, last))
    }

    fn scan_file(
        &self,
        from: i64,
        to: i64,
        mains_max: usize,
        bytes_max: usize,
        found: &mut Vec<EventRecord>,
    ) -> Result<i64, Error> {
        let (mut mains, mut bytes, mut last) = (0, 0, from - 1);
        let mut covered = to;
        walk_file(&self.read, from, to, |row| {
            if row.revision.main != last {
                if mains >= mains_max || bytes > bytes_max {
                    covered = row.revision.main - 1;
                    return ControlFlow::Break(());
                }
                mains += 1;
                last = row.revision.main;
            }
            bytes += row.value.len();
            let record = Record {
                bytes: Bytes::copy_from_slice(row.value),
                tombstone: row.tombstone,
            };
            found.push(EventRecord {
                revision: row.revision,
                record,
            });
            ControlFlow::Continue(())
        })?;
        Ok(covered)
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
