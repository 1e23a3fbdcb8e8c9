//! The corruption checks of a leader: when they run, whom they ask, and the alarms that they raise.
//!
//! A round asks every other member for its hash at a revision of this one, and waits until all have
//! answered or time is up. Hashing reads the whole file, so it has a thread of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keelson_proto::ApiError;
use keelson_proto::ids::MemberId;
use keelson_proto::rpc::etcdserverpb::{
    AlarmRequest, AlarmType, InternalRaftRequest, alarm_request::AlarmAction,
};
use keelson_store::hash::{HashKv, hash_kv};

use crate::Ticket;
use crate::core::Input;
use crate::corrupt::{self, Answer, Compared, OwnHash, PeerAnswer};
use crate::links::Links;
use crate::mailbox::Taken;
use crate::ticket::{Asker, Duty};

/// The serving thread whose tickets are this checker's: there is no such thread.
pub(crate) const CHECKER: u16 = u16::MAX;

/// What the checker is told.
#[derive(Debug)]
pub(crate) enum CheckEvent {
    /// This member leads, or does no longer.
    Leads(bool),
    /// A member has answered, in a round.
    Answer(u64, MemberId, PeerAnswer),
    /// The read barrier of a round has passed, or has not.
    Barrier(Ticket, Result<(), ApiError>),
}

/// What a round is for.
#[derive(Debug)]
enum Purpose {
    /// The periodic check, with the leader's hash before it asked.
    Periodic(OwnHash),
    /// The hash of one compaction, and those of earlier ones that come next.
    Compaction(HashKv, Vec<HashKv>),
}

/// A round on its way.
#[derive(Debug)]
struct Round {
    number: u64,
    purpose: Purpose,
    answers: BTreeMap<MemberId, PeerAnswer>,
    until: Duration,
    /// The barrier that the periodic check waits for, after the answers.
    barrier: Option<Ticket>,
}

/// Takes the turns of the checks.
pub(crate) struct Checker {
    links: Arc<Links>,
    leads: bool,
    rounds: u64,
    round: Option<Round>,
    periodic_at: Option<Duration>,
    compaction_at: Option<Duration>,
    /// Compactions up to this revision are the same on all members.
    checked: i64,
}

impl Checker {
    pub(crate) fn new(links: Arc<Links>) -> Checker {
        let now = links.env.clock.now();
        let config = &links.config;
        Checker {
            leads: false,
            rounds: 0,
            round: None,
            periodic_at: config.corrupt_check.map(|every| now + every),
            compaction_at: config.compact_hash_check.map(|every| now + every),
            checked: 0,
            links,
        }
    }

    /// Runs until the mailbox is closed.
    pub(crate) fn run(mut self) {
        let links = self.links.clone();
        let mut events = Vec::new();
        loop {
            let now = links.env.clock.now();
            let patience = self.next().map(|at| at.saturating_sub(now));
            if links.check.take(&mut events, patience) == Taken::Closed {
                return;
            }
            self.turn(&mut events);
        }
    }

    /// When a turn is due even if nothing comes.
    pub(crate) fn next(&self) -> Option<Duration> {
        if let Some(round) = &self.round {
            return Some(round.until);
        }
        let due = [self.periodic_at, self.compaction_at];
        due.into_iter().flatten().min()
    }

    fn now(&self) -> Duration {
        self.links.env.clock.now()
    }

    /// Takes in what came, and begins what is due.
    pub(crate) fn turn(&mut self, events: &mut Vec<CheckEvent>) {
        for event in events.drain(..) {
            match event {
                CheckEvent::Leads(leads) => {
                    self.leads = leads;
                    // What it has found so far may be of a state that others have left behind.
                    self.round = None;
                }
                CheckEvent::Answer(number, member, answer) => {
                    self.answered(number, member, answer);
                }
                CheckEvent::Barrier(ticket, result) => self.passed(ticket, result),
            }
        }
        self.expire();
        if self.round.is_none() {
            self.begin();
        }
    }

    fn answered(&mut self, number: u64, member: MemberId, answer: PeerAnswer) {
        if let Some(round) = self.round.as_mut().filter(|round| round.number == number)
            && let Some(place) = round.answers.get_mut(&member)
        {
            *place = answer;
            let waits = |answer: &PeerAnswer| *answer == PeerAnswer::Silent;
            if round.barrier.is_none() && !round.answers.values().any(waits) {
                self.asked();
            }
        }
    }

    /// Goes on without those that are silent; without a barrier nothing can be said.
    fn expire(&mut self) {
        let now = self.now();
        match &self.round {
            Some(round) if now >= round.until && round.barrier.is_none() => self.asked(),
            Some(round) if now >= round.until => self.round = None,
            _ => {}
        }
    }

