//! What the threads of one member share: their mailboxes, and what they publish.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use keelson_proto::ApiError;
use keelson_proto::ids::{ClusterId, LogIndex, MemberId, Term};
use keelson_store::Shared;
use keelson_store::member::Membership;

use crate::apply::ApplyRequest;
use crate::checker::CheckEvent;
use crate::commit::CommitRequest;
use crate::core::{Input, View};
use crate::duty::DutyEvent;
use crate::log::LogRequest;
use crate::mailbox::Mailbox;
use crate::propose::Proposals;
use crate::read::Gate;
use crate::stats::Stats;
use crate::step::Inbound;
use crate::ticket::{Reply, Waiters};
use crate::{Config, Env, Peers, Replies, Ticket, Watchers, budget};

/// Who this member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) member: MemberId,
    pub(crate) cluster: ClusterId,
}

/// What consensus publishes of itself.
#[derive(Debug, Default)]
pub(crate) struct Published {
    leader: AtomicU64,
    term: AtomicU64,
    committed: AtomicU64,
    leader_changes: AtomicU64,
    /// When this leader was first heard of, in milliseconds of the clock.
    led_since: AtomicU64,
    is_learner: AtomicBool,
    /// When consensus last took a tick, in milliseconds of the clock.
    pub(crate) ticked: AtomicU64,
}

impl Published {
    pub(crate) fn store(&self, view: &View, now: u64) {
        if !view.leader.is_none() && view.leader != self.leader() {
            self.led_since.store(now, Ordering::Release);
        }
        self.leader.store(view.leader.0, Ordering::Release);
        self.term.store(view.term.0, Ordering::Release);
        self.committed.store(view.committed.0, Ordering::Release);
        self.leader_changes
            .store(view.leader_changes, Ordering::Release);
        self.is_learner.store(view.is_learner, Ordering::Release);
    }

    pub(crate) fn leader(&self) -> MemberId {
        MemberId(self.leader.load(Ordering::Acquire))
    }

    pub(crate) fn term(&self) -> Term {
        Term(self.term.load(Ordering::Acquire))
    }

    pub(crate) fn committed(&self) -> LogIndex {
        LogIndex(self.committed.load(Ordering::Acquire))
    }

    /// When the leader that was known last was first heard of.
    pub(crate) fn led_since(&self) -> Duration {
        Duration::from_millis(self.led_since.load(Ordering::Acquire))
    }

    pub(crate) fn leader_changes(&self) -> u64 {
        self.leader_changes.load(Ordering::Acquire)
    }

    pub(crate) fn is_learner(&self) -> bool {
        self.is_learner.load(Ordering::Acquire)
    }
}

/// Shared by all threads of a member.
pub(crate) struct Links {
    pub(crate) config: Config,
    pub(crate) env: Env,
    pub(crate) identity: Identity,
    pub(crate) shared: Arc<Shared>,
    pub(crate) stats: Stats,
    pub(crate) gate: Gate,
    pub(crate) published: Published,
    pub(crate) proposals: Proposals,
    pub(crate) waiters: Waiters,
    pub(crate) replies: Arc<dyn Replies>,
    pub(crate) watchers: Arc<dyn Watchers>,
    pub(crate) peers: Arc<dyn Peers>,
    /// Entries of other members on their way in.
    pub(crate) inbound: Inbound,
    /// Held while a snapshot comes in: one at a time.
    pub(crate) receiving: Mutex<()>,
    pub(crate) consensus: Arc<Mailbox<Input>>,
    pub(crate) log: Mailbox<LogRequest>,
    pub(crate) apply: Arc<Mailbox<ApplyRequest>>,
    pub(crate) commit: Mailbox<CommitRequest>,
    pub(crate) duty: Mailbox<DutyEvent>,
    pub(crate) check: Mailbox<CheckEvent>,
    /// The last entry that the own log has for good.
    pub(crate) synced: AtomicU64,
    /// Consensus wants to hear of applied entries at once. Set in a turn; what apply added quietly during
    /// that turn is found by the look that whoever took it has afterwards (`turns.rs`, rule 2).
    pub(crate) awaits_apply: AtomicBool,
    /// Nothing more is taken in.
    pub(crate) stopping: AtomicBool,
    /// Threads end where they stand.
    pub(crate) killed: AtomicBool,
    failure: Mutex<Option<Arc<str>>>,
    /// Whether this member has told its attributes, and that was applied.
    ready: Mutex<bool>,
    became_ready: Condvar,
    /// How often another leader was published, for those who wait for one.
    leaders: Mutex<u64>,
    leader_came: Condvar,
}

/// Mailboxes whose content is bounded by what was asked for take all of it.
const UNBOUNDED: (usize, u64) = (usize::MAX, u64::MAX);

/// What [`Links::new`] puts together.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) env: Env,
    pub(crate) identity: Identity,
    pub(crate) shared: Arc<Shared>,
    pub(crate) replies: Arc<dyn Replies>,
    pub(crate) watchers: Arc<dyn Watchers>,
    pub(crate) peers: Arc<dyn Peers>,
}

