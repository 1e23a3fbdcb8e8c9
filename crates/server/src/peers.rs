//! The way to the other members: what the node sends, and what is known of its connections.
//!
//! Each member has two lanes, so that heartbeats and votes do not wait behind entries, and a prober,
//! which says whether it is there and which release it is. All of it runs on a runtime of its own: it
//! must go on also when those for clients do not.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, StatusCode};
use keelson_node::{Node, OutgoingSnapshot, Peers, Release, Removed};
use keelson_proto::ids::MemberId;
use keelson_proto::message::{Message, MessageKind};
use semver::Version;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::url::Url;
use line::{Line, Payload};

pub(crate) mod forward;
pub(crate) mod join;
pub(crate) mod line;
mod snapshot;

/// The header that names the cluster.
pub(crate) const CLUSTER_ID: &str = "x-etcd-cluster-id";
/// The header that names the sender.
pub(crate) const FROM: &str = "x-server-from";
/// The header with the sender's release.
pub(crate) const VERSION: &str = "x-server-version";
/// The header with the oldest release that the sender speaks with.
pub(crate) const MIN_VERSION: &str = "x-min-cluster-version";
/// The header with the sender's peer URLs.
pub(crate) const PEER_URLS: &str = "x-peerurls";
/// What [`MIN_VERSION`] says.
const MIN_CLUSTER_VERSION: &str = "3.0.0";

/// Messages that wait for a member on one lane: the reference's number. What is beyond is lost.
const QUEUE_MAX: usize = 4096;
/// The longest that one message may take.
const POST_PATIENCE: Duration = Duration::from_secs(3);
/// How often a member is looked after, and how long its answer may take.
const PROBE_EVERY: Duration = Duration::from_millis(500);
const PROBE_PATIENCE: Duration = Duration::from_secs(1);
/// How many probes from one question for the release to the next.
const PROBES_A_RELEASE: u32 = 8;

/// The other members.
pub(crate) struct Links {
    /// `None` once it has been shut down.
    runtime: Mutex<Option<Runtime>>,
    context: Arc<Context>,
    members: Mutex<BTreeMap<MemberId, Peer>>,
}

/// What all tasks share.
struct Context {
    /// The release that is said of this member.
    version: &'static str,
    /// Its own peer URLs, with commas between.
    own_urls: String,
    /// The node, once it runs; `None` again when it stops.
    node: watch::Sender<Option<Node>>,
    /// Told that this member is no member any more.
    removed: Removed,
}

impl Context {
    /// Others say that this member was removed; its own log may never tell it.
    fn was_removed(&self) {
        tracing::error!("the member has been permanently removed from the cluster");
        (self.removed)();
    }
}

/// One of the others.
struct Peer {
    urls: Vec<Url>,
    entries: mpsc::Sender<Message>,
    others: mpsc::Sender<Message>,
    health: Arc<Health>,
    tasks: [AbortHandle; 3],
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// What is known of a member.
#[derive(Default)]
struct Health {
    since: Mutex<Option<Duration>>,
    release: Mutex<Option<Release>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these hold is replaced whole, so it is sound whatever their holder did.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Health {
    fn up(&self, id: MemberId, now: Duration) {
        let mut since = lock(&self.since);
        if since.is_none() {
            tracing::info!("peer-id" = %id, "peer became active");
            *since = Some(now);
        }
    }

    fn down(&self, id: MemberId, error: &dyn std::fmt::Display) {
        if lock(&self.since).take().is_some() {
            tracing::warn!("peer-id" = %id, %error, "peer became inactive (message send to peer failed)");
        }
    }
}

impl Links {
    /// # Errors
    ///
    /// Where the system gives no threads.
    pub(crate) fn start(
        version: &'static str,
        own_urls: &[Url],
        removed: Removed,
    ) -> io::Result<Links> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("peers")
            .enable_all()
            .build()?;
        let own_urls: Vec<&str> = own_urls.iter().map(Url::as_str).collect();
        Ok(Links {
            runtime: Mutex::new(Some(runtime)),
            context: Arc::new(Context {
                version,
                own_urls: own_urls.join(","),
                node: watch::Sender::new(None),
                removed,
            }),
            members: Mutex::default(),
        })
    }

    /// Lets the lanes begin.
    pub(crate) fn attach(&self, node: &Node) {
        self.context.node.send_replace(Some(node.clone()));
    }

    /// Ends everything, and lets go of the node.
    pub(crate) fn stop(&self) {
        lock(&self.members).clear();
        self.context.node.send_replace(None);
        if let Some(runtime) = lock(&self.runtime).take() {
            runtime.shutdown_background();
        }
    }

