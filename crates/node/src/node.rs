//! A member without sockets: the facade, and its threads from start to stop.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use keelson_proto::ApiError;
use keelson_proto::entry::ConfChange;
use keelson_proto::ids::{ClusterId, LogIndex, MemberId, RequestId, Term};
use keelson_proto::request::STACK_BYTES;
use keelson_proto::rpc::etcdserverpb::InternalRaftRequest;
use keelson_store::Shared;
use keelson_store::lease::Ticks;
use keelson_wal::Preparer;

use crate::apply::{Applier, ApplyRequest};
use crate::boot::{Booted, boot};
use crate::checker::Checker;
use crate::commit::Commits;
use crate::conf::Surroundings;
use crate::consensus::Consensus;
use crate::core::{Core, Input, Options};
use crate::duty::DutyWorker;
use crate::links::{Links, Parts};
use crate::log::Logger;
use crate::seats::Seats;
use crate::snapshot::Snapshots;
use crate::stats::Stats;
use crate::ticket::{Asker, Outbox, Reply};
use crate::turns::Turns;
use crate::{Barrier, Config, Env, Error, NoPeers, Peers, Replies, Ticket, Watchers, budget};

/// The stack of threads that decode no requests, or plain puts at most, in bytes.
const SMALL_STACK_BYTES: usize = 2 << 20;

/// How long the log is kept for a member that got a snapshot: it asks for what came meanwhile.
///
/// # Source
///
/// `spec/formats.md` 4.2.
const HOLD_AFTER_SNAPSHOT: Duration = Duration::from_secs(30);

/// Something that a member is told to do outside of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Bring everything that is applied into the file; answered with [`Reply::Durable`].
    Commit,
    /// Rewrite the file without its free pages; answered with [`Reply::Done`].
    Defragment,
    /// Hand leadership over. Not answered: [`Node::status`] shows it.
    MoveLeader(MemberId),
    /// Say how far the members are; answered with [`Reply::Progress`].
    Progress,
}

/// How a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The leader, or nobody.
    pub leader: MemberId,
    /// The term.
    pub term: Term,
    /// Up to here the log is known to be committed.
    pub committed: LogIndex,
    /// Up to here it is applied.
    pub applied: LogIndex,
    /// The term of the last applied entry: that of response headers.
    pub applied_term: Term,
    /// Whether this member has no vote.
    pub is_learner: bool,
    /// How often another leader was seen.
    pub leader_changes: u64,
    /// Proposals that wait for being applied.
    pub pending: u64,
}

/// What waits where, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depths {
    /// Inputs of consensus.
    pub consensus: u64,
    /// Writes to the log.
    pub log: u64,
    /// Work for apply.
    pub apply: u64,
    /// Segments and other work for the file.
    pub commit: u64,
    /// Bytes of proposals that the own log does not have yet.
    pub proposal_bytes: u64,
}

/// The threads, in order of start.
#[derive(Default)]
struct Threads {
    prepare: Option<JoinHandle<()>>,
    log: Option<JoinHandle<()>>,
    commit: Option<JoinHandle<()>>,
    apply: Option<JoinHandle<()>>,
    consensus: Option<JoinHandle<()>>,
    duty: Option<JoinHandle<()>>,
    check: Option<JoinHandle<()>>,
}

struct Inner {
    links: Arc<Links>,
    threads: Mutex<Threads>,
    /// Set when the threads start; a member without threads is given its turns from outside.
    seats: OnceLock<Arc<Seats>>,
}

/// What is done, each by a thread, and consensus by whoever has something for it. Short turns of apply are
/// taken by others too.
pub(crate) struct Workers {
    pub(crate) log: Logger,
    pub(crate) commits: Commits,
    pub(crate) applier: Applier,
    pub(crate) consensus: Consensus,
    pub(crate) duty: DutyWorker,
    pub(crate) checker: Checker,
}

