//! The core over a disk that answers when the test says so.

use keelson_proto::entry::ConfChange;
use keelson_proto::ids::{RequestId, Term};

use super::*;
use crate::ticket::{Asker, Waiter};

mod others;

const ME: MemberId = MemberId(1);
const OTHER: MemberId = MemberId(2);

fn voters(ids: &[MemberId]) -> ConfState {
    ConfState {
        voters: ids.to_vec(),
        ..ConfState::default()
    }
}

fn options(replay_to: u64) -> Options {
    Options {
        raft: keelson_raft::Config::new(ME),
        replay_to: LogIndex(replay_to),
        campaign_at_once: true,
        patience_ticks: 70,
        first_context: 1_000,
        hold_ticks: 300,
    }
}

fn empty_log(conf_state: ConfState) -> MemoryLog {
    MemoryLog::new(
        (LogIndex(0), Term(0)),
        Vec::new(),
        HardState::default(),
        conf_state,
    )
}

fn entry(index: u64, term: u64, data: &'static str) -> Entry {
    Entry {
        index: LogIndex(index),
        term: Term(term),
        data: data.into(),
        ..Entry::default()
    }
}

fn ticket(slot: u32) -> Ticket {
    Ticket {
        thread: 0,
        slot,
        generation: 0,
    }
}

fn propose(id: u64, data: &'static str) -> Input {
    Input::Propose(Proposal {
        id: RequestId(id),
        content: Content::Request(data.into()),
        only_in: None,
        waiter: Some(Waiter {
            asker: Asker::Ticket(ticket(0)),
            physical: false,
        }),
    })
}

fn changes(index: u64, change: ConfChange) -> Input {
    Input::ConfChange {
        index: LogIndex(index),
        change: change.into(),
    }
}

/// A core with what it has asked for and not been answered.
struct Bench {
    core: Core,
    appends: Vec<Append>,
    apply: Vec<Entry>,
    messages: Vec<Message>,
    snapshots: Vec<Message>,
    /// Snapshots that were to be installed; the entries that were to be applied then are gone.
    install: Vec<LogIndex>,
    readable: Vec<Ticket>,
    unreadable: Vec<Ticket>,
    dropped: Vec<(RequestId, ApiError)>,
    released: u64,
    synced_index: LogIndex,
}

impl Bench {
    fn new(options: Options, log: MemoryLog, applied: u64) -> Bench {
        let synced_index = log.last_index();
        let draw = Box::new(|_| 0);
        let mut bench = Bench {
            core: Core::new(options, log, LogIndex(applied), draw).unwrap(),
            appends: Vec::new(),
            apply: Vec::new(),
            messages: Vec::new(),
            snapshots: Vec::new(),
            install: Vec::new(),
            readable: Vec::new(),
            unreadable: Vec::new(),
            dropped: Vec::new(),
            released: 0,
            synced_index,
        };
        bench.give([]);
        bench
    }

    fn lone() -> Bench {
        Bench::new(options(0), empty_log(voters(&[ME])), 0)
    }

    fn give(&mut self, inputs: impl IntoIterator<Item = Input>) {
        let out = self.core.handle(inputs).unwrap();
        self.appends.extend(out.appends);
        self.messages.extend(out.messages);
        self.snapshots.extend(out.snapshots);
        if let Some(snapshot) = out.install {
            self.install.push(snapshot.index);
            self.synced_index = self.synced_index.max(snapshot.index);
        }
        for entry in &out.apply {
            assert!(
                entry.index <= self.synced_index,
                "entry {} is not synced",
                entry.index
            );
        }
        self.apply.extend(out.apply);
        self.readable.extend(out.readable);
        self.unreadable.extend(out.unreadable);
        self.dropped.extend(out.dropped);
        self.released += out.released_bytes;
    }

    /// The disk answers for the first `count` writes that wait.
    fn sync(&mut self, count: usize) {
        let mut upto = 0;
        for append in self.appends.drain(..count) {
            upto = append.number;
            if let Some(last) = append.entries.last() {
                self.synced_index = last.index;
            }
        }
        self.give([Input::Synced { upto }]);
    }

