//! The leader's part: when each lease runs out.

use std::collections::BTreeMap;

use keelson_proto::ids::LeaseId;

use super::wheel::{Turn, Wheel};

/// How many leases may be revoked in a second.
pub const REVOKES_PER_SECOND: usize = 1_000;

/// The time between two looks for expired leases, in milliseconds.
pub const EXPIRY_CHECK_EVERY: u64 = 500;

/// How many leases one look may find.
pub const EXPIRED_PER_CHECK: usize = REVOKES_PER_SECOND / 2;

/// An expired lease that is still there after this time, in milliseconds, is given out again.
pub const REVOKE_RETRY_EVERY: u64 = 3_000;

/// How many leases may run out in a second after a promotion: fewer than can be revoked, so that a
/// pile of them does not take the whole rate.
const SPREAD_PER_SECOND: usize = 3 * REVOKES_PER_SECOND / 4;

/// A moment of a monotonic clock of any origin, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticks(pub u64);

impl Ticks {
    /// The moment so many milliseconds later.
    #[must_use]
    pub fn after(self, millis: u64) -> Ticks {
        Ticks(self.0.saturating_add(millis))
    }

    /// How far `self` lies behind `earlier`, in milliseconds; negative where it lies before it.
    pub(super) fn since(self, earlier: Ticks) -> i64 {
        if self >= earlier {
            i64::try_from(self.0 - earlier.0).unwrap_or(i64::MAX)
        } else {
            i64::try_from(earlier.0 - self.0).map_or(i64::MIN, |millis| -millis)
        }
    }
}

/// What is left of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remaining {
    /// So many milliseconds; not positive where the lease has run out and is not revoked yet.
    Millis(i64),
    /// Not known here: this member does not lead.
    Forever,
}

impl Remaining {
    /// Whole seconds, cut off towards zero; `None` where it is not known.
    #[must_use]
    pub fn seconds(self) -> Option<i64> {
        match self {
            Remaining::Millis(millis) => Some(millis / 1_000),
            Remaining::Forever => None,
        }
    }
}

/// What became of a keep-alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease has its full time again; what was granted, in seconds.
    Renewed {
        /// The granted time to live, in seconds.
        ttl: i64,
    },
    /// A remaining time was written down, and would shorten the lease: propose a checkpoint of 0 for
    /// it, and renew again when that is applied.
    ClearCheckpoint,
    /// It has run out: wait until it is revoked (then it is unknown) or this member is demoted.
    Expired,
    /// There is no such lease.
    Unknown,
    /// This member does not lead: ask the one that does.
    NotPrimary,
}

/// What is kept of a lease here.
#[derive(Clone, Debug)]
pub(super) struct Item {
    ttl: i64,
    pub(super) remaining_ttl: i64,
    /// `None` while this member does not lead.
    pub(super) expiry: Option<Ticks>,
    /// When to look at it: not behind `expiry`, but for leases that were given out as expired, which
    /// wait for being given out again. The wheel has an entry in this time's slot.
    due: Option<Ticks>,
    /// When to write down what is left. The checkpoints' wheel has an entry in this time's slot.
    pub(super) checkpoint_due: Option<Ticks>,
}

impl Item {
    pub(super) fn ttl(&self) -> i64 {
        self.ttl
    }

    /// What a lease starts with, in seconds.
    pub(super) fn full(&self) -> i64 {
        if self.remaining_ttl > 0 {
            self.remaining_ttl
        } else {
            self.ttl
        }
    }

    fn expiry_from(&self, now: Ticks, extend: i64) -> Ticks {
        let millis = self.full().saturating_mul(1_000).saturating_add(extend);
        now.after(u64::try_from(millis).unwrap_or(0))
    }
}

