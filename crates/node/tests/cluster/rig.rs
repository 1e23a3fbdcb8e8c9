//! Members on directories of their own, and what a client does with them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use keelson_node::{
    Barrier, Beginning, Clock, Config, Env, Node, Order, Replies, Reply, SystemClock, Ticket,
    Watchers,
};
use keelson_proto::ApiError;
use keelson_proto::entry::{ConfChange, ConfChangeKind};
use keelson_proto::ids::MemberId;
use keelson_proto::rpc::etcdserverpb::{
    InternalRaftRequest, LeaseGrantRequest, PutRequest, RangeRequest,
};
use keelson_store::member::Member;
use keelson_store::range::{self, ReadAt};
use keelson_store::{EventRange, Outcome};
use tempfile::TempDir;

use crate::net::{Net, Wires};

/// How long anything may take: a busy machine is slow, a lost answer never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Takes answers, events, and word of the end.
#[derive(Default)]
pub(crate) struct Desk {
    answers: Mutex<HashMap<u32, Reply>>,
    arrived: Condvar,
    next: AtomicU32,
    /// Revisions that the state went on to by snapshots.
    pub(crate) restored: Mutex<Vec<i64>>,
    pub(crate) removed: AtomicU32,
    pub(crate) failed: Mutex<Vec<String>>,
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
        self.wait_for(ticket, PATIENCE).expect("an answer comes")
    }

    pub(crate) fn wait_for(&self, ticket: Ticket, patience: Duration) -> Option<Reply> {
        let answers = self.answers.lock().unwrap();
        let waits = |answers: &mut HashMap<u32, Reply>| !answers.contains_key(&ticket.slot);
        let (mut answers, _) = self
            .arrived
            .wait_timeout_while(answers, patience, waits)
            .unwrap();
        answers.remove(&ticket.slot)
    }
}

impl Replies for Desk {
    fn deliver(&self, _thread: u16, replies: Vec<(Ticket, Reply)>) {
        let mut answers = self.answers.lock().unwrap();
        for (ticket, reply) in replies {
            let before = answers.insert(ticket.slot, reply);
            assert!(before.is_none(), "{ticket:?} is answered once");
        }
        self.arrived.notify_all();
    }
}

impl Watchers for Desk {
    fn events(&self, _batch: EventRange) {}

    fn restored(&self, revision: i64) {
        self.restored.lock().unwrap().push(revision);
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

/// A member: its files stay when it dies.
pub(crate) struct Place {
    pub(crate) config: Config,
    pub(crate) env: Env,
    pub(crate) clock: Arc<JumpingClock>,
    pub(crate) desk: Arc<Desk>,
    pub(crate) wires: Arc<Wires>,
    node: Option<Node>,
    _dir: TempDir,
}

impl Place {
    pub(crate) fn node(&self) -> &Node {
        self.node.as_ref().expect("the member runs")
    }

    pub(crate) fn is_running(&self) -> bool {
        self.node.is_some()
    }

    pub(crate) fn id(&self) -> MemberId {
        *self.wires.own.lock().unwrap()
    }
}

/// Some members.
pub(crate) struct Cluster {
    pub(crate) net: Net,
    pub(crate) places: Vec<Place>,
}

pub(crate) fn urls(number: usize) -> Vec<String> {
    vec![format!("http://127.0.0.1:{}", 2380 + 10 * number)]
}

pub(crate) fn config(dir: &Path, number: usize) -> Config {
    let mut config = Config::new(&format!("m{number}"), dir, "");
    config.client_urls = vec![format!("http://127.0.0.1:{}", 2379 + 10 * number)];
    config.heartbeat = Duration::from_millis(100);
    config.election = Duration::from_millis(1000);
    config.wal_segment_bytes = 1 << 20;
    config
}

impl Cluster {
    /// So many members of a new cluster, not started.
    pub(crate) fn described(members: usize, change: impl Fn(usize, &mut Config)) -> Cluster {
        let net = Net::default();
        let mut cluster = Cluster {
            net,
            places: Vec::new(),
        };
        let initial: Vec<(String, Vec<String>)> = (0..members)
            .map(|number| (format!("m{number}"), urls(number)))
            .collect();
        for number in 0..members {
            let dir = tempfile::tempdir().unwrap();
            let mut config = config(dir.path(), number);
            config.initial_cluster.clone_from(&initial);
            change(number, &mut config);
            cluster.add_place(config, dir);
        }
        cluster
    }

    /// So many members, running.
    pub(crate) fn new(members: usize) -> Cluster {
        Cluster::changed(members, |_, _| {})
    }

    pub(crate) fn changed(members: usize, change: impl Fn(usize, &mut Config)) -> Cluster {
        let mut cluster = Cluster::described(members, change);
        for number in 0..members {
            cluster.start(number);
        }
        cluster.ready();
        cluster
    }

    pub(crate) fn ready(&self) {
        for place in self.places.iter().filter(|place| place.is_running()) {
            place.node().wait_ready(PATIENCE).unwrap();
        }
    }

    fn add_place(&mut self, config: Config, dir: TempDir) {
        let clock = Arc::new(JumpingClock::default());
        let desk = Arc::new(Desk::default());
        let (failed, removed) = (desk.clone(), desk.clone());
        let env = Env {
            clock: clock.clone(),
            failed: Arc::new(move |reason| failed.failed.lock().unwrap().push(reason.to_owned())),
            removed: Arc::new(move || {
                removed.removed.fetch_add(1, Ordering::SeqCst);
            }),
            ..Env::real()
        };
        let wires = Arc::new(Wires {
            net: self.net.clone(),
            own: Mutex::new(MemberId::NONE),
            told: Mutex::default(),
        });
        self.places.push(Place {
            config,
            env,
            clock,
            desk,
            wires,
            node: None,
            _dir: dir,
        });
    }

    pub(crate) fn try_start(&mut self, number: usize) -> Result<(), keelson_node::Error> {
        let place = &mut self.places[number];
        let node = Node::start_with_peers(
            place.config.clone(),
            place.env.clone(),
            place.desk.clone(),
            place.desk.clone(),
            place.wires.clone(),
        )?;
        *place.wires.own.lock().unwrap() = node.member_id();
        self.net.join(&node);
        place.node = Some(node);
        Ok(())
    }

    pub(crate) fn start(&mut self, number: usize) {
        self.try_start(number).unwrap();
    }

    /// Ends a member as a crash would.
    pub(crate) fn kill(&mut self, number: usize) {
        let id = self.places[number].id();
        self.net.leave(id);
        self.places[number].node.take().unwrap().kill();
    }

    /// Ends a member in order.
    pub(crate) fn stop(&mut self, number: usize) {
        let node = self.places[number].node.take().unwrap();
        node.stop();
        self.net.leave(node.member_id());
    }

    pub(crate) fn node(&self, number: usize) -> &Node {
        self.places[number].node()
    }

    pub(crate) fn id(&self, number: usize) -> MemberId {
        self.places[number].id()
    }

    fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.places.len()).filter(|number| self.places[*number].is_running())
    }

