//! The consensus loop of a member: the core's inputs, its clock, and where its outputs go, a turn at a time.
//! Who takes the turns is [`Turns`](crate::turns::Turns)' business.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keelson_proto::ApiError;
use keelson_proto::entry::ConfChangeKind;
use keelson_proto::ids::{MemberId, RequestId, Term};
use keelson_proto::message::{Message, MessageKind};
use keelson_raft::AnyConfChange;

use crate::apply::{self, ApplyRequest};
use crate::beat::{Heartbeats, Start};
use crate::checker::{CHECKER, CheckEvent};
use crate::core::{Content, Core, Input, Outputs, Proposal};
use crate::duty::DutyEvent;
use crate::env::millis;
use crate::links::Links;
use crate::log::LogRequest;
use crate::ticket::{Asker, Outbox, Reply, Ticket, Waiter};
use crate::turns::Turner;

/// How long a change of the membership is remembered. etcd sets no limit: its caller waits as long as
/// it likes, and this is longer.
const CHANGE_PATIENCE: Duration = Duration::from_secs(600);

/// When ticks are due.
#[derive(Debug)]
struct Ticker {
    interval: Duration,
    next: Duration,
}

impl Ticker {
    /// Whether a tick is due, and how many were missed before it. Missed ones are not made up for: an
    /// election timeout is about what was heard while turns were taken.
    fn due(&mut self, now: Duration) -> Option<u64> {
        if now < self.next {
            return None;
        }
        let late = (now - self.next).as_millis() / self.interval.as_millis().max(1);
        self.next = if late == 0 {
            self.next + self.interval
        } else {
            now + self.interval
        };
        Some(u64::try_from(late).unwrap_or(u64::MAX))
    }
}

/// What is given turns.
pub(crate) struct Consensus {
    links: Arc<Links>,
    core: Core,
    ticker: Ticker,
    start: Start,
    heartbeats: Heartbeats,
    led: bool,
}

