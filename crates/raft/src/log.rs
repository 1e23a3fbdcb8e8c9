//! The log: what the storage holds and, behind it, what is not yet durable.

use keelson_proto::entry::{Entry, Snapshot};
use keelson_proto::ids::{LogIndex, Term};

use crate::events::{EventSink, event};
use crate::unstable::Unstable;
use crate::{Storage, StorageError};

/// Names an entry: no two entries of any log have the same term and index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EntryId {
    pub(crate) term: Term,
    pub(crate) index: LogIndex,
}

/// The log of one member.
///
/// Invariant: `applied <= applying <= committed <= last_index()`.
#[derive(Debug)]
pub(crate) struct Log<S> {
    pub(crate) storage: S,
    pub(crate) unstable: Unstable,
    /// Up to here a quorum has it.
    pub(crate) committed: LogIndex,
    /// Up to here it was handed out to be applied.
    pub(crate) applying: LogIndex,
    /// Up to here it is applied.
    pub(crate) applied: LogIndex,
    /// The bytes that may be handed out without being acknowledged.
    applying_bytes_max: u64,
    applying_bytes: u64,
    /// Whether nothing more is handed out until something is acknowledged.
    applying_paused: bool,
}

impl<S: Storage> Log<S> {
    pub(crate) fn new(storage: S, applying_bytes_max: u64) -> Log<S> {
        let before = storage.first_index().previous();
        Log {
            unstable: Unstable::new(storage.last_index().next()),
            storage,
            committed: before,
            applying: before,
            applied: before,
            applying_bytes_max,
            applying_bytes: 0,
            applying_paused: false,
        }
    }

    pub(crate) fn first_index(&self) -> LogIndex {
        self.unstable
            .first_index()
            .unwrap_or_else(|| self.storage.first_index())
    }

    pub(crate) fn last_index(&self) -> LogIndex {
        self.unstable
            .last_index()
            .unwrap_or_else(|| self.storage.last_index())
    }

    pub(crate) fn last_id(&self) -> EntryId {
        let index = self.last_index();
        EntryId {
            term: self
                .term(index)
                .expect("the storage knew the last term at the start, and keeps it"),
            index,
        }
    }

    /// The term at `index`, which may be the one before the first.
    pub(crate) fn term(&self, index: LogIndex) -> Result<Term, StorageError> {
        if let Some(term) = self.unstable.term(index) {
            return Ok(term);
        }
        if index < self.first_index().previous() {
            return Err(StorageError::Compacted);
        }
        if index > self.last_index() {
            return Err(StorageError::Unavailable);
        }
        self.storage.term(index)
    }

    pub(crate) fn term_or_zero(&self, index: LogIndex) -> Term {
        self.term(index).unwrap_or_default()
    }

    pub(crate) fn matches(&self, id: EntryId) -> bool {
        self.term(id.index) == Ok(id.term)
    }

    /// Whether a log that ends with `theirs` holds everything that this one has committed.
    pub(crate) fn is_up_to_date(&self, theirs: EntryId) -> bool {
        let ours = self.last_id();
        (theirs.term, theirs.index) >= (ours.term, ours.index)
    }

    /// Appends what a leader sent behind `previous`, and commits as far as the leader has and these
    /// entries reach. Returns the last index that is known to agree, or `None` if the logs do not
    /// agree at `previous`.
    pub(crate) fn maybe_append(
        &mut self,
        previous: EntryId,
        mut entries: Vec<Entry>,
        committed: LogIndex,
        events: &mut dyn EventSink,
    ) -> Option<LogIndex> {
        if !self.matches(previous) {
            return None;
        }
        let last = LogIndex(previous.index.0 + count(entries.len()));
        if let Some(known) = self.first_news(&entries, events) {
            entries.drain(..known);
            let first = entries[0].index;
            assert!(
                first > self.committed,
                "entry {first} conflict with committed entry [committed({})]",
                self.committed
            );
            self.append(entries, events);
        }
        self.commit_to(committed.min(last));
        Some(last)
    }

