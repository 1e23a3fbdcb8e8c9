//! A network in memory: links that can be cut, one way each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use keelson_node::corrupt::{PeerAnswer, PeerHash};
use keelson_node::{Node, OutgoingSnapshot, Peers, Release};
use keelson_proto::ids::MemberId;
use keelson_proto::message::{Message, MessageKind};
use keelson_store::hash::hash_kv;
use semver::Version;

#[derive(Default)]
struct State {
    nodes: BTreeMap<MemberId, Node>,
    /// From whom to whom nothing passes.
    cut: BTreeSet<(MemberId, MemberId)>,
    /// Since when a member is there.
    since: BTreeMap<MemberId, Duration>,
    releases: BTreeMap<MemberId, Version>,
    /// Messages that have passed, by kind and sender.
    passed: BTreeMap<(MessageKind, MemberId), u64>,
    snapshots: u64,
    /// Members that lie about their hashes.
    liars: BTreeSet<MemberId>,
    /// How snapshots are spoilt on their way.
    spoil: Option<Spoil>,
}

/// What happens to the file of a snapshot.
#[derive(Clone, Copy)]
pub(crate) enum Spoil {
    /// Its second half is missing, and nobody says so.
    Cut,
    /// Somebody says that its checksum is wrong.
    Checksum,
}

/// The network.
#[derive(Clone, Default)]
pub(crate) struct Net {
    state: Arc<Mutex<State>>,
}

impl Net {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn join(&self, node: &Node) {
        let mut state = self.lock();
        let id = node.member_id();
        let release = Version::new(3, 7, 0);
        state.releases.entry(id).or_insert(release);
        state.since.insert(id, node.env().clock.now());
        state.nodes.insert(id, node.clone());
    }

    pub(crate) fn leave(&self, id: MemberId) {
        // Dropped outside of the lock: the last one ends the member, whose threads come here.
        let _node = self.lock().nodes.remove(&id);
    }

    /// Cuts a member off from everybody, both ways.
    pub(crate) fn isolate(&self, id: MemberId) {
        let mut state = self.lock();
        let others: Vec<MemberId> = state.since.keys().copied().filter(|it| *it != id).collect();
        for other in others {
            state.cut.insert((id, other));
            state.cut.insert((other, id));
        }
    }

    /// Cuts one direction of a link.
    pub(crate) fn cut(&self, from: MemberId, to: MemberId) {
        self.lock().cut.insert((from, to));
    }

    pub(crate) fn heal(&self) {
        self.lock().cut.clear();
    }

    pub(crate) fn spoil_snapshots(&self, spoil: Option<Spoil>) {
        self.lock().spoil = spoil;
    }

    /// From now on this member's data seem to be others.
    pub(crate) fn corrupt(&self, id: MemberId) {
        self.lock().liars.insert(id);
    }

    /// Snapshots that were put on their way.
    pub(crate) fn snapshots(&self) -> u64 {
        self.lock().snapshots
    }

    /// Messages of a kind that have passed.
    pub(crate) fn passed(&self, kind: MessageKind) -> u64 {
        let state = self.lock();
        let of_kind = state.passed.iter().filter(|((of, _), _)| *of == kind);
        of_kind.map(|(_, count)| count).sum()
    }

    /// Messages of a kind that have passed from one member.
    pub(crate) fn passed_from(&self, kind: MessageKind, from: MemberId) -> u64 {
        let state = self.lock();
        state.passed.get(&(kind, from)).copied().unwrap_or(0)
    }

    fn target(&self, from: MemberId, to: MemberId) -> Option<Node> {
        let state = self.lock();
        if state.cut.contains(&(from, to)) {
            return None;
        }
        state.nodes.get(&to).cloned()
    }
}

/// One member's way to the others.
pub(crate) struct Wires {
    pub(crate) net: Net,
    pub(crate) own: Mutex<MemberId>,
    /// What the member has said of the others, in order.
    pub(crate) told: Mutex<Vec<String>>,
}

impl Wires {
    fn own(&self) -> MemberId {
        *self.own.lock().unwrap()
    }

    fn tell(&self, what: String) {
        self.told.lock().unwrap().push(what);
    }
}

impl Peers for Wires {
    fn send(&self, messages: Vec<Message>) {
        for message in messages {
            let (own, kind) = (self.own(), message.kind);
            // The first messages go out before the member is known here.
            let from = if own.is_none() { message.from } else { own };
            if let Some(node) = self.net.target(from, message.to) {
                *self.net.lock().passed.entry((kind, from)).or_default() += 1;
                // What a member refuses is lost, as on a socket.
                let _ = node.step(message);
            }
        }
    }

    fn send_snapshot(&self, snapshot: OutgoingSnapshot) {
        self.net.lock().snapshots += 1;
        let to = snapshot.message().to;
        let Some(node) = self.net.target(self.own(), to) else {
            return snapshot.finish(false);
        };
        let spoil = self.net.lock().spoil;
        std::thread::Builder::new()
            .spawn(move || {
                let message = snapshot.message().clone();
                let delivered = match spoil {
                    None => node
                        .receive_snapshot(message, &mut snapshot.reader())
                        .is_ok(),
                    Some(Spoil::Cut) => {
                        let half = snapshot.size() / 2;
                        let mut reader = std::io::Read::take(snapshot.reader(), half);
                        node.receive_snapshot(message, &mut reader).is_ok()
                    }
                    Some(Spoil::Checksum) => {
                        let wrong = Wrong;
                        let mut reader = std::io::Read::chain(snapshot.reader(), wrong);
                        node.receive_snapshot(message, &mut reader).is_ok()
                    }
                };
                drop(node);
                snapshot.finish(delivered);
            })
            .unwrap();
    }

    fn add(&self, member: MemberId, peer_urls: &[String]) {
        self.tell(format!("add {member} {}", peer_urls.join(",")));
    }

    fn update(&self, member: MemberId, peer_urls: &[String]) {
        self.tell(format!("update {member} {}", peer_urls.join(",")));
    }

    fn remove(&self, member: MemberId) {
        self.tell(format!("remove {member}"));
    }

    fn replace(&self, members: Vec<(MemberId, Vec<String>)>) {
        self.tell(format!("replace by {}", members.len()));
    }

    fn active_since(&self, member: MemberId) -> Option<Duration> {
        let state = self.net.lock();
        let own = self.own();
        let is_cut = state.cut.contains(&(own, member)) || state.cut.contains(&(member, own));
        if is_cut || !state.nodes.contains_key(&member) {
            return None;
        }
        state.since.get(&member).copied()
    }

    fn release(&self, member: MemberId) -> Release {
        let release = self.net.lock().releases.get(&member).cloned();
        match release {
            Some(release) if self.active_since(member).is_some() => Release::Known(release),
            _ => Release::Unreachable,
        }
    }

    fn ask_hash(&self, member: MemberId, revision: i64, round: u64) {
        let own = self.own();
        let (asker, asked) = (self.net.target(member, own), self.net.target(own, member));
        let (Some(asker), Some(asked)) = (asker, asked) else {
            return;
        };
        let lies = self.net.lock().liars.contains(&member);
        let answer = hash_kv(asked.shared(), revision);
        let answer = answer.map_or(PeerAnswer::Refused, |mut hash| {
            hash.hash ^= u32::from(lies);
            let revision = asked.shared().revision();
            PeerAnswer::Hash(PeerHash { revision, hash })
        });
        asker.report_hash(round, member, answer);
    }
}

/// Ends a body as one whose checksum is not that which was announced.
struct Wrong;

impl std::io::Read for Wrong {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("checksum mismatch"))
    }
}
