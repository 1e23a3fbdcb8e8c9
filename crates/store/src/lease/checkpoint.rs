//! Which leases' remaining times are to be written down, and when: so that a change of leaders does
//! not give a long lease its whole time again.

use keelson_proto::ids::LeaseId;
use keelson_proto::rpc::etcdserverpb::LeaseCheckpoint;

use super::deadlines::{Deadlines, Ticks};
use super::wheel::{Turn, Wheel};

/// The time between two checkpoints of a lease, in milliseconds. Leases with no more than that are
/// never written down.
pub const CHECKPOINT_EVERY: u64 = 5 * 60 * 1_000;

/// How many leases one request writes down.
pub const CHECKPOINTS_PER_REQUEST: usize = 1_000;

impl Deadlines {
    /// Checkpoints that are due, at most `max` ([`CHECKPOINTS_PER_REQUEST`]), to be proposed as one
    /// request. None on a member that does not lead.
    pub fn due_checkpoints(&mut self, now: Ticks, max: usize) -> Vec<LeaseCheckpoint> {
        let mut found = Vec::new();
        let Deadlines {
            items, checkpoints, ..
        } = self;
        checkpoints.turn(now, |id, slot| {
            if found.len() >= max {
                return None;
            }
            let Some(item) = items.get_mut(&id) else {
                return Some(Turn::Drop);
            };
            let (Some(due), Some(expiry)) = (item.checkpoint_due, item.expiry) else {
                return Some(Turn::Drop);
            };
            if !Wheel::same_slot(due, slot) {
                return Some(Turn::Drop);
            }
            if due > now {
                return Some(Turn::Again(due));
            }
            let left = expiry.since(now);
            if left <= 0 {
                // It is about to be revoked.
                item.checkpoint_due = None;
                return Some(Turn::Drop);
            }
            let remaining_ttl = left / 1_000 + i64::from(left % 1_000 > 0);
            // One that has all of its time needs no note. It may need one later.
            if remaining_ttl < item.ttl() {
                found.push(LeaseCheckpoint {
                    id: id.0,
                    remaining_ttl,
                });
            }
            let again = now.after(CHECKPOINT_EVERY);
            item.checkpoint_due = Some(again);
            Some(Turn::Again(again))
        });
        found
    }

    /// Sees to it that a lease is written down in a while, if that is worth it.
    pub(super) fn schedule_checkpoint(&mut self, id: LeaseId, now: Ticks) {
        if !self.checkpointing {
            return;
        }
        let Some(item) = self.items.get_mut(&id) else {
            return;
        };
        if i128::from(item.full()) * 1_000 <= i128::from(CHECKPOINT_EVERY) {
            return;
        }
        let due = now.after(CHECKPOINT_EVERY);
        if item.checkpoint_due == Some(due) {
            return;
        }
        item.checkpoint_due = Some(due);
        self.checkpoints.arm(due, id);
        self.throw_out_stale();
    }
}
