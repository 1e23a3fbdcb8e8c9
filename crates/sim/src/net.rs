//! The network between members: it drops, delays, duplicates and reorders messages, cuts and stops links
//! one way at a time, and keeps copies of what it has carried.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use keelson_node::corrupt::PeerAnswer;
use keelson_node::{OutgoingSnapshot, Peers, Release};
use keelson_proto::ids::MemberId;
use keelson_proto::message::{Message, MessageKind};
use semver::Version;

use crate::clock::{MILLI, Moment, SECOND};
use crate::random::Random;

/// How links behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// Messages lost, of a thousand.
    pub lost: u64,
    /// Messages that come twice, of a thousand.
    pub doubled: u64,
    /// Messages that are held up for long, of a thousand.
    pub held_up: u64,
    /// The usual delay, at most.
    pub delay: Moment,
    /// The delay of those that are held up, at most.
    pub long_delay: Moment,
    /// Messages of which a copy is kept that comes at some worse time, of a thousand.
    pub kept: u64,
}

impl Weather {
    /// Nothing is lost, and nothing takes long.
    #[must_use]
    pub(crate) fn fair() -> Weather {
        Weather {
            lost: 0,
            doubled: 0,
            held_up: 0,
            delay: 2 * MILLI,
            long_delay: 2 * MILLI,
            kept: 0,
        }
    }

    /// One of many kinds.
    pub(crate) fn draw(random: &mut Random) -> Weather {
        if random.chance(250) {
            return Weather::fair();
        }
        let lost = [0, 10, 50, 200];
        let kept = [0, 20, 60, 200];
        let longest = [800 * MILLI, 800 * MILLI, 6 * SECOND][random.index(3)];
        Weather {
            lost: lost[random.index(lost.len())],
            doubled: random.below(60),
            held_up: random.below(100),
            delay: random.between(MILLI, 20 * MILLI),
            long_delay: random.between(20 * MILLI, longest),
            kept: kept[random.index(kept.len())],
        }
    }

    /// When a message arrives, as delays: not at all, once or twice. A forwarded proposal never comes
    /// twice: it would be two proposals, and the streams of etcd's peer protocol repeat nothing.
    pub(crate) fn fate(&self, kind: MessageKind, random: &mut Random) -> Vec<Moment> {
        if random.chance(self.lost) {
            return Vec::new();
        }
        let doubled = random.chance(self.doubled) && kind != MessageKind::Prop;
        let copies = if doubled { 2 } else { 1 };
        (0..copies)
            .map(|_| self.delay(self.delay, random))
            .collect()
    }

    /// How long something takes that usually takes so long at most.
    pub(crate) fn delay(&self, usual: Moment, random: &mut Random) -> Moment {
        let most = if random.chance(self.held_up) {
            self.long_delay.max(usual)
        } else {
            usual
        };
        random.between(MILLI / 10, most)
    }
}

/// What is on its way.
#[derive(Debug)]
pub(crate) enum Parcel {
    /// A message.
    Message(Message),
    /// A snapshot with its file.
    Snapshot(OutgoingSnapshot),
    /// A snapshot that came once, or whose sender thinks that it never did.
    Copy(Message, Arc<[u8]>),
    /// A question for the hash of a member's history.
    Ask(Question),
    /// The answer.
    Hash(Question, PeerAnswer),
}

/// What a corruption check asks another member.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) from: MemberId,
    /// The life of the asking member: another one knows nothing of it.
    pub(crate) life: u64,
    pub(crate) to: MemberId,
    pub(crate) revision: i64,
    pub(crate) round: u64,
}

impl Parcel {
    /// From whom it is, and to whom.
    pub(crate) fn route(&self) -> (MemberId, MemberId) {
        match self {
            Parcel::Message(message) | Parcel::Copy(message, _) => (message.from, message.to),
            Parcel::Snapshot(snapshot) => (snapshot.message().from, snapshot.message().to),
            Parcel::Ask(question) => (question.from, question.to),
            Parcel::Hash(question, _) => (question.to, question.from),
        }
    }

