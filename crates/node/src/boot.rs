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

use keelson_proto::entry::{ConfChange, ConfChangeKind, Entry, EntryKind, HardState};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_store::member::{Member, cluster_id};
use keelson_store::{OpenOptions, Opened, lease};
use keelson_wal::{Files, Metadata, Replay, SnapFiles, SnapshotMark, Wal};
use semver::Version;

use crate::links::Identity;
use crate::memory_log::MemoryLog;
use crate::replayed::Replayed;
use crate::{Config, Env, Error, force_new, old};

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
        create_log(config, files)?
    };
    assemble(config, env, log)
}

/// A log that was opened or made.
struct OpenLog {
    wal: Wal,
    replay: Replay,
    metadata: Metadata,
}

fn directory_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
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

fn wal_options(config: &Config) -> keelson_wal::Options {
    keelson_wal::Options {
        segment_bytes: config.wal_segment_bytes,
        unsafe_no_fsync: config.unsafe_no_fsync,
        ..keelson_wal::Options::default()
    }
}

/// This member, as the operator describes it for a new cluster.
fn described(config: &Config) -> Result<Member, Error> {
    let own = config
        .initial_cluster
        .iter()
        .find(|(name, _)| *name == config.name);
    let Some((name, urls)) = own else {
        return Err(Error::BadConfig {
            what: format!(
                "couldn't find local name {:?} in the initial cluster configuration",
                config.name
            ),
        });
    };
    if config.initial_cluster.len() > 1 {
        return Err(Error::Unsupported {
            what: "a new cluster of several members".to_owned(),
        });
    }
    Ok(Member::new(
        name.clone(),
        urls.clone(),
        &config.token,
        None,
        false,
    ))
}

/// Makes the log of a new cluster: its first entry adds this member.
fn create_log(config: &Config, files: &Arc<dyn Files>) -> Result<OpenLog, Error> {
    let (db, dir) = (config.db_path(), config.wal_dir());
    if files.exists(&db).map_err(directory_error("stat", &db))? {
        return Err(Error::DatabaseWithoutLog { db, wal: dir });
    }
    let member = described(config)?;
    let metadata = Metadata {
        node_id: member.id,
        cluster_id: cluster_id([member.id]),
    };
    tracing::info!(
        "local-member-id" = %metadata.node_id,
        "cluster-id" = %metadata.cluster_id,
        "starting local member"
    );
    let wal = Wal::create(files.clone(), &dir, metadata, wal_options(config))?;
    let mut log = OpenLog {
        wal,
        replay: Replay::default(),
        metadata,
    };
    write_first_entry(&mut log, &member)?;
    Ok(log)
}

/// The entry that every log of a new cluster begins with; it counts as committed.
fn write_first_entry(log: &mut OpenLog, member: &Member) -> Result<(), Error> {
    let change = ConfChange {
        id: 0,
        kind: ConfChangeKind::AddNode,
        member: member.id,
        context: member.add_context().into(),
    };
    let entry = Entry {
        kind: EntryKind::ConfChange,
        term: Term(1),
        index: LogIndex(1),
        data: change.encode(),
    };
    let state = HardState {
        term: Term(1),
        vote: MemberId::NONE,
        commit: LogIndex(1),
    };
    log.wal.append(Some(state), std::slice::from_ref(&entry))?;
    log.wal.commit(true)?;
    log.replay.hard_state = Some(state);
    log.replay.entries = vec![entry];
    Ok(())
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
    begin_again(config, &mut log)?;
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

/// A crash in the middle of making a log leaves one without its first entry, or without the hard
/// state that says that it is committed.
fn begin_again(config: &Config, log: &mut OpenLog) -> Result<(), Error> {
    let commit = log.replay.hard_state.unwrap_or_default().commit;
    if log.replay.at.index > LogIndex(0) || commit > LogIndex(0) {
        return Ok(());
    }
    if log.replay.entries.is_empty() {
        let member = described(config)?;
        if member.id != log.metadata.node_id {
            return Err(Error::BadConfig {
                what: format!(
                    "the log in {} was made for member {}, which never started; this is member {}",
                    log.wal.dir().display(),
                    log.metadata.node_id,
                    member.id
                ),
            });
        }
        return write_first_entry(log, &member);
    }
    let first = &log.replay.entries[0];
    if first.kind == EntryKind::ConfChange && first.term == Term(1) {
        let state = log.replay.hard_state.get_or_insert_default();
        state.term = state.term.max(first.term);
        state.commit = first.index;
    }
    Ok(())
}

/// Puts log and database together.
fn assemble(config: &Config, env: &Env, log: OpenLog) -> Result<Booted, Error> {
    let OpenLog {
        mut wal,
        replay,
        metadata,
    } = log;
    let identity = Identity {
        member: metadata.node_id,
        cluster: metadata.cluster_id,
    };
    let start = replay.at;
    let mut opened = open_store(config, env, start)?;
    let mended = old::mend_membership(config, env, &mut opened)?;
    check_versions(config, &opened)?;
    let (applied, _) = opened.store.applied();
    let mut log = Replayed::new(replay, applied);
    if log.last() < applied {
        log.begin_at_database(config, &env.files, &mut wal, &opened, identity.member)?;
    }
    let members = opened.store.members().after(log.committed_after(applied));
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
    memory.set_outdated(raw.unwrap_or_default());
    memory.trim(applied);
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
    files
        .rename(&received, &db)
        .map_err(directory_error("rename", &received))?;
    files
        .sync_dir(&config.snap_dir())
        .map_err(directory_error("sync", &config.snap_dir()))?;
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

fn open_database(config: &Config, env: &Env, db: &Path) -> Result<Opened, Error> {
    let mut bolt = OpenOptions::bolt();
    bolt.initial_map_size = MAP_BYTES;
    bolt.no_sync = config.unsafe_no_fsync;
    bolt.lock_timeout = Some(LOCK_PATIENCE);
    let heartbeat = u64::try_from(config.heartbeat.as_millis()).unwrap_or(u64::MAX);
    let options = OpenOptions {
        bolt,
        quota: config.quota,
        lease_ttl_min: lease::ttl_seconds_min(config.election_ticks().into(), heartbeat),
        lease_checkpoints: config.lease_checkpoints,
    };
    let opened = (env.database)(db, &options).map_err(|source| cannot_open(db, source))?;
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
