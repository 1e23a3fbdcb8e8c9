//! What one key has been: its newest state inline, its older revisions in a queue where there are some.
//!
//! A *generation* is one life of a key: from the put that creates it to its tombstone. The newest revision belongs to
//! the current generation; every generation before that ended in a tombstone.
//!
//! # Source
//!
//! `keyIndex` of etcd 3.7 (server/storage/mvcc/key_index.go) for what compaction keeps.

use std::collections::VecDeque;

use super::KeyState;
use crate::revision::Revision;

/// The stored length that marks a tombstone: a record can't be that long.
const TOMBSTONE: u32 = u32::MAX;
/// The stored length of a put whose record a compaction dropped while the index goes on naming it.
const LOST: u32 = u32::MAX - 1;
/// Revisions that are moved at once, at most, to give memory back.
const MOVED_MAX: usize = 64 << 10;
/// The distance that says that the numbers stand in [`Past::wide`].
const WIDE: u32 = u32::MAX;

/// All revisions of one key that are not compacted. There is at least one.
#[derive(Debug)]
pub(super) struct History {
    main: i64,
    sub: u32,
    /// Length of the newest record, [`TOMBSTONE`], or [`LOST`].
    stored_len: u32,
    /// `main` less the create revision of the current generation, or [`WIDE`].
    since_create: u32,
    /// Version of the newest put of the current generation; 0 where there is none.
    version: u32,
    past: Option<Box<Past>>,
}

const _: () = assert!(size_of::<History>() == 32);

#[derive(Debug, Default)]
struct Past {
    /// The revisions before the newest one, rising. Compaction takes them from the front, in parts where there are many,
    /// and what stays does not move.
    older: VecDeque<Older>,
    /// The generations that ended before the current one, rising. Each ends at a tombstone in `older`.
    ended: VecDeque<Ended>,
    /// Create revision and version of the current generation, where they don't fit inline.
    wide: Option<(i64, i64)>,
}

#[derive(Clone, Copy, Debug)]
struct Older {
    main: i64,
    sub: u32,
    stored_len: u32,
}

impl Older {
    fn revision(&self) -> Revision {
        Revision::new(self.main, self.sub)
    }
}

#[derive(Clone, Copy, Debug)]
struct Ended {
    tombstone: Revision,
    create: i64,
    /// Version of its last put.
    version: i64,
}

/// What compaction leaves of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Something.
    Some,
    /// Nothing: the key has to go.
    Nothing,
    /// More than it may yet: it was allowed too few revisions.
    Unfinished,
}

/// What compaction finds for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// The revision that is kept of those not above the compact revision.
    pub(super) revision: Revision,
    /// Whether it is a tombstone; the hashes leave it out then.
    pub(super) tombstone: bool,
}

impl History {
    /// A key whose first known revision is a put.
    pub(super) fn put_first(
        revision: Revision,
        create: i64,
        version: i64,
        stored_len: u32,
    ) -> History {
        let mut history = History::tombstone_first(revision);
        history.stored_len = length(stored_len);
        history.set_numbers(create, version);
        history
    }

    /// A key whose first known revision is a tombstone.
    pub(super) fn tombstone_first(revision: Revision) -> History {
        let Revision { main, sub } = revision;
        History {
            main,
            sub,
            stored_len: TOMBSTONE,
            since_create: 0,
            version: 0,
            past: None,
        }
    }

    pub(super) fn newest(&self) -> Revision {
        Revision::new(self.main, self.sub)
    }

    pub(super) fn is_live(&self) -> bool {
        self.stored_len != TOMBSTONE
    }

    /// Whether the record of the newest revision is there.
    pub(super) fn is_stored(&self) -> bool {
        self.stored_len < LOST
    }

    /// Create revision and version of the current generation's newest put.
    fn numbers(&self) -> (i64, i64) {
        if self.since_create == WIDE {
            let past = self.past.as_ref().expect("wide numbers stand in the past");
            return past.wide.expect("wide numbers stand in the past");
        }
        (
            self.main - i64::from(self.since_create),
            i64::from(self.version),
        )
    }

