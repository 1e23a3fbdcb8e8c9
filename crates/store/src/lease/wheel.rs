//! A timing wheel without a rim: slots of equal width, of which only those in use exist.

use std::collections::BTreeMap;

use keelson_proto::ids::LeaseId;

use super::deadlines::Ticks;

/// The width of a slot, in milliseconds: a quarter of the time between two checks.
const SLOT_MILLIS: u64 = 128;

/// Entries beyond twice the number of leases that are kept before stale ones are thrown out.
const STALE_MAX: usize = 1_024;

/// What to look at, and when.
///
/// An entry is a hint: whoever takes it out decides, by the time that the lease itself holds,
/// whether it is due, still to come, or stale. So a lease can be put off without touching the wheel.
#[derive(Clone, Debug, Default)]
pub(super) struct Wheel {
    slots: BTreeMap<u64, Vec<LeaseId>>,
    entries: usize,
}

/// What becomes of an entry that was taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It has gone: stale, or done with.
    Drop,
    /// It is to be looked at again at this time.
    Again(Ticks),
}

impl Wheel {
    fn slot(at: Ticks) -> u64 {
        at.0 / SLOT_MILLIS
    }

    /// Whether both times lie in the same slot.
    pub(super) fn same_slot(left: Ticks, right: Ticks) -> bool {
        Self::slot(left) == Self::slot(right)
    }

    pub(super) fn arm(&mut self, at: Ticks, lease: LeaseId) {
        self.slots.entry(Self::slot(at)).or_default().push(lease);
        self.entries += 1;
    }

    pub(super) fn clear(&mut self) {
        *self = Wheel::default();
    }

    /// Whether so many entries must be stale that the wheel is to be made anew, with `live` leases.
    pub(super) fn is_stale(&self, live: usize) -> bool {
        self.entries > live.saturating_mul(2).saturating_add(STALE_MAX)
    }

    /// Shows entries whose slot has begun, each with a time in its slot, earliest slot first, until
    /// `turn` breaks off.
    pub(super) fn turn(
        &mut self,
        now: Ticks,
        mut turn: impl FnMut(LeaseId, Ticks) -> Option<Turn>,
    ) {
        let mut again = Vec::new();
        'slots: while let Some(first) = self.slots.first_entry() {
            let slot = *first.key();
            if slot > Self::slot(now) {
                break;
            }
            let mut entries = first.remove();
            while let Some(lease) = entries.pop() {
                match turn(lease, Ticks(slot * SLOT_MILLIS)) {
                    Some(Turn::Drop) => self.entries -= 1,
                    Some(Turn::Again(at)) => {
                        self.entries -= 1;
                        again.push((at, lease));
                    }
                    None => {
                        entries.push(lease);
                        self.slots.insert(slot, entries);
                        break 'slots;
                    }
                }
            }
        }
        for (at, lease) in again {
            self.arm(at, lease);
        }
    }
}
