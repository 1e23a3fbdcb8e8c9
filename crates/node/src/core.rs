//! The consensus loop: inputs to outputs, with no clock, thread, disk or socket.
//!
//! Around `keelson_raft`'s state machine, in its asynchronous-storage mode:
//!
//! 1. what is to be written goes out as [`Append`]s, numbered; what waits for a write (own answers of
//!    the storage, messages to others) is held here and released by [`Input::Synced`], never by
//!    whoever writes;
//! 2. an entry goes out to be applied only when it is committed *and* synced in the own log;
//! 3. up to a given index the log is applied before the member campaigns, counts a quorum or votes;
//! 4. a hard state that only moved its commit index waits for the next write or tick: it may be lost;
//! 5. a leader's appends go out before its own write of the same entries ends, a follower's
//!    acknowledgement only after it; a candidate asks for votes when the disk has its term;
//! 6. a received snapshot is durable in the own log before it takes the place of the state, and
//!    nothing behind it is applied before.

use std::collections::VecDeque;

use keelson_proto::ApiError;
use keelson_proto::entry::{ConfState, Entry, HardState, Snapshot};
use keelson_proto::ids::{LogIndex, MemberId};
use keelson_proto::message::{Message, MessageKind};
use keelson_raft::{
    APPEND_THREAD, APPLY_THREAD, AnyConfChange, RawNode, Ready, Role, Storage as _,
};

mod io;
mod told;

pub use io::{Append, Content, Input, Options, Outputs, PeerProgress, Proposal, View};

use crate::budget;
use crate::memory_log::{Keep, MemoryLog};
use crate::read::Reads;
use crate::{Error, Ticket};
use told::Told;

/// A write that is on its way, and what waits for it.
#[derive(Debug)]
struct Writing {
    number: u64,
    hard_state: Option<HardState>,
    snapshot: Option<Snapshot>,
    entries: Vec<Entry>,
    responses: Vec<Message>,
}

/// A snapshot on its way to a member.
#[derive(Debug)]
struct Transfer {
    to: MemberId,
    /// The tick at which it ended.
    ended: Option<u64>,
}

/// The state of the loop.
#[derive(Debug)]
pub struct Core {
    raft: RawNode<MemoryLog>,
    options: Options,
    conf_state: ConfState,
    ticks: u64,
    appends: u64,
    writing: VecDeque<Writing>,
    /// Of the entries that are being written.
    writing_bytes: u64,
    transfers: Vec<Transfer>,
    /// Entries that are being applied: the last of each parcel, and what raft is told then.
    applying: VecDeque<(LogIndex, Message)>,
    applied: LogIndex,
    /// A hard state that nobody waits for.
    lazy_state: Option<HardState>,
    /// Proposals that came while there was no leader, each with its tick.
    held: VecDeque<(Proposal, u64)>,
    /// Own proposals that the own log does not have yet: the last index of each batch, its bytes.
    accepted: VecDeque<(LogIndex, u64)>,
    reads: Reads,
    leader_changes: u64,
    lead: MemberId,
    campaigned: bool,
    /// Messages of others that came before the log was applied far enough.
    early: Vec<Message>,
    told: Told,
    out: Outputs,
}

/// Messages that are kept until the member takes part; senders repeat what is lost.
const EARLY_MAX: usize = 64;

impl Core {
    /// Starts from a log. `applied` is up to where the state has it; `draw` spreads elections.
    ///
    /// # Errors
    ///
    /// [`Error::Raft`].
    pub fn new(
        options: Options,
        log: MemoryLog,
        applied: LogIndex,
        draw: keelson_raft::Draw,
    ) -> Result<Core, Error> {
        let (_, conf_state) = log.initial_state();
        let mut config = options.raft.clone();
        config.async_storage_writes = true;
        config.applied = applied;
        let raft = RawNode::new(config, log, draw)?;
        Ok(Core {
            reads: Reads::new(options.first_context, options.patience_ticks),
            options,
            conf_state,
            ticks: 0,
            appends: 0,
            writing: VecDeque::new(),
            writing_bytes: 0,
            transfers: Vec::new(),
            applying: VecDeque::new(),
            applied,
            lazy_state: None,
            held: VecDeque::new(),
            accepted: VecDeque::new(),
            leader_changes: 0,
            lead: MemberId::NONE,
            campaigned: false,
            early: Vec::new(),
            told: Told::default(),
            out: Outputs::default(),
            raft,
        })
    }

