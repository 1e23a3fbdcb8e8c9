//! Hashes over history and file, equal to etcd's on the same history.
//!
//! # Source
//!
//! formats: "HashKV" and "Hash"; etcd v3.7.1 `server/storage/mvcc/hash.go`.

use std::ops::ControlFlow;
use std::sync::Arc;

use crc32c::crc32c_append;
use keelson_proto::ApiError;

use crate::index::KeepSet;
use crate::range::PlanError;
use crate::tail::Durable;
use crate::view::Row;
use crate::{Error, Shared, schema};

/// A hash over the history up to a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// CRC-32C.
    pub hash: u32,
    /// The compaction that the history has behind it, -1 for none. Two hashes can only be compared
    /// if this is equal.
    pub compact_revision: i64,
    /// The revision that it goes up to.
    pub hash_revision: i64,
}

/// Walks rows of the `key` bucket and hashes those that count.
pub(crate) struct Hasher<K> {
    crc: u32,
    compact_revision: i64,
    revision: i64,
    /// Whether a record at or below the compact revision is still there for etcd.
    kept: K,
}

impl<K: Fn(&Row<'_>) -> bool> Hasher<K> {
    pub(crate) fn new(compact_revision: i64, revision: i64, kept: K) -> Hasher<K> {
        let crc = crc32c_append(0, schema::KEY.as_bytes());
        Hasher {
            crc,
            compact_revision,
            revision,
            kept,
        }
    }

    /// Takes in one row.
    pub(crate) fn row(&mut self, row: &Row<'_>) {
        let main = row.revision.main;
        if main > self.revision
            || (main <= self.compact_revision && !(self.kept)(row))
            || (main == self.compact_revision && row.tombstone)
        {
            return;
        }
        self.crc = crc32c_append(self.crc, row.key);
        self.crc = crc32c_append(self.crc, row.value);
    }

    pub(crate) fn finish(self) -> HashKv {
        HashKv {
            hash: self.crc,
            compact_revision: self.compact_revision,
            hash_revision: self.revision,
        }
    }
}

/// Hashes the history up to `revision`, 0 for the current one. Reads the whole file: to be called
/// where waiting for a disk hurts nobody.
///
/// # Errors
///
/// `FutureRev`, `Compacted`, or a failing file.
pub fn hash_kv(shared: &Arc<Shared>, revision: i64) -> Result<HashKv, PlanError> {
    if revision < 0 {
        let compact_revision = shared.compact_revision();
        return Ok(Hasher::new(compact_revision, revision, |_: &Row<'_>| true).finish());
    }
    // (etcd lets 0 find the hash of a compaction to 0: a slip not worth copying.)
    if revision > 0
        && let Some(remembered) = shared.compaction_hash(revision)
    {
        return Ok(remembered);
    }
    // The pin keeps later compactions from removing what this one has left, until we are done.
    let (compact_revision, _pin) = loop {
        let compact_revision = shared.compact_revision();
        let pin = shared.pin(compact_revision);
        if shared.compact_revision() == compact_revision {
            break (compact_revision, pin);
        }
    };
    let current = shared.revision();
    if revision > current {
        return Err(ApiError::FutureRev.into());
    }
    if revision > 0 && revision < compact_revision {
        return Err(ApiError::Compacted.into());
    }
    let revision = if revision == 0 { current } else { revision };
    let keep = counted(shared, revision, compact_revision);
    let kept = |row: &Row<'_>| keep.contains(row.revision);
    let mut hasher = Hasher::new(compact_revision, revision, kept);
    shared.view().walk(0, revision, |row| {
        hasher.row(&row);
        ControlFlow::Continue(())
    })?;
    Ok(hasher.finish())
}

/// Which revisions at or below the compact revision count in a hash.
///
/// Where nothing is alive at `revision`, etcd counts the rows that are there, whichever those are while a
/// compaction removes them: two members that differ in nothing else seem to differ then. This counts
/// those that stay at the end.
fn counted(shared: &Shared, revision: i64, compact_revision: i64) -> KeepSet {
    let keep = shared.index().keep(revision);
    if keep.is_empty() {
        shared.index().keep_of_compaction(compact_revision)
    } else {
        keep
    }
}

/// Hashes the whole file bucket by bucket, but for the rows that differ between members for no
/// fault of theirs.
///
/// # Errors
///
/// A failing or damaged file.
pub fn hash(durable: &Durable) -> Result<u32, Error> {
    let mut crc = 0;
    for name in schema::BUCKETS {
        let Some(bucket) = durable.read.bucket(name.as_bytes())? else {
            continue;
        };
        crc = crc32c_append(crc, name.as_bytes());
        let mut cursor = bucket.cursor();
        let mut row = cursor.first()?;
        while let Some((key, value)) = row {
            let skipped = name == schema::META
                && [
                    schema::CONSISTENT_INDEX,
                    schema::TERM,
                    schema::STORAGE_VERSION,
                ]
                .contains(&key);
            if !skipped {
                crc = crc32c_append(crc, key);
                crc = crc32c_append(crc, value.unwrap_or_default());
            }
            row = cursor.next()?;
        }
    }
    Ok(crc)
}
