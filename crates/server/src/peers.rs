//! The way to the other members, between the node and the transport: messages and snapshots both ways,
//! who is a member, and which release each of them runs.
//!
//! The transport can only begin when the node knows who it is, and the node needs a way to others
//! before that. So [`Links`] is there first; what is sent before [`Links::attach`] is lost, which
//! consensus allows for, and members that come are kept for it.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use keelson_node::{Node, OutgoingSnapshot, Release, Removed};
use keelson_proto::ids::MemberId;
use keelson_proto::message::Message;
use keelson_transport::stats::Stats;
use keelson_transport::{Inbound, PeerClient, Peers, SnapshotBody, SnapshotRefused, StepRefused};
use semver::Version;
use tokio::sync::oneshot;

use crate::url::Url;

pub(crate) mod forward;
pub(crate) mod hashes;
pub(crate) mod join;

/// How often members are asked for their release, and how often while one of them is not known.
const RELEASE_EVERY: Duration = Duration::from_secs(4);
const RELEASE_SOON: Duration = Duration::from_millis(200);
/// How long each of them may take.
const RELEASE_PATIENCE: Duration = Duration::from_secs(1);

/// The other members.
pub(crate) struct Links {
    shared: Arc<Shared>,
    /// Where questions wait for their answers: the thread that asks for releases.
    questions: tokio::runtime::Handle,
    /// Asks for releases.
    asking: Mutex<Option<(JoinHandle<()>, oneshot::Sender<()>)>>,
    pub(crate) client: PeerClient,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    members: BTreeMap<MemberId, Vec<String>>,
    releases: BTreeMap<MemberId, Release>,
    /// The members of a cluster that is joined: they are answered before the log says who they are.
    remotes: Vec<(MemberId, Vec<String>)>,
    /// Once the node knows who it is, until it stops.
    attached: Option<Attached>,
}

struct Attached {
    peers: Peers,
    node: Node,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What it holds is changed in single steps, so it is sound whatever its holder did.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Says so where the transport does not take what the log says of a member.
    fn tell(
        &self,
        member: MemberId,
        told: impl FnOnce(&Peers) -> Result<(), keelson_transport::Error>,
    ) {
        if let Some(attached) = &self.attached
            && let Err(error) = told(&attached.peers)
        {
            tracing::warn!("remote-peer-id" = %member, %error, "a member cannot be reached");
        }
    }
}

impl Links {
    /// # Errors
    ///
    /// Where the system gives no thread.
    pub(crate) fn start(client: PeerClient) -> io::Result<Links> {
        let shared = Arc::<Shared>::default();
        let (end, ended) = oneshot::channel();
        let (of, asks) = (Arc::clone(&shared), client.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let questions = runtime.handle().clone();
        let asking = std::thread::Builder::new()
            .name("releases".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = ask_for_releases(&of, &asks) => {}
                        _ = ended => {}
                    }
                });
            })?;
        Ok(Links {
            shared,
            questions,
            asking: Mutex::new(Some((asking, end))),
            client,
        })
    }

    /// These are the members of the cluster that is being joined.
    pub(crate) fn joins(&self, remotes: Vec<(MemberId, Vec<String>)>) {
        self.shared.lock().remotes = remotes;
    }

    /// Lets messages flow: the node knows who it is.
    pub(crate) fn attach(&self, peers: Peers, node: &Node) {
        let mut state = self.shared.lock();
        for (member, urls) in &state.members {
            if let Err(error) = peers.add_peer(*member, urls) {
                tracing::warn!("remote-peer-id" = %member, %error, "a member cannot be reached");
            }
        }
        for (member, urls) in &state.remotes {
            if let Err(error) = peers.add_remote(*member, urls) {
                tracing::warn!("remote-peer-id" = %member, %error, "a member cannot be reached");
            }
        }
        state.attached = Some(Attached {
            peers,
            node: node.clone(),
        });
    }

    /// Ends everything, and lets go of the node.
    pub(crate) fn stop(&self) {
        let attached = self.shared.lock().attached.take();
        if let Some(attached) = attached {
            attached.peers.stop();
        }
        let asking = self
            .asking
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((thread, end)) = asking {
            drop(end);
            if thread.join().is_err() {
                tracing::error!("the thread that asks for releases has panicked");
            }
        }
    }

    /// The peer URLs of a member; none if it is not known.
    pub(crate) fn urls_of(&self, id: MemberId) -> Vec<String> {
        self.shared
            .lock()
            .members
            .get(&id)
            .cloned()
            .unwrap_or_default()
    }

    /// Numbers for metrics; none before the beginning and after the end.
    pub(crate) fn stats(&self) -> Option<Arc<Stats>> {
        let state = self.shared.lock();
        state
            .attached
            .as_ref()
            .map(|attached| attached.peers.stats())
    }
}

impl State {
    /// The transport counts time by the system, the node by its own clock.
    fn since(&self, member: MemberId) -> Option<Duration> {
        let Attached { peers, node } = self.attached.as_ref()?;
        let ago = peers.active_since(member)?.elapsed();
        Some(node.env().clock.now().saturating_sub(ago))
    }
}

/// Asks all members for their release, again and again.
async fn ask_for_releases(shared: &Shared, client: &PeerClient) {
    loop {
        let members = shared.lock().members.clone();
        let asked = members
            .iter()
            .map(|(id, urls)| async move { (*id, release(client, urls).await) });
        let answers = futures_util::future::join_all(asked).await;
        let all_known = answers
            .iter()
            .all(|(_, release)| matches!(release, Release::Known(_)));
        {
            let mut state = shared.lock();
            let known = &members;
            state.releases.retain(|id, _| known.contains_key(id));
            state.releases.extend(answers);
        }
        let pause = if all_known && !members.is_empty() {
            RELEASE_EVERY
        } else {
            RELEASE_SOON
        };
        tokio::time::sleep(pause).await;
    }
}