/// When each lease runs out: volatile, the leader's alone.
///
/// Every lease of the table is in here on every member, since any may be promoted; where a member
/// does not lead they last forever. Times are passed in, and must not go back.
/// A keep-alive costs one look-up, whatever the number of leases; looking for expired ones costs what
/// is found, and one look at each lease that was renewed since.
#[derive(Clone, Debug, Default)]
pub struct Deadlines {
    pub(super) checkpointing: bool,
    primary: bool,
    pub(super) items: BTreeMap<LeaseId, Item>,
    wheel: Wheel,
    pub(super) checkpoints: Wheel,
}

impl Deadlines {
    /// No leases, not leading. `checkpointing` is whether remaining times are to be written down
    /// (the feature `LeaseCheckpoint`).
    #[must_use]
    pub fn new(checkpointing: bool) -> Deadlines {
        Deadlines {
            checkpointing,
            ..Deadlines::default()
        }
    }

    /// Whether this member keeps the times.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.primary
    }

    /// How many leases there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is no lease.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Tells of a lease that was granted, or found at boot: seconds as the table has them.
    pub fn granted(&mut self, id: LeaseId, ttl: i64, remaining_ttl: i64, now: Ticks) {
        let item = Item {
            ttl,
            remaining_ttl,
            expiry: None,
            due: None,
            checkpoint_due: None,
        };
        self.items.insert(id, item);
        if self.primary {
            self.refresh(id, now, 0);
            self.schedule_checkpoint(id, now);
        }
    }

    /// Tells of a lease that was revoked.
    pub fn revoked(&mut self, id: LeaseId) {
        self.items.remove(&id);
        self.throw_out_stale();
    }

    /// Tells of a remaining time that was written down, in seconds; 0 is all of it. The running time
    /// stays as it is: it counts at the next promotion.
    pub fn checkpointed(&mut self, id: LeaseId, remaining_ttl: i64, now: Ticks) {
        let Some(item) = self.items.get_mut(&id) else {
            return;
        };
        item.remaining_ttl = remaining_ttl;
        if self.primary {
            self.schedule_checkpoint(id, now);
        }
    }

    /// This member leads from now on: every lease has its time (what was written down of it) again,
    /// and `extend` milliseconds, the election's time. Where too many would run out together they
    /// are spread over more seconds.
    pub fn promote(&mut self, now: Ticks, extend: u64) {
        let extend = i64::try_from(extend).unwrap_or(i64::MAX);
        self.primary = true;
        let ids: Vec<LeaseId> = self.items.keys().copied().collect();
        for id in &ids {
            self.refresh(*id, now, extend);
            self.schedule_checkpoint(*id, now);
        }
        if ids.len() >= REVOKES_PER_SECOND {
            self.spread(now, extend);
        }
    }

    /// etcd's rule (`server/lease/lessor.go`, `Promote`): leases that end within a second of one
    /// another make a window; past the 750th of a window each is put off in proportion to its place.
    fn spread(&mut self, now: Ticks, extend: i64) {
        const SECOND: i64 = 1_000;
        let per_second = i64::try_from(SPREAD_PER_SECOND).unwrap_or(i64::MAX);
        let mut order: Vec<(Ticks, LeaseId)> = self
            .items
            .iter()
            .filter_map(|(id, item)| item.expiry.map(|expiry| (expiry, *id)))
            .collect();
        order.sort_unstable();
        let Some((first, _)) = order.first() else {
            return;
        };
        let mut base = first.since(now);
        let mut window_end = base.saturating_add(SECOND);
        let mut count: i64 = 0;
        for (expiry, id) in order {
            let remaining = expiry.since(now);
            if remaining > window_end {
                base = remaining;
                window_end = base.saturating_add(SECOND);
                count = 1;
                continue;
            }
            count += 1;
            if count <= per_second {
                continue;
            }
            let delay = SECOND * count / per_second - (remaining - base);
            window_end = base.saturating_add(delay);
            self.refresh(id, now, delay.saturating_add(extend));
        }
    }

    /// This member leads no longer: leases last forever here.
    pub fn demote(&mut self) {
        self.primary = false;
        self.wheel.clear();
        self.checkpoints.clear();
        for item in self.items.values_mut() {
            item.expiry = None;
            item.due = None;
            item.checkpoint_due = None;
        }
    }

    /// A keep-alive.
    pub fn renew(&mut self, id: LeaseId, now: Ticks) -> Renewal {
        if !self.primary {
            return Renewal::NotPrimary;
        }
        let Some(item) = self.items.get(&id) else {
            return Renewal::Unknown;
        };
        if item.expiry.is_some_and(|expiry| expiry <= now) {
            return Renewal::Expired;
        }
        if self.checkpointing && item.remaining_ttl > 0 {
            return Renewal::ClearCheckpoint;
        }
        let ttl = item.ttl;
        self.refresh(id, now, 0);
        Renewal::Renewed { ttl }
    }

    /// What is left of a lease; `None` where there is no such lease.
    #[must_use]
    pub fn remaining(&self, id: LeaseId, now: Ticks) -> Option<Remaining> {
        let item = self.items.get(&id)?;
        Some(match item.expiry {
            Some(expiry) => Remaining::Millis(expiry.since(now)),
            None => Remaining::Forever,
        })
    }

    /// All leases, those that run out first in front; by id where this member does not lead.
    #[must_use]
    pub fn by_remaining(&self) -> Vec<LeaseId> {
        let mut order: Vec<(Option<Ticks>, LeaseId)> = self
            .items
            .iter()
            .map(|(id, item)| (item.expiry, *id))
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(_, id)| id).collect()
    }

    /// At most `max` ([`EXPIRED_PER_CHECK`]) leases that have run out and are to be revoked. One
    /// that is still there [`REVOKE_RETRY_EVERY`] later is given out again.
    pub fn expired(&mut self, now: Ticks, max: usize) -> Vec<LeaseId> {
        let mut found = Vec::new();
        let Deadlines { items, wheel, .. } = self;
        wheel.turn(now, |id, slot| {
            if found.len() >= max {
                return None;
            }
            let Some(item) = items.get_mut(&id) else {
                return Some(Turn::Drop);
            };
            let (Some(due), Some(expiry)) = (item.due, item.expiry) else {
                return Some(Turn::Drop);
            };
            if !Wheel::same_slot(due, slot) {
                return Some(Turn::Drop);
            }
            let again = if due > now {
                due
            } else if expiry > now {
                expiry
            } else {
                found.push(id);
                now.after(REVOKE_RETRY_EVERY)
            };
            item.due = Some(again);
            Some(Turn::Again(again))
        });
        found
    }

    /// Gives a lease its time from now on, and `extend` milliseconds.
    fn refresh(&mut self, id: LeaseId, now: Ticks, extend: i64) {
        let Some(item) = self.items.get_mut(&id) else {
            return;
        };
        let expiry = item.expiry_from(now, extend);
        item.expiry = Some(expiry);
        // Put off: the entry that is there finds out when its slot comes.
        if item.due.is_some_and(|due| due <= expiry) {
            return;
        }
        let armed = item.due.is_some_and(|due| Wheel::same_slot(due, expiry));
        item.due = Some(expiry);
        if !armed {
            self.wheel.arm(expiry, id);
            self.throw_out_stale();
        }
    }

    /// Keeps stale entries to a share of the leases, so that leases of long times which are
    /// revoked at once don't pile up.
    pub(super) fn throw_out_stale(&mut self) {
        if self.wheel.is_stale(self.items.len()) {
            self.wheel.clear();
            for (id, item) in &self.items {
                if let Some(due) = item.due {
                    self.wheel.arm(due, *id);
                }
            }
        }
        if self.checkpoints.is_stale(self.items.len()) {
            self.checkpoints.clear();
            for (id, item) in &self.items {
                if let Some(due) = item.checkpoint_due {
                    self.checkpoints.arm(due, *id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
