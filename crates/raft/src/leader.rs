//! A leader: it takes proposals, replicates and commits them, answers reads, and hands over.

use keelson_proto::entry::{ConfChange, ConfChangeV2, Entry, EntryKind};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};

use crate::confchange::as_v2;
use crate::describe::describe_conf_change;
use crate::events::event;
use crate::log::{EntryId, count, data_bytes};
use crate::progress::ProgressState;
use crate::raft::{Raft, Role};
use crate::read::ReadQueue;
use crate::{Error, ReadOnlyOption, Storage};

/// What only a leader needs, and forgets when it stops leading.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    /// To whom leadership is being handed over; nobody takes proposals meanwhile.
    pub(crate) transferee: MemberId,
    /// The last configuration change in the log lies here or before. Another one is taken only when
    /// this is applied.
    pending_conf_index: LogIndex,
    /// Data that was taken and is not yet applied. Never more than there is, sometimes less.
    uncommitted_bytes: u64,
    /// Ticks since the last heartbeat.
    heartbeat_elapsed: u32,
    pub(crate) reads: ReadQueue,
    /// Reads that came before this leader had committed anything: until then it does not know what
    /// is committed.
    pub(crate) early_reads: Vec<Message>,
}

impl Leadership {
    /// Takes on data, unless it would pass the limit. The first and what is empty always fit.
    fn take_on_uncommitted(&mut self, bytes: u64, max: u64) -> bool {
        let sum = self.uncommitted_bytes.saturating_add(bytes);
        if self.uncommitted_bytes > 0 && bytes > 0 && sum > max {
            return false;
        }
        self.uncommitted_bytes = sum;
        true
    }

    pub(crate) fn take_off_uncommitted(&mut self, bytes: u64) {
        self.uncommitted_bytes = self.uncommitted_bytes.saturating_sub(bytes);
    }
}

/// Roles and time.
impl<S: Storage> Raft<S> {
    pub(crate) fn become_leader(&mut self) {
        assert!(
            self.role != Role::Follower,
            "invalid transition [follower -> leader]"
        );
        self.reset(self.term);
        self.lead = self.id;
        self.role = Role::Leader;
        let own = self
            .tracker
            .progress
            .get_mut(&self.id)
            .expect("only a member campaigns");
        own.become_replicate();
        own.recent_active = true;
        // There may be a change among what is not yet applied; looking would cost more than waiting.
        self.leadership.pending_conf_index = self.log.last_index();
        let opened = self.append_entries(vec![Entry::default()]);
        assert!(opened, "empty entry was dropped");
        event!(
            self.events,
            Info,
            "{} became leader at term {}",
            self.id,
            self.term
        );
    }

    pub(crate) fn tick_leader(&mut self) {
        self.leadership.heartbeat_elapsed += 1;
        self.election_elapsed += 1;
        if self.election_elapsed >= self.config.election_tick {
            self.election_elapsed = 0;
            if self.config.check_quorum {
                self.check_quorum();
            }
            // Whoever was to lead has had its time.
            self.leadership.transferee = MemberId::NONE;
        }
        if self.role == Role::Leader
            && self.leadership.heartbeat_elapsed >= self.config.heartbeat_tick
        {
            self.leadership.heartbeat_elapsed = 0;
            self.broadcast_heartbeat();
        }
    }

    /// Stops leading if no quorum was heard of since the last time.
    fn check_quorum(&mut self) {
        if !self.tracker.is_quorum_active() {
            event!(
                self.events,
                Warn,
                "{} stepped down to follower since quorum is not active",
                self.id
            );
            self.become_follower(self.term, MemberId::NONE);
        }
        for (id, progress) in &mut self.tracker.progress {
            progress.recent_active &= *id == self.id;
        }
    }

    pub(crate) fn step_leader(&mut self, message: Message) -> Result<(), Error> {
        use MessageKind as Kind;
        match message.kind {
            Kind::Prop => return self.propose(message.entries),
            Kind::ReadIndex => {
                self.on_read(message);
                return Ok(());
            }
            _ => {}
        }
        if !self.knows(message.from) {
            return Ok(());
        }
        match message.kind {
            Kind::AppResp if message.reject => self.on_append_rejected(&message),
            Kind::AppResp => self.on_append_accepted(&message)?,
            Kind::HeartbeatResp => self.on_heartbeat_answer(&message),
            Kind::TransferLeader => self.transfer_to(message.from),
            _ => {}
        }
        Ok(())
    }