impl Workers {
    fn new(links: &Arc<Links>, booted: Booted) -> Result<Workers, Error> {
        let core = new_core(links, &booted)?;
        let Booted {
            wal,
            hard_state,
            opened,
            replay_to,
            start,
            leaves_old_log,
            ..
        } = booted;
        let mut applier = Applier::new(links.clone(), opened.store, replay_to, start.index);
        if leaves_old_log {
            applier.leave_old_log();
        }
        let snapshots = Snapshots::new(&links.config, links.env.files.clone(), start.index);
        Ok(Workers {
            log: Logger::new(links.clone(), wal, hard_state, start.index),
            commits: Commits::new(links.clone(), opened.committer, snapshots),
            applier,
            consensus: Consensus::new(links.clone(), core),
            duty: DutyWorker::new(links.clone()),
            checker: Checker::new(links.clone()),
        })
    }
}

/// A running member. Clones are the same member; when the last one is dropped without
/// [`Node::stop`], the threads end as by [`Node::kill`].
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

impl Node {
    /// Starts a member in its data directory, alone.
    ///
    /// # Errors
    ///
    /// Everything that the directory may be refused for, and [`Error::Thread`].
    pub fn start(
        config: Config,
        env: Env,
        replies: Arc<dyn Replies>,
        watchers: Arc<dyn Watchers>,
    ) -> Result<Node, Error> {
        Node::start_with_peers(config, env, replies, watchers, Arc::new(NoPeers))
    }

    /// As [`Node::start`], with a way to other members.
    ///
    /// # Errors
    ///
    /// As [`Node::start`].
    pub fn start_with_peers(
        config: Config,
        env: Env,
        replies: Arc<dyn Replies>,
        watchers: Arc<dyn Watchers>,
        peers: Arc<dyn Peers>,
    ) -> Result<Node, Error> {
        let (node, mut workers) = Node::assemble(config, env, replies, watchers, peers)?;
        let preparer = workers.log.preparer();
        // Should one of the threads not start, dropping the node ends the others.
        node.start_threads(workers, preparer)?;
        Ok(node)
    }

    /// A member, and what its threads do.
    pub(crate) fn assemble(
        config: Config,
        env: Env,
        replies: Arc<dyn Replies>,
        watchers: Arc<dyn Watchers>,
        peers: Arc<dyn Peers>,
    ) -> Result<(Node, Workers), Error> {
        tracing::info!(bytes = budget::WRITE_BYTES, "memory for writes is bounded");
        let booted = boot(&config, &env)?;
        let parts = Parts {
            config,
            env,
            identity: booted.identity,
            shared: booted.opened.store.shared().clone(),
            replies,
            watchers,
            peers,
        };
        let links = Arc::new(Links::new(parts, booted.last));
        for (member, urls) in links.other_members(booted.opened.store.members()) {
            links.peers.add(member, &urls);
        }
        let node = Node {
            inner: Arc::new(Inner {
                links: links.clone(),
                threads: Mutex::default(),
                seats: OnceLock::new(),
            }),
        };
        let workers = Workers::new(&links, booted)?;
        Ok((node, workers))
    }

