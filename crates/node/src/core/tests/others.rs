//! The core among others: what waits for the own disk, and what does not.

use super::*;
use crate::budget;

const THIRD: MemberId = MemberId(3);

fn from(sender: MemberId, kind: MessageKind, term: u64) -> Message {
    Message {
        kind,
        from: sender,
        to: ME,
        term: Term(term),
        ..Message::default()
    }
}

fn acknowledged(sender: MemberId, term: u64, index: u64) -> Input {
    Input::Step(Message {
        index: LogIndex(index),
        ..from(sender, MessageKind::AppResp, term)
    })
}

/// The leader of three, with the first entry of its term on two disks, applied.
fn leader() -> Bench {
    leader_with(options(0), empty_log(voters(&[ME, OTHER, THIRD])), 0)
}

fn leader_with(options: Options, log: MemoryLog, applied: u64) -> Bench {
    let mut bench = Bench::new(options, log, applied);
    while bench.messages.is_empty() {
        bench.give([Input::Tick]);
        if !bench.appends.is_empty() {
            bench.sync(bench.appends.len());
        }
    }
    let term = bench.core.view().term.0 + 1;
    bench.give([Input::Step(from(OTHER, MessageKind::PreVoteResp, term))]);
    bench.sync(bench.appends.len());
    bench.give([Input::Step(from(OTHER, MessageKind::VoteResp, term))]);
    assert!(bench.core.view().leads);
    bench.sync(bench.appends.len());
    let last = bench.synced_index.0;
    bench.give([acknowledged(OTHER, term, last)]);
    bench.settle();
    bench.messages.clear();
    bench
}

fn kinds(messages: &[Message], to: MemberId) -> Vec<MessageKind> {
    let to = messages.iter().filter(|message| message.to == to);
    to.map(|message| message.kind).collect()
}

#[test]
fn a_leader_sends_entries_before_its_own_disk_has_them() {
    let mut bench = leader();
    bench.give([propose(1, "a")]);
    assert_eq!(bench.appends.len(), 1, "it is on its way to the disk");
    let sent: Vec<&Message> = bench
        .messages
        .iter()
        .filter(|message| message.to == OTHER && !message.entries.is_empty())
        .collect();
    assert_eq!(sent.len(), 1);
}

#[test]
fn the_others_commit_what_a_leader_with_a_slow_disk_has_sent_and_it_applies_later() {
    let mut bench = leader();
    bench.give([propose(1, "a")]);
    bench.give([acknowledged(OTHER, 1, 2)]);
    assert_eq!(
        bench.core.view().committed,
        LogIndex(1),
        "one of three is no quorum: the own disk does not count yet"
    );
    bench.give([acknowledged(THIRD, 1, 2)]);
    assert_eq!(bench.core.view().committed, LogIndex(2));
    assert!(bench.apply.is_empty(), "it is not in the own log");
    bench.sync(1);
    assert_eq!(bench.apply_all(), [2]);
}

#[test]
fn heartbeats_go_out_and_are_answered_while_the_disk_and_apply_are_stuck() {
    let mut bench = leader();
    bench.give([propose(1, "a")]);
    bench.messages.clear();
    for _ in 0..3 {
        bench.give([Input::Tick]);
    }
    let heartbeats = kinds(&bench.messages, OTHER);
    assert_eq!(heartbeats, [MessageKind::Heartbeat; 3]);

    let mut follower = Bench::new(options(0), empty_log(voters(&[ME, OTHER])), 0);
    let append = Message {
        entries: vec![entry(1, 1, "x"), entry(2, 1, "y")],
        commit: LogIndex(2),
        ..from(OTHER, MessageKind::App, 1)
    };
    follower.give([Input::Step(append)]);
    assert!(follower.messages.is_empty());
    follower.give([Input::Step(from(OTHER, MessageKind::Heartbeat, 1))]);
    let answers = kinds(&follower.messages, OTHER);
    assert_eq!(answers, [MessageKind::HeartbeatResp]);
    follower.sync(follower.appends.len());
    follower.messages.clear();
    assert_eq!(follower.apply.len(), 2, "apply is stuck");
    follower.give([Input::Step(from(OTHER, MessageKind::Heartbeat, 1))]);
    let answers = kinds(&follower.messages, OTHER);
    assert_eq!(answers, [MessageKind::HeartbeatResp]);
    // And it asks for votes when the leader is silent.
    follower.messages.clear();
    for _ in 0..25 {
        follower.give([Input::Tick]);
        let waiting = follower.appends.len();
        if waiting > 0 {
            follower.sync(waiting);
        }
    }
    let asked = kinds(&follower.messages, OTHER);
    assert!(asked.contains(&MessageKind::PreVote), "{asked:?}");
}

