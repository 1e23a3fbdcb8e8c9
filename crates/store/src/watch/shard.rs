//! The watchers of one serving thread.

use std::collections::VecDeque;

use super::catch_up::Job;
use super::matcher::Matcher;
use crate::index::KeyRange;
use crate::{EventRange, EventRecord};

/// A stream of the serving thread; its watchers share a connection's room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// A watcher of this shard. A handle that outlives its watcher finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle {
    slot: u32,
    generation: u32,
}

/// Kinds of events that a watcher does not want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// No puts.
    pub no_put: bool,
    /// No deletions.
    pub no_delete: bool,
}

impl Filters {
    /// Whether the event is wanted.
    #[must_use]
    pub fn pass(self, event: &EventRecord) -> bool {
        if event.record.tombstone {
            !self.no_delete
        } else {
            !self.no_put
        }
    }
}

/// What a watcher watches.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The first key.
    pub key: Box<[u8]>,
    /// As in a range request: empty, `0x00`, or exclusive.
    pub range_end: Box<[u8]>,
    /// What it leaves out.
    pub filters: Filters,
    /// The first revision that it wants.
    pub start: i64,
}

impl Spec {
    pub(super) fn range(&self) -> KeyRange<'_> {
        KeyRange::new(&self.key, &self.range_end)
    }
}

/// To whom events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The watcher.
    pub handle: Handle,
    /// Its stream.
    pub stream: StreamId,
    /// Its id on that stream.
    pub watch_id: i64,
}

/// Whether a stream took events in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// They are on their way.
    Taken,
    /// There is no room: the watcher lags from here on.
    Full,
}

/// Where a watcher stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It gets what batches bring.
    Synced,
    /// It waits to be fed from history, or is being fed.
    Lagging,
    /// Compaction has passed it.
    Compacted,
}

#[derive(Debug)]
struct Watcher {
    target: Target,
    spec: Spec,
    /// The next revision that it needs.
    next: i64,
    /// The first revision at which progress may be told: the start that was asked for, 0 for a
    /// watcher from now on.
    progress_from: i64,
    phase: Phase,
    /// Whether it got anything since progress was last told.
    active: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Synced,
    /// In the queue of those that want history.
    Queued,
    /// A job of it is out.
    Fetching,
    /// Its stream has no room; [`Shard::resume`] puts it into the queue.
    Blocked,
    Compacted,
}

/// The watchers of one serving thread: a pure core.
#[derive(Debug, Default)]
pub struct Shard {
    slots: Vec<Slot>,
    free: Vec<u32>,
    count: usize,
    matcher: Matcher,
    /// The last main revision that batches have brought.
    last: i64,
    queue: VecDeque<Handle>,
    /// Scratch: matches of one revision, as (watcher, event).
    matches: Vec<(u32, u32)>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    watcher: Option<Watcher>,
}

impl Shard {
    /// Says at which revision the shard joins in: batches up to it are passed over. To be called
    /// when apply has begun to send batches, with the revision published then.
    pub fn open_at(&mut self, revision: i64) {
        assert!(self.count == 0, "a shard with watchers has its place");
        self.last = self.last.max(revision);
    }

    /// How many watchers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The last main revision that batches have brought: synced watchers have everything up to it.
    #[must_use]
    pub fn last(&self) -> i64 {
        self.last
    }

    /// Takes in a watcher whose client named a start revision. One that starts at or before the
    /// shard's revision lags until it has caught up; 0 is the beginning of history.
    pub fn add(&mut self, stream: StreamId, watch_id: i64, spec: Spec) -> Handle {
        let progress_from = spec.start;
        self.add_watcher(stream, watch_id, spec, progress_from)
    }

    /// Takes in a watcher whose client named no start revision: it starts behind `now`, the
    /// published revision, whatever `spec` says. Unlike one that waits for a revision to come, it
    /// can be told of progress at once.
    pub fn add_from_now(
        &mut self,
        stream: StreamId,
        watch_id: i64,
        spec: Spec,
        now: i64,
    ) -> Handle {
        let start = now + 1;
        self.add_watcher(stream, watch_id, Spec { start, ..spec }, 0)
    }

