//! From a data directory to a state to go on from, or a refusal that says what to do.
//!
//! # Source
//!
//! `spec/formats.md` 4.3 (what a start finds, and what to do), 5.3 (d), 7.9.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keelson_proto::entry::HardState;
use keelson_proto::ids::LogIndex;
use keelson_store::{OpenOptions, Opened, lease};
use keelson_wal::{Files, Metadata, Replay, SnapFiles, SnapshotMark, Wal};
use semver::Version;

use crate::links::Identity;
use crate::memory_log::{Keep, MemoryLog};
use crate::replayed::Replayed;
use crate::{Config, Env, Error, bootstrap, force_new, old};

/// How long to wait for another process to let go of the database.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Address space for the database: it is mapped once, however it grows. As in etcd.
const MAP_BYTES: u64 = 10 << 30;

/// A member at its start.
pub(crate) struct Booted {
    pub(crate) identity: Identity,
    pub(crate) wal: Wal,
    /// As last written.
    pub(crate) hard_state: HardState,
    /// What consensus starts from.
    pub(crate) log: MemoryLog,
    pub(crate) opened: Opened,
    /// Up to here the log is applied before the member takes part.
    pub(crate) replay_to: LogIndex,
    /// The snapshot that the log was read from.
    pub(crate) start: SnapshotMark,
    /// The last entry of the log.
    pub(crate) last: LogIndex,
    /// Whether a disk snapshot is to be taken at once: the log, or the database, is of a form of 3.5.
    pub(crate) leaves_old_log: bool,
}

/// Opens a data directory, or makes a new one.
///
/// # Errors
///
/// Every refusal of the table in `spec/formats.md` 4.3, and whatever is wrong with log and database.
pub(crate) fn boot(config: &Config, env: &Env) -> Result<Booted, Error> {
    config.check()?;
    let files = &env.files;
    prepare_directory(files, config)?;
    SnapFiles::new(files.clone(), &config.snap_dir()).clean()?;
    let log = if keelson_wal::exists(&**files, &config.wal_dir()) {
        open_log(config, files)?
    } else {
        bootstrap::create_log(config, files)?
    };
    assemble(config, env, log)
}

/// A log that was opened or made.
pub(crate) struct OpenLog {
    pub(crate) wal: Wal,
    pub(crate) replay: Replay,
    pub(crate) metadata: Metadata,
}

pub(crate) fn directory_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Directory {
        action,
        path,
        source,
    }
}

/// Makes the directories that are missing, and checks that this member may write there.
fn prepare_directory(files: &Arc<dyn Files>, config: &Config) -> Result<(), Error> {
    let data = &config.data_dir;
    create_dirs(files, data)?;
    let touch = data.join(".touch");
    files
        .create(&touch, 0o600)
        .and_then(|_| files.remove(&touch))
        .map_err(directory_error("write", &touch))?;
    if let Ok(found) = std::fs::metadata(data) {
        let mode = found.permissions().mode() & 0o777;
        if mode != 0o700 {
            tracing::warn!(
                error = format!(
                    "directory {:?} exist, but the permission is {mode:o}. The recommended permission \
                     is \"-rwx------\" to prevent possible unprivileged access to the data",
                    data.display()
                ),
                "check file permission"
            );
        }
    }
    for name in files.list(data).map_err(directory_error("list", data))? {
        if !["member", "proxy", "fixtures"].contains(&name.as_str()) {
            tracing::warn!(
                filename = name,
                "data-dir" = %data.display(),
                "found invalid file under data directory"
            );
        }
    }
    create_dirs(files, &config.snap_dir())?;
    match config.wal_dir().parent() {
        Some(parent) if !parent.as_os_str().is_empty() => create_dirs(files, parent)?,
        _ => {}
    }
    // A start that was interrupted may have made them and not got to this.
    files.sync_dir(data).map_err(directory_error("sync", data))
}