    fn start_threads(&self, workers: Workers, preparer: Preparer) -> Result<(), Error> {
        let env = &self.links().env;
        let Workers {
            log,
            commits,
            applier,
            mut consensus,
            duty,
            checker,
        } = workers;
        consensus.begin()?;
        let links = self.links().clone();
        let seats = Arc::new(Seats {
            consensus: Turns::new(links.consensus.clone(), consensus),
            apply: Turns::new(links.apply.clone(), applier),
        });
        let seats = self.inner.seats.get_or_init(|| seats);
        let of_log = seats.clone();
        let (of_apply, of_consensus) = (seats.clone(), seats.clone());
        let mut threads = self.threads();
        threads.prepare =
            Some(env.spawn("wal-prepare", SMALL_STACK_BYTES, move || preparer.run())?);
        threads.log = Some(env.spawn("log", SMALL_STACK_BYTES, move || log.run(&of_log))?);
        threads.commit = Some(env.spawn("commit", SMALL_STACK_BYTES, move || commits.run())?);
        threads.apply = Some(env.spawn("apply", STACK_BYTES, move || of_apply.apply.run(|| {}))?);
        threads.consensus = Some(env.spawn("consensus", SMALL_STACK_BYTES, move || {
            of_consensus.consensus.run(|| links.apply.wake());
        })?);
        threads.duty = Some(env.spawn("duty", SMALL_STACK_BYTES, move || duty.run())?);
        threads.check = Some(env.spawn("check", SMALL_STACK_BYTES, move || checker.run())?);
        Ok(())
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Threads> {
        self.inner
            .threads
            .lock()
            .expect("no holder of this lock panics")
    }

    pub(crate) fn links(&self) -> &Arc<Links> {
        &self.inner.links
    }

    /// Puts a request on its way to the log; the answer comes to the ticket as [`Reply::Applied`] or
    /// [`Reply::Refused`]. Fills in the request's id.
    ///
    /// # Errors
    ///
    /// [`ApiError::Stopped`], [`ApiError::TooManyRequests`], [`ApiError::RequestTooLarge`]; no answer
    /// comes then.
    pub fn propose(&self, request: InternalRaftRequest, ticket: Ticket) -> Result<(), ApiError> {
        self.links()
            .propose(request, Asker::Ticket(ticket))
            .map(drop)
    }

    /// As [`Node::propose`], for a change of the membership. Fills in the change's id.
    ///
    /// # Errors
    ///
    /// As [`Node::propose`].
    pub fn propose_conf_change(&self, change: ConfChange, ticket: Ticket) -> Result<(), ApiError> {
        self.links()
            .propose_conf_change(change, Asker::Ticket(ticket))
            .map(drop)
    }

    /// Asks when a linearizable read may look at the state: at once, or when [`Reply::Readable`] comes
    /// to the ticket.
    ///
    /// # Errors
    ///
    /// [`ApiError::Stopped`], [`ApiError::TooManyRequests`]; no answer comes then.
    pub fn read_barrier(&self, ticket: Ticket) -> Result<Barrier, ApiError> {
        let links = self.links();
        if links.is_stopping() {
            return Err(ApiError::Stopped);
        }
        if links.gate.is_open() {
            return Ok(Barrier::Passed);
        }
        links.ask(Input::ReadBarrier(ticket), Some(ticket.thread))?;
        Ok(Barrier::Waiting)
    }

    /// Takes a turn of consensus for all that waits for one, unless another thread is at it, which then goes
    /// on; and applies what that has committed, where it is little. Never waits for a disk, nor for work of
    /// another thread; for whoever said so by [`Replies::asked`], and for those who have called
    /// [`Node::step_later`].
    pub fn take_turn(&self) {
        if let Some(seats) = self.inner.seats.get() {
            seats.take();
        }
    }

    /// Asks whether a change of the membership may be proposed now; the answer is the change itself, for
    /// [`Node::propose_conf_change`].
    pub fn surroundings<T>(&self, ask: impl FnOnce(&Surroundings<'_>) -> T) -> T {
        let links = self.links();
        let members = links.shared.members();
        ask(&Surroundings {
            own: links.identity.member,
            now: links.env.clock.now(),
            strict: links.config.strict_reconfig,
            members: &members,
            active_since: &|id| links.peers.active_since(id),
        })
    }

    /// What to say of a request that began at `started`, by the member's clock, and has had no answer in
    /// its time.
    #[must_use]
    pub fn timeout_error(&self, started: Duration) -> ApiError {
        self.links().timeout_error(started)
    }

    /// Gives an order; its answer comes to the ticket, if there is one.
    ///
    /// # Errors
    ///
    /// [`ApiError::Stopped`].
    pub fn order(&self, order: Order, ticket: Option<Ticket>) -> Result<(), ApiError> {
        let links = self.links();
        if links.is_stopping() {
            return Err(ApiError::Stopped);
        }
        let taken = match order {
            Order::Commit => links
                .apply
                .push_always(ApplyRequest::Commit(ticket), 1)
                .is_ok(),
            Order::Defragment => links
                .apply
                .push_always(ApplyRequest::Defragment(ticket), 1)
                .is_ok(),
            Order::MoveLeader(to) => links
                .consensus
                .push_always(Input::TransferLeader(to), 0)
                .is_ok(),
            Order::Progress => match ticket {
                Some(ticket) => links
                    .consensus
                    .push_always(Input::Progress(ticket), 0)
                    .is_ok(),
                None => true,
            },
        };
        if taken {
            Ok(())
        } else {
            Err(ApiError::Stopped)
        }
    }

    /// How the member stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let links = self.links();
        let (applied, applied_term) = links.shared.applied();
        Status {
            leader: links.published.leader(),
            term: links.published.term(),
            committed: links.published.committed().max(applied),
            applied,
            applied_term,
            is_learner: links.published.is_learner(),
            leader_changes: links.published.leader_changes(),
            pending: links.waiters.len() as u64,
        }
    }

    /// What waits where.
    #[must_use]
    pub fn depths(&self) -> Depths {
        let links = self.links();
        Depths {
            consensus: links.consensus.depth(),
            log: links.log.depth(),
            apply: links.apply.depth(),
            commit: links.commit.depth(),
            proposal_bytes: links.proposals.in_flight(),
        }
    }

    /// This member.
    #[must_use]
    pub fn member_id(&self) -> MemberId {
        self.links().identity.member
    }

    /// Its cluster.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.links().identity.cluster
    }

