//! A member on a directory of its own, and a serving side of one map.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use keelson_node::{
    Clock, Config, Env, Node, Order, Replies, Reply, SystemClock, Ticket, Watchers,
};
use keelson_proto::ApiError;
use keelson_proto::rpc::etcdserverpb::{
    AuthEnableRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, CompactionRequest,
    DeleteRangeRequest, InternalRaftRequest, PutRequest, RangeRequest, RequestHeader,
};
use keelson_store::range::{self, ReadAt};
use keelson_store::{EventRange, Outcome, Shared};

/// How long anything may take: a busy machine is slow, a lost answer never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Takes answers, and counts how often it is called.
#[derive(Default)]
pub(crate) struct Desk {
    answers: Mutex<HashMap<u32, Reply>>,
    arrived: Condvar,
    next: AtomicU32,
    given_up: AtomicBool,
    pub(crate) parcels: AtomicU32,
    pub(crate) events: Mutex<Vec<(i64, i64)>>,
    /// The store, once the member has started, and batches that came before their revision was published.
    shared: OnceLock<Arc<Shared>>,
    pub(crate) early: AtomicU32,
    happened: Condvar,
}

impl Desk {
    pub(crate) fn ticket(&self) -> Ticket {
        let slot = self.next.fetch_add(1, Ordering::Relaxed);
        Ticket {
            thread: 0,
            slot,
            generation: 0,
        }
    }

    /// Waits for an answer.
    pub(crate) fn wait(&self, ticket: Ticket) -> Reply {
        let answers = self.answers.lock().unwrap();
        let (mut answers, timeout) = self
            .arrived
            .wait_timeout_while(answers, PATIENCE, |answers| {
                !answers.contains_key(&ticket.slot) && !self.given_up.load(Ordering::Relaxed)
            })
            .unwrap();
        assert!(!timeout.timed_out(), "no answer to {ticket:?}");
        answers
            .remove(&ticket.slot)
            .unwrap_or(Reply::Refused(ApiError::Canceled))
    }

    /// Lets everybody who waits for an answer go without.
    pub(crate) fn give_up(&self) {
        let _answers = self.answers.lock().unwrap();
        self.given_up.store(true, Ordering::Relaxed);
        self.arrived.notify_all();
    }

    /// Waits until a revision was told of.
    pub(crate) fn wait_for_revision(&self, revision: i64) {
        let events = self.events.lock().unwrap();
        let waits = |events: &mut Vec<(i64, i64)>| events.last().is_none_or(|it| it.1 < revision);
        let (_events, timeout) = self
            .happened
            .wait_timeout_while(events, PATIENCE, waits)
            .unwrap();
        assert!(!timeout.timed_out(), "revision {revision} never came");
    }

    /// Whether an answer has come that nobody has taken yet.
    pub(crate) fn has(&self, ticket: Ticket) -> bool {
        self.answers.lock().unwrap().contains_key(&ticket.slot)
    }
}

impl Replies for Desk {
    fn deliver(&self, _thread: u16, replies: Vec<(Ticket, Reply)>) {
        self.parcels.fetch_add(1, Ordering::Relaxed);
        let mut answers = self.answers.lock().unwrap();
        for (ticket, reply) in replies {
            let before = answers.insert(ticket.slot, reply);
            assert!(before.is_none(), "{ticket:?} is answered once");
        }
        self.arrived.notify_all();
    }
}

impl Watchers for Desk {
    fn restored(&self, revision: i64) {
        panic!("no snapshot was sent, but the state went on to {revision}");
    }

    fn events(&self, batch: EventRange) {
        let early = |shared: &Arc<Shared>| shared.revision() < batch.to;
        if self.shared.get().is_some_and(early) {
            self.early.fetch_add(1, Ordering::Relaxed);
        }
        self.events.lock().unwrap().push((batch.from, batch.to));
        self.happened.notify_all();
    }
}

/// A member with its serving side.
pub(crate) struct Rig {
    pub(crate) node: Node,
    pub(crate) desk: Arc<Desk>,
}

/// The same, asked by the user root.
pub(crate) fn by_root(request: InternalRaftRequest) -> InternalRaftRequest {
    InternalRaftRequest {
        header: Some(RequestHeader {
            username: "root".to_owned(),
            auth_revision: 100,
            ..RequestHeader::default()
        }),
        ..request
    }
}

pub(crate) fn config(dir: &Path) -> Config {
    let mut config = Config::new("m1", dir, "http://127.0.0.1:2380");
    config.client_urls = vec!["http://127.0.0.1:2379".to_owned()];
    config.heartbeat = Duration::from_millis(20);
    config.election = Duration::from_millis(200);
    config.wal_segment_bytes = 1 << 20;
    config
}

impl Rig {
    pub(crate) fn start(config: Config) -> Rig {
        Rig::try_start(config).unwrap()
    }

    pub(crate) fn try_start(config: Config) -> Result<Rig, keelson_node::Error> {
        Rig::try_start_in(config, Env::real())
    }

    pub(crate) fn start_in(config: Config, env: Env) -> Rig {
        Rig::try_start_in(config, env).unwrap()
    }

