//! The state of one member, its terms, and what happens to a message before its role sees it.

use std::fmt;

use keelson_proto::entry::{ConfChangeV2, ConfState, Entry, HardState};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};

use crate::candidate::Campaign;
use crate::describe::{kind_name, list};
use crate::events::{EventSink, event};
use crate::leader::Leadership;
use crate::log::{EntryId, Log, data_bytes, encoded_bytes};
use crate::read::ReadState;
use crate::tracker::Tracker;
use crate::{ConfChangeError, Config, Error, Storage};

/// Draws a number from `0..bound`, each as likely as the others. It spreads election timeouts.
pub type Draw = Box<dyn FnMut(u32) -> u32 + Send>;

/// The bytes on a vote request that comes from a transfer of leadership, and so overrides leases.
pub(crate) const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

/// What a member is in its term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It takes what the leader sends.
    #[default]
    Follower,
    /// It asks for votes.
    Candidate,
    /// It leads.
    Leader,
    /// It asks whether it would get votes.
    PreCandidate,
}

/// What needs not be durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoftState {
    /// The leader of the term, as far as it is known.
    pub lead: MemberId,
    /// What this member is.
    pub role: Role,
}

/// The state machine itself; [`RawNode`](crate::RawNode) hands its effects out.
pub(crate) struct Raft<S> {
    pub(crate) config: Config,
    pub(crate) id: MemberId,
    pub(crate) term: Term,
    /// Whom it voted for in this term.
    pub(crate) vote: MemberId,
    pub(crate) lead: MemberId,
    pub(crate) role: Role,
    pub(crate) log: Log<S>,
    pub(crate) tracker: Tracker,
    /// What only a leader needs; as new for all others.
    pub(crate) leadership: Leadership,
    /// Ticks since the leader was heard of, since the campaign began, or since a leader last
    /// checked its quorum.
    pub(crate) election_elapsed: u32,
    /// Ticks after which it campaigns, drawn anew whenever the role or the term changes.
    pub(crate) randomized_election_timeout: u32,
    draw: Draw,
    /// Messages that may leave at once.
    pub(crate) messages: Vec<Message>,
    /// Messages that vouch for something written, and leave once all of it is durable. They may be
    /// addressed to this member itself.
    pub(crate) messages_after_append: Vec<Message>,
    pub(crate) read_states: Vec<ReadState>,
    /// The index of the last snapshot that was taken over; the configuration is at least as new.
    pub(crate) restored: LogIndex,
    pub(crate) events: Box<dyn EventSink>,
}

impl<S> fmt::Debug for Raft<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raft")
            .field("id", &self.id)
            .field("term", &self.term)
            .field("role", &self.role)
            .field("lead", &self.lead)
            .field("committed", &self.log.committed)
            .finish_non_exhaustive()
    }
}

impl<S: Storage> Raft<S> {
    pub(crate) fn new(
        config: Config,
        storage: S,
        draw: Draw,
        events: Box<dyn EventSink>,
    ) -> Result<Raft<S>, Error> {
        let config = config.checked()?;
        let (hard_state, conf_state) = storage.initial_state();
        let log = Log::new(storage, config.max_committed_size_per_ready);
        let index = log.last_index();
        let term = log
            .term(index)
            .map_err(|source| Error::NoLastTerm { index, source })?;
        let last = EntryId { term, index };
        let tracker = Tracker::new(config.max_inflight_messages, config.max_inflight_bytes);
        let restored = tracker
            .restored(&conf_state, index)
            .map_err(|source| Error::BadConfState { source })?;
        let mut raft = Raft {
            id: config.id,
            term: Term(0),
            vote: MemberId::NONE,
            lead: MemberId::NONE,
            role: Role::Follower,
            log,
            tracker,
            leadership: Leadership::default(),
            election_elapsed: 0,
            randomized_election_timeout: 0,
            draw,
            messages: Vec::new(),
            messages_after_append: Vec::new(),
            read_states: Vec::new(),
            restored: LogIndex(0),
            events,
            config,
        };
        raft.switch_to(restored);
        raft.load(hard_state)?;
        raft.become_follower(raft.term, MemberId::NONE);
        event!(
            raft.events,
            Info,
            "newRaft {} [peers: [{}], term: {}, commit: {}, applied: {}, lastindex: {}, \
             lastterm: {}]",
            raft.id,
            list(raft.tracker.config.voters.ids(), ","),
            raft.term,
            raft.log.committed,
            raft.log.applied,
            last.index,
            last.term
        );
        Ok(raft)
    }

