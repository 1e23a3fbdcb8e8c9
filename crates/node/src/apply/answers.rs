//! Answers on their way to those who wait for them: most leave with their batch, some wait for the file
//! or for an alarm.

use std::sync::Arc;

use keelson_proto::ApiError;
use keelson_store::Outcome;

use crate::duty::DutyEvent;
use crate::links::Links;
use crate::ticket::{Asker, Outbox, Reply, Waiter};
use crate::{Ticket, duty};

/// Answers that wait until compactions are through the file.
#[derive(Debug, Default)]
struct Physical {
    started: u64,
    finished: u64,
    /// Each with the number of the last compaction that it waits for; ascending.
    waiting: Vec<(u64, Ticket, Reply)>,
}

/// The answers that the apply thread has.
pub(super) struct Answers {
    links: Arc<Links>,
    outbox: Outbox,
    physical: Physical,
    /// Answers that wait for the NOSPACE alarm, and whether it is on its way.
    after_alarm: Vec<(Ticket, Reply)>,
    alarm_proposed: bool,
}

impl Answers {
    pub(super) fn new(links: Arc<Links>, compacting: bool) -> Answers {
        Answers {
            links,
            outbox: Outbox::default(),
            physical: Physical {
                started: u64::from(compacting),
                ..Physical::default()
            },
            after_alarm: Vec::new(),
            alarm_proposed: false,
        }
    }

    /// Sends off what is ready, one parcel a serving thread.
    pub(super) fn send(&mut self) {
        self.outbox.send(&*self.links.replies);
    }

    pub(super) fn compaction_started(&mut self) {
        self.physical.started += 1;
    }

    /// One more compaction is through the file.
    pub(super) fn compaction_finished(&mut self) {
        self.physical.finished += 1;
        let finished = self.physical.finished;
        let ready = self
            .physical
            .waiting
            .partition_point(|(after, ..)| *after <= finished);
        for (_, ticket, reply) in self.physical.waiting.drain(..ready) {
            self.outbox.add(ticket, reply);
        }
    }

    /// Another state has taken the place of the one whose compactions were waited for; it may have one
    /// of its own.
    pub(super) fn compactions_replaced(&mut self, compacting: bool) {
        self.physical.finished = self.physical.started;
        for (_, ticket, reply) in self.physical.waiting.drain(..) {
            self.outbox.add(ticket, reply);
        }
        self.physical.started += u64::from(compacting);
    }

    pub(super) fn raise_no_space(&mut self) {
        if self.alarm_proposed {
            return;
        }
        tracing::warn!("message exceeded backend quota; raising alarm");
        let request = duty::no_space_alarm(self.links.identity.member);
        match self
            .links
            .propose(request, Asker::Alarm(self.links.env.clock.now()))
        {
            Ok(_) => self.alarm_proposed = true,
            Err(error) => tracing::warn!(%error, "could not raise the alarm"),
        }
    }

    /// The alarm is in force, or will not be.
    pub(super) fn alarm_done(&mut self) {
        self.alarm_proposed = false;
        for (ticket, reply) in self.after_alarm.drain(..) {
            self.outbox.add(ticket, reply);
        }
    }

    /// Takes the outcome of an entry that somebody waits for.
    pub(super) fn take(&mut self, waiter: Waiter, outcome: Outcome, raises_alarm: bool) {
        let ticket = match waiter.asker {
            Asker::Ticket(ticket) => ticket,
            Asker::Duty(duty, since) => {
                let took = self.links.env.clock.now().saturating_sub(since);
                let name = duty.name();
                self.links
                    .stats
                    .own_requests
                    .observe_named(name, true, took);
                let result = match outcome {
                    Outcome::Refused(error) => Err(error),
                    _ => Ok(()),
                };
                drop(
                    self.links
                        .duty
                        .push_always(DutyEvent::Done(duty, result), 1),
                );
                return;
            }
            Asker::Alarm(since) => {
                let took = self.links.env.clock.now().saturating_sub(since);
                let requests = &self.links.stats.own_requests;
                requests.observe_named("Alarm", true, took);
                return self.alarm_done();
            }
        };
        let waits = waiter.physical
            && matches!(
                outcome,
                Outcome::Compact { .. } | Outcome::Refused(ApiError::Compacted)
            )
            && self.physical.finished < self.physical.started;
        let reply = Reply::Applied(outcome);
        if waits {
            self.physical
                .waiting
                .push((self.physical.started, ticket, reply));
        } else if raises_alarm && self.alarm_proposed {
            self.after_alarm.push((ticket, reply));
        } else {
            self.outbox.add(ticket, reply);
        }
    }

    /// Answers what nobody will answer any more, these too.
    pub(super) fn release_all(&mut self, further: impl Iterator<Item = Ticket>) {
        let waiting = std::mem::take(&mut self.physical.waiting).into_iter();
        let waiting = waiting.map(|(_, ticket, _)| ticket).chain(further);
        let stopped = waiting.map(|ticket| (ticket, Reply::Refused(ApiError::Stopped)));
        let alarmed = std::mem::take(&mut self.after_alarm);
        for (ticket, reply) in stopped.chain(alarmed) {
            self.outbox.add(ticket, reply);
        }
        self.send();
    }
}
