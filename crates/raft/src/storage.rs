//! What raft reads back of what was written, and a storage in memory for tests.

use std::collections::VecDeque;

use keelson_proto::entry::{ConfState, Entry, HardState, Snapshot};
use keelson_proto::ids::{LogIndex, Term};

use crate::StorageError;
use crate::log::limited;

/// What was written; raft only reads it. The owner writes, by
/// [`RawNode::storage_mut`](crate::RawNode::storage_mut), before it acknowledges a write.
pub trait Storage {
    /// The hard state (all zero if none was written) and the configuration of the snapshot.
    fn initial_state(&self) -> (HardState, ConfState);

    /// The entries `lo..hi` from the front, up to `max_bytes` of their encoding, but at least one.
    ///
    /// # Errors
    ///
    /// [`StorageError::Compacted`] if `lo` is gone, [`StorageError::Unavailable`] if `hi` lies
    /// behind the end.
    fn entries(
        &self,
        lo: LogIndex,
        hi: LogIndex,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, StorageError>;

    /// The term of an entry, or of the one before the first.
    ///
    /// # Errors
    ///
    /// [`StorageError::Compacted`] and [`StorageError::Unavailable`].
    fn term(&self, index: LogIndex) -> Result<Term, StorageError>;

    /// The first entry that is kept, or would be.
    fn first_index(&self) -> LogIndex;

    /// The last entry; the one before the first if there is none.
    fn last_index(&self) -> LogIndex;

    /// A snapshot for a follower that needs entries which are gone.
    ///
    /// It must reach at least to the entry before the first. A member that was added after it refuses
    /// it, so it should be as new as can be.
    ///
    /// # Errors
    ///
    /// [`StorageError::SnapshotTemporarilyUnavailable`] if it must be asked for again later.
    fn snapshot(&self) -> Result<Snapshot, StorageError>;
}

/// A storage in memory, for tests.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    hard_state: HardState,
    snapshot: Snapshot,
    /// The entry before the first one.
    before: (LogIndex, Term),
    entries: VecDeque<Entry>,
}

impl MemoryStorage {
    /// An empty storage.
    #[must_use]
    pub fn new() -> MemoryStorage {
        MemoryStorage::default()
    }

    /// A storage that starts with a snapshot of this configuration and position.
    #[must_use]
    pub fn with_snapshot(snapshot: Snapshot) -> MemoryStorage {
        MemoryStorage {
            before: (snapshot.index, snapshot.term),
            snapshot,
            ..MemoryStorage::default()
        }
    }

    /// Replaces the hard state.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Replaces everything by a snapshot.
    ///
    /// # Errors
    ///
    /// [`StorageError::SnapshotOutOfDate`] if one as new is held.
    pub fn apply_snapshot(&mut self, snapshot: Snapshot) -> Result<(), StorageError> {
        if !self.snapshot.is_empty() && self.snapshot.index >= snapshot.index {
            return Err(StorageError::SnapshotOutOfDate);
        }
        self.before = (snapshot.index, snapshot.term);
        self.entries.clear();
        self.snapshot = snapshot;
        Ok(())
    }

    /// Makes a snapshot of what is applied up to `index`.
    ///
    /// # Errors
    ///
    /// [`StorageError::SnapshotOutOfDate`] if one as new is held, and those of [`Storage::term`].
    pub fn create_snapshot(
        &mut self,
        index: LogIndex,
        conf_state: ConfState,
        data: bytes::Bytes,
    ) -> Result<Snapshot, StorageError> {
        if index <= self.snapshot.index {
            return Err(StorageError::SnapshotOutOfDate);
        }
        self.snapshot = Snapshot {
            data,
            conf_state,
            index,
            term: self.term(index)?,
        };
        Ok(self.snapshot.clone())
    }

    /// Drops the entries up to and including `index`.
    ///
    /// # Errors
    ///
    /// [`StorageError::Compacted`] if they are gone, [`StorageError::Unavailable`] if they are not
    /// there yet.
    pub fn compact(&mut self, index: LogIndex) -> Result<(), StorageError> {
        if index <= self.before.0 {
            return Err(StorageError::Compacted);
        }
        let term = self.term(index)?;
        self.entries.drain(..self.position(index.next()));
        self.before = (index, term);
        Ok(())
    }

    /// Writes entries, over what is there from the first of them on.
    ///
    /// # Panics
    ///
    /// If they would leave a gap.
    pub fn append(&mut self, entries: &[Entry]) {
        let first = self.first_index();
        let Some(start) = entries.iter().find(|entry| entry.index >= first) else {
            return;
        };
        let start = start.index;
        assert!(
            start <= self.last_index().next(),
            "missing log entry [last: {}, append at: {start}]",
            self.last_index()
        );
        self.entries.truncate(self.position(start));
        self.entries
            .extend(entries.iter().filter(|entry| entry.index >= first).cloned());
    }

    /// Where the entry at `index` lies, or would.
    fn position(&self, index: LogIndex) -> usize {
        usize::try_from(index.0 - self.before.0.0 - 1).expect("the entries are in memory")
    }
}

impl Storage for MemoryStorage {
    fn initial_state(&self) -> (HardState, ConfState) {
        (self.hard_state, self.snapshot.conf_state.clone())
    }

    fn entries(
        &self,
        lo: LogIndex,
        hi: LogIndex,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        if lo <= self.before.0 {
            return Err(StorageError::Compacted);
        }
        if hi > self.last_index().next() || lo > hi {
            return Err(StorageError::Unavailable);
        }
        let range = self.entries.range(self.position(lo)..self.position(hi));
        Ok(limited(range, max_bytes))
    }

    fn term(&self, index: LogIndex) -> Result<Term, StorageError> {
        if index < self.before.0 {
            return Err(StorageError::Compacted);
        }
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        let entry = self.entries.get(self.position(index));
        entry
            .map(|entry| entry.term)
            .ok_or(StorageError::Unavailable)
    }

    fn first_index(&self) -> LogIndex {
        self.before.0.next()
    }

    fn last_index(&self) -> LogIndex {
        self.entries
            .back()
            .map_or(self.before.0, |entry| entry.index)
    }

    fn snapshot(&self) -> Result<Snapshot, StorageError> {
        Ok(self.snapshot.clone())
    }
}
