//! The state machine as its owner drives it: inputs in, [`Ready`] out.
//!
//! With asynchronous storage writes (as the member uses it) a [`Ready`] carries, among its messages,
//! one to [`APPEND_THREAD`] and one to [`APPLY_THREAD`]. Those must be carried out in order and never
//! lost; when all that one asks for is durable (applied), its `responses` are delivered: by
//! [`RawNode::step`] if they are addressed to this member, by the transport otherwise.
//!
//! Without, a [`Ready`] is carried out as a whole, its messages sent after its entries are durable,
//! and then [`RawNode::advance`] is called.

use bytes::Bytes;
use keelson_proto::entry::{ConfChangeV2, ConfState, Entry, HardState, Snapshot};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};

use crate::confchange::AnyConfChange;
use crate::events::EventSink;
use crate::log::encoded_bytes;
use crate::raft::{Draw, Raft, SoftState};
use crate::read::ReadState;
use crate::{
    BasicStatus, ConfChangeError, Config, Configuration, Error, Role, Status, Storage,
    TracingEvents,
};

/// To whom messages go that ask for entries, state and snapshots to be made durable.
pub const APPEND_THREAD: MemberId = MemberId(u64::MAX);

/// To whom messages go that ask for committed entries to be applied.
pub const APPLY_THREAD: MemberId = MemberId(u64::MAX - 1);

/// Whether `id` is one of the own storage threads and no member.
#[must_use]
pub fn is_storage_thread(id: MemberId) -> bool {
    id == APPEND_THREAD || id == APPLY_THREAD
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// Leader and role, if they changed.
    pub soft_state: Option<SoftState>,
    /// What must be durable before any message that depends on it, if it changed.
    pub hard_state: Option<HardState>,
    /// Reads that may be answered once their index is applied.
    pub read_states: Vec<ReadState>,
    /// Entries to write, over what is there from the first of them on.
    pub entries: Vec<Entry>,
    /// A snapshot to write, and to apply before anything else.
    pub snapshot: Option<Snapshot>,
    /// Entries to apply.
    pub committed_entries: Vec<Entry>,
    /// Messages to send, in order. With asynchronous storage writes those to the storage threads
    /// repeat what the other fields say; without, all wait until the entries are durable.
    pub messages: Vec<Message>,
    /// Whether the entries and the hard state must be durable before anything depends on them.
    pub must_sync: bool,
}

/// One member's state machine.
#[derive(Debug)]
pub struct RawNode<S> {
    raft: Raft<S>,
    handed_soft_state: SoftState,
    handed_hard_state: HardState,
    /// What [`RawNode::advance`] delivers to this member itself.
    steps_on_advance: Vec<Message>,
}

/// Inputs.
impl<S: Storage> RawNode<S> {
    /// Starts from what is stored, as a follower. `draw` spreads the election timeouts.
    ///
    /// # Errors
    ///
    /// [`Error::BadConfig`], [`Error::BadConfState`], [`Error::IndexOutOfRange`] and
    /// [`Error::NoLastTerm`].
    pub fn new(config: Config, storage: S, draw: Draw) -> Result<RawNode<S>, Error> {
        RawNode::with_events(config, storage, draw, Box::new(TracingEvents))
    }

    /// As [`RawNode::new`], with a sink for events.
    ///
    /// # Errors
    ///
    /// As for [`RawNode::new`].
    pub fn with_events(
        config: Config,
        storage: S,
        draw: Draw,
        events: Box<dyn EventSink>,
    ) -> Result<RawNode<S>, Error> {
        let raft = Raft::new(config, storage, draw, events)?;
        Ok(RawNode {
            handed_soft_state: raft.soft_state(),
            handed_hard_state: raft.hard_state(),
            raft,
            steps_on_advance: Vec::new(),
        })
    }

    /// One tick of time.
    pub fn tick(&mut self) {
        self.raft.tick();
    }