fn snapshot(index: u64, term: u64) -> Snapshot {
    Snapshot {
        index: LogIndex(index),
        term: Term(term),
        conf_state: voters(&[ME, OTHER]),
        ..Snapshot::default()
    }
}

fn install(index: u64) -> Input {
    Input::Step(Message {
        snapshot: Some(Box::new(snapshot(index, 2))),
        ..from(OTHER, MessageKind::Snap, 2)
    })
}

#[test]
fn a_snapshot_is_in_the_log_before_it_is_installed_and_installed_before_what_follows() {
    let mut bench = Bench::new(options(0), empty_log(voters(&[ME, OTHER])), 0);
    bench.give([install(10)]);
    assert!(bench.install.is_empty());
    let follows = Message {
        index: LogIndex(10),
        log_term: Term(2),
        entries: vec![entry(11, 2, "x")],
        commit: LogIndex(11),
        ..from(OTHER, MessageKind::App, 2)
    };
    bench.give([Input::Step(follows)]);
    assert!(bench.apply.is_empty() && bench.messages.is_empty());
    let number = bench.appends.len();
    let with_snapshot = |append: &Append| append.snapshot.is_some() && append.must_sync;
    assert!(bench.appends.iter().any(with_snapshot));
    bench.sync(number);
    assert_eq!(bench.install, [LogIndex(10)]);
    let answered = kinds(&bench.messages, OTHER);
    assert!(answered.contains(&MessageKind::AppResp));
    bench.settle();
    assert_eq!(bench.core.view().committed, LogIndex(11));
}

#[test]
fn a_snapshot_takes_the_place_of_what_was_still_to_be_applied() {
    let mut bench = Bench::new(options(0), empty_log(voters(&[ME, OTHER])), 0);
    let change = ConfChange {
        member: THIRD,
        ..ConfChange::default()
    };
    let append = Message {
        entries: vec![entry(1, 1, "x"), entry(2, 1, "y")],
        commit: LogIndex(2),
        ..from(OTHER, MessageKind::App, 1)
    };
    bench.give([Input::Step(append)]);
    bench.sync(bench.appends.len());
    assert_eq!(bench.apply.len(), 2);
    bench.give([install(10)]);
    bench.sync(bench.appends.len());
    // Apply was in the middle of the old entries: what they change is in the snapshot already.
    bench.give([changes(2, change), Input::Applied { index: LogIndex(2) }]);
    assert_eq!(bench.core.conf_state, voters(&[ME, OTHER]));
    bench.give([Input::Applied {
        index: LogIndex(10),
    }]);
    assert_eq!(bench.core.raft.applied(), LogIndex(10));
    assert_eq!(bench.core.raft.storage().last_index(), LogIndex(10));
}

/// A leader whose log no longer reaches back to the beginning.
fn trimmed() -> Bench {
    let entries = (11..=20).map(|index| entry(index, 1, "x")).collect();
    let state = HardState {
        term: Term(1),
        vote: MemberId::NONE,
        commit: LogIndex(20),
    };
    let of = voters(&[ME, OTHER, THIRD]);
    let log = MemoryLog::new((LogIndex(10), Term(1)), entries, state, of);
    leader_with(options(20), log, 20)
}

/// The third member lives, and has nothing.
fn has_nothing(bench: &mut Bench) {
    let term = bench.core.view().term.0;
    let rejected = Message {
        index: LogIndex(20),
        reject: true,
        ..from(THIRD, MessageKind::AppResp, term)
    };
    bench.give([Input::Step(rejected)]);
}

#[test]
fn a_member_that_needs_what_is_gone_gets_a_snapshot_of_what_is_applied_and_the_log_is_kept() {
    let mut bench = trimmed();
    has_nothing(&mut bench);
    assert_eq!(bench.snapshots.len(), 1);
    let sent = bench.snapshots[0].snapshot.as_ref().unwrap();
    assert_eq!((sent.index, sent.term), (LogIndex(21), Term(2)));
    let large = "x".repeat(4 << 20);
    let grow = |bench: &mut Bench| {
        for id in 0..8 {
            bench.give([Input::Propose(Proposal {
                id: RequestId(id),
                content: Content::Request(large.clone().into()),
                only_in: None,
                waiter: None,
            })]);
            bench.sync(bench.appends.len());
            let last = bench.synced_index.0;
            bench.give([acknowledged(OTHER, 2, last)]);
            bench.settle();
        }
    };
    grow(&mut bench);
    let first = bench.core.raft.storage().first_index();
    assert_eq!(first, LogIndex(11), "{} bytes", bench.core.log_bytes());
    let done = |delivered| Input::SnapshotSent {
        to: THIRD,
        delivered,
    };
    bench.give([done(true)]);
    for _ in 0..300 {
        bench.give([
            Input::Tick,
            Input::Step(from(OTHER, MessageKind::HeartbeatResp, 2)),
        ]);
    }
    grow(&mut bench);
    assert!(bench.core.log_bytes() <= budget::RAFT_LOG_BYTES);
    assert!(bench.core.view().leads);
}