    /// Begins what is due.
    fn begin(&mut self) {
        let (now, leads) = (self.now(), self.leads);
        let is_due = |at: &mut Option<Duration>, every: Option<Duration>| {
            let due = at.is_some_and(|at| now >= at);
            if due {
                *at = every.map(|every| now + every);
            }
            due && leads
        };
        if is_due(&mut self.periodic_at, self.links.config.corrupt_check) {
            if let Some(own) = self.own_hash() {
                self.ask(own.hash.hash_revision, Purpose::Periodic(own));
            }
        } else if is_due(
            &mut self.compaction_at,
            self.links.config.compact_hash_check,
        ) {
            let mut hashes = self.links.shared.compaction_hashes();
            hashes.retain(|hash| hash.hash_revision > self.checked);
            self.next_compaction(hashes);
        }
    }

    /// Asks for the newest of these, which come oldest first.
    fn next_compaction(&mut self, mut hashes: Vec<HashKv>) {
        if let Some(hash) = hashes.pop() {
            self.ask(hash.hash_revision, Purpose::Compaction(hash, hashes));
        }
    }

    fn own_hash(&self) -> Option<OwnHash> {
        let shared = &self.links.shared;
        match hash_kv(shared, 0) {
            Ok(hash) => Some(OwnHash {
                member: self.links.identity.member,
                hash,
                revision: shared.revision(),
            }),
            Err(error) => {
                tracing::warn!(%error, "failed to get hash for the corruption check");
                None
            }
        }
    }

    fn ask(&mut self, revision: i64, purpose: Purpose) {
        let links = self.links.clone();
        let others = links.other_members(&links.shared.members());
        if others.is_empty() && matches!(purpose, Purpose::Compaction(..)) {
            return;
        }
        self.rounds += 1;
        let number = self.rounds;
        self.round = Some(Round {
            number,
            purpose,
            answers: others
                .iter()
                .map(|(id, _)| (*id, PeerAnswer::Silent))
                .collect(),
            until: self.now() + links.config.request_timeout(),
            barrier: None,
        });
        for (id, _) in &others {
            links.peers.ask_hash(*id, revision, number);
        }
        if others.is_empty() {
            self.asked();
        }
    }

    /// All have answered that will.
    fn asked(&mut self) {
        let Some(mut round) = self.round.take() else {
            return;
        };
        match round.purpose {
            Purpose::Compaction(hash, earlier) => {
                let answers: Vec<Answer> = round.answers.into_iter().collect();
                self.compared(&hash, &answers, earlier);
            }
            Purpose::Periodic(_) => {
                let ticket = Ticket {
                    thread: CHECKER,
                    slot: 0,
                    generation: u32::try_from(round.number & u64::from(u32::MAX))
                        .expect("it is masked"),
                };
                round.barrier = Some(ticket);
                round.until = self.now() + self.links.config.request_timeout();
                self.round = Some(round);
                if self.links.gate.is_open() {
                    self.passed(ticket, Ok(()));
                } else {
                    let input = Input::ReadBarrier(ticket);
                    drop(self.links.consensus.push_always(input, 0));
                }
            }
        }
    }

    /// This member has just been heard by a quorum, and has applied everything: what the others said
    /// before cannot be ahead of it.
    fn passed(&mut self, ticket: Ticket, result: Result<(), ApiError>) {
        let Some(round) = self.round.take_if(|round| round.barrier == Some(ticket)) else {
            return;
        };
        let Purpose::Periodic(before) = round.purpose else {
            return;
        };
        let Some(after) = result.ok().and_then(|()| self.own_hash()) else {
            return;
        };
        let answers: Vec<Answer> = round.answers.into_iter().collect();
        if let Some(member) = corrupt::periodic(&before, &after, &answers) {
            self.alarm(member);
        }
        let answered = |(_, answer): &&Answer| *answer != PeerAnswer::Silent;
        tracing::info!(
            "number-of-peers-checked" = answers.iter().filter(answered).count(),
            "finished peer corruption check"
        );
    }

    fn compared(&mut self, hash: &HashKv, answers: &[Answer], earlier: Vec<HashKv>) {
        match corrupt::compaction(self.links.identity.member, hash, answers) {
            Compared::Whole => {
                self.checked = self.checked.max(hash.hash_revision);
                tracing::info!(
                    revision = hash.hash_revision,
                    "successfully checked hash on whole cluster"
                );
            }
            Compared::Part => {
                // Nobody has answered at all: perhaps an earlier one can be compared.
                let said = |(_, answer): &Answer| matches!(answer, PeerAnswer::Hash(_));
                if !answers.iter().any(said) {
                    self.next_compaction(earlier);
                }
            }
            Compared::Corrupt(members) => {
                for member in members {
                    self.alarm(member);
                }
            }
        }
    }

    fn alarm(&self, member: MemberId) {
        tracing::error!(member = %member, "raising the alarm CORRUPT");
        let request = InternalRaftRequest {
            alarm: Some(AlarmRequest {
                action: AlarmAction::Activate.into(),
                member_id: member.0,
                alarm: AlarmType::Corrupt.into(),
            }),
            ..InternalRaftRequest::default()
        };
        let asker = Asker::Duty(Duty::CorruptAlarm, self.now());
        if let Err(error) = self.links.propose(request, asker) {
            tracing::warn!(%error, "could not raise the alarm");
        }
    }
}
