//! Opening a database and beginning transactions.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::freelist::{self, Freelist, FreelistKind, walk};
use crate::meta::{Meta, choose};
use crate::node::to_page;
use crate::page::Pages;
use crate::read_tx::ReadTx;
use crate::stats::Stats;
use crate::storage::{FileStorage, Storage};
use crate::sync::lock;
use crate::tree::Base;
use crate::work::Work;
use crate::write_tx::WriteTx;
use crate::{Damage, Error, PageId, TxId};

/// Bytes of the first look at a file.
const PROBE: usize = 4096;
const MIN_PAGE_SIZE: u32 = 1 << 10;
const MAX_PAGE_SIZE: u32 = 1 << 24;

/// How a database is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only reading; the lock is then shared with other readers. The file must exist.
    pub read_only: bool,
    /// Page size of a new file in bytes, a power of two from 1024 to 16777216. `None`: the
    /// system's. An existing file keeps its own.
    pub page_size: Option<u32>,
    /// Bytes to map at first. Costs address space only; larger than the file will ever be, the
    /// map never has to be made anew.
    pub initial_map_size: u64,
    /// How free pages are kept in memory.
    pub freelist: FreelistKind,
    /// Do not write the list of free pages: commits are cheaper, and a later open reads the
    /// whole tree.
    pub no_freelist_sync: bool,
    /// Do not sync at a commit: a crash can then destroy the file.
    pub no_sync: bool,
    /// Do not grow the file ahead of its use, with a sync; it grows by being written.
    pub no_grow_sync: bool,
    /// How long to wait for another process to let go of the file. `None`: for ever.
    pub lock_timeout: Option<Duration>,
    /// Refuse to grow the file past this many bytes.
    pub max_size: Option<u64>,
    /// Permissions of a new file.
    pub mode: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            read_only: false,
            page_size: None,
            initial_map_size: 0,
            freelist: FreelistKind::Map,
            no_freelist_sync: false,
            no_sync: false,
            no_grow_sync: false,
            lock_timeout: None,
            max_size: None,
            mode: 0o600,
        }
    }
}

/// A database: one file, one writer at a time, any number of readers. Clones are the same
/// database; the file is closed, and its lock let go, with the last of them and of the read
/// transactions.
#[derive(Clone)]
pub struct Db {
    shared: Arc<Shared>,
}

/// What all handles and transactions of a database share.
pub(crate) struct Shared {
    pub(crate) storage: Box<dyn Storage>,
    pub(crate) options: Options,
    pub(crate) page_size: u32,
    state: Mutex<State>,
    writer: Mutex<Writer>,
    poisoned: AtomicBool,
}

struct State {
    /// The last commit.
    meta: Meta,
    /// Open read transactions by the commit that they read.
    readers: BTreeMap<TxId, u64>,
    /// How many have ended.
    departed: u64,
    closed: bool,
    stats: Stats,
}

/// What the one writer has.
pub(crate) struct Writer {
    pub(crate) freelist: Freelist,
    pub(crate) file_len: u64,
}

impl Shared {
    /// An error if an earlier write or sync failed.
    pub(crate) fn check_sound(&self) -> Result<(), Error> {
        if self.poisoned.load(Ordering::Acquire) {
            Err(Error::Poisoned)
        } else {
            Ok(())
        }
    }

    /// Stops the database if `result` is an error.
    pub(crate) fn poison_on_error(&self, what: &str, result: io::Result<()>) -> Result<(), Error> {
        result.map_err(|source| {
            self.poisoned.store(true, Ordering::Release);
            let action = format!("{}: {what}", self.storage.name());
            tracing::error!(%action, error = %source, "the database is stopped");
            Error::Io { action, source }
        })
    }

    /// Makes a commit the one that later transactions see, and gives the free bytes.
    pub(crate) fn publish(&self, meta: Meta, freelist: &Freelist) -> u64 {
        let mut state = lock(&self.state);
        state.meta = meta;
        state.stats.size = meta.size();
        state.stats.commits += 1;
        count(&mut state.stats, freelist, self.page_size);
        state.stats.free_bytes
    }