    fn add_watcher(
        &mut self,
        stream: StreamId,
        watch_id: i64,
        spec: Spec,
        progress_from: i64,
    ) -> Handle {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("fewer watchers than 2^32")
        });
        let place = &mut self.slots[slot as usize];
        let handle = Handle {
            slot,
            generation: place.generation,
        };
        self.matcher.insert(spec.range(), slot);
        let target = Target {
            handle,
            stream,
            watch_id,
        };
        let next = spec.start;
        let lags = next <= self.last;
        let phase = if lags { Phase::Queued } else { Phase::Synced };
        place.watcher = Some(Watcher {
            target,
            spec,
            next,
            progress_from,
            phase,
            active: false,
        });
        self.count += 1;
        if lags {
            self.queue.push_back(handle);
        }
        handle
    }

    /// Ends a watcher; false if it had ended.
    pub fn remove(&mut self, handle: Handle) -> bool {
        let Some(slot) = self.slots.get_mut(handle.slot as usize) else {
            return false;
        };
        if slot.generation != handle.generation {
            return false;
        }
        let Some(watcher) = slot.watcher.take() else {
            return false;
        };
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(handle.slot);
        self.count -= 1;
        self.matcher.remove(watcher.spec.range(), handle.slot);
        true
    }

    /// Takes in a batch and hands out its events, one call a watcher and revision, in revision
    /// order. A watcher whose call says [`Flow::Full`] lags from that revision on.
    ///
    /// # Panics
    ///
    /// If the batch leaves a gap behind the last one.
    pub fn events(
        &mut self,
        batch: &EventRange,
        deliver: &mut dyn FnMut(Target, i64, &[&EventRecord]) -> Flow,
    ) {
        if batch.to <= self.last {
            return;
        }
        assert!(
            batch.from <= self.last + 1,
            "batches follow one another without a gap"
        );
        let skipped = batch
            .records
            .partition_point(|event| event.revision.main <= self.last);
        for group in batch.records[skipped..].chunk_by(|a, b| a.revision.main == b.revision.main) {
            self.revision(group, deliver);
        }
        self.last = batch.to;
    }

    /// Notes that the state went on to a revision without batches, by a snapshot of the leader: every
    /// watcher that had everything so far lags from there on.
    pub fn skip_to(&mut self, revision: i64) {
        if revision <= self.last {
            return;
        }
        let next = self.last + 1;
        self.last = revision;
        for watcher in self
            .slots
            .iter_mut()
            .filter_map(|slot| slot.watcher.as_mut())
        {
            if watcher.phase != Phase::Synced {
                continue;
            }
            watcher.next = watcher.next.max(next);
            if watcher.next <= revision {
                watcher.phase = Phase::Queued;
                self.queue.push_back(watcher.target.handle);
            }
        }
    }

    /// Hands out the events of one revision.
    fn revision(
        &mut self,
        events: &[EventRecord],
        deliver: &mut dyn FnMut(Target, i64, &[&EventRecord]) -> Flow,
    ) {
        let main = events.first().map_or(0, |event| event.revision.main);
        let mut matches = std::mem::take(&mut self.matches);
        for (place, event) in (0u32..).zip(events) {
            let key = super::key(event).expect("apply has encoded the record");
            self.matcher
                .matching(key, &mut |watcher| matches.push((watcher, place)));
        }
        matches.sort_unstable();
        let mut wanted: Vec<&EventRecord> = Vec::new();
        for group in matches.chunk_by(|a, b| a.0 == b.0) {
            let slot = &mut self.slots[group[0].0 as usize];
            let watcher = slot
                .watcher
                .as_mut()
                .expect("the matcher holds living watchers");
            if watcher.phase != Phase::Synced || watcher.next > main {
                continue;
            }
            let events = group.iter().map(|(_, place)| &events[*place as usize]);
            wanted.clear();
            wanted.extend(events.filter(|event| watcher.spec.filters.pass(event)));
            if wanted.is_empty() {
                continue;
            }
            match deliver(watcher.target, main, &wanted) {
                Flow::Taken => {
                    watcher.next = main + 1;
                    watcher.active = true;
                }
                Flow::Full => {
                    watcher.next = main;
                    watcher.phase = Phase::Blocked;
                }
            }
        }
        matches.clear();
        self.matches = matches;
    }

    /// Whether watchers wait for history.
    #[must_use]
    pub fn wants_history(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Up to `max` jobs for watchers that want history, without the values that events replaced; each is out until [`Shard::fetched`] or
    /// [`Shard::block`] says what came of it.
    pub fn jobs(&mut self, max: usize) -> Vec<Job> {
        let mut jobs = Vec::new();
        while jobs.len() < max
            && let Some(handle) = self.queue.pop_front()
        {
            let Some(watcher) = self.watcher_mut(handle) else {
                continue;
            };
            if watcher.phase != Phase::Queued {
                continue;
            }
            watcher.phase = Phase::Fetching;
            jobs.push(Job {
                target: watcher.target,
                spec: watcher.spec.clone(),
                from: watcher.next,
                previous: false,
            });
        }
        jobs
    }

    /// Notes that a watcher has everything up to `upto`, `delivered` telling whether that was
    /// anything. It is synced if the shard is no further, and wants more otherwise.
    pub fn fetched(&mut self, handle: Handle, upto: i64, delivered: bool) {
        let last = self.last;
        let Some(watcher) = self.watcher_mut(handle) else {
            return;
        };
        assert_eq!(watcher.phase, Phase::Fetching, "an answer belongs to a job");
        watcher.next = watcher.next.max(upto + 1);
        watcher.active |= delivered;
        if watcher.next > last {
            watcher.phase = Phase::Synced;
        } else {
            watcher.phase = Phase::Queued;
            self.queue.push_back(handle);
        }
    }

    /// Notes that a watcher's stream had no room for what was fetched.
    pub fn block(&mut self, handle: Handle) {
        if let Some(watcher) = self.watcher_mut(handle) {
            assert_eq!(watcher.phase, Phase::Fetching, "an answer belongs to a job");
            watcher.phase = Phase::Blocked;
        }
    }

    /// Notes that a stream of the watcher has room again.
    pub fn resume(&mut self, handle: Handle) {
        if let Some(watcher) = self.watcher_mut(handle)
            && watcher.phase == Phase::Blocked
        {
            watcher.phase = Phase::Queued;
            self.queue.push_back(handle);
        }
    }

    /// Notes that compaction has passed a watcher: it stays, without events, until it is removed.
    pub fn compacted(&mut self, handle: Handle) {
        if let Some(watcher) = self.watcher_mut(handle) {
            watcher.phase = Phase::Compacted;
        }
    }

    /// Where a watcher stands; `None` if it has ended.
    #[must_use]
    pub fn state(&self, handle: Handle) -> Option<State> {
        Some(match self.watcher(handle)?.phase {
            Phase::Synced => State::Synced,
            Phase::Queued | Phase::Fetching | Phase::Blocked => State::Lagging,
            Phase::Compacted => State::Compacted,
        })
    }

    /// Whether a watcher has everything up to [`Shard::last`], and does not wait for a revision
    /// that is still to come: then progress can be told of it.
    ///
    /// # Source
    ///
    /// `progressIfSync` of etcd 3.7 (server/storage/mvcc/watchable_store.go).
    #[must_use]
    pub fn is_complete(&self, handle: Handle) -> bool {
        self.watcher(handle).is_some_and(|watcher| {
            watcher.phase == Phase::Synced
                && watcher.progress_from <= self.last
                && watcher.spec.start <= self.last + 1
        })
    }

    /// Whether progress is to be told of a watcher now: it is complete, and got nothing since this
    /// was last asked.
    pub fn progress_due(&mut self, handle: Handle) -> bool {
        let complete = self.is_complete(handle);
        self.watcher_mut(handle)
            .is_some_and(|watcher| !std::mem::take(&mut watcher.active) && complete)
    }

    fn watcher(&self, handle: Handle) -> Option<&Watcher> {
        let slot = self.slots.get(handle.slot as usize)?;
        slot.watcher
            .as_ref()
            .filter(|_| slot.generation == handle.generation)
    }

    fn watcher_mut(&mut self, handle: Handle) -> Option<&mut Watcher> {
        let slot = self.slots.get_mut(handle.slot as usize)?;
        slot.watcher
            .as_mut()
            .filter(|_| slot.generation == handle.generation)
    }
}