    /// Campaigns now, if this member may lead.
    pub fn campaign(&mut self) {
        self.raft.campaign_on_timeout();
    }

    /// Proposes data; a follower passes it on.
    ///
    /// # Errors
    ///
    /// [`Error::ProposalDropped`]. An accepted proposal may still be lost.
    pub fn propose(&mut self, data: Bytes) -> Result<(), Error> {
        self.propose_batch([data])
    }

    /// Proposes several data at once: all of them are appended, in order, or none.
    ///
    /// # Errors
    ///
    /// [`Error::ProposalDropped`]; [`Error::Malformed`] if there are none.
    pub fn propose_batch(&mut self, data: impl IntoIterator<Item = Bytes>) -> Result<(), Error> {
        let entries = data.into_iter().map(|data| Entry {
            data,
            ..Entry::default()
        });
        self.propose_entries(entries.collect())
    }

    fn propose_entries(&mut self, entries: Vec<Entry>) -> Result<(), Error> {
        let proposal = Message {
            kind: MessageKind::Prop,
            from: self.raft.id,
            entries,
            ..Message::default()
        };
        check_shape(&proposal)?;
        self.raft.step(proposal)
    }

    /// Proposes a configuration change. A leader that finds that it does not fit appends an empty
    /// entry in its place.
    ///
    /// # Errors
    ///
    /// [`Error::ProposalDropped`].
    pub fn propose_conf_change(&mut self, change: impl Into<AnyConfChange>) -> Result<(), Error> {
        let (kind, data) = change.into().to_entry_data();
        self.propose_entries(vec![Entry {
            kind,
            data,
            ..Entry::default()
        }])
    }

    /// Carries out a configuration change whose entry is being applied, and returns the
    /// configuration that it leads to.
    ///
    /// Not to be called for a change that the application refuses, nor for an entry up to
    /// [`RawNode::restored_index`]: a snapshot that came while it was being applied covers it already.
    ///
    /// # Errors
    ///
    /// [`ConfChangeError`] if it does not fit; nothing was changed then. As the entry is committed,
    /// all members meet the same error: the application cannot go on.
    pub fn apply_conf_change(
        &mut self,
        change: &ConfChangeV2,
    ) -> Result<ConfState, ConfChangeError> {
        self.raft.apply_conf_change(change)
    }

    /// Takes a message of another member, or the answer of an own storage thread.
    ///
    /// # Errors
    ///
    /// [`Error::LocalMessage`], [`Error::UnknownPeer`], [`Error::Malformed`] and
    /// [`Error::BadConfState`]; [`Error::ProposalDropped`] for a proposal that was passed on.
    ///
    /// # Panics
    ///
    /// If the leader says that entries are committed which this member had acknowledged and now
    /// lacks: its log was lost.
    pub fn step(&mut self, message: Message) -> Result<(), Error> {
        let from_storage = is_storage_thread(message.from);
        if is_local(message.kind) && !from_storage {
            return Err(Error::LocalMessage);
        }
        if is_response(message.kind)
            && !from_storage
            && !self.raft.tracker.progress.contains_key(&message.from)
        {
            return Err(Error::UnknownPeer);
        }
        check_shape(&message)?;
        self.raft.step(message)
    }

    /// Asks up to where the log must be applied for a read to see everything that was committed
    /// before this call. The answer comes as a [`ReadState`] with the same context, or never.
    pub fn read_index(&mut self, context: Bytes) {
        let request = Message {
            kind: MessageKind::ReadIndex,
            entries: vec![Entry {
                data: context,
                ..Entry::default()
            }],
            ..Message::default()
        };
        // Reads are dropped in silence: whoever asked asks again.
        let _ = self.raft.step(request);
    }

    /// Hands leadership over to `target`; a follower passes this on.
    pub fn transfer_leader(&mut self, target: MemberId) {
        let request = Message {
            kind: MessageKind::TransferLeader,
            from: target,
            ..Message::default()
        };
        let _ = self.raft.step(request);
    }

