//! The disk as this crate sees it, and the operating system's.

use std::fmt;
use std::fs;
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{Advice, FallocateFlags, FlockOperation, fadvise};

/// How an existing file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading only; needs no right to write.
    Read,
    /// For reading and writing.
    Write,
}

/// A file system: what the log and the snapshot files need of one.
///
/// What was written, created, renamed or removed may be lost or half done after a crash until
/// [`File::sync`] (content and size) or [`Files::sync_dir`] (names) has returned.
pub trait Files: Send + Sync + fmt::Debug {
    /// Creates a file for reading and writing with these permission bits (the umask is applied);
    /// one that exists is emptied.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn File>>;

    /// Opens a file that exists.
    ///
    /// # Errors
    ///
    /// What the system says; `NotFound` when there is none.
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn File>>;

    /// Creates a directory, mode 0700; its parent must exist.
    ///
    /// # Errors
    ///
    /// What the system says; `AlreadyExists` when there is something of that name.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Gives a file or directory another name in the same directory, replacing a file that has it.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory and all that is in it.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted; a name that is no text has replacement characters.
    ///
    /// # Errors
    ///
    /// What the system says; `NotFound` when there is no such directory.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Whether there is a file or directory of that name.
    ///
    /// # Errors
    ///
    /// What the system says, but for its saying that there is none.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// An open file. Dropping it closes it and gives up its lock.
pub trait File: Send + Sync + fmt::Debug {
    /// Its size in bytes.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn size(&self) -> io::Result<u64>;

    /// Reads some bytes at an offset; 0 only at the end or for an empty buffer.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes all the slices, one after the other, from an offset on; the file grows as needed.
    ///
    /// # Errors
    ///
    /// What the system says; some of the bytes may have been written then.
    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()>;

    /// Grows the file to a size, if it is smaller, with bytes that read as zeros and, where the
    /// file system can, have their space reserved.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn allocate(&self, size: u64) -> io::Result<()>;

    /// Cuts the file to a size.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn truncate(&self, size: u64) -> io::Result<()>;

    /// Advises to bring these bytes, which were written, to the disk now, and does not wait for it. It
    /// changes nothing about what is durable: that is what [`File::sync`] says, errors too.
    fn begin_sync(&self, offset: u64, bytes: u64) {
        let _ = (offset, bytes);
    }

    /// Makes content and size durable.
    ///
    /// # Errors
    ///
    /// What the system says; nothing is known about what is durable then.
    fn sync(&self) -> io::Result<()>;

    /// Takes the exclusive lock of the whole file that etcd takes; false when somebody has it.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn try_lock(&self) -> io::Result<bool>;
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFiles;

impl Files for RealFiles {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn File>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(path)?;
        Ok(Box::new(RealFile { file }))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn File>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(access == Access::Write)
            .open(path)?;
        Ok(Box::new(RealFile { file }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        // The parent of a bare relative name is the empty path.
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        fs::File::open(path)?.sync_all()
    }
}

#[derive(Debug)]
struct RealFile {
    file: fs::File,
}

/// How many slices one call may carry (`IOV_MAX` of Linux).
const SLICES_A_CALL: usize = 1024;

impl File for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn write_at(&self, mut offset: u64, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        // Drops leading empty slices, so that a write of nothing ends at once.
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let some = &slices[..slices.len().min(SLICES_A_CALL)];
            match rustix::io::pwritev(&self.file, some, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut slices, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        if self.size()? >= size {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, size) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.file.set_len(size),
            Err(errno) => Err(errno.into()),
        }
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    fn begin_sync(&self, offset: u64, bytes: u64) {
        // Linux writes out what is dirty in the range, and lets go only of what is clean already, which
        // right after a write is nothing. Where it is refused, the sync has more to do.
        let Some(bytes) = NonZeroU64::new(bytes) else {
            return;
        };
        let _ = fadvise(&self.file, offset, Some(bytes), Advice::DontNeed);
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn try_lock(&self) -> io::Result<bool> {
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => Ok(true),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
            // A kernel without such locks; etcd falls back to the same.
            Err(nix::Error::EINVAL) => {
                match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
                    Ok(()) => Ok(true),
                    Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
                    Err(errno) => Err(errno.into()),
                }
            }
            Err(errno) => Err(errno.into()),
        }
    }
}