impl Links {
    pub(crate) fn new(parts: Parts, synced: LogIndex) -> Links {
        let Parts {
            config,
            env,
            identity,
            shared,
            replies,
            watchers,
            peers,
        } = parts;
        let (items, weight) = UNBOUNDED;
        Links {
            proposals: Proposals::new(identity.member, (env.random)()),
            config,
            env,
            identity,
            shared,
            stats: Stats::default(),
            gate: Gate::default(),
            published: Published::default(),
            waiters: Waiters::default(),
            replies,
            watchers,
            peers,
            inbound: Inbound::default(),
            receiving: Mutex::new(()),
            consensus: Arc::new(Mailbox::new(
                budget::PROPOSALS_MAX + budget::BARRIERS_MAX + budget::INBOUND_MAX,
                weight,
            )),
            log: Mailbox::new(items, weight),
            apply: Arc::new(Mailbox::new(items, weight)),
            commit: Mailbox::new(items, budget::SEALED_WAITING_MAX),
            duty: Mailbox::new(items, weight),
            check: Mailbox::new(items, weight),
            synced: AtomicU64::new(synced.0),
            awaits_apply: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            failure: Mutex::new(None),
            ready: Mutex::new(false),
            became_ready: Condvar::new(),
            leaders: Mutex::new(0),
            leader_came: Condvar::new(),
        }
    }

    /// Why a request that began at `started` has not been answered in time, as far as can be told.
    ///
    /// # Source
    ///
    /// `spec/api.md` 2.1, "Proposal path".
    pub(crate) fn timeout_error(&self, started: Duration) -> ApiError {
        let elected = self.published.led_since();
        let lost = elected.saturating_sub(2 * self.config.election);
        if started > lost && started < elected {
            return ApiError::TimeoutDueToLeaderFail;
        }
        let own = self.identity.member;
        let connected = |id| {
            id == own
                || self
                    .peers
                    .active_since(id)
                    .is_some_and(|since| since < started)
        };
        let leader = self.published.leader();
        let reached = if leader.is_none() {
            true
        } else if leader == own {
            let members = self.shared.members();
            let up = members.members().filter(|member| connected(member.id));
            up.count() > members.members().len() / 2
        } else {
            connected(leader)
        };
        if reached {
            ApiError::Timeout
        } else {
            ApiError::TimeoutDueToConnectionLost
        }
    }

    /// Wakes those who wait for another leader.
    pub(crate) fn leader_changed(&self) {
        *self.leaders.lock().expect("no holder of this lock panics") += 1;
        self.leader_came.notify_all();
    }

    /// Waits until somebody else leads, or the member stops; whether somebody does.
    pub(crate) fn wait_for_other_leader(&self, patience: Duration) -> bool {
        let leaders = self.leaders.lock().expect("no holder of this lock panics");
        let waits = |_: &mut u64| {
            let leader = self.published.leader();
            (leader.is_none() || leader == self.identity.member) && !self.is_killed()
        };
        let (_leaders, timeout) = self
            .leader_came
            .wait_timeout_while(leaders, patience, waits)
            .expect("no holder of this lock panics");
        !timeout.timed_out()
    }

    /// Everybody else, with their peer URLs.
    pub(crate) fn other_members(&self, members: &Membership) -> Vec<(MemberId, Vec<String>)> {
        members
            .members()
            .filter(|member| member.id != self.identity.member)
            .map(|member| (member.id, member.peer_urls.clone()))
            .collect()
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Answers one ticket.
    pub(crate) fn reply(&self, ticket: Ticket, reply: Reply) {
        self.replies.deliver(ticket.thread, vec![(ticket, reply)]);
    }

    /// Ends the member: nothing is known about what the disk holds, or the state cannot go on. Says
    /// so once, lets nothing more in, and calls whoever ends the process.
    pub(crate) fn fail(&self, error: &crate::Error) {
        let text: Arc<str> = error.to_string().into();
        {
            let mut failure = self.failure.lock().expect("no holder of this lock panics");
            if failure.is_some() {
                return;
            }
            *failure = Some(text.clone());
        }
        tracing::error!(error = %text, "the member cannot go on");
        self.stopping.store(true, Ordering::SeqCst);
        self.killed.store(true, Ordering::SeqCst);
        self.close_all();
        (self.env.failed)(&text);
    }

    /// Lets nothing more into any mailbox, and throws away what is there.
    pub(crate) fn close_all(&self) {
        self.became_ready.notify_all();
        self.leader_changed();
        self.consensus.close_and_discard();
        self.log.close_and_discard();
        self.apply.close_and_discard();
        self.commit.close_and_discard();
        self.duty.close_and_discard();
        self.check.close_and_discard();
    }

    pub(crate) fn set_ready(&self) {
        *self.ready.lock().expect("no holder of this lock panics") = true;
        self.became_ready.notify_all();
    }

    /// Waits until this member is ready or stops; whether it is ready.
    pub(crate) fn wait_ready(&self, patience: Duration) -> bool {
        let ready = self.ready.lock().expect("no holder of this lock panics");
        let waits = |ready: &mut bool| !*ready && !self.is_stopping();
        let (ready, _) = self
            .became_ready
            .wait_timeout_while(ready, patience, waits)
            .expect("no holder of this lock panics");
        *ready
    }

    pub(crate) fn failure(&self) -> Option<Arc<str>> {
        self.failure
            .lock()
            .expect("no holder of this lock panics")
            .clone()
    }
}
