//! A single voter through asynchronous storage writes: it counts itself only once it has written.

#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use keelson_proto::entry::{ConfState, Entry, HardState, Snapshot};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};
use keelson_raft::{
    APPEND_THREAD, APPLY_THREAD, Config, Error, MemoryStorage, RawNode, Ready, Role,
};

const ONE: MemberId = MemberId(1);

fn lone_voter(change: impl FnOnce(&mut Config)) -> RawNode<MemoryStorage> {
    let storage = MemoryStorage::with_snapshot(Snapshot {
        conf_state: ConfState {
            voters: vec![ONE],
            ..ConfState::default()
        },
        index: LogIndex(3),
        term: Term(1),
        ..Snapshot::default()
    });
    let mut config = Config::new(ONE);
    config.pre_vote = false;
    change(&mut config);
    RawNode::new(config, storage, Box::new(|_| 0)).unwrap()
}

/// The message to a storage thread, if the Ready has one.
fn to_thread(ready: &Ready, thread: MemberId) -> Option<Message> {
    let mut found = ready.messages.iter().filter(|message| message.to == thread);
    let message = found.next().cloned();
    assert!(found.next().is_none(), "one message a Ready to each thread");
    message
}

/// Writes what the message asks for and delivers its responses.
fn write(node: &mut RawNode<MemoryStorage>, message: Message) {
    assert_eq!(message.kind, MessageKind::StorageAppend);
    let state = HardState {
        term: message.term,
        vote: message.vote,
        commit: message.commit,
    };
    if !state.is_empty() {
        node.storage_mut().set_hard_state(state);
    }
    node.storage_mut().append(&message.entries);
    for response in message.responses {
        node.step(response).unwrap();
    }
}

/// Drives the node until it has nothing more to do; returns what was applied.
fn settle(node: &mut RawNode<MemoryStorage>) -> Vec<Entry> {
    let mut applied = Vec::new();
    while node.has_ready() {
        let ready = node.ready();
        if let Some(message) = to_thread(&ready, APPEND_THREAD) {
            write(node, message);
        }
        if let Some(message) = to_thread(&ready, APPLY_THREAD) {
            applied.extend(message.entries);
            for response in message.responses {
                node.step(response).unwrap();
            }
        }
    }
    applied
}

#[test]
fn nothing_is_decided_before_it_is_written() {
    let mut node = lone_voter(|_| {});
    node.campaign();
    let ready = node.ready();
    assert_eq!(
        node.role(),
        Role::Candidate,
        "its own vote is not durable yet"
    );
    assert!(ready.must_sync);
    write(&mut node, to_thread(&ready, APPEND_THREAD).unwrap());
    assert_eq!(node.role(), Role::Leader);

    settle(&mut node);
    assert_eq!(
        node.committed(),
        LogIndex(4),
        "the entry that opens the term"
    );
    node.propose_batch([Bytes::from_static(b"a"), Bytes::from_static(b"b")])
        .unwrap();
    let ready = node.ready();
    assert_eq!(ready.entries.len(), 2);
    assert_eq!(node.committed(), LogIndex(4), "nothing is written yet");
    assert!(to_thread(&ready, APPLY_THREAD).is_none());

    // A second batch is handed out while the first is being written.
    node.propose(Bytes::from_static(b"c")).unwrap();
    let next = node.ready();
    assert_eq!(next.entries.len(), 1);

    write(&mut node, to_thread(&ready, APPEND_THREAD).unwrap());
    assert_eq!(node.committed(), LogIndex(6));
    write(&mut node, to_thread(&next, APPEND_THREAD).unwrap());
    assert_eq!(node.committed(), LogIndex(7));
    let applied = settle(&mut node);
    let data: Vec<&[u8]> = applied.iter().map(|entry| &entry.data[..]).collect();
    assert_eq!(data, [b"a", b"b", b"c"]);
    assert_eq!(node.applied(), LogIndex(7));
}