    fn set_numbers(&mut self, create: i64, version: i64) {
        let since = self
            .main
            .checked_sub(create)
            .and_then(|since| u32::try_from(since).ok());
        match (since, u32::try_from(version)) {
            (Some(since), Ok(version)) if since != WIDE => {
                self.since_create = since;
                self.version = version;
                if let Some(past) = &mut self.past {
                    past.wide = None;
                }
            }
            _ => {
                self.since_create = WIDE;
                self.version = 0;
                self.past.get_or_insert_default().wide = Some((create, version));
            }
        }
    }

    /// Create revision and version that a put of transaction `main` gets.
    pub(super) fn next_numbers(&self, main: i64) -> (i64, i64) {
        if !self.is_live() {
            return (main, 1);
        }
        let (create, version) = self.numbers();
        (create, version.wrapping_add(1))
    }

    /// Adds a put after the newest revision.
    pub(super) fn put(&mut self, revision: Revision, create: i64, version: i64, stored_len: u32) {
        let ended = (!self.is_live()).then(|| {
            let (create, version) = self.numbers();
            Ended {
                tombstone: self.newest(),
                create,
                version,
            }
        });
        self.advance(revision, length(stored_len));
        if let Some(ended) = ended {
            push(&mut self.past.get_or_insert_default().ended, ended);
        }
        self.set_numbers(create, version);
    }

    /// Adds a tombstone after the newest revision, which is a put's.
    pub(super) fn tombstone(&mut self, revision: Revision) {
        assert!(self.is_live(), "only a living key is deleted");
        let (create, version) = self.numbers();
        self.advance(revision, TOMBSTONE);
        self.set_numbers(create, version);
    }

    fn advance(&mut self, to: Revision, stored_len: u32) {
        let from = self.newest();
        assert!(to > from, "the revisions of a key rise: {to} after {from}");
        let older = Older {
            main: self.main,
            sub: self.sub,
            stored_len: self.stored_len,
        };
        push(&mut self.past.get_or_insert_default().older, older);
        Revision {
            main: self.main,
            sub: self.sub,
        } = to;
        self.stored_len = stored_len;
    }

    fn older(&self) -> &VecDeque<Older> {
        const NONE: &VecDeque<Older> = &VecDeque::new();
        self.past.as_ref().map_or(NONE, |past| &past.older)
    }

    fn ended(&self) -> &VecDeque<Ended> {
        const NONE: &VecDeque<Ended> = &VecDeque::new();
        self.past.as_ref().map_or(NONE, |past| &past.ended)
    }

    /// The state that a read at `at` sees; `None` when the key is not alive there, or its record is lost.
    pub(super) fn at(&self, at: Revision) -> Option<KeyState> {
        if self.newest() <= at {
            return self.is_stored().then(|| {
                let (create, version) = self.numbers();
                KeyState {
                    rev: self.newest(),
                    create,
                    version,
                    stored_len: self.stored_len,
                }
            });
        }
        let older = self.older();
        let place = older
            .partition_point(|older| older.revision() <= at)
            .checked_sub(1)?;
        let found = older[place];
        if found.stored_len >= LOST {
            return None;
        }
        let rev = found.revision();
        let ended = self.ended();
        // The version is counted back from the last put of the generation.
        let (create, version, last_put) = match ended
            .get(ended.partition_point(|ended| ended.tombstone < rev))
        {
            Some(ended) => {
                let tombstone = older.partition_point(|older| older.revision() < ended.tombstone);
                (ended.create, ended.version, tombstone - 1)
            }
            None => {
                let (create, version) = self.numbers();
                (create, version, older.len() - usize::from(!self.is_live()))
            }
        };
        let back = i64::try_from(last_put - place).expect("a vector's length fits");
        Some(KeyState {
            rev,
            create,
            version: version.wrapping_sub(back),
            stored_len: found.stored_len,
        })
    }

