//! Reading the index.

use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::history::Kept;
use super::tree::{Rows, Span, Tree};
use super::{KEYS_PER_LOCK, KeyRange};
use crate::revision::Revision;

/// Keys of the first slice of a visit: many visits end after a few.
const KEYS_FIRST: usize = 32;

/// What a read at some revision sees of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// The revision of the value: where its record stands.
    pub rev: Revision,
    /// Main revision of the put that created the key.
    pub create: i64,
    /// Puts since then, 1 for the creation.
    pub version: i64,
    /// Length in bytes of the record; known for older revisions too.
    pub stored_len: u32,
}

/// A key with what a read at some revision sees of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The revision of the value: where its record stands.
    pub rev: Revision,
    /// Main revision of the put that created the key.
    pub create: i64,
    /// Puts since then, 1 for the creation.
    pub version: i64,
    /// Length in bytes of the record; known for older revisions too.
    pub stored_len: u32,
}

/// Revisions that a compaction keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeepSet {
    revisions: Vec<Revision>,
}

impl KeepSet {
    /// Whether `revision` is kept.
    #[must_use]
    pub fn contains(&self, revision: Revision) -> bool {
        self.revisions.binary_search(&revision).is_ok()
    }

    /// Whether nothing is kept; the hashes treat that as if there were no set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.revisions.is_empty()
    }

    /// The revisions, rising.
    #[must_use]
    pub fn as_slice(&self) -> &[Revision] {
        &self.revisions
    }
}

/// A handle to read the index by; clones read the same one.
///
/// Every method sees what is written up to the revision given, if all of that was written before the call.
#[derive(Clone, Debug)]
pub struct IndexReader {
    tree: Arc<RwLock<Tree>>,
}

impl IndexReader {
    pub(super) fn new() -> IndexReader {
        IndexReader {
            tree: Arc::new(RwLock::new(Tree::new())),
        }
    }

