//! Rows of the small buckets, as data: what a change of the replicated state must write.
//!
//! The states ([`crate::auth`], [`crate::lease`], [`crate::alarm`], [`crate::member`]) know no
//! backend: their changes push [`RowChange`]s, which the caller writes in the transaction of the
//! entry that made them. Buckets, keys and values are those of etcd (formats.md 2.1).

use thiserror::Error;

/// Names of the buckets whose rows are made here.
pub mod bucket {
    /// Active alarms.
    pub const ALARM: &str = "alarm";
    /// Whether authentication is on, and its revision.
    pub const AUTH: &str = "auth";
    /// Roles, by name.
    pub const AUTH_ROLES: &str = "authRoles";
    /// Users, by name.
    pub const AUTH_USERS: &str = "authUsers";
    /// Cluster version and downgrade.
    pub const CLUSTER: &str = "cluster";
    /// Leases, by id.
    pub const LEASE: &str = "lease";
    /// Members, by id.
    pub const MEMBERS: &str = "members";
    /// Ids that must not come back.
    pub const MEMBERS_REMOVED: &str = "members_removed";
}

/// One row to write or to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    /// The top-level bucket.
    pub bucket: &'static str,
    /// The row's key; never empty.
    pub key: Vec<u8>,
    /// The row's new value; `None` deletes it.
    pub value: Option<Vec<u8>>,
}

impl RowChange {
    /// Writes a row.
    #[must_use]
    pub fn put(bucket: &'static str, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        RowChange {
            bucket,
            key: key.into(),
            value: Some(value.into()),
        }
    }

    /// Deletes a row.
    #[must_use]
    pub fn delete(bucket: &'static str, key: impl Into<Vec<u8>>) -> Self {
        RowChange {
            bucket,
            key: key.into(),
            value: None,
        }
    }
}

/// A stored row, or a replicated description, that is not what it must be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{place} row {key:?}: expected {expected}, found {found}")]
#[non_exhaustive]
pub struct RowError {
    /// The bucket, or where else the bytes came from.
    pub place: &'static str,
    /// The row's key, with what is not ASCII escaped.
    pub key: String,
    /// What should have been there.
    pub expected: &'static str,
    /// What was there.
    pub found: String,
}

impl RowError {
    pub(crate) fn new(
        place: &'static str,
        key: &[u8],
        expected: &'static str,
        found: impl ToString,
    ) -> Self {
        RowError {
            place,
            key: key.escape_ascii().to_string(),
            expected,
            found: found.to_string(),
        }
    }

    /// With the value itself as what was found, cut where it is long.
    pub(crate) fn value(
        place: &'static str,
        key: &[u8],
        expected: &'static str,
        value: &[u8],
    ) -> Self {
        const SHOWN_BYTES: usize = 64;
        let shown = value.get(..SHOWN_BYTES).unwrap_or(value);
        Self::new(
            place,
            key,
            expected,
            format!("{:?}", shown.escape_ascii().to_string()),
        )
    }
}