impl Consensus {
    pub(crate) fn new(links: Arc<Links>, core: Core) -> Consensus {
        let interval = links.config.heartbeat;
        let now = links.env.clock.now();
        let (next, config) = (now + interval, &links.config);
        let start = Start::new(now, config.election_ticks(), config.election_at_once);
        Consensus {
            links,
            core,
            ticker: Ticker { interval, next },
            start,
            heartbeats: Heartbeats::default(),
            led: false,
        }
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// Before the first turn: what the core has to do before anything comes in, such as an election.
    pub(crate) fn begin(&mut self) -> Result<(), crate::Error> {
        let outputs = self.core.handle([])?;
        self.carry_out(outputs);
        Ok(())
    }

    /// Ticks that a start may skip.
    fn skipped(&mut self) -> u32 {
        let links = &self.links;
        let connected = || {
            let members = links.shared.members();
            let others = links.other_members(&members).into_iter();
            others
                .filter(|(id, _)| links.peers.active_since(*id).is_some())
                .count()
        };
        let has_leader = !links.published.leader().is_none();
        let now = links.env.clock.now();
        let skipped = self.start.skip(now, has_leader, connected);
        if skipped > 0 {
            tracing::info!(
                "local-member-id" = %links.identity.member,
                "forward-ticks" = skipped,
                "forward-duration" = ?(skipped * self.ticker.interval),
                "initialized peer connections; fast-forwarding election ticks"
            );
        }
        skipped
    }

    /// Counts heartbeats that go out late, and warns of them.
    fn watch_heartbeats(&mut self, messages: &[Message]) {
        let (now, interval) = (self.now(), self.ticker.interval);
        for message in messages
            .iter()
            .filter(|it| it.kind == MessageKind::Heartbeat)
        {
            let Some(late) = self.heartbeats.sent(message.to, now, interval) else {
                continue;
            };
            self.links.stats.heartbeat_failures.add(1);
            tracing::warn!(
                to = %message.to,
                "heartbeat-interval" = ?interval,
                "expected-duration" = ?(2 * interval),
                "exceeded-duration" = ?late,
                "leader failed to send out heartbeat on time; took too long, leader is overloaded \
                 likely from slow disk"
            );
        }
    }

    /// When a turn is due even if nothing comes.
    pub(crate) fn next(&self) -> Duration {
        self.ticker.next
    }

    fn now(&self) -> Duration {
        self.links.env.clock.now()
    }

    fn tick(&self, missed: u64, interval: Duration) {
        expire_waiters(&self.links);
        self.links
            .published
            .ticked
            .store(millis(self.now()), Ordering::Release);
        if missed > 0 {
            self.links.stats.missed_ticks.add(missed);
            tracing::warn!(
                missed,
                "heartbeat-interval" = ?interval,
                "{} A tick missed to fire. Node blocks too long!",
                self.links.identity.member
            );
        }
    }

    /// What others must know before the core sees the inputs.
    fn prepare(&self, inputs: &[Input]) {
        for input in inputs {
            match input {
                Input::Propose(proposal) => {
                    if let Some(waiter) = proposal.waiter {
                        self.remember(proposal, waiter);
                    }
                }
                Input::ConfChange { change, .. } if adds_voter(change) => {
                    self.links.gate.set_only_voter(false);
                }
                Input::Step(message) => self.links.inbound.took(message),
                _ => {}
            }
        }
    }

    fn remember(&self, proposal: &Proposal, waiter: Waiter) {
        let (now, waiters) = (self.now(), &self.links.waiters);
        match proposal.content {
            Content::Request(_) => {
                let until = now + self.links.config.waiter_patience();
                waiters.insert(proposal.id, waiter, until);
            }
            Content::ConfChange(_) => {
                waiters.insert_change(proposal.id, waiter, now + CHANGE_PATIENCE)
            }
        }
    }

    fn carry_out(&mut self, outputs: Outputs) {
        let links = self.links.clone();
        self.publish();
        for append in outputs.appends {
            let weight = append.entries.len() as u64;
            drop(links.log.push_always(LogRequest::Append(append), weight));
        }
        if !outputs.messages.is_empty() {
            self.watch_heartbeats(&outputs.messages);
            links.peers.send(outputs.messages);
        }
        for message in outputs.snapshots {
            let request = ApplyRequest::SendSnapshot(Box::new(message));
            drop(links.apply.push_always(request, 1));
        }
        if let Some(snapshot) = outputs.install {
            let request = ApplyRequest::Install(Box::new(snapshot));
            drop(links.apply.push_always(request, 1));
        }
        if !outputs.apply.is_empty() {
            let weight = outputs.apply.len() as u64;
            let long = !apply::is_short(&outputs.apply);
            let entries = ApplyRequest::Entries(outputs.apply);
            // What is short is seen to by whoever takes this turn, after it (`seats.rs`).
            drop(links.apply.push_quietly(entries, weight, || long));
        }
        links.proposals.release(outputs.released_bytes);
        let mut outbox = Outbox::default();
        for ticket in outputs.readable {
            answer_read(&links, &mut outbox, ticket, Ok(()));
        }
        for ticket in outputs.unreadable {
            answer_read(&links, &mut outbox, ticket, Err(ApiError::LeaderChanged));
        }
        for (ticket, progress) in outputs.progress {
            outbox.add(ticket, Reply::Progress(progress));
        }
        for (id, error) in outputs.dropped {
            refuse(&links, &mut outbox, id, error);
        }
        outbox.send(&*links.replies);
    }

    /// Tells everybody who leads. Before what follows from it reaches the log or apply.
    fn publish(&mut self) {
        let links = &self.links;
        let view = self.core.view();
        let before = links.published.leader();
        links.published.store(&view, millis(self.now()));
        links.inbound.set_held(self.core.log_bytes());
        if before != view.leader {
            links.leader_changed();
            tell_leader(links.identity.member, before, view.leader, view.term);
        }
        links
            .awaits_apply
            .store(self.core.awaits_apply(), Ordering::SeqCst);
        links.gate.set_only_voter(view.only_voter);
        links.gate.set_leads(view.leads.then_some(view.term));
        if self.led && !view.leads {
            // Apply promotes under the same lock, and looks at the gate there.
            links.shared.deadlines().demote();
        }
        if self.led != view.leads {
            self.led = view.leads;
            self.heartbeats.clear();
            drop(links.duty.push_always(DutyEvent::Leads(view.leads), 1));
            drop(links.check.push_always(CheckEvent::Leads(view.leads), 1));
        }
    }
}

impl Turner for Consensus {
    type Input = Input;

