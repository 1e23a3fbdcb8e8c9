//! The directory that the database's file lies in: names, and opening by name.
//!
//! Defragmentation makes a second file and gives it the name of the first, so it needs more of a disk than
//! the engine does. Tests bring a disk that can lose power between any two operations.

use std::io;
use std::path::Path;

use keelson_bolt::{Db, Options};

/// What the file's only writer needs of a disk, beside the engine's own [`keelson_bolt::Storage`].
pub trait Disk: Send + Sync {
    /// Opens the database of a name; where there is none, a new one appears as a whole or not at all.
    ///
    /// # Errors
    ///
    /// As [`Db::open`].
    fn open(&self, path: &Path, options: Options) -> Result<Db, keelson_bolt::Error>;

    /// Whether there is a file of that name.
    ///
    /// # Errors
    ///
    /// What the system says, but for its saying that there is none.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Removes a file.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name in the same directory, in place of the file that has it.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// The system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path, options: Options) -> Result<Db, keelson_bolt::Error> {
        Db::open(path, options)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::File::open(path)?.sync_all()
    }
}