    /// Makes a follower let go of its leader, so that it votes for the next one who asks.
    pub fn forget_leader(&mut self) {
        self.raft.forget_leader();
    }

    /// Tells a leader that a message to `id` was not delivered.
    pub fn report_unreachable(&mut self, id: MemberId) {
        self.raft.report_unreachable(id);
    }

    /// Tells a leader how the sending of a snapshot to `id` ended.
    pub fn report_snapshot(&mut self, id: MemberId, delivered: bool) {
        self.raft.report_snapshot(id, delivered);
    }

    /// Sets when this member campaigns, in ticks since the leader was heard of, until the role or
    /// the term changes. For tests and scripts.
    pub fn set_randomized_election_timeout(&mut self, ticks: u32) {
        self.raft.randomized_election_timeout = ticks;
    }
}

/// Effects.
impl<S: Storage> RawNode<S> {
    /// Whether [`RawNode::ready`] has anything to say.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        let raft = &self.raft;
        raft.soft_state() != self.handed_soft_state
            || raft.hard_state() != self.handed_hard_state
            || raft.log.unstable.next_snapshot().is_some()
            || !raft.messages.is_empty()
            || !raft.messages_after_append.is_empty()
            || raft.log.unstable.has_next_entries()
            || raft.log.has_next_committed(self.may_apply_unstable())
            || !raft.read_states.is_empty()
    }

    /// Whether entries may be applied that are committed but not yet in the own storage.
    fn may_apply_unstable(&self) -> bool {
        !self.raft.config.async_storage_writes
    }

    /// Hands out what is to be done; it is not handed out again.
    ///
    /// # Panics
    ///
    /// Without asynchronous storage writes: if [`RawNode::advance`] was not called for the one
    /// before.
    pub fn ready(&mut self) -> Ready {
        let allow_unstable = self.may_apply_unstable();
        let raft = &mut self.raft;
        let (soft_state, hard_state) = (raft.soft_state(), raft.hard_state());
        let handed = self.handed_hard_state;
        let mut ready = Ready {
            soft_state: (soft_state != self.handed_soft_state).then_some(soft_state),
            hard_state: (hard_state != handed).then_some(hard_state),
            read_states: std::mem::take(&mut raft.read_states),
            entries: raft.log.unstable.next_entries(),
            snapshot: raft.log.unstable.next_snapshot().cloned(),
            committed_entries: raft.log.next_committed(allow_unstable),
            messages: std::mem::take(&mut raft.messages),
            must_sync: false,
        };
        ready.must_sync = !ready.entries.is_empty()
            || (hard_state.term, hard_state.vote) != (handed.term, handed.vote);
        self.handed_soft_state = soft_state;
        self.handed_hard_state = hard_state;

        let after_append = std::mem::take(&mut raft.messages_after_append);
        if raft.config.async_storage_writes {
            self.ask_storage(&mut ready, after_append);
        } else {
            self.prepare_advance(&mut ready, after_append);
        }

        let log = &mut self.raft.log;
        log.unstable.accept_in_progress();
        if let Some(last) = ready.committed_entries.last() {
            let bytes = encoded_bytes(&ready.committed_entries);
            log.accept_applying(last.index, bytes, allow_unstable);
        }
        ready
    }

    /// Adds the messages to the storage threads, with what is to be delivered afterwards.
    fn ask_storage(&self, ready: &mut Ready, after_append: Vec<Message>) {
        let must_append = !ready.entries.is_empty()
            || ready.hard_state.is_some()
            || ready.snapshot.is_some()
            || !after_append.is_empty();
        if must_append {
            let state = ready.hard_state.unwrap_or_default();
            let mut responses = after_append;
            // Behind the others: the leader's own acknowledgement is cheaper to handle while the
            // entries are still here.
            responses.extend(self.append_response(ready));
            ready.messages.push(Message {
                kind: MessageKind::StorageAppend,
                to: APPEND_THREAD,
                from: self.raft.id,
                term: state.term,
                vote: state.vote,
                commit: state.commit,
                entries: ready.entries.clone(),
                snapshot: ready.snapshot.clone().map(Box::new),
                responses,
                ..Message::default()
            });
        }
        if let Some(response) = self.apply_response(ready) {
            ready.messages.push(Message {
                kind: MessageKind::StorageApply,
                to: APPLY_THREAD,
                from: self.raft.id,
                entries: ready.committed_entries.clone(),
                responses: vec![response],
                ..Message::default()
            });
        }
    }

    /// Sorts what vouches for this write: for others into the messages, for ourselves until
    /// [`RawNode::advance`].
    fn prepare_advance(&mut self, ready: &mut Ready, after_append: Vec<Message>) {
        assert!(
            self.steps_on_advance.is_empty(),
            "two accepted Ready structs without call to Advance"
        );
        let id = self.raft.id;
        let (own, others): (Vec<_>, Vec<_>) = after_append
            .into_iter()
            .partition(|message| message.to == id);
        ready.messages.extend(others);
        let mut steps = own;
        steps.extend(self.append_response(ready));
        steps.extend(self.apply_response(ready));
        self.steps_on_advance = steps;
    }

    /// What the append thread answers once this write, and all before, is durable.
    ///
    /// It names the last entry of the log even if this write has none: the answer to the write that
    /// had it is void if the term changed in between, because writes of the new term may then be
    /// under way that replace the entry, with an equal one even, later. An answer counts only in the
    /// term in which it was asked for, and each new term makes a write.
    fn append_response(&self, ready: &Ready) -> Option<Message> {
        let raft = &self.raft;
        let has_unstable = raft.log.unstable.len() > 0;
        if !has_unstable && ready.snapshot.is_none() {
            return None;
        }
        let mut response = Message {
            kind: MessageKind::StorageAppendResp,
            to: raft.id,
            from: APPEND_THREAD,
            term: raft.term,
            snapshot: ready.snapshot.clone().map(Box::new),
            ..Message::default()
        };
        if has_unstable {
            let last = raft.log.last_id();
            response.index = last.index;
            response.log_term = last.term;
        }
        Some(response)
    }

    /// What the apply thread answers once the committed entries are applied.
    fn apply_response(&self, ready: &Ready) -> Option<Message> {
        (!ready.committed_entries.is_empty()).then(|| Message {
            kind: MessageKind::StorageApplyResp,
            to: self.raft.id,
            from: APPLY_THREAD,
            entries: ready.committed_entries.clone(),
            ..Message::default()
        })
    }

    /// Says that the last [`Ready`] was carried out.
    ///
    /// # Panics
    ///
    /// With asynchronous storage writes, where the answers of the storage threads take its place.
    pub fn advance(&mut self) {
        assert!(
            !self.raft.config.async_storage_writes,
            "Advance must not be called when using AsyncStorageWrites"
        );
        for message in std::mem::take(&mut self.steps_on_advance) {
            // An own proposal is not among these, so nothing can be refused that anybody waits for.
            let _ = self.raft.step(message);
        }
    }
}

