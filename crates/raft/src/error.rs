//! What can be refused, and what is wrong with what came in.

use keelson_proto::ids::LogIndex;
use thiserror::Error;

use crate::ConfChangeError;

/// Why a call into the state machine had no effect.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Refused: there is no leader, leadership is being handed over, this leader was removed, or too
    /// many uncommitted bytes are waiting.
    #[error("raft proposal dropped")]
    ProposalDropped,
    /// Refused: a kind of message that only a member itself may produce came from another one.
    #[error("raft: cannot step raft local message")]
    LocalMessage,
    /// Refused: an answer from somebody who is not in the configuration.
    #[error("raft: cannot step as peer not found")]
    UnknownPeer,
    /// Refused: a message that no correct member sends; nothing was changed.
    #[error("malformed message: {what}")]
    Malformed {
        /// What is wrong with it.
        what: &'static str,
    },
    /// Refused: an option is out of its range.
    #[error("{what}")]
    BadConfig {
        /// The rule that is broken.
        what: &'static str,
    },
    /// Corrupt: the stored configuration, or one that came with a snapshot, is none.
    #[error("unable to restore config: {source}")]
    BadConfState {
        /// What is wrong with it.
        #[source]
        source: ConfChangeError,
    },
    /// Corrupt: an index that was stored lies outside of the stored log.
    #[error("{what} {found} is out of range [{first}, {last}]")]
    IndexOutOfRange {
        /// Which index.
        what: &'static str,
        /// Its value.
        found: LogIndex,
        /// The smallest possible value.
        first: LogIndex,
        /// The largest possible value.
        last: LogIndex,
    },
    /// Corrupt: the storage does not know the term of its own last entry.
    #[error("the term of the last entry {index} is unknown: {source}")]
    NoLastTerm {
        /// The last index.
        index: LogIndex,
        /// The storage's answer.
        #[source]
        source: StorageError,
    },
}

/// Why a [`Storage`](crate::Storage) has no answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageError {
    /// The index lies before the first one that is kept.
    #[error("requested index is unavailable due to compaction")]
    Compacted,
    /// The index lies behind the last one.
    #[error("requested entry at index is unavailable")]
    Unavailable,
    /// A snapshot at or below the one that is held.
    #[error("requested index is older than the existing snapshot")]
    SnapshotOutOfDate,
    /// A snapshot is being made; ask again later.
    #[error("snapshot is temporarily unavailable")]
    SnapshotTemporarilyUnavailable,
}
