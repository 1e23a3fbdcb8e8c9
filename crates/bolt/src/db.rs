//! Opening a database and beginning transactions.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::batch::Queue;
use crate::freelist::walk::Walker;
use crate::freelist::{Freelist, Policy};
use crate::open::{create, free_pages, initialise, open_file, read_metas};
use crate::options::Options;
use crate::page::Pages;
use crate::read_tx::ReadTx;
use crate::stats::Stats;
use crate::storage::Storage;
use crate::sync::{Condvar, Mutex, lock, wait};
use crate::tree::Base;
use crate::work::Work;
use crate::write_tx::{Hand, WriteTx};
use crate::{Damage, Error, PageId, TxId};

/// A database: one file, one writer at a time, any number of readers. Clones are the same
/// database; the file is closed, and its lock let go, with the last of them and of the read
/// transactions.
#[derive(Clone)]
pub struct Db {
    pub(crate) shared: Arc<Shared>,
    /// Ends with the last handle.
    _walker: Option<Arc<Walker>>,
}

/// What all handles and transactions of a database share.
pub(crate) struct Shared {
    pub(crate) storage: Box<dyn Storage>,
    pub(crate) options: Options,
    pub(crate) page_size: u32,
    state: Mutex<State>,
    /// The writer's place: empty while a transaction has it.
    writer: Mutex<Option<Box<Writer>>>,
    writer_back: Condvar,
    walk: Mutex<Walk>,
    walked: Condvar,
    pub(crate) batch: Queue,
    poisoned: AtomicBool,
}

/// The search for the free pages of a file that does not list them.
enum Walk {
    /// There was none, it was broken off, or what it found is in the freelist.
    Over,
    Running,
    Found(Vec<PageId>),
    /// The file is damaged: whatever is written could make it worse.
    Failed {
        page: PageId,
        damage: Damage,
    },
}

/// Read transactions that read the same commit.
#[derive(Default)]
struct Readers {
    count: u64,
    high_water: PageId,
}

struct State {
    /// The last commit.
    meta: crate::meta::Meta,
    /// Open read transactions by the commit that they read.
    readers: BTreeMap<TxId, Readers>,
    closed: bool,
    stats: Stats,
}

/// What the one writer has.
pub(crate) struct Writer {
    pub(crate) freelist: Freelist,
    pub(crate) file_len: u64,
    /// High-water mark of the other meta page: a crash can bring it back.
    pub(crate) older_mark: PageId,
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
    pub(crate) fn publish(&self, work: &Work, pages_written: u64, freelist: &Freelist) -> u64 {
        let mut state = lock(&self.state);
        state.meta = work.meta;
        let stats = &mut state.stats;
        stats.size = work.meta.size();
        stats.commits += 1;
        stats.pages_written += pages_written;
        stats.pages_allocated += work.counts.allocated;
        stats.nodes += work.forest.arena.len();
        stats.splits += work.counts.splits;
        stats.merges += work.forest.merges;
        count(stats, freelist, self.page_size);
        stats.free_bytes
    }

    /// Gives the writer's place back.
    pub(crate) fn give_back(&self, writer: Box<Writer>) {
        count(
            &mut lock(&self.state).stats,
            &writer.freelist,
            self.page_size,
        );
        *lock(&self.writer) = Some(writer);
        self.writer_back.notify_one();
    }

    /// Waits for the writer's place.
    fn take_writer(&self) -> Box<Writer> {
        let mut place = lock(&self.writer);
        loop {
            if let Some(writer) = place.take() {
                return writer;
            }
            place = wait(&self.writer_back, place);
        }
    }

    /// All free and pending pages as of commit `tx`, from memory. `None` if that is not the last
    /// commit, if they are not known, or if a write transaction is under way.
    pub(crate) fn free_ids(&self, tx: TxId) -> Option<Vec<PageId>> {
        let place = lock(&self.writer);
        let writer = place.as_ref()?;
        let now = lock(&self.state).meta.tx_id == tx;
        (now && writer.freelist.known()).then(|| writer.freelist.ids())
    }

    /// The highest high-water mark of a live reader.
    pub(crate) fn readers_mark(&self) -> PageId {
        let state = lock(&self.state);
        let marks = state.readers.values().map(|readers| readers.high_water);
        marks.max().unwrap_or_default()
    }

    pub(crate) fn end_read(&self, tx: TxId) {
        let mut state = lock(&self.state);
        if let Some(readers) = state.readers.get_mut(&tx) {
            readers.count -= 1;
            if readers.count == 0 {
                state.readers.remove(&tx);
            }
        }
    }

    /// Takes in what the walk has found, if it is done.
    fn learn(&self, freelist: &mut Freelist) -> Result<(), Error> {
        let mut walk = lock(&self.walk);
        let damage = match &*walk {
            Walk::Over | Walk::Running => return Ok(()),
            Walk::Found(free) => match freelist.learn(free) {
                Ok(()) => {
                    *walk = Walk::Over;
                    return Ok(());
                }
                Err(Error::Corrupt { page, damage }) => (page, damage),
                Err(error) => return Err(error),
            },
            Walk::Failed { page, damage } => (*page, damage.clone()),
        };
        let (page, damage) = damage;
        *walk = Walk::Failed {
            page,
            damage: damage.clone(),
        };
        Err(Error::corrupt(page, damage))
    }

