//! The end of the log that the own storage has not yet acknowledged.
//!
//! Entries and a snapshot wait here to be handed out, and stay while they are being written, so that
//! the log can be read without a gap. The storage may hold other entries behind `offset`; they are
//! about to be overwritten.

use std::collections::VecDeque;

use keelson_proto::entry::{Entry, Snapshot};
use keelson_proto::ids::{LogIndex, Term};

use crate::events::{EventSink, event};
use crate::log::{EntryId, count};

/// What is not yet known to be durable. Entry `i` of `entries` has the index `offset + i`.
#[derive(Debug)]
pub(crate) struct Unstable {
    /// A received snapshot; everything before it is void.
    snapshot: Option<Snapshot>,
    /// Whether the snapshot was handed out.
    snapshot_in_progress: bool,
    entries: VecDeque<Entry>,
    offset: LogIndex,
    /// The entries before this one were handed out. Invariant: `offset <= offset_in_progress`.
    offset_in_progress: LogIndex,
}

impl Unstable {
    pub(crate) fn new(offset: LogIndex) -> Unstable {
        Unstable {
            snapshot: None,
            snapshot_in_progress: false,
            entries: VecDeque::new(),
            offset,
            offset_in_progress: offset,
        }
    }

    pub(crate) fn offset(&self) -> LogIndex {
        self.offset
    }

