//! Who waits for what: tickets of serving threads, and the way an answer finds back.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use keelson_proto::ApiError;
use keelson_proto::ids::RequestId;
use keelson_store::{Durable, EventRange, Outcome};

use crate::core::PeerProgress;

/// A place in a serving thread where an answer is waited for. What it means is the serving side's
/// business: an answer to a ticket that was given up finds another generation there and is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// The serving thread.
    pub thread: u16,
    /// The slot in it.
    pub slot: u32,
    /// Which use of the slot.
    pub generation: u32,
}

/// An answer.
pub enum Reply {
    /// The request was applied, or refused by apply.
    Applied(Outcome),
    /// A read barrier has passed: the state may be read.
    Readable,
    /// Everything that was applied when it was asked for is in the file.
    Durable(Durable),
    /// An order was carried out.
    Done,
    /// An order was not carried out, and why: nothing was changed.
    Failed(String),
    /// How far the members are, by what this one knows as their leader; empty if it does not lead.
    Progress(Vec<PeerProgress>),
    /// The request will not be applied, or nobody knows whether it will.
    Refused(ApiError),
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reply::Applied(outcome) => f.debug_tuple("Applied").field(outcome).finish(),
            Reply::Readable => f.write_str("Readable"),
            Reply::Durable(durable) => f
                .debug_tuple("Durable")
                .field(&durable.boundary.index)
                .finish(),
            Reply::Done => f.write_str("Done"),
            Reply::Failed(reason) => f.debug_tuple("Failed").field(reason).finish(),
            Reply::Progress(progress) => f.debug_tuple("Progress").field(progress).finish(),
            Reply::Refused(error) => f.debug_tuple("Refused").field(error).finish(),
        }
    }
}

/// Takes answers back to the serving threads.
pub trait Replies: Send + Sync + 'static {
    /// Takes the answers of one batch for one serving thread; called from the node's threads and
    /// from whichever thread takes a turn of consensus, and must not block.
    fn deliver(&self, thread: u16, replies: Vec<(Ticket, Reply)>);

    /// Something that a serving thread has handed over waits for a turn of consensus; whether that thread
    /// takes one soon, by [`Node::take_turn`](crate::Node::take_turn): at best when it has handed over
    /// all that has come for it. If not, another thread is woken for it at once. Must not block.
    fn asked(&self, thread: u16) -> bool {
        let _ = thread;
        false
    }
}

/// Is told what apply has done, beside the answers. Called by whoever takes a turn of apply; must not block.
pub trait Watchers: Send + Sync + 'static {
    /// The records that a batch made.
    fn events(&self, batch: EventRange);

    /// A simple token is this user's from now on. Called in the order of the log with
    /// [`Watchers::tokens_revoked`], before whoever logged in is answered.
    fn token_assigned(&self, user: &str, token: &str) {
        let _ = (user, token);
    }

    /// The state went on to this revision by a snapshot of the leader: no batch brings what lies between,
    /// and every watcher reads it from the file.
    fn restored(&self, revision: i64);

    /// Simple tokens of this user, or of every user, are void.
    fn tokens_revoked(&self, user: Option<&str>) {
        let _ = user;
    }
}

/// Who waits for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A handler.
    Ticket(Ticket),
    /// The member itself, for one of its duties, and since when.
    Duty(Duty, Duration),
    /// Apply: answers wait for the alarm that it raises. Since when.
    Alarm(Duration),
}

/// Requests that a member makes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Tell name and client URLs.
    Publish,
    /// Set the cluster's version.
    ClusterVersion,
    /// End a downgrade.
    EndDowngrade,
    /// Revoke a lease that has expired.
    LeaseRevoke,
    /// Write down what is left of leases.
    LeaseCheckpoint,
    /// Compact old revisions.
    Compaction,
    /// Tell that a member is corrupt.
    CorruptAlarm,
}

impl Duty {
    /// The name that etcd's metrics have for such requests.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Duty::Publish => "ClusterMemberAttrSet",
            Duty::ClusterVersion => "ClusterVersionSet",
            Duty::EndDowngrade => "DowngradeInfoSet",
            Duty::LeaseRevoke => "LeaseRevoke",
            Duty::LeaseCheckpoint => "LeaseCheckpoint",
            Duty::Compaction => "Compaction",
            Duty::CorruptAlarm => "Alarm",
        }
    }
}

/// What a waiting request needs to know of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Who.
    pub asker: Asker,
    /// The answer waits until a compaction is through the file.
    pub physical: bool,
}

/// Requests that were proposed on this member and wait for being applied.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    waiting: Mutex<Waiting>,
}

/// Each with the time at which it is given up. Ids rise with time, so in each of the two those come
/// first that are given up first.
#[derive(Debug, Default)]
struct Waiting {
    requests: BTreeMap<RequestId, (Waiter, Duration)>,
    /// Changes of the membership are waited for much longer.
    changes: BTreeMap<RequestId, (Waiter, Duration)>,
}

impl Waiting {
    fn remove(&mut self, id: RequestId) -> Option<Waiter> {
        let found = self.requests.remove(&id);
        let found = found.or_else(|| self.changes.remove(&id));
        found.map(|(waiter, _)| waiter)
    }
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no holder of this lock panics")
    }

    /// Adds a request, before it is proposed; nobody waits for it past `until`.
    pub(crate) fn insert(&self, id: RequestId, waiter: Waiter, until: Duration) {
        self.lock().requests.insert(id, (waiter, until));
    }

    /// Adds a change of the membership.
    pub(crate) fn insert_change(&self, id: RequestId, waiter: Waiter, until: Duration) {
        self.lock().changes.insert(id, (waiter, until));
    }

    pub(crate) fn remove(&self, id: RequestId) -> Option<Waiter> {
        self.lock().remove(id)
    }

    /// Takes out those that nobody waits for any more.
    pub(crate) fn expire(&self, now: Duration) -> Vec<Waiter> {
        let mut waiting = self.lock();
        let Waiting { requests, changes } = &mut *waiting;
        let mut expired = Vec::new();
        for waiting in [requests, changes] {
            while let Some(first) = waiting.first_entry()
                && first.get().1 <= now
            {
                expired.push(first.remove().0);
            }
        }
        expired
    }

    /// Takes out those of a batch, in its order.
    pub(crate) fn take(&self, ids: &[Option<RequestId>], out: &mut Vec<Option<Waiter>>) {
        let mut waiting = self.lock();
        out.extend(ids.iter().map(|id| id.and_then(|id| waiting.remove(id))));
    }

    /// Takes out all, at the end.
    pub(crate) fn drain(&self) -> Vec<Waiter> {
        let Waiting { requests, changes } = std::mem::take(&mut *self.lock());
        let all = requests.into_values().chain(changes.into_values());
        all.map(|(waiter, _)| waiter).collect()
    }

    pub(crate) fn len(&self) -> usize {
        let waiting = self.lock();
        waiting.requests.len() + waiting.changes.len()
    }
}

/// Answers of a batch, by serving thread.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    threads: BTreeMap<u16, Vec<(Ticket, Reply)>>,
}

impl Outbox {
    pub(crate) fn add(&mut self, ticket: Ticket, reply: Reply) {
        self.threads
            .entry(ticket.thread)
            .or_default()
            .push((ticket, reply));
    }

    /// One call a serving thread.
    pub(crate) fn send(&mut self, replies: &dyn Replies) {
        for (thread, batch) in std::mem::take(&mut self.threads) {
            replies.deliver(thread, batch);
        }
    }
}
