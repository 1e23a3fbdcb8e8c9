//! `.snap` files: a snapshot as consensus sees it, kept beside the database.
//!
//! See `docs/format/snap.md`.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::entry::Snapshot;
use keelson_proto::ids::LogIndex;
use keelson_proto::rpc::snappb;
use prost::Message as _;

use crate::Error;
use crate::files::{Access, Files};
use crate::purge::{InUse, Purged, purge};
use crate::record::SnapshotMark;
use crate::segment::parse_hex;

const SNAP_SUFFIX: &str = ".snap";
const DATABASE_SUFFIX: &str = ".snap.db";
const BROKEN_SUFFIX: &str = "broken";
/// What an interrupted defragmentation leaves.
const DEFRAGMENTATION_PREFIX: &str = "db.tmp";
/// What an interrupted reception of a snapshot leaves.
const RECEPTION_PREFIX: &str = "tmp";
/// Before the umask.
const SNAP_MODE: u32 = 0o666;
/// No protobuf message is larger.
const SNAP_BYTES_MAX: u64 = (1 << 31) - 1;
const READ_BYTES: usize = 1 << 20;

/// The `.snap` files of a directory, which also holds the database and the databases that were
/// received from a leader.
#[derive(Clone, Debug)]
pub struct SnapFiles {
    files: Arc<dyn Files>,
    dir: PathBuf,
}

/// The name of a snapshot's file. Names sort by term, then by index.
fn name_of(mark: SnapshotMark) -> String {
    format!("{:016x}-{:016x}{SNAP_SUFFIX}", mark.term.0, mark.index.0)
}