    /// Exchanges the content with another index's.
    pub(super) fn swap(&self, other: &IndexReader) {
        std::mem::swap(&mut *self.write(), &mut *other.write());
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Tree> {
        self.tree.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `key` is alive at `at`: also where compaction has lost its value, so that no read sees it.
    #[must_use]
    pub fn is_alive(&self, key: &[u8], at: Revision) -> bool {
        self.read()
            .get(key)
            .is_some_and(|history| history.is_live_at(at))
    }

    /// What a read at `at` sees of `key`; `None` when it is not alive there.
    #[must_use]
    pub fn get(&self, key: &[u8], at: Revision) -> Option<KeyState> {
        self.read().get(key)?.at(at)
    }

    /// The newest revision of `key` that is not compacted, and whether it is a tombstone.
    #[must_use]
    pub fn newest(&self, key: &[u8]) -> Option<(Revision, bool)> {
        self.read()
            .get(key)
            .map(|history| (history.newest(), !history.is_live()))
    }

    /// The number of keys of `range` that are alive at `at`. Costs O(log n) when no key of the range began or ended a
    /// life after `at`, and O(log n) more for each leaf with such keys.
    #[must_use]
    pub fn count(&self, range: KeyRange<'_>, at: Revision) -> u64 {
        if let KeyRange::Single(key) = range {
            return u64::from(self.is_alive(key, at));
        }
        let mut count = 0;
        self.slices(range, |tree, span| {
            tree.count(span, at, KEYS_PER_LOCK, &mut count)
        });
        count
    }

    /// Calls `f` for each key of `range` that is alive at `at`, in key order, until it breaks; keys up to and including
    /// `resume_after` are left out.
    ///
    /// The lock is not held while `f` runs, so `f` may use the index.
    pub fn visit(
        &self,
        range: KeyRange<'_>,
        at: Revision,
        resume_after: Option<&[u8]>,
        f: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
    ) {
        if let KeyRange::Single(key) = range {
            if resume_after.is_none_or(|after| after < key)
                && let Some(KeyState {
                    rev,
                    create,
                    version,
                    stored_len,
                }) = self.get(key, at)
            {
                let _ = f(Found {
                    key,
                    rev,
                    create,
                    version,
                    stored_len,
                });
            }
            return;
        }
        let mut rows = Rows::default();
        let mut keys = KEYS_FIRST;
        let mut low = first_after(range, resume_after);
        while let Some(from) = low {
            rows.clear();
            let span = Span {
                low: Some(&from),
                high: high_of(&range),
            };
            let next = if in_order(span) {
                self.read().rows(span, at, keys, &mut rows)
            } else {
                None
            };
            if rows.iter().try_for_each(&mut *f).is_break() {
                return;
            }
            low = next;
            keys = KEYS_PER_LOCK;
        }
    }

    /// The keys of `range` that are alive now, in key order, those too that no read sees because compaction has lost their
    /// values.
    #[must_use]
    pub fn alive(&self, range: KeyRange<'_>) -> Vec<Vec<u8>> {
        if let KeyRange::Single(key) = range {
            let alive = self.is_alive(key, Revision::end_of(i64::MAX));
            return alive.then(|| key.to_vec()).into_iter().collect();
        }
        let mut keys = Vec::new();
        self.slices(range, |tree, span| {
            tree.alive(span, KEYS_PER_LOCK, &mut keys)
        });
        keys
    }

    /// Calls `f` for each revision of `key` from transaction `from_main` up to and including `upto`, rising, with whether
    /// it is a tombstone. The lock is not held while `f` runs.
    pub fn since(
        &self,
        key: &[u8],
        from_main: i64,
        upto: Revision,
        f: &mut dyn FnMut(Revision, bool),
    ) {
        let mut from = Revision::new(from_main, 0);
        let mut found = Vec::new();
        loop {
            found.clear();
            if let Some(history) = self.read().get(key) {
                history.between(from, upto, KEYS_PER_LOCK, &mut found);
            }
            found
                .iter()
                .for_each(|&(revision, tombstone)| f(revision, tombstone));
            match found.last() {
                Some((last, _)) if found.len() == KEYS_PER_LOCK => {
                    from = match last.sub.checked_add(1) {
                        Some(sub) => Revision::new(last.main, sub),
                        None => Revision::new(last.main.saturating_add(1), 0),
                    };
                }
                _ => return,
            }
        }
    }

    /// The revisions that a hash of the store at transaction `at_main` covers of those at or below the compact revision.
    ///
    /// # Source
    ///
    /// `Keep` of etcd 3.7 (server/storage/mvcc/index.go): what compaction to `at_main` would keep, without tombstones,
    /// so that the hash agrees with versions that dropped them.
    #[must_use]
    pub fn keep(&self, at_main: i64) -> KeepSet {
        self.kept(at_main, |kept| !kept.tombstone)
    }

    /// The revisions, of those not above transaction `at_main`, that a compaction to it keeps, tombstones at exactly
    /// `at_main` too: the set that the hash of that compaction is made with.
    ///
    /// # Source
    ///
    /// `Compact` of etcd 3.7 (server/storage/mvcc/index.go).
    #[must_use]
    pub fn keep_of_compaction(&self, at_main: i64) -> KeepSet {
        self.kept(at_main, |_| true)
    }

    fn kept(&self, at_main: i64, wanted: impl Fn(&Kept) -> bool) -> KeepSet {
        let mut revisions = Vec::new();
        self.slices(KeyRange::all(), |tree, span| {
            tree.kept(span, at_main, KEYS_PER_LOCK, &mut |kept| {
                if wanted(&kept) {
                    revisions.push(kept.revision);
                }
            })
        });
        revisions.sort_unstable();
        KeepSet { revisions }
    }

    /// Keys that are alive now.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.read().live()
    }

    /// Keys that the index holds, those too that are dead and not compacted.
    #[must_use]
    pub fn keys_held(&self) -> u64 {
        self.read().keys
    }

    /// Bytes of memory that the index takes, without what the allocator adds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.read().bytes()
    }

    /// Checks every invariant of the structure. Costs O(n) under the lock: for tests.
    ///
    /// # Panics
    ///
    /// When one does not hold, with its name.
    pub fn check(&self) {
        self.read().check();
    }

    /// Calls `f` under the lock for slice after slice of `range`; `f` returns where the next slice begins.
    fn slices(&self, range: KeyRange<'_>, mut f: impl FnMut(&Tree, Span<'_>) -> Option<Vec<u8>>) {
        let mut low = first_after(range, None);
        while let Some(from) = low {
            // No bound at all lets whole subtrees be counted at once.
            let span = Span {
                low: Some(&*from).filter(|from| !from.is_empty()),
                high: high_of(&range),
            };
            low = if in_order(span) {
                f(&self.read(), span)
            } else {
                None
            };
        }
    }
}

/// The first key above `key`.
fn after(key: &[u8]) -> Vec<u8> {
    let mut after = Vec::with_capacity(key.len() + 1);
    after.extend_from_slice(key);
    after.push(0);
    after
}

fn first_after(range: KeyRange<'_>, resume_after: Option<&[u8]>) -> Option<Vec<u8>> {
    let KeyRange::Range { start, .. } = range else {
        return None;
    };
    Some(match resume_after {
        Some(resume) if resume >= start => after(resume),
        _ => start.to_vec(),
    })
}

fn high_of<'a>(range: &KeyRange<'a>) -> Option<&'a [u8]> {
    match range {
        KeyRange::Single(_) => None,
        KeyRange::Range { end, .. } => *end,
    }
}

fn in_order(span: Span<'_>) -> bool {
    span.high
        .is_none_or(|high| span.low.unwrap_or_default() < high)
}
