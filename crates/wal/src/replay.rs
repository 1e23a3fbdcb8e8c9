//! Putting a log's records together: what a member starts from.

use std::io;
use std::path::Path;

use bytes::Bytes;
use keelson_proto::entry::{ConfState, Entry, HardState};
use keelson_proto::ids::LogIndex;

use crate::Error;
use crate::files::Files;
use crate::reader::{Frame, Reader};
use crate::record::{Kind, Metadata, Record, SnapshotMark};
use crate::repair::Repair;
use crate::segment::SegmentName;

/// How often the segments are listed again when one was purged between listing and opening.
const LIST_ATTEMPTS: usize = 3;

/// What a log holds from a snapshot on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// Whose log it is; `None` only when there is not a single whole segment head.
    pub metadata: Option<Metadata>,
    /// The last hard state that was written.
    pub hard_state: Option<HardState>,
    /// The entries after the snapshot, without those that were overwritten. Those above
    /// `hard_state.commit` may still be overwritten.
    pub entries: Vec<Entry>,
    /// Whether the log was overwritten, after `entries` were written, from one on that the snapshot
    /// covers: they are no part of the log then, and whoever starts from it leaves them out. etcd's
    /// reader gives them out too, and does not tell.
    pub void: bool,
    /// Whether the log has a record of the snapshot that reading began at. etcd's reader calls
    /// it an error when there is none, its writer does not: see [`Replay::require_snapshot`].
    pub snapshot_found: bool,
    /// The configuration in that record, if it has one.
    pub conf_state: Option<ConfState>,
    /// What was cut off the end of the log, if it was torn.
    pub repaired: Option<Repair>,
    /// The snapshot that reading began at.
    pub at: SnapshotMark,
}

impl Replay {
    /// Refuses a log that has no record of the snapshot that reading began at.
    ///
    /// # Errors
    ///
    /// [`Error::SnapshotNotFound`].
    pub fn require_snapshot(&self) -> Result<(), Error> {
        if self.snapshot_found {
            Ok(())
        } else {
            Err(Error::SnapshotNotFound { at: self.at })
        }
    }
}

/// Takes the records of a log one by one.
#[derive(Debug, Default)]
pub(crate) struct Replayer {
    pub(crate) replay: Replay,
    /// The metadata as written: it is compared, and written again, byte for byte.
    pub(crate) metadata: Option<Bytes>,
    /// The last index that was written, by an entry or by a snapshot's record.
    pub(crate) last_index: LogIndex,
}

impl Replayer {
    pub(crate) fn new(at: SnapshotMark) -> Replayer {
        Replayer {
            replay: Replay {
                at,
                ..Replay::default()
            },
            ..Replayer::default()
        }
    }

    pub(crate) fn take(&mut self, frame: &Frame) -> Result<(), Error> {
        match frame.record()? {
            Record::Crc(_) => {}
            Record::Metadata(metadata) => self.metadata(frame, metadata)?,
            Record::State(state) => self.replay.hard_state = Some(state),
            Record::Snapshot(mark, conf_state) => {
                check_mark(self.replay.at, mark)?;
                if mark == self.replay.at {
                    self.replay.snapshot_found = true;
                    self.replay.conf_state = conf_state;
                }
                self.last_index = self.last_index.max(mark.index);
            }
            Record::Entry(entry) => self.entry(frame, entry)?,
        }
        Ok(())
    }

    fn metadata(&mut self, frame: &Frame, metadata: Metadata) -> Result<(), Error> {
        if self.metadata.as_ref().is_some_and(|had| *had != frame.data) {
            return Err(Error::MetadataConflict {
                file: frame.segment.to_string(),
                offset: frame.offset,
            });
        }
        self.metadata = Some(frame.data.clone());
        self.replay.metadata = Some(metadata);
        Ok(())
    }

    /// A later entry replaces the one of the same index and all after it.
    fn entry(&mut self, frame: &Frame, entry: Entry) -> Result<(), Error> {
        let at = self.replay.at;
        self.last_index = entry.index;
        let Some(ahead) = entry.index.0.checked_sub(at.index.0).filter(|n| *n > 0) else {
            self.replay.void = !self.replay.entries.is_empty();
            return Ok(());
        };
        // From the first one on they are new.
        self.replay.void &= ahead > 1;
        let entries = &mut self.replay.entries;
        match usize::try_from(ahead - 1) {
            Ok(position) if position <= entries.len() => {
                entries.truncate(position);
                entries.push(entry);
                Ok(())
            }
            _ => Err(Error::EntryGap {
                file: frame.segment.to_string(),
                offset: frame.offset,
                at,
                index: entry.index.0,
                term: entry.term.0,
                entries: entries.len(),
            }),
        }
    }
}

