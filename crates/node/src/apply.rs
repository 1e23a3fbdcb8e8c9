//! Apply: the only one that changes the store.
//!
//! An [`Applier`] is given turns, by a thread of its own and, where they are short, by others
//! (`seats.rs`). A turn takes all that waits. Answers of a batch leave
//! in one parcel a serving thread (`answers.rs`), its events in one, and consensus hears of it once.
//! What an entry asks of the rest of the member is in `effect.rs`, a snapshot of the leader in
//! `install.rs`. Segments are sealed here, between entries, and handed to the commit thread;
//! compactions are pruned here, a slice at a time between batches.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keelson_proto::ApiError;
use keelson_proto::entry::{Entry, EntryKind, Snapshot};
use keelson_proto::ids::LogIndex;
use keelson_proto::message::Message;
use keelson_store::{Answer, Effect, Outcome, Slice, Store};

use crate::commit::CommitRequest;
use crate::core::Input;
use crate::links::Links;
use crate::mailbox::Refused;
use crate::ticket::Waiter;
use crate::turns::Turner;
use crate::versions::{self, Versions};
use crate::{Error, Ticket, budget, peek};
use answers::Answers;

mod answers;
mod effect;
mod install;

/// How long a compaction waits for a reader before it looks again.
const HELD_RETRY: Duration = Duration::from_millis(10);

/// Most entries, and most bytes of them, that are applied in less time than it takes to wake a thread for
/// it, or not much more.
const SHORT_MAX: usize = 4;
const SHORT_BYTES_MAX: usize = 16 << 10;

/// How long it is left alone at most. Not longer than the age of a segment: whoever takes the turn in which
/// that begins to count leaves the own thread asleep.
const PATIENCE_MAX: Duration = Duration::from_millis(budget::TAIL_SEGMENT_AGE_MILLIS);

/// Whether these are applied in a short turn: a few plain puts and nothing else.
pub(crate) fn is_short(entries: &[Entry]) -> bool {
    let bytes = || entries.iter().map(|entry| entry.data.len()).sum::<usize>();
    entries.len() <= SHORT_MAX
        && bytes() <= SHORT_BYTES_MAX
        && entries.iter().all(peek::is_plain_put)
}

/// Work for apply.
#[derive(Debug)]
pub(crate) enum ApplyRequest {
    /// Committed entries, in order.
    Entries(Vec<Entry>),
    /// A member needs a snapshot of what is applied by now: this message, and the file.
    SendSnapshot(Box<Message>),
    /// A snapshot of the leader is in the log, and is to take the place of the state.
    Install(Box<Snapshot>),
    /// The commit thread has opened its file: this is the state.
    Opened(Box<Store>),
    /// Everything applied so far is to be in the file; answered with `Reply::Durable`.
    Commit(Option<Ticket>),
    /// The file is to be rewritten without its free pages; answered with `Reply::Done`.
    Defragment(Option<Ticket>),
    /// The commit thread is through with a compaction.
    CompactionFinished,
    /// The alarm that this thread has proposed will not be in the log.
    AlarmDropped,
}

impl ApplyRequest {
    /// Whether it waits while the state is being replaced.
    fn needs_the_state(&self) -> bool {
        match self {
            ApplyRequest::Entries(_)
            | ApplyRequest::SendSnapshot(_)
            | ApplyRequest::Install(_)
            | ApplyRequest::Commit(_)
            | ApplyRequest::Defragment(_) => true,
            ApplyRequest::Opened(_)
            | ApplyRequest::CompactionFinished
            | ApplyRequest::AlarmDropped => false,
        }
    }
}

