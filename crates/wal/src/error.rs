//! What can go wrong with log and snapshot files.

use std::io;
use std::path::{Path, PathBuf};

use crate::record::SnapshotMark;

/// What kind of thing an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The request does not fit what is there; nothing was changed.
    Refused,
    /// The operating system refused; the owner of the log is poisoned.
    Failed,
    /// The bytes are not what was once written.
    Corrupt,
}

/// An error of the log or of a `.snap` file. Where etcd has a text, it is etcd's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("failed to {action} {}: {source}", path.display())]
    Failed {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An earlier write or sync failed: what the file holds is unknown until it is read again.
    #[error("wal: an earlier write or sync of {} failed", dir.display())]
    Poisoned {
        /// The log's directory.
        dir: PathBuf,
    },
    /// There is a log already where one was to be created.
    #[error("file already exists")]
    Exists {
        /// The log's directory.
        dir: PathBuf,
    },
    /// Another process, or another part of this one, has the file open for writing.
    #[error("fileutil: file already locked")]
    Locked {
        /// The locked file.
        path: PathBuf,
    },
    /// The directory holds no segment.
    #[error("wal: file not found")]
    NotFound {
        /// The log's directory.
        dir: PathBuf,
    },
    /// All segments begin after the index that reading was to begin at.
    #[error("wal: file not found which matches the snapshot index '{index}'")]
    NoSegment {
        /// The log's directory.
        dir: PathBuf,
        /// The index asked for.
        index: u64,
    },
    /// A segment is missing between others.
    #[error("wal: file sequence numbers (starting from {position}) do not increase continuously")]
    SequenceGap {
        /// The log's directory.
        dir: PathBuf,
        /// The position of the first segment to read among all of them.
        position: usize,
    },
    /// The log has no record of the snapshot that reading began at.
    #[error("wal: snapshot not found")]
    SnapshotNotFound {
        /// The snapshot asked for.
        at: SnapshotMark,
    },
    /// The log's record of the snapshot has another term.
    #[error("wal: snapshot mismatch")]
    SnapshotMismatch {
        /// The snapshot asked for.
        at: SnapshotMark,
        /// What the log has at that index.
        found: SnapshotMark,
    },
    /// The file ends inside of the length word or of the record.
    #[error("unexpected EOF")]
    TornFrame {
        /// The segment's file name.
        file: String,
        /// Where the frame begins.
        offset: u64,
    },
    /// The record does not fit into what is left of the file.
    #[error(
        "unexpected EOF: [wal] max entry size limit exceeded when reading \"{file}\", \
         recBytes: {length}, fileSize({size}) - offset({offset}) - padBytes({padding}) \
         = entryLimit({})",
        i128::from(*size) - i128::from(*offset) - i128::from(*padding)
    )]
    TornLength {
        /// The segment's file name.
        file: String,
        /// Where the frame begins.
        offset: u64,
        /// The record's length as the frame says.
        length: u64,
        /// The frame's padding.
        padding: u8,
        /// The file's size.
        size: u64,
    },
    /// The last segment's record has a sector that was never written.
    #[error("unexpected EOF: in file '{file}' at position: {offset}")]
    TornSector {
        /// The segment's file name.
        file: String,
        /// Where the frame begins.
        offset: u64,
    },
    /// A record's checksum is wrong.
    #[error(
        "walpb: crc mismatch: expected: {expected:x} computed: {computed:x}: \
         in file '{file}' at position: {offset}"
    )]
    CrcMismatch {
        /// The segment's file name.
        file: String,
        /// Where the frame begins.
        offset: u64,
        /// The checksum that the record carries.
        expected: u32,
        /// The checksum of what was read.
        computed: u32,
    },
    /// A segment does not continue the one before it.
    #[error("walpb: crc mismatch")]
    ChainBroken {
        /// The segment's file name.
        file: String,
        /// Where the frame begins.
        offset: u64,
        /// The checksum that the segment wants to continue from.
        expected: u32,
        /// The checksum at the end of what was read.
        computed: u32,
    },
    /// A frame does not hold a record.
    #[error("proto: cannot parse invalid wire-format data")]
    Unparsable {
        /// The segment's file name.
        file: String,
        /// Where the frame begins.
        offset: u64,
    },
    /// A record is larger than anything that may be in one.
    #[error("wal: record of {length} bytes in file '{file}' at position: {offset} is too large")]
    TooLarge {
        /// The segment's file name.
        file: String,
        /// Where the frame begins.
        offset: u64,
        /// The record's length.
        length: u64,
    },
    /// A record's content cannot be decoded although its checksum is right.
    #[error("wal: cannot decode the record in file '{file}' at position: {offset}: {source}")]
    Undecodable {
        /// The segment's file name.
        file: String,
        /// Where the frame begins.
        offset: u64,
        /// Why.
        source: keelson_proto::Error,
    },
    /// A record of a kind that no version of etcd writes.
    #[error("unexpected block type {kind}")]
    UnexpectedKind {
        /// The segment's file name.
        file: String,
        /// Where the frame begins.
        offset: u64,
        /// The kind's number.
        kind: i64,
    },
    /// Two segments belong to different members.
    #[error("wal: conflicting metadata found")]
    MetadataConflict {
        /// The segment's file name.
        file: String,
        /// Where the second metadata record begins.
        offset: u64,
    },
    /// A segment, or an index in it, has the highest number that there is.
    #[error("wal: no number is left for a segment after {}", path.display())]
    NamesExhausted {
        /// The last segment.
        path: PathBuf,
    },
    /// No segment says whose log it is, so it cannot be written on.
    #[error("wal: no metadata found in {}", dir.display())]
    MetadataMissing {
        /// The log's directory.
        dir: PathBuf,
    },
    /// Entries are missing before this one.
    #[error(
        "wal: slice bounds out of range, snapshot[Index: {}, Term: {}], \
         current entry[Index: {index}, Term: {term}], len(ents): {entries}",
        at.index, at.term
    )]
    EntryGap {
        /// The segment's file name.
        file: String,
        /// Where the frame begins.
        offset: u64,
        /// Where reading began.
        at: SnapshotMark,
        /// The index of the entry after the gap.
        index: u64,
        /// Its term.
        term: u64,
        /// How many entries there are before the gap.
        entries: usize,
    },
    /// A `.snap` file has no content.
    #[error("snap: empty snapshot")]
    SnapEmpty {
        /// The file.
        path: PathBuf,
    },
    /// A `.snap` file's checksum is wrong.
    #[error("snap: crc mismatch")]
    SnapCrcMismatch {
        /// The file.
        path: PathBuf,
        /// The checksum that the file carries.
        expected: u32,
        /// The checksum of its content.
        computed: u32,
    },
    /// A `.snap` file's content cannot be decoded.
    #[error("snap: cannot decode {}: {reason}", path.display())]
    SnapUndecodable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A `.snap` file is larger than anything that may be in one.
    #[error("snap: {} has {size} bytes, which is too large", path.display())]
    SnapTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
}

