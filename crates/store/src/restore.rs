//! From a file to the state: what is in memory is rebuilt at start.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use keelson_bolt::{Db, FreelistKind, Options, ReadTx};
use keelson_proto::ids::{LeaseId, LogIndex, Term};
use semver::Version;

use crate::alarm::Alarms;
use crate::auth::AuthState;
use crate::commit::{Committer, Place};
use crate::compaction::{CompactionJob, Pending};
use crate::disk::{Disk, RealDisk};
use crate::index::{IndexWriter, Restored};
use crate::lease::{Deadlines, Table, Ticks};
use crate::member::Membership;
use crate::shared::Published;
use crate::store::{Quota, Store, peek};
use crate::tail::{Boundary, Tail};
use crate::view::{View, walk_file};
use crate::{BucketKey, Error, OpCounts, Revision, Shared, schema};

/// The newest schema that this release reads and writes.
const NEWEST: Version = Version::new(3, 7, 0);
/// The oldest one.
const OLDEST: Version = Version::new(3, 5, 0);

/// No store gets further: at one revision a nanosecond this takes 146 years.
const REVISION_MAX: i64 = 1 << 62;

/// How many learners a cluster may have, unless the operator says otherwise.
const LEARNERS_MAX: usize = 1;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The engine's options.
    pub bolt: Options,
    /// The space quota.
    pub quota: Quota,
    /// The shortest life of a lease, in seconds.
    pub lease_ttl_min: i64,
    /// Whether remaining times of leases are written down now and then (gate `LeaseCheckpoint`).
    pub lease_checkpoints: bool,
}

impl OpenOptions {
    /// The engine's options for etcd's file: no stored freelist, as etcd has it on Linux.
    #[must_use]
    pub fn bolt() -> Options {
        Options {
            freelist: FreelistKind::Map,
            no_freelist_sync: true,
            ..Options::default()
        }
    }
}

/// A store that was opened.
pub struct Opened {
    /// The state, for the apply thread.
    pub store: Store,
    /// The file, for the commit thread.
    pub committer: Committer,
    /// Keys whose lease is missing: etcd only warns of them.
    pub missing_leases: u64,
    /// Tombstones of keys that were dead already: etcd only warns of them.
    pub stray_tombstones: u64,
}

/// Opens the file, or makes a new one, and rebuilds the state.
///
/// # Errors
///
/// What the engine says of the file, rows that are not what they must be, and
/// [`Error::UnsupportedVersion`] for files of releases that this one does not follow.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Opened, Error> {
    open_on(Arc::new(RealDisk), path, options)
}

/// As [`open`], on another disk than the system's.
///
/// # Errors
///
/// As [`open`].
pub fn open_on(disk: Arc<dyn Disk>, path: &Path, options: &OpenOptions) -> Result<Opened, Error> {
    let db = disk.open(path, options.bolt.clone())?;
    let path = path.to_owned();
    open_at(db, Some(Place { disk, path }), options)
}

/// As [`open`], over an engine that is open already; without a path there is no defragmentation.
///
/// # Errors
///
/// As [`open`].
pub fn open_db(db: Db, path: Option<&Path>, options: &OpenOptions) -> Result<Opened, Error> {
    let place = path.map(|path| Place {
        disk: Arc::new(RealDisk),
        path: path.to_owned(),
    });
    open_at(db, place, options)
}

