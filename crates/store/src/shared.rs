//! What serving threads may read of the store, while apply goes on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use arc_swap::ArcSwap;
use bytes::Bytes;
use keelson_proto::ids::{LogIndex, Term};
use semver::Version;

use crate::alarm::Alarms;
use crate::auth::AuthState;
use crate::hash::HashKv;
use crate::index::IndexReader;
use crate::lease::{Deadlines, Table};
use crate::member::Membership;
use crate::pin::{Pin, Pins};
use crate::view::View;
use crate::{Error, Revision};

/// How many hashes of compactions are remembered: those of the highest revisions.
const HASHES_MAX: usize = 10;

/// The readers' side of the store.
///
/// Published by apply at the end of each entry, and by the commit thread after each commit. Reading
/// takes no lock that apply waits for longer than one slice of the index.
pub struct Shared {
    pub(crate) index: IndexReader,
    published: AtomicI64,
    compacted: AtomicI64,
    applied_index: AtomicU64,
    applied_term: AtomicU64,
    view: ArcSwap<View>,
    pub(crate) auth: ArcSwap<AuthState>,
    pub(crate) members: ArcSwap<Membership>,
    pub(crate) alarms: ArcSwap<Alarms>,
    pub(crate) storage_version: ArcSwap<Option<Version>>,
    leases: RwLock<Table>,
    deadlines: Mutex<Deadlines>,
    pins: Arc<Pins>,
    hashes: Mutex<BTreeMap<i64, HashKv>>,
    file_bytes: AtomicU64,
    file_free_bytes: AtomicU64,
    file_readers: AtomicU64,
    tail_bytes: AtomicU64,
    sealed_bytes: AtomicU64,
}

/// The size of the database: the file, and what is not in it yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes allocated.
    pub total: u64,
    /// Bytes in use.
    pub in_use: u64,
}

/// What [`Shared`] starts from.
pub(crate) struct Published {
    pub(crate) index: IndexReader,
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
    pub(crate) view: View,
    pub(crate) auth: AuthState,
    pub(crate) members: Arc<Membership>,
    pub(crate) alarms: Alarms,
    pub(crate) storage_version: Option<Version>,
    pub(crate) leases: Table,
    pub(crate) deadlines: Deadlines,
    pub(crate) applied: (LogIndex, Term),
}

impl Shared {
    pub(crate) fn new(start: Published) -> Shared {
        Shared {
            index: start.index,
            published: AtomicI64::new(start.revision),
            compacted: AtomicI64::new(start.compacted),
            applied_index: AtomicU64::new(start.applied.0.0),
            applied_term: AtomicU64::new(start.applied.1.0),
            view: ArcSwap::from_pointee(start.view),
            auth: ArcSwap::from_pointee(start.auth),
            members: ArcSwap::new(start.members),
            alarms: ArcSwap::from_pointee(start.alarms),
            storage_version: ArcSwap::from_pointee(start.storage_version),
            leases: RwLock::new(start.leases),
            deadlines: Mutex::new(start.deadlines),
            pins: Arc::default(),
            hashes: Mutex::default(),
            file_bytes: AtomicU64::new(0),
            file_free_bytes: AtomicU64::new(0),
            file_readers: AtomicU64::new(0),
            tail_bytes: AtomicU64::new(0),
            sealed_bytes: AtomicU64::new(0),
        }
    }