    /// Notes how many pages are free.
    pub(crate) fn count_pages(&self, freelist: &Freelist) {
        count(&mut lock(&self.state).stats, freelist, self.page_size);
    }

    /// All free and pending pages as of commit `tx`, from memory. `None` if that is not the last
    /// commit, if they are not loaded, or if a write transaction is under way.
    pub(crate) fn free_ids(&self, tx: TxId) -> Option<Vec<PageId>> {
        if self.options.read_only {
            return None;
        }
        let writer = self.writer.try_lock().ok()?;
        (lock(&self.state).meta.tx_id == tx).then(|| writer.freelist.ids())
    }

    pub(crate) fn end_read(&self, tx: TxId) {
        let mut state = lock(&self.state);
        state.departed += 1;
        if let Some(count) = state.readers.get_mut(&tx) {
            *count -= 1;
            if *count == 0 {
                state.readers.remove(&tx);
            }
        }
    }
}

fn count(stats: &mut Stats, freelist: &Freelist, page_size: u32) {
    stats.free_pages = freelist.free_pages();
    stats.free_bytes = stats.free_pages * u64::from(page_size);
    stats.pending_pages = freelist.pending_pages();
    stats.freelist_bytes = freelist.page_bytes();
}

impl Db {
    /// Opens the database in the file `path`. Unless [`Options::read_only`] is set, a missing or
    /// empty file becomes a new database. A missing one appears as a whole or not at all, whenever
    /// the power goes: it is made under the name with `.tmp.new` added.
    ///
    /// # Errors
    /// `Timeout` if another process keeps the lock; `InvalidDatabase`, `VersionMismatch`,
    /// `Checksum` and `FileTooSmall` if it is no sound database; `Corrupt` if it ends before its
    /// last page or its list of free pages is damaged; `Io`.
    pub fn open(path: &Path, options: Options) -> Result<Db, Error> {
        if !options.read_only && !path.exists() {
            create(path, &options)?;
        }
        let opened = FileStorage::open(
            path,
            options.read_only,
            options.mode,
            options.lock_timeout,
            options.initial_map_size,
        );
        match opened {
            Ok(storage) => Db::open_storage(Box::new(storage), options),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Error::Timeout),
            Err(error) => Err(Error::io(format!("open {}", path.display()))(error)),
        }
    }

    /// Opens the database in `storage`; empty storage becomes a new database.
    ///
    /// # Errors
    /// As [`Db::open`], without `Timeout`.
    pub fn open_storage(storage: Box<dyn Storage>, options: Options) -> Result<Db, Error> {
        let failed = |what: &str| Error::io(format!("{}: {what}", storage.name()));
        let mut file_len = storage.len().map_err(failed("length"))?;
        if file_len == 0 {
            if options.read_only {
                return Err(Error::InvalidDatabase);
            }
            file_len = initialise(&*storage, &options)?;
        }
        let (meta, page_size) = read_metas(&*storage, file_len, &options)?;
        if meta.size() > file_len {
            let damage = Damage::Truncated {
                len: file_len,
                needed: meta.size(),
            };
            return Err(Error::corrupt(meta.page(), damage));
        }
        let view = storage.view(meta.size()).map_err(failed("map"))?;
        let pages = Pages {
            view: &*view,
            page_size,
            high_water: meta.high_water,
        };
        let free = if options.read_only {
            Vec::new()
        } else if meta.has_freelist() {
            freelist::read_page(pages, meta.freelist)?
        } else {
            walk::free_pages(pages, meta.root)?
        };
        let freelist = Freelist::new(options.freelist, &free);
        let mut stats = Stats {
            size: meta.size(),
            ..Stats::default()
        };
        count(&mut stats, &freelist, page_size);
        let state = State {
            meta,
            readers: BTreeMap::new(),
            departed: 0,
            closed: false,
            stats,
        };
        let persist = !options.read_only && !options.no_freelist_sync && !meta.has_freelist();
        let db = Db {
            shared: Arc::new(Shared {
                storage,
                options,
                page_size,
                state: Mutex::new(state),
                writer: Mutex::new(Writer { freelist, file_len }),
                poisoned: AtomicBool::new(false),
            }),
        };
        if persist {
            // The next open shall not have to read the tree.
            db.begin_write()?.commit()?;
        }
        Ok(db)
    }

    /// Begins a read transaction: everything as of the last commit.
    ///
    /// # Errors
    /// `NotOpen` after a close; `Poisoned` after a failed write; `Io` if the file cannot be
    /// mapped.
    pub fn begin_read(&self) -> Result<Arc<ReadTx>, Error> {
        let shared = &self.shared;
        shared.check_sound()?;
        let mut state = lock(&shared.state);
        if state.closed {
            return Err(Error::NotOpen);
        }
        let meta = state.meta;
        let failed = Error::io(format!("{}: map", shared.storage.name()));
        let view = shared.storage.view(meta.size()).map_err(failed)?;
        *state.readers.entry(meta.tx_id).or_default() += 1;
        state.stats.read_txs += 1;
        drop(state);
        Ok(Arc::new(ReadTx {
            shared: shared.clone(),
            view,
            meta,
        }))
    }

    /// Begins the write transaction; waits until the one before has ended.
    ///
    /// # Errors
    /// `ReadOnly`; `NotOpen` after a close; `Poisoned` after a failed write; `Io` if the file
    /// cannot be mapped.
    pub fn begin_write(&self) -> Result<WriteTx<'_>, Error> {
        let shared = &*self.shared;
        if shared.options.read_only {
            return Err(Error::ReadOnly);
        }
        let mut writer = lock(&shared.writer);
        shared.check_sound()?;
        let (mut meta, readers, departed) = {
            let state = lock(&shared.state);
            if state.closed {
                return Err(Error::NotOpen);
            }
            (
                state.meta,
                state.readers.keys().copied().collect::<Vec<_>>(),
                state.departed,
            )
        };
        let failed = Error::io(format!("{}: map", shared.storage.name()));
        let view = shared.storage.view(meta.size()).map_err(failed)?;
        writer.freelist.release(&readers, departed);
        let base = Base {
            view,
            page_size: shared.page_size,
            high_water: meta.high_water,
        };
        meta.tx_id = TxId(meta.tx_id.0.checked_add(1).ok_or(Error::InvalidDatabase)?);
        Ok(WriteTx {
            shared,
            writer,
            work: Work::new(base, meta),
            done: false,
        })
    }

    /// Sizes and counts.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = lock(&self.shared.state);
        Stats {
            open_read_txs: state.readers.values().sum(),
            ..state.stats
        }
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_size(&self) -> u32 {
        self.shared.page_size
    }

    /// Waits for the write transaction and refuses new ones. Read transactions go on; the file is
    /// closed with the last handle.
    ///
    /// # Errors
    /// `NotOpen` if it was closed before.
    pub fn close(self) -> Result<(), Error> {
        let _writer = lock(&self.shared.writer);
        let mut state = lock(&self.shared.state);
        if std::mem::replace(&mut state.closed, true) {
            Err(Error::NotOpen)
        } else {
            Ok(())
        }
    }
}

