//! A follower: it takes what the leader sends, and passes on what only a leader can do.

use keelson_proto::entry::Snapshot;
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};

use crate::candidate::Campaign;
use crate::events::event;
use crate::log::EntryId;
use crate::raft::{Raft, Role};
use crate::read::ReadState;
use crate::{Error, ReadOnlyOption, Storage};

impl<S: Storage> Raft<S> {
    pub(crate) fn step_follower(&mut self, message: Message) -> Result<(), Error> {
        use MessageKind as Kind;
        match message.kind {
            Kind::App | Kind::Heartbeat | Kind::Snap => {
                self.election_elapsed = 0;
                self.lead = message.from;
                match message.kind {
                    Kind::App => self.on_append(message),
                    Kind::Heartbeat => self.on_heartbeat(message),
                    _ => self.on_snapshot(message)?,
                }
            }
            Kind::Prop => self.forward_proposal(message)?,
            Kind::TransferLeader => self.forward(message, "leader transfer msg"),
            Kind::ReadIndex => self.forward(message, "index reading msg"),
            Kind::ReadIndexResp => self.on_read_index(message),
            Kind::TimeoutNow => {
                event!(
                    self.events,
                    Info,
                    "{} [term {}] received MsgTimeoutNow from {} and starts an election to get \
                     leadership.",
                    self.id,
                    self.term,
                    message.from
                );
                // No poll: the leader itself wants it, so nobody is disturbed.
                self.start_campaign(Campaign::Transfer);
            }
            _ => {}
        }
        Ok(())
    }

    fn forward_proposal(&mut self, message: Message) -> Result<(), Error> {
        if !self.lead.is_none() && self.config.disable_proposal_forwarding {
            event!(
                self.events,
                Info,
                "{} not forwarding to leader {} at term {}; dropping proposal",
                self.id,
                self.lead,
                self.term
            );
            return Err(Error::ProposalDropped);
        }
        let has_leader = !self.lead.is_none();
        self.forward(message, "proposal");
        if has_leader {
            Ok(())
        } else {
            Err(Error::ProposalDropped)
        }
    }

    /// Passes a message on to the leader, or drops it.
    fn forward(&mut self, mut message: Message, what: &str) {
        if self.lead.is_none() {
            event!(
                self.events,
                Info,
                "{} no leader at term {}; dropping {what}",
                self.id,
                self.term
            );
            return;
        }
        message.to = self.lead;
        message.term = Term(0);
        self.send(message);
    }

    fn on_read_index(&mut self, message: Message) {
        match <[_; 1]>::try_from(message.entries) {
            Ok([entry]) => self.read_states.push(ReadState {
                index: message.index,
                context: entry.data,
            }),
            Err(entries) => event!(
                self.events,
                Error,
                "{} invalid format of MsgReadIndexResp from {}, entries count: {}",
                self.id,
                message.from,
                entries.len()
            ),
        }
    }

    /// Lets go of the leader, so that this member votes for whoever comes next.
    pub(crate) fn forget_leader(&mut self) {
        if self.role != Role::Follower {
            return;
        }
        if self.config.read_only == ReadOnlyOption::LeaseBased {
            event!(
                self.events,
                Error,
                "ignoring MsgForgetLeader due to ReadOnlyLeaseBased"
            );
        } else if !self.lead.is_none() {
            event!(
                self.events,
                Info,
                "{} forgetting leader {} at term {}",
                self.id,
                self.lead,
                self.term
            );
            self.lead = MemberId::NONE;
        }
    }

    fn on_append(&mut self, message: Message) {
        let Message { from, index, .. } = message;
        let previous = EntryId {
            term: message.log_term,
            index,
        };
        if index < self.log.committed {
            self.accept_append(from, self.log.committed);
            return;
        }
        let appended =
            self.log
                .maybe_append(previous, message.entries, message.commit, &mut *self.events);
        if let Some(last) = appended {
            self.accept_append(from, last);
            return;
        }
        event!(
            self.events,
            Debug,
            "{} [logterm: {}, index: {index}] rejected MsgApp [logterm: {}, index: {index}] from \
             {from}",
            self.id,
            self.log.term_or_zero(index),
            previous.term
        );
        // The leader's terms up to `index` are at most `previous.term`, so the logs can only agree
        // where ours are too: a whole run of lost entries is passed over in one answer.
        let upto = index.min(self.log.last_index());
        let (hint, term) = self.log.find_conflict_by_term(upto, previous.term);
        self.send(Message {
            kind: MessageKind::AppResp,
            to: from,
            index,
            reject: true,
            reject_hint: hint,
            log_term: term,
            ..Message::default()
        });
    }

    fn accept_append(&mut self, to: MemberId, index: LogIndex) {
        self.send(Message {
            kind: MessageKind::AppResp,
            to,
            index,
            ..Message::default()
        });
    }

    fn on_heartbeat(&mut self, message: Message) {
        self.log.commit_to(message.commit);
        self.send(Message {
            kind: MessageKind::HeartbeatResp,
            to: message.from,
            context: message.context,
            ..Message::default()
        });
    }

    fn on_snapshot(&mut self, message: Message) -> Result<(), Error> {
        let snapshot = message.snapshot.map(|boxed| *boxed).unwrap_or_default();
        let Snapshot { index, term, .. } = snapshot;
        let restored = self.restore(snapshot)?;
        let verb = if restored { "restored" } else { "ignored" };
        event!(
            self.events,
            Info,
            "{} [commit: {}] {verb} snapshot [index: {index}, term: {term}]",
            self.id,
            self.log.committed
        );
        let reached = if restored {
            self.log.last_index()
        } else {
            self.log.committed
        };
        self.accept_append(message.from, reached);
        Ok(())
    }

    /// Starts over from a snapshot, unless it brings nothing new; whether it did.
    fn restore(&mut self, snapshot: Snapshot) -> Result<bool, Error> {
        assert!(
            self.role == Role::Follower,
            "only a follower takes a snapshot"
        );
        if snapshot.index <= self.log.committed {
            return Ok(false);
        }
        let Snapshot { index, term, .. } = snapshot;
        let members = &snapshot.conf_state;
        let has_us = [&members.voters, &members.learners, &members.voters_outgoing]
            .iter()
            .any(|ids| ids.contains(&self.id));
        if !has_us {
            event!(
                self.events,
                Warn,
                "{} attempted to restore snapshot but it is not in the ConfState {members:?}; \
                 should never happen",
                self.id
            );
            return Ok(false);
        }

        let last = self.log.last_id();
        if self.log.matches(EntryId { term, index }) {
            event!(
                self.events,
                Info,
                "{} [commit: {}, lastindex: {}, lastterm: {}] fast-forwarded commit to snapshot \
                 [index: {index}, term: {term}]",
                self.id,
                self.log.committed,
                last.index,
                last.term
            );
            self.log.commit_to(index);
            return Ok(false);
        }

        let tracker = self
            .tracker
            .restored(members, index)
            .map_err(|source| Error::BadConfState { source })?;
        self.log.restore(snapshot, &mut *self.events);
        self.restored = index;
        self.switch_to(tracker);
        let last = self.log.last_id();
        event!(
            self.events,
            Info,
            "{} [commit: {}, lastindex: {}, lastterm: {}] restored snapshot [index: {index}, term: \
             {term}]",
            self.id,
            self.log.committed,
            last.index,
            last.term
        );
        Ok(true)
    }
}