    fn knows(&mut self, id: MemberId) -> bool {
        let known = self.tracker.progress.contains_key(&id);
        if !known {
            event!(
                self.events,
                Debug,
                "{} no progress available for {id}",
                self.id
            );
        }
        known
    }
}

/// Proposals.
impl<S: Storage> Raft<S> {
    fn propose(&mut self, mut entries: Vec<Entry>) -> Result<(), Error> {
        if entries.is_empty() {
            return Err(Error::Malformed {
                what: "a proposal of nothing",
            });
        }
        if !self.tracker.progress.contains_key(&self.id) {
            return Err(Error::ProposalDropped);
        }
        if !self.leadership.transferee.is_none() {
            event!(
                self.events,
                Debug,
                "{} [term {}] transfer leadership to {} is in progress; dropping proposal",
                self.id,
                self.term,
                self.leadership.transferee
            );
            return Err(Error::ProposalDropped);
        }
        let changes = entries
            .iter()
            .map(decode_conf_change)
            .collect::<Result<Vec<_>, _>>()?;
        let mut index = self.log.last_index();
        for (entry, change) in entries.iter_mut().zip(changes) {
            index = index.next();
            let Some(change) = change else {
                continue;
            };
            if self.admits_conf_change(&change) {
                self.leadership.pending_conf_index = index;
            } else {
                *entry = Entry::default();
            }
        }
        if !self.append_entries(entries) {
            return Err(Error::ProposalDropped);
        }
        self.broadcast_append();
        Ok(())
    }

    /// Whether a change may follow what is in the log, as far as this can be told before all of it
    /// is applied.
    fn admits_conf_change(&mut self, change: &ConfChangeV2) -> bool {
        let pending = self.leadership.pending_conf_index;
        let applied = self.log.applied;
        let is_joint = self.tracker.config.is_joint();
        let leaves = change.changes.is_empty();
        let reason = if pending > applied {
            format!("possible unapplied conf change at index {pending} (applied to {applied})")
        } else if is_joint && !leaves {
            "must transition out of joint config first".to_owned()
        } else if !is_joint && leaves {
            "not in joint state; refusing empty conf change".to_owned()
        } else {
            return true;
        };
        if self.config.disable_conf_change_validation {
            return true;
        }
        event!(
            self.events,
            Info,
            "{} ignoring conf change {} at config {}: {reason}",
            self.id,
            describe_conf_change(change),
            self.tracker.config
        );
        false
    }

    /// Appends entries of this term; refuses if too much is uncommitted.
    fn append_entries(&mut self, mut entries: Vec<Entry>) -> bool {
        let max = self.config.max_uncommitted_entries_size;
        if !self
            .leadership
            .take_on_uncommitted(data_bytes(&entries), max)
        {
            event!(
                self.events,
                Warn,
                "{} appending new entries to log would exceed uncommitted entry size limit; \
                 dropping proposal",
                self.id
            );
            return false;
        }
        let mut index = self.log.last_index();
        for entry in &mut entries {
            index = index.next();
            entry.term = self.term;
            entry.index = index;
        }
        self.log.append(entries, &mut *self.events);
        // The own copy counts like any other: once it is durable.
        self.send(Message {
            kind: MessageKind::AppResp,
            to: self.id,
            index,
            ..Message::default()
        });
        true
    }

    /// Once a joint configuration that is left by itself is applied, proposes to leave it.
    pub(crate) fn maybe_auto_leave(&mut self) {
        if !self.tracker.config.auto_leave || self.log.applied < self.leadership.pending_conf_index
        {
            return;
        }
        // An empty change has no data, so no limit refuses it. A transfer may: then the next applied
        // entry brings us here again, or the next leader leaves.
        let leave = Entry {
            kind: EntryKind::ConfChangeV2,
            ..Entry::default()
        };
        match self.propose(vec![leave]) {
            Ok(()) => event!(
                self.events,
                Info,
                "initiating automatic transition out of joint configuration {}",
                self.tracker.config
            ),
            Err(error) => event!(
                self.events,
                Debug,
                "not initiating automatic transition out of joint configuration {}: {error}",
                self.tracker.config
            ),
        }
    }