    /// Applies everything that waits.
    fn apply_all(&mut self) -> Vec<u64> {
        let indexes: Vec<u64> = self.apply.drain(..).map(|entry| entry.index.0).collect();
        if let Some(last) = indexes.last() {
            self.give([Input::Applied {
                index: LogIndex(*last),
            }]);
        }
        indexes
    }

    /// Lets disk and apply answer until nothing waits.
    fn settle(&mut self) {
        while !self.appends.is_empty() || !self.apply.is_empty() {
            if !self.appends.is_empty() {
                self.sync(self.appends.len());
            }
            self.apply_all();
        }
    }
}

#[test]
fn a_lone_voter_leads_only_after_the_disk_has_its_vote() {
    let mut bench = Bench::lone();
    assert!(!bench.core.view().leads);
    assert_eq!(bench.appends.len(), 1, "its vote");
    assert!(bench.appends[0].must_sync);
    bench.sync(1);
    assert!(bench.core.view().leads);
    assert!(
        bench.apply.is_empty(),
        "the first entry of the term is not synced"
    );
    bench.settle();
    assert_eq!(bench.core.view().committed, LogIndex(1));
}

#[test]
fn nothing_is_applied_before_the_own_log_has_it() {
    let mut bench = Bench::lone();
    bench.settle();
    bench.give([propose(1, "a"), propose(2, "b")]);
    bench.give([propose(3, "c")]);
    assert_eq!(bench.appends.len(), 2, "two batches are on their way");
    assert_eq!(bench.appends[0].entries.len(), 2, "a batch is one write");
    assert!(bench.apply.is_empty());
    bench.sync(1);
    assert_eq!(bench.apply_all(), [2, 3]);
    bench.sync(bench.appends.len());
    assert_eq!(bench.apply_all(), [4]);
}

#[test]
fn a_late_answer_for_several_writes_releases_them_in_order() {
    let mut bench = Bench::lone();
    bench.settle();
    for id in 1..=5 {
        bench.give([propose(id, "x")]);
    }
    assert_eq!(bench.appends.len(), 5);
    bench.sync(4);
    assert_eq!(bench.apply_all(), [2, 3, 4, 5]);
    bench.settle();
    assert_eq!(bench.core.view().committed, LogIndex(6));
}

#[test]
fn a_commit_index_alone_does_not_wake_the_log() {
    let mut bench = Bench::lone();
    bench.settle();
    bench.give([propose(1, "a")]);
    bench.sync(1);
    assert_eq!(bench.apply_all(), [2]);
    assert!(bench.appends.is_empty(), "the hard state waits for company");
    bench.give([propose(2, "b")]);
    let state = bench.appends[0].hard_state.unwrap();
    assert_eq!(state.commit, LogIndex(2), "it goes with the next write");
    bench.settle();
    bench.give([Input::Tick]);
    let state = bench.appends[0].hard_state.unwrap();
    assert_eq!(state.commit, LogIndex(3), "or with the next tick");
    assert!(!bench.appends[0].must_sync);
}

#[test]
fn a_stop_flushes_the_commit_index() {
    let mut bench = Bench::lone();
    bench.settle();
    bench.give([propose(1, "a")]);
    bench.settle();
    let out = bench.core.flush();
    assert_eq!(out.appends[0].hard_state.unwrap().commit, LogIndex(2));
}

#[test]
fn bytes_of_proposals_are_released_when_the_own_log_has_them() {
    let mut bench = Bench::lone();
    bench.settle();
    bench.give([propose(1, "abc")]);
    bench.give([propose(2, "de")]);
    assert_eq!(bench.released, 0);
    bench.sync(1);
    assert_eq!(bench.released, 3);
    bench.sync(1);
    assert_eq!(bench.released, 5);
}

#[test]
fn a_restarted_member_applies_what_was_committed_before_it_campaigns() {
    let entries = (1..=5).map(|index| entry(index, 2, "x")).collect();
    let state = HardState {
        term: Term(2),
        vote: ME,
        commit: LogIndex(4),
    };
    let log = MemoryLog::new((LogIndex(0), Term(0)), entries, state, voters(&[ME]));
    let mut bench = Bench::new(options(4), log, 2);
    for _ in 0..100 {
        bench.give([Input::Tick]);
    }
    assert_eq!(bench.core.view().term, Term(2), "it has not campaigned");
    assert!(bench.appends.iter().all(|append| !append.must_sync));
    let indexes: Vec<u64> = bench.apply.iter().map(|entry| entry.index.0).collect();
    assert_eq!(indexes, [3, 4], "what the file has is not applied again");
    bench.give([Input::Applied { index: LogIndex(3) }]);
    assert_eq!(bench.core.view().term, Term(2));
    bench.apply.clear();
    bench.give([Input::Applied { index: LogIndex(4) }]);
    assert_eq!(bench.core.view().term, Term(3), "now it has");
    bench.settle();
    assert_eq!(
        bench.core.view().committed,
        LogIndex(6),
        "entry 5, and the term's first"
    );
}

