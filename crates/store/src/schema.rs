//! Buckets and rows of etcd's backend file (`docs/format/schema.md`).

use crate::{BucketKey, Error, Revision};

/// Every version of every key: revision to `KeyValue`.
pub const KEY: &str = "key";
/// Single rows about the file itself.
pub const META: &str = "meta";
/// Leases: id, big endian, to `leasepb.Lease`.
pub const LEASE: &str = "lease";
/// Active alarms: `AlarmMember` to nothing.
pub const ALARM: &str = "alarm";
/// Cluster version and downgrade.
pub const CLUSTER: &str = "cluster";
/// Members: hex id to JSON.
pub const MEMBERS: &str = "members";
/// Ids of members that were removed.
pub const MEMBERS_REMOVED: &str = "members_removed";
/// Whether auth is on, and its revision.
pub const AUTH: &str = "auth";
/// Users by name.
pub const AUTH_USERS: &str = "authUsers";
/// Roles by name.
pub const AUTH_ROLES: &str = "authRoles";

/// Every bucket, in the order of their names: the order in which `Hash` walks them.
pub const BUCKETS: [&str; 10] = [
    ALARM,
    AUTH,
    AUTH_ROLES,
    AUTH_USERS,
    CLUSTER,
    KEY,
    LEASE,
    MEMBERS,
    MEMBERS_REMOVED,
    META,
];

/// `meta`: the last entry whose effects are in the file, u64 big endian.
pub const CONSISTENT_INDEX: &[u8] = b"consistent_index";
/// `meta`: the term of that entry, u64 big endian.
pub const TERM: &[u8] = b"term";
/// `meta`: the configuration as JSON.
pub const CONF_STATE: &[u8] = b"confState";
/// `meta`: the release whose schema the file has.
pub const STORAGE_VERSION: &[u8] = b"storageVersion";
/// `meta`: the compaction that was asked for last.
pub const SCHEDULED_COMPACT: &[u8] = b"scheduledCompactRev";
/// `meta`: the compaction that was finished last.
pub const FINISHED_COMPACT: &[u8] = b"finishedCompactRev";
/// `auth`: one byte.
pub const AUTH_ENABLED: &[u8] = b"authEnabled";
/// `auth`: u64 big endian.
pub const AUTH_REVISION: &[u8] = b"authRevision";
/// `cluster`: the cluster version.
pub const CLUSTER_VERSION: &[u8] = b"clusterVersion";
/// `cluster`: the downgrade job as JSON.
pub const DOWNGRADE: &[u8] = b"downgrade";

/// Decodes a key of the `key` bucket, or of a compaction mark.
///
/// # Errors
///
/// [`Error::CorruptRow`] if it is not a revision.
pub(crate) fn revision(key: &[u8]) -> Result<(Revision, bool), Error> {
    BucketKey::decode(key).map_err(|source| Error::CorruptRow {
        bucket: KEY,
        key: key.to_vec(),
        reason: source.to_string(),
    })
}

/// Decodes a u64 in big endian, as `meta` and `auth` hold them.
///
/// # Errors
///
/// [`Error::CorruptRow`] if there are not eight bytes.
pub(crate) fn number(bucket: &'static str, key: &[u8], value: &[u8]) -> Result<u64, Error> {
    value
        .try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| Error::CorruptRow {
            bucket,
            key: key.to_vec(),
            reason: format!("expected 8 bytes, found {}", value.len()),
        })
}
