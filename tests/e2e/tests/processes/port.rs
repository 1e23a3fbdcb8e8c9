//! Three members that must not notice what comes to their peer ports.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use keelson_client::{Client, Put};
use keelson_e2e::{Launch, Process, ProcessCluster};
use keelson_harness::wait;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::server::tested;

/// The longest that anything may take.
pub(crate) const PATIENCE: Duration = keelson_harness::wait::PATIENCE;

/// How much memory a member may use more than before, in bytes: far less than it would if what
/// comes were not bounded.
pub(crate) const GROWTH_MAX: u64 = 160 << 20;

/// A member that holds no election because the machine has other work.
pub(crate) fn unhurried() -> Launch {
    tested()
        .argument("--heartbeat-interval=500")
        .argument("--election-timeout=5000")
}

/// Room for a cluster, held until a test is over: more of them at once would want more than the machine has.
pub(crate) async fn room() -> SemaphorePermit<'static> {
    static ROOM: Semaphore = Semaphore::const_new(4);
    ROOM.acquire().await.expect("nobody closes it")
}

/// A cluster, and how it was before anything came.
pub(crate) struct Rig {
    pub(crate) cluster: ProcessCluster,
    pub(crate) client: Client,
    /// In hex, as headers have it.
    pub(crate) cluster_id: String,
    /// Of the members by their numbers, in hex.
    pub(crate) ids: Vec<String>,
    /// The member that was removed, by its number.
    pub(crate) gone: Option<usize>,
    term: u64,
    resident: Vec<u64>,
    puts: u64,
}

impl Rig {
    pub(crate) async fn start() -> Rig {
        Rig::of(ProcessCluster::start(vec![unhurried(); 3]).unwrap()).await
    }

    /// Looks at a cluster that serves.
    pub(crate) async fn of(cluster: ProcessCluster) -> Rig {
        let client = cluster.client().await.unwrap();
        let listed = client.member_list().await.unwrap();
        let id_of = |name: &str| {
            let member = listed.members.iter().find(|it| it.name == name);
            format!("{:x}", member.unwrap().id)
        };
        let members = cluster.members();
        let mut rig = Rig {
            ids: members.iter().map(|it| id_of(it.name())).collect(),
            cluster_id: format!("{:x}", listed.header.unwrap().cluster_id),
            gone: None,
            term: 0,
            resident: Vec::new(),
            puts: 0,
            client,
            cluster,
        };
        rig.puts_go_on().await;
        rig.term = rig.terms().await[0];
        let members = rig.cluster.members().iter();
        rig.resident = members.map(|it| it.resident_bytes().unwrap()).collect();
        rig
    }

    /// The members that are left, by their numbers.
    fn left(&self) -> impl Iterator<Item = (usize, &Process)> {
        let members = self.cluster.members().iter().enumerate();
        members.filter(|(number, _)| Some(*number) != self.gone)
    }

    async fn terms(&self) -> Vec<u64> {
        let mut terms = Vec::new();
        for (_, member) in self.left() {
            let client = member.client().await.unwrap();
            terms.push(client.status().await.unwrap().raft_term);
        }
        terms
    }

    /// Clients are served, and quickly.
    pub(crate) async fn puts_go_on(&mut self) {
        for _ in 0..10 {
            self.puts += 1;
            let put = Put::new(format!("key {}", self.puts), "value");
            let put = tokio::time::timeout(PATIENCE, self.client.put(put));
            put.await.expect("puts go on").unwrap();
        }
    }

    /// Nobody was elected, no member has grown, and all serve.
    pub(crate) async fn is_unharmed(&mut self) {
        self.puts_go_on().await;
        let terms = self.terms().await;
        assert!(terms.iter().all(|it| *it == self.term), "{terms:?}");
        for (number, member) in self.left() {
            let before = self.resident[number];
            let now = member.resident_bytes().unwrap();
            assert!(
                now < before + GROWTH_MAX,
                "{}: {before} bytes before, {now} now",
                member.name()
            );
            let log = member.log();
            let panicked = log.iter().find(|line| line.contains("panic"));
            assert!(panicked.is_none(), "{panicked:?}");
        }
    }

    /// The head of a request to member 0, as a member of the cluster sends it.
    pub(crate) fn head(&self, line: &str) -> Head {
        Head {
            line: line.to_owned(),
            from: self.ids[1].clone(),
            server: "3.7.1".to_owned(),
            min_cluster: "3.0.0".to_owned(),
            cluster: self.cluster_id.clone(),
            to: self.ids[0].clone(),
        }
    }

    /// Sends bytes to a member's port, nothing more, and gives all that comes back.
    pub(crate) fn ask(&self, number: usize, bytes: &[u8]) -> String {
        exchange(self.cluster.member(number), bytes)
    }

    /// How many lines of a member's log have this message.
    pub(crate) fn lines(&self, number: usize, message: &str) -> usize {
        lines(self.cluster.member(number), message)
    }
}

/// How many lines of a log have this message.
pub(crate) fn lines(member: &Process, message: &str) -> usize {
    let message = format!("\"msg\":\"{message}\"");
    let log = member.log();
    log.iter().filter(|line| line.contains(&message)).count()
}

pub(crate) fn dial(member: &Process) -> TcpStream {
    let socket = TcpStream::connect(("127.0.0.1", member.peer_port())).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends bytes, and gives all that comes back.
pub(crate) fn exchange(member: &Process, bytes: &[u8]) -> String {
    let mut socket = dial(member);
    // It may be refused before all is sent, and be closed when the rest comes: an answer too.
    let _sent = socket.write_all(bytes);
    let mut answer = Vec::new();
    let _read = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends bytes, and then the end; an answer may come back.
pub(crate) fn break_off(member: &Process, bytes: &[u8]) -> String {
    let mut socket = dial(member);
    socket.write_all(bytes).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    let _read = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    wait::until(|| holds().then_some(())).unwrap_or_else(|error| panic!("{what}: {error}"));
}

/// What members say with each request.
#[derive(Clone)]
pub(crate) struct Head {
    pub(crate) line: String,
    pub(crate) from: String,
    pub(crate) server: String,
    pub(crate) min_cluster: String,
    pub(crate) cluster: String,
    pub(crate) to: String,
}

impl Head {
    /// With other headers, without the empty line.
    pub(crate) fn text(&self) -> String {
        let Head {
            line,
            from,
            server,
            min_cluster,
            cluster,
            to,
        } = self;
        format!(
            "{line} HTTP/1.1\r\nHost: member\r\nConnection: close\r\nX-Server-From: {from}\r\n\
             X-Server-Version: {server}\r\nX-Min-Cluster-Version: {min_cluster}\r\n\
             X-Etcd-Cluster-ID: {cluster}\r\nX-Raft-To: {to}\r\n"
        )
    }

    /// The whole request.
    pub(crate) fn with(&self, body: &[u8]) -> Vec<u8> {
        self.claiming(body.len() as u128, body)
    }

    /// The whole request, with another length than the body has.
    pub(crate) fn claiming(&self, length: u128, body: &[u8]) -> Vec<u8> {
        let head = format!("{}Content-Length: {length}\r\n\r\n", self.text());
        [head.as_bytes(), body].concat()
    }
}