    /// How many of the entries are here already, unless all are.
    fn first_news(&self, entries: &[Entry], events: &mut dyn EventSink) -> Option<usize> {
        let known = entries.iter().position(|entry| {
            !self.matches(EntryId {
                term: entry.term,
                index: entry.index,
            })
        })?;
        let Entry { term, index, .. } = entries[known];
        if index <= self.last_index() {
            event!(
                events,
                Info,
                "found conflict at index {index} [existing term: {}, conflicting term: {term}]",
                self.term_or_zero(index)
            );
        }
        Some(known)
    }

    /// Appends entries, over what is there from the first of them on.
    pub(crate) fn append(&mut self, entries: Vec<Entry>, events: &mut dyn EventSink) {
        if let Some(first) = entries.first() {
            let after = first.index.previous();
            assert!(
                after >= self.committed,
                "after({after}) is out of range [committed({})]",
                self.committed
            );
            self.unstable.overwrite(entries, events);
        }
    }

    /// The largest index up to `index` whose term is at most `term`, with its term; an unknown term
    /// may be anything and is returned as 0.
    ///
    /// Neither log can agree with the other behind it, given that the other has `term` at `index`.
    pub(crate) fn find_conflict_by_term(&self, index: LogIndex, term: Term) -> (LogIndex, Term) {
        let mut index = index;
        while index > LogIndex(0) {
            match self.term(index) {
                Err(_) => return (index, Term(0)),
                Ok(ours) if ours <= term => return (index, ours),
                Ok(_) => index = index.previous(),
            }
        }
        (LogIndex(0), Term(0))
    }

    /// Commits up to `index`; never goes back.
    pub(crate) fn commit_to(&mut self, index: LogIndex) {
        if self.committed < index {
            assert!(
                index <= self.last_index(),
                "tocommit({index}) is out of range [lastIndex({})]. Was the raft log corrupted, \
                 truncated, or lost?",
                self.last_index()
            );
            self.committed = index;
        }
    }

    /// Commits up to an index that a quorum has, if it is news and of the given term.
    pub(crate) fn maybe_commit(&mut self, id: EntryId) -> bool {
        let news = id.term != Term(0) && id.index > self.committed && self.matches(id);
        if news {
            self.commit_to(id.index);
        }
        news
    }

    pub(crate) fn restore(&mut self, snapshot: Snapshot, events: &mut dyn EventSink) {
        event!(
            events,
            Info,
            "log [committed={}, applied={}, applying={}, unstable.offset={}, \
             unstable.offsetInProgress={}, len(unstable.Entries)={}] starts to restore snapshot \
             [index: {}, term: {}]",
            self.committed,
            self.applied,
            self.applying,
            self.unstable.offset(),
            self.unstable.offset_in_progress(),
            self.unstable.len(),
            snapshot.index,
            snapshot.term
        );
        self.committed = snapshot.index;
        self.unstable.restore(snapshot);
    }

    pub(crate) fn snapshot(&self) -> Result<Snapshot, StorageError> {
        match self.unstable.snapshot() {
            Some(snapshot) => Ok(snapshot.clone()),
            None => self.storage.snapshot(),
        }
    }

    /// The entries from `lo` on, up to `max_bytes`, but at least one if there is one.
    pub(crate) fn entries(&self, lo: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let end = self.last_index().next();
        if lo >= end {
            return Ok(Vec::new());
        }
        self.slice(lo, end, max_bytes)
    }

