//! Elections: polls before them, requests for votes, and their count.

use keelson_proto::ids::MemberId;
use keelson_proto::message::{Message, MessageKind};

use crate::describe::{kind_name, role_name};
use crate::events::event;
use crate::quorum::VoteResult;
use crate::raft::{CAMPAIGN_TRANSFER, Raft, Role, vote_answer};
use crate::{Error, Storage};

/// Why and how a member campaigns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Campaign {
    /// It polls: nobody's term changes.
    PreElection,
    /// It asks for votes.
    Election,
    /// It asks for votes because the leader told it to.
    Transfer,
}

impl<S: Storage> Raft<S> {
    fn become_candidate(&mut self) {
        assert!(
            self.role != Role::Leader,
            "invalid transition [leader -> candidate]"
        );
        self.reset(self.term.next());
        self.vote = self.id;
        self.role = Role::Candidate;
        event!(
            self.events,
            Info,
            "{} became candidate at term {}",
            self.id,
            self.term
        );
    }

    /// Neither term nor vote change: a poll binds nobody.
    fn become_pre_candidate(&mut self) {
        assert!(
            self.role != Role::Leader,
            "invalid transition [leader -> pre-candidate]"
        );
        self.tracker.reset_votes();
        self.lead = MemberId::NONE;
        self.role = Role::PreCandidate;
        event!(
            self.events,
            Info,
            "{} became pre-candidate at term {}",
            self.id,
            self.term
        );
    }

    /// Campaigns, unless this member leads, may not lead, or does not yet know all voters.
    pub(crate) fn start_campaign(&mut self, campaign: Campaign) {
        if self.role == Role::Leader {
            event!(
                self.events,
                Debug,
                "{} ignoring MsgHup because already leader",
                self.id
            );
        } else if !self.is_promotable() {
            event!(
                self.events,
                Warn,
                "{} is unpromotable and can not campaign",
                self.id
            );
        } else if self.log.has_unapplied_conf_change() {
            event!(
                self.events,
                Warn,
                "{} cannot campaign at term {} since there are still pending configuration changes \
                 to apply",
                self.id,
                self.term
            );
        } else {
            event!(
                self.events,
                Info,
                "{} is starting a new election at term {}",
                self.id,
                self.term
            );
            self.campaign(campaign);
        }
    }

    /// Asks every voter, itself included: its own answer counts when it is durable.
    fn campaign(&mut self, campaign: Campaign) {
        let (question, term) = if campaign == Campaign::PreElection {
            self.become_pre_candidate();
            (MessageKind::PreVote, self.term.next())
        } else {
            self.become_candidate();
            (MessageKind::Vote, self.term)
        };
        let last = self.log.last_id();
        for to in self.tracker.config.voters.ids() {
            if to == self.id {
                self.send(Message {
                    kind: vote_answer(question),
                    to,
                    term,
                    ..Message::default()
                });
                continue;
            }
            event!(
                self.events,
                Info,
                "{} [logterm: {}, index: {}] sent {} request to {to} at term {}",
                self.id,
                last.term,
                last.index,
                kind_name(question),
                self.term
            );
            let context = match campaign {
                Campaign::Transfer => CAMPAIGN_TRANSFER,
                Campaign::PreElection | Campaign::Election => &[],
            };
            self.send(Message {
                kind: question,
                to,
                term,
                index: last.index,
                log_term: last.term,
                context: bytes::Bytes::from_static(context),
                ..Message::default()
            });
        }
    }

    pub(crate) fn step_candidate(&mut self, message: Message) -> Result<(), Error> {
        use MessageKind as Kind;
        let counted = match self.role {
            Role::PreCandidate => Kind::PreVoteResp,
            _ => Kind::VoteResp,
        };
        match message.kind {
            Kind::Prop => {
                event!(
                    self.events,
                    Info,
                    "{} no leader at term {}; dropping proposal",
                    self.id,
                    self.term
                );
                return Err(Error::ProposalDropped);
            }
            Kind::App | Kind::Heartbeat | Kind::Snap => {
                // Somebody else has won this term.
                self.become_follower(message.term, message.from);
                return self.step_follower(message);
            }
            kind if kind == counted => self.on_vote(&message),
            Kind::TimeoutNow => event!(
                self.events,
                Debug,
                "{} [term {} state {}] ignored MsgTimeoutNow from {}",
                self.id,
                self.term,
                role_name(self.role),
                message.from
            ),
            _ => {}
        }
        Ok(())
    }

    fn on_vote(&mut self, message: &Message) {
        let kind = kind_name(message.kind);
        let rejection = if message.reject { " rejection" } else { "" };
        event!(
            self.events,
            Info,
            "{} received {kind}{rejection} from {} at term {}",
            self.id,
            message.from,
            self.term
        );
        self.tracker.record_vote(message.from, !message.reject);
        let (granted, rejected, result) = self.tracker.tally_votes();
        event!(
            self.events,
            Info,
            "{} has received {granted} {kind} votes and {rejected} vote rejections",
            self.id
        );
        match result {
            VoteResult::Won if self.role == Role::PreCandidate => self.campaign(Campaign::Election),
            VoteResult::Won => {
                self.become_leader();
                self.broadcast_append();
            }
            VoteResult::Lost => self.become_follower(self.term, MemberId::NONE),
            VoteResult::Pending => {}
        }
    }
}
