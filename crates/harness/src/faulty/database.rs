//! The database's file as the faults leave it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use keelson_bolt::{Db, Error, FileStorage, Options, Storage, View};
use keelson_store::{Disk, RealDisk};

use super::Faults;
use super::disk::Part;

fn failed(path: &Path, source: io::Error) -> Error {
    Error::Io {
        action: format!("{}: open", path.display()),
        source,
    }
}

impl Disk for Faults {
    fn open(&self, path: &Path, options: Options) -> Result<Db, Error> {
        if !path.exists() {
            let full = self.shared.disks.write(Part::Database);
            full.map_err(|error| failed(path, error))?;
            // A new one appears as a whole.
            drop(RealDisk.open(path, options.clone())?);
        }
        let file = match FileStorage::open(path, &options) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(Error::Timeout),
            opened => opened.map_err(|error| failed(path, error))?,
        };
        let storage = FaultyStorage {
            file,
            faults: self.clone(),
        };
        Db::open_storage(Box::new(storage), options)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        RealDisk.exists(path)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.shared.disks.sync(Part::Database)?;
        RealDisk.sync_dir(path)
    }
}

struct FaultyStorage {
    file: FileStorage,
    faults: Faults,
}

impl FaultyStorage {
    fn write(&self) -> io::Result<()> {
        self.faults.shared.disks.write(Part::Database)
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.shared.disks.sync(Part::Database)
    }
}

impl Storage for FaultyStorage {
    fn name(&self) -> String {
        self.file.name()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write()?;
        self.file.write_at(offset, data)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.sync()?;
        self.file.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.sync()?;
        self.file.sync_all()
    }
    fn view(&self, len: u64) -> io::Result<Arc<dyn View>> {
        self.file.view(len)
    }
    fn map_len(&self, len: u64) -> u64 {
        self.file.map_len(len)
    }
}
