//! The own log as consensus reads it: the synced entries that it may still need, in memory.
//!
//! Entries come in when the log thread has synced them, so what is in here is what the own log holds
//! for good. They go when they are applied and the budget is spent; a member that needs older ones is
//! sent a snapshot.

use std::collections::VecDeque;

use keelson_proto::entry::{ConfState, Entry, HardState, Snapshot};
use keelson_proto::ids::{LogIndex, Term};
use keelson_raft::{Storage, StorageError};

use crate::budget;

/// How much of what is applied is kept for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The usual budget.
    Usual,
    /// A larger one: a member is getting a snapshot, and will need what comes behind it.
    Held,
}

/// The synced end of the log.
#[derive(Clone, Debug)]
pub struct MemoryLog {
    hard_state: HardState,
    conf_state: ConfState,
    /// The entry before the first one.
    before: (LogIndex, Term),
    entries: VecDeque<Entry>,
    /// Of the entries' data.
    bytes: u64,
    /// Up to here the state has it.
    applied: LogIndex,
    /// Up to here nothing is kept that is applied.
    outdated: LogIndex,
    /// Applied entries that are kept usually.
    entries_max: u64,
}

impl MemoryLog {
    /// Starts with what a log was found to hold behind the entry `before`.
    ///
    /// # Panics
    ///
    /// If the entries do not follow `before` and one another.
    #[must_use]
    pub fn new(
        before: (LogIndex, Term),
        entries: Vec<Entry>,
        hard_state: HardState,
        conf_state: ConfState,
    ) -> MemoryLog {
        let mut log = MemoryLog {
            hard_state,
            conf_state,
            before,
            entries: VecDeque::new(),
            bytes: 0,
            applied: before.0,
            outdated: LogIndex(0),
            entries_max: budget::RAFT_LOG_ENTRIES,
        };
        log.append(&entries);
        log
    }

    /// Adds entries that are synced, in place of what is there from the first of them on.
    ///
    /// # Panics
    ///
    /// If they leave a gap, or replace one that was trimmed.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.before.0 && first.index <= self.last_index().next(),
            "entry {} does not follow what the log holds, {} to {}",
            first.index,
            self.before.0.next(),
            self.last_index()
        );
        let keep = self.position(first.index);
        for gone in self.entries.drain(keep..) {
            self.bytes -= gone.data.len() as u64;
        }
        for entry in entries {
            assert_eq!(
                entry.index,
                self.last_index().next(),
                "entries are consecutive"
            );
            self.bytes += entry.data.len() as u64;
            self.entries.push_back(entry.clone());
        }
    }

    /// Notes the hard state that was written.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Notes the configuration as applied.
    pub fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    /// Starts over behind a snapshot.
    pub fn restore(&mut self, snapshot: &Snapshot) {
        self.before = (snapshot.index, snapshot.term);
        self.entries.clear();
        self.bytes = 0;
        self.applied = self.applied.max(snapshot.index);
        self.conf_state = snapshot.conf_state.clone();
    }

    /// Keeps so many applied entries, if no member is getting a snapshot.
    pub fn keep_entries(&mut self, entries_max: u64) {
        self.entries_max = entries_max;
    }

    /// Says that no other member may be sent the entries up to here: they are of a form that it may not
    /// read. They are dropped as soon as they are applied.
    pub fn set_outdated(&mut self, upto: LogIndex) {
        self.outdated = upto;
    }

    /// Notes what is applied, and drops such entries, oldest first, that the budget does not allow
    /// to keep, or that are outdated.
    pub fn trim(&mut self, applied: LogIndex, keep: Keep) {
        self.applied = self.applied.max(applied);
        let (bytes_max, entries_max) = match keep {
            Keep::Usual => (budget::RAFT_LOG_BYTES, self.entries_max),
            Keep::Held => (budget::RAFT_LOG_HELD_BYTES, budget::RAFT_LOG_HELD_ENTRIES),
        };
        while let Some(entry) = self.entries.front()
            && entry.index <= applied
            && (entry.index <= self.outdated
                || self.bytes > bytes_max
                || applied.0 - entry.index.0 >= entries_max)
        {
            self.bytes -= entry.data.len() as u64;
            self.before = (entry.index, entry.term);
            self.entries.pop_front();
        }
    }

    /// The data of the entries that are kept, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the entry at an index behind `before` lies, or would.
    fn position(&self, index: LogIndex) -> usize {
        usize::try_from(index.0 - self.before.0.0 - 1).expect("the entries are in memory")
    }
}