    /// What serving threads read.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.links().shared
    }

    /// Numbers for metrics.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.links().stats
    }

    /// What the member was told at start.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.links().config
    }

    /// The time, as everything in this member sees it.
    #[must_use]
    pub fn env(&self) -> &Env {
        &self.links().env
    }

    /// The moment as the deadlines of leases count it.
    #[must_use]
    pub fn ticks(&self) -> Ticks {
        self.links().env.ticks()
    }

    /// An id that no other request has, here or anywhere; for leases without one, and the like.
    #[must_use]
    pub fn next_id(&self) -> RequestId {
        self.links().proposals.next_id()
    }

    /// Whether a leader is known.
    #[must_use]
    pub fn has_leader(&self) -> bool {
        !self.links().published.leader().is_none()
    }

    /// Whether this member leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.links().gate.leads().is_some()
    }

    /// Why the member cannot go on, if it cannot: a failing disk, or an entry that it cannot apply.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<str>> {
        self.links().failure()
    }

    /// Waits until this member has told its attributes and that was applied: it serves from then on.
    ///
    /// # Errors
    ///
    /// [`Error::NotReady`] after `patience`, [`Error::Stopped`].
    pub fn wait_ready(&self, patience: Duration) -> Result<(), Error> {
        if self.links().wait_ready(patience) {
            return Ok(());
        }
        if self.links().is_stopping() {
            Err(Error::Stopped)
        } else {
            Err(Error::NotReady)
        }
    }

    /// Stops in order: hands leadership over, takes nothing in any more, lets consensus end, applies what
    /// is committed, brings everything into the file, and closes the log. Returns when all threads have
    /// ended, however often and by whomever it is called; not to be called from [`Env::failed`].
    pub fn stop(&self) {
        let links = self.links();
        self.hand_over();
        links.stopping.store(true, Ordering::SeqCst);
        let mut threads = self.threads();
        links.check.close();
        links.duty.close();
        join(&mut threads.duty);
        links.consensus.close();
        join(&mut threads.consensus);
        links.apply.close();
        join(&mut threads.apply);
        links.commit.close();
        join(&mut threads.commit);
        links.log.close();
        join(&mut threads.log);
        join(&mut threads.prepare);
        // It may be in the middle of reading the whole file.
        join(&mut threads.check);
        refuse_waiters(links);
    }

    /// Hands leadership to the voter that has been connected for longest, and waits for that, at most
    /// for as long as an election takes: the others are to have a leader at once. Nothing happens where
    /// this member does not lead, or nobody else can.
    pub fn hand_over(&self) {
        let links = self.links();
        if !self.is_leader() || links.is_stopping() {
            return;
        }
        let members = links.shared.members();
        let own = links.identity.member;
        let others = members.voters().map(|member| member.id);
        let since = |id| links.peers.active_since(id).map(|since| (since, id));
        let Some((_, to)) = others.filter(|id| *id != own).filter_map(since).min() else {
            return;
        };
        tracing::info!(
            "local-member-id" = %own,
            "transferee-member-id" = %to,
            "leadership transfer starting"
        );
        drop(links.consensus.push_always(Input::TransferLeader(to), 0));
        if links.wait_for_other_leader(links.config.election) {
            tracing::info!(
                "local-member-id" = %own,
                "new-leader-member-id" = %links.published.leader(),
                "leadership transfer finished"
            );
        } else {
            tracing::warn!("local-member-id" = %own, "leadership transfer failed");
        }
    }

    /// Ends all threads where they stand, without a commit or a flush, as a crash of the process would;
    /// what was acknowledged is in the log. For tests.
    pub fn kill(&self) {
        kill(&self.inner);
    }
}