    /// Nobody will take it.
    pub(crate) fn lose(self) {
        if let Parcel::Snapshot(snapshot) = self {
            snapshot.finish(false);
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// From whom to whom nothing passes, and how many reasons there are.
    cut: BTreeMap<(MemberId, MemberId), u32>,
    /// From whom to whom nothing passes for now and everything later, and how many reasons there are.
    held: BTreeMap<(MemberId, MemberId), u32>,
    running: BTreeSet<MemberId>,
    /// What members have sent since it was last taken.
    sent: Vec<(MemberId, Parcel)>,
}

/// The network. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Net {
    state: Arc<Mutex<State>>,
}

impl Net {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// The way of one member to the others.
    #[must_use]
    pub(crate) fn wire(&self, own: Arc<Mutex<MemberId>>, life: u64) -> Arc<Wire> {
        Arc::new(Wire {
            net: self.clone(),
            own,
            life,
        })
    }

    /// A member runs, or does no longer.
    pub(crate) fn set_running(&self, member: MemberId, running: bool) {
        let mut state = self.state();
        if running {
            state.running.insert(member);
        } else {
            state.running.remove(&member);
        }
    }

    /// Cuts a direction of a link; each cut needs its own [`Net::mend`].
    pub(crate) fn cut(&self, from: MemberId, to: MemberId) {
        *self.state().cut.entry((from, to)).or_default() += 1;
    }

    /// Takes a cut back.
    pub(crate) fn mend(&self, from: MemberId, to: MemberId) {
        let mut state = self.state();
        if let Some(reasons) = state.cut.get_mut(&(from, to)) {
            *reasons -= 1;
            if *reasons == 0 {
                state.cut.remove(&(from, to));
            }
        }
    }

    /// Stops a direction of a link; each time needs its own [`Net::release`].
    pub(crate) fn hold(&self, from: MemberId, to: MemberId) {
        *self.state().held.entry((from, to)).or_default() += 1;
    }

    /// Takes a hold back.
    pub(crate) fn release(&self, from: MemberId, to: MemberId) {
        let mut state = self.state();
        if let Some(reasons) = state.held.get_mut(&(from, to)) {
            *reasons -= 1;
            if *reasons == 0 {
                state.held.remove(&(from, to));
            }
        }
    }

    /// Whether a direction of a link is stopped.
    #[must_use]
    pub(crate) fn is_held(&self, from: MemberId, to: MemberId) -> bool {
        self.state().held.contains_key(&(from, to))
    }

    /// Whether messages pass.
    #[must_use]
    pub(crate) fn passes(&self, from: MemberId, to: MemberId) -> bool {
        !self.state().cut.contains_key(&(from, to))
    }

    /// What was sent since the last call, in order, with its sender.
    #[must_use]
    pub(crate) fn take(&self) -> Vec<(MemberId, Parcel)> {
        std::mem::take(&mut self.state().sent)
    }
}

/// One member's way to the others.
#[derive(Debug)]
pub(crate) struct Wire {
    net: Net,
    /// Known once the member has started.
    own: Arc<Mutex<MemberId>>,
    life: u64,
}

impl Wire {
    fn own(&self) -> MemberId {
        *self.own.lock().expect("no holder of this lock panics")
    }

    fn is_up(&self, member: MemberId) -> bool {
        let own = self.own();
        let state = self.net.state();
        state.running.contains(&member)
            && !state.cut.contains_key(&(own, member))
            && !state.cut.contains_key(&(member, own))
    }
}

impl Peers for Wire {
    fn send(&self, messages: Vec<Message>) {
        let mut state = self.net.state();
        for message in messages {
            state.sent.push((message.from, Parcel::Message(message)));
        }
    }

    fn send_snapshot(&self, snapshot: OutgoingSnapshot) {
        let from = snapshot.message().from;
        self.net
            .state()
            .sent
            .push((from, Parcel::Snapshot(snapshot)));
    }

    fn add(&self, _member: MemberId, _peer_urls: &[String]) {}

    fn update(&self, _member: MemberId, _peer_urls: &[String]) {}

    fn remove(&self, _member: MemberId) {}

    fn replace(&self, _members: Vec<(MemberId, Vec<String>)>) {}

    fn active_since(&self, member: MemberId) -> Option<Duration> {
        self.is_up(member).then_some(Duration::ZERO)
    }

    fn release(&self, member: MemberId) -> Release {
        if self.is_up(member) {
            Release::Known(Version::new(3, 7, 0))
        } else {
            Release::Unreachable
        }
    }

    fn ask_hash(&self, member: MemberId, revision: i64, round: u64) {
        let question = Question {
            from: self.own(),
            life: self.life,
            to: member,
            revision,
            round,
        };
        let mut state = self.net.state();
        state.sent.push((question.from, Parcel::Ask(question)));
    }
}
