//! Seeded clusters with lost, repeated and reordered messages, crashes, snapshots and configuration
//! changes: whatever happens, no two members lead a term, no two logs disagree where their terms
//! agree, and what was applied once is what everybody applies.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use keelson_proto::entry::{
    ConfChange, ConfChangeKind, ConfChangeSingle, ConfChangeTransition, ConfChangeV2, ConfState,
    Entry, EntryKind, HardState, Snapshot,
};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};
use keelson_raft::{
    APPEND_THREAD, APPLY_THREAD, Config, MemoryStorage, RawNode, Role, Storage, confchange,
};

const MEMBERS: u64 = 5;
const START: LogIndex = LogIndex(5);

/// SplitMix64.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

struct Member {
    config: Config,
    node: RawNode<MemoryStorage>,
    append: VecDeque<Message>,
    apply: VecDeque<Message>,
    /// The state machine: how far it is, and a digest of all data so far.
    applied: LogIndex,
    digest: u64,
    conf_state: ConfState,
}

#[derive(Default)]
struct Seen {
    leaders: BTreeMap<Term, MemberId>,
    /// The entry at a position in a term, and the term of the one before.
    entries: BTreeMap<(LogIndex, Term), (Entry, Term)>,
    /// What was applied at a position, and the digest after it.
    applied: BTreeMap<LogIndex, (Entry, u64)>,
    /// The largest commit index of any member.
    committed: LogIndex,
    /// By context: what was committed when a read was asked for.
    reads: BTreeMap<Bytes, LogIndex>,
    answered_reads: usize,
    snapshots: usize,
}

struct Cluster {
    random: Random,
    members: BTreeMap<MemberId, Member>,
    network: Vec<Message>,
    seen: Seen,
    proposals: u64,
}