fn check_mark(at: SnapshotMark, found: SnapshotMark) -> Result<(), Error> {
    if found.index == at.index && found.term != at.term {
        return Err(Error::SnapshotMismatch { at, found });
    }
    Ok(())
}

/// Lets a reader without locks end where a writer is still writing, as etcd's does; this also
/// hides what is missing after a torn record in an earlier segment.
fn next_or_end(reader: &mut Reader) -> Result<Option<Frame>, Error> {
    match reader.next_frame() {
        Err(error) if error.is_torn() => Ok(None),
        result => result,
    }
}

/// Whether there is a log in a directory: a file whose name ends in `.wal` is enough.
#[must_use]
pub fn exists(files: &dyn Files, dir: &Path) -> bool {
    files
        .list(dir)
        .is_ok_and(|names| names.iter().any(|name| name.ends_with(".wal")))
}

/// Reads a log from a snapshot on, without locks and without changing it; for tools. A torn
/// record ends it like the end of the log.
///
/// # Errors
///
/// What [`Reader`] gives, [`Error::SnapshotMismatch`], [`Error::MetadataConflict`],
/// [`Error::EntryGap`], [`Error::UnexpectedKind`], [`Error::Undecodable`].
pub fn read(files: &dyn Files, dir: &Path, at: SnapshotMark) -> Result<Replay, Error> {
    let mut reader = Reader::open(files, dir, at.index)?;
    let mut replayer = Replayer::new(at);
    while let Some(frame) = next_or_end(&mut reader)? {
        replayer.take(&frame)?;
    }
    Ok(replayer.replay)
}

/// Reads a log through without keeping entries: the last hard state, if all is well.
///
/// # Errors
///
/// As [`read`], but for gaps between entries, and [`Error::SnapshotNotFound`].
pub fn verify(files: &dyn Files, dir: &Path, at: SnapshotMark) -> Result<Option<HardState>, Error> {
    let mut reader = Reader::open(files, dir, at.index)?;
    let mut replayer = Replayer::new(at);
    while let Some(frame) = next_or_end(&mut reader)? {
        if Kind::of(frame.kind) != Some(Kind::Entry) {
            replayer.take(&frame)?;
        }
    }
    replayer.replay.require_snapshot()?;
    Ok(replayer.replay.hard_state)
}

/// The snapshots that the log has a record of, in the order written, up to the last commit index
/// that it knows: the last one is where a member starts. Reads all segments, without locks.
///
/// # Errors
///
/// What [`Reader`] gives, and [`Error::Undecodable`].
pub fn valid_snapshots(files: &dyn Files, dir: &Path) -> Result<Vec<SnapshotMark>, Error> {
    let mut attempts = 1;
    loop {
        match scan_snapshots(files, dir) {
            Err(Error::Failed { source, .. })
                if source.kind() == io::ErrorKind::NotFound && attempts < LIST_ATTEMPTS =>
            {
                attempts += 1;
            }
            result => return result,
        }
    }
}

fn scan_snapshots(files: &dyn Files, dir: &Path) -> Result<Vec<SnapshotMark>, Error> {
    let mut reader = Reader::open_all(files, dir)?;
    let mut marks = Vec::new();
    let mut commit = LogIndex(0);
    while let Some(frame) = next_or_end(&mut reader)? {
        if !matches!(Kind::of(frame.kind), Some(Kind::State | Kind::Snapshot)) {
            continue;
        }
        match frame.record()? {
            Record::State(state) => commit = state.commit,
            Record::Snapshot(mark, _) => marks.push(mark),
            Record::Metadata(_) | Record::Entry(_) | Record::Crc(_) => {}
        }
    }
    marks.retain(|mark| mark.index <= commit);
    Ok(marks)
}

/// The name of a log's last segment.
pub(crate) fn last_segment(files: &dyn Files, dir: &Path) -> Result<SegmentName, Error> {
    let names = crate::segment::list(files, dir)?;
    Ok(*names.last().expect("a list of segments is never empty"))
}
