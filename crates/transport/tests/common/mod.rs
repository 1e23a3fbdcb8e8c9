//! Members that only note what comes, for tests of what goes between them.
#![expect(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use keelson_proto::entry::{Entry, Snapshot};
use keelson_proto::ids::{ClusterId, LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};
use keelson_transport::listener::{ListenOptions, Listener};
use keelson_transport::tls::Tls;
use keelson_transport::{
    Config, Inbound, Peers, RouteAnswer, Routes, SnapshotBody, SnapshotRefused, StepRefused,
    Version, Versions,
};

pub(crate) const CLUSTER: ClusterId = ClusterId(0xc1);
const DEADLINE: Duration = Duration::from_secs(120);

/// Waits until something holds.
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "still not so: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// What a member has heard.
#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) member: Mutex<MemberId>,
    /// Stepped, but not yet handled.
    waiting: Mutex<Vec<Message>>,
    pub(crate) messages: Mutex<Vec<Message>>,
    pub(crate) removed: Mutex<BTreeSet<MemberId>>,
    pub(crate) unreachable: Mutex<Vec<MemberId>>,
    pub(crate) removed_self: AtomicBool,
    pub(crate) snapshots: Mutex<Vec<(Message, Result<u64, String>)>>,
    /// Bytes of snapshots taken so far.
    pub(crate) taken: Arc<AtomicU64>,
}

impl Heard {
    pub(crate) fn kinds(&self) -> Vec<MessageKind> {
        let messages = self.messages.lock().unwrap();
        messages.iter().map(|message| message.kind).collect()
    }

    pub(crate) fn indexes(&self) -> Vec<u64> {
        let messages = self.messages.lock().unwrap();
        messages.iter().map(|message| message.index.0).collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.messages.lock().unwrap().len()
    }
}

impl Inbound for Heard {
    fn step(&self, message: Message) -> Result<(), StepRefused> {
        if message.to != *self.member.lock().unwrap() {
            return Err(StepRefused::OtherMember);
        }
        if self.is_removed(message.from) {
            return Err(StepRefused::Removed);
        }
        self.waiting.lock().unwrap().push(message);
        Ok(())
    }

    fn stepped(&self) {
        let mut waiting = self.waiting.lock().unwrap();
        self.messages.lock().unwrap().append(&mut waiting);
    }

    fn receive_snapshot(
        &self,
        message: Message,
        body: &mut dyn Read,
    ) -> Result<(), SnapshotRefused> {
        if message.to != *self.member.lock().unwrap() {
            return Err(StepRefused::OtherMember.into());
        }
        let mut buffer = vec![0; 64 << 10];
        let sevens = vec![7; 64 << 10];
        let mut bytes = 0;
        let result = loop {
            match body.read(&mut buffer) {
                Ok(0) => break Ok(bytes),
                Ok(read) => {
                    assert!(buffer[..read] == sevens[..read]);
                    bytes += read as u64;
                    self.taken.fetch_add(read as u64, Ordering::SeqCst);
                }
                Err(error) => break Err(error.to_string()),
            }
        };
        let mut snapshots = self.snapshots.lock().unwrap();
        snapshots.push((message, result.clone()));
        result.map(|_| ()).map_err(SnapshotRefused::Save)
    }

    fn is_removed(&self, member: MemberId) -> bool {
        self.removed.lock().unwrap().contains(&member)
    }

    fn report_unreachable(&self, member: MemberId) {
        self.unreachable.lock().unwrap().push(member);
    }

    fn removed_from_cluster(&self) {
        self.removed_self.store(true, Ordering::SeqCst);
    }
}

/// Repeats what it is asked.
pub(crate) struct Echo;

impl Routes for Echo {
    fn route(&self, request: Request<Bytes>) -> RouteAnswer {
        let text = format!("{} {}\n", request.method(), request.uri().path());
        Box::pin(async move { Response::new(text.into()) })
    }
}

/// How a member of a test differs from others.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) cluster: ClusterId,
    pub(crate) timeout: Duration,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) listener: Option<Arc<Listener>>,
    pub(crate) connections_max: usize,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            cluster: CLUSTER,
            // Some wait until it is over.
            timeout: Duration::from_secs(15),
            tls: None,
            listener: None,
            connections_max: keelson_transport::CONNECTIONS_MAX,
        }
    }
}

/// A member that notes what it hears.
pub(crate) struct Member {
    pub(crate) id: MemberId,
    pub(crate) peers: Peers,
    pub(crate) heard: Arc<Heard>,
    pub(crate) url: String,
    pub(crate) address: String,
}

impl Member {
    pub(crate) fn start(id: u64) -> Member {
        Member::with(id, Setup::default())
    }

