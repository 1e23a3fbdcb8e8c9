//! Three members without threads, so that one part can be late on purpose.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelson_node::{
    Clock, Config, Env, OutgoingSnapshot, Part, Peers, Release, Stepped, Ticket, Turn,
};
use keelson_proto::ids::MemberId;
use keelson_proto::message::Message;
use keelson_store::hash::hash_kv;
use keelson_wal::{RealFiles, valid_snapshots};
use semver::Version;
use tempfile::TempDir;

use crate::rig::{Desk, config, put, urls};

/// A clock that goes when it is told to.
#[derive(Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn wall(&self) -> Duration {
        self.now()
    }
}

/// What is on its way between the members.
#[derive(Default)]
struct Post {
    messages: Mutex<VecDeque<Message>>,
    snapshots: Mutex<Vec<OutgoingSnapshot>>,
}

struct Outbox(Arc<Post>);

impl Peers for Outbox {
    fn send(&self, messages: Vec<Message>) {
        self.0.messages.lock().unwrap().extend(messages);
    }

    fn send_snapshot(&self, snapshot: OutgoingSnapshot) {
        self.0.snapshots.lock().unwrap().push(snapshot);
    }

    fn add(&self, _: MemberId, _: &[String]) {}

    fn update(&self, _: MemberId, _: &[String]) {}

    fn remove(&self, _: MemberId) {}

    fn replace(&self, _: Vec<(MemberId, Vec<String>)>) {}

    fn active_since(&self, _: MemberId) -> Option<Duration> {
        None
    }

    fn release(&self, _: MemberId) -> Release {
        Release::Known(Version::new(3, 7, 0))
    }
}

struct Three {
    clock: Arc<Hand>,
    post: Arc<Post>,
    desk: Arc<Desk>,
    configs: Vec<Config>,
    members: Vec<Option<Stepped>>,
    /// Nothing reaches this one.
    cut: Option<usize>,
    /// These parts of this member get no turn.
    late: Option<(usize, &'static [Part])>,
    _dirs: Vec<TempDir>,
}

impl Three {
    fn new(change: impl Fn(&mut Config)) -> Three {
        let dirs: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let initial: Vec<_> = (0..3).map(|it| (format!("m{it}"), urls(it))).collect();
        let configs = (0..3).zip(&dirs).map(|(number, dir)| {
            let mut config = config(dir.path(), number);
            config.heartbeat = Duration::from_millis(30);
            config.election = Duration::from_millis(300);
            config.initial_cluster.clone_from(&initial);
            change(&mut config);
            config
        });
        let mut three = Three {
            clock: Arc::default(),
            post: Arc::default(),
            desk: Arc::default(),
            configs: configs.collect(),
            members: (0..3).map(|_| None).collect(),
            cut: None,
            late: None,
            _dirs: dirs,
        };
        for number in 0..3 {
            three.start(number);
        }
        three
    }

    fn start(&mut self, number: usize) {
        let env = Env {
            clock: self.clock.clone(),
            ..Env::real()
        };
        let (desk, peers) = (self.desk.clone(), Arc::new(Outbox(self.post.clone())));
        let config = self.configs[number].clone();
        let member = Stepped::start(config, env, desk.clone(), desk, peers).unwrap();
        self.members[number] = Some(member);
    }

    fn member(&self, number: usize) -> &Stepped {
        self.members[number].as_ref().unwrap()
    }

    fn by_id(&self, id: MemberId) -> Option<usize> {
        (0..3).find(|it| {
            self.members[*it]
                .as_ref()
                .is_some_and(|of| of.node().member_id() == id)
        })
    }

    fn reach(&self, id: MemberId) -> Option<usize> {
        self.by_id(id).filter(|number| self.cut != Some(*number))
    }

    /// Turns for everybody, and the post, until nothing moves.
    fn settle(&mut self) {
        let mut moved = true;
        while moved {
            moved = false;
            for number in 0..3 {
                for part in Part::ALL {
                    let is_late = |(member, parts): (usize, &[Part])| {
                        member == number && parts.contains(&part)
                    };
                    let Some(member) = self.members[number].as_mut() else {
                        continue;
                    };
                    if member.has_mail(part) && !self.late.is_some_and(is_late) {
                        moved |= member.turn(part).unwrap() == Turn::Worked;
                    }
                }
            }
            let letters: Vec<Message> = self.post.messages.lock().unwrap().drain(..).collect();
            for message in letters {
                let sender = self.by_id(message.from);
                if let Some(to) = self.reach(message.to).filter(|_| sender != self.cut) {
                    moved = true;
                    let _ = self.member(to).node().step(message);
                }
            }
            let snapshots = std::mem::take(&mut *self.post.snapshots.lock().unwrap());
            for snapshot in snapshots {
                moved = true;
                let message = snapshot.message().clone();
                let delivered = self.reach(message.to).is_some_and(|to| {
                    let node = self.member(to).node();
                    node.receive_snapshot(message, &mut snapshot.reader())
                        .is_ok()
                });
                snapshot.finish(delivered);
            }
        }
    }

    /// Some time for everybody.
    fn pass(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.clock.0.fetch_add(30, Ordering::SeqCst);
            for number in 0..3 {
                if let Some(member) = self.members[number].as_mut() {
                    for part in [Part::Consensus, Part::Duty] {
                        member.turn(part).unwrap();
                    }
                }
            }
            self.settle();
        }
    }