#[test]
fn a_new_log_makes_its_member_a_voter_by_its_first_entry() {
    let change = ConfChange {
        member: ME,
        ..ConfChange::default()
    };
    let first = Entry {
        kind: keelson_proto::entry::EntryKind::ConfChange,
        data: change.encode(),
        ..entry(1, 1, "")
    };
    let state = HardState {
        term: Term(1),
        vote: MemberId::NONE,
        commit: LogIndex(1),
    };
    let none = (LogIndex(0), Term(0));
    let log = MemoryLog::new(none, vec![first], state, ConfState::default());
    let mut bench = Bench::new(options(1), log, 0);
    assert!(!bench.core.view().only_voter);
    assert_eq!(bench.apply.drain(..).len(), 1);
    bench.give([changes(1, change), Input::Applied { index: LogIndex(1) }]);
    assert!(bench.core.view().only_voter);
    bench.settle();
    assert!(bench.core.view().leads);
    assert_eq!(bench.core.view().term, Term(2));
}

#[test]
fn a_refused_configuration_change_changes_nothing() {
    let mut bench = Bench::lone();
    bench.settle();
    bench.give([changes(2, ConfChange::default())]);
    assert!(bench.core.view().only_voter);
}

#[test]
fn adding_a_voter_ends_the_rule_of_one() {
    let mut bench = Bench::lone();
    bench.settle();
    let change = ConfChange {
        member: OTHER,
        ..ConfChange::default()
    };
    bench.give([Input::Propose(Proposal {
        id: RequestId(1),
        content: Content::ConfChange(change.clone()),
        only_in: None,
        waiter: None,
    })]);
    bench.sync(1);
    assert_eq!(bench.apply.len(), 1);
    bench.give([changes(2, change)]);
    bench.apply_all();
    assert!(!bench.core.view().only_voter);
    bench.give([propose(2, "x")]);
    bench.sync(bench.appends.len());
    assert!(bench.apply.is_empty(), "a quorum needs the other one");
    assert!(bench.messages.iter().any(|message| message.to == OTHER));
}

#[test]
fn proposals_wait_for_a_leader_and_not_longer_than_anybody_waits() {
    let log = empty_log(voters(&[ME, OTHER]));
    let mut bench = Bench::new(options(0), log, 0);
    bench.give([propose(7, "abc")]);
    assert!(bench.dropped.is_empty());
    assert_eq!(bench.core.held(), 1);
    for _ in 0..70 {
        bench.give([Input::Tick]);
    }
    assert_eq!(
        bench.dropped,
        [(RequestId(7), ApiError::ContextDeadlineExceeded)]
    );
    assert_eq!(bench.released, 3);
}

#[test]
fn proposals_that_came_early_are_in_the_log_once_there_is_a_leader() {
    let mut bench = Bench::lone();
    bench.give([propose(1, "early")]);
    bench.settle();
    assert_eq!(bench.core.view().committed, LogIndex(2));
    assert_eq!(bench.core.held(), 0);
}

#[test]
fn a_follower_votes_and_acknowledges_only_after_its_disk_has_answered() {
    let log = empty_log(voters(&[ME, OTHER]));
    let mut bench = Bench::new(options(0), log, 0);
    let vote = Message {
        kind: MessageKind::Vote,
        from: OTHER,
        to: ME,
        term: Term(1),
        ..Message::default()
    };
    bench.give([Input::Step(vote)]);
    assert!(bench.messages.is_empty());
    bench.sync(1);
    assert_eq!(bench.messages.pop().unwrap().kind, MessageKind::VoteResp);
    let append = Message {
        kind: MessageKind::App,
        from: OTHER,
        to: ME,
        term: Term(1),
        entries: vec![entry(1, 1, "")],
        commit: LogIndex(1),
        ..Message::default()
    };
    bench.give([Input::Step(append)]);
    assert!(bench.messages.is_empty());
    assert!(bench.apply.is_empty(), "committed, but not in the own log");
    bench.sync(bench.appends.len());
    assert_eq!(bench.messages.pop().unwrap().kind, MessageKind::AppResp);
    assert_eq!(bench.apply_all(), [1]);
}