    /// Whether the key is alive at `at`. It may be so without a record that could be read.
    pub(super) fn is_live_at(&self, at: Revision) -> bool {
        if self.newest() <= at {
            return self.is_live();
        }
        let older = self.older();
        let place = older.partition_point(|older| older.revision() <= at);
        place > 0 && older[place - 1].stored_len != TOMBSTONE
    }

    /// Appends up to `most` revisions from `from` up to and including `upto`, rising, with whether each is a tombstone.
    pub(super) fn between(
        &self,
        from: Revision,
        upto: Revision,
        most: usize,
        out: &mut Vec<(Revision, bool)>,
    ) {
        let older = self.older();
        let start = older.partition_point(|older| older.revision() < from);
        let newest = Older {
            main: self.main,
            sub: self.sub,
            stored_len: self.stored_len,
        };
        let all = older.range(start..).chain([&newest]);
        let wanted = all.map(|one| (one.revision(), one.stored_len == TOMBSTONE));
        out.extend(
            wanted
                .filter(|&(rev, _)| rev >= from && rev <= upto)
                .take(most),
        );
    }

    /// The place of what compaction to transaction `at` leaves as the oldest revision, counting `older` and then the
    /// newest one; `None` when nothing stays. With it, what it keeps of the revisions not above `at`.
    ///
    /// The generation that counts is the first whose tombstone is not below `at`, else the last; its newest revision
    /// that is not above `at` is kept, and all before that goes.
    fn compaction(&self, at: i64) -> (Option<usize>, Option<Kept>) {
        let (older, ended) = (self.older(), self.ended());
        let generation = ended.partition_point(|ended| ended.tombstone.main < at);
        if generation == ended.len() && !self.is_live() && self.main < at {
            return (None, None);
        }
        let place_after =
            |tombstone: Revision| older.partition_point(|older| older.revision() <= tombstone);
        let start = generation
            .checked_sub(1)
            .map_or(0, |before| place_after(ended[before].tombstone));
        // One past the generation's last revision; the newest revision stands at `older.len()`.
        let end = ended
            .get(generation)
            .map_or(older.len() + 1, |ended| place_after(ended.tombstone));
        let mut above = older.partition_point(|older| older.main <= at);
        if above == older.len() && self.main <= at {
            above += 1;
        }
        let above = above.min(end);
        if above <= start {
            return (Some(start), None);
        }
        let place = above - 1;
        let (revision, stored_len) = match older.get(place) {
            Some(older) => (older.revision(), older.stored_len),
            None => (self.newest(), self.stored_len),
        };
        (
            Some(place),
            Some(Kept {
                revision,
                tombstone: stored_len == TOMBSTONE,
            }),
        )
    }

    /// What compaction to transaction `at` keeps of the revisions not above it.
    pub(super) fn kept(&self, at: i64) -> Option<Kept> {
        self.compaction(at).1
    }

    /// Drops what compaction to transaction `at` drops, oldest first, and appends it to `dead` with whether each was a
    /// tombstone: up to `most` revisions and the newest one, taken off `most`. What reads from `at` on see stays as it is
    /// between two parts.
    pub(super) fn compact(
        &mut self,
        at: i64,
        most: &mut usize,
        dead: &mut Vec<(Revision, bool)>,
    ) -> Left {
        let (first, _) = self.compaction(at);
        let gone = first.unwrap_or(self.older().len());
        let now = gone.min(*most);
        *most -= now;
        self.drop_oldest(now, dead);
        if now < gone {
            return Left::Unfinished;
        }
        if first.is_none() {
            dead.push((self.newest(), true));
            return Left::Nothing;
        }
        self.lose(at, dead);
        if now > 0 {
            self.give_memory_back();
        }
        Left::Some
    }