async fn release(client: &PeerClient, urls: &[String]) -> Release {
    for url in urls {
        let answer = client.version(url, RELEASE_PATIENCE).await;
        if let Ok(answer) = answer
            && let Ok(version) = Version::parse(&answer.etcdserver)
        {
            return Release::Known(version);
        }
    }
    Release::Unreachable
}

impl keelson_node::Peers for Links {
    fn send(&self, messages: Vec<Message>) {
        if let Some(attached) = &self.shared.lock().attached {
            attached.peers.send(messages);
        }
    }

    fn send_snapshot(&self, snapshot: OutgoingSnapshot) {
        let message = snapshot.message().clone();
        let body = Box::new(Outgoing {
            snapshot,
            offset: 0,
        });
        match &self.shared.lock().attached {
            Some(attached) => attached.peers.send_snapshot(message, body),
            None => body.finish(false),
        }
    }

    fn add(&self, member: MemberId, peer_urls: &[String]) {
        let mut state = self.shared.lock();
        state.members.insert(member, peer_urls.to_vec());
        state.tell(member, |peers| peers.add_peer(member, peer_urls));
    }

    fn update(&self, member: MemberId, peer_urls: &[String]) {
        let mut state = self.shared.lock();
        state.members.insert(member, peer_urls.to_vec());
        state.tell(member, |peers| peers.update_peer(member, peer_urls));
    }

    fn remove(&self, member: MemberId) {
        let mut state = self.shared.lock();
        state.members.remove(&member);
        state.releases.remove(&member);
        if let Some(attached) = &state.attached {
            attached.peers.remove_peer(member);
        }
    }

    fn replace(&self, members: Vec<(MemberId, Vec<String>)>) {
        let mut state = self.shared.lock();
        let new: BTreeMap<MemberId, Vec<String>> = members.into_iter().collect();
        let old = std::mem::replace(&mut state.members, new);
        for member in old.keys().filter(|id| !state.members.contains_key(id)) {
            if let Some(attached) = &state.attached {
                attached.peers.remove_peer(*member);
            }
        }
        for (member, urls) in &state.members {
            state.tell(*member, |peers| match old.get(member) {
                Some(before) if before == urls => Ok(()),
                Some(_) => peers.update_peer(*member, urls),
                None => peers.add_peer(*member, urls),
            });
        }
    }

    fn active_since(&self, member: MemberId) -> Option<Duration> {
        self.shared.lock().since(member)
    }

    fn release(&self, member: MemberId) -> Release {
        let state = self.shared.lock();
        let known = state.releases.get(&member).cloned();
        known.unwrap_or(Release::NotAsked)
    }

    fn ask_hash(&self, member: MemberId, revision: i64, round: u64) {
        let state = self.shared.lock();
        let (Some(attached), Some(urls)) = (&state.attached, state.members.get(&member)) else {
            // Whoever is not asked counts as silent.
            return;
        };
        let (node, urls, client) = (attached.node.clone(), urls.clone(), self.client.clone());
        drop(state);
        self.questions.spawn(async move {
            let patience = node.config().request_timeout();
            let answer = hashes::ask(&client, node.cluster_id(), &urls, revision, patience).await;
            node.report_hash(round, member, answer);
        });
    }
}

/// A snapshot on its way out, as the transport reads it.
struct Outgoing {
    snapshot: OutgoingSnapshot,
    offset: u64,
}

impl Read for Outgoing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.snapshot.read_at(self.offset, buffer)?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl SnapshotBody for Outgoing {
    fn size(&self) -> u64 {
        self.snapshot.size()
    }

    fn finish(self: Box<Self>, delivered: bool) {
        self.snapshot.finish(delivered);
    }
}

/// What comes from other members, on its way to the node.
pub(crate) struct Incoming {
    pub(crate) node: Node,
    pub(crate) removed: Removed,
}

fn refused(error: keelson_node::StepRefused) -> StepRefused {
    match error {
        keelson_node::StepRefused::Removed => StepRefused::Removed,
        keelson_node::StepRefused::OtherMember => StepRefused::OtherMember,
        keelson_node::StepRefused::NoDatabase => StepRefused::NoDatabase,
        keelson_node::StepRefused::Busy => StepRefused::Busy,
        keelson_node::StepRefused::Stopped => StepRefused::Stopped,
    }
}

impl Inbound for Incoming {
    fn step(&self, message: Message) -> Result<(), StepRefused> {
        self.node.step_later(message).map_err(refused)
    }

    fn stepped(&self) {
        self.node.take_turn();
    }

    fn receive_snapshot(
        &self,
        message: Message,
        body: &mut dyn Read,
    ) -> Result<(), SnapshotRefused> {
        let received = self.node.receive_snapshot(message, body);
        received.map_err(|error| match error {
            keelson_node::SnapshotRefused::Message(error) => refused(error).into(),
            error => SnapshotRefused::Save(error.to_string()),
        })
    }

    fn is_removed(&self, member: MemberId) -> bool {
        self.node.is_removed(member)
    }

    fn report_unreachable(&self, member: MemberId) {
        self.node.report_unreachable(member);
    }

    fn removed_from_cluster(&self) {
        tracing::error!("the member has been permanently removed from the cluster");
        (self.removed)();
    }
}

/// URLs as texts.
pub(crate) fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::to_string).collect()
}