    pub(crate) fn offset_in_progress(&self) -> LogIndex {
        self.offset_in_progress
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// The first index of the log, if a snapshot sets it.
    pub(crate) fn first_index(&self) -> Option<LogIndex> {
        self.snapshot.as_ref().map(|snapshot| snapshot.index.next())
    }

    /// The last index of the log, if it lies here.
    pub(crate) fn last_index(&self) -> Option<LogIndex> {
        let entry = self.entries.back().map(|entry| entry.index);
        entry.or(self.snapshot.as_ref().map(|snapshot| snapshot.index))
    }

    /// The term at `index`, if it lies here.
    pub(crate) fn term(&self, index: LogIndex) -> Option<Term> {
        if index < self.offset {
            let snapshot = self.snapshot.as_ref()?;
            return (snapshot.index == index).then_some(snapshot.term);
        }
        let entry = self.entries.get(self.position(index))?;
        Some(entry.term)
    }

    fn position(&self, index: LogIndex) -> usize {
        assert!(
            index >= self.offset,
            "index {index} lies before the unstable log, which starts at {}",
            self.offset
        );
        usize::try_from(index.0 - self.offset.0).unwrap_or(usize::MAX)
    }

    /// The entries that wait to be handed out.
    pub(crate) fn next_entries(&self) -> Vec<Entry> {
        let waiting = self.position(self.offset_in_progress)..;
        self.entries.range(waiting).cloned().collect()
    }

    pub(crate) fn has_next_entries(&self) -> bool {
        self.position(self.offset_in_progress) < self.entries.len()
    }

    /// The snapshot, if it waits to be handed out.
    pub(crate) fn next_snapshot(&self) -> Option<&Snapshot> {
        self.snapshot
            .as_ref()
            .filter(|_| !self.snapshot_in_progress)
    }

    /// Everything that waited was handed out.
    pub(crate) fn accept_in_progress(&mut self) {
        if let Some(last) = self.entries.back() {
            self.offset_in_progress = last.index.next();
        }
        self.snapshot_in_progress = self.snapshot.is_some();
    }

    /// The entries up to `id` are durable, and no write under way replaces them.
    pub(crate) fn stable_to(&mut self, id: EntryId, events: &mut dyn EventSink) {
        let EntryId { term, index } = id;
        match self.term(index) {
            None => event!(
                events,
                Routine,
                "entry at index {index} missing from unstable log; ignoring"
            ),
            Some(_) if index < self.offset => event!(
                events,
                Info,
                "entry at index {index} matched unstable snapshot; ignoring"
            ),
            Some(ours) if ours != term => event!(
                events,
                Info,
                "entry at (index,term)=({index},{term}) mismatched with entry at ({index},{ours}) \
                 in unstable log; ignoring"
            ),
            Some(_) => {
                self.entries.drain(..self.position(index.next()));
                self.offset = index.next();
                self.offset_in_progress = self.offset_in_progress.max(self.offset);
            }
        }
    }

    /// The snapshot at `index` is durable.
    pub(crate) fn stable_snapshot_to(&mut self, index: LogIndex) {
        self.snapshot.take_if(|snapshot| snapshot.index == index);
        self.snapshot_in_progress &= self.snapshot.is_some();
    }

    /// Starts over behind a received snapshot.
    pub(crate) fn restore(&mut self, snapshot: Snapshot) {
        *self = Unstable::new(snapshot.index.next());
        self.snapshot = Some(snapshot);
    }

    /// Writes `entries` over what is here from the first of them on.
    pub(crate) fn overwrite(&mut self, entries: Vec<Entry>, events: &mut dyn EventSink) {
        let Some(from) = entries.first().map(|entry| entry.index) else {
            return;
        };
        let end = LogIndex(self.offset.0 + count(self.entries.len()));
        assert!(
            from <= end,
            "entries from {from} on would leave a gap behind {end}"
        );
        if from == end {
            // The usual case: the log grows.
        } else if from <= self.offset {
            event!(
                events,
                Info,
                "replace the unstable entries from index {from}"
            );
            self.entries.clear();
            self.offset = from;
            self.offset_in_progress = from;
        } else {
            event!(
                events,
                Info,
                "truncate the unstable entries before index {from}"
            );
            self.entries.truncate(self.position(from));
            self.offset_in_progress = self.offset_in_progress.min(from);
        }
        self.entries.extend(entries);
    }

    /// The entries `lo..hi`, all of which must lie here.
    pub(crate) fn range(&self, lo: LogIndex, hi: LogIndex) -> impl Iterator<Item = &Entry> {
        self.entries.range(self.position(lo)..self.position(hi))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TracingEvents;

    fn entries(range: std::ops::Range<u64>, term: u64) -> Vec<Entry> {
        range
            .map(|index| Entry {
                index: LogIndex(index),
                term: Term(term),
                ..Entry::default()
            })
            .collect()
    }

    fn id(term: u64, index: u64) -> EntryId {
        EntryId {
            term: Term(term),
            index: LogIndex(index),
        }
    }

    #[test]
    fn what_was_handed_out_is_not_handed_out_again() {
        let mut log = Unstable::new(LogIndex(5));
        log.overwrite(entries(5..8, 1), &mut TracingEvents);
        assert_eq!(log.next_entries().len(), 3);
        log.accept_in_progress();
        assert!(!log.has_next_entries());
        log.overwrite(entries(8..9, 1), &mut TracingEvents);
        assert_eq!(log.next_entries()[0].index, LogIndex(8));
    }

    #[test]
    fn entries_that_were_replaced_while_they_were_written_are_handed_out_again() {
        let mut log = Unstable::new(LogIndex(5));
        log.overwrite(entries(5..8, 1), &mut TracingEvents);
        log.accept_in_progress();
        log.overwrite(entries(6..7, 2), &mut TracingEvents);
        assert_eq!(log.next_entries(), entries(6..7, 2));
        log.stable_to(id(1, 6), &mut TracingEvents);
        assert_eq!(log.offset(), LogIndex(5), "another term is another entry");
        log.stable_to(id(1, 5), &mut TracingEvents);
        assert_eq!(log.offset(), LogIndex(6));
        log.overwrite(entries(4..6, 3), &mut TracingEvents);
        assert_eq!(log.offset(), LogIndex(4));
        assert_eq!(log.next_entries(), entries(4..6, 3));
    }

    #[test]
    fn a_snapshot_voids_the_entries_and_is_let_go_once_written() {
        let mut log = Unstable::new(LogIndex(5));
        log.overwrite(entries(5..8, 1), &mut TracingEvents);
        log.restore(Snapshot {
            index: LogIndex(20),
            term: Term(3),
            ..Snapshot::default()
        });
        assert_eq!(log.last_index(), Some(LogIndex(20)));
        assert_eq!(log.term(LogIndex(20)), Some(Term(3)));
        assert_eq!(log.term(LogIndex(7)), None);
        assert!(log.next_snapshot().is_some());
        log.accept_in_progress();
        assert!(log.next_snapshot().is_none());
        assert!(log.snapshot().is_some());
        log.stable_snapshot_to(LogIndex(19));
        assert!(log.snapshot().is_some());
        log.stable_snapshot_to(LogIndex(20));
        assert!(log.snapshot().is_none());
    }
}
