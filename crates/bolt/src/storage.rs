//! Where the pages lie: the trait, and the file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::map::FileMap;
use crate::options::Options;
use crate::sync::{Mutex, lock};

/// How long to sleep between two attempts at a lock that another process holds.
const LOCK_RETRY: Duration = Duration::from_millis(50);
/// Smallest map: 32 KiB; it doubles up to [`MAP_STEP`].
const MAP_MIN_SHIFT: u32 = 15;
/// From here on a map grows by whole steps: 1 GiB.
const MAP_STEP: u64 = 1 << 30;

/// A fixed look at the stored bytes, which stays usable as long as it lives.
///
/// Bytes below the length asked for in [`Storage::view`] may be read. The bytes of a page that a
/// transaction can reach do not change as long as the transaction lives; others may.
pub trait View: Send + Sync {
    /// `len` bytes from `offset`; `None` if they are not all inside of the view.
    fn slice(&self, offset: u64, len: usize) -> Option<&[u8]>;

    /// A hint that `len` bytes from `offset` are read soon. It neither waits nor reads from a disk,
    /// and it need not do anything; bytes outside of the view are no mistake.
    fn will_read(&self, _offset: u64, _len: usize) {}
}

/// What the engine needs of a disk. [`FileStorage`] is a file, [`crate::MemStorage`] is memory
/// that can lose power.
pub trait Storage: Send + Sync {
    /// The name used in errors.
    fn name(&self) -> String;

    /// The length in bytes.
    ///
    /// # Errors
    /// What the system answers.
    fn len(&self) -> io::Result<u64>;

    /// Whether it holds no bytes.
    ///
    /// # Errors
    /// What the system answers.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads at `offset` until `buf` is full or the end is reached, and tells how much it read.
    ///
    /// # Errors
    /// What the system answers.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `data` at `offset`, growing the storage if needed. Not durable before a sync.
    ///
    /// # Errors
    /// What the system answers; how much was written is then unknown.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Sets the length. New bytes read as zero.
    ///
    /// # Errors
    /// What the system answers.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes what was written durable, with the length as far as needed to read it.
    ///
    /// # Errors
    /// What the system answers; what is durable is then unknown.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes what was written and the length durable.
    ///
    /// # Errors
    /// What the system answers; what is durable is then unknown.
    fn sync_all(&self) -> io::Result<()>;

    /// A view of at least the first `len` bytes. The caller has made sure that the storage is as
    /// long as that.
    ///
    /// # Errors
    /// What the system answers.
    fn view(&self, len: u64) -> io::Result<Arc<dyn View>>;

    /// How many bytes a view of the first `len` bytes maps; decides by how much the file grows
    /// (formats 1.9).
    fn map_len(&self, len: u64) -> u64;
}

/// A file: pwrite, fdatasync, and a shared read-only map.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    path: PathBuf,
    initial_map_size: u64,
    populate: bool,
    map: Mutex<Option<Arc<FileMap>>>,
}

impl FileStorage {
    /// Opens `path` (created if it is missing and [`Options::read_only`] is not set) and takes its
    /// lock: shared if read-only, else exclusive. Waits at most [`Options::lock_timeout`].
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if another process keeps the lock, else what the system answers.
    pub fn open(path: &Path, options: &Options) -> io::Result<FileStorage> {
        let mut open = OpenOptions::new();
        open.read(true);
        if !options.read_only {
            open.write(true).create(true).mode(options.mode);
        }
        let file = open.open(path)?;
        lock_file(&file, options.read_only, options.lock_timeout)?;
        Ok(FileStorage {
            file,
            path: path.to_owned(),
            initial_map_size: options.initial_map_size,
            populate: options.populate,
            map: Mutex::new(None),
        })
    }
}

/// Takes the flock of formats 1.11.
fn lock_file(file: &File, shared: bool, timeout: Option<Duration>) -> io::Result<()> {
    let operation = if shared {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    let start = Instant::now();
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // An attempt that could only end after the deadline is not waited for.
        if timeout.is_some_and(|timeout| start.elapsed() + LOCK_RETRY > timeout) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

/// The size of a map for `len` bytes: the next power of two up to 1 GiB, whole GiB from there.
fn map_size(len: u64) -> u64 {
    if len <= MAP_STEP {
        return len.next_power_of_two().max(1 << MAP_MIN_SHIFT);
    }
    len.div_ceil(MAP_STEP).saturating_mul(MAP_STEP)
}

impl Storage for FileStorage {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn view(&self, len: u64) -> io::Result<Arc<dyn View>> {
        let mut held = lock(&self.map);
        if let Some(map) = held.as_ref().filter(|map| map.len() >= len) {
            return Ok(map.clone());
        }
        let size = map_size(len.max(self.initial_map_size));
        let map = Arc::new(FileMap::new(&self.file, size, self.populate)?);
        *held = Some(map.clone());
        Ok(map)
    }

    fn map_len(&self, len: u64) -> u64 {
        let held = lock(&self.map).as_ref().map_or(0, |map| map.len());
        if held >= len {
            held
        } else {
            map_size(len.max(self.initial_map_size))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_double_up_to_a_gigabyte_and_then_grow_by_one() {
        assert_eq!(map_size(1), 32 << 10);
        assert_eq!(map_size(33 << 10), 64 << 10);
        assert_eq!(map_size(1 << 30), 1 << 30);
        assert_eq!(map_size((1 << 30) + 1), 2 << 30);
    }

    #[test]
    fn a_second_writer_times_out_and_two_readers_share() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let options = |read_only| Options {
            read_only,
            lock_timeout: Some(Duration::from_millis(60)),
            ..Options::default()
        };
        let first = FileStorage::open(&path, &options(false)).unwrap();
        let second = FileStorage::open(&path, &options(true));
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(first);
        let _one = FileStorage::open(&path, &options(true)).unwrap();
        let _two = FileStorage::open(&path, &options(true)).unwrap();
    }
}