    /// Marks as lost what comes after the tombstone of `at` in the same transaction.
    fn lose(&mut self, at: i64, dead: &mut Vec<(Revision, bool)>) {
        let ended = self.ended();
        let generation = ended.partition_point(|ended| ended.tombstone.main < at);
        let Some(tombstone) = ended.get(generation).map(|ended| ended.tombstone) else {
            return;
        };
        if tombstone.main != at {
            return;
        }
        if let Some(past) = &mut self.past {
            let start = past
                .older
                .partition_point(|older| older.revision() <= tombstone);
            let end = past.older.partition_point(|older| older.main <= at);
            for older in past.older.range_mut(start..end) {
                let is_tombstone = older.stored_len == TOMBSTONE;
                dead.push((older.revision(), is_tombstone));
                if !is_tombstone {
                    older.stored_len = LOST;
                }
            }
        }
        if self.main == at {
            dead.push((self.newest(), !self.is_live()));
            if self.is_live() {
                self.stored_len = LOST;
            }
        }
    }

    fn drop_oldest(&mut self, count: usize, dead: &mut Vec<(Revision, bool)>) {
        let Some(past) = &mut self.past else {
            assert_eq!(count, 0, "older revisions stand in the past");
            return;
        };
        let gone = past.older.drain(..count);
        dead.extend(gone.map(|older| (older.revision(), older.stored_len == TOMBSTONE)));
        let ended = match past.older.front() {
            Some(oldest) => {
                let oldest = oldest.revision();
                past.ended.partition_point(|ended| ended.tombstone < oldest)
            }
            None => past.ended.len(),
        };
        past.ended.drain(..ended);
    }

    /// Gives back what is not used; where much is left that would have to be moved, a later compaction does so.
    fn give_memory_back(&mut self) {
        let Some(past) = &mut self.past else {
            return;
        };
        if past.older.is_empty() && past.wide.is_none() {
            self.past = None;
        } else if past.older.len() <= MOVED_MAX {
            past.older.shrink_to_fit();
            past.ended.shrink_to_fit();
        }
    }

    /// Bytes of heap taken.
    pub(super) fn heap(&self) -> usize {
        self.past.as_ref().map_or(0, |past| {
            size_of::<Past>()
                + past.older.capacity() * size_of::<Older>()
                + past.ended.capacity() * size_of::<Ended>()
        })
    }

    /// The latest main revision at which the key surely began or ended a life: a bound that `flipped` has to reach.
    pub(super) fn flipped_main(&self) -> i64 {
        if self.is_live() {
            self.numbers().0
        } else {
            self.main
        }
    }

    /// Checks that the parts agree with one another.
    pub(super) fn check(&self) {
        let older = self.older();
        assert!(
            older
                .iter()
                .is_sorted_by(|a, b| a.revision() < b.revision()),
            "older revisions rise: {self:?}"
        );
        assert!(
            older
                .back()
                .is_none_or(|last| last.revision() < self.newest()),
            "the newest is last: {self:?}"
        );
        let tombstones = older
            .iter()
            .filter(|older| older.stored_len == TOMBSTONE)
            .map(Older::revision);
        assert!(
            tombstones.eq(self.ended().iter().map(|ended| ended.tombstone)),
            "lives end at tombstones: {self:?}"
        );
        let wide = self.past.as_ref().is_some_and(|past| past.wide.is_some());
        assert_eq!(
            wide,
            self.since_create == WIDE,
            "wide numbers stand in one place: {self:?}"
        );
        if let Some(past) = &self.past {
            assert!(
                wide || !past.older.is_empty(),
                "no past without a reason: {self:?}"
            );
        }
    }
}

fn length(stored_len: u32) -> u32 {
    assert!(stored_len < LOST, "a record is shorter than 4 GiB");
    stored_len
}

/// Pushes onto a queue that stays short mostly.
fn push<T>(onto: &mut VecDeque<T>, item: T) {
    if onto.len() == onto.capacity() && onto.len() < 8 {
        onto.reserve_exact(2.min(onto.len() + 1));
    }
    onto.push_back(item);
}
