//! Changing the index.

use super::history::History;
use super::prune::Pruner;
use super::reader::IndexReader;
use super::tree::Edit;
use crate::revision::Revision;

/// What a put made of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutState {
    /// Main revision of the put that created the key: this one's, if it did.
    pub create: i64,
    /// Puts since then, 1 for the creation.
    pub version: i64,
    /// The revision of the value that it replaced, if compaction has not lost that.
    pub prev: Option<Revision>,
}

/// What became of a record that was read from the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Restored {
    /// It is in the index.
    Indexed,
    /// It is a tombstone of a key that is dead already, and is left out, as in etcd; a warning is due.
    StrayTombstone,
    /// It is not above the key's newest revision, and is left out: the file's order is broken.
    OutOfOrder,
}

/// The one handle that changes the index; apply holds it.
///
/// Changes take the lock for one key each, and are seen at once by readers that read at their revision or a later one:
/// a revision is published when all of its changes are in.
#[derive(Debug)]
pub struct IndexWriter {
    reader: IndexReader,
}

impl Default for IndexWriter {
    fn default() -> IndexWriter {
        IndexWriter::new()
    }
}

impl IndexWriter {
    /// Makes an empty index.
    #[must_use]
    pub fn new() -> IndexWriter {
        IndexWriter {
            reader: IndexReader::new(),
        }
    }

    /// A handle to read it by.
    #[must_use]
    pub fn reader(&self) -> IndexReader {
        self.reader.clone()
    }

    /// Adds a put. `stored_len` is called once, under the lock, with the create revision and the version that the put
    /// gets, and returns the length of the record; it must not use the index.
    ///
    /// # Panics
    ///
    /// When `rev` is not above the newest revision of the key, or the record has 4 GiB or more.
    pub fn put_with(
        &mut self,
        key: &[u8],
        rev: Revision,
        stored_len: impl FnOnce(i64, i64) -> u32,
    ) -> PutState {
        let mut state = PutState {
            create: rev.main,
            version: 1,
            prev: None,
        };
        let mut stored_len = Some(stored_len);
        let mut length = |state: &PutState| {
            let stored_len = stored_len.take().expect("an edit looks at its key once");
            stored_len(state.create, state.version)
        };
        self.reader.write().edit(key, rev, &mut |history| {
            let Some(history) = history else {
                return Edit::New(History::put_first(
                    rev,
                    state.create,
                    state.version,
                    length(&state),
                ));
            };
            let live = history.is_live();
            (state.create, state.version) = history.next_numbers(rev.main);
            state.prev = history.is_stored().then(|| history.newest());
            history.put(rev, state.create, state.version, length(&state));
            if live { Edit::Same } else { Edit::Born }
        });
        state
    }

    /// Adds a put whose record's length is known.
    ///
    /// # Panics
    ///
    /// As [`IndexWriter::put_with`].
    pub fn put(&mut self, key: &[u8], rev: Revision, stored_len: u32) -> PutState {
        self.put_with(key, rev, |_, _| stored_len)
    }

    /// What a put of transaction `main` would make of `key` now.
    #[must_use]
    pub fn next_state(&self, key: &[u8], main: i64) -> PutState {
        let tree = self.reader.read();
        let Some(history) = tree.get(key) else {
            return PutState {
                create: main,
                version: 1,
                prev: None,
            };
        };
        let (create, version) = history.next_numbers(main);
        PutState {
            create,
            version,
            prev: history.is_stored().then(|| history.newest()),
        }
    }

    /// Adds a tombstone, and returns the revision of the value that it ends, if compaction has not lost that; nothing
    /// changes when the key is not alive.
    ///
    /// # Panics
    ///
    /// When `rev` is not above the newest revision of the key.
    pub fn tombstone(&mut self, key: &[u8], rev: Revision) -> Option<Revision> {
        let mut prev = None;
        self.reader
            .write()
            .edit(key, rev, &mut |history| match history {
                Some(history) if history.is_live() => {
                    prev = history.is_stored().then(|| history.newest());
                    history.tombstone(rev);
                    Edit::Died
                }
                _ => Edit::Same,
            });
        prev
    }

    /// Adds a record as it is read from the file, in revision order. The first record of a key says its create revision
    /// and version; of later ones these are counted.
    ///
    /// # Source
    ///
    /// `restoreIntoIndex` of etcd 3.7 (server/storage/mvcc/kvstore.go).
    ///
    /// # Panics
    ///
    /// When the record has 4 GiB or more.
    pub fn restore(
        &mut self,
        key: &[u8],
        rev: Revision,
        create: i64,
        version: i64,
        tombstone: bool,
        stored_len: u32,
    ) -> Restored {
        let mut restored = Restored::Indexed;
        self.reader
            .write()
            .edit(key, rev, &mut |history| match history {
                None if tombstone => Edit::New(History::tombstone_first(rev)),
                None => Edit::New(History::put_first(rev, create, version, stored_len)),
                Some(history) if history.newest() >= rev => {
                    restored = Restored::OutOfOrder;
                    Edit::Same
                }
                Some(history) => match (history.is_live(), tombstone) {
                    (true, true) => {
                        history.tombstone(rev);
                        Edit::Died
                    }
                    (false, true) => {
                        restored = Restored::StrayTombstone;
                        Edit::Same
                    }
                    (live, false) => {
                        let (create, version) = history.next_numbers(rev.main);
                        history.put(rev, create, version, stored_len);
                        if live { Edit::Same } else { Edit::Born }
                    }
                },
            });
        restored
    }

    /// Begins a compaction to transaction `compact_main`. Nothing is dropped until [`Pruner::step`] is called, and then
    /// reads below `compact_main` must have come to an end.
    #[must_use]
    pub fn compact(&mut self, compact_main: i64) -> Pruner {
        Pruner::new(compact_main)
    }

    /// Takes the content of another index in place of its own; readers of this one see it from then on. A scan that
    /// is on its way goes on in it: what it has found and what it finds are of one moment only if nothing that it
    /// reads was compacted in between.
    pub fn take_over(&mut self, fresh: &IndexWriter) {
        self.reader.swap(&fresh.reader);
    }

    /// Checks every invariant of the structure. Costs O(n): for tests.
    ///
    /// # Panics
    ///
    /// When one does not hold, with its name.
    pub fn check(&self) {
        self.reader.check();
    }
}
