//! The way in for other members: messages, and what became of those to them.

use std::sync::atomic::{AtomicU64, Ordering};

use keelson_proto::ids::MemberId;
use keelson_proto::message::{Message, MessageKind};
use thiserror::Error;

use crate::checker::CheckEvent;
use crate::core::Input;
use crate::corrupt::PeerAnswer;
use crate::mailbox::Refused;
use crate::{Node, budget};

/// Why a message of another member was not taken.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum StepRefused {
    /// Its sender was removed from the cluster, for ever.
    #[error("cannot process message from removed member")]
    Removed,
    /// It is for another member.
    #[error("cannot process message to mismatch member")]
    OtherMember,
    /// It brings a snapshot, and has not come with the file.
    #[error("cannot process a snapshot without its database")]
    NoDatabase,
    /// There is no room for what it brings; its sender sends it again.
    #[error("too many messages wait")]
    Busy,
    /// The member stops.
    #[error("etcdserver: server stopped")]
    Stopped,
}

/// What other members have sent and this one holds, in bytes of entries.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    /// On its way to consensus.
    waiting: AtomicU64,
    /// What consensus holds.
    held: AtomicU64,
}

impl Inbound {
    /// Takes in a message if there is room. Only entries need any: heartbeats, votes and answers
    /// pass always.
    fn admit(&self, message: &Message) -> bool {
        let bytes = cost(message);
        if bytes == 0 {
            return true;
        }
        let before = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let held = self.held.load(Ordering::Relaxed);
        // One always fits where nothing waits, or a large one would never come in.
        let fits = before == 0 && held <= budget::INBOUND_BYTES
            || before + held + bytes <= budget::INBOUND_BYTES;
        if !fits {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Consensus has taken a message over.
    pub(crate) fn took(&self, message: &Message) {
        self.waiting.fetch_sub(cost(message), Ordering::Relaxed);
    }

    pub(crate) fn set_held(&self, bytes: u64) {
        self.held.store(bytes, Ordering::Relaxed);
    }
}

/// What a message brings into memory.
fn cost(message: &Message) -> u64 {
    match message.kind {
        MessageKind::App | MessageKind::Prop => message
            .entries
            .iter()
            .map(|entry| entry.data.len() as u64)
            .sum(),
        _ => 0,
    }
}

impl Node {
    /// Takes a message of another member, and a turn of consensus for it. Never blocks.
    ///
    /// A message with a snapshot belongs to [`Node::receive_snapshot`](crate::Node::receive_snapshot).
    ///
    /// # Errors
    ///
    /// [`StepRefused`]; nothing was changed.
    pub fn step(&self, message: Message) -> Result<(), StepRefused> {
        self.step_later(message)?;
        self.take_turn();
        Ok(())
    }

    /// As [`Node::step`], but leaves the turn to the caller: [`Node::take_turn`], after the last one of
    /// the messages that came together.
    ///
    /// # Errors
    ///
    /// As [`Node::step`].
    pub fn step_later(&self, message: Message) -> Result<(), StepRefused> {
        let links = self.links();
        if keelson_raft::is_storage_thread(message.from) {
            // Own threads have their own way in.
            return Err(StepRefused::OtherMember);
        }
        if message.to != links.identity.member {
            tracing::warn!(
                "local-member-id" = %links.identity.member,
                from = %message.from,
                to = %message.to,
                "rejected Raft message to mismatch member"
            );
            return Err(StepRefused::OtherMember);
        }
        if self.is_removed(message.from) {
            tracing::warn!(
                "local-member-id" = %links.identity.member,
                "removed-member-id" = %message.from,
                "rejected Raft message from removed member"
            );
            return Err(StepRefused::Removed);
        }
        if message.kind == MessageKind::Snap {
            // Without its file it would leave this member with a hole.
            return Err(StepRefused::NoDatabase);
        }
        if !links.inbound.admit(&message) {
            return Err(StepRefused::Busy);
        }
        let input = Input::Step(message);
        match links.consensus.try_push_quietly(input, 0, || false) {
            Ok(()) => Ok(()),
            Err(Refused::Full(input)) => {
                self.gave_back(&input);
                Err(StepRefused::Busy)
            }
            Err(Refused::Closed(input)) => {
                self.gave_back(&input);
                Err(StepRefused::Stopped)
            }
        }
    }

    fn gave_back(&self, input: &Input) {
        if let Input::Step(message) = input {
            self.links().inbound.took(message);
        }
    }

    /// Says that a message to a member was not delivered.
    pub fn report_unreachable(&self, member: MemberId) {
        drop(
            self.links()
                .consensus
                .push_always(Input::Unreachable(member), 0),
        );
    }

    /// Hands over the answer to [`Peers::ask_hash`](crate::Peers::ask_hash).
    pub fn report_hash(&self, round: u64, member: MemberId, answer: PeerAnswer) {
        let event = CheckEvent::Answer(round, member, answer);
        drop(self.links().check.push_always(event, 1));
    }

    /// Whether a member was removed from the cluster: nobody speaks with it any more.
    #[must_use]
    pub fn is_removed(&self, member: MemberId) -> bool {
        self.shared().members().is_removed(member)
    }
}

#[cfg(test)]
mod tests {
    use keelson_proto::entry::Entry;

    use super::*;

    fn append(bytes: u64) -> Message {
        Message {
            kind: MessageKind::App,
            entries: vec![Entry {
                data: vec![0; usize::try_from(bytes).unwrap()].into(),
                ..Entry::default()
            }],
            ..Message::default()
        }
    }

    #[test]
    fn entries_are_let_in_up_to_the_budget_and_heartbeats_always() {
        let inbound = Inbound::default();
        let third = append(budget::INBOUND_BYTES / 3);
        assert!((0..3).all(|_| inbound.admit(&third)));
        assert!(!inbound.admit(&third));
        let heartbeat = Message {
            kind: MessageKind::Heartbeat,
            ..Message::default()
        };
        assert!(inbound.admit(&heartbeat));
        inbound.took(&third);
        assert!(inbound.admit(&third));
    }

    #[test]
    fn what_consensus_holds_counts_and_a_large_message_fits_alone() {
        let inbound = Inbound::default();
        let large = append(budget::INBOUND_BYTES + 1);
        assert!(inbound.admit(&large));
        inbound.took(&large);
        inbound.set_held(budget::INBOUND_BYTES + 1);
        assert!(!inbound.admit(&append(1)));
        inbound.set_held(0);
        assert!(inbound.admit(&append(1)));
    }
}
