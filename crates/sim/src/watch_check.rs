//! What watchers are promised, checked on what one of them was sent.
//!
//! - *ordered*: revisions never go back;
//! - *unique*: no event comes twice;
//! - *atomic*: all events of a revision come together;
//! - *reliable* and *resumable*: from the start on, and over every resumption, no event is missing that
//!   lies before one that came;
//! - *bookmarkable*: once progress at a revision was told, everything up to it has come, and nothing at
//!   or below it comes any more.
//!
//! # Source
//!
//! etcd's API guarantees, "Watch APIs" (etcd.io, v3.6).

use std::collections::BTreeMap;

use crate::history::{Bytes, Change};

/// What came on a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Events, each with its revision.
    Events(Vec<(i64, Change)>),
    /// Everything up to this revision has come.
    Progress(i64),
    /// The watch has begun again, on whichever member, from this revision on.
    Resumed(i64),
}

/// One watcher, over all its resumptions.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// The first key.
    pub key: Bytes,
    /// The end of its range, exclusive; empty for a single key, `0x00` for everything from the key on.
    pub range_end: Bytes,
    /// The first revision.
    pub start: i64,
    /// What came, in order.
    pub sent: Vec<Sent>,
}

impl Watch {
    fn wants(&self, key: &[u8]) -> bool {
        if self.range_end.is_empty() {
            return key == self.key;
        }
        key >= self.key.as_slice() && (self.range_end == [0] || key < self.range_end.as_slice())
    }
}

/// Checks a watch against what revisions have changed. `complete_to`: everything up to this revision must
/// have come, if that is known.
///
/// # Errors
///
/// Which promise was broken, and how.
pub fn check(
    watch: &Watch,
    observed: &BTreeMap<i64, Vec<Change>>,
    complete_to: Option<i64>,
) -> Result<(), String> {
    let mut checker = Checker {
        watch,
        observed,
        last: watch.start - 1,
        told: watch.start - 1,
    };
    for sent in &watch.sent {
        match sent {
            Sent::Events(events) => checker.events(events)?,
            Sent::Progress(revision) => checker.progress(*revision)?,
            Sent::Resumed(from) => checker.resumed(*from)?,
        }
    }
    match complete_to {
        Some(revision) => checker.nothing_before(revision + 1),
        None => Ok(()),
    }
}

struct Checker<'a> {
    watch: &'a Watch,
    observed: &'a BTreeMap<i64, Vec<Change>>,
    /// Up to here everything has come.
    last: i64,
    /// Progress was told up to here.
    told: i64,
}

impl Checker<'_> {
    /// What the watcher must get of a revision.
    fn wanted(&self, revision: i64) -> Vec<&Change> {
        let changes = self.observed.get(&revision).into_iter().flatten();
        let mut changes: Vec<&Change> = changes.filter(|it| self.watch.wants(it.key())).collect();
        changes.sort();
        changes
    }

    fn events(&mut self, events: &[(i64, Change)]) -> Result<(), String> {
        for group in events.chunk_by(|a, b| a.0 == b.0) {
            let revision = group[0].0;
            if revision <= self.told {
                return Err(format!(
                    "bookmarkable: an event of {revision} came after progress {}",
                    self.told
                ));
            }
            if revision <= self.last {
                return Err(format!(
                    "ordered, unique: an event of {revision} came after {}",
                    self.last
                ));
            }
            self.nothing_before(revision)?;
            let mut came: Vec<&Change> = group.iter().map(|(_, change)| change).collect();
            came.sort();
            let wanted = self.wanted(revision);
            if came != wanted {
                return Err(format!(
                    "atomic: of revision {revision} came {came:?}, not {wanted:?}"
                ));
            }
            self.last = revision;
        }
        Ok(())
    }

    /// Nothing that is wanted lies between what has come and this revision.
    fn nothing_before(&self, revision: i64) -> Result<(), String> {
        if self.last + 1 >= revision {
            return Ok(());
        }
        let mut between = self.observed.range(self.last + 1..revision);
        let missing = between.find(|(_, changes)| {
            let mut keys = changes.iter().map(Change::key);
            keys.any(|key| self.watch.wants(key))
        });
        match missing {
            None => Ok(()),
            Some((missed, changes)) => Err(format!(
                "reliable: {changes:?} of revision {missed} is missing between {} and {revision}",
                self.last
            )),
        }
    }

    fn progress(&mut self, revision: i64) -> Result<(), String> {
        if revision < self.told {
            return Err(format!(
                "bookmarkable: progress went back from {} to {revision}",
                self.told
            ));
        }
        self.nothing_before(revision + 1)?;
        self.told = revision;
        self.last = self.last.max(revision);
        Ok(())
    }

    fn resumed(&mut self, from: i64) -> Result<(), String> {
        // A client goes on behind the last event or the last progress that it has seen.
        if from > self.last + 1 {
            return Err(format!(
                "resumable: it went on at {from}, and has everything up to {} only",
                self.last
            ));
        }
        self.last = from - 1;
        self.told = self.told.min(from - 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delete(key: &str) -> Change {
        Change::Delete(key.as_bytes().to_vec())
    }

    fn observed() -> BTreeMap<i64, Vec<Change>> {
        BTreeMap::from([
            (2, vec![delete("a")]),
            (3, vec![delete("a"), delete("b")]),
            (4, vec![delete("x")]),
            (5, vec![delete("b")]),
        ])
    }

    fn watch(sent: Vec<Sent>) -> Watch {
        Watch {
            key: b"a".to_vec(),
            range_end: b"c".to_vec(),
            start: 2,
            sent,
        }
    }

    fn events(events: &[(i64, &str)]) -> Sent {
        let events = events.iter().map(|(at, key)| (*at, delete(key)));
        Sent::Events(events.collect())
    }

    fn check_sent(sent: Vec<Sent>) -> Result<(), String> {
        check(&watch(sent), &observed(), Some(5))
    }

    #[test]
    fn a_watch_that_got_everything_once_and_in_order_is_right() {
        let all = [(2, "a"), (3, "b"), (3, "a"), (5, "b")];
        assert_eq!(check_sent(vec![events(&all)]), Ok(()));
        let parts = vec![
            events(&[(2, "a")]),
            Sent::Progress(2),
            events(&[(3, "a"), (3, "b")]),
            Sent::Resumed(4),
            Sent::Progress(4),
            events(&[(5, "b")]),
        ];
        assert_eq!(check_sent(parts), Ok(()));
    }

    #[test]
    fn each_broken_promise_is_told() {
        let cases = [
            (vec![events(&[(2, "a"), (5, "b")])], "reliable"),
            (vec![events(&[(2, "a")])], "reliable"),
            (vec![events(&[(2, "a"), (3, "a")])], "atomic"),
            (
                vec![events(&[(2, "a"), (3, "a")]), events(&[(3, "b")])],
                "atomic",
            ),
            (vec![events(&[(2, "a")]), events(&[(2, "a")])], "unique"),
            (vec![events(&[(2, "a")]), Sent::Progress(3)], "reliable"),
            (
                vec![events(&[(2, "a")]), Sent::Progress(2), events(&[(2, "a")])],
                "bookmarkable",
            ),
            (vec![events(&[(2, "a")]), Sent::Resumed(4)], "resumable"),
            (vec![events(&[(4, "x")])], "reliable"),
        ];
        for (sent, promise) in cases {
            let told = check_sent(sent.clone()).unwrap_err();
            assert!(told.contains(promise), "{sent:?}: {told}");
        }
    }
}