/// Makes the file of a new database.
fn create(path: &Path, options: &Options) -> Result<(), Error> {
    let failed = |what: &str| Error::io(format!("{what} {}", path.display()));
    let making = path.with_added_extension("tmp.new");
    let opened = FileStorage::open(&making, false, options.mode, options.lock_timeout, 0);
    let storage = match opened {
        Ok(storage) => storage,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(Error::Timeout),
        Err(error) => return Err(failed("open")(error)),
    };
    if path.exists() {
        // Somebody else has made it while this waited for the lock.
        return Ok(());
    }
    storage.set_len(0).map_err(failed("empty"))?;
    initialise(&storage, options)?;
    std::fs::rename(&making, path).map_err(failed("create"))?;
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    std::fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync the directory of"))
}

/// Writes the four pages of a new database (formats 1.1) and gives their length.
fn initialise(storage: &dyn Storage, options: &Options) -> Result<u64, Error> {
    let page_size = match options.page_size {
        Some(size) => size,
        None => u32::try_from(rustix::param::page_size()).unwrap_or(4096),
    };
    if !valid_page_size(page_size) {
        return Err(Error::PageSize(page_size));
    }
    let mut meta = Meta {
        page_size,
        flags: 0,
        root: PageId(3),
        sequence: 0,
        freelist: PageId(2),
        high_water: PageId(4),
        tx_id: TxId(0),
    };
    let mut bytes = meta.to_page(PageId(0));
    meta.tx_id = TxId(1);
    bytes.extend(meta.to_page(PageId(1)));
    bytes.extend(Freelist::new(options.freelist, &[]).to_page(PageId(2), 1, page_size));
    bytes.extend(to_page(&[], true, PageId(3), 1, page_size));
    let failed = |what| Error::io(format!("{}: {what}", storage.name()));
    storage
        .write_at(0, &bytes)
        .map_err(failed("write of a new database"))?;
    storage
        .sync_data()
        .map_err(failed("sync of a new database"))?;
    Ok(bytes.len() as u64)
}