#[test]
fn a_read_waits_for_its_round_and_for_apply() {
    let mut bench = Bench::lone();
    bench.give([Input::ReadBarrier(ticket(1))]);
    assert!(bench.readable.is_empty(), "nobody leads yet");
    bench.settle();
    bench.give([propose(1, "x")]);
    bench.sync(1);
    bench.give([Input::ReadBarrier(ticket(2))]);
    assert_eq!(
        bench.readable,
        [ticket(1)],
        "entry 2 is committed and not applied"
    );
    bench.apply_all();
    assert_eq!(bench.readable, [ticket(1), ticket(2)]);
    assert!(bench.unreadable.is_empty());
}

#[test]
fn a_read_after_a_crash_sees_what_the_log_holds_beyond_its_commit_index() {
    let entries = (1..=5).map(|index| entry(index, 2, "x")).collect();
    let state = HardState {
        term: Term(2),
        vote: ME,
        commit: LogIndex(3),
    };
    let log = MemoryLog::new((LogIndex(0), Term(0)), entries, state, voters(&[ME]));
    let mut bench = Bench::new(options(3), log, 3);
    bench.give([Input::ReadBarrier(ticket(1))]);
    while !bench.core.view().leads {
        bench.sync(1);
    }
    bench.give([Input::ReadBarrier(ticket(2))]);
    assert!(bench.readable.is_empty(), "4 and 5 may be acknowledged");
    while bench.apply.is_empty() {
        bench.sync(1);
    }
    assert!(
        bench.readable.is_empty(),
        "they are committed and not applied"
    );
    assert_eq!(bench.apply_all(), [4, 5, 6]);
    assert_eq!(bench.readable, [ticket(1), ticket(2)]);
}

#[test]
fn messages_that_come_before_the_replay_is_through_are_kept() {
    let entries = vec![entry(1, 1, "x")];
    let state = HardState {
        term: Term(1),
        vote: MemberId::NONE,
        commit: LogIndex(1),
    };
    let none = (LogIndex(0), Term(0));
    let log = MemoryLog::new(none, entries, state, voters(&[ME, OTHER]));
    let mut bench = Bench::new(options(1), log, 0);
    let heartbeat = Message {
        kind: MessageKind::Heartbeat,
        from: OTHER,
        to: ME,
        term: Term(2),
        ..Message::default()
    };
    bench.give([Input::Step(heartbeat)]);
    assert_eq!(bench.core.view().term, Term(1));
    bench.apply_all();
    assert_eq!(bench.core.view().term, Term(2));
    assert_eq!(bench.core.view().leader, OTHER);
}

#[test]
#[should_panic(expected = "apply never goes back")]
fn apply_that_goes_back_is_a_broken_invariant() {
    let mut bench = Bench::lone();
    bench.settle();
    bench.give([Input::Applied { index: LogIndex(0) }]);
}

#[test]
fn the_end_of_the_log_is_acknowledged_once_for_each_write() {
    let mut bench = Bench::lone();
    bench.settle();
    for id in 0..3 {
        bench.give([propose(id, "x")]);
    }
    // The first write ends: the commit of it waits for the last one, which acknowledges the end already.
    bench.sync(1);
    let acknowledged = |bench: &Bench| -> Vec<u64> {
        let writing = bench.core.writing.iter();
        writing
            .flat_map(|writing| &writing.responses)
            .filter(|response| response.kind == MessageKind::StorageAppendResp)
            .map(|response| response.index.0)
            .collect()
    };
    assert_eq!(acknowledged(&bench), [3, 4]);
    bench.sync(1);
    assert_eq!(acknowledged(&bench), [4]);
    bench.settle();
    assert_eq!(bench.core.view().committed, LogIndex(4));
    assert_eq!(bench.core.raft.storage().last_index(), LogIndex(4));
}