fn kill(inner: &Inner) {
    let links = &inner.links;
    links.stopping.store(true, Ordering::SeqCst);
    links.killed.store(true, Ordering::SeqCst);
    links.close_all();
    let mut threads = inner.threads.lock().expect("no holder of this lock panics");
    let Threads {
        prepare,
        log,
        commit,
        apply,
        consensus,
        duty,
        check,
    } = &mut *threads;
    for thread in [duty, consensus, apply, commit, log, prepare, check] {
        join(thread);
    }
    refuse_waiters(links);
}

impl Drop for Inner {
    fn drop(&mut self) {
        kill(self);
    }
}

fn join(thread: &mut Option<JoinHandle<()>>) {
    if let Some(thread) = thread.take()
        && thread.join().is_err()
    {
        tracing::error!("a thread ended by a broken invariant");
    }
}

/// Nobody will answer these.
fn refuse_waiters(links: &Links) {
    let mut outbox = Outbox::default();
    for waiter in links.waiters.drain() {
        if let Asker::Ticket(ticket) = waiter.asker {
            outbox.add(ticket, Reply::Refused(ApiError::Stopped));
        }
    }
    outbox.send(&*links.replies);
}

fn new_core(links: &Links, booted: &Booted) -> Result<Core, Error> {
    let config = &links.config;
    let mut raft = keelson_raft::Config::new(links.identity.member);
    raft.election_tick = config.election_ticks();
    raft.pre_vote = config.pre_vote;
    raft.max_committed_size_per_ready = budget::APPLYING_BYTES;
    raft.max_uncommitted_entries_size = budget::UNCOMMITTED_BYTES;
    raft.max_inflight_bytes = budget::INFLIGHT_BYTES;
    let ticks = |time: Duration| {
        let ticks = time.as_millis() / config.heartbeat.as_millis().max(1);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    };
    let options = Options {
        raft,
        replay_to: booted.replay_to,
        campaign_at_once: config.election_at_once,
        patience_ticks: ticks(config.request_timeout()),
        first_context: links.proposals.next_id().0,
        hold_ticks: ticks(HOLD_AFTER_SNAPSHOT),
    };
    let random = links.env.random.clone();
    let draw = Box::new(move |bound: u32| {
        let drawn = random() % u64::from(bound.max(1));
        u32::try_from(drawn).expect("less than a u32")
    });
    let (applied, _) = booted.opened.store.applied();
    Core::new(options, booted.log.clone(), applied, draw)
}
