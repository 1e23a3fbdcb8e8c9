//! The operating system's files, with somebody who sees what is written and stands between the log and each
//! sync.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keelson_wal::{Access, File, Files, RealFiles};

/// Who looks on.
pub(crate) trait Onlooker: Debug + Send + Sync {
    /// Something was written to a file, by one call.
    fn wrote(&self, _file: u64, _slices: &[IoSlice<'_>]) {}

    /// A file is to be synced: `sync` does it.
    fn sync(&self, file: u64, sync: &dyn Fn() -> io::Result<()>) -> io::Result<()>;
}

/// A disk with its onlooker. Each file has a number for as long as it is open.
#[derive(Debug)]
pub(crate) struct WatchedFiles {
    onlooker: Arc<dyn Onlooker>,
    opened: AtomicU64,
}

#[derive(Debug)]
struct WatchedFile {
    inner: Box<dyn File>,
    number: u64,
    onlooker: Arc<dyn Onlooker>,
}

impl WatchedFiles {
    pub(crate) fn new(onlooker: Arc<dyn Onlooker>) -> WatchedFiles {
        WatchedFiles {
            onlooker,
            opened: AtomicU64::new(0),
        }
    }

    fn wrap(&self, inner: Box<dyn File>) -> Box<dyn File> {
        Box::new(WatchedFile {
            inner,
            number: self.opened.fetch_add(1, Ordering::Relaxed),
            onlooker: self.onlooker.clone(),
        })
    }
}

impl Files for WatchedFiles {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn File>> {
        RealFiles.create(path, mode).map(|file| self.wrap(file))
    }
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn File>> {
        RealFiles.open(path, access).map(|file| self.wrap(file))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealFiles.create_dir(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFiles.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealFiles.remove(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        RealFiles.remove_dir(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        RealFiles.list(path)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        RealFiles.exists(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealFiles.sync_dir(path)
    }
}

impl File for WatchedFile {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        // The callee advances the slices as it writes them.
        let mut given = slices.to_vec();
        self.inner.write_at(offset, &mut given)?;
        self.onlooker.wrote(self.number, slices);
        Ok(())
    }
    fn allocate(&self, size: u64) -> io::Result<()> {
        self.inner.allocate(size)
    }
    fn truncate(&self, size: u64) -> io::Result<()> {
        self.inner.truncate(size)
    }
    fn sync(&self) -> io::Result<()> {
        self.onlooker.sync(self.number, &|| self.inner.sync())
    }
    fn try_lock(&self) -> io::Result<bool> {
        self.inner.try_lock()
    }
}