impl Storage for MemoryLog {
    fn initial_state(&self) -> (HardState, ConfState) {
        (self.hard_state, self.conf_state.clone())
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
        let mut bytes = 0;
        let mut found = Vec::new();
        for entry in self.entries.range(self.position(lo)..self.position(hi)) {
            bytes += entry.encoded_len() as u64;
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
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

    /// Where the state is: whoever sends it makes it of a later state, never of an earlier one.
    fn snapshot(&self) -> Result<Snapshot, StorageError> {
        let index = self.applied;
        match self.term(index) {
            Ok(term) if index > LogIndex(0) => Ok(Snapshot {
                index,
                term,
                conf_state: self.conf_state.clone(),
                ..Snapshot::default()
            }),
            _ => Err(StorageError::SnapshotTemporarilyUnavailable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn entry(index: u64, term: u64, bytes: usize) -> Entry {
        Entry {
            index: LogIndex(index),
            term: Term(term),
            data: Bytes::from(vec![b'x'; bytes]),
            ..Entry::default()
        }
    }

    fn log(entries: Vec<Entry>) -> MemoryLog {
        let before = (LogIndex(10), Term(1));
        MemoryLog::new(before, entries, HardState::default(), ConfState::default())
    }

    #[test]
    fn later_entries_replace_earlier_ones_of_their_index() {
        let mut log = log(vec![entry(11, 1, 5), entry(12, 1, 5), entry(13, 1, 5)]);
        log.append(&[entry(12, 2, 1)]);
        assert_eq!(log.last_index(), LogIndex(12));
        assert_eq!(log.term(LogIndex(12)), Ok(Term(2)));
        assert_eq!(log.bytes(), 6);
        assert_eq!(log.term(LogIndex(10)), Ok(Term(1)));
        assert_eq!(log.term(LogIndex(9)), Err(StorageError::Compacted));
        assert_eq!(log.term(LogIndex(13)), Err(StorageError::Unavailable));
    }

    #[test]
    fn as_many_applied_entries_are_kept_as_is_asked_for_and_more_during_a_transfer() {
        let mut log = log((11..31).map(|index| entry(index, 1, 1)).collect());
        log.keep_entries(3);
        log.trim(LogIndex(28), Keep::Held);
        assert_eq!(log.first_index(), LogIndex(11));
        log.trim(LogIndex(28), Keep::Usual);
        assert_eq!(log.first_index(), LogIndex(26));
        assert_eq!(log.last_index(), LogIndex(30));
    }

    #[test]
    fn only_applied_entries_are_trimmed_and_only_past_the_budget() {
        let mut log = log((11..31).map(|index| entry(index, 1, 1 << 20)).collect());
        log.trim(LogIndex(12), Keep::Usual);
        assert_eq!(log.first_index(), LogIndex(13));
        assert_eq!(log.bytes(), 18 << 20);
        log.trim(LogIndex(30), Keep::Usual);
        assert_eq!(log.bytes(), budget::RAFT_LOG_BYTES);
        assert_eq!(log.first_index(), LogIndex(15));
        assert_eq!(log.term(LogIndex(14)), Ok(Term(1)));
    }

    #[test]
    fn a_read_of_entries_keeps_to_its_bytes_but_gives_one() {
        let log = log(vec![
            entry(11, 1, 100),
            entry(12, 1, 100),
            entry(13, 1, 100),
        ]);
        assert_eq!(log.entries(LogIndex(11), LogIndex(14), 1).unwrap().len(), 1);
        assert_eq!(
            log.entries(LogIndex(11), LogIndex(14), 220).unwrap().len(),
            2
        );
        assert_eq!(
            log.entries(LogIndex(11), LogIndex(14), u64::MAX)
                .unwrap()
                .len(),
            3
        );
        assert_eq!(
            log.entries(LogIndex(10), LogIndex(14), 1),
            Err(StorageError::Compacted)
        );
        assert_eq!(
            log.entries(LogIndex(11), LogIndex(15), 1),
            Err(StorageError::Unavailable)
        );
    }
}