    /// Takes over what was stored, if it fits the log.
    fn load(&mut self, stored: HardState) -> Result<(), Error> {
        let within = |what, found, first, last| {
            if (first..=last).contains(&found) {
                Ok(found)
            } else {
                Err(Error::IndexOutOfRange {
                    what,
                    found,
                    first,
                    last,
                })
            }
        };
        if !stored.is_empty() {
            // The commit index need not be durable, so a snapshot may be ahead of it. (The reference
            // refuses to start then.)
            let (first, last) = (self.log.committed, self.log.last_index());
            let commit = stored.commit.max(first);
            self.log.committed = within("state.commit", commit, first, last)?;
            self.term = stored.term;
            self.vote = stored.vote;
        }
        if self.config.applied > LogIndex(0) {
            let (first, last) = (self.log.applied, self.log.committed);
            let applied = within("applied", self.config.applied, first, last)?;
            self.log.applied_to(applied, 0);
        }
        Ok(())
    }

    pub(crate) fn soft_state(&self) -> SoftState {
        SoftState {
            lead: self.lead,
            role: self.role,
        }
    }

    pub(crate) fn hard_state(&self) -> HardState {
        HardState {
            term: self.term,
            vote: self.vote,
            commit: self.log.committed,
        }
    }

    /// Puts a message where it waits for what it depends on.
    ///
    /// Votes carry a term already; proposals and reads are passed on without one; all others get
    /// the present one.
    pub(crate) fn send(&mut self, mut message: Message) {
        use MessageKind as Kind;
        if message.from.is_none() {
            message.from = self.id;
        }
        match message.kind {
            Kind::Vote | Kind::VoteResp | Kind::PreVote | Kind::PreVoteResp => {
                assert!(message.term > Term(0), "a vote must name its term");
            }
            kind => {
                assert!(message.term == Term(0), "only votes name their own term");
                if !matches!(kind, Kind::Prop | Kind::ReadIndex) {
                    message.term = self.term;
                }
            }
        }
        match message.kind {
            Kind::AppResp | Kind::VoteResp | Kind::PreVoteResp => {
                self.messages_after_append.push(message);
            }
            _ => {
                assert!(message.to != self.id, "only answers go to oneself");
                self.messages.push(message);
            }
        }
    }

    /// One tick of time.
    pub(crate) fn tick(&mut self) {
        if self.role == Role::Leader {
            self.tick_leader();
            return;
        }
        self.election_elapsed = self.election_elapsed.saturating_add(1);
        if self.is_promotable() && self.election_elapsed >= self.randomized_election_timeout {
            self.election_elapsed = 0;
            self.campaign_on_timeout();
        }
    }

    /// Starts an election: with a poll before it if so configured.
    pub(crate) fn campaign_on_timeout(&mut self) {
        let campaign = if self.config.pre_vote {
            Campaign::PreElection
        } else {
            Campaign::Election
        };
        self.start_campaign(campaign);
    }

    /// Whether it may become leader: a voter that is not in the middle of a snapshot.
    pub(crate) fn is_promotable(&self) -> bool {
        let progress = self.tracker.progress.get(&self.id);
        progress.is_some_and(|progress| !progress.is_learner)
            && self.log.unstable.snapshot().is_none()
    }

    /// Forgets what belongs to the role, and to the term if that is a new one.
    pub(crate) fn reset(&mut self, term: Term) {
        if self.term != term {
            self.term = term;
            self.vote = MemberId::NONE;
        }
        self.lead = MemberId::NONE;
        self.election_elapsed = 0;
        let base = self.config.election_tick;
        self.randomized_election_timeout = base + (self.draw)(base).min(base - 1);
        self.leadership = Leadership::default();
        self.tracker.reset_votes();
        let last = self.log.last_index();
        let members: Vec<(MemberId, bool)> = self
            .tracker
            .progress
            .iter()
            .map(|(&id, progress)| (id, progress.is_learner))
            .collect();
        for (id, is_learner) in members {
            let mut progress = self.tracker.new_progress(last.next(), is_learner);
            if id == self.id {
                progress.match_index = last;
            }
            self.tracker.progress.insert(id, progress);
        }
    }