    /// After a configuration change: fewer may have to agree now, and new members hear of us.
    pub(crate) fn lead_new_configuration(&mut self) {
        if self.maybe_commit() {
            self.broadcast_append();
        } else {
            for id in self.tracker.others(self.id) {
                self.maybe_send_append(id, false);
            }
        }
        if !self
            .tracker
            .config
            .voters
            .contains(self.leadership.transferee)
        {
            self.leadership.transferee = MemberId::NONE;
        }
    }
}

/// Replication.
impl<S: Storage> Raft<S> {
    fn maybe_commit(&mut self) -> bool {
        // Only entries of the own term are committed by counting; the others come with them.
        self.log.maybe_commit(EntryId {
            term: self.term,
            index: self.tracker.committed(),
        })
    }

    pub(crate) fn broadcast_append(&mut self) {
        for id in self.tracker.others(self.id) {
            self.maybe_send_append(id, true);
        }
    }

    /// Sends what `to` lacks, unless it is paused; whether something was sent. An append without
    /// entries, which only says what is committed, goes out if `even_if_empty`.
    fn maybe_send_append(&mut self, to: MemberId, even_if_empty: bool) -> bool {
        let Some(progress) = self.tracker.progress.get(&to) else {
            return false;
        };
        if progress.is_paused() {
            return false;
        }
        let next = progress.next_index;
        let previous = next.previous();
        let Ok(log_term) = self.log.term(previous) else {
            return self.maybe_send_snapshot(to);
        };
        // With a full window only an empty append goes out: its answer frees the window if all that
        // was under way is lost.
        let is_full = progress.state == ProgressState::Replicate && progress.inflights.is_full();
        let entries = if is_full {
            Ok(Vec::new())
        } else {
            self.log.entries(next, self.config.max_size_per_message)
        };
        let entries = match entries {
            Ok(entries) if entries.is_empty() && !even_if_empty => return false,
            Ok(entries) => entries,
            Err(_) if !even_if_empty => return false,
            Err(_) => return self.maybe_send_snapshot(to),
        };
        let commit = self.log.committed;
        if let Some(progress) = self.tracker.progress.get_mut(&to) {
            progress.sent_entries(count(entries.len()), data_bytes(&entries));
            progress.sent_commit = commit;
        }
        self.send(Message {
            kind: MessageKind::App,
            to,
            index: previous,
            log_term,
            entries,
            commit,
            ..Message::default()
        });
        true
    }

    /// Sends a snapshot to a follower that needs what is gone, if it is alive and there is one.
    fn maybe_send_snapshot(&mut self, to: MemberId) -> bool {
        let Some(progress) = self.tracker.progress.get_mut(&to) else {
            return false;
        };
        if !progress.recent_active {
            event!(
                self.events,
                Debug,
                "ignore sending snapshot to {to} since it is not recently active"
            );
            return false;
        }
        let Ok(snapshot) = self.log.snapshot() else {
            event!(
                self.events,
                Debug,
                "{} failed to send snapshot to {to} because snapshot is temporarily unavailable",
                self.id
            );
            return false;
        };
        assert!(!snapshot.is_empty(), "need non-empty snapshot");
        event!(
            self.events,
            Debug,
            "{} [firstindex: {}, commit: {}] sent snapshot[index: {}, term: {}] to {to} [{progress}]",
            self.id,
            self.log.first_index(),
            self.log.committed,
            snapshot.index,
            snapshot.term
        );
        progress.become_snapshot(snapshot.index);
        event!(
            self.events,
            Debug,
            "{} paused sending replication messages to {to} [{progress}]",
            self.id
        );
        self.send(Message {
            kind: MessageKind::Snap,
            to,
            snapshot: Some(Box::new(snapshot)),
            ..Message::default()
        });
        true
    }

