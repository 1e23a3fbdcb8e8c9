//! The replicated part: which leases there are, and which keys hang on them.

use std::collections::BTreeMap;
use std::sync::Arc;

use keelson_proto::ApiError;
use keelson_proto::ids::LeaseId;
use keelson_proto::rpc::leasepb;
use prost::Message as _;

use super::keys::KeySet;
use crate::auth::LeaseKeys;
use crate::row::{RowChange, RowError, bucket};

/// The longest time to live that may be asked for, in seconds.
pub const TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// The shortest time to live, in seconds, for an election of so many ticks of so many milliseconds:
/// one and a half elections, rounded up.
#[must_use]
pub fn ttl_seconds_min(election_ticks: u64, tick_millis: u64) -> i64 {
    let millis = (election_ticks.saturating_mul(3) / 2).saturating_mul(tick_millis);
    i64::try_from(millis.div_ceil(1_000)).unwrap_or(i64::MAX)
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What was granted, in seconds.
    ttl: i64,
    /// What was left when it was last written down, in seconds; 0 for all of it.
    remaining_ttl: i64,
    keys: KeySet,
}

impl Lease {
    /// What was granted, in seconds.
    #[must_use]
    pub fn ttl(&self) -> i64 {
        self.ttl
    }

    /// What was left when it was last written down, in seconds; 0 where it never was.
    #[must_use]
    pub fn remaining_ttl(&self) -> i64 {
        self.remaining_ttl
    }

    /// The keys that hang on it.
    #[must_use]
    pub fn keys(&self) -> &KeySet {
        &self.keys
    }

    fn row(&self, id: LeaseId) -> RowChange {
        let lease = leasepb::Lease {
            id: id.0,
            ttl: self.ttl,
            remaining_ttl: self.remaining_ttl,
        };
        RowChange::put(bucket::LEASE, id.0.to_be_bytes(), lease.encode_to_vec())
    }
}

/// All leases and the keys that hang on them: replicated, changed by entries alone.
///
/// Invariant: a key is in a lease's set exactly if `by_key` leads from it to that lease.
/// Keys are copies of the table's own; the two places share one copy.
#[derive(Clone, Debug, Default)]
pub struct Table {
    ttl_min: i64,
    leases: BTreeMap<LeaseId, Lease>,
    by_key: BTreeMap<Arc<[u8]>, LeaseId>,
}

impl Table {
    /// The table from the rows of the bucket `lease`; `ttl_min` is [`ttl_seconds_min`]. Keys are
    /// not stored there: [`Table::attach`] those of the live keys that name a lease.
    ///
    /// # Errors
    ///
    /// [`RowError`] where a row is not what etcd writes.
    pub fn restore<'a>(
        ttl_min: i64,
        rows: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Table, RowError> {
        let mut table = Table {
            ttl_min,
            ..Table::default()
        };
        for (key, value) in rows {
            let leasepb::Lease {
                id,
                ttl,
                remaining_ttl,
            } = leasepb::Lease::decode(value)
                .map_err(|error| RowError::new(bucket::LEASE, key, "a leasepb.Lease", error))?;
            if key != id.to_be_bytes() {
                return Err(RowError::new(bucket::LEASE, key, "the key as id", id));
            }
            let lease = Lease {
                ttl: ttl.max(ttl_min),
                remaining_ttl,
                keys: KeySet::default(),
            };
            table.leases.insert(LeaseId(id), lease);
        }
        Ok(table)
    }

    /// How many leases there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is no lease.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// The lease of this id.
    #[must_use]
    pub fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// All leases, by id.
    pub fn iter(&self) -> impl Iterator<Item = (LeaseId, &Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, lease))
    }

    /// Grants a lease and answers its time to live, which is at least the minimum.
    ///
    /// # Errors
    ///
    /// [`ApiError::LeaseNotFound`] for id 0 (an id is chosen before an entry is made),
    /// [`ApiError::LeaseTtlTooLarge`] above [`TTL_SECONDS_MAX`], [`ApiError::LeaseExist`].
    pub fn grant(
        &mut self,
        id: LeaseId,
        ttl: i64,
        rows: &mut Vec<RowChange>,
    ) -> Result<i64, ApiError> {
        if id.is_none() {
            return Err(ApiError::LeaseNotFound);
        }
        if ttl > TTL_SECONDS_MAX {
            return Err(ApiError::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(ApiError::LeaseExist);
        }
        let lease = Lease {
            ttl: ttl.max(self.ttl_min),
            remaining_ttl: 0,
            keys: KeySet::default(),
        };
        let granted = lease.ttl;
        rows.push(lease.row(id));
        self.leases.insert(id, lease);
        Ok(granted)
    }

    /// Takes a lease away and answers the keys that hung on it, in the order in which they are to
    /// be deleted, under one revision.
    ///
    /// # Errors
    ///
    /// [`ApiError::LeaseNotFound`].
    pub fn revoke(&mut self, id: LeaseId, rows: &mut Vec<RowChange>) -> Result<KeySet, ApiError> {
        let lease = self.leases.remove(&id).ok_or(ApiError::LeaseNotFound)?;
        for key in &lease.keys {
            self.by_key.remove(key);
        }
        rows.push(RowChange::delete(bucket::LEASE, id.0.to_be_bytes()));
        Ok(lease.keys)
    }

    /// Notes what is left of a lease, in seconds; 0 for all of it. A lease that is gone is passed
    /// over. The row is written where the cluster's version is 3.6 or later, or the flag asks for it:
    /// `persist`.
    pub fn checkpoint(
        &mut self,
        id: LeaseId,
        remaining_ttl: i64,
        persist: bool,
        rows: &mut Vec<RowChange>,
    ) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.remaining_ttl = remaining_ttl;
            if persist {
                rows.push(lease.row(id));
            }
        }
    }

    /// The lease that a key hangs on, or [`LeaseId::NONE`].
    #[must_use]
    pub fn lease_of(&self, key: &[u8]) -> LeaseId {
        self.by_key.get(key).copied().unwrap_or(LeaseId::NONE)
    }

    /// Hangs a key on a lease, and takes it off the one before: what a put does.
    /// [`LeaseId::NONE`] only takes it off.
    ///
    /// # Errors
    ///
    /// [`ApiError::LeaseNotFound`]; then the key stays where it was.
    pub fn attach(&mut self, key: &[u8], id: LeaseId) -> Result<(), ApiError> {
        if id.is_none() {
            self.detach(key);
            return Ok(());
        }
        if !self.leases.contains_key(&id) {
            return Err(ApiError::LeaseNotFound);
        }
        if self.lease_of(key) == id {
            return Ok(());
        }
        self.detach(key);
        let key: Arc<[u8]> = key.into();
        self.by_key.insert(key.clone(), id);
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.insert(key);
        }
        Ok(())
    }

    /// Takes a key off its lease, if it has one: what a delete does.
    pub fn detach(&mut self, key: &[u8]) {
        if let Some(id) = self.by_key.remove(key)
            && let Some(lease) = self.leases.get_mut(&id)
        {
            lease.keys.remove(key);
        }
    }
}

impl LeaseKeys for Table {
    fn keys_of(&self, lease: LeaseId) -> Option<&KeySet> {
        self.get(lease).map(Lease::keys)
    }
}

#[cfg(test)]
mod tests;
