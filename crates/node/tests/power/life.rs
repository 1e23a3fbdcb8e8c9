//! One life of a member on such a disk: from its start to the moment when it is killed.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use keelson_node::{
    Clock, Config, Env, Node, Order, Replies, Reply, SystemClock, Ticket, Watchers,
};
use keelson_proto::rpc::etcdserverpb::InternalRaftRequest;
use keelson_store::hash::{HashKv, hash_kv};
use keelson_store::{Durable, EventRange};

use crate::disk::{Disk, Progress};

/// How long anything may take: a busy machine is slow, a lost answer never comes.
const PATIENCE: Duration = Duration::from_secs(120);

/// The slot of orders; steps of a script have their number.
const ORDER: u32 = u32::MAX;

/// What clients can see of a member.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct State {
    pub(crate) revision: i64,
    compacted: i64,
    hash: HashKv,
    /// Each with its granted time to live and its keys.
    leases: Vec<(i64, i64, Vec<Vec<u8>>)>,
}

#[derive(Default)]
struct Answers {
    steps: usize,
    /// Why a step has no other answer.
    refused: Option<String>,
    order: Option<Reply>,
}

/// Takes answers.
#[derive(Default)]
struct Desk {
    answers: Mutex<Answers>,
    arrived: Condvar,
    progress: Arc<Progress>,
    /// Why the member cannot go on: once each time that it was told.
    failures: Mutex<Vec<String>>,
}

impl Replies for Desk {
    fn deliver(&self, _thread: u16, replies: Vec<(Ticket, Reply)>) {
        let mut answers = self.answers.lock().unwrap();
        for (ticket, reply) in replies {
            match reply {
                reply if ticket.slot == ORDER => answers.order = Some(reply),
                Reply::Applied(_) => answers.steps = ticket.slot as usize + 1,
                Reply::Refused(error) => answers.refused = Some(error.to_string()),
                _ => {}
            }
        }
        let steps = &self.progress.acknowledged;
        steps.fetch_max(answers.steps, Ordering::SeqCst);
        self.arrived.notify_all();
    }
}

impl Watchers for Desk {
    fn restored(&self, revision: i64) {
        panic!("no snapshot was sent, but the state went on to {revision}");
    }

    fn events(&self, _batch: EventRange) {}
}

/// A clock that jumps when it is told to.
#[derive(Default)]
struct JumpingClock {
    system: SystemClock,
    ahead_millis: AtomicU64,
}

impl Clock for JumpingClock {
    fn now(&self) -> Duration {
        self.system.now() + Duration::from_millis(self.ahead_millis.load(Ordering::SeqCst))
    }

    fn wall(&self) -> Duration {
        self.system.wall()
    }
}

pub(crate) struct Life {
    node: Node,
    desk: Arc<Desk>,
    clock: Arc<JumpingClock>,
}

fn config() -> Config {
    let mut config = Config::new("m1", Path::new("/data"), "http://127.0.0.1:2380");
    config.client_urls = vec!["http://127.0.0.1:2379".to_owned()];
    // Small, so that everything that happens rarely happens often.
    config.wal_segment_bytes = 8 << 10;
    config.snapshot_count = Some(7);
    config.max_snapshots = 2;
    config.max_wals = 1;
    config
}

impl Life {
    /// Starts a member that serves.
    pub(crate) fn begin(disk: &Disk, progress: Arc<Progress>) -> Result<Life, keelson_node::Error> {
        let clock = Arc::new(JumpingClock::default());
        let desk = Arc::new(Desk {
            progress,
            ..Desk::default()
        });
        let (of, told) = (disk.clone(), desk.clone());
        let env = Env {
            clock: clock.clone(),
            files: Arc::new(disk.clone()),
            database: Arc::new(move |path, options| of.open_database(path, options)),
            failed: Arc::new(move |reason| {
                told.failures.lock().unwrap().push(reason.to_owned());
                told.arrived.notify_all();
            }),
            ..Env::real()
        };
        let node = Node::start(config(), env, desk.clone(), desk.clone())?;
        node.wait_ready(PATIENCE)?;
        Ok(Life { node, desk, clock })
    }

