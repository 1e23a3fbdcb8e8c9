//! The files of the log as the faults leave them.

use std::io::{self, IoSlice};
use std::path::Path;

use keelson_wal::{Access, File, Files, RealFiles};

use super::Faults;
use super::disk::Part;

impl Faults {
    fn write(&self) -> io::Result<()> {
        self.shared.disks.write(Part::Log)
    }

    fn wrap(&self, file: Box<dyn File>) -> Box<dyn File> {
        Box::new(FaultyFile {
            file,
            faults: self.clone(),
        })
    }
}

impl Files for Faults {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn File>> {
        self.write()?;
        RealFiles.create(path, mode).map(|file| self.wrap(file))
    }
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn File>> {
        RealFiles.open(path, access).map(|file| self.wrap(file))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.write()?;
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
        self.shared.disks.sync(Part::Log)?;
        RealFiles.sync_dir(path)
    }
}

#[derive(Debug)]
struct FaultyFile {
    file: Box<dyn File>,
    faults: Faults,
}

impl File for FaultyFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.faults.write()?;
        self.file.write_at(offset, slices)
    }
    fn allocate(&self, size: u64) -> io::Result<()> {
        self.faults.write()?;
        self.file.allocate(size)
    }
    fn truncate(&self, size: u64) -> io::Result<()> {
        self.file.truncate(size)
    }
    fn sync(&self) -> io::Result<()> {
        self.faults.pass_sync();
        self.faults.shared.disks.sync(Part::Log)?;
        self.file.sync()
    }
    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }
}