#[test]
fn proposals_for_another_leader_go_in_parcels_of_a_bounded_size() {
    let mut bench = Bench::new(options(0), empty_log(voters(&[ME, OTHER])), 0);
    bench.give([Input::Step(from(OTHER, MessageKind::Heartbeat, 1))]);
    bench.sync(bench.appends.len());
    bench.messages.clear();
    let data = "x".repeat(300 << 10);
    let proposals = (0..10).map(|id| {
        Input::Propose(Proposal {
            id: RequestId(id),
            content: Content::Request(data.clone().into()),
            only_in: None,
            waiter: None,
        })
    });
    bench.give(proposals.collect::<Vec<_>>());
    let parcels: Vec<usize> = bench
        .messages
        .iter()
        .filter(|message| message.kind == MessageKind::Prop)
        .map(|message| message.entries.len())
        .collect();
    assert_eq!(parcels, [3, 3, 3, 1]);
    assert_eq!(bench.released, 10 * (300 << 10));
}

#[test]
fn a_leader_without_answers_takes_no_more_than_fits() {
    let mut limited = options(0);
    limited.raft.max_uncommitted_entries_size = 1_000;
    let log = empty_log(voters(&[ME, OTHER, THIRD]));
    let mut bench = leader_with(limited, log, 0);
    let data = "x".repeat(600);
    for id in 1..=2 {
        bench.give([Input::Propose(Proposal {
            id: RequestId(id),
            content: Content::Request(data.clone().into()),
            only_in: None,
            waiter: None,
        })]);
    }
    let refused = [(RequestId(2), ApiError::TooManyRequests)];
    assert_eq!(bench.dropped, refused);
}

#[test]
fn what_the_leader_of_a_term_decides_is_not_passed_on_to_the_next_one() {
    let mut bench = leader();
    let term = bench.core.view().term;
    let revoke = |id| {
        Input::Propose(Proposal {
            id: RequestId(id),
            content: Content::Request("revoke".into()),
            only_in: Some(term),
            waiter: None,
        })
    };
    bench.give([revoke(1)]);
    assert_eq!(bench.appends.len(), 1, "it leads");
    // It was asleep: the decision comes with the news that somebody else leads.
    let news = from(OTHER, MessageKind::Heartbeat, term.0 + 1);
    bench.messages.clear();
    bench.give([revoke(2), Input::Step(news), propose(3, "of a client")]);
    assert!(!bench.core.view().leads);
    let passed_on: Vec<usize> = bench
        .messages
        .iter()
        .filter(|message| message.kind == MessageKind::Prop)
        .map(|message| message.entries.len())
        .collect();
    assert_eq!(passed_on, [1], "only the client's");
    assert_eq!(
        bench.dropped,
        [(RequestId(2), ApiError::ProposalDropped)],
        "the decision is dropped"
    );
}

#[test]
fn a_candidate_asks_for_votes_when_its_own_disk_has_its_term() {
    let five = [ME, OTHER, THIRD, MemberId(4), MemberId(5)];
    let mut bench = Bench::new(options(0), empty_log(voters(&five)), 0);
    while bench.messages.is_empty() {
        bench.give([Input::Tick]);
    }
    let term = bench.core.view().term.0 + 1;
    bench.settle();
    bench.messages.clear();
    let polled = [OTHER, THIRD].map(|id| Input::Step(from(id, MessageKind::PreVoteResp, term)));
    bench.give(polled);
    assert_eq!(bench.appends.len(), 1, "its term is on its way to the disk");
    assert!(bench.messages.is_empty(), "nobody hears of the term before");
    bench.sync(1);
    assert_eq!(kinds(&bench.messages, OTHER), [MessageKind::Vote]);
    assert_eq!(kinds(&bench.messages, THIRD), [MessageKind::Vote]);
}