    fn on_append_rejected(&mut self, message: &Message) {
        let Message {
            from,
            index,
            reject_hint,
            log_term,
            ..
        } = *message;
        event!(
            self.events,
            Debug,
            "{} received MsgAppResp(rejected, hint: (index {reject_hint}, term {log_term})) from \
             {from} for index {index}",
            self.id
        );
        // The follower's terms up to the hint are at most `log_term`, so the logs can only agree
        // where ours are too: one probe a term, not one an entry. Old members name no term.
        let hint = if log_term > Term(0) {
            self.log.find_conflict_by_term(reject_hint, log_term).0
        } else {
            reject_hint
        };
        let Some(progress) = self.tracker.progress.get_mut(&from) else {
            return;
        };
        progress.recent_active = true;
        if progress.maybe_decrease(index, hint) {
            event!(
                self.events,
                Debug,
                "{} decreased progress of {from} to [{progress}]",
                self.id
            );
            if progress.state == ProgressState::Replicate {
                progress.become_probe();
            }
            self.maybe_send_append(from, true);
        }
    }

    fn on_append_accepted(&mut self, message: &Message) -> Result<(), Error> {
        let Message { from, index, .. } = *message;
        if index > self.log.last_index() {
            return Err(Error::Malformed {
                what: "an answer for entries that were never sent",
            });
        }
        if !self.note_acknowledged(from, index) {
            return Ok(());
        }
        if self.maybe_commit() {
            self.release_early_reads();
            self.broadcast_append();
        } else if from != self.id {
            let committed = self.log.committed;
            let progress = self.tracker.progress.get(&from);
            if progress.is_some_and(|progress| progress.can_bump_commit(committed)) {
                self.maybe_send_append(from, true);
            }
        }
        if from != self.id {
            // The answer may have freed room for several messages.
            while self.maybe_send_append(from, false) {}
        }
        let reached_end = self
            .tracker
            .progress
            .get(&from)
            .is_some_and(|progress| progress.match_index == self.log.last_index());
        if from == self.leadership.transferee && reached_end {
            event!(
                self.events,
                Info,
                "{} sent MsgTimeoutNow to {from} after received MsgAppResp",
                self.id
            );
            self.send_timeout_now(from);
        }
        Ok(())
    }

    /// Takes note of what a member has; whether this was news.
    fn note_acknowledged(&mut self, from: MemberId, index: LogIndex) -> bool {
        let first_index = self.log.first_index();
        let Some(progress) = self.tracker.progress.get_mut(&from) else {
            return false;
        };
        progress.recent_active = true;
        // An answer that repeats what is known still ends a probe.
        let ends_probe = progress.match_index == index && progress.state == ProgressState::Probe;
        if !progress.maybe_update(index) && !ends_probe {
            return false;
        }
        match progress.state {
            ProgressState::Probe => progress.become_replicate(),
            ProgressState::Replicate => progress.inflights.free_up_to(index),
            // Whatever it got its state from: from here on the log is enough.
            ProgressState::Snapshot if progress.match_index.next() >= first_index => {
                event!(
                    self.events,
                    Debug,
                    "{} recovered from needing snapshot, resumed sending replication messages to \
                     {from} [{progress}]",
                    self.id
                );
                progress.become_probe();
                progress.become_replicate();
            }
            ProgressState::Snapshot => {}
        }
        true
    }

    /// The transport could not deliver to `id`.
    pub(crate) fn report_unreachable(&mut self, id: MemberId) {
        if self.role != Role::Leader || !self.knows(id) {
            return;
        }
        if let Some(progress) = self.tracker.progress.get_mut(&id) {
            // What was under way is probably lost.
            if progress.state == ProgressState::Replicate {
                progress.become_probe();
            }
            event!(
                self.events,
                Debug,
                "{} failed to send message to {id} because it is unreachable [{progress}]",
                self.id
            );
        }
    }

