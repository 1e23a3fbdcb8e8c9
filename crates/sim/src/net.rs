//! The network between members: it drops, delays, duplicates and reorders messages, and cuts links one
//! way at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use keelson_node::{OutgoingSnapshot, Peers, Release};
use keelson_proto::ids::MemberId;
use keelson_proto::message::{Message, MessageKind};
use semver::Version;

use crate::clock::{MILLI, Moment};
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
        }
    }

    /// One of many kinds.
    pub(crate) fn draw(random: &mut Random) -> Weather {
        if random.chance(250) {
            return Weather::fair();
        }
        let lost = [0, 10, 50, 200];
        Weather {
            lost: lost[random.index(lost.len())],
            doubled: random.below(60),
            held_up: random.below(100),
            delay: random.between(MILLI, 20 * MILLI),
            long_delay: random.between(20 * MILLI, 800 * MILLI),
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
            .map(|_| {
                let most = if random.chance(self.held_up) {
                    self.long_delay
                } else {
                    self.delay
                };
                random.between(MILLI / 10, most)
            })
            .collect()
    }
}

/// What is on its way.
#[derive(Debug)]
pub(crate) enum Parcel {
    /// A message.
    Message(Message),
    /// A snapshot with its file.
    Snapshot(OutgoingSnapshot),
}

#[derive(Debug, Default)]
struct State {
    /// From whom to whom nothing passes, and how many reasons there are.
    cut: BTreeMap<(MemberId, MemberId), u32>,
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
    pub(crate) fn wire(&self, own: Arc<Mutex<MemberId>>) -> Arc<Wire> {
        Arc::new(Wire {
            net: self.clone(),
            own,
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
}