impl SnapFiles {
    /// Of a directory that exists.
    #[must_use]
    pub fn new(files: Arc<dyn Files>, dir: &Path) -> SnapFiles {
        SnapFiles {
            files,
            dir: dir.to_owned(),
        }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a database that was received from a leader waits to be installed.
    #[must_use]
    pub fn database_path(&self, index: LogIndex) -> PathBuf {
        self.dir.join(format!("{:016x}{DATABASE_SUFFIX}", index.0))
    }

    /// Writes a snapshot's file, durably; a file that is there already is replaced.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`]; the file is removed then.
    pub fn save(&self, snapshot: &Snapshot) -> Result<PathBuf, Error> {
        let mark = SnapshotMark {
            index: snapshot.index,
            term: snapshot.term,
        };
        let path = self.dir.join(name_of(mark));
        let data = snapshot.encode();
        let bytes = snappb::Snapshot {
            crc: Some(crc32c::crc32c(&data)),
            data: Some(data),
        }
        .encode_to_vec();
        let result = self.write(&path, &bytes);
        if result.is_err() {
            tracing::warn!(path = %path.display(), "failed to write a snap file");
            drop(self.files.remove(&path));
        }
        result.map(|()| path)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let file = self
            .files
            .create(path, SNAP_MODE)
            .map_err(Error::failed("create", path))?;
        file.write_at(0, &mut [IoSlice::new(bytes)])
            .map_err(Error::failed("write", path))?;
        file.sync().map_err(Error::failed("sync", path))?;
        self.files
            .sync_dir(&self.dir)
            .map_err(Error::failed("sync", &self.dir))
    }

    /// The names of the `.snap` files, newest first: by term, then by index. Removes what
    /// interrupted defragmentations left, as etcd does whenever it lists them.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`].
    pub fn list(&self) -> Result<Vec<String>, Error> {
        self.remove_prefixed(DEFRAGMENTATION_PREFIX)?;
        let mut names = self.names()?;
        names.retain(|name| name.ends_with(SNAP_SUFFIX));
        names.reverse();
        Ok(names)
    }

    /// The newest readable snapshot that the log has a record of (see
    /// [`crate::valid_snapshots`]). An unreadable file is given the suffix `.broken` and passed
    /// over.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] when the directory cannot be listed.
    pub fn load_newest(&self, matching: &[SnapshotMark]) -> Result<Option<Snapshot>, Error> {
        for name in self.list()? {
            let path = self.dir.join(name);
            match read_snap(&*self.files, &path) {
                Ok(snapshot) => {
                    let mark = SnapshotMark {
                        index: snapshot.index,
                        term: snapshot.term,
                    };
                    if matching.contains(&mark) {
                        return Ok(Some(snapshot));
                    }
                }
                Err(error) => self.set_aside(&path, &error),
            }
        }
        Ok(None)
    }

    fn set_aside(&self, path: &Path, error: &Error) {
        tracing::warn!(path = %path.display(), %error, "failed to read a snap file");
        let broken = path.with_added_extension(BROKEN_SUFFIX);
        match self.files.rename(path, &broken) {
            Ok(()) => tracing::warn!(
                path = %path.display(),
                broken_path = %broken.display(),
                "renamed to a broken snap file"
            ),
            Err(error) => tracing::warn!(
                path = %path.display(),
                broken_path = %broken.display(),
                %error,
                "failed to rename a broken snap file"
            ),
        }
    }

    /// Removes what interrupted receptions and defragmentations left; for the start of a member.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`].
    pub fn clean(&self) -> Result<(), Error> {
        self.remove_prefixed(RECEPTION_PREFIX)?;
        self.remove_prefixed(DEFRAGMENTATION_PREFIX)
    }

    /// Removes received databases of an index below this one: a later snapshot is in place.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`].
    pub fn release_databases(&self, below: LogIndex) -> Result<(), Error> {
        for name in self.names()? {
            let index = name.strip_suffix(DATABASE_SUFFIX).and_then(parse_hex);
            if index.is_some_and(|index| index < below.0) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Removes the oldest received databases and the oldest `.snap` files beyond a number of
    /// each; 0 keeps all.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`].
    pub fn purge(&self, max: usize) -> Result<Purged, Error> {
        let databases = purge(&*self.files, &self.dir, "snap.db", max, InUse::Ignore)?;
        let mut purged = purge(&*self.files, &self.dir, "snap", max, InUse::Ignore)?;
        purged.removed.splice(0..0, databases.removed);
        Ok(purged)
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        self.files
            .list(&self.dir)
            .map_err(Error::failed("list", &self.dir))
    }

    fn remove_prefixed(&self, prefix: &str) -> Result<(), Error> {
        for name in self.names()? {
            if name.starts_with(prefix) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.dir.join(name);
        match self.files.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::failed("remove", &path)(error))
            }
            _ => {
                tracing::info!(path = %path.display(), "removed an orphaned file");
                Ok(())
            }
        }
    }
}

/// Reads a `.snap` file.
///
/// # Errors
///
/// [`Error::SnapEmpty`], [`Error::SnapCrcMismatch`], [`Error::SnapUndecodable`],
/// [`Error::SnapTooLarge`], [`Error::Failed`].
pub fn read_snap(files: &dyn Files, path: &Path) -> Result<Snapshot, Error> {
    let bytes = read_whole(files, path)?;
    let undecodable = |reason: String| Error::SnapUndecodable {
        path: path.to_owned(),
        reason,
    };
    let envelope =
        snappb::Snapshot::decode(bytes).map_err(|error| undecodable(error.to_string()))?;
    let data = envelope.data.unwrap_or_default();
    let expected = envelope.crc.unwrap_or_default();
    if data.is_empty() || expected == 0 {
        return Err(Error::SnapEmpty {
            path: path.to_owned(),
        });
    }
    let computed = crc32c::crc32c(&data);
    if computed != expected {
        return Err(Error::SnapCrcMismatch {
            path: path.to_owned(),
            expected,
            computed,
        });
    }
    Snapshot::decode(data).map_err(|error| undecodable(error.to_string()))
}

fn read_whole(files: &dyn Files, path: &Path) -> Result<Bytes, Error> {
    let file = files
        .open(path, Access::Read)
        .map_err(Error::failed("open", path))?;
    let size = file.size().map_err(Error::failed("stat", path))?;
    if size > SNAP_BYTES_MAX {
        return Err(Error::SnapTooLarge {
            path: path.to_owned(),
            size,
        });
    }
    let mut bytes = Vec::new();
    let mut chunk = vec![0; READ_BYTES.min(size as usize + 1)];
    loop {
        let count = file
            .read_at(bytes.len() as u64, &mut chunk)
            .map_err(Error::failed("read", path))?;
        if count == 0 || bytes.len() as u64 >= size {
            return Ok(bytes.into());
        }
        bytes.extend_from_slice(&chunk[..count]);
    }
}