    /// Runs `work` to its end on the runtime of the peers.
    ///
    /// # Errors
    ///
    /// Where it was stopped.
    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> io::Result<T> {
        match &*lock(&self.runtime) {
            Some(runtime) => Ok(runtime.block_on(work)),
            None => Err(io::Error::other("the member stops")),
        }
    }

    /// A sender that is no member as far as this one knows: it is answered at the URLs that it names.
    /// So a member that joins can answer those who tell it who they are.
    pub(crate) fn add_sender(&self, id: MemberId, urls: &[Url]) {
        let mut members = lock(&self.members);
        if !urls.is_empty() && !members.contains_key(&id) {
            self.put(&mut members, id, urls.to_vec());
        }
    }

    /// A message has come from a member.
    pub(crate) fn heard_of(&self, id: MemberId, node: &Node) {
        if let Some(peer) = lock(&self.members).get(&id) {
            peer.health.up(id, node.env().clock.now());
        }
    }

    /// The peer URLs of a member; none if it is not known.
    pub(crate) fn urls_of(&self, id: MemberId) -> Vec<Url> {
        let members = lock(&self.members);
        members
            .get(&id)
            .map_or_else(Vec::new, |peer| peer.urls.clone())
    }

    /// Since when, on the member's clock, this one has been connected to each of the others.
    pub(crate) fn connected(&self) -> BTreeMap<MemberId, Duration> {
        let members = lock(&self.members);
        let since = |peer: &Peer| *lock(&peer.health.since);
        members
            .iter()
            .filter_map(|(id, peer)| since(peer).map(|since| (*id, since)))
            .collect()
    }

    fn put(&self, members: &mut BTreeMap<MemberId, Peer>, id: MemberId, urls: Vec<Url>) {
        let runtime = lock(&self.runtime);
        let Some(runtime) = &*runtime else {
            return;
        };
        let (entries, from_entries) = mpsc::channel(QUEUE_MAX);
        let (others, from_others) = mpsc::channel(QUEUE_MAX);
        let before = members.get(&id).map(|peer| Arc::clone(&peer.health));
        let target = Target {
            id,
            urls: urls.clone(),
            health: before.unwrap_or_default(),
            context: Arc::clone(&self.context),
        };
        let health = Arc::clone(&target.health);
        let tasks = [
            runtime.spawn(target.clone().lane(from_entries)),
            runtime.spawn(target.clone().lane(from_others)),
            runtime.spawn(target.probe()),
        ];
        let peer = Peer {
            urls,
            entries,
            others,
            health,
            tasks: tasks.map(|task| task.abort_handle()),
        };
        members.insert(id, peer);
    }

    fn set(&self, id: MemberId, peer_urls: &[String]) {
        let urls: Result<Vec<Url>, _> = peer_urls.iter().map(|url| Url::parse(url)).collect();
        match urls {
            Ok(urls) => self.put(&mut lock(&self.members), id, urls),
            Err(error) => {
                tracing::warn!("peer-id" = %id, urls = ?peer_urls, %error, "peer URLs cannot be used");
            }
        }
    }

    fn report(&self, id: MemberId) {
        if let Some(node) = &*self.context.node.borrow() {
            node.report_unreachable(id);
        }
    }
}

impl Peers for Links {
    fn send(&self, messages: Vec<Message>) {
        let mut lost = Vec::new();
        {
            let members = lock(&self.members);
            for message in messages {
                let Some(peer) = members.get(&message.to) else {
                    continue;
                };
                let lane = match message.kind {
                    MessageKind::App | MessageKind::Prop => &peer.entries,
                    _ => &peer.others,
                };
                let to = message.to;
                if lane.try_send(message).is_err() {
                    lost.push(to);
                }
            }
        }
        for id in lost {
            tracing::warn!("remote-peer-id" = %id, "dropped internal Raft message since sending buffer is full");
            self.report(id);
        }
    }

    fn send_snapshot(&self, snapshot: OutgoingSnapshot) {
        let to = snapshot.message().to;
        let Some(target) = self.target(to) else {
            return snapshot.finish(false);
        };
        if let Some(runtime) = &*lock(&self.runtime) {
            runtime.spawn(snapshot::send(target, snapshot));
        }
    }

    fn add(&self, member: MemberId, peer_urls: &[String]) {
        self.set(member, peer_urls);
    }

    fn update(&self, member: MemberId, peer_urls: &[String]) {
        self.set(member, peer_urls);
    }

    fn remove(&self, member: MemberId) {
        lock(&self.members).remove(&member);
    }

    fn replace(&self, new: Vec<(MemberId, Vec<String>)>) {
        lock(&self.members).retain(|id, _| new.iter().any(|(known, _)| known == id));
        for (id, urls) in new {
            self.set(id, &urls);
        }
    }

