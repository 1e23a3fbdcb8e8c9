//! When a linearizable read may look at the state.
//!
//! A lone voter needs no round as long as three flags hold ([`Gate`]). Everybody else asks for a read
//! index: one round serves every read that arrived before it, the next one forms meanwhile.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use keelson_proto::ids::{LogIndex, Term};

use crate::Ticket;

/// What a read barrier comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// The state may be read now.
    Passed,
    /// `Reply::Readable` comes to the ticket when it may.
    Waiting,
}

/// The lone voter's rule: it reads without a round while it leads, is the only voter, and has applied
/// an entry of its own term. All that an earlier run acknowledged is in then, and what this run
/// acknowledges is applied before its answer.
///
/// Consensus publishes the first two, and takes the second back before a change that adds
/// a voter is handed to raft; apply publishes the third.
#[derive(Debug, Default)]
pub struct Gate {
    /// The term in which this member leads; 0 while it does not.
    leads: AtomicU64,
    only_voter: AtomicBool,
    /// The term of the last applied entry.
    applied_term: AtomicU64,
}

impl Gate {
    /// Whether a read that has arrived may look at the state at once.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let leads = self.leads.load(Ordering::SeqCst);
        leads != 0
            && self.only_voter.load(Ordering::SeqCst)
            && self.applied_term.load(Ordering::SeqCst) == leads
    }

    /// The term in which this member leads, if it does.
    #[must_use]
    pub fn leads(&self) -> Option<Term> {
        let term = self.leads.load(Ordering::SeqCst);
        (term != 0).then_some(Term(term))
    }

    pub(crate) fn set_leads(&self, term: Option<Term>) {
        self.leads
            .store(term.map_or(0, |term| term.0), Ordering::SeqCst);
    }

    pub(crate) fn set_only_voter(&self, only: bool) {
        self.only_voter.store(only, Ordering::SeqCst);
    }

    pub(crate) fn set_applied_term(&self, term: Term) {
        self.applied_term.store(term.0, Ordering::SeqCst);
    }
}

/// Ticks after which a round is asked for again: 500 ms at etcd's heartbeat of 100 ms.
const RETRY_TICKS: u64 = 5;

#[derive(Debug)]
struct Round {
    /// What it was asked for with; each of them counts.
    contexts: Vec<u64>,
    tickets: Vec<Ticket>,
    begun: u64,
    asked: u64,
}

/// Rounds of read index, and reads that wait for them and then for apply. Pure.
#[derive(Debug)]
pub(crate) struct Reads {
    /// Each with the tick at which it came.
    queued: Vec<(Ticket, u64)>,
    round: Option<Round>,
    /// Waiting for apply to come to an index; ascending.
    confirmed: VecDeque<(LogIndex, Vec<Ticket>)>,
    next_context: u64,
    /// Ticks after which nobody waits any more.
    patience: u64,
}

impl Reads {
    /// `first_context` must differ from those that this member, or another one, ever used.
    pub(crate) fn new(first_context: u64, patience: u64) -> Reads {
        Reads {
            queued: Vec::new(),
            round: None,
            confirmed: VecDeque::new(),
            next_context: first_context,
            patience,
        }
    }

    pub(crate) fn push(&mut self, ticket: Ticket, tick: u64) {
        self.queued.push((ticket, tick));
    }

    /// Whether there are reads for which no round was begun, and none is on its way.
    pub(crate) fn wait_for_a_round(&self) -> bool {
        self.round.is_none() && !self.queued.is_empty()
    }

    /// Begins the next round, or asks again for the one that is on its way; to be asked for with the
    /// context that comes back.
    pub(crate) fn ask(&mut self, tick: u64) -> Option<Bytes> {
        match &mut self.round {
            Some(round) if tick < round.asked + RETRY_TICKS => return None,
            Some(round) => {
                tracing::warn!(
                    "sent-request-id" = round.contexts.last(),
                    "waiting for ReadIndex response took too long, retrying"
                );
                round.asked = tick;
            }
            None if self.queued.is_empty() => return None,
            None => {
                let tickets = self.queued.drain(..).map(|(ticket, _)| ticket).collect();
                self.round = Some(Round {
                    contexts: Vec::new(),
                    tickets,
                    begun: tick,
                    asked: tick,
                });
            }
        }
        let context = self.next_context;
        self.next_context = self.next_context.wrapping_add(1);
        if let Some(round) = &mut self.round {
            round.contexts.push(context);
        }
        Some(Bytes::copy_from_slice(&context.to_be_bytes()))
    }