fn open_at(db: Db, place: Option<Place>, options: &OpenOptions) -> Result<Opened, Error> {
    create_buckets(&db)?;
    let read = db.begin_read()?;
    let meta = Meta::read(&read)?;
    let mut rows = Vec::new();
    let auth = AuthState::restore(
        pairs(&read, schema::AUTH)?,
        pairs(&read, schema::AUTH_USERS)?,
        pairs(&read, schema::AUTH_ROLES)?,
        &mut rows,
    )?;
    let members = Membership::restore(
        pairs(&read, schema::MEMBERS)?,
        pairs(&read, schema::MEMBERS_REMOVED)?,
        pairs(&read, schema::CLUSTER)?,
    )?;
    check_version(&meta, &members)?;
    let alarms = Alarms::restore(pairs(&read, schema::ALARM)?.into_iter().map(|(key, _)| key))?;
    let mut leases = Table::restore(options.lease_ttl_min, pairs(&read, schema::LEASE)?)?;
    let mut index = IndexWriter::new();
    let loaded = load_keys(&read, &mut index, &mut leases)?;

    let revision = loaded.last.max(meta.scheduled).max(meta.finished).max(1);
    check_revision(revision)?;
    let compact_revision = meta.scheduled.max(meta.finished);
    let mut deadlines = Deadlines::new(options.lease_checkpoints);
    for (id, lease) in leases.iter() {
        deadlines.granted(id, lease.ttl(), lease.remaining_ttl(), Ticks::default());
    }
    let tail = Tail::new(revision + 1);
    let conf_state = members.conf_state();
    let members = Arc::new(members);
    let shared = Arc::new(Shared::new(Published {
        index: index.reader(),
        revision,
        compacted: compact_revision,
        view: View::new(tail.open().clone(), read, revision),
        auth: auth.clone(),
        members: members.clone(),
        alarms: alarms.clone(),
        storage_version: meta.storage_version.clone(),
        leases,
        deadlines,
        applied: (meta.index, meta.term),
    }));
    let boundary = Boundary {
        index: meta.index,
        term: meta.term,
        revision,
        conf_state: conf_state.clone(),
        members: members.clone(),
    };
    let committer = Committer::new(db, place, options.bolt.clone(), shared.clone(), boundary);
    let mut store = Store {
        index,
        tail,
        auth,
        members,
        alarms,
        conf_state,
        applied: (meta.index, meta.term),
        revision,
        compact_revision,
        scheduled_compact: meta.scheduled,
        storage_version: meta.storage_version,
        pending: Pending::default(),
        unfinished_compactions: 0,
        quota: options.quota,
        learners_max: LEARNERS_MAX,
        ops: OpCounts::default(),
        now: Ticks::default(),
        shared,
    };
    store.tail.change_rows(rows);
    if meta.scheduled > meta.finished {
        store.begin_compaction(CompactionJob {
            revision: meta.scheduled,
            previous: meta.finished,
            remember_hash: false,
            index: meta.index,
            keeps_any: true,
            dead: Vec::new(),
        });
    }
    Ok(Opened {
        store,
        committer,
        missing_leases: loaded.missing_leases,
        stray_tombstones: loaded.stray_tombstones,
    })
}

/// Which entry a file is at, without rebuilding anything: a first look at a file that came from
/// elsewhere.
///
/// # Errors
///
/// What the engine says of the file, and rows of `meta` that are not what they must be.
pub fn position(path: &Path) -> Result<(LogIndex, Term), Error> {
    let options = Options {
        read_only: true,
        ..OpenOptions::bolt()
    };
    let db = Db::open(path, options)?;
    let read = db.begin_read()?;
    let meta = Meta::read(&read)?;
    drop(read);
    db.close()?;
    Ok((meta.index, meta.term))
}

fn create_buckets(db: &Db) -> Result<(), Error> {
    let read = db.begin_read()?;
    let mut missing = Vec::new();
    for name in schema::BUCKETS {
        if read.bucket(name.as_bytes())?.is_none() {
            missing.push(name);
        }
    }
    drop(read);
    if missing.is_empty() {
        return Ok(());
    }
    let mut tx = db.begin_write()?;
    for name in missing {
        tx.create_bucket_if_not_exists(name.as_bytes())?;
    }
    tx.commit()?;
    Ok(())
}

/// The rows of `meta`.
struct Meta {
    index: LogIndex,
    term: Term,
    storage_version: Option<Version>,
    /// -1 for none.
    scheduled: i64,
    /// -1 for none.
    finished: i64,
}

impl Meta {
    fn read(read: &ReadTx) -> Result<Meta, Error> {
        let bucket = read
            .bucket(schema::META.as_bytes())?
            .ok_or(Error::Missing {
                what: "bucket meta",
            })?;
        let number = |key: &[u8]| -> Result<u64, Error> {
            let value = bucket.get(key)?;
            value.map_or(Ok(0), |value| schema::number(schema::META, key, value))
        };
        let revision = |key: &[u8]| -> Result<i64, Error> {
            let value = bucket.get(key)?;
            value.map_or(Ok(-1), |value| Ok(schema::revision(value)?.0.main))
        };
        Ok(Meta {
            index: LogIndex(number(schema::CONSISTENT_INDEX)?),
            term: Term(number(schema::TERM)?),
            storage_version: bucket
                .get(schema::STORAGE_VERSION)?
                .map(version)
                .transpose()?,
            scheduled: revision(schema::SCHEDULED_COMPACT)?,
            finished: revision(schema::FINISHED_COMPACT)?,
        })
    }
}

fn version(value: &[u8]) -> Result<Version, Error> {
    let text = String::from_utf8_lossy(value);
    Version::parse(&text).map_err(|_| Error::UnsupportedVersion {
        found: text.into_owned(),
    })
}