    pub(crate) fn become_follower(&mut self, term: Term, lead: MemberId) {
        self.reset(term);
        self.lead = lead;
        self.role = Role::Follower;
        event!(
            self.events,
            Info,
            "{} became follower at term {}",
            self.id,
            self.term
        );
    }

    /// Takes one message: first by its term, then by its kind, then by the role.
    pub(crate) fn step(&mut self, message: Message) -> Result<(), Error> {
        if message.term > self.term {
            if !self.admit_newer_term(&message) {
                return Ok(());
            }
        } else if message.term != Term(0) && message.term < self.term {
            self.answer_older_term(message);
            return Ok(());
        }
        match message.kind {
            MessageKind::StorageAppendResp => self.on_appended(&message),
            MessageKind::StorageApplyResp => self.on_applied(&message.entries),
            MessageKind::Vote | MessageKind::PreVote => self.on_vote_request(&message),
            _ => match self.role {
                Role::Leader => self.step_leader(message)?,
                Role::Candidate | Role::PreCandidate => self.step_candidate(message)?,
                Role::Follower => self.step_follower(message)?,
            },
        }
        Ok(())
    }

    /// A message of a newer term makes a follower of anybody, but for polls, which bind nobody, and
    /// for elections while a leader is alive. Returns whether the message is to be looked at.
    fn admit_newer_term(&mut self, message: &Message) -> bool {
        use MessageKind as Kind;
        let is_vote = matches!(message.kind, Kind::Vote | Kind::PreVote);
        let is_transfer = message.context == CAMPAIGN_TRANSFER;
        if is_vote && !is_transfer && self.is_in_lease() {
            let last = self.log.last_id();
            event!(
                self.events,
                Info,
                "{} [logterm: {}, index: {}, vote: {}] ignored {} from {} [logterm: {}, index: {}] \
                 at term {}: lease is not expired (remaining ticks: {})",
                self.id,
                last.term,
                last.index,
                self.vote,
                kind_name(message.kind),
                message.from,
                message.log_term,
                message.index,
                self.term,
                self.config.election_tick - self.election_elapsed
            );
            return false;
        }
        // A poll, and a yes to one, carry the term that an election would have.
        let is_poll = match message.kind {
            Kind::PreVote => true,
            Kind::PreVoteResp => !message.reject,
            _ => false,
        };
        if !is_poll {
            event!(
                self.events,
                Info,
                "{} [term: {}] received a {} message with higher term from {} [term: {}]",
                self.id,
                self.term,
                kind_name(message.kind),
                message.from,
                message.term
            );
            let from_leader = matches!(message.kind, Kind::App | Kind::Heartbeat | Kind::Snap);
            let lead = if from_leader {
                message.from
            } else {
                MemberId::NONE
            };
            self.become_follower(message.term, lead);
        }
        true
    }

    /// Whether the leader was heard of so recently that nobody else should be elected.
    fn is_in_lease(&self) -> bool {
        self.config.check_quorum
            && !self.lead.is_none()
            && self.election_elapsed < self.config.election_tick
    }

    fn answer_older_term(&mut self, message: Message) {
        use MessageKind as Kind;
        match message.kind {
            // With these options a newer term does not spread by elections alone, so an old leader
            // has to be told; otherwise this member would stay cut off.
            Kind::Heartbeat | Kind::App if self.config.check_quorum || self.config.pre_vote => {
                self.send(Message {
                    kind: Kind::AppResp,
                    to: message.from,
                    ..Message::default()
                });
            }
            // A member that has not used polls before may be ahead in term and behind in log:
            // without an answer neither could win.
            Kind::PreVote => self.reject_vote(&message),
            Kind::StorageAppendResp => {
                // The entries may have been replaced since; a later answer covers them.
                if message.index > LogIndex(0) {
                    event!(
                        self.events,
                        Info,
                        "{} [term: {}] ignored entry appends from a {} message with lower term \
                         [term: {}]",
                        self.id,
                        self.term,
                        kind_name(message.kind),
                        message.term
                    );
                }
                // A snapshot holds what is committed, in whichever term.
                if let Some(snapshot) = message.snapshot {
                    self.applied_snapshot(snapshot.index);
                }
            }
            kind => event!(
                self.events,
                Info,
                "{} [term: {}] ignored a {} message with lower term from {} [term: {}]",
                self.id,
                self.term,
                kind_name(kind),
                message.from,
                message.term
            ),
        }
    }