    fn active_since(&self, member: MemberId) -> Option<Duration> {
        let members = lock(&self.members);
        members
            .get(&member)
            .and_then(|peer| *lock(&peer.health.since))
    }

    fn release(&self, member: MemberId) -> Release {
        let members = lock(&self.members);
        let known = members
            .get(&member)
            .and_then(|peer| lock(&peer.health.release).clone());
        known.unwrap_or(Release::NotAsked)
    }
}

impl Links {
    fn target(&self, id: MemberId) -> Option<Target> {
        let members = lock(&self.members);
        members.get(&id).map(|peer| Target {
            id,
            urls: peer.urls.clone(),
            health: Arc::clone(&peer.health),
            context: Arc::clone(&self.context),
        })
    }
}

/// A member as a task sees it.
#[derive(Clone)]
struct Target {
    id: MemberId,
    urls: Vec<Url>,
    health: Arc<Health>,
    context: Arc<Context>,
}

impl Target {
    /// The node, once it runs.
    async fn node(&self) -> Option<Node> {
        let mut watched = self.context.node.subscribe();
        let node = watched.wait_for(Option::is_some).await.ok()?;
        node.clone()
    }

    /// A request with the headers by which members know each other.
    fn request(&self, node: &Node, method: Method, path: &str, body: Payload) -> Request<Payload> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = http::Uri::try_from(path).expect("paths are constants and numbers");
        let headers = request.headers_mut();
        let texts = [
            (CLUSTER_ID, node.cluster_id().to_string()),
            (FROM, node.member_id().to_string()),
            (VERSION, self.context.version.to_owned()),
            (MIN_VERSION, MIN_CLUSTER_VERSION.to_owned()),
            (PEER_URLS, self.context.own_urls.clone()),
        ];
        for (name, text) in texts {
            let value =
                HeaderValue::try_from(text).expect("ids, versions and URLs are visible ASCII");
            headers.insert(name, value);
        }
        request
    }

    /// Sends messages in order, each in a request of its own.
    async fn lane(self, mut queue: mpsc::Receiver<Message>) {
        let Some(node) = self.node().await else {
            return;
        };
        let mut line: Option<Line> = None;
        let mut turn = 0;
        while let Some(message) = queue.recv().await {
            let sent = async {
                let line = match &mut line {
                    Some(line) if !line.is_closed() => line,
                    _ => line.insert(Line::open(&self.urls[turn % self.urls.len()]).await?),
                };
                let body = line::whole(message.encode());
                let mut request = self.request(&node, Method::POST, "/raft", body);
                let protobuf = HeaderValue::from_static("application/protobuf");
                request.headers_mut().insert(CONTENT_TYPE, protobuf);
                let response = line.send(request).await?;
                match response.status() {
                    StatusCode::NO_CONTENT => Ok(()),
                    StatusCode::FORBIDDEN => {
                        self.context.was_removed();
                        Err(line::refused(&response))
                    }
                    _ => Err(line::refused(&response)),
                }
            };
            let sent = tokio::time::timeout(POST_PATIENCE, sent).await;
            match sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(()) => self.health.up(self.id, node.env().clock.now()),
                Err(error) => {
                    line = None;
                    turn += 1;
                    self.health.down(self.id, &error);
                    node.report_unreachable(self.id);
                }
            }
        }
    }

    /// Looks after the member, and asks for its release now and then.
    async fn probe(self) {
        let Some(node) = self.node().await else {
            return;
        };
        let mut probes: u32 = 0;
        loop {
            let url = &self.urls[probes as usize % self.urls.len()];
            let probe = self.request(&node, Method::GET, "/raft/probing", line::whole(""));
            match line::once(url, probe, PROBE_PATIENCE).await {
                Ok(response) if response.status() == StatusCode::OK => {
                    self.health.up(self.id, node.env().clock.now());
                }
                Ok(response) => self.health.down(self.id, &line::refused(&response)),
                Err(error) => self.health.down(self.id, &error),
            }
            if probes.is_multiple_of(PROBES_A_RELEASE) || !self.is_release_known() {
                let release = join::release(url, PROBE_PATIENCE).await;
                *lock(&self.health.release) = Some(match release {
                    Ok(version) => Release::Known(version),
                    Err(_) => Release::Unreachable,
                });
            }
            probes = probes.wrapping_add(1);
            sleep(PROBE_EVERY).await;
        }
    }

    fn is_release_known(&self) -> bool {
        matches!(*lock(&self.health.release), Some(Release::Known(_)))
    }
}

/// A version as a header or an answer says it.
pub(crate) fn version_of(text: &str) -> io::Result<Version> {
    Version::parse(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
