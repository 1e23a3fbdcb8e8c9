//! A follower's log under the appends of one leader after another.

use anyhow::ensure;
use bytes::Bytes;
use keelson_proto::entry::{ConfState, Entry, EntryKind, Snapshot};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};
use keelson_raft::{Config, MemoryStorage, RawNode, Storage as _};
use raft::RaftLog;
use raft::eraftpb;
use raft::storage::MemStorage;

use crate::Counts;
use crate::random::Random;

const OWN: MemberId = MemberId(1);
const LEADER: MemberId = MemberId(2);
const STEPS: u64 = 60;

/// What some leader's log holds: the term of each entry, from index 1 on.
type Terms = Vec<u64>;

/// Leaders as raft allows them: a new one has everything that is committed, and of what is not, some
/// earlier leader's.
struct Leaders {
    term: u64,
    log: Terms,
    earlier: Vec<Terms>,
    committed: usize,
}

impl Leaders {
    fn elect(&mut self, random: &mut Random) {
        self.earlier.push(self.log.clone());
        let choice = random.below(self.earlier.len() as u64) as usize;
        let of = &self.earlier[choice];
        let fits = of.len() >= self.committed && of[..self.committed] == self.log[..self.committed];
        let from = if fits { of.clone() } else { self.log.clone() };
        let keep = self.committed + random.below((from.len() - self.committed) as u64 + 1) as usize;
        self.log = from[..keep].to_vec();
        self.term += random.below(2) + 1;
        self.log.push(self.term);
    }

    fn go_on(&mut self, random: &mut Random) {
        for _ in 0..random.below(4) {
            self.log.push(self.term);
        }
        if random.percent(40) {
            let more = (self.log.len() - self.committed) as u64 + 1;
            let to = self.committed + random.below(more) as usize;
            // Only an entry of the leader's own term is committed by counting.
            if to > self.committed && self.log[to - 1] == self.term {
                self.committed = to;
            }
        }
    }

    /// An append of the present leader, from anywhere in its log.
    fn append(&self, random: &mut Random) -> Append {
        let before = random.below(self.log.len() as u64 + 1) as usize;
        let count = random.below((self.log.len() - before) as u64 + 1) as usize;
        Append {
            term: self.term,
            index: before as u64,
            log_term: term_at(&self.log, before as u64),
            terms: self.log[before..before + count].to_vec(),
            commit: random.below(self.committed as u64 + 1),
        }
    }
}

fn term_at(terms: &[u64], index: u64) -> u64 {
    match index {
        0 => 0,
        index => terms[index as usize - 1],
    }
}

#[derive(Debug)]
struct Append {
    term: u64,
    index: u64,
    log_term: u64,
    terms: Vec<u64>,
    commit: u64,
}

/// One follower's life.
pub fn round(random: &mut Random, counts: &mut Counts) -> anyhow::Result<()> {
    let mut leaders = Leaders {
        term: 1,
        log: vec![1],
        earlier: Vec::new(),
        committed: 0,
    };
    let mut ours = our_follower()?;
    let mut theirs = their_log();
    for step in 0..STEPS {
        if random.percent(15) {
            leaders.elect(random);
        }
        leaders.go_on(random);
        let append = leaders.append(random);
        let committed = theirs.committed;
        if append.index < committed {
            // Both answer with what is committed, before they look at the log.
            continue;
        }
        let said = || format!("step {step}: {append:?}, committed {committed}");
        let we_took = step_ours(&mut ours, &append).map_err(|error| error.context(said()))?;
        let they_took = step_theirs(&mut theirs, &append, random)?;
        ensure!(
            we_took == they_took,
            "{}: taken by us: {we_took}, by them: {they_took}",
            said()
        );
        compare(&ours, &theirs).map_err(|error| error.context(said()))?;
        let count = if we_took {
            &mut counts.appends_taken
        } else {
            &mut counts.appends_refused
        };
        *count += 1;
    }
    Ok(())
}

fn our_follower() -> anyhow::Result<RawNode<MemoryStorage>> {
    let mut config = Config::new(OWN);
    config.async_storage_writes = false;
    let storage = MemoryStorage::with_snapshot(Snapshot {
        conf_state: ConfState {
            voters: vec![OWN, LEADER],
            ..ConfState::default()
        },
        ..Snapshot::default()
    });
    Ok(RawNode::new(config, storage, Box::new(|_| 0))?)
}

fn their_log() -> RaftLog<MemStorage> {
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    RaftLog::new(MemStorage::new(), logger)
}

/// Hands the append over and carries out what follows; whether it was taken.
fn step_ours(node: &mut RawNode<MemoryStorage>, append: &Append) -> anyhow::Result<bool> {
    let entries = append.terms.iter().zip(append.index + 1..);
    node.step(Message {
        kind: MessageKind::App,
        from: LEADER,
        to: OWN,
        term: Term(append.term),
        log_term: Term(append.log_term),
        index: LogIndex(append.index),
        commit: LogIndex(append.commit),
        entries: entries
            .map(|(term, index)| Entry {
                kind: EntryKind::Normal,
                term: Term(*term),
                index: LogIndex(index),
                data: Bytes::new(),
            })
            .collect(),
        ..Message::default()
    })?;
    let mut taken = None;
    while node.has_ready() {
        let ready = node.ready();
        node.storage_mut().append(&ready.entries);
        if let Some(state) = ready.hard_state {
            node.storage_mut().set_hard_state(state);
        }
        for message in ready.messages {
            if message.kind == MessageKind::AppResp {
                taken = Some(!message.reject);
            }
        }
        node.advance();
    }
    taken.ok_or_else(|| anyhow::anyhow!("the append was not answered"))
}

fn step_theirs(
    log: &mut RaftLog<MemStorage>,
    append: &Append,
    random: &mut Random,
) -> anyhow::Result<bool> {
    let entries: Vec<_> = (append.terms.iter().zip(append.index + 1..))
        .map(|(term, index)| {
            let mut entry = eraftpb::Entry::default();
            entry.term = *term;
            entry.index = index;
            entry
        })
        .collect();
    let taken = log.maybe_append(append.index, append.log_term, append.commit, &entries);
    if random.percent(50) {
        let unstable = log.unstable_entries().to_vec();
        if let Some(last) = unstable.last() {
            let (index, term) = (last.index, last.term);
            log.mut_store().wl().append(&unstable)?;
            log.stable_entries(index, term);
        }
    }
    Ok(taken.is_some())
}

fn compare(ours: &RawNode<MemoryStorage>, theirs: &RaftLog<MemStorage>) -> anyhow::Result<()> {
    let (last, their_last) = (ours.last_index().0, theirs.last_index());
    ensure!(
        last == their_last,
        "our log ends at {last}, theirs at {their_last}"
    );
    let (committed, their_committed) = (ours.committed().0, theirs.committed);
    ensure!(
        committed == their_committed,
        "we know {committed} committed, they {their_committed}"
    );
    for index in 1..=last {
        let (term, their_term) = (ours.storage().term(LogIndex(index))?.0, theirs.term(index)?);
        ensure!(
            term == their_term,
            "entry {index} is of term {term} with us, of {their_term} with them"
        );
    }
    Ok(())
}
