//! A snapshot of the leader on its way in: streamed to a file, looked at, and only then stepped.

use std::io::{self, IoSlice, Read};
use std::path::Path;
use std::sync::TryLockError;

use keelson_proto::entry::Snapshot;
use keelson_proto::ids::LogIndex;
use keelson_proto::message::{Message, MessageKind};
use keelson_wal::SnapFiles;
use thiserror::Error;

use crate::core::Input;
use crate::human::HumanBytes;
use crate::links::Links;
use crate::{Node, StepRefused, budget};

/// Bytes that are held in memory of a file that comes in, and written at once. The system is told after
/// each to bring them to the disk: the disk works while more comes, and when it is waited for at the end
/// there is little left. Without that it would begin at the end, and then stand before every sync of the
/// machine's logs with the whole file.
const CHUNK_BYTES: usize = 1 << 20;

/// Before the umask; etcd's files of this kind have it too.
const FILE_MODE: u32 = 0o600;

/// Why a snapshot was not taken in.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SnapshotRefused {
    /// Refused: its message would not be taken either.
    #[error(transparent)]
    Message(#[from] StepRefused),
    /// Refused: the message carries no snapshot.
    #[error("unexpected Raft message, expected one with a snapshot")]
    NoSnapshot,
    /// Refused: another one is on its way in.
    #[error("another snapshot is being received")]
    Busy,
    /// Refused: the file is larger than any that is taken.
    #[error("the snapshot has more than {max} bytes")]
    TooLarge {
        /// The limit, in bytes.
        max: u64,
    },
    /// Failed: the sender broke off, or what it sent is not what it promised.
    #[error("cannot read the snapshot: {0}")]
    Read(#[source] io::Error),
    /// Failed: the disk did not take it.
    #[error("cannot write the snapshot: {0}")]
    Write(#[source] io::Error),
    /// Corrupt: what came is no database.
    #[error("the snapshot's file is not usable: {0}")]
    Unusable(#[source] keelson_store::Error),
    /// Corrupt: the file is of another moment than the message.
    #[error("the snapshot's file is at entry {found}, its message at {expected}")]
    OtherIndex {
        /// The file's consistent index.
        found: LogIndex,
        /// The message's.
        expected: LogIndex,
    },
}

impl Node {
    /// Takes in a snapshot of the leader: the database comes from `body`, and when it is durable and
    /// has been looked at, consensus gets the message. Blocks on body and disk; memory does not grow
    /// with the file.
    ///
    /// `body` must end with an error where its length or its checksum is not what was announced. It
    /// is read to its end even where the snapshot brings nothing new.
    ///
    /// # Errors
    ///
    /// [`SnapshotRefused`]; nothing was changed, and the sender is to be told that it failed.
    pub fn receive_snapshot(
        &self,
        message: Message,
        body: &mut dyn Read,
    ) -> Result<(), SnapshotRefused> {
        let links = self.links();
        if message.to != links.identity.member {
            return Err(StepRefused::OtherMember.into());
        }
        if self.is_removed(message.from) {
            return Err(StepRefused::Removed.into());
        }
        let snapshot = match &message.snapshot {
            Some(snapshot) if message.kind == MessageKind::Snap => snapshot,
            _ => return Err(SnapshotRefused::NoSnapshot),
        };
        let _one = match links.receiving.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::WouldBlock) => return Err(SnapshotRefused::Busy),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        if snapshot.index > links.published.committed() {
            store(links, snapshot, body)?;
        } else {
            // raft only answers how far it is.
            copy(body, &mut |_, _| Ok(()))?;
        }
        match links.consensus.push_always(Input::Step(message), 0) {
            Ok(()) => Ok(()),
            Err(_) => Err(StepRefused::Stopped.into()),
        }
    }
}

/// Brings the database into the directory under the name that the start and the commit thread look for.
fn store(links: &Links, snapshot: &Snapshot, body: &mut dyn Read) -> Result<(), SnapshotRefused> {
    let files = &links.env.files;
    let dir = links.config.snap_dir();
    let snaps = SnapFiles::new(files.clone(), &dir);
    let temporary = dir.join(format!("tmp{:016x}", snapshot.index.0));
    let received = write(links, &temporary, body)
        .and_then(|bytes| look(links, &temporary, snapshot).map(|()| bytes));
    let bytes = match received {
        Ok(bytes) => bytes,
        Err(error) => {
            if let Err(error) = files.remove(&temporary) {
                tracing::warn!(path = %temporary.display(), %error, "could not remove a file");
            }
            return Err(error);
        }
    };
    files
        .rename(&temporary, &snaps.database_path(snapshot.index))
        .and_then(|()| files.sync_dir(&dir))
        .map_err(SnapshotRefused::Write)?;
    tracing::info!(
        path = %snaps.database_path(snapshot.index).display(),
        bytes,
        size = %HumanBytes(bytes),
        "received and saved database snapshot"
    );
    Ok(())
}

fn write(links: &Links, path: &Path, body: &mut dyn Read) -> Result<u64, SnapshotRefused> {
    let files = &links.env.files;
    let file = files
        .create(path, FILE_MODE)
        .map_err(SnapshotRefused::Write)?;
    let bytes = copy(body, &mut |offset, bytes| {
        file.write_at(offset, &mut [IoSlice::new(bytes)])?;
        file.begin_sync(offset, bytes.len() as u64);
        Ok(())
    })?;
    file.sync().map_err(SnapshotRefused::Write)?;
    Ok(bytes)
}

/// Reads `body` to its end, a chunk at a time, within the bound.
fn copy(
    body: &mut dyn Read,
    write: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> Result<u64, SnapshotRefused> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    loop {
        let read = fill(body, &mut chunk).map_err(SnapshotRefused::Read)?;
        if read == 0 {
            return Ok(offset);
        }
        let end = offset + read as u64;
        if end > budget::SNAPSHOT_BYTES_MAX {
            return Err(SnapshotRefused::TooLarge {
                max: budget::SNAPSHOT_BYTES_MAX,
            });
        }
        write(offset, &chunk[..read]).map_err(SnapshotRefused::Write)?;
        offset = end;
    }
}

/// Reads until `buffer` is full, and less only at the end: whole pages are cheaper to write.
fn fill(body: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match body.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Whether the file is a database as of the message's entry.
fn look(links: &Links, path: &Path, snapshot: &Snapshot) -> Result<(), SnapshotRefused> {
    let (found, _) = (links.env.position)(path).map_err(SnapshotRefused::Unusable)?;
    if found != snapshot.index {
        return Err(SnapshotRefused::OtherIndex {
            found,
            expected: snapshot.index,
        });
    }
    Ok(())
}