/// What is given turns.
pub(crate) struct Applier {
    links: Arc<Links>,
    store: Store,
    /// Entries up to here are applied again after a restart: they start no proposals.
    replay_to: LogIndex,
    answers: Answers,
    ids: Vec<Option<keelson_proto::ids::RequestId>>,
    waiters: Vec<Option<Waiter>>,
    /// Up to where segments were sealed.
    sealed: LogIndex,
    /// Up to where consensus was told that entries are applied.
    reported: LogIndex,
    /// When the open segment is too old.
    seal_at: Option<Duration>,
    seal_now: bool,
    /// The entry at which the last disk snapshot was asked for.
    snapshot: LogIndex,
    snapshot_now: bool,
    slice: SliceState,
    /// Since when readers hold a compaction back.
    held_since: Option<Duration>,
    /// The versions that were told last.
    versions: Option<Versions>,
    /// Whether a turn may wait for the commit thread in its midst. Else whoever gives turns looks at
    /// [`Applier::is_blocked`] before.
    may_wait: bool,
    /// The snapshot of the leader whose file is being opened.
    installing: Option<LogIndex>,
    /// What came meanwhile.
    deferred: Vec<ApplyRequest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SliceState {
    Idle,
    More,
    /// To be looked at again then.
    Held(Duration),
}

impl Applier {
    pub(crate) fn new(
        links: Arc<Links>,
        store: Store,
        replay_to: LogIndex,
        snapshot: LogIndex,
    ) -> Applier {
        let (applied, term) = store.applied();
        links.gate.set_applied_term(term);
        let compacting = store.is_compacting();
        let versions = versions::tell(&links, None);
        let answers = Answers::new(links.clone(), compacting);
        Applier {
            versions,
            links,
            replay_to,
            answers,
            ids: Vec::new(),
            waiters: Vec::new(),
            sealed: applied,
            reported: applied,
            seal_at: None,
            seal_now: false,
            snapshot,
            snapshot_now: false,
            slice: if compacting {
                SliceState::More
            } else {
                SliceState::Idle
            },
            held_since: None,
            may_wait: true,
            installing: None,
            deferred: Vec::new(),
            store,
        }
    }

    /// As the first thing: brings what is in no entry into the file, and takes a disk snapshot, so that no
    /// later start reads what the log holds before it.
    pub(crate) fn leave_old_log(&mut self) {
        self.seal_now = true;
        self.snapshot_now = true;
    }

    /// No turn waits in its midst: one that has begun passes the bound instead, by what it has taken.
    pub(crate) fn never_wait(&mut self) {
        self.may_wait = false;
    }

    /// Whether a turn for a few puts would be short now: there is nothing else to do, and it would not
    /// have to wait, even if it were to seal twice: by size, and because so many entries were applied.
    pub(crate) fn is_short_now(&self) -> bool {
        self.slice == SliceState::Idle
            && self.installing.is_none()
            && !self.seal_now
            && !self.is_old()
            && self.links.commit.would_take(2)
    }

    /// Whether so much waits for the commit thread that a turn could have to.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.links.commit.would_take(1)
    }

    /// When a turn is due even if nothing comes.
    pub(crate) fn next(&self) -> Option<Duration> {
        if self.seal_now {
            return Some(self.now());
        }
        match self.slice {
            SliceState::More => Some(self.now()),
            SliceState::Held(at) => Some(self.seal_at.map_or(at, |seal_at| seal_at.min(at))),
            SliceState::Idle => self.seal_at,
        }
    }

    fn now(&self) -> Duration {
        self.links.env.clock.now()
    }

    fn is_old(&self) -> bool {
        self.seal_at.is_some_and(|at| self.now() >= at)
    }

    fn carry_out(&mut self, request: ApplyRequest) -> Result<(), Error> {
        if self.installing.is_some() && request.needs_the_state() {
            self.deferred.push(request);
            return Ok(());
        }
        match request {
            ApplyRequest::Entries(entries) => self.apply(&entries)?,
            ApplyRequest::SendSnapshot(message) => self.seal_for(Vec::new(), vec![*message]),
            ApplyRequest::Install(snapshot) => self.install(&snapshot),
            ApplyRequest::Opened(store) => return self.opened(*store),
            ApplyRequest::Commit(ticket) => self.seal(ticket.into_iter().collect()),
            ApplyRequest::Defragment(ticket) => {
                self.seal(Vec::new());
                self.commit(CommitRequest::Defragment(ticket), 0);
            }
            ApplyRequest::CompactionFinished => {
                self.store.compaction_finished();
                self.answers.compaction_finished();
            }
            ApplyRequest::AlarmDropped => self.answers.alarm_done(),
        }
        Ok(())
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), Error> {
        self.links.stats.apply_batches.add(1);
        self.store.set_now(self.links.env.ticks());
        self.waiters.clear();
        self.ids.clear();
        if self.links.waiters.len() > 0 {
            self.ids.extend(entries.iter().map(peek::request_id));
            self.links.waiters.take(&self.ids, &mut self.waiters);
        }
        for (position, entry) in entries.iter().enumerate() {
            let waiter = self.waiters.get(position).copied().flatten();
            self.apply_one(entry, waiter)?;
            if self.store.open_bytes() >= budget::TAIL_SEGMENT_BYTES {
                self.seal(Vec::new());
            }
        }
        if self.store.applied().0 > self.sealed && self.seal_at.is_none() {
            let age = Duration::from_millis(budget::TAIL_SEGMENT_AGE_MILLIS);
            self.seal_at = Some(self.now() + age);
        }
        self.count_snapshot();
        Ok(())
    }

