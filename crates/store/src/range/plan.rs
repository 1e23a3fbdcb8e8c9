//! What a range will answer, from the index alone: rows of 16 bytes, the count, and the exact
//! length of the answer.

use std::ops::ControlFlow;
use std::sync::Arc;

use keelson_proto::ApiError;
use keelson_proto::rpc::etcdserverpb::RangeRequest;
use keelson_proto::rpc::etcdserverpb::range_request::SortTarget;

use super::emit::Emitter;
use super::sort::{self, Candidate};
use super::varint_len;
use crate::index::{Found, KeyRange};
use crate::pin::Pin;
use crate::{Error, Revision, Shared, record};

/// The moment that a range reads at.
#[derive(Clone, Copy, Debug)]
pub enum ReadAt {
    /// The request's revision, or the current one.
    Current,
    /// A place inside a transaction that was applied.
    InTxn {
        /// What the range sees, unless the request names a revision.
        at: Revision,
        /// The header's revision.
        header: i64,
    },
}

/// One stored record of an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) revision: Revision,
    pub(super) len: u32,
}

const _: () = assert!(size_of::<Row>() <= 24);

/// The rows of an answer.
#[derive(Debug)]
pub(super) enum Rows {
    /// To be spliced from stored bytes.
    Stored(Vec<Row>),
    /// Encoded already: keys without values.
    Encoded(Encoded),
}

/// Encoded records, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Encoded {
    /// The bytes of a row.
    pub(super) fn row(&self, row: usize) -> &[u8] {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[row]]
    }
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        match self {
            Rows::Stored(rows) => rows.len(),
            Rows::Encoded(rows) => rows.ends.len(),
        }
    }

    /// The length of a row behind its tag and length, in bytes.
    pub(super) fn framed_len(&self, row: usize) -> u64 {
        let len = match self {
            Rows::Stored(rows) => u64::from(rows[row].len),
            Rows::Encoded(rows) => rows.row(row).len() as u64,
        };
        1 + varint_len(len) + len
    }
}

/// A range's answer before its bytes are fetched.
#[derive(Debug)]
pub struct Plan {
    /// The header's revision: the current one, whichever was read.
    pub revision: i64,
    /// Keys in the range, whatever limit and filters say.
    pub count: u64,
    /// Whether the limit cut something off.
    pub more: bool,
    pub(super) rows: Rows,
    /// The main revision whose compaction the read survives: one above it may remove rows.
    pub(super) held_main: i64,
    pub(super) pin: Option<Pin>,
}

/// Whether planning this request reads stored values, so that it may wait for the disk: sorts by
/// value do.
#[must_use]
pub fn reads_values(request: &RangeRequest) -> bool {
    request.sort_target == SortTarget::Value as i32 && !request.count_only
}

