//! Orders that a range can ask for.

use std::sync::Arc;

use keelson_proto::ApiError;
use keelson_proto::rpc::etcdserverpb::RangeRequest;
use keelson_proto::rpc::etcdserverpb::range_request::{SortOrder, SortTarget};

use super::plan::PlanError;
use crate::{Error, Revision, Shared, record, schema};

/// A row on its way into a plan.
pub(super) struct Candidate {
    pub(super) revision: Revision,
    pub(super) create: i64,
    pub(super) version: i64,
    /// The length of the stored record, in bytes.
    pub(super) len: u32,
    /// The key, where the answer is keys only and made from the index; empty otherwise.
    pub(super) key: Vec<u8>,
    /// What was read, where the order is by value.
    pub(super) value: Option<Read>,
}

/// A record that was read to be sorted.
pub(super) struct Read {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) lease: i64,
}

/// By what, and which way.
#[derive(Clone, Copy)]
pub(super) struct Order {
    order: SortOrder,
    target: SortTarget,
}

impl Order {
    pub(super) fn of(request: &RangeRequest) -> Order {
        Order {
            order: SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None),
            target: SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key),
        }
    }

    /// Whether a limit may only cut after sorting. A target without an order sorts what the limit
    /// has left over in key order, as in etcd.
    pub(super) fn needs_everything(self) -> bool {
        match self.order {
            SortOrder::None => false,
            SortOrder::Ascend => self.target != SortTarget::Key,
            SortOrder::Descend => true,
        }
    }

    /// Sorts rows that are in key order; equal ones stay in it, whichever way the sort goes.
    pub(super) fn sort(self, found: &mut [Candidate]) {
        let descend = self.order == SortOrder::Descend;
        if descend && self.target != SortTarget::Key {
            // So that reversing it all at the end brings equal ones back into key order.
            found.reverse();
        }
        match self.target {
            SortTarget::Key => {}
            SortTarget::Version => found.sort_by_key(|row| row.version),
            SortTarget::Create => found.sort_by_key(|row| row.create),
            SortTarget::Mod => found.sort_by_key(|row| row.revision.main),
            SortTarget::Value => {
                let value = |row: &'_ Candidate| row.value.as_ref().map(|read| read.value.clone());
                found.sort_by_cached_key(value);
            }
        }
        if descend {
            found.reverse();
        }
    }
}

/// Reads the value of each row; `passed` tells whether a compaction may have taken one that is missing.
pub(super) fn read_values(
    shared: &Arc<Shared>,
    found: &mut [Candidate],
    passed: impl Fn() -> bool,
) -> Result<(), PlanError> {
    let view = shared.view();
    for row in found {
        let Some(bytes) = view.record(row.revision)? else {
            return Err(if passed() {
                ApiError::Compacted.into()
            } else {
                Error::missing_record(row.revision).into()
            });
        };
        let peeked = record::peek(&bytes).map_err(|source| Error::CorruptRow {
            bucket: schema::KEY,
            key: crate::BucketKey::encode(row.revision, false)
                .as_bytes()
                .to_vec(),
            reason: source.to_string(),
        })?;
        row.value = Some(Read {
            key: peeked.key.to_vec(),
            value: peeked.value.to_vec(),
            lease: peeked.lease,
        });
    }
    Ok(())
}