/// Makes a directory and those above it, mode 0700. Their names are durable then: what is synced in a
/// directory that a power cut takes away is lost with it.
fn create_dirs(files: &Arc<dyn Files>, path: &Path) -> Result<(), Error> {
    let exists = |path: &Path| files.exists(path).map_err(directory_error("stat", path));
    let mut missing: Vec<&Path> = Vec::new();
    let mut at = Some(path);
    while let Some(path) = at.filter(|path| !path.as_os_str().is_empty()) {
        if exists(path)? {
            break;
        }
        missing.push(path);
        at = path.parent();
    }
    for path in missing.into_iter().rev() {
        match files.create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(directory_error("create", path)(error));
            }
            _ => {}
        }
        match files.sync_dir(path.parent().unwrap_or(Path::new(""))) {
            // It may be a directory that this member can write and not read.
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
                return Err(directory_error("sync the parent of", path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

pub(crate) fn wal_options(config: &Config) -> keelson_wal::Options {
    keelson_wal::Options {
        segment_bytes: config.wal_segment_bytes,
        unsafe_no_fsync: config.unsafe_no_fsync,
        ..keelson_wal::Options::default()
    }
}

/// Opens the log that is there, from its newest snapshot on.
fn open_log(config: &Config, files: &Arc<dyn Files>) -> Result<OpenLog, Error> {
    let dir = config.wal_dir();
    let marks = keelson_wal::valid_snapshots(&**files, &dir)?;
    let start = marks.last().copied().unwrap_or_default();
    let (wal, replay) = Wal::open(files.clone(), &dir, start, wal_options(config))
        .map_err(|error| locked(config, error))?;
    let metadata = replay
        .metadata
        .ok_or(keelson_wal::Error::MetadataMissing { dir })?;
    let mut log = OpenLog {
        wal,
        replay,
        metadata,
    };
    bootstrap::begin_again(config, &mut log)?;
    Ok(log)
}

fn locked(config: &Config, error: keelson_wal::Error) -> Error {
    match error {
        keelson_wal::Error::Locked { .. } => Error::Locked {
            path: config.data_dir.clone(),
            source: Box::new(error.into()),
        },
        error => error.into(),
    }
}

/// Puts log and database together.
fn assemble(config: &Config, env: &Env, log: OpenLog) -> Result<Booted, Error> {
    let OpenLog {
        mut wal,
        mut replay,
        metadata,
    } = log;
    let identity = Identity {
        member: metadata.node_id,
        cluster: metadata.cluster_id,
    };
    let start = replay.at;
    if replay.void {
        replay.entries.clear();
    }
    // A snapshot of the leader takes the place of whatever the log had, and what lay behind it was never
    // committed: terms do not fall in a log.
    if let Some(stale) = replay.entries.iter().position(|it| it.term < start.term) {
        replay.entries.truncate(stale);
    }
    let mut opened = open_store(config, env, start)?;
    let mended = old::mend_membership(config, env, &mut opened)?;
    check_versions(config, &opened)?;
    let (applied, _) = opened.store.applied();
    let mut log = Replayed::new(replay, applied);
    if log.last() < applied {
        log.begin_at_database(config, &env.files, &mut wal, &opened, identity.member)?;
    }
    let members = opened.store.members_after(log.committed_after(applied));
    if members.is_removed(identity.member) {
        return Err(Error::Removed {
            member: identity.member,
            path: config.data_dir.clone(),
        });
    }
    if config.force_new_cluster {
        force_new::force(config, identity, &members, &mut wal, &mut log)?;
    }
    let (last, raw) = (log.last(), old::last_raw(&log.entries));
    tracing::info!(
        "local-member-id" = %identity.member,
        "cluster-id" = %identity.cluster,
        "commit-index" = log.hard_state.commit.0,
        "consistent-index" = applied.0,
        "last-index" = last.0,
        "restarting local member"
    );
    let conf_state = opened.store.conf_state().clone();
    let mut memory = MemoryLog::new(log.before, log.entries, log.hard_state, conf_state);
    memory.keep_entries(config.catchup_entries);
    memory.set_outdated(raw.unwrap_or_default());
    memory.trim(applied, Keep::Usual);
    Ok(Booted {
        identity,
        wal,
        hard_state: log.hard_state,
        log: memory,
        opened,
        replay_to: log.hard_state.commit,
        start,
        last,
        leaves_old_log: mended || raw.is_some(),
    })
}

/// Refuses what is of a later release than the one that this member announces.
fn check_versions(config: &Config, opened: &Opened) -> Result<(), Error> {
    let own = Version::new(config.version.major, config.version.minor, 0);
    let cluster = opened.store.members().version();
    let storage = opened.store.storage_version();
    for (what, found) in [("cluster", cluster), ("storage", storage)] {
        if let Some(found) =
            found.filter(|found| (found.major, found.minor) > (own.major, own.minor))
        {
            return Err(Error::InvalidDowngrade {
                what,
                own,
                found: found.clone(),
            });
        }
    }
    Ok(())
}

fn open_store(config: &Config, env: &Env, start: SnapshotMark) -> Result<Opened, Error> {
    let files = &env.files;
    let db = config.db_path();
    let exists = |path: &Path| files.exists(path).map_err(directory_error("stat", path));
    let received = SnapFiles::new(files.clone(), &config.snap_dir()).database_path(start.index);
    let mut consistent = LogIndex(0);
    if start.index == LogIndex(0) || exists(&db)? {
        let opened = open_database(config, env, &db)?;
        consistent = opened.store.applied().0;
        if consistent >= start.index {
            return Ok(opened);
        }
    }
    if !exists(&received)? {
        return Err(Error::DatabaseBehindSnapshot {
            db,
            consistent,
            snapshot: start.index,
        });
    }
    put_in_place(config, files, start.index)?;
    let opened = open_database(config, env, &db)?;
    consistent = opened.store.applied().0;
    if consistent < start.index {
        return Err(Error::DatabaseBehindSnapshot {
            db,
            consistent,
            snapshot: start.index,
        });
    }
    Ok(opened)
}

/// Gives a received database the name of the file.
pub(crate) fn put_in_place(
    config: &Config,
    files: &Arc<dyn Files>,
    index: LogIndex,
) -> Result<(), Error> {
    let dir = config.snap_dir();
    let received = SnapFiles::new(files.clone(), &dir).database_path(index);
    files
        .rename(&received, &config.db_path())
        .map_err(directory_error("rename", &received))?;
    files.sync_dir(&dir).map_err(directory_error("sync", &dir))
}

/// How the database is opened.
pub(crate) fn database_options(config: &Config) -> OpenOptions {
    let mut bolt = OpenOptions::bolt();
    bolt.initial_map_size = MAP_BYTES;
    bolt.no_sync = config.unsafe_no_fsync;
    bolt.lock_timeout = Some(LOCK_PATIENCE);
    let heartbeat = u64::try_from(config.heartbeat.as_millis()).unwrap_or(u64::MAX);
    OpenOptions {
        bolt,
        quota: config.quota,
        lease_ttl_min: lease::ttl_seconds_min(config.election_ticks().into(), heartbeat),
        lease_checkpoints: config.lease_checkpoints,
    }
}

pub(crate) fn open_database(config: &Config, env: &Env, db: &Path) -> Result<Opened, Error> {
    let options = database_options(config);
    let mut opened = (env.database)(db, &options).map_err(|source| cannot_open(db, source))?;
    opened.store.set_learners_max(config.max_learners);
    if opened.missing_leases > 0 {
        tracing::warn!(
            keys = opened.missing_leases,
            "keys are attached to leases that do not exist"
        );
    }
    Ok(opened)
}

/// Says which file it was and what to do.
fn cannot_open(db: &Path, source: keelson_store::Error) -> Error {
    match &source {
        keelson_store::Error::UnsupportedVersion { found }
            if Version::parse(found).is_ok_and(|version| version < Version::new(3, 5, 0)) =>
        {
            Error::OldDirectory {
                found: found.clone(),
            }
        }
        _ => Error::Database {
            db: db.to_owned(),
            source,
        },
    }
}