    /// Takes in what came, and a tick if one is due.
    fn turn(&mut self, inputs: &mut Vec<Input>) -> Result<(), crate::Error> {
        if let Some(missed) = self.ticker.due(self.now()) {
            self.tick(missed, self.ticker.interval);
            inputs.extend((0..=self.skipped()).map(|_| Input::Tick));
        }
        self.prepare(inputs);
        let outputs = self.core.handle(inputs.drain(..))?;
        self.carry_out(outputs);
        Ok(())
    }

    fn patience(&self) -> Duration {
        self.next().saturating_sub(self.now())
    }

    fn fail(self, error: &crate::Error) {
        self.links.fail(error);
    }

    fn finish(&mut self) {
        if !self.links.is_killed() {
            let outputs = self.core.flush();
            self.carry_out(outputs);
        }
    }
}

/// Answers a read barrier, of a handler or of the member itself.
fn answer_read(links: &Links, outbox: &mut Outbox, ticket: Ticket, result: Result<(), ApiError>) {
    if ticket.thread == CHECKER {
        let event = CheckEvent::Barrier(ticket, result);
        return drop(links.check.push_always(event, 1));
    }
    let reply = result.map_or_else(Reply::Refused, |()| Reply::Readable);
    outbox.add(ticket, reply);
}

fn adds_voter(change: &AnyConfChange) -> bool {
    match change {
        AnyConfChange::V1(change) => change.kind == ConfChangeKind::AddNode,
        AnyConfChange::V2(change) => {
            let mut kinds = change.changes.iter().map(|change| change.kind);
            kinds.any(|kind| kind == ConfChangeKind::AddNode)
        }
    }
}

/// Tells of another leader, in the words of etcd's raft and under its logger.
fn tell_leader(member: MemberId, before: MemberId, now: MemberId, term: Term) {
    match (before.is_none(), now.is_none()) {
        (true, _) => tracing::info!(
            target: "raft",
            "raft.node: {member} elected leader {now} at term {term}"
        ),
        (false, true) => tracing::info!(
            target: "raft",
            "raft.node: {member} lost leader {before} at term {term}"
        ),
        (false, false) => tracing::info!(
            target: "raft",
            "raft.node: {member} changed leader from {before} to {now} at term {term}"
        ),
    }
}

/// Answers a proposal that will not be in the log.
fn refuse(links: &Links, outbox: &mut Outbox, id: RequestId, error: ApiError) {
    if let Some(waiter) = links.waiters.remove(id) {
        refuse_waiter(links, outbox, waiter, error);
    } else {
        links.stats.proposals_failed.add(1);
    }
}

fn refuse_waiter(links: &Links, outbox: &mut Outbox, waiter: Waiter, error: ApiError) {
    links.stats.proposals_failed.add(1);
    match waiter.asker {
        Asker::Ticket(ticket) => outbox.add(ticket, Reply::Refused(error)),
        Asker::Duty(duty, _) => drop(links.duty.push_always(DutyEvent::Done(duty, Err(error)), 1)),
        Asker::Alarm(_) => drop(links.apply.push_always(ApplyRequest::AlarmDropped, 1)),
    }
}

/// Gives up requests that were passed on and never came back.
fn expire_waiters(links: &Links) {
    let expired = links.waiters.expire(links.env.clock.now());
    if expired.is_empty() {
        return;
    }
    let mut outbox = Outbox::default();
    for waiter in expired {
        refuse_waiter(links, &mut outbox, waiter, ApiError::Timeout);
    }
    outbox.send(&*links.replies);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_keep_their_beat_and_missed_ones_are_counted_not_made_up_for() {
        let millis = Duration::from_millis;
        let mut ticker = Ticker {
            interval: millis(100),
            next: millis(100),
        };
        assert_eq!(ticker.due(millis(99)), None);
        assert_eq!(ticker.due(millis(130)), Some(0));
        assert_eq!(ticker.due(millis(199)), None);
        assert_eq!(ticker.due(millis(200)), Some(0));
        assert_eq!(ticker.due(millis(650)), Some(3));
        assert_eq!(ticker.due(millis(749)), None);
        assert_eq!(ticker.due(millis(750)), Some(0));
    }
}