/// Views.
impl<S: Storage> RawNode<S> {
    /// The state, with the configuration and the progress of all members.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::of(&self.raft)
    }

    /// The state alone.
    #[must_use]
    pub fn basic_status(&self) -> BasicStatus {
        BasicStatus::of(&self.raft)
    }

    /// Who this member is.
    #[must_use]
    pub fn id(&self) -> MemberId {
        self.raft.id
    }

    /// The present term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.raft.term
    }

    /// The leader of the present term, as far as it is known.
    #[must_use]
    pub fn lead(&self) -> MemberId {
        self.raft.lead
    }

    /// What this member is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.raft.role
    }

    /// Up to here the log is known to be committed.
    #[must_use]
    pub fn committed(&self) -> LogIndex {
        self.raft.log.committed
    }

    /// Up to here the log is applied.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.raft.log.applied
    }

    /// Whether an entry of the present term is committed. A new leader does not know what is
    /// committed before.
    #[must_use]
    pub fn has_committed_in_term(&self) -> bool {
        self.raft.has_committed_in_term()
    }

    /// Who votes and who learns, as of what is applied.
    #[must_use]
    pub fn config(&self) -> &Configuration {
        &self.raft.tracker.config
    }

    /// The index of the last snapshot of a leader that was taken over since the start, or 0. The
    /// configuration already holds all changes up to it, even while entries before it, handed out
    /// earlier, are still being applied.
    #[must_use]
    pub fn restored_index(&self) -> LogIndex {
        self.raft.restored
    }

    /// The end of the log, durable or not.
    #[must_use]
    pub fn last_index(&self) -> LogIndex {
        self.raft.log.last_index()
    }

    /// The storage.
    pub fn storage(&self) -> &S {
        &self.raft.log.storage
    }

    /// The storage, to write what a [`Ready`] asked for.
    pub fn storage_mut(&mut self) -> &mut S {
        &mut self.raft.log.storage
    }
}

