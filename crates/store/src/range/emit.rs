//! The bytes of a planned range, chunk by chunk.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use keelson_proto::ApiError;
use prost::encoding::encode_varint;

use super::plan::{Plan, Rows, is_passed};
use super::{TAG_COUNT, TAG_KVS, TAG_MORE};
use crate::pin::Pin;
use crate::{BucketKey, Error, Revision, Shared, schema};

/// Writes the body of a `RangeResponse`: stored records, `more`, `count`.
///
/// Each chunk looks at a fresh view at the same revision, so that a slow client pins neither pages
/// nor segments. Fetching may wait for the disk.
#[derive(Debug)]
pub struct Emitter {
    plan: Plan,
    shared: Arc<Shared>,
    next: usize,
}

/// Whether there is more to emit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another chunk follows.
    More,
    /// That was all.
    Done,
}

/// Why an emission ends early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// Compaction has passed the revision.
    #[error("{}", ApiError::Compacted)]
    Compacted,
    /// The file failed, or does not hold what the index says.
    #[error(transparent)]
    Store(#[from] Error),
}

/// The value stored at a revision that `pin` holds. May wait for the disk.
///
/// # Errors
///
/// [`EmitError::Compacted`] where it is gone and nothing holds it any more; where something does, the
/// file is damaged.
pub fn held_record(
    shared: &Shared,
    revision: Revision,
    pin: Option<&Pin>,
) -> Result<Bytes, EmitError> {
    match shared.record(revision)? {
        Some(record) => Ok(record),
        None if pin.is_none_or(Pin::is_broken) => Err(EmitError::Compacted),
        None => Err(Error::missing_record(revision).into()),
    }
}

impl Emitter {
    pub(super) fn new(plan: Plan, shared: Arc<Shared>) -> Emitter {
        Emitter {
            plan,
            shared,
            next: 0,
        }
    }

    /// The plan that is being emitted.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Appends records until `out` has grown by `bytes_max` or more, or none are left.
    ///
    /// # Errors
    ///
    /// [`EmitError`]; what was appended is then of no use.
    pub fn next_rows(
        &mut self,
        bytes_max: usize,
        out: &mut BytesMut,
    ) -> Result<Progress, EmitError> {
        // A buffer that grows on its way is copied as a whole.
        out.reserve(self.chunk_len(bytes_max));
        let full = out.len().saturating_add(bytes_max);
        match &self.plan.rows {
            Rows::Encoded(rows) => {
                while self.next < self.plan.rows.len() {
                    if out.len() >= full {
                        return Ok(Progress::More);
                    }
                    let row = rows.row(self.next);
                    put_len(row.len(), out);
                    out.put_slice(row);
                    self.next += 1;
                }
            }
            Rows::Stored(rows) => {
                let view = self.shared.view();
                for row in rows.iter().skip(self.next) {
                    if out.len() >= full {
                        return self.checked(Progress::More);
                    }
                    let mut len = 0;
                    let found = view.append_record(row.revision, out, |found, out| {
                        len = found;
                        put_len(found, out);
                    })?;
                    if !found {
                        return Err(self.missing(row.revision));
                    }
                    // The length of the whole answer has been told: a file that holds two records
                    // of one revision must not change it.
                    if len != row.len as usize {
                        return Err(EmitError::Store(Error::CorruptRow {
                            bucket: schema::KEY,
                            key: BucketKey::encode(row.revision, false).as_bytes().to_vec(),
                            reason: format!("expected {} bytes, found {len}", row.len),
                        }));
                    }
                    self.next += 1;
                }
            }
        }
        self.checked(Progress::Done)
    }

    /// By how much a chunk of `bytes_max` grows its buffer, with the tail behind the last one, in bytes.
    pub(super) fn chunk_len(&self, bytes_max: usize) -> usize {
        let mut len = 0;
        for row in self.next..self.plan.rows() {
            if len >= bytes_max as u64 {
                break;
            }
            len += self.plan.rows.framed_len(row);
        }
        usize::try_from(len + self.plan.tail_len()).unwrap_or(usize::MAX)
    }

    /// Appends what follows the records: `more` and `count`, where they are not zero.
    pub fn tail(&self, out: &mut BytesMut) {
        if self.plan.more {
            out.put_slice(&[TAG_MORE, 1]);
        }
        if self.plan.count > 0 {
            out.put_u8(TAG_COUNT);
            encode_varint(self.plan.count, out);
        }
    }

    /// As [`Emitter::next_rows`], and the tail after the last record.
    ///
    /// # Errors
    ///
    /// As [`Emitter::next_rows`].
    pub fn next_chunk(
        &mut self,
        bytes_max: usize,
        out: &mut BytesMut,
    ) -> Result<Progress, EmitError> {
        let progress = self.next_rows(bytes_max, out)?;
        if progress == Progress::Done {
            self.tail(out);
        }
        Ok(progress)
    }

    /// Without a pin, or with a broken one, a chunk counts only if compaction had not passed it when it was read.
    fn checked(&self, progress: Progress) -> Result<Progress, EmitError> {
        if self.is_passed() {
            Err(EmitError::Compacted)
        } else {
            Ok(progress)
        }
    }

    fn is_passed(&self) -> bool {
        is_passed(&self.shared, self.plan.pin.as_ref(), self.plan.held_main)
    }

    /// Why a row is not there: where no compaction can have taken it, the file is damaged.
    fn missing(&self, revision: Revision) -> EmitError {
        if self.is_passed() {
            EmitError::Compacted
        } else {
            EmitError::Store(Error::missing_record(revision))
        }
    }
}

fn put_len(len: usize, out: &mut BytesMut) {
    out.put_u8(TAG_KVS);
    encode_varint(len as u64, out);
}