    /// The entries `lo..hi`, up to `max_bytes`, but at least one if the range is not empty.
    pub(crate) fn slice(
        &self,
        lo: LogIndex,
        hi: LogIndex,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        assert!(lo <= hi, "invalid slice {lo} > {hi}");
        if lo < self.first_index() {
            return Err(StorageError::Compacted);
        }
        let end = self.last_index().next();
        assert!(hi <= end, "slice[{lo},{hi}) out of bound [..,{end})");
        if lo == hi {
            return Ok(Vec::new());
        }
        let offset = self.unstable.offset();
        if lo >= offset {
            return Ok(limited(self.unstable.range(lo, hi), max_bytes));
        }

        let cut = hi.min(offset);
        let mut found = self.storage.entries(lo, cut, max_bytes)?;
        if hi <= offset || count(found.len()) < cut.0 - lo.0 {
            return Ok(found);
        }
        let mut bytes = encoded_bytes(&found);
        for entry in self.unstable.range(offset, hi) {
            bytes = bytes.saturating_add(count(entry.encoded_len()));
            if bytes > max_bytes {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    /// Committed entries that are to be applied now; `allow_unstable` includes those that the own
    /// storage has not acknowledged.
    pub(crate) fn next_committed(&self, allow_unstable: bool) -> Vec<Entry> {
        if !self.has_next_committed(allow_unstable) {
            return Vec::new();
        }
        let room = self.applying_bytes_max.saturating_sub(self.applying_bytes);
        let end = self.appliable_index(allow_unstable).next();
        self.slice(self.applying.next(), end, room)
            .expect("the storage keeps entries until they are applied")
    }

    pub(crate) fn has_next_committed(&self, allow_unstable: bool) -> bool {
        // While a snapshot waits, entries would be applied in the wrong order.
        !self.applying_paused
            && self.unstable.snapshot().is_none()
            && self.applying < self.appliable_index(allow_unstable)
    }

    fn appliable_index(&self, allow_unstable: bool) -> LogIndex {
        if allow_unstable {
            self.committed
        } else {
            self.committed.min(self.unstable.offset().previous())
        }
    }

    /// The entries up to `index` were handed out to be applied.
    pub(crate) fn accept_applying(&mut self, index: LogIndex, bytes: u64, allow_unstable: bool) {
        assert!(
            index <= self.committed,
            "applying({index}) is out of range [prevApplying({}), committed({})]",
            self.applying,
            self.committed
        );
        self.applying = index;
        self.applying_bytes = self.applying_bytes.saturating_add(bytes);
        // Fewer entries than there are means that the next one did not fit.
        self.applying_paused = self.applying_bytes >= self.applying_bytes_max
            || index < self.appliable_index(allow_unstable);
    }

    /// The entries up to `index` are applied.
    pub(crate) fn applied_to(&mut self, index: LogIndex, bytes: u64) {
        assert!(
            self.applied <= index && index <= self.committed,
            "applied({index}) is out of range [prevApplied({}), committed({})]",
            self.applied,
            self.committed
        );
        self.applied = index;
        self.applying = self.applying.max(index);
        self.applying_bytes = self.applying_bytes.saturating_sub(bytes);
        self.applying_paused = self.applying_bytes >= self.applying_bytes_max;
    }

    /// Whether a configuration change is committed and not yet applied.
    pub(crate) fn has_unapplied_conf_change(&self) -> bool {
        let end = self.committed.next();
        let mut from = self.applied.next();
        while from < end {
            let page = self
                .slice(from, end, self.applying_bytes_max)
                .expect("the storage keeps entries until they are applied");
            assert!(!page.is_empty(), "got 0 entries in [{from}, {end})");
            if page
                .iter()
                .any(|entry| entry.kind != keelson_proto::entry::EntryKind::Normal)
            {
                return true;
            }
            from = LogIndex(from.0 + count(page.len()));
        }
        false
    }
}

/// A length in memory as the number that indexes and sizes are counted in.
pub(crate) fn count(length: usize) -> u64 {
    u64::try_from(length).expect("a length in memory fits 64 bits")
}

/// The bytes of the encodings.
pub(crate) fn encoded_bytes(entries: &[Entry]) -> u64 {
    entries
        .iter()
        .map(|entry| count(entry.encoded_len()))
        .fold(0, u64::saturating_add)
}

/// The bytes of the data alone; an entry without data costs nothing.
pub(crate) fn data_bytes(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| count(entry.data_bytes())).sum()
}

/// The entries from the front whose encodings fit `max_bytes`, but at least one.
pub(crate) fn limited<'a>(
    entries: impl IntoIterator<Item = &'a Entry>,
    max_bytes: u64,
) -> Vec<Entry> {
    let mut bytes: u64 = 0;
    let mut taken = Vec::new();
    for entry in entries {
        bytes = bytes.saturating_add(count(entry.encoded_len()));
        if bytes > max_bytes && !taken.is_empty() {
            break;
        }
        taken.push(entry.clone());
    }
    taken
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{MemoryStorage, TracingEvents};

    fn entry(index: u64, term: u64) -> Entry {
        Entry {
            index: LogIndex(index),
            term: Term(term),
            data: Bytes::from_static(b"0123456789"),
            ..Entry::default()
        }
    }

    fn id(term: u64, index: u64) -> EntryId {
        EntryId {
            term: Term(term),
            index: LogIndex(index),
        }
    }

    /// Entries 1 to 4 in the storage, 5 and 6 behind it.
    fn log() -> Log<MemoryStorage> {
        let mut storage = MemoryStorage::new();
        storage.append(&[entry(1, 1), entry(2, 1), entry(3, 2), entry(4, 2)]);
        let mut log = Log::new(storage, u64::MAX);
        log.append(vec![entry(5, 3), entry(6, 5)], &mut TracingEvents);
        log
    }

    #[test]
    fn a_slice_runs_over_the_end_of_the_storage() {
        let log = log();
        let all = log.slice(LogIndex(2), LogIndex(7), u64::MAX).unwrap();
        let indexes: Vec<u64> = all.iter().map(|entry| entry.index.0).collect();
        assert_eq!(indexes, [2, 3, 4, 5, 6]);
        let one = count(entry(1, 1).encoded_len());
        for (room, expected) in [
            (0, 1),
            (one, 1),
            (3 * one, 3),
            (4 * one, 4),
            (5 * one - 1, 4),
        ] {
            let some = log.slice(LogIndex(2), LogIndex(7), room).unwrap();
            assert_eq!(some.len(), expected, "{room} bytes");
        }
    }

    #[test]
    fn entries_that_are_there_already_change_nothing() {
        let mut log = log();
        let again = vec![entry(4, 2), entry(5, 3)];
        let last = log.maybe_append(id(2, 3), again, LogIndex(9), &mut TracingEvents);
        assert_eq!(last, Some(LogIndex(5)));
        assert_eq!(log.last_index(), LogIndex(6), "nothing is cut off");
        assert_eq!(log.committed, LogIndex(5), "not beyond what was sent");
    }

    #[test]
    fn the_first_conflict_cuts_off_the_rest() {
        let mut log = log();
        let others = vec![entry(4, 2), entry(5, 4)];
        let last = log.maybe_append(id(2, 3), others, LogIndex(3), &mut TracingEvents);
        assert_eq!(last, Some(LogIndex(5)));
        assert_eq!(log.last_id(), id(4, 5));
        assert_eq!(
            log.maybe_append(id(3, 5), Vec::new(), LogIndex(5), &mut TracingEvents),
            None
        );
    }

    #[test]
    fn a_conflict_is_looked_for_by_term() {
        let log = log();
        let find = |index, term| {
            let (index, term) = log.find_conflict_by_term(LogIndex(index), Term(term));
            (index.0, term.0)
        };
        assert_eq!(find(6, 5), (6, 5));
        assert_eq!(find(6, 2), (4, 2));
        assert_eq!(find(4, 1), (2, 1));
        assert_eq!(find(6, 0), (0, 0));
        assert_eq!(find(100, 2), (100, 0), "an unknown term may be anything");
    }

    #[test]
    fn only_what_is_stored_is_applied_unless_asked_otherwise() {
        let mut log = log();
        log.commit_to(LogIndex(6));
        assert_eq!(log.next_committed(false).len(), 4);
        assert_eq!(log.next_committed(true).len(), 6);
    }
}