    fn leader(&mut self) -> usize {
        loop {
            self.pass(1);
            let leads = |number: &usize| {
                let member = self.members[*number].as_ref();
                self.cut != Some(*number) && member.is_some_and(|it| it.node().is_leader())
            };
            if let Some(leader) = (0..3).find(leads) {
                return leader;
            }
        }
    }

    fn put(&mut self, at: usize, key: &str, value: &str) -> Ticket {
        let ticket = self.desk.ticket();
        let node = self.member(at).node().clone();
        node.propose(put(key, value), ticket).unwrap();
        self.settle();
        ticket
    }
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

impl Three {
    /// One of the things that can happen.
    fn happen(&mut self, random: &mut Random) {
        let number = random.below(3);
        match random.below(100) {
            0..50 => {
                let part = Part::ALL[random.below(Part::ALL.len())];
                if let Some(member) = self.members[number].as_mut() {
                    member.turn(part).unwrap();
                }
            }
            50..80 => {
                let mut letters = self.post.messages.lock().unwrap();
                // Usually in order, sometimes not.
                let place = if random.below(8) == 0 {
                    random.below(letters.len().max(1))
                } else {
                    0
                };
                let letter = letters.remove(place);
                drop(letters);
                let sender = letter.as_ref().and_then(|it| self.by_id(it.from));
                let to = letter.as_ref().and_then(|it| self.reach(it.to));
                if let (Some(letter), Some(to)) = (letter, to)
                    && sender != self.cut
                {
                    let _ = self.member(to).node().step(letter);
                }
            }
            80..88 => {
                self.clock.0.fetch_add(15, Ordering::SeqCst);
            }
            88..94 => {
                let value = "x".repeat(1 << (15 + random.below(6)));
                let ticket = self.desk.ticket();
                if let Some(member) = &self.members[number] {
                    let key = format!("k{}", random.below(9));
                    let _ = member.node().propose(put(&key, &value), ticket);
                }
            }
            94..97 => {
                let snapshot = self.post.snapshots.lock().unwrap().pop();
                if let Some(snapshot) = snapshot {
                    let message = snapshot.message().clone();
                    let delivered = self.reach(message.to).is_some_and(|to| {
                        let node = self.member(to).node();
                        node.receive_snapshot(message, &mut snapshot.reader())
                            .is_ok()
                    });
                    snapshot.finish(delivered);
                }
            }
            97 => {
                if let Some(member) = self.members[number].take() {
                    member.crash();
                    self.start(number);
                }
            }
            98 if random.below(3) == 0 => self.cut = Some(number),
            98 => {}
            _ if random.below(6) == 0 => self.cut = None,
            _ => {}
        }
    }

    /// Heals everything, and lets all come to the same state.
    fn heal(&mut self) {
        self.cut = None;
        self.post.messages.lock().unwrap().clear();
        self.post.snapshots.lock().unwrap().clear();
        let leader = self.leader();
        self.pass(30);
        let leader = if self.member(leader).node().is_leader() {
            leader
        } else {
            self.leader()
        };
        self.put(leader, "last", "1");
        self.pass(100);
        let applied = |it: usize| self.member(it).node().status().applied;
        assert_eq!([applied(0), applied(1)], [applied(2); 2]);
        let hash = |it: usize| hash_kv(self.member(it).node().shared(), 0).unwrap();
        assert_eq!([hash(0), hash(1)], [hash(2); 2]);
    }
}

#[test]
fn whatever_the_order_all_come_to_the_same_state() {
    // In the last one a member is so far behind that it gets a snapshot.
    for seed in [1_u64, 6] {
        let mut three = Three::new(|config| config.snapshot_count = Some(20));
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        three.leader();
        for _ in 0..6_000 {
            three.happen(&mut random);
        }
        three.heal();
    }
}

#[test]
fn a_mark_of_the_old_state_that_comes_behind_a_snapshot_is_passed_over() {
    let mut three = Three::new(|config| config.snapshot_count = Some(3));
    let leader = three.leader();
    let behind = (leader + 1) % 3;
    three.put(leader, "a", "1");
    // The file of one member is late from here on, with a disk snapshot of what it has now.
    three.late = Some((behind, &[Part::Commit]));
    for count in 0..5 {
        three.put(leader, "b", &count.to_string());
    }
    three.pass(1);
    assert!(three.member(behind).has_mail(Part::Commit));
    let old = three.member(behind).node().status().applied;
    three.cut = Some(behind);
    let value = "x".repeat(600_000);
    for _ in 0..40 {
        three.put(leader, "large", &value);
    }
    three.cut = None;
    three.pass(20);
    let marks =
        |three: &Three| valid_snapshots(&RealFiles, &three.configs[behind].wal_dir()).unwrap();
    let received = *marks(&three).last().unwrap();
    assert!(received.index > old, "the log has the leader's snapshot");
    assert_eq!(three.member(behind).node().status().applied, old);
    three.late = None;
    three.pass(5);
    assert!(three.member(behind).node().status().applied >= received.index);
    assert!(
        *marks(&three).last().unwrap() >= received,
        "marks never go back"
    );

    three.members[behind].take().unwrap().crash();
    three.start(behind);
    three.leader();
    three.pass(20);
    let leader = three.leader();
    three.put(leader, "z", "last");
    three.pass(5);
    let revision = |number| three.member(number).node().shared().revision();
    assert_eq!(revision(behind), revision(leader));
}
