//! Who is in the configuration, how far each member is, and how it voted.

use std::collections::{BTreeMap, BTreeSet};

use keelson_proto::entry::ConfState;
use keelson_proto::ids::{LogIndex, MemberId};
use smallvec::SmallVec;

use crate::inflights::Inflights;
use crate::progress::Progress;
use crate::quorum::{JointConfig, VoteResult};

/// Who votes and who learns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The voters; two sets while a change is under way.
    pub voters: JointConfig,
    /// Members that are sent the log and do not vote. Never voters of either half.
    pub learners: BTreeSet<MemberId>,
    /// Outgoing voters that become learners once the joint configuration is left.
    pub learners_next: BTreeSet<MemberId>,
    /// Whether the leader leaves the joint configuration by itself.
    pub auto_leave: bool,
}

impl Configuration {
    /// Whether a change is under way.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.voters.outgoing.0.is_empty()
    }

    /// The form in which it is stored and sent, each list sorted.
    #[must_use]
    pub fn conf_state(&self) -> ConfState {
        let list = |ids: &BTreeSet<MemberId>| ids.iter().copied().collect();
        ConfState {
            voters: list(&self.voters.incoming.0),
            learners: list(&self.learners),
            voters_outgoing: list(&self.voters.outgoing.0),
            learners_next: list(&self.learners_next),
            auto_leave: self.auto_leave,
        }
    }
}

/// The configuration and what is known of its members.
///
/// Invariant: every member of the configuration has a progress.
#[derive(Clone, Debug)]
pub struct Tracker {
    pub(crate) config: Configuration,
    pub(crate) progress: BTreeMap<MemberId, Progress>,
    votes: BTreeMap<MemberId, bool>,
    inflight_messages_max: usize,
    inflight_bytes_max: u64,
}

/// Member ids, on the stack for the usual sizes.
pub(crate) type Ids = SmallVec<[MemberId; 8]>;

impl Tracker {
    /// An empty configuration, with the limits of the windows that its members will have (bytes: 0
    /// for none).
    #[must_use]
    pub fn new(inflight_messages_max: usize, inflight_bytes_max: u64) -> Tracker {
        Tracker {
            config: Configuration::default(),
            progress: BTreeMap::new(),
            votes: BTreeMap::new(),
            inflight_messages_max,
            inflight_bytes_max,
        }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Configuration {
        &self.config
    }

    /// What is known of each member.
    #[must_use]
    pub fn progress(&self) -> &BTreeMap<MemberId, Progress> {
        &self.progress
    }

    /// A tracker with the same limits and nobody in it.
    pub(crate) fn emptied(&self) -> Tracker {
        Tracker::new(self.inflight_messages_max, self.inflight_bytes_max)
    }

    pub(crate) fn new_progress(&self, next_index: LogIndex, is_learner: bool) -> Progress {
        let window = Inflights::new(self.inflight_messages_max, self.inflight_bytes_max);
        Progress::new(next_index, window, is_learner)
    }

    /// Whether there is exactly one voter.
    pub(crate) fn is_singleton(&self) -> bool {
        self.config.voters.incoming.0.len() == 1 && !self.config.is_joint()
    }

    /// Everybody but `own`, voters and learners, by id.
    pub(crate) fn others(&self, own: MemberId) -> Ids {
        let ids = self.progress.keys().copied();
        ids.filter(|&id| id != own).collect()
    }

    /// The largest index that a quorum is known to have.
    pub(crate) fn committed(&self) -> LogIndex {
        let has = |id| {
            self.progress
                .get(&id)
                .map(|progress| progress.match_index.0)
        };
        LogIndex(self.config.voters.committed(has))
    }

    /// Whether a quorum was heard of since the last check.
    pub(crate) fn is_quorum_active(&self) -> bool {
        let active = |id| {
            let progress = self
                .progress
                .get(&id)
                .filter(|progress| !progress.is_learner);
            progress.map(|progress| progress.recent_active)
        };
        self.config.voters.vote_result(active) == VoteResult::Won
    }

    pub(crate) fn reset_votes(&mut self) {
        self.votes.clear();
    }

    /// Counts a vote; the first one of a member stands.
    pub(crate) fn record_vote(&mut self, id: MemberId, granted: bool) {
        self.votes.entry(id).or_insert(granted);
    }

    /// How many said yes and no, and how the vote stands.
    pub(crate) fn tally_votes(&self) -> (usize, usize, VoteResult) {
        let (mut granted, mut rejected) = (0, 0);
        for (id, progress) in &self.progress {
            match self.votes.get(id) {
                Some(true) if !progress.is_learner => granted += 1,
                Some(false) if !progress.is_learner => rejected += 1,
                _ => {}
            }
        }
        let result = self
            .config
            .voters
            .vote_result(|id| self.votes.get(&id).copied());
        (granted, rejected, result)
    }
}
