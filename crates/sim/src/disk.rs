//! A member's disk: the log, `.snap` files, received databases and the database itself.
//!
//! Nothing is durable but what was synced. A crash keeps an arbitrary part of the rest, in any order and
//! torn at sectors (`MemFiles::crash`, `MemStorage::crash`). The power may also go in the midst of a turn:
//! [`Disk::cut_after`] lets so many more changes pass, and all after them fail.
//!
//! The database lives in a storage of its own, which knows pages; the file of its name holds a mark that
//! says which one. A file without a mark was received from another member: opening it makes a storage
//! of its bytes.
//!
//! A disk that is full ([`Disk::fill`]) has no room for what grows, writes a part of it and says so. On
//! some, overwriting needs room too, and on some only the sync finds out.

mod open;

use std::fmt;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use keelson_bolt::{Db, MemStorage, Options};
use keelson_node::Env;
use keelson_proto::ids::{LogIndex, Term};
use keelson_store::{OpenOptions, Opened};
use keelson_wal::{Access, File, Files, MemFiles};

use crate::disk::open::{Engine, OpenFile};
use crate::random::Random;

/// What the file of a database begins with here, before the number of its storage.
const MARK: &[u8] = b"keelson-sim database ";
const FILE_MODE: u32 = 0o600;

const SECTOR: u64 = 512;
/// ENOSPC.
const NO_SPACE: i32 = 28;

#[derive(Default)]
struct State {
    databases: Vec<MemStorage>,
    /// Changes until the power is gone.
    left: Option<u64>,
    full: Option<Full>,
    /// It had no room for something, in the present life of its member.
    refused: bool,
    /// What it had no room for was written and not synced, in the present life of its member.
    unsynced: bool,
}

/// How a disk is full.
struct Full {
    /// Overwriting needs room, too.
    writes: bool,
    /// Only a sync may find out.
    syncs: bool,
    random: Random,
}

/// What a change needs room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// A name.
    Name,
    /// A file that grows.
    Growth,
    /// Bytes in the place of others.
    Overwrite,
    /// What was written before.
    Sync,
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

    /// It is full from now on.
    pub(crate) fn fill(&self, writes: bool, syncs: bool, random: Random) {
        self.state().full = Some(Full {
            writes,
            syncs,
            random,
        });
    }

    /// There is room again.
    pub(crate) fn make_room(&self) {
        self.state().full = None;
    }

    /// A member starts on it.
    pub(crate) fn begin_life(&self) {
        let mut state = self.state();
        state.refused = false;
        state.unsynced = false;
    }

    /// Whether it had no room for something since its member has started.
    #[must_use]
    pub(crate) fn has_refused(&self) -> bool {
        self.state().refused
    }

    /// Whether a sync has failed since its member has started: what was written may be gone.
    #[must_use]
    pub(crate) fn has_failed_to_sync(&self) -> bool {
        self.state().unsynced
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
        drop(state);
        let mut state = self.state();
        let state = State {
            databases,
            full: state.full.take(),
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

    /// Fails if there is no room for a change.
    fn room(&self, need: Need) -> io::Result<()> {
        let mut state = self.state();
        let Some(full) = &mut state.full else {
            return Ok(());
        };
        let refused = match need {
            Need::Name => full.random.chance(500),
            Need::Growth => !full.syncs || full.random.chance(500),
            Need::Overwrite => full.writes,
            Need::Sync => full.syncs && full.random.chance(500),
        };
        if !refused {
            return Ok(());
        }
        state.refused = true;
        state.unsynced |= need == Need::Sync;
        Err(io::Error::from_raw_os_error(NO_SPACE))
    }

    /// How many of so many bytes still fit at an offset: up to the end of some sector, for room comes in
    /// blocks.
    fn fitting(&self, offset: u64, bytes: usize) -> usize {
        let Some(full) = &mut self.state().full else {
            return bytes;
        };
        let to_edge = usize::try_from(SECTOR - offset % SECTOR).expect("below a sector");
        if to_edge > bytes {
            return 0;
        }
        let whole = (bytes - to_edge) as u64 / SECTOR;
        let more = full.random.below(whole + 1) * SECTOR;
        to_edge + usize::try_from(more).expect("not more than there are")
    }

    fn engine(&self, number: usize) -> Engine {
        Engine {
            storage: self.state().databases[number].clone(),
            disk: self.clone(),
        }
    }

    /// Keeps a storage, and gives its number a file, durably and at once.
    fn name(&self, path: &Path, storage: MemStorage) -> io::Result<usize> {
        self.room(Need::Growth)?;
        self.change()?;
        let number = {
            let mut state = self.state();
            state.databases.push(storage);
            state.databases.len() - 1
        };
        let making = path.with_added_extension("tmp.new");
        let file = self.files.create(&making, FILE_MODE)?;
        let mark = [MARK, number.to_string().as_bytes()].concat();
        file.write_at(0, &mut [IoSlice::new(&mark)])?;
        file.sync()?;
        self.files.rename(&making, path)?;
        self.files
            .sync_dir(path.parent().unwrap_or(Path::new("/")))?;
        Ok(number)
    }

    fn open_database(
        &self,
        path: &Path,
        options: &OpenOptions,
    ) -> Result<Opened, keelson_store::Error> {
        keelson_store::open_on(Arc::new(self.clone()), path, options)
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

fn failed(source: io::Error) -> keelson_bolt::Error {
    let action = "use the simulated disk".to_owned();
    keelson_bolt::Error::Io { action, source }
}

impl keelson_store::Disk for Disk {
    fn open(&self, path: &Path, options: Options) -> Result<Db, keelson_bolt::Error> {
        let number = if self.files.exists(path).map_err(failed)? {
            let bytes = self.files.bytes(path).map_err(failed)?;
            match marked(&bytes) {
                Some(number) => number,
                None => self
                    .name(path, MemStorage::with_contents(&bytes))
                    .map_err(failed)?,
            }
        } else {
            let fresh = MemStorage::new();
            drop(Db::open_storage(Box::new(fresh.clone()), options.clone())?);
            self.name(path, fresh).map_err(failed)?
        };
        Db::open_storage(Box::new(self.engine(number)), options)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Files::exists(self, path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Files::remove(self, path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Files::rename(self, from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Files::sync_dir(self, path)
    }
}

impl Files for Disk {
    fn create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn File>> {
        self.room(Need::Name)?;
        self.change()?;
        Ok(self.wrap(self.files.create(path, mode)?))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn File>> {
        Ok(self.wrap(self.files.open(path, access)?))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.room(Need::Name)?;
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
        self.room(Need::Sync)?;
        self.change()?;
        self.files.sync_dir(path)
    }
}