    /// The sending of a snapshot to `id` has ended.
    pub(crate) fn report_snapshot(&mut self, id: MemberId, delivered: bool) {
        if self.role != Role::Leader || !self.knows(id) {
            return;
        }
        let Some(progress) = self.tracker.progress.get_mut(&id) else {
            return;
        };
        if progress.state != ProgressState::Snapshot {
            return;
        }
        if !delivered {
            progress.pending_snapshot = LogIndex(0);
        }
        progress.become_probe();
        let outcome = if delivered { "succeeded" } else { "failed" };
        event!(
            self.events,
            Debug,
            "{} snapshot {outcome}, resumed sending replication messages to {id} [{progress}]",
            self.id
        );
        // Until it answers, or a heartbeat has passed.
        progress.append_paused = true;
    }
}

/// Heartbeats and the transfer of leadership.
impl<S: Storage> Raft<S> {
    pub(crate) fn broadcast_heartbeat(&mut self) {
        let context = self.leadership.reads.context();
        for to in self.tracker.others(self.id) {
            let committed = self.log.committed;
            let Some(progress) = self.tracker.progress.get_mut(&to) else {
                continue;
            };
            // Not beyond what it is known to have: it would take it for lost entries.
            let commit = progress.match_index.min(committed);
            progress.sent_commit = commit;
            self.send(Message {
                kind: MessageKind::Heartbeat,
                to,
                commit,
                context: context.clone(),
                ..Message::default()
            });
        }
    }

    fn on_heartbeat_answer(&mut self, message: &Message) {
        let last = self.log.last_index();
        let Some(progress) = self.tracker.progress.get_mut(&message.from) else {
            return;
        };
        progress.recent_active = true;
        progress.append_paused = false;
        if progress.match_index < last || progress.state == ProgressState::Probe {
            self.maybe_send_append(message.from, true);
        }
        if self.config.read_only != ReadOnlyOption::Safe || message.context.is_empty() {
            return;
        }
        let reads = &mut self.leadership.reads;
        reads.ack(message.from, &message.context);
        for read in reads.confirm(&self.tracker.config.voters) {
            self.answer_read(read.request, read.index);
        }
    }

    fn transfer_to(&mut self, target: MemberId) {
        let Some(progress) = self.tracker.progress.get(&target) else {
            return;
        };
        let has_all = progress.match_index == self.log.last_index();
        if progress.is_learner {
            event!(
                self.events,
                Debug,
                "{} is learner. Ignored transferring leadership",
                self.id
            );
            return;
        }
        let before = self.leadership.transferee;
        if before == target {
            event!(
                self.events,
                Info,
                "{} [term {}] transfer leadership to {target} is in progress, ignores request to \
                 same node {target}",
                self.id,
                self.term
            );
            return;
        }
        if !before.is_none() {
            self.leadership.transferee = MemberId::NONE;
            event!(
                self.events,
                Info,
                "{} [term {}] abort previous transferring leadership to {before}",
                self.id,
                self.term
            );
        }
        if target == self.id {
            event!(
                self.events,
                Debug,
                "{} is already leader. Ignored transferring leadership to self",
                self.id
            );
            return;
        }
        event!(
            self.events,
            Info,
            "{} [term {}] starts to transfer leadership to {target}",
            self.id,
            self.term
        );
        // It is given up after one election timeout from now.
        self.election_elapsed = 0;
        self.leadership.transferee = target;
        if has_all {
            self.send_timeout_now(target);
            event!(
                self.events,
                Info,
                "{} sends MsgTimeoutNow to {target} immediately as {target} already has up-to-date \
                 log",
                self.id
            );
        } else {
            self.maybe_send_append(target, true);
        }
    }

    fn send_timeout_now(&mut self, to: MemberId) {
        self.send(Message {
            kind: MessageKind::TimeoutNow,
            to,
            ..Message::default()
        });
    }
}

/// The change that an entry proposes, if it proposes one.
fn decode_conf_change(entry: &Entry) -> Result<Option<ConfChangeV2>, Error> {
    let decoded = match entry.kind {
        EntryKind::Normal => return Ok(None),
        EntryKind::ConfChange => {
            ConfChange::decode(entry.data.clone()).map(|change| as_v2(&change))
        }
        EntryKind::ConfChangeV2 => ConfChangeV2::decode(entry.data.clone()),
    };
    decoded.map(Some).map_err(|_| Error::Malformed {
        what: "a proposed configuration change that cannot be decoded",
    })
}
