//! A member's disk: the log, `.snap` files, received databases and the database itself.
//!
//! Nothing is durable but what was synced. A crash keeps an arbitrary part of the rest, in any order and
//! torn at sectors (`MemFiles::crash`, `MemStorage::crash`). The power may also go in the midst of a turn:
//! [`Disk::cut_after`] lets so many more changes pass, and all after them fail.
//!
//! The database lives in a storage of its own, which knows pages; the file of its name holds a mark that
//! says which one. A file without a mark was received from another member: opening it makes a storage
//! of its bytes.

use std::fmt;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use keelson_bolt::{Db, MemStorage, Storage, View};
use keelson_node::Env;
use keelson_proto::ids::{LogIndex, Term};
use keelson_store::{OpenOptions, Opened};
use keelson_wal::{Access, File, Files, MemFiles};

use crate::random::Random;

/// What the file of a database begins with here, before the number of its storage.
const MARK: &[u8] = b"keelson-sim database ";
const FILE_MODE: u32 = 0o600;

#[derive(Default)]
struct State {
    databases: Vec<MemStorage>,
    /// Changes until the power is gone.
    left: Option<u64>,
}

/// The disk. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Disk {
    files: MemFiles,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

impl Default for Disk {
    fn default() -> Disk {
        Disk::new()
    }
}

impl Disk {
    /// An empty disk.
    #[must_use]
    pub(crate) fn new() -> Disk {
        Disk {
            files: MemFiles::new(),
            state: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Lets so many more changes (writes, syncs, names) pass; every one after them fails.
    pub(crate) fn cut_after(&self, changes: u64) {
        self.state().left = Some(changes);
    }

    /// Takes [`Disk::cut_after`] back, if the power is still there.
    pub(crate) fn spare(&self) {
        self.state().left = None;
    }

    /// Whether the power has gone by [`Disk::cut_after`].
    #[must_use]
    pub(crate) fn is_cut(&self) -> bool {
        self.state().left == Some(0)
    }

    /// What is found after the power has gone now.
    #[must_use]
    pub(crate) fn crash(&self, random: &mut Random) -> Disk {
        let files = self.files.crash(|bound| random.below(bound));
        let state = self.state();
        let databases = state.databases.iter();
        let databases = databases
            .map(|it| it.crash(&mut || random.bits()))
            .collect();
        let state = State {
            databases,
            ..State::default()
        };
        Disk {
            files,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Puts disk and database into what a member is given.
    pub(crate) fn equip(&self, env: &mut Env) {
        env.files = Arc::new(self.clone());
        let disk = self.clone();
        env.database = Arc::new(move |path, options| disk.open_database(path, options));
        let disk = self.clone();
        env.position = Arc::new(move |path| disk.position(path));
    }

    /// Counts a change; fails if the power is gone.
    fn change(&self) -> io::Result<()> {
        let mut state = self.state();
        match &mut state.left {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn engine(&self, number: usize) -> Engine {
        Engine {
            storage: self.state().databases[number].clone(),
            disk: self.clone(),
        }
    }

    /// Keeps a storage, and gives its number a file, durably and at once.
    fn name(&self, path: &Path, storage: MemStorage) -> Result<usize, keelson_store::Error> {
        let number = {
            let mut state = self.state();
            state.databases.push(storage);
            state.databases.len() - 1
        };
        let write = || -> io::Result<()> {
            self.change()?;
            let making = path.with_added_extension("tmp.new");
            let file = self.files.create(&making, FILE_MODE)?;
            let mark = [MARK, number.to_string().as_bytes()].concat();
            file.write_at(0, &mut [IoSlice::new(&mark)])?;
            file.sync()?;
            self.files.rename(&making, path)?;
            self.files.sync_dir(path.parent().unwrap_or(Path::new("/")))
        };
        write().map_err(failed)?;
        Ok(number)
    }

    fn open_database(
        &self,
        path: &Path,
        options: &OpenOptions,
    ) -> Result<Opened, keelson_store::Error> {
        let number = if self.files.exists(path).map_err(failed)? {
            let bytes = self.files.bytes(path).map_err(failed)?;
            match marked(&bytes) {
                Some(number) => number,
                None => self.name(path, MemStorage::with_contents(&bytes))?,
            }
        } else {
            let fresh = MemStorage::new();
            drop(Db::open_storage(
                Box::new(fresh.clone()),
                options.bolt.clone(),
            )?);
            self.name(path, fresh)?
        };
        let db = Db::open_storage(Box::new(self.engine(number)), options.bolt.clone())?;
        keelson_store::open_db(db, None, options)
    }

    fn position(&self, path: &Path) -> Result<(LogIndex, Term), keelson_store::Error> {
        let bytes = self.files.bytes(path).map_err(failed)?;
        let storage = MemStorage::with_contents(&bytes);
        let options = OpenOptions {
            bolt: OpenOptions::bolt(),
            quota: keelson_store::Quota::new(0),
            lease_ttl_min: 1,
            lease_checkpoints: false,
        };
        let db = Db::open_storage(Box::new(storage), options.bolt.clone())?;
        let opened = keelson_store::open_db(db, None, &options)?;
        Ok(opened.store.applied())
    }

    fn wrap(&self, file: Box<dyn File>) -> Box<dyn File> {
        Box::new(OpenFile {
            file,
            disk: self.clone(),
        })
    }
}

/// The number of the storage that a file stands for.
fn marked(bytes: &[u8]) -> Option<usize> {
    let number = bytes.strip_prefix(MARK)?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

fn failed(source: io::Error) -> keelson_store::Error {
    let action = "simulated disk".to_owned();
    keelson_store::Error::from(keelson_bolt::Error::Io { action, source })
}

impl Files for Disk {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn File>> {
        self.change()?;
        Ok(self.wrap(self.files.create(path, mode)?))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn File>> {
        Ok(self.wrap(self.files.open(path, access)?))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        self.files.create_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change()?;
        self.files.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        self.files.remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        self.files.remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.files.list(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.files.exists(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        self.files.sync_dir(path)
    }
}

#[derive(Debug)]
struct OpenFile {
    file: Box<dyn File>,
    disk: Disk,
}

impl File for OpenFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.disk.change()?;
        self.file.write_at(offset, slices)
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.disk.change()?;
        self.file.allocate(size)
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.disk.change()?;
        self.file.truncate(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.change()?;
        self.file.sync()
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }
}

/// The database's part of the disk.
struct Engine {
    storage: MemStorage,
    disk: Disk,
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
        self.disk.change()?;
        self.storage.write_at(offset, data)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.change()?;
        self.storage.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.change()?;
        self.storage.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
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