    fn try_start_in(config: Config, env: Env) -> Result<Rig, keelson_node::Error> {
        let desk = Arc::new(Desk::default());
        let node = Node::start(config, env, desk.clone(), desk.clone())?;
        desk.shared.get_or_init(|| node.shared().clone());
        node.wait_ready(PATIENCE)?;
        Ok(Rig { node, desk })
    }

    pub(crate) fn propose(&self, request: InternalRaftRequest) -> Ticket {
        let ticket = self.desk.ticket();
        self.node.propose(request, ticket).unwrap();
        ticket
    }

    /// Proposes, and waits for the outcome.
    pub(crate) fn run(&self, request: InternalRaftRequest) -> Outcome {
        match self.desk.wait(self.propose(request)) {
            Reply::Applied(outcome) => outcome,
            other => panic!("not applied: {other:?}"),
        }
    }

    /// Makes the user root, and turns authentication on.
    pub(crate) fn turn_auth_on(&self) {
        self.run(InternalRaftRequest {
            auth_user_add: Some(AuthUserAddRequest {
                name: "root".to_owned(),
                ..AuthUserAddRequest::default()
            }),
            ..InternalRaftRequest::default()
        });
        self.run(InternalRaftRequest {
            auth_user_grant_role: Some(AuthUserGrantRoleRequest {
                user: "root".to_owned(),
                role: "root".to_owned(),
            }),
            ..InternalRaftRequest::default()
        });
        self.run(InternalRaftRequest {
            auth_enable: Some(AuthEnableRequest {}),
            ..InternalRaftRequest::default()
        });
    }

    /// Puts a key, and returns its revision.
    pub(crate) fn put(&self, key: &str, value: &str) -> i64 {
        match self.run(put(key, value)) {
            Outcome::Put { revision, .. } => revision,
            other => panic!("not put: {other:?}"),
        }
    }

    /// What a key holds now; reads through a barrier.
    pub(crate) fn get(&self, key: &str) -> Option<String> {
        let ticket = self.desk.ticket();
        if self.node.read_barrier(ticket).unwrap() == keelson_node::Barrier::Waiting {
            assert!(matches!(self.desk.wait(ticket), Reply::Readable));
        }
        let request = RangeRequest {
            key: key.to_owned().into(),
            ..RangeRequest::default()
        };
        let plan = range::plan(self.node.shared(), &request, ReadAt::Current).unwrap();
        if plan.count == 0 {
            return None;
        }
        let mut body = bytes::BytesMut::new();
        let mut emitter = plan.into_emitter(self.node.shared().clone());
        while emitter.next_chunk(1 << 16, &mut body).unwrap() == range::Progress::More {}
        let response: keelson_proto::rpc::etcdserverpb::RangeResponse =
            prost::Message::decode(body.freeze()).unwrap();
        Some(String::from_utf8(response.kvs[0].value.to_vec()).unwrap())
    }

    /// Puts until something holds that comes by itself.
    pub(crate) fn put_until(&self, what: &str, holds: impl Fn(&Node) -> bool) {
        let clock = &self.node.env().clock;
        let deadline = clock.now() + PATIENCE;
        while !holds(&self.node) {
            assert!(clock.now() < deadline, "{what} never came");
            self.put("pacing", "");
        }
    }

    /// Gives an order, and waits until it is carried out.
    pub(crate) fn order(&self, order: Order) -> Reply {
        let ticket = self.desk.ticket();
        self.node.order(order, Some(ticket)).unwrap();
        self.desk.wait(ticket)
    }

    /// Waits until everything that is applied is in the file.
    pub(crate) fn commit(&self) -> keelson_store::Durable {
        match self.order(Order::Commit) {
            Reply::Durable(durable) => durable,
            other => panic!("not durable: {other:?}"),
        }
    }
}

/// A clock that jumps when it is told to.
#[derive(Default)]
pub(crate) struct JumpingClock {
    system: SystemClock,
    ahead: AtomicU64,
}

impl JumpingClock {
    pub(crate) fn jump(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap();
        self.ahead.fetch_add(millis, Ordering::SeqCst);
    }
}

impl Clock for JumpingClock {
    fn now(&self) -> Duration {
        self.system.now() + Duration::from_millis(self.ahead.load(Ordering::SeqCst))
    }

    fn wall(&self) -> Duration {
        self.system.wall()
    }
}

pub(crate) fn put(key: &str, value: &str) -> InternalRaftRequest {
    InternalRaftRequest {
        put: Some(PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..PutRequest::default()
        }),
        ..InternalRaftRequest::default()
    }
}

pub(crate) fn delete(key: &str) -> InternalRaftRequest {
    InternalRaftRequest {
        delete_range: Some(DeleteRangeRequest {
            key: key.to_owned().into(),
            ..DeleteRangeRequest::default()
        }),
        ..InternalRaftRequest::default()
    }
}

pub(crate) fn compact(revision: i64, physical: bool) -> InternalRaftRequest {
    InternalRaftRequest {
        compaction: Some(CompactionRequest { revision, physical }),
        ..InternalRaftRequest::default()
    }
}