    /// Puts a step on its way.
    pub(crate) fn propose(&self, step: usize, request: InternalRaftRequest) {
        let proposed = &self.desk.progress.proposed;
        proposed.fetch_max(step + 1, Ordering::SeqCst);
        self.node.propose(request, ticket(step as u32)).unwrap();
    }

    /// Waits until so many steps are acknowledged.
    pub(crate) fn wait(&self, steps: usize) {
        let answers = self.desk.answers.lock().unwrap();
        let waits = |answers: &mut Answers| answers.steps < steps && answers.refused.is_none();
        let result = self
            .desk
            .arrived
            .wait_timeout_while(answers, PATIENCE, waits);
        let (answers, timeout) = result.unwrap();
        assert_eq!(answers.refused, None, "up to step {steps}");
        assert!(!timeout.timed_out(), "no answer to step {steps}");
    }

    /// Brings everything into the file.
    pub(crate) fn commit(&self) -> Durable {
        self.node.order(Order::Commit, Some(ticket(ORDER))).unwrap();
        match self.order() {
            Reply::Durable(durable) => durable,
            other => panic!("not durable: {other:?}"),
        }
    }

    /// Copies the file into a new one, and takes that in its place.
    pub(crate) fn defragment(&self) {
        let ticket = Some(ticket(ORDER));
        self.node.order(Order::Defragment, ticket).unwrap();
        match self.order() {
            Reply::Done => {}
            other => panic!("not defragmented: {other:?}"),
        }
    }

    /// The answer to an order.
    fn order(&self) -> Reply {
        let answers = self.desk.answers.lock().unwrap();
        let waits = |answers: &mut Answers| answers.order.is_none();
        let result = self
            .desk
            .arrived
            .wait_timeout_while(answers, PATIENCE, waits);
        result.unwrap().0.order.take().expect("it is answered")
    }

    /// Has everything brought into the file, whenever that is.
    pub(crate) fn order_commit(&self) {
        // A member that has failed takes no orders.
        let _refused = self.node.order(Order::Commit, None);
    }

    /// Puts a step on its way, if the member still takes any, and waits for its answer or for the end.
    /// Returns why the member has ended.
    pub(crate) fn try_step(&self, step: usize, request: InternalRaftRequest) -> Option<String> {
        let proposed = &self.desk.progress.proposed;
        proposed.fetch_max(step + 1, Ordering::SeqCst);
        let taken = self.node.propose(request, ticket(step as u32)).is_ok();
        let answers = self.desk.answers.lock().unwrap();
        let failed = || !self.desk.failures.lock().unwrap().is_empty();
        let waits = |answers: &mut Answers| !failed() && (!taken || answers.steps <= step);
        // What has failed is told without the lock of the answers: the wait looks again.
        let mut answers = answers;
        for _ in 0..PATIENCE.as_millis() / 10 {
            let pause = Duration::from_millis(10);
            let result = self.desk.arrived.wait_timeout_while(answers, pause, waits);
            let (guard, timeout) = result.unwrap();
            answers = guard;
            if !timeout.timed_out() {
                return self.desk.failures.lock().unwrap().first().cloned();
            }
        }
        panic!("neither an answer to step {step} nor a failure");
    }

    /// Why it could not go on, as often as it was told.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.desk.failures.lock().unwrap().clone()
    }

    /// Lets the time pass after which old files are removed.
    pub(crate) fn pass_time(&self) {
        self.clock.ahead_millis.fetch_add(31_000, Ordering::SeqCst);
    }

    pub(crate) fn state(&self) -> State {
        let shared = self.node.shared();
        let revision = shared.revision();
        let leases = shared.leases();
        let leases = leases.iter().map(|(id, lease)| {
            let keys = lease.keys().iter().map(|key| key.to_vec());
            (id.0, lease.ttl(), keys.collect())
        });
        State {
            revision,
            compacted: shared.compact_revision(),
            leases: leases.collect(),
            // By number, a hash that a compaction has left may be found in place of it.
            hash: hash_kv(shared, 0).unwrap(),
        }
    }

    /// Ends it where it stands.
    pub(crate) fn end(self) {
        self.node.kill();
    }
}

fn ticket(slot: u32) -> Ticket {
    Ticket {
        thread: 0,
        slot,
        generation: 0,
    }
}