    pub(crate) fn with(id: u64, setup: Setup) -> Member {
        let listener = match setup.listener {
            Some(listener) => listener.try_clone().unwrap(),
            None => Listener::bind_tcp("127.0.0.1:0", ListenOptions::default()).unwrap(),
        };
        let secured = setup.tls.is_some();
        let address = listener.local_address();
        let url = format!("{}://{address}", if secured { "https" } else { "http" });
        let heard = Arc::new(Heard::default());
        *heard.member.lock().unwrap() = MemberId(id);
        let config = Config {
            member: MemberId(id),
            cluster: setup.cluster,
            versions: Versions {
                server: Version::new(3, 7, 1),
                min_cluster: Version::new(3, 0, 0),
            },
            advertised_urls: vec![url.clone()],
            // It is what dialling may take, too.
            election_timeout: DEADLINE,
            read_timeout: setup.timeout,
            write_timeout: setup.timeout,
            connections_max: setup.connections_max,
            tls: setup.tls,
        };
        let peers = Peers::start(config, Arc::clone(&heard) as _, Arc::new(Echo)).unwrap();
        peers.serve(listener, secured).unwrap();
        Member {
            id: MemberId(id),
            peers,
            heard,
            url,
            address,
        }
    }

    pub(crate) fn knows(&self, other: &Member) {
        let urls = [other.url.clone()];
        self.peers.add_peer(other.id, &urls).unwrap();
    }

    /// Sends a message of a kind with an index to tell it by.
    pub(crate) fn send(&self, to: &Member, kind: MessageKind, index: u64) {
        self.peers.send(vec![self.message(to.id, kind, index)]);
    }

    pub(crate) fn message(&self, to: MemberId, kind: MessageKind, index: u64) -> Message {
        Message {
            kind,
            to,
            from: self.id,
            term: Term(1),
            log_term: Term(1),
            index: LogIndex(index),
            ..Message::default()
        }
    }

    /// Tells the other until it has been heard: streams may not be up yet.
    pub(crate) fn reaches(&self, to: &Member) {
        let before = to.heard.count();
        let mut sent = 0;
        wait_for("a message arrives", || {
            sent += 1;
            if sent % 50 == 1 {
                self.send(to, MessageKind::Heartbeat, 0);
            }
            to.heard.count() > before
        });
    }

    /// Sends bytes to its port and gives all that comes back until the connection ends.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // It may be cut, which is an answer too.
        let _ = socket.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The head of a request from `from`, with what every one has.
    pub(crate) fn head(&self, line: &str, from: MemberId) -> String {
        format!(
            "{line} HTTP/1.1\r\nHost: {}\r\nX-Server-From: {from}\r\nX-Server-Version: 3.7.1\r\n\
             X-Min-Cluster-Version: 3.0.0\r\nX-Etcd-Cluster-ID: {CLUSTER}\r\nX-Raft-To: {}\r\n",
            self.address, self.id
        )
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.peers.stop();
    }
}

pub(crate) fn pair() -> (Member, Member) {
    let (a, b) = (Member::start(0xa), Member::start(0xb));
    a.knows(&b);
    b.knows(&a);
    (a, b)
}

pub(crate) fn append(from: MemberId, to: MemberId, index: u64, data: &[u8]) -> Message {
    Message {
        kind: MessageKind::App,
        to,
        from,
        term: Term(1),
        log_term: Term(1),
        index: LogIndex(index),
        entries: vec![Entry {
            term: Term(1),
            index: LogIndex(index + 1),
            data: Bytes::copy_from_slice(data),
            ..Entry::default()
        }],
        ..Message::default()
    }
}

pub(crate) fn snapshot(from: MemberId, to: MemberId) -> Message {
    Message {
        kind: MessageKind::Snap,
        to,
        from,
        term: Term(1),
        snapshot: Some(Box::new(Snapshot {
            data: Bytes::from_static(b"{}"),
            index: LogIndex(9),
            term: Term(1),
            ..Snapshot::default()
        })),
        ..Message::default()
    }
}

/// A file of sevens, which may break off.
pub(crate) struct Sevens {
    pub(crate) size: u64,
    pub(crate) left: u64,
    pub(crate) fails_at: Option<u64>,
    pub(crate) given: Arc<AtomicU64>,
    pub(crate) finished: Arc<Mutex<Option<bool>>>,
}

impl Sevens {
    pub(crate) fn new(size: u64) -> Sevens {
        Sevens {
            size,
            left: size,
            fails_at: None,
            given: Arc::default(),
            finished: Arc::default(),
        }
    }
}

impl Read for Sevens {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.fails_at.is_some_and(|at| self.size - self.left >= at) {
            return Err(std::io::Error::other("the disk is gone"));
        }
        let count = usize::try_from(self.left).unwrap().min(buffer.len());
        buffer[..count].fill(7);
        self.left -= count as u64;
        self.given.fetch_add(count as u64, Ordering::SeqCst);
        Ok(count)
    }
}

impl SnapshotBody for Sevens {
    fn size(&self) -> u64 {
        self.size
    }

    fn finish(self: Box<Self>, delivered: bool) {
        *self.finished.lock().unwrap() = Some(delivered);
    }
}