/// Plans a range.
///
/// The request has been validated: its key is not empty, its enums are known.
///
/// # Errors
///
/// [`PlanError::Refused`] with `FutureRev` or `Compacted`; [`PlanError::Store`] if the file fails.
pub fn plan(shared: &Arc<Shared>, request: &RangeRequest, at: ReadAt) -> Result<Plan, PlanError> {
    let moment = Moment::of(shared, request, at)?;
    let range = KeyRange::new(&request.key, &request.range_end);
    let count = shared.index().count(range, moment.at);
    let mut plan = Plan {
        revision: moment.header,
        count,
        more: false,
        rows: Rows::Stored(Vec::new()),
        held_main: held_main(moment.at),
        pin: Some(moment.pin),
    };
    if request.count_only {
        return Ok(plan);
    }
    let order = sort::Order::of(request);
    let filters = Filters::of(request);
    let limit = usize::try_from(request.limit).unwrap_or_default();
    let fetch_max = match limit {
        0 => usize::MAX,
        _ if order.needs_everything() || filters.any() => usize::MAX,
        limit => limit.saturating_add(1),
    };
    let values = reads_values(request);
    let keep_keys = request.keys_only && !values;
    let mut found = Vec::with_capacity(if filters.any() {
        0
    } else {
        usize::try_from(count).map_or(0, |count| count.min(fetch_max))
    });
    shared.index().visit(range, moment.at, None, &mut |entry| {
        if filters.pass(&entry) {
            found.push(Candidate::of(&entry, keep_keys));
        }
        if found.len() < fetch_max {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    if values {
        let held = plan.pin.as_ref();
        let passed = || is_passed(shared, held, plan.held_main);
        sort::read_values(shared, &mut found, passed)?;
    }
    order.sort(&mut found);
    if limit > 0 && found.len() > limit {
        found.truncate(limit);
        plan.more = true;
    }
    plan.rows = rows(request, found);
    Ok(plan)
}

/// Why a range cannot be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The client asked for something that is not there.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// The file failed.
    #[error(transparent)]
    Store(#[from] Error),
}

fn rows(request: &RangeRequest, found: Vec<Candidate>) -> Rows {
    if request.keys_only {
        let mut rows = Encoded::default();
        for candidate in found {
            candidate.encode_key_only(&mut rows.bytes);
            rows.ends.push(rows.bytes.len());
        }
        return Rows::Encoded(rows);
    }
    // Not collected: that would keep the room of the candidates, five times as much, as long as the
    // answer lives.
    let mut rows = Vec::with_capacity(found.len());
    rows.extend(found.into_iter().map(|candidate| Row {
        revision: candidate.revision,
        len: candidate.len,
    }));
    Rows::Stored(rows)
}

/// The last main revision that may be compacted to without taking a row from a read at `at`.
///
/// A compaction leaves of each key what its own transaction left: what a read sees in the middle of that
/// transaction goes.
fn held_main(at: Revision) -> i64 {
    if at == Revision::end_of(at.main) {
        at.main
    } else {
        at.main - 1
    }
}

/// Whether a compaction may have taken rows from a read that survives one to `held_main`: then what is
/// missing is compacted. If not, the file does not hold what the index names.
pub(super) fn is_passed(shared: &Shared, pin: Option<&Pin>, held_main: i64) -> bool {
    // In this order: pins are broken after a compaction was published.
    pin.is_none_or(Pin::is_broken) && held_main < shared.compact_revision()
}

/// The moment to read at, held against compaction.
struct Moment {
    at: Revision,
    header: i64,
    pin: Pin,
}

impl Moment {
    fn of(shared: &Arc<Shared>, request: &RangeRequest, at: ReadAt) -> Result<Moment, ApiError> {
        match at {
            ReadAt::InTxn { at, header } => {
                let at = match request.revision {
                    revision if revision > 0 => Revision::end_of(revision),
                    _ => at,
                };
                Ok(Moment {
                    at,
                    header,
                    pin: shared.pin(held_main(at)),
                })
            }
            ReadAt::Current if request.revision > 0 => {
                let header = shared.revision();
                if request.revision > header {
                    return Err(ApiError::FutureRev);
                }
                let pin = shared.pin(request.revision);
                if request.revision < shared.compact_revision() {
                    return Err(ApiError::Compacted);
                }
                Ok(Moment {
                    at: Revision::end_of(request.revision),
                    header,
                    pin,
                })
            }
            // A compaction may pass between the two looks; the current revision is then a later
            // one, and the next attempt holds that.
            ReadAt::Current => loop {
                let header = shared.revision();
                let pin = shared.pin(header);
                if header >= shared.compact_revision() {
                    return Ok(Moment {
                        at: Revision::end_of(header),
                        header,
                        pin,
                    });
                }
            },
        }
    }
}

/// The four revision filters; 0 is unset, bounds are inclusive.
struct Filters {
    mod_min: i64,
    mod_max: i64,
    create_min: i64,
    create_max: i64,
}

impl Filters {
    fn of(request: &RangeRequest) -> Filters {
        Filters {
            mod_min: request.min_mod_revision,
            mod_max: request.max_mod_revision,
            create_min: request.min_create_revision,
            create_max: request.max_create_revision,
        }
    }

    fn any(&self) -> bool {
        [self.mod_min, self.mod_max, self.create_min, self.create_max]
            .iter()
            .any(|&bound| bound != 0)
    }

    fn pass(&self, entry: &Found<'_>) -> bool {
        let within = |value: i64, min: i64, max: i64| {
            (min == 0 || value >= min) && (max == 0 || value <= max)
        };
        within(entry.rev.main, self.mod_min, self.mod_max)
            && within(entry.create, self.create_min, self.create_max)
    }
}

impl Plan {
    /// How many records the answer has.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The exact length of the encoded `RangeResponse` without its header, in bytes.
    #[must_use]
    pub fn body_len(&self) -> u64 {
        let rows = (0..self.rows.len()).map(|row| self.rows.framed_len(row));
        rows.sum::<u64>() + self.tail_len()
    }

    /// The length of what follows the records, in bytes.
    #[must_use]
    pub fn tail_len(&self) -> u64 {
        let count = if self.count == 0 {
            0
        } else {
            1 + varint_len(self.count)
        };
        count + if self.more { 2 } else { 0 }
    }

    /// Goes on to the bytes; compaction waits until they are emitted or dropped.
    #[must_use]
    pub fn into_emitter(self, shared: Arc<Shared>) -> Emitter {
        Emitter::new(self, shared)
    }

    /// Goes on to the bytes without holding compaction back: a chunk that it has passed ends the
    /// emission.
    #[must_use]
    pub fn into_unpinned_emitter(mut self, shared: Arc<Shared>) -> Emitter {
        self.pin = None;
        Emitter::new(self, shared)
    }
}

impl Candidate {
    fn of(entry: &Found<'_>, keep_key: bool) -> Candidate {
        Candidate {
            revision: entry.rev,
            create: entry.create,
            version: entry.version,
            len: entry.stored_len,
            key: if keep_key {
                entry.key.to_vec()
            } else {
                Vec::new()
            },
            value: None,
        }
    }

    /// The record without its value. From the index the lease is not known and left out, as in
    /// etcd 3.7; where the record was read for its value, the lease is there.
    fn encode_key_only(self, out: &mut Vec<u8>) {
        let (key, lease) = match &self.value {
            Some(read) => (&read.key, read.lease),
            None => (&self.key, 0),
        };
        record::encode(
            key,
            self.create,
            self.revision.main,
            self.version,
            &[],
            lease,
            out,
        );
    }
}