impl Error {
    pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Failed {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// What kind of thing went wrong.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Error::Failed { .. } | Error::Poisoned { .. } => Class::Failed,
            Error::Exists { .. }
            | Error::Locked { .. }
            | Error::NotFound { .. }
            | Error::NoSegment { .. }
            | Error::SnapshotNotFound { .. }
            | Error::SnapshotMismatch { .. } => Class::Refused,
            Error::SequenceGap { .. }
            | Error::TornFrame { .. }
            | Error::TornLength { .. }
            | Error::TornSector { .. }
            | Error::CrcMismatch { .. }
            | Error::ChainBroken { .. }
            | Error::Unparsable { .. }
            | Error::TooLarge { .. }
            | Error::Undecodable { .. }
            | Error::UnexpectedKind { .. }
            | Error::MetadataConflict { .. }
            | Error::NamesExhausted { .. }
            | Error::MetadataMissing { .. }
            | Error::EntryGap { .. }
            | Error::SnapEmpty { .. }
            | Error::SnapCrcMismatch { .. }
            | Error::SnapUndecodable { .. }
            | Error::SnapTooLarge { .. } => Class::Corrupt,
        }
    }

    /// Whether a write that a crash cut short explains it, so that [`crate::repair()`] may help.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        matches!(
            self,
            Error::TornFrame { .. } | Error::TornLength { .. } | Error::TornSector { .. }
        )
    }
}