#[test]
fn a_lone_voter_elects_itself_by_time_alone_and_reads_at_once() {
    let mut node = lone_voter(|config| config.pre_vote = true);
    for _ in 0..10 {
        node.tick();
    }
    settle(&mut node);
    assert_eq!(node.role(), Role::Leader);
    node.read_index(Bytes::from_static(b"context"));
    let ready = node.ready();
    assert_eq!(ready.read_states.len(), 1);
    assert_eq!(ready.read_states[0].index, LogIndex(4));
    assert_eq!(ready.read_states[0].context, "context");
}

#[test]
fn proposals_are_refused_without_a_leader_and_over_the_limit() {
    let mut node = lone_voter(|config| config.max_uncommitted_entries_size = 10);
    let dropped = node.propose(Bytes::from_static(b"x"));
    assert!(matches!(dropped, Err(Error::ProposalDropped)));
    node.campaign();
    settle(&mut node);
    node.propose(Bytes::from_static(b"the first always fits"))
        .unwrap();
    let dropped = node.propose(Bytes::from_static(b"x"));
    assert!(matches!(dropped, Err(Error::ProposalDropped)));
    settle(&mut node);
    node.propose(Bytes::from_static(b"x")).unwrap();
}

#[test]
fn committed_entries_are_handed_out_in_bounded_parts() {
    let mut node = lone_voter(|config| config.max_committed_size_per_ready = 50);
    node.campaign();
    settle(&mut node);
    for _ in 0..10 {
        node.propose(Bytes::from_static(&[7; 20])).unwrap();
    }
    let ready = node.ready();
    write(&mut node, to_thread(&ready, APPEND_THREAD).unwrap());
    let part = to_thread(&node.ready(), APPLY_THREAD).unwrap();
    assert!(part.entries.len() < 10);
    assert!(!node.has_ready(), "no more until these are applied");
    for response in part.responses {
        node.step(response).unwrap();
    }
    assert_eq!(part.entries.len() + settle(&mut node).len(), 10);
}

#[test]
fn messages_that_no_member_sends_are_refused() {
    let mut node = lone_voter(|_| {});
    node.campaign();
    settle(&mut node);
    let term = node.term();
    let from_us = |kind| Message {
        kind,
        from: ONE,
        to: ONE,
        term,
        ..Message::default()
    };
    assert!(matches!(
        node.step(from_us(MessageKind::Hup)),
        Err(Error::LocalMessage)
    ));
    let mut stranger = from_us(MessageKind::AppResp);
    stranger.from = MemberId(9);
    assert!(matches!(node.step(stranger), Err(Error::UnknownPeer)));
    let mut beyond = from_us(MessageKind::AppResp);
    beyond.index = LogIndex(1000);
    assert!(matches!(node.step(beyond), Err(Error::Malformed { .. })));
    for kind in [MessageKind::Prop, MessageKind::ReadIndex] {
        let mut empty = from_us(kind);
        empty.term = Term(0);
        assert!(matches!(node.step(empty), Err(Error::Malformed { .. })));
    }
    let mut local = from_us(MessageKind::App);
    local.term = Term(0);
    assert!(matches!(node.step(local), Err(Error::Malformed { .. })));
    let mut gap = from_us(MessageKind::App);
    gap.entries = vec![Entry {
        index: LogIndex(7),
        term,
        ..Entry::default()
    }];
    assert!(matches!(node.step(gap), Err(Error::Malformed { .. })));
    assert_eq!(node.role(), Role::Leader);
}

#[test]
fn what_is_stored_must_fit_the_log() {
    let mut storage = MemoryStorage::new();
    storage.set_hard_state(HardState {
        term: Term(1),
        commit: LogIndex(5),
        ..HardState::default()
    });
    let node = RawNode::new(Config::new(ONE), storage, Box::new(|_| 0));
    assert!(matches!(node, Err(Error::IndexOutOfRange { .. })));
    let bad = Config {
        election_tick: 1,
        ..Config::new(ONE)
    };
    let node = RawNode::new(bad, MemoryStorage::new(), Box::new(|_| 0));
    assert!(matches!(node, Err(Error::BadConfig { .. })));
}