    /// Takes inputs, in order, and says what is to be done. Proposals and read barriers are taken
    /// together, behind everything else: one step of raft for all of them.
    ///
    /// # Errors
    ///
    /// [`Error::ConfChange`] if a committed change does not fit: the member cannot go on.
    pub fn handle(&mut self, inputs: impl IntoIterator<Item = Input>) -> Result<Outputs, Error> {
        let mut proposals = Vec::new();
        for input in inputs {
            match input {
                Input::Tick => self.tick(),
                Input::Propose(proposal) => proposals.push(proposal),
                Input::ReadBarrier(ticket) => self.reads.push(ticket, self.ticks),
                Input::Synced { upto } => self.synced(upto),
                Input::Applied { index } => self.applied(index),
                Input::ConfChange { index, change } => self.conf_change(index, change)?,
                Input::Step(message) => self.step(message),
                Input::Unreachable(id) => self.raft.report_unreachable(id),
                Input::SnapshotSent { to, delivered } => self.snapshot_sent(to, delivered),
                Input::Progress(ticket) => self.report_progress(ticket),
                Input::TransferLeader(to) => self.raft.transfer_leader(to),
            }
        }
        self.take_part();
        self.propose_held();
        self.propose(proposals);
        self.ask_for_reads();
        self.drain();
        if self.reads.wait_for_a_round() {
            // What was just committed may be the first of the term.
            self.ask_for_reads();
            self.drain();
        }
        told::spare(&mut self.out.messages);
        Ok(std::mem::take(&mut self.out))
    }

    /// Gives out the hard state that still waits, for a clean stop.
    pub fn flush(&mut self) -> Outputs {
        self.write_lazy_state();
        std::mem::take(&mut self.out)
    }

    /// What others may know.
    #[must_use]
    pub fn view(&self) -> View {
        let id = self.raft.id();
        View {
            leader: self.raft.lead(),
            leads: self.raft.role() == Role::Leader,
            only_voter: self.is_only_voter(),
            is_learner: self.conf_state.learners.contains(&id),
            term: self.raft.term(),
            committed: self.raft.committed(),
            leader_changes: self.leader_changes,
        }
    }

    /// Whether something waits for entries to be applied, so that [`Input::Applied`] must not be late:
    /// reads, the start, or committed entries that are handed out a part at a time.
    #[must_use]
    pub fn awaits_apply(&self) -> bool {
        !self.takes_part()
            || self.reads.awaits_apply()
            || self
                .applying
                .back()
                .is_some_and(|(last, _)| *last < self.raft.committed())
            || self.raft.storage().bytes() > budget::RAFT_LOG_BYTES
    }