    /// Waits until a condition holds.
    pub(crate) fn wait(&self, what: &str, holds: impl Fn(&Cluster) -> bool) {
        let clock = SystemClock::new();
        while !holds(self) {
            assert!(clock.now() < PATIENCE, "{what} never came");
            std::thread::yield_now();
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    /// Waits until one member leads and all that run and are among `of` follow it.
    pub(crate) fn leader_of(&self, of: &[usize]) -> usize {
        let found = || {
            let leaders: Vec<MemberId> = of
                .iter()
                .map(|number| self.node(*number).status().leader)
                .collect();
            let number = of.iter().copied().find(|it| self.node(*it).is_leader())?;
            let id = self.id(number);
            leaders.iter().all(|leader| *leader == id).then_some(number)
        };
        self.wait("a leader", |_| found().is_some());
        found().unwrap_or_else(|| self.leader_of(of))
    }

    pub(crate) fn leader(&self) -> usize {
        let running: Vec<usize> = self.running().collect();
        self.leader_of(&running)
    }

    /// A running member that does not lead.
    pub(crate) fn follower(&self) -> usize {
        let leader = self.leader();
        self.running().find(|number| *number != leader).unwrap()
    }

    /// Proposes once; `None` where the answer did not come or was no outcome.
    pub(crate) fn try_run(
        &self,
        number: usize,
        request: InternalRaftRequest,
        patience: Duration,
    ) -> Result<Outcome, Option<ApiError>> {
        let desk = &self.places[number].desk;
        let ticket = desk.ticket();
        self.node(number).propose(request, ticket).map_err(Some)?;
        match desk.wait_for(ticket, patience) {
            Some(Reply::Applied(outcome)) => Ok(outcome),
            Some(Reply::Refused(error)) => Err(Some(error)),
            Some(other) => panic!("{other:?}"),
            None => Err(None),
        }
    }

    /// Proposes until it is applied.
    pub(crate) fn run(&self, number: usize, request: &InternalRaftRequest) -> Outcome {
        let clock = SystemClock::new();
        loop {
            match self.try_run(number, request.clone(), Duration::from_secs(5)) {
                Ok(outcome) => return outcome,
                Err(error) => {
                    assert!(clock.now() < PATIENCE, "never applied: {error:?}");
                    std::thread::park_timeout(Duration::from_millis(10));
                }
            }
        }
    }

    pub(crate) fn put(&self, number: usize, key: &str, value: &str) {
        let outcome = self.run(number, &put(key, value));
        assert!(matches!(outcome, Outcome::Put { .. }), "{outcome:?}");
    }

    /// Changes the membership, again until it is answered.
    pub(crate) fn change(&self, number: usize, change: &ConfChange) -> Outcome {
        let clock = SystemClock::new();
        loop {
            let desk = &self.places[number].desk;
            let ticket = desk.ticket();
            let sent = self
                .node(number)
                .propose_conf_change(change.clone(), ticket);
            if sent.is_ok() {
                match desk.wait_for(ticket, Duration::from_secs(5)) {
                    Some(Reply::Applied(outcome)) => return outcome,
                    Some(Reply::Refused(_)) | None => {}
                    Some(other) => panic!("{other:?}"),
                }
            }
            assert!(clock.now() < PATIENCE, "the membership never changed");
        }
    }

    /// One read barrier.
    pub(crate) fn barrier(
        &self,
        number: usize,
        patience: Duration,
    ) -> Result<(), Option<ApiError>> {
        let desk = &self.places[number].desk;
        let ticket = desk.ticket();
        match self.node(number).read_barrier(ticket).map_err(Some)? {
            Barrier::Passed => Ok(()),
            Barrier::Waiting => match desk.wait_for(ticket, patience) {
                Some(Reply::Readable) => Ok(()),
                Some(Reply::Refused(error)) => Err(Some(error)),
                Some(other) => panic!("{other:?}"),
                None => Err(None),
            },
        }
    }

    /// What a key holds, by a linearizable read.
    pub(crate) fn get(&self, number: usize, key: &str) -> Option<String> {
        let clock = SystemClock::new();
        while let Err(error) = self.barrier(number, PATIENCE) {
            assert!(clock.now() < PATIENCE, "never readable: {error:?}");
        }
        self.local(number, key)
    }

    /// What a key holds by what this member knows.
    pub(crate) fn local(&self, number: usize, key: &str) -> Option<String> {
        let shared = self.node(number).shared();
        let request = RangeRequest {
            key: key.to_owned().into(),
            ..RangeRequest::default()
        };
        let plan = range::plan(shared, &request, ReadAt::Current).unwrap();
        if plan.count == 0 {
            return None;
        }
        let mut body = bytes::BytesMut::new();
        let mut emitter = plan.into_emitter(shared.clone());
        while emitter.next_chunk(1 << 16, &mut body).unwrap() == range::Progress::More {}
        let response: keelson_proto::rpc::etcdserverpb::RangeResponse =
            prost::Message::decode(body.freeze()).unwrap();
        Some(String::from_utf8(response.kvs[0].value.to_vec()).unwrap())
    }

    /// Gives an order, and waits until it is carried out.
    pub(crate) fn order(&self, number: usize, order: Order) -> Reply {
        let desk = &self.places[number].desk;
        let ticket = desk.ticket();
        self.node(number).order(order, Some(ticket)).unwrap();
        desk.wait(ticket)
    }

    /// Waits until all members that run have applied the same, and compares all of it.
    pub(crate) fn agree(&self) {
        let running: Vec<usize> = self.running().collect();
        let applied = |number: &usize| self.node(*number).status().applied;
        let last = running.iter().map(applied).max().unwrap();
        self.wait("the same state", |_| {
            running.iter().all(|number| applied(number) >= last)
        });
        let revision = |number: &usize| self.node(*number).shared().revision();
        let at = running.iter().map(revision).min().unwrap();
        let hash =
            |number: &usize| keelson_store::hash::hash_kv(self.node(*number).shared(), at).unwrap();
        let first = hash(&running[0]);
        for number in &running[1..] {
            assert_eq!(hash(number), first, "member {number} differs");
        }
    }

    /// A place for a member that was added.
    pub(crate) fn join(&mut self, id: MemberId, number: usize) {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path(), number);
        config.initial_cluster.clear();
        config.beginning = Beginning::Join {
            cluster: self.node(self.leader()).cluster_id(),
            member: id,
        };
        assert_eq!(self.places.len(), number);
        self.add_place(config, dir);
    }
}

/// The member that would be added under a number.
pub(crate) fn newcomer(number: usize, is_learner: bool) -> Member {
    Member::new(
        String::new(),
        urls(number),
        "",
        Some(1_700_000_000),
        is_learner,
    )
}

pub(crate) fn addition(member: &Member) -> ConfChange {
    ConfChange {
        id: 0,
        kind: if member.is_learner {
            ConfChangeKind::AddLearnerNode
        } else {
            ConfChangeKind::AddNode
        },
        member: member.id,
        context: member.add_context().into(),
    }
}

pub(crate) fn removal(member: MemberId) -> ConfChange {
    ConfChange {
        kind: ConfChangeKind::RemoveNode,
        member,
        ..ConfChange::default()
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

pub(crate) fn put_with_lease(key: &str, lease: i64) -> InternalRaftRequest {
    let mut request = put(key, "leased");
    request.put.as_mut().unwrap().lease = lease;
    request
}

pub(crate) fn grant(id: i64, ttl: i64) -> InternalRaftRequest {
    InternalRaftRequest {
        lease_grant: Some(LeaseGrantRequest { ttl, id }),
        ..InternalRaftRequest::default()
    }
}
