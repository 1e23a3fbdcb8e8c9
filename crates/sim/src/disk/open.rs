//! What is open on a simulated disk: files, and the storage of a database.

use std::io::{self, IoSlice};
use std::sync::Arc;

use keelson_bolt::{MemStorage, Storage, View};
use keelson_wal::File;

use crate::disk::{Disk, Need};

/// What a write needs room for.
fn need(offset: u64, bytes: usize, size: u64) -> Need {
    if offset + bytes as u64 > size {
        Need::Growth
    } else {
        Need::Overwrite
    }
}

#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: Box<dyn File>,
    pub(super) disk: Disk,
}

impl File for OpenFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        let need = need(offset, bytes, self.file.size()?);
        if let Err(error) = self.disk.room(need) {
            let bytes: Vec<u8> = slices
                .iter()
                .flat_map(|slice| slice.iter().copied())
                .collect();
            let fitting = &bytes[..self.disk.fitting(offset, bytes.len())];
            if !fitting.is_empty() {
                self.disk.change()?;
                self.file.write_at(offset, &mut [IoSlice::new(fitting)])?;
            }
            return Err(error);
        }
        self.disk.change()?;
        self.file.write_at(offset, slices)
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        if size > self.file.size()? {
            self.disk.room(Need::Growth)?;
        }
        self.disk.change()?;
        self.file.allocate(size)
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.disk.change()?;
        self.file.truncate(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.room(Need::Sync)?;
        self.disk.change()?;
        self.file.sync()
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }
}

/// The database's part of the disk.
pub(super) struct Engine {
    pub(super) storage: MemStorage,
    pub(super) disk: Disk,
}

impl Storage for Engine {
    fn name(&self) -> String {
        self.storage.name()
    }

    fn len(&self) -> io::Result<u64> {
        self.storage.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.storage.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let need = need(offset, data.len(), self.storage.len()?);
        if let Err(error) = self.disk.room(need) {
            let fitting = &data[..self.disk.fitting(offset, data.len())];
            if !fitting.is_empty() {
                self.disk.change()?;
                self.storage.write_at(offset, fitting)?;
            }
            return Err(error);
        }
        self.disk.change()?;
        self.storage.write_at(offset, data)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > self.storage.len()? {
            self.disk.room(Need::Growth)?;
        }
        self.disk.change()?;
        self.storage.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.room(Need::Sync)?;
        self.disk.change()?;
        self.storage.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.disk.room(Need::Sync)?;
        self.disk.change()?;
        self.storage.sync_all()
    }

    fn view(&self, len: u64) -> io::Result<Arc<dyn View>> {
        self.storage.view(len)
    }

    fn map_len(&self, len: u64) -> u64 {
        self.storage.map_len(len)
    }
}