/// Files of 3.6 and 3.7 say so; those of 3.5 have a term; those of older releases neither, and are
/// refused, as a new file is not.
///
/// A file of 3.6 or 3.7 does not say so either before its cluster has agreed on a version: none is known
/// then, or 3.0, which a leader sets that has not heard of every member.
fn check_version(meta: &Meta, members: &Membership) -> Result<(), Error> {
    let refuse = |version: &Version| {
        Err(Error::UnsupportedVersion {
            found: version.to_string(),
        })
    };
    match (&meta.storage_version, members.version()) {
        (Some(version), _) if (version.major, version.minor) > (NEWEST.major, NEWEST.minor) => {
            refuse(version)
        }
        (None, Some(cluster)) if *cluster < OLDEST && meta.term.0 == 0 && meta.index.0 > 0 => {
            refuse(cluster)
        }
        _ => Ok(()),
    }
}

/// A revision that leaves no room for more is damage.
fn check_revision(main: i64) -> Result<(), Error> {
    if main <= REVISION_MAX {
        return Ok(());
    }
    Err(Error::CorruptRow {
        bucket: schema::KEY,
        key: BucketKey::encode(Revision { main, sub: 0 }, false)
            .as_bytes()
            .to_vec(),
        reason: format!("expected a main revision up to {REVISION_MAX}, found {main}"),
    })
}

type Pair<'a> = (&'a [u8], &'a [u8]);

fn pairs<'tx>(read: &'tx ReadTx, name: &'static str) -> Result<Vec<Pair<'tx>>, Error> {
    let mut pairs = Vec::new();
    let Some(bucket) = read.bucket(name.as_bytes())? else {
        return Ok(pairs);
    };
    let mut cursor = bucket.cursor();
    let mut row = cursor.first()?;
    while let Some((key, value)) = row {
        pairs.push((key, value.unwrap_or_default()));
        row = cursor.next()?;
    }
    Ok(pairs)
}

/// What the `key` bucket held.
struct Loaded {
    /// The last main revision.
    last: i64,
    missing_leases: u64,
    stray_tombstones: u64,
}

/// Fills the index from the `key` bucket. The last record of a key says which lease it hangs on.
fn load_keys(read: &ReadTx, index: &mut IndexWriter, leases: &mut Table) -> Result<Loaded, Error> {
    let mut loaded = Loaded {
        last: 0,
        missing_leases: 0,
        stray_tombstones: 0,
    };
    let mut failed = None;
    // Only the last record of a key counts: a lease that was revoked is named by earlier ones.
    let mut missing = BTreeSet::new();
    let mut before = None;
    walk_file(read, 0, i64::MAX, |row| {
        if let Some(before) = before.replace(row.revision)
            && before >= row.revision
        {
            failed = Some(Error::CorruptRow {
                bucket: schema::KEY,
                key: row.key.to_vec(),
                reason: format!("expected a revision above {before}"),
            });
            return ControlFlow::Break(());
        }
        let peeked = match peek(row.value) {
            Ok(peeked) => peeked,
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        };
        let len = u32::try_from(row.value.len()).expect("the engine's values are below 2 GiB");
        let (create, version) = (peeked.create_revision, peeked.version);
        let restored = index.restore(
            peeked.key,
            row.revision,
            create,
            version,
            row.tombstone,
            len,
        );
        loaded.stray_tombstones += u64::from(restored != Restored::Indexed);
        let lease = if row.tombstone {
            LeaseId::NONE
        } else {
            LeaseId(peeked.lease)
        };
        if !missing.is_empty() {
            missing.remove(peeked.key);
        }
        if (!lease.is_none() || !leases.lease_of(peeked.key).is_none())
            && leases.attach(peeked.key, lease).is_err()
        {
            leases.detach(peeked.key);
            missing.insert(peeked.key.to_vec());
        }
        loaded.last = row.revision.main;
        ControlFlow::Continue(())
    })?;
    loaded.missing_leases = missing.len() as u64;
    failed.map_or(Ok(loaded), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_proto::rpc::membershippb::ClusterVersionSetRequest;

    fn check(storage: Option<&str>, cluster: &str, term: u64) -> Result<(), Error> {
        let meta = Meta {
            index: LogIndex(9),
            term: Term(term),
            storage_version: storage.map(|it| Version::parse(it).unwrap()),
            scheduled: -1,
            finished: -1,
        };
        let mut members = Membership::default();
        let request = ClusterVersionSetRequest {
            ver: cluster.to_owned(),
        };
        members.set_version(&request, &mut Vec::new()).unwrap();
        check_version(&meta, &members)
    }

    #[test]
    fn a_cluster_that_has_not_agreed_on_a_version_comes_back() {
        assert!(check(None, "3.0.0", 2).is_ok());
        assert!(check(None, "3.7.0", 2).is_ok());
        assert!(check(Some("3.7.0"), "3.7.0", 2).is_ok());
        assert!(check(Some("3.9.0"), "3.7.0", 2).is_err());
    }

    #[test]
    fn a_file_of_3_5_is_told_from_an_older_one_by_its_term() {
        assert!(check(None, "3.5.0", 2).is_ok());
        assert!(check(None, "3.4.0", 0).is_err());
    }
}