fn digest(before: u64, data: &[u8]) -> u64 {
    data.iter().fold(before.rotate_left(7), |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn start(config: &Config, storage: MemoryStorage, seed: u64) -> RawNode<MemoryStorage> {
    let mut random = Random(seed);
    let draw = Box::new(move |bound| u32::try_from(random.below(u64::from(bound))).unwrap());
    RawNode::new(config.clone(), storage, draw).unwrap()
}

impl Cluster {
    /// Three voters; two more members that may be added.
    fn new(seed: u64) -> Cluster {
        let mut random = Random(seed);
        let voters = (1..=3).map(MemberId).collect();
        let first = Snapshot {
            conf_state: ConfState {
                voters,
                ..ConfState::default()
            },
            index: START,
            term: Term(1),
            data: Bytes::copy_from_slice(&0_u64.to_be_bytes()),
        };
        let template = Config {
            election_tick: 5,
            max_size_per_message: random.below(200),
            max_committed_size_per_ready: 1 + random.below(300),
            max_inflight_messages: 1 + usize::try_from(random.below(4)).unwrap(),
            pre_vote: random.percent(50),
            check_quorum: random.percent(50),
            step_down_on_removal: random.percent(50),
            ..Config::new(MemberId(1))
        };
        let members = (1..=MEMBERS).map(|id| {
            let config = Config {
                id: MemberId(id),
                ..template.clone()
            };
            let snapshot = if id <= 3 {
                first.clone()
            } else {
                Snapshot::default()
            };
            let storage = MemoryStorage::with_snapshot(snapshot.clone());
            let member = Member {
                node: start(&config, storage, random.next()),
                config,
                append: VecDeque::new(),
                apply: VecDeque::new(),
                applied: snapshot.index,
                digest: 0,
                conf_state: snapshot.conf_state,
            };
            (MemberId(id), member)
        });
        let members = members.collect();
        Cluster {
            random,
            members,
            network: Vec::new(),
            seen: Seen::default(),
            proposals: 0,
        }
    }

    fn member(&mut self, id: MemberId) -> &mut Member {
        self.members.get_mut(&id).unwrap()
    }

    fn step(&mut self) {
        let id = MemberId(1 + self.random.below(MEMBERS));
        match self.random.below(100) {
            0..15 => self.member(id).node.tick(),
            15..60 => self.deliver_any(),
            60..75 => self.append(id),
            75..85 => self.apply(id),
            85..93 => self.propose(id),
            93..95 => self.read(id),
            95..97 => self.compact(id),
            97 => self.change_configuration(id),
            98 => self.disturb(id),
            _ => self.crash(id),
        }
        self.collect();
    }

    /// Takes what the members have to do, and looks at what they are.
    fn collect(&mut self) {
        for (&id, member) in &mut self.members {
            while member.node.has_ready() {
                let ready = member.node.ready();
                for read in ready.read_states {
                    let asked = self.seen.reads.remove(&read.context);
                    // An answer that comes twice has been looked at.
                    if let Some(committed) = asked {
                        assert!(read.index >= committed, "a read of {id} missed a commit");
                        self.seen.answered_reads += 1;
                    }
                }
                for message in ready.messages {
                    match message.to {
                        APPEND_THREAD => member.append.push_back(message),
                        APPLY_THREAD => member.apply.push_back(message),
                        _ => self.network.push(message),
                    }
                }
            }
            if member.node.role() == Role::Leader {
                let term = member.node.term();
                let leader = *self.seen.leaders.entry(term).or_insert(id);
                assert_eq!(leader, id, "term {term} has two leaders");
            }
            self.seen.committed = self.seen.committed.max(member.node.committed());
        }
    }

    fn deliver_any(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let position = usize::try_from(self.random.next()).unwrap() % self.network.len();
        let message = self.network.swap_remove(position);
        if self.random.percent(10) {
            self.network.push(message.clone());
        }
        if self.random.percent(10) {
            self.finish_snapshot(&message, false);
        } else {
            self.deliver(message);
        }
    }

    fn deliver(&mut self, message: Message) {
        self.finish_snapshot(&message, true);
        // A refusal is as good as a loss.
        let _ = self.member(message.to).node.step(message);
    }

    fn finish_snapshot(&mut self, message: &Message, delivered: bool) {
        if message.kind == MessageKind::Snap {
            let (from, to) = (message.from, message.to);
            self.seen.snapshots += usize::from(delivered);
            self.member(from).node.report_snapshot(to, delivered);
        }
    }

    /// Does the next piece of work of an append thread.
    fn append(&mut self, id: MemberId) {
        let next = self.member(id).append.front();
        if next.is_some_and(|message| message.snapshot.is_some()) {
            while !self.member(id).apply.is_empty() {
                self.apply(id);
            }
        }
        let member = self.members.get_mut(&id).unwrap();
        let Some(message) = member.append.pop_front() else {
            return;
        };
        let storage = member.node.storage_mut();
        let state = HardState {
            term: message.term,
            vote: message.vote,
            commit: message.commit,
        };
        if !state.is_empty() {
            storage.set_hard_state(state);
        }
        if let Some(snapshot) = message.snapshot {
            storage.apply_snapshot(*snapshot.clone()).unwrap();
            member.applied = snapshot.index;
            member.digest = u64::from_be_bytes(*snapshot.data.first_chunk().unwrap());
            member.conf_state = snapshot.conf_state;
            let known = &self.seen.applied[&snapshot.index];
            assert_eq!(member.digest, known.1, "a snapshot is what was applied");
        }
        storage.append(&message.entries);
        for entry in message.entries {
            let before = storage.term(entry.index.previous()).unwrap();
            let seen = self.seen.entries.entry((entry.index, entry.term));
            let (same, term) = seen.or_insert((entry.clone(), before));
            assert_eq!((&*same, *term), (&entry, before), "logs must match");
        }
        self.answer(id, message.responses);
    }

    /// Does the next piece of work of an apply thread.
    fn apply(&mut self, id: MemberId) {
        let member = self.members.get_mut(&id).unwrap();
        let Some(message) = member.apply.pop_front() else {
            return;
        };
        for entry in message.entries {
            assert_eq!(entry.index, member.applied.next(), "entries come in order");
            member.applied = entry.index;
            member.digest = digest(member.digest, &entry.data);
            let seen = self.seen.applied.entry(entry.index);
            let (same, sum) = seen.or_insert((entry.clone(), member.digest));
            assert_eq!((&*same, *sum), (&entry, member.digest), "{id} went astray");
            let change = match entry.kind {
                EntryKind::Normal => continue,
                EntryKind::ConfChange => {
                    confchange::as_v2(&ConfChange::decode(entry.data).unwrap())
                }
                EntryKind::ConfChangeV2 => ConfChangeV2::decode(entry.data).unwrap(),
            };
            if entry.index > member.node.restored_index() {
                member.conf_state = member.node.apply_conf_change(&change).unwrap();
            }
        }
        self.answer(id, message.responses);
    }

    fn answer(&mut self, id: MemberId, responses: Vec<Message>) {
        for response in responses {
            if response.to == id {
                let _ = self.member(id).node.step(response);
            } else {
                self.network.push(response);
            }
        }
    }

    fn propose(&mut self, id: MemberId) {
        self.proposals += 1;
        let data = format!("proposal {}", self.proposals);
        let _ = self.member(id).node.propose(Bytes::from(data));
    }

    fn read(&mut self, id: MemberId) {
        self.proposals += 1;
        let context = Bytes::copy_from_slice(&self.proposals.to_be_bytes());
        self.seen.reads.insert(context.clone(), self.seen.committed);
        self.member(id).node.read_index(context);
    }

    /// Takes a snapshot and drops most of the log before it.
    fn compact(&mut self, id: MemberId) {
        let member = self.member(id);
        let (index, conf_state) = (member.applied, member.conf_state.clone());
        // Raft must know too, and a snapshot that is coming makes this one void.
        let known = index <= member.node.applied() && index > member.node.restored_index();
        if known && member.apply.is_empty() {
            let data = Bytes::copy_from_slice(&member.digest.to_be_bytes());
            let storage = member.node.storage_mut();
            if storage.create_snapshot(index, conf_state, data).is_ok() {
                storage.compact(index).unwrap();
            }
        }
    }

    /// Lets a leader add or remove a member or two, as long as two voters stay.
    fn change_configuration(&mut self, id: MemberId) {
        let singles: Vec<_> = (0..=self.random.below(2))
            .map(|_| ConfChangeSingle {
                kind: match self.random.below(3) {
                    0 => ConfChangeKind::AddNode,
                    1 => ConfChangeKind::AddLearnerNode,
                    _ => ConfChangeKind::RemoveNode,
                },
                member: MemberId(1 + self.random.below(MEMBERS)),
            })
            .collect();
        let node = &mut self.member(id).node;
        let mut voters = node.status().config.voters.incoming.0;
        for single in &singles {
            match single.kind {
                ConfChangeKind::AddNode => voters.insert(single.member),
                _ => voters.remove(&single.member),
            };
        }
        if node.role() != Role::Leader || voters.len() < 2 {
            return;
        }
        let _ = match singles[..] {
            [single] => node.propose_conf_change(ConfChange {
                kind: single.kind,
                member: single.member,
                ..ConfChange::default()
            }),
            _ => node.propose_conf_change(ConfChangeV2 {
                transition: ConfChangeTransition::Auto,
                changes: singles,
                context: Bytes::new(),
            }),
        };
    }

    fn disturb(&mut self, id: MemberId) {
        let other = MemberId(1 + self.random.below(MEMBERS));
        let choice = self.random.below(4);
        let node = &mut self.member(id).node;
        match choice {
            0 => node.transfer_leader(other),
            1 => node.report_unreachable(other),
            2 => node.forget_leader(),
            _ => node.campaign(),
        }
    }

    /// Ends a member without notice, and starts it from what it has written.
    fn crash(&mut self, id: MemberId) {
        let seed = self.random.next();
        let member = self.member(id);
        let storage = member.node.storage().clone();
        let snapshot = storage.snapshot().unwrap();
        member.applied = snapshot.index;
        member.digest = snapshot
            .data
            .first_chunk()
            .map_or(0, |bytes| u64::from_be_bytes(*bytes));
        member.conf_state = snapshot.conf_state;
        member.append.clear();
        member.apply.clear();
        member.node = start(&member.config, storage, seed);
    }

    /// Stops all faults; the members must agree on one more proposal.
    fn heal(&mut self) {
        let mut wanted = None;
        for round in 0..2000 {
            let ahead = self.members.values().max_by_key(|member| member.applied);
            let conf_state = ahead.unwrap().conf_state.clone();
            let ids = [conf_state.voters, conf_state.voters_outgoing].concat();
            for id in (1..=MEMBERS).map(MemberId) {
                // A leader that was removed leads on, and takes no proposals, until it is stopped.
                if self.members[&id].node.role() == Role::Leader && !ids.contains(&id) {
                    self.crash(id);
                }
            }
            for &id in &ids {
                self.member(id).node.tick();
                // A snapshot from before a member was added does not help that member.
                if round % 50 == 49 {
                    self.compact(id);
                }
            }
            self.collect();
            for message in std::mem::take(&mut self.network) {
                self.deliver(message);
                self.collect();
            }
            for id in (1..=MEMBERS).map(MemberId) {
                while !self.member(id).append.is_empty() || !self.member(id).apply.is_empty() {
                    self.append(id);
                    self.apply(id);
                    self.collect();
                }
            }
            let wanted = *wanted.get_or_insert(self.seen.committed);
            let is_behind = |id: &MemberId| self.members[id].applied <= wanted;
            if !ids.iter().any(is_behind) {
                return;
            }
            for id in ids {
                self.propose(id);
            }
            self.collect();
        }
        unreachable!("the members never agree again");
    }
}

#[test]
fn members_agree_whatever_happens_to_their_messages_and_processes() {
    let (mut applied, mut reads, mut snapshots, mut terms) = (0, 0, 0, 0);
    for seed in 0..300 {
        let mut cluster = Cluster::new(seed);
        for _ in 0..3000 {
            cluster.step();
        }
        cluster.heal();
        applied += cluster.seen.applied.len();
        reads += cluster.seen.answered_reads;
        snapshots += cluster.seen.snapshots;
        terms += cluster.seen.leaders.len();
    }
    // Otherwise the runs prove nothing.
    let counts = [applied, reads, snapshots, terms];
    assert!(counts.iter().all(|&count| count > 100), "{counts:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut cluster = Cluster::new(7);
        for _ in 0..2000 {
            cluster.step();
        }
        let states: Vec<_> = cluster
            .members
            .values()
            .map(|member| (member.node.basic_status(), member.digest))
            .collect();
        (states, cluster.network)
    };
    assert_eq!(run(), run());
}