    /// The own storage has written.
    fn on_appended(&mut self, message: &Message) {
        if message.index > LogIndex(0) {
            let id = EntryId {
                term: message.log_term,
                index: message.index,
            };
            self.log.unstable.stable_to(id, &mut *self.events);
        }
        if let Some(snapshot) = &message.snapshot {
            self.applied_snapshot(snapshot.index);
        }
    }

    /// The own state machine has applied.
    fn on_applied(&mut self, entries: &[Entry]) {
        if let Some(last) = entries.last() {
            self.applied_to(last.index, encoded_bytes(entries));
            self.leadership.take_off_uncommitted(data_bytes(entries));
        }
    }

    fn applied_snapshot(&mut self, index: LogIndex) {
        self.log.unstable.stable_snapshot_to(index);
        self.applied_to(index, 0);
    }

    fn applied_to(&mut self, index: LogIndex, bytes: u64) {
        let applied = index.max(self.log.applied);
        self.log.applied_to(applied, bytes);
        if self.role == Role::Leader {
            self.maybe_auto_leave();
        }
    }

    /// Votes, or answers a poll, for whoever asks: once in a term, and only for a log that holds all
    /// that this one has.
    ///
    /// A learner votes too: it may have become a voter without knowing it yet.
    fn on_vote_request(&mut self, message: &Message) {
        let is_poll = message.kind == MessageKind::PreVote;
        let may_vote = self.vote == message.from
            || (self.vote.is_none() && self.lead.is_none())
            || (is_poll && message.term > self.term);
        let theirs = EntryId {
            term: message.log_term,
            index: message.index,
        };
        if !may_vote || !self.log.is_up_to_date(theirs) {
            self.reject_vote(message);
            return;
        }
        let last = self.log.last_id();
        event!(
            self.events,
            Info,
            "{} [logterm: {}, index: {}, vote: {}] cast {} for {} [logterm: {}, index: {}] at \
             term {}",
            self.id,
            last.term,
            last.index,
            self.vote,
            kind_name(message.kind),
            message.from,
            theirs.term,
            theirs.index,
            self.term
        );
        // The term of the question: whoever polls for a term to come would ignore the present one.
        self.send(Message {
            kind: vote_answer(message.kind),
            to: message.from,
            term: message.term,
            ..Message::default()
        });
        if !is_poll {
            self.election_elapsed = 0;
            self.vote = message.from;
        }
    }

    fn reject_vote(&mut self, message: &Message) {
        let last = self.log.last_id();
        event!(
            self.events,
            Info,
            "{} [logterm: {}, index: {}, vote: {}] rejected {} from {} [logterm: {}, index: {}] at \
             term {}",
            self.id,
            last.term,
            last.index,
            self.vote,
            kind_name(message.kind),
            message.from,
            message.log_term,
            message.index,
            self.term
        );
        self.send(Message {
            kind: vote_answer(message.kind),
            to: message.from,
            term: self.term,
            reject: true,
            ..Message::default()
        });
    }

    /// Carries out a committed configuration change.
    pub(crate) fn apply_conf_change(
        &mut self,
        change: &ConfChangeV2,
    ) -> Result<ConfState, ConfChangeError> {
        let mut next = self.tracker.clone();
        next.change(change, self.log.last_index())?;
        Ok(self.switch_to(next))
    }

    /// Goes over to a configuration, and does what follows from it.
    pub(crate) fn switch_to(&mut self, tracker: Tracker) -> ConfState {
        self.tracker = tracker;
        event!(
            self.events,
            Info,
            "{} switched to configuration {}",
            self.id,
            self.tracker.config
        );
        let state = self.tracker.config.conf_state();
        if self.role == Role::Leader {
            let own = self.tracker.progress.get(&self.id);
            if own.is_some_and(|own| !own.is_learner) {
                self.lead_new_configuration();
            } else if self.config.step_down_on_removal {
                self.become_follower(self.term, MemberId::NONE);
            }
        }
        state
    }
}

/// The kind that answers a vote request or a poll.
pub(crate) fn vote_answer(question: MessageKind) -> MessageKind {
    match question {
        MessageKind::PreVote => MessageKind::PreVoteResp,
        _ => MessageKind::VoteResp,
    }
}