    fn apply_one(&mut self, entry: &Entry, waiter: Option<Waiter>) -> Result<(), Error> {
        let answer = if waiter.is_some() {
            Answer::Wanted
        } else {
            Answer::Unwanted
        };
        let begun = self.now();
        let applied = self.store.apply(entry, answer)?;
        let took = self.now().saturating_sub(begun);
        self.count(entry, &applied.outcome, took);
        self.warn(entry, &applied.outcome, took);
        self.links.gate.set_applied_term(entry.term);
        let mut raises_alarm = false;
        for effect in applied.effects {
            raises_alarm |= matches!(effect, Effect::RaiseNoSpace);
            self.carry_out_effect(effect, entry)?;
        }
        if matches!(applied.outcome, Outcome::Compact { .. }) {
            self.answers.compaction_started();
            self.slice = SliceState::More;
        }
        if matches!(applied.outcome, Outcome::Cluster) {
            self.versions = versions::tell(&self.links, self.versions.take());
        }
        if let Some(waiter) = waiter {
            self.answers.take(waiter, applied.outcome, raises_alarm);
        }
        Ok(())
    }

    fn count(&self, entry: &Entry, outcome: &Outcome, took: Duration) {
        let stats = &self.links.stats;
        if entry.kind == EntryKind::Normal && !entry.data.is_empty() {
            let done = !matches!(outcome, Outcome::Refused(error) if *error != ApiError::Compacted);
            stats.apply.observe(peek::operation(entry), done, took);
        }
        match outcome {
            Outcome::LeaseGrant { ttl, .. } => {
                stats.leases_granted.add(1);
                stats.lease_ttl.observe_number(ttl.unsigned_abs());
            }
            Outcome::LeaseRevoke { .. } => stats.leases_revoked.add(1),
            _ => {}
        }
    }

    fn warn(&self, entry: &Entry, outcome: &Outcome, took: Duration) {
        let slow = self.links.config.slow_apply;
        let refused = match outcome {
            Outcome::Refused(ApiError::Compacted) => None,
            Outcome::Refused(error) => Some(error.to_string()),
            _ => None,
        };
        if let Some(error) = &refused {
            tracing::warn!(
                took = ?took,
                request = peek::describe(entry),
                response = "",
                error,
                "failed to apply request"
            );
        }
        if took > slow && entry.kind == EntryKind::Normal && !entry.data.is_empty() {
            self.links.stats.slow_applies.add(1);
            tracing::warn!(
                took = ?took,
                "expected-duration" = ?slow,
                prefix = "",
                request = peek::describe(entry),
                response = "",
                error = refused,
                "apply request took too long"
            );
        }
    }

    /// Sends off what a batch has come to. Nothing here waits for the file.
    ///
    /// Consensus hears of it first: whoever is answered may propose a configuration change at once,
    /// which raft drops while it thinks that the one before is not applied.
    fn finish_batch(&mut self) {
        let (index, _) = self.store.applied();
        if index > self.reported {
            self.reported = index;
            let wake = || self.links.awaits_apply.load(Ordering::SeqCst);
            let applied = Input::Applied { index };
            drop(self.links.consensus.push_quietly(applied, 0, wake));
        }
        self.answers.send();
        let ops = self.store.take_ops();
        let stats = &self.links.stats;
        let counted = [
            (&stats.puts, ops.puts),
            (&stats.put_bytes, ops.put_bytes),
            (&stats.deletes, ops.deletes),
            (&stats.ranges, ops.ranges),
            (&stats.txns, ops.txns),
        ];
        for (number, by) in counted.into_iter().filter(|(_, by)| *by > 0) {
            number.add(by);
        }
        if let Some(events) = self.store.take_events() {
            self.links.watchers.events(events);
        }
    }

