//! What can keep a member from starting, or make it stop.

use std::path::PathBuf;

use keelson_proto::ids::{LogIndex, MemberId};
use semver::Version;
use thiserror::Error;

/// An error of a member; what a client did wrong is an `ApiError` in an answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Refused: an option does not make sense.
    #[error("{what}")]
    BadConfig {
        /// The rule that is broken.
        what: String,
    },
    /// Refused: a file operation on the data directory failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Directory {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Refused: there is a database, but no log that it belongs to.
    #[error(
        "the data directory has a database ({}) but no log in {}: start would lose it; restore the \
         log, or a snapshot into a new directory",
        db.display(), wal.display()
    )]
    DatabaseWithoutLog {
        /// The database.
        db: PathBuf,
        /// Where the log should be.
        wal: PathBuf,
    },
    /// Corrupt: the log starts from a snapshot that the database does not hold.
    #[error(
        "database file {} (index {consistent}) does not match with snapshot (index {snapshot}): \
         restore it from a snapshot or a backup",
        db.display()
    )]
    DatabaseBehindSnapshot {
        /// The database.
        db: PathBuf,
        /// Its consistent index.
        consistent: LogIndex,
        /// The newest snapshot that the log has a record of.
        snapshot: LogIndex,
    },
    /// Corrupt: the database holds entries that the log has lost.
    #[error(
        "the log in {} ends at entry {last}, but the database holds everything up to {consistent}: \
         the log has lost its end; restore both from a snapshot",
        wal.display()
    )]
    LogBehindDatabase {
        /// The log.
        wal: PathBuf,
        /// Its last entry.
        last: LogIndex,
        /// The database's consistent index.
        consistent: LogIndex,
    },
    /// The database cannot be opened, or what it holds does not make sense.
    #[error(
        "cannot open {}: {source}: if another process has it open, stop that one; if it is \
         damaged, restore it from a snapshot or a backup",
        db.display()
    )]
    Database {
        /// The database.
        db: PathBuf,
        /// What is wrong with it.
        #[source]
        source: keelson_store::Error,
    },
    /// Refused: the directory is of a release before 3.5.
    #[error(
        "a data directory of etcd {found} is not supported: serve it with etcd 3.5 once, which \
         upgrades it"
    )]
    OldDirectory {
        /// The release.
        found: String,
    },
    /// Refused: the cluster, or the database, is of a later release than the one that this member
    /// announces.
    #[error(
        "invalid downgrade; server version is lower than determined {what} version: this member \
         announces {own}, and the data directory is at {found}; downgrade the cluster first, or \
         announce {found}"
    )]
    InvalidDowngrade {
        /// Whose version it is: the cluster's, or the storage's.
        what: &'static str,
        /// What this member announces.
        own: Version,
        /// What the directory says.
        found: Version,
    },
    /// Corrupt: the membership in a `.snap` file cannot be read.
    #[error("the .snap file of entry {index}: {source}: restore it from a backup")]
    SnapContent {
        /// The file's index.
        index: LogIndex,
        /// What is wrong with it.
        #[source]
        source: keelson_store::v2json::Malformed,
    },
    /// Refused: the member was removed from its cluster, and ids do not come back.
    #[error(
        "member {member}: the member has been permanently removed from the cluster; data-dir used by \
         this member must be removed ({}): to come back it is added as a new member",
        path.display()
    )]
    Removed {
        /// The member.
        member: MemberId,
        /// Its data directory.
        path: PathBuf,
    },
    /// Refused: another process works on the directory.
    #[error("data directory {} is in use by another process: {source}", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who found out.
        #[source]
        source: Box<Error>,
    },
    /// A thread could not be started.
    #[error("cannot start thread {name}: {source}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The log failed or is damaged.
    #[error("log: {0}")]
    Wal(#[from] keelson_wal::Error),
    /// The state or its file failed or is damaged.
    #[error(transparent)]
    Store(#[from] keelson_store::Error),
    /// Consensus cannot start from what is stored.
    #[error("consensus: {0}")]
    Raft(#[from] keelson_raft::Error),
    /// A committed configuration change does not fit.
    #[error("a committed configuration change cannot be carried out: {0}")]
    ConfChange(#[from] keelson_raft::ConfChangeError),
    /// An entry stops this member; the text says which and what to do.
    #[error("{0}")]
    Entry(String),
    /// The member did not become ready in time.
    #[error("the member did not publish itself in time")]
    NotReady,
    /// The member has stopped.
    #[error("etcdserver: server stopped")]
    Stopped,
}