fn valid_page_size(size: u32) -> bool {
    size.is_power_of_two() && (MIN_PAGE_SIZE..=MAX_PAGE_SIZE).contains(&size)
}

/// Finds the page size and the meta that counts (formats 1.1).
fn read_metas(
    storage: &dyn Storage,
    file_len: u64,
    options: &Options,
) -> Result<(Meta, u32), Error> {
    let page_size = find_page_size(storage, file_len, options)?;
    if file_len < 2 * u64::from(page_size) {
        return Err(Error::FileTooSmall { size: file_len });
    }
    let first = read_meta(storage, 0);
    let second = read_meta(storage, u64::from(page_size));
    let meta = choose(first, second)?;
    if meta.page_size != page_size {
        return Err(Error::PageSize(meta.page_size));
    }
    if meta.root.0 < 2 || meta.root >= meta.high_water {
        let damage = Damage::OutOfBounds {
            high_water: meta.high_water,
        };
        return Err(Error::corrupt(meta.root, damage));
    }
    if meta.has_freelist() && (meta.freelist.0 < 2 || meta.freelist >= meta.high_water) {
        let damage = Damage::OutOfBounds {
            high_water: meta.high_water,
        };
        return Err(Error::corrupt(meta.freelist, damage));
    }
    if meta
        .high_water
        .0
        .checked_mul(u64::from(page_size))
        .is_none()
    {
        let damage = Damage::OutOfBounds {
            high_water: meta.high_water,
        };
        return Err(Error::corrupt(meta.page(), damage));
    }
    Ok((meta, page_size))
}

fn read_meta(storage: &dyn Storage, offset: u64) -> Result<Meta, Error> {
    let mut buf = [0; 80];
    let failed = Error::io(format!("{}: read of a meta page", storage.name()));
    let n = storage.read_at(offset, &mut buf).map_err(failed)?;
    Meta::read(&buf[..n])
}

fn find_page_size(storage: &dyn Storage, file_len: u64, options: &Options) -> Result<u32, Error> {
    if file_len < PROBE as u64 {
        // Too short for a first look; a small page's second meta can still be there.
        return second_meta_page_size(storage, file_len)?.ok_or(Error::InvalidDatabase);
    }
    let found = match read_meta(storage, 0) {
        Ok(meta) => Some(meta.page_size),
        Err(error @ Error::Io { .. }) => return Err(error),
        Err(_) => second_meta_page_size(storage, file_len)?,
    };
    let size = match (found, options.page_size) {
        (Some(size), _) | (None, Some(size)) => size,
        (None, None) => u32::try_from(rustix::param::page_size()).unwrap_or(4096),
    };
    if valid_page_size(size) {
        Ok(size)
    } else {
        Err(Error::PageSize(size))
    }
}

/// The page size that a sound second meta gives, wherever it stands.
fn second_meta_page_size(storage: &dyn Storage, file_len: u64) -> Result<Option<u32>, Error> {
    for shift in 0..15 {
        let offset = u64::from(MIN_PAGE_SIZE) << shift;
        if offset + u64::from(MIN_PAGE_SIZE) >= file_len {
            break;
        }
        match read_meta(storage, offset) {
            Ok(meta) if valid_page_size(meta.page_size) => return Ok(Some(meta.page_size)),
            Err(error @ Error::Io { .. }) => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(None)
}