    /// The data of entries that are held in memory, in bytes: not synced, not applied, or kept for others.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.raft.storage().bytes() + self.writing_bytes
    }

    /// The own log as far as it is synced.
    #[must_use]
    pub fn log(&self) -> &MemoryLog {
        self.raft.storage()
    }

    /// Whether an entry of the current term is committed.
    #[must_use]
    pub fn has_committed_in_term(&self) -> bool {
        self.raft.has_committed_in_term()
    }

    /// The last entry, synced or not.
    #[must_use]
    pub fn last_index(&self) -> LogIndex {
        self.raft.last_index()
    }

    /// Proposals that wait for a leader.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    fn is_only_voter(&self) -> bool {
        self.conf_state.voters == [self.raft.id()] && self.conf_state.voters_outgoing.is_empty()
    }

    fn takes_part(&self) -> bool {
        self.applied >= self.options.replay_to
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.out.messages.extend(self.told.release());
        self.write_lazy_state();
        self.reads.expire(self.ticks);
        self.expire_held();
        let (now, hold) = (self.ticks, self.options.hold_ticks);
        self.transfers
            .retain(|transfer| transfer.ended.is_none_or(|ended| now < ended + hold));
        if self.takes_part() {
            self.raft.tick();
        }
    }

    fn expire_held(&mut self) {
        let patience = self.options.patience_ticks;
        while let Some((proposal, _)) = self
            .held
            .pop_front_if(|(_, came)| self.ticks >= *came + patience)
        {
            // It has not left this member, and etcd says so in other words than of one that has.
            self.drop_proposal(&proposal, ApiError::ContextDeadlineExceeded);
        }
    }

    fn drop_proposal(&mut self, proposal: &Proposal, error: ApiError) {
        self.out.released_bytes += proposal.content.bytes();
        self.out.dropped.push((proposal.id, error));
    }

    fn step(&mut self, message: Message) {
        if !self.takes_part() {
            if self.early.len() < EARLY_MAX {
                self.early.push(message);
            }
            return;
        }
        self.told.heard(&message);
        if let Err(error) = self.raft.step(message) {
            tracing::debug!(%error, "a message of another member was not taken");
        }
    }

    /// Begins to take part once the log is applied far enough.
    fn take_part(&mut self) {
        if !self.takes_part() {
            return;
        }
        for message in std::mem::take(&mut self.early) {
            self.step(message);
        }
        if !self.campaigned && self.options.campaign_at_once && self.is_only_voter() {
            self.campaigned = true;
            self.raft.campaign();
            self.drain();
        }
    }

    fn propose_held(&mut self) {
        if !self.held.is_empty() && !self.raft.lead().is_none() {
            let held = self.held.drain(..).map(|(proposal, _)| proposal).collect();
            self.propose(held);
        }
    }

    /// One step of raft for a run of requests, one for each configuration change.
    fn propose(&mut self, proposals: Vec<Proposal>) {
        let (proposals, outdated): (Vec<Proposal>, Vec<Proposal>) = proposals
            .into_iter()
            .partition(|proposal| self.is_wanted(proposal));
        for proposal in outdated {
            self.drop_proposal(&proposal, ApiError::ProposalDropped);
        }
        if proposals.is_empty() {
            return;
        }
        if self.raft.lead().is_none() {
            let tick = self.ticks;
            self.held
                .extend(proposals.into_iter().map(|proposal| (proposal, tick)));
            return;
        }
        let mut run = Vec::new();
        for proposal in proposals {
            match &proposal.content {
                Content::Request(_) => run.push(proposal),
                Content::ConfChange(change) => {
                    self.propose_run(&mut run);
                    match self.raft.propose_conf_change(change.clone()) {
                        Ok(()) => self.accept(proposal.content.bytes()),
                        Err(_) => self.drop_proposal(&proposal, ApiError::ProposalDropped),
                    }
                }
            }
        }
        self.propose_run(&mut run);
    }

    /// Whether a proposal is still what it was meant to be: the decision of the leader of a term.
    fn is_wanted(&self, proposal: &Proposal) -> bool {
        let leads = self.raft.role() == Role::Leader;
        proposal
            .only_in
            .is_none_or(|term| leads && self.raft.term() == term)
    }

    /// Proposes a run of requests, to another leader in parcels of a bounded size.
    fn propose_run(&mut self, run: &mut Vec<Proposal>) {
        let parcel_max = if self.raft.role() == Role::Leader {
            u64::MAX
        } else {
            self.options.raft.max_size_per_message
        };
        let mut run = std::mem::take(run).into_iter().peekable();
        while run.peek().is_some() {
            let (mut parcel, mut bytes) = (Vec::new(), 0);
            while let Some(next) =
                run.next_if(|next| parcel.is_empty() || bytes + next.content.bytes() <= parcel_max)
            {
                bytes += next.content.bytes();
                parcel.push(next);
            }
            self.propose_parcel(&parcel, bytes);
        }
    }

    fn propose_parcel(&mut self, parcel: &[Proposal], bytes: u64) {
        let data = parcel
            .iter()
            .filter_map(|proposal| match &proposal.content {
                Content::Request(data) => Some(data.clone()),
                Content::ConfChange(_) => None,
            });
        if self.raft.propose_batch(data).is_ok() {
            return self.accept(bytes);
        }
        let error = self.refusal();
        for proposal in parcel {
            self.drop_proposal(proposal, error);
        }
    }

    /// Why raft dropped a proposal.
    fn refusal(&self) -> ApiError {
        let status = self.raft.basic_status();
        let id = self.raft.id();
        let leads = self.raft.role() == Role::Leader && status.lead_transferee.is_none();
        if leads && self.conf_state.voters.contains(&id) {
            // More waits for a quorum than fits.
            return ApiError::TooManyRequests;
        }
        ApiError::ProposalDropped
    }

    /// Counts proposals until the own log has them; those that went to another leader are its.
    fn accept(&mut self, bytes: u64) {
        if self.raft.role() == Role::Leader {
            self.accepted.push_back((self.raft.last_index(), bytes));
        } else {
            self.out.released_bytes += bytes;
        }
    }

    /// Begins a round for the reads that wait. Not while this member leads and has nothing of its
    /// term committed: a log that comes back from a crash may hold more that was acknowledged than
    /// its commit index says, and raft answers a lone voter with that index at once.
    fn ask_for_reads(&mut self) {
        let early = self.raft.role() == Role::Leader && !self.raft.has_committed_in_term();
        if !early
            && !self.raft.lead().is_none()
            && let Some(context) = self.reads.ask(self.ticks)
        {
            self.raft.read_index(context);
        }
    }

    /// Releases what waited for writes.
    fn synced(&mut self, upto: u64) {
        let mut released = Vec::new();
        while let Some(writing) = self.writing.pop_front_if(|writing| writing.number <= upto) {
            self.writing_bytes -= data_bytes(&writing.entries);
            let log = self.raft.storage_mut();
            if let Some(snapshot) = writing.snapshot {
                log.restore(&snapshot);
                // What was to be applied before it is in it.
                self.out.apply.clear();
                self.out.install = Some(snapshot);
            }
            log.append(&writing.entries);
            if let Some(state) = writing.hard_state {
                log.set_hard_state(state);
            }
            released.push(writing.responses);
        }
        let last = self.raft.storage().last_index();
        while let Some((_, bytes)) = self.accepted.pop_front_if(|(index, _)| *index <= last) {
            self.out.released_bytes += bytes;
        }
        for responses in released {
            self.deliver(responses);
        }
        self.drain();
    }

    /// Answers of the own storage go to raft, everything else to other members.
    fn deliver(&mut self, responses: Vec<Message>) {
        for message in responses {
            if message.to != self.raft.id() {
                self.send(message);
            } else if let Err(error) = self.raft.step(message) {
                tracing::debug!(%error, "an own message was not taken");
            }
        }
    }

    fn send(&mut self, message: Message) {
        if message.kind == MessageKind::Snap {
            self.transfers.retain(|transfer| transfer.to != message.to);
            self.transfers.push(Transfer {
                to: message.to,
                ended: None,
            });
            self.out.snapshots.push(message);
        } else {
            self.out.messages.extend(self.told.pass(message));
        }
    }

    fn snapshot_sent(&mut self, to: MemberId, delivered: bool) {
        for transfer in self.transfers.iter_mut().filter(|it| it.to == to) {
            transfer.ended = Some(self.ticks);
        }
        self.raft.report_snapshot(to, delivered);
    }

    fn report_progress(&mut self, ticket: Ticket) {
        let progress = self.raft.status().progress;
        let progress = progress.into_iter().map(|(member, it)| PeerProgress {
            member,
            matched: it.match_index(),
            is_learner: it.is_learner(),
            is_active: it.recent_active() || member == self.raft.id(),
        });
        self.out.progress.push((ticket, progress.collect()));
    }

    fn applied(&mut self, index: LogIndex) {
        assert!(
            index >= self.applied,
            "apply never goes back: {} to {index}",
            self.applied
        );
        self.applied = index;
        let mut answers = Vec::new();
        while let Some((_, answer)) = self.applying.pop_front_if(|(last, _)| *last <= index) {
            answers.push(answer);
        }
        self.deliver(answers);
        let keep = if self.transfers.is_empty() {
            Keep::Usual
        } else {
            Keep::Held
        };
        self.raft.storage_mut().trim(index, keep);
        self.reads.applied(index, &mut self.out.readable);
        self.drain();
    }

    fn conf_change(&mut self, index: LogIndex, change: AnyConfChange) -> Result<(), Error> {
        let nobody = matches!(&change, AnyConfChange::V1(change) if change.member.is_none());
        // One that was refused changes nothing in raft either, and a snapshot that came meanwhile holds
        // what it changes.
        if nobody || index <= self.raft.restored_index() {
            return Ok(());
        }
        self.conf_state = self.raft.apply_conf_change(&change.into_v2())?;
        let conf_state = self.conf_state.clone();
        self.raft.storage_mut().set_conf_state(conf_state);
        Ok(())
    }

    /// Carries out what raft asks for until it asks for nothing.
    fn drain(&mut self) {
        while self.raft.has_ready() {
            let ready = self.raft.ready();
            self.carry_out(ready);
        }
    }

    fn carry_out(&mut self, ready: Ready) {
        if let Some(soft_state) = ready.soft_state {
            self.follow(soft_state.lead, soft_state.role);
        }
        for state in ready.read_states {
            self.reads.answered(&state.context, state.index);
        }
        self.reads.applied(self.applied, &mut self.out.readable);
        let mut requests = Vec::new();
        for message in ready.messages {
            if message.to == APPEND_THREAD {
                self.write(message, ready.hard_state, ready.must_sync);
            } else if message.to == APPLY_THREAD {
                self.apply(message);
            } else if message.kind == MessageKind::Vote {
                requests.push(message);
            } else {
                self.send(message);
            }
        }
        self.ask_for_votes(requests);
    }

    /// Asks for votes once the own disk has the term. Others could elect this member before, without its
    /// own vote; after a crash it would not know that it had led, could be elected in the same term by the
    /// same votes, and give other entries the numbers of those that it had sent.
    fn ask_for_votes(&mut self, requests: Vec<Message>) {
        match self.writing.back_mut() {
            Some(last) => last.responses.extend(requests),
            None => self.deliver(requests),
        }
    }

    fn follow(&mut self, lead: MemberId, role: Role) {
        if !lead.is_none() && lead != self.lead {
            self.leader_changes += 1;
            let failed = self.reads.leader_changed();
            self.out.unreadable.extend(failed);
        }
        self.lead = lead;
        if role != Role::Leader {
            // Nobody else's snapshots are this member's business.
            self.transfers.clear();
            let applied = self.applied;
            self.raft.storage_mut().trim(applied, Keep::Usual);
            let gone = self.accepted.drain(..).map(|(_, bytes)| bytes).sum::<u64>();
            self.out.released_bytes += gone;
        }
    }

    /// Sends a write on its way. Where nothing needs the disk, what waits joins the last write that
    /// does.
    fn write(&mut self, message: Message, hard_state: Option<HardState>, must_sync: bool) {
        let snapshot = message.snapshot.map(|boxed| *boxed);
        if message.entries.is_empty() && snapshot.is_none() && !must_sync {
            self.lazy_state = hard_state.or(self.lazy_state);
            match self.writing.back_mut() {
                Some(last) => join(&mut last.responses, message.responses),
                None => self.deliver(message.responses),
            }
            return;
        }
        if let Some(snapshot) = &snapshot {
            self.conf_state = snapshot.conf_state.clone();
        }
        let hard_state = hard_state.or(self.lazy_state.take());
        self.lazy_state = None;
        self.send_append(
            Writing {
                number: 0,
                hard_state,
                snapshot,
                entries: message.entries,
                responses: message.responses,
            },
            must_sync,
        );
    }

    fn write_lazy_state(&mut self) {
        if let Some(state) = self.lazy_state.take() {
            let writing = Writing {
                number: 0,
                hard_state: Some(state),
                snapshot: None,
                entries: Vec::new(),
                responses: Vec::new(),
            };
            self.send_append(writing, false);
        }
    }

    /// Numbers a write, and sends it on its way.
    fn send_append(&mut self, mut writing: Writing, must_sync: bool) {
        self.appends += 1;
        writing.number = self.appends;
        self.writing_bytes += data_bytes(&writing.entries);
        self.out.appends.push(Append {
            number: writing.number,
            hard_state: writing.hard_state,
            snapshot: writing.snapshot.clone(),
            entries: writing.entries.clone(),
            must_sync: must_sync || writing.snapshot.is_some(),
        });
        self.writing.push_back(writing);
    }

    fn apply(&mut self, mut message: Message) {
        let synced = self.raft.storage().last_index();
        let Some(last) = message.entries.last().map(|entry| entry.index) else {
            return;
        };
        assert!(
            last <= synced,
            "entry {last} would be applied before it is in the own log, which ends at {synced}"
        );
        self.out.apply.append(&mut message.entries);
        let answer = message
            .responses
            .into_iter()
            .find(|answer| answer.kind == MessageKind::StorageApplyResp);
        self.applying.extend(answer.map(|answer| (last, answer)));
    }
}

/// Lets more wait for a write. As long as the log's end is not durable, raft wants it acknowledged with
/// every write of the term, because an acknowledgement is void once the term has changed: of equal ones
/// that are given together, the last is enough, and the others would find nothing to acknowledge.
fn join(waiting: &mut Vec<Message>, more: Vec<Message>) {
    for message in &more {
        if message.kind == MessageKind::StorageAppendResp {
            waiting.retain(|other| other != message);
        }
    }
    waiting.extend(more);
}

fn data_bytes(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| entry.data.len() as u64).sum()
}

#[cfg(test)]
mod tests;