    /// Takes the answer to a round.
    pub(crate) fn answered(&mut self, context: &[u8], index: LogIndex) {
        let context = <[u8; 8]>::try_from(context).map(u64::from_be_bytes);
        let of_round = |round: &mut Round| context.is_ok_and(|it| round.contexts.contains(&it));
        match self.round.take_if(of_round) {
            Some(round) => {
                // Indexes of rounds never go back: a read must not be let through early either way.
                let index = self
                    .confirmed
                    .back()
                    .map_or(index, |(last, _)| index.max(*last));
                self.confirmed.push_back((index, round.tickets));
            }
            None => tracing::warn!("ignored out-of-date read index response"),
        }
    }

    /// Gives out the reads that may look at the state as of `applied`.
    pub(crate) fn applied(&mut self, applied: LogIndex, out: &mut Vec<Ticket>) {
        while let Some((_, tickets)) = self.confirmed.pop_front_if(|(index, _)| *index <= applied) {
            out.extend(tickets);
        }
    }

    /// Whether reads wait for apply.
    pub(crate) fn awaits_apply(&self) -> bool {
        !self.confirmed.is_empty()
    }

    /// Gives out the reads of the round that was asked of a leader that is gone.
    pub(crate) fn leader_changed(&mut self) -> Vec<Ticket> {
        self.round
            .take()
            .map(|round| round.tickets)
            .unwrap_or_default()
    }

    /// Forgets reads whose handlers have given up.
    pub(crate) fn expire(&mut self, tick: u64) {
        let patience = self.patience;
        self.queued.retain(|(_, came)| tick < came + patience);
        self.round.take_if(|round| tick >= round.begun + patience);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(slot: u32) -> Ticket {
        Ticket {
            thread: 0,
            slot,
            generation: 0,
        }
    }

    #[test]
    fn the_gate_is_open_only_while_all_three_flags_hold() {
        let gate = Gate::default();
        assert!(!gate.is_open());
        gate.set_leads(Some(Term(3)));
        gate.set_only_voter(true);
        gate.set_applied_term(Term(2));
        assert!(!gate.is_open(), "nothing of its own term is applied yet");
        gate.set_applied_term(Term(3));
        assert!(gate.is_open());
        gate.set_only_voter(false);
        assert!(!gate.is_open());
        gate.set_only_voter(true);
        gate.set_leads(None);
        assert!(!gate.is_open());
    }

    #[test]
    fn one_round_serves_what_came_before_it_and_no_read_that_came_later() {
        let mut reads = Reads::new(7, 100);
        reads.push(ticket(1), 0);
        reads.push(ticket(2), 0);
        let context = reads.ask(0).unwrap();
        reads.push(ticket(3), 0);
        assert_eq!(reads.ask(0), None, "one round at a time");
        reads.answered(&context, LogIndex(5));
        let mut out = Vec::new();
        reads.applied(LogIndex(4), &mut out);
        assert!(out.is_empty(), "index 5 is not applied");
        reads.applied(LogIndex(5), &mut out);
        assert_eq!(out, [ticket(1), ticket(2)]);
        assert!(reads.ask(0).is_some());
    }

    #[test]
    fn a_round_is_asked_for_again_and_the_first_answer_counts_whichever_it_is() {
        let mut reads = Reads::new(7, 100);
        reads.push(ticket(1), 0);
        let first = reads.ask(0).unwrap();
        assert_eq!(reads.ask(RETRY_TICKS - 1), None);
        let second = reads.ask(RETRY_TICKS).unwrap();
        assert_ne!(first, second);
        reads.answered(&first, LogIndex(1));
        reads.answered(&second, LogIndex(1));
        let mut out = Vec::new();
        reads.applied(LogIndex(1), &mut out);
        assert_eq!(out, [ticket(1)]);
    }

    #[test]
    fn foreign_contexts_and_old_rounds_let_nobody_through() {
        let mut reads = Reads::new(7, 100);
        reads.push(ticket(1), 0);
        let context = reads.ask(0).unwrap();
        reads.answered(b"short", LogIndex(1));
        reads.answered(&99u64.to_be_bytes(), LogIndex(1));
        assert_eq!(reads.leader_changed(), [ticket(1)]);
        reads.answered(&context, LogIndex(1));
        let mut out = Vec::new();
        reads.applied(LogIndex(9), &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn reads_that_nobody_waits_for_are_forgotten() {
        let mut reads = Reads::new(7, 70);
        reads.push(ticket(1), 0);
        assert!(reads.ask(0).is_some());
        reads.push(ticket(2), 69);
        reads.expire(70);
        let context = reads.ask(70).unwrap();
        reads.answered(&context, LogIndex(1));
        let mut out = Vec::new();
        reads.applied(LogIndex(1), &mut out);
        assert_eq!(out, [ticket(2)]);
    }
}