/// Kinds that only a member itself, or its storage, produces.
fn is_local(kind: MessageKind) -> bool {
    use MessageKind as Kind;
    matches!(
        kind,
        Kind::Hup
            | Kind::Beat
            | Kind::Unreachable
            | Kind::SnapStatus
            | Kind::CheckQuorum
            | Kind::StorageAppend
            | Kind::StorageAppendResp
            | Kind::StorageApply
            | Kind::StorageApplyResp
            | Kind::ForgetLeader
    )
}

/// Kinds that answer something, and so come only from members.
fn is_response(kind: MessageKind) -> bool {
    use MessageKind as Kind;
    matches!(
        kind,
        Kind::AppResp
            | Kind::VoteResp
            | Kind::HeartbeatResp
            | Kind::ReadIndexResp
            | Kind::PreVoteResp
            | Kind::StorageAppendResp
            | Kind::StorageApplyResp
    )
}

/// Kinds that a member sends in a term. Without one they would pass for its own doing.
fn has_term(kind: MessageKind) -> bool {
    use MessageKind as Kind;
    matches!(
        kind,
        Kind::App
            | Kind::AppResp
            | Kind::Vote
            | Kind::VoteResp
            | Kind::PreVote
            | Kind::PreVoteResp
            | Kind::Snap
            | Kind::Heartbeat
            | Kind::HeartbeatResp
            | Kind::TimeoutNow
            | Kind::ReadIndexResp
    )
}

/// Checks what a message from outside must satisfy for the state machine to look at it.
fn check_shape(message: &Message) -> Result<(), Error> {
    let malformed = |what| Err(Error::Malformed { what });
    if message.term == Term(0) && has_term(message.kind) {
        return malformed("a message without the term of its sender");
    }
    if message.term == Term(u64::MAX) {
        return malformed("the last possible term, after which there is no election");
    }
    match message.kind {
        MessageKind::App => {
            let (mut index, mut term) = (message.index, message.log_term);
            for entry in &message.entries {
                if index.0.checked_add(1) != Some(entry.index.0) {
                    return malformed("the entries of an append are not consecutive");
                }
                if entry.term < term || entry.term > message.term {
                    return malformed(
                        "the terms of an append do not rise up to that of its leader",
                    );
                }
                (index, term) = (entry.index, entry.term);
            }
            Ok(())
        }
        MessageKind::Prop if message.entries.is_empty() => malformed("a proposal of nothing"),
        MessageKind::ReadIndex if message.entries.len() != 1 => {
            malformed("a read index request must carry one entry")
        }
        MessageKind::Snap
            if message
                .snapshot
                .as_ref()
                .is_some_and(|snapshot| snapshot.index >= LogIndex(u64::MAX)) =>
        {
            malformed("a snapshot at the last possible index")
        }
        _ => Ok(()),
    }
}