    /// What the walk's thread calls at its end.
    fn walk_done(&self, found: Result<Option<Vec<PageId>>, Error>) {
        let name = self.storage.name();
        *lock(&self.walk) = match found {
            Ok(None) => Walk::Over,
            Ok(Some(free)) => {
                tracing::debug!(%name, free = free.len(), "the free pages are found");
                Walk::Found(free)
            }
            Err(Error::Corrupt { page, damage }) => {
                tracing::error!(%name, %page, %damage, "the search for free pages found damage");
                Walk::Failed { page, damage }
            }
            Err(_) => unreachable!("reading mapped pages fails by damage alone"),
        };
        self.walked.notify_all();
    }
}

fn count(stats: &mut Stats, freelist: &Freelist, page_size: u32) {
    stats.free_pages = freelist.free_pages();
    stats.free_bytes = stats.free_pages * u64::from(page_size);
    stats.pending_pages = freelist.pending_pages();
    stats.freelist_bytes = freelist.page_bytes();
    stats.freelist_known = freelist.known();
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
        let storage = open_file(path, &options)?;
        Db::open_storage(Box::new(storage), options)
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
        } else if !options.read_only && !options.no_sync {
            // A process that was killed may have left a commit in the system's buffers alone. What is
            // read here is built upon, and pages that it freed are written over: it must not go again.
            storage.sync_data().map_err(failed("sync"))?;
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
        let freelist = free_pages(&meta, pages, &options)?;
        let walking = !options.read_only && !freelist.known();
        let mut stats = Stats {
            size: meta.size(),
            ..Stats::default()
        };
        count(&mut stats, &freelist, page_size);
        let state = State {
            meta,
            readers: BTreeMap::new(),
            closed: false,
            stats,
        };
        let writer = Writer {
            // What the other meta says is not known to be sound; the file is its bound.
            older_mark: PageId(file_len / u64::from(page_size)),
            freelist,
            file_len,
        };
        let persist = !options.read_only && !options.no_freelist_sync && !meta.has_freelist();
        let walk = if walking { Walk::Running } else { Walk::Over };
        let mut db = Db {
            shared: Arc::new(Shared {
                storage,
                options,
                page_size,
                state: Mutex::new(state),
                writer: Mutex::new(Some(Box::new(writer))),
                writer_back: Condvar::new(),
                walk: Mutex::new(walk),
                walked: Condvar::new(),
                batch: Queue::default(),
                poisoned: AtomicBool::new(false),
            }),
            _walker: None,
        };
        if walking {
            let done = |tx: &ReadTx, found| tx.shared.walk_done(found);
            let walker = Walker::start(db.begin_read()?, done);
            db._walker = Some(Arc::new(walker.map_err(Error::io("start of a thread"))?));
        } else if persist {
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
        let failed = |source| Error::io(format!("{}: map", shared.storage.name()))(source);
        let view = shared.storage.view(meta.size()).map_err(failed)?;
        let readers = state.readers.entry(meta.tx_id).or_default();
        readers.count += 1;
        readers.high_water = meta.high_water;
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
    /// cannot be mapped; `Corrupt` if the search for the free pages of a file that does not list
    /// them found it damaged.
    pub fn begin_write(&self) -> Result<WriteTx<'_>, Error> {
        Ok(WriteTx::of(self.shared.begin_hand()?))
    }

    /// Waits until all free pages are known: at once, but for a large file that does not list them
    /// and was opened a moment ago.
    ///
    /// # Errors
    /// As [`Db::begin_write`].
    pub fn wait_for_freelist(&self) -> Result<(), Error> {
        let mut walk = lock(&self.shared.walk);
        while matches!(*walk, Walk::Running) {
            walk = wait(&self.shared.walked, walk);
        }
        drop(walk);
        drop(self.begin_write()?);
        Ok(())
    }

    /// Sizes and counts.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = lock(&self.shared.state);
        Stats {
            open_read_txs: state.readers.values().map(|readers| readers.count).sum(),
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
        let writer = self.shared.take_writer();
        let closed = std::mem::replace(&mut lock(&self.shared.state).closed, true);
        self.shared.give_back(writer);
        if closed { Err(Error::NotOpen) } else { Ok(()) }
    }
}

impl Shared {
    /// Begins the write transaction.
    pub(crate) fn begin_hand(self: &Arc<Shared>) -> Result<Box<Hand>, Error> {
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        let mut writer = self.take_writer();
        match self.prepare(&mut writer) {
            Ok(work) => Ok(Box::new(Hand {
                shared: self.clone(),
                writer: Some(writer),
                work,
                done: false,
            })),
            Err(error) => {
                self.give_back(writer);
                Err(error)
            }
        }
    }

    fn prepare(&self, writer: &mut Writer) -> Result<Work, Error> {
        self.check_sound()?;
        let (mut meta, readers) = {
            let state = lock(&self.state);
            if state.closed {
                return Err(Error::NotOpen);
            }
            let readers: Vec<TxId> = state.readers.keys().copied().collect();
            (state.meta, readers)
        };
        self.learn(&mut writer.freelist)?;
        let failed = |source| Error::io(format!("{}: map", self.storage.name()))(source);
        let view = self.storage.view(meta.size()).map_err(failed)?;
        writer.freelist.release(&readers, meta.tx_id);
        writer.freelist.set_policy(Policy::Fast);
        let base = Base {
            view,
            page_size: self.page_size,
            high_water: meta.high_water,
        };
        meta.tx_id = TxId(meta.tx_id.0.checked_add(1).ok_or(Error::InvalidDatabase)?);
        Ok(Work::new(base, meta))
    }
}