    /// Asks for a disk snapshot where the operator has said how many entries may lie between two.
    fn count_snapshot(&mut self) {
        let applied = self.store.applied().0;
        if let Some(count) = self.links.config.snapshot_count
            && applied.0 - self.snapshot.0 > count
            && applied > self.replay_to
        {
            self.seal_now = true;
            self.snapshot_now = true;
        }
    }

    /// Hands everything that is not in the file to the commit thread. Waits while too much is there
    /// already: memory is bounded.
    fn seal(&mut self, answers: Vec<Ticket>) {
        self.seal_for(answers, Vec::new());
    }

    /// As [`Applier::seal`], with members that get the file then.
    fn seal_for(&mut self, answers: Vec<Ticket>, send: Vec<Message>) {
        self.finish_batch();
        let applied = self.store.applied().0;
        let changed = applied > self.sealed || self.store.open_bytes() > 0;
        let sealed = changed.then(|| Box::new(self.store.seal()));
        let weight = u64::from(changed);
        self.seal_now = false;
        self.seal_at = None;
        self.sealed = applied;
        let snapshot = std::mem::take(&mut self.snapshot_now);
        if snapshot {
            self.snapshot = applied;
        }
        let request = CommitRequest::Segment {
            sealed,
            answers,
            snapshot,
            send,
        };
        self.commit(request, weight);
    }

    /// Hands something to the commit thread; waits for room.
    fn commit(&self, request: CommitRequest, weight: u64) {
        let links = &self.links;
        if let Err(Refused::Full(request)) = links.commit.try_push(request, weight) {
            links.stats.apply_waits.add(1);
            let passed = if self.may_wait {
                links.commit.push(request, weight)
            } else {
                links.commit.push_always(request, weight)
            };
            // Closed meanwhile: the member ends.
            drop(passed);
        }
    }

    /// One slice of a compaction, if one is on its way.
    fn prune(&mut self) {
        if self.slice == SliceState::Idle {
            return;
        }
        let begun = self.now();
        let slice = self.store.compact_slice();
        if !matches!(slice, Slice::Held) {
            self.held_since = None;
        }
        if matches!(slice, Slice::More | Slice::Pruned(_)) {
            let took = self.now().saturating_sub(begun);
            self.links.stats.index_compaction_pause.observe(took);
        }
        self.slice = match slice {
            Slice::Idle => SliceState::Idle,
            Slice::More => SliceState::More,
            Slice::Held => self.held(),
            Slice::Pruned(job) => {
                self.commit(CommitRequest::Compaction(Box::new(job)), 0);
                SliceState::More
            }
        };
    }

    /// Waits for readers, but not for ever: one that never takes its answer must not keep history.
    fn held(&mut self) -> SliceState {
        let now = self.now();
        let since = *self.held_since.get_or_insert(now);
        if now.saturating_sub(since) < self.links.config.reader_patience {
            return SliceState::Held(now + HELD_RETRY);
        }
        let readers = self.store.break_pins();
        self.held_since = None;
        tracing::warn!(
            readers,
            waited = ?self.links.config.reader_patience,
            "compaction goes on past slow readers; their answers are cut off"
        );
        SliceState::More
    }

    /// Answers what nobody will answer any more.
    fn release_all(&mut self) {
        let deferred = std::mem::take(&mut self.deferred).into_iter();
        let deferred = deferred.filter_map(|request| match request {
            ApplyRequest::Commit(ticket) | ApplyRequest::Defragment(ticket) => ticket,
            _ => None,
        });
        self.answers.release_all(deferred);
    }
}

impl Turner for Applier {
    type Input = ApplyRequest;

    /// Carries out what came, and what is due by itself.
    fn turn(&mut self, requests: &mut Vec<ApplyRequest>) -> Result<(), Error> {
        if !requests.is_empty() {
            for request in requests.drain(..) {
                self.carry_out(request)?;
            }
            self.finish_batch();
        }
        if self.is_old() || self.seal_now {
            self.seal(Vec::new());
        }
        self.prune();
        Ok(())
    }

    fn patience(&self) -> Duration {
        let next = self.next().map(|at| at.saturating_sub(self.now()));
        next.map_or(PATIENCE_MAX, |patience| patience.min(PATIENCE_MAX))
    }

    fn fail(self, error: &Error) {
        self.links.fail(error);
    }

    /// Seals what is left.
    fn finish(&mut self) {
        if !self.links.is_killed() {
            self.finish_batch();
            self.release_all();
            if self.installing.is_none() {
                self.seal(Vec::new());
            }
        }
    }
}