    /// The current main revision: everything up to it can be read. An empty store has 1.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.published.load(Ordering::SeqCst)
    }

    /// The revision of the last compaction, -1 if there was none: reads below it are refused.
    #[must_use]
    pub fn compact_revision(&self) -> i64 {
        self.compacted.load(Ordering::SeqCst)
    }

    /// The last applied entry, and its term: that of response headers.
    #[must_use]
    pub fn applied(&self) -> (LogIndex, Term) {
        let index = self.applied_index.load(Ordering::Acquire);
        (
            LogIndex(index),
            Term(self.applied_term.load(Ordering::Acquire)),
        )
    }

    /// The index of keys.
    #[must_use]
    pub fn index(&self) -> &IndexReader {
        &self.index
    }

    /// Tail and file as they are now; to be taken after [`Shared::revision`].
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Users, roles, and whether auth is on.
    #[must_use]
    pub fn auth(&self) -> Arc<AuthState> {
        self.auth.load_full()
    }

    /// Members, removed members and versions.
    #[must_use]
    pub fn members(&self) -> Arc<Membership> {
        self.members.load_full()
    }

    /// Active alarms.
    #[must_use]
    pub fn alarms(&self) -> Arc<Alarms> {
        self.alarms.load_full()
    }

    /// The release whose schema the file names; `None` before 3.6.
    #[must_use]
    pub fn storage_version(&self) -> Option<Version> {
        self.storage_version.load().as_ref().clone()
    }

    /// The release whose schema the file has; `None` before the cluster's version was decided. A file of
    /// 3.5 does not name it.
    #[must_use]
    pub fn schema_version(&self) -> Option<Version> {
        self.storage_version().or_else(|| {
            let members = self.members();
            let cluster = members.version()?;
            let is_old = (cluster.major, cluster.minor) == (3, 5);
            is_old.then(|| Version::new(3, 5, 0))
        })
    }

    /// Leases with their keys; to be held for one look-up only, since apply waits for it.
    pub fn leases(&self) -> RwLockReadGuard<'_, Table> {
        self.leases.read().expect("no holder of this lock panics")
    }

    pub(crate) fn leases_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.leases.write().expect("no holder of this lock panics")
    }

    /// When leases expire, on the leader; to be held for one renewal or look-up only.
    pub fn deadlines(&self) -> MutexGuard<'_, Deadlines> {
        self.deadlines
            .lock()
            .expect("no holder of this lock panics")
    }

    /// Holds back compaction from what a read at `main` sees. Whoever calls this looks at
    /// [`Shared::compact_revision`] afterwards.
    #[must_use]
    pub fn pin(&self, main: i64) -> Pin {
        self.pins.pin(main)
    }

    /// The oldest revision that a reader holds.
    pub(crate) fn oldest_pin(&self) -> Option<i64> {
        self.pins.oldest()
    }

    /// Breaks the pins below a compact revision.
    pub(crate) fn break_pins(&self, main: i64) -> usize {
        self.pins.break_below(main)
    }

    /// The size of the database.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let memory =
            self.tail_bytes.load(Ordering::Relaxed) + self.sealed_bytes.load(Ordering::Relaxed);
        let file = self.file_bytes.load(Ordering::Relaxed);
        let free = self.file_free_bytes.load(Ordering::Relaxed);
        Sizes {
            total: file + memory,
            in_use: file.saturating_sub(free) + memory,
        }
    }

    /// Read transactions that were open in the file at its last commit.
    #[must_use]
    pub fn file_readers(&self) -> u64 {
        self.file_readers.load(Ordering::Relaxed)
    }

    /// The value stored at a revision; `None` if it is not there (compacted, or never was).
    ///
    /// # Errors
    ///
    /// [`Error::Bolt`] if the file is damaged or cannot be read.
    pub fn record(&self, revision: Revision) -> Result<Option<Bytes>, Error> {
        self.view().record(revision)
    }

    /// The remembered hash of a compaction.
    pub(crate) fn compaction_hash(&self, revision: i64) -> Option<HashKv> {
        self.hashes
            .lock()
            .expect("no holder of this lock panics")
            .get(&revision)
            .copied()
    }

    /// Hashes of the last compactions, ascending by revision.
    #[must_use]
    pub fn compaction_hashes(&self) -> Vec<HashKv> {
        self.hashes
            .lock()
            .expect("no holder of this lock panics")
            .values()
            .copied()
            .collect()
    }

    pub(crate) fn remember_hash(&self, hash: HashKv) {
        let mut hashes = self.hashes.lock().expect("no holder of this lock panics");
        hashes.insert(hash.hash_revision, hash);
        while hashes.len() > HASHES_MAX {
            hashes.pop_first();
        }
    }

    /// Shows the state of another store in place of this one's. What is read at a revision is the same in
    /// both, but for what was compacted: so that is published first, and breaks the pins below it.
    pub(crate) fn take_over(&self, fresh: &Shared, swap_index: impl FnOnce()) {
        self.publish_compaction(fresh.compact_revision().max(self.compact_revision()));
        self.break_pins(fresh.compact_revision());
        swap_index();
        self.view.store(fresh.view());
        std::mem::swap(&mut *self.leases_mut(), &mut *fresh.leases_mut());
        std::mem::swap(&mut *self.deadlines(), &mut *fresh.deadlines());
        self.auth.store(fresh.auth());
        self.members.store(fresh.members());
        self.alarms.store(fresh.alarms());
        self.storage_version
            .store(fresh.storage_version.load_full());
        self.set_tail_bytes(0);
        self.publish_revision(fresh.revision());
        let (index, term) = fresh.applied();
        self.publish_applied(index, term);
    }

    pub(crate) fn publish_revision(&self, revision: i64) {
        // Who sends batches looks afterwards at whether anybody wants them, and who begins to want them
        // looks afterwards at this: one of the two must see the other.
        self.published.store(revision, Ordering::SeqCst);
    }

    pub(crate) fn publish_compaction(&self, revision: i64) {
        self.compacted.store(revision, Ordering::SeqCst);
    }

    pub(crate) fn publish_applied(&self, index: LogIndex, term: Term) {
        self.applied_term.store(term.0, Ordering::Release);
        self.applied_index.store(index.0, Ordering::Release);
    }

    pub(crate) fn change_view(&self, change: impl Fn(&View) -> View) {
        self.view.rcu(|view| change(view));
    }

    pub(crate) fn set_tail_bytes(&self, bytes: u64) {
        self.tail_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_sealed_bytes(&self, bytes: u64) {
        self.sealed_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn take_sealed_bytes(&self, bytes: u64) {
        self.sealed_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_file_readers(&self, open: u64) {
        self.file_readers.store(open, Ordering::Relaxed);
    }

    pub(crate) fn set_file_bytes(&self, total: u64, free: u64) {
        self.file_bytes.store(total, Ordering::Relaxed);
        self.file_free_bytes.store(free, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("revision", &self.revision())
            .field("compact_revision", &self.compact_revision())
            .finish_non_exhaustive()
    }
}
