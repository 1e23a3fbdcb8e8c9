//! Encodings that were damaged, and ones made to hurt: a typed error or a value, never a panic, on
//! the stacks that threads of the server have, and with memory in proportion to the input.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use keelson_proto::Error;
use keelson_proto::entry::{
    ConfChange, ConfChangeKind, ConfChangeSingle, ConfChangeV2, ConfState, Entry, EntryKind,
    HardState, Snapshot,
};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};
use keelson_proto::request::{self, STACK_BYTES};
use keelson_proto::rpc::etcdserverpb::request_op::Request;
use keelson_proto::rpc::etcdserverpb::{
    Compare, DeleteRangeRequest, InternalRaftRequest, LeaseGrantRequest, PutRequest, RangeRequest,
    RequestHeader, RequestOp, TxnRequest, compare,
};
use prost::Message as _;

/// How long one test damages encodings.
const TIME_BOX: Duration = Duration::from_secs(2);
/// How many it damages at least, however slow the machine is.
const CASES_MIN: u32 = 2_000;
/// The stack of every other thread that decodes what comes from disk or from members.
const SMALL_STACK_BYTES: usize = 2 << 20;

/// `SplitMix64`: every run is the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// Damages `bytes` in one way.
fn hurt(random: &mut Random, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    let at = random.below(bytes.len() + 1);
    let end = (at + 1 + random.below(8)).min(bytes.len());
    match random.below(9) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = random.next() as u8,
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..end.max(at))),
        4 => {
            let len = 1 + random.below(12);
            let new = random.bytes(len);
            bytes.splice(at..at, new).for_each(drop);
        }
        5 => {
            let part = bytes[at..end.max(at)].to_vec();
            bytes.splice(at..at, part).for_each(drop);
        }
        // A number of ten bytes: a length or a value past all bounds.
        6 => {
            let mut new = vec![0xff; 9];
            new.push(1);
            bytes.splice(at..end.max(at), new).for_each(drop);
        }
        // A group, which nothing of ours has.
        7 => {
            let key = 3 | (random.below(16) as u8) << 3;
            let levels = random.below(200);
            bytes.splice(at..at, vec![key; levels]).for_each(drop);
        }
        _ => {
            let other = &others[random.below(others.len())];
            let from = random.below(other.len());
            let part = other[from..].to_vec();
            bytes.splice(at..end.max(at), part).for_each(drop);
        }
    }
}

/// The most memory that this process has had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() << 10
}

fn on_a_stack_of(bytes: usize, work: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().stack_size(bytes).spawn(work);
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// Damages the encodings in `valid` until the time box ends, and gives each to `decode`, which says
/// whether it still was a value.
fn drive(
    seed: u64,
    valid: Vec<Vec<u8>>,
    stack: usize,
    decode: impl Fn(Bytes) -> Result<(), Error> + Send + 'static,
) {
    on_a_stack_of(stack, move || {
        for bytes in &valid {
            decode(bytes.clone().into()).unwrap();
        }
        let before = peak();
        let started = Instant::now();
        let (mut cases, mut refused) = (0, 0);
        while cases < CASES_MIN || started.elapsed() < TIME_BOX {
            let mut random = Random(seed << 32 | u64::from(cases));
            let mut bytes = valid[random.below(valid.len())].clone();
            for _ in 0..=random.below(3) {
                hurt(&mut random, &mut bytes, &valid);
            }
            refused += u32::from(decode(bytes.into()).is_err());
            cases += 1;
        }
        assert!(0 < refused && refused < cases, "{refused} of {cases}");
        let grown = peak() - before;
        assert!(grown < 64 << 20, "{grown} bytes for encodings of a few");
    });
}

fn op(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn txn(levels: usize) -> TxnRequest {
    let mut txn = TxnRequest {
        compare: vec![Compare {
            key: "k".into(),
            target_union: Some(compare::TargetUnion::Value("v".into())),
            ..Compare::default()
        }],
        success: vec![
            op(Request::RequestPut(PutRequest {
                key: "key".into(),
                value: "value".into(),
                lease: 7,
                prev_kv: true,
                ..PutRequest::default()
            })),
            op(Request::RequestRange(RangeRequest {
                key: "a".into(),
                range_end: "z".into(),
                limit: -1,
                ..RangeRequest::default()
            })),
        ],
        failure: vec![op(Request::RequestDeleteRange(DeleteRangeRequest {
            key: "key".into(),
            ..DeleteRangeRequest::default()
        }))],
    };
    for level in 0..levels {
        let inner = op(Request::RequestTxn(txn));
        txn = TxnRequest::default();
        match level % 2 {
            0 => txn.success.push(inner),
            _ => txn.failure.push(inner),
        }
    }
    txn
}

fn requests() -> Vec<InternalRaftRequest> {
    let header = Some(RequestHeader {
        id: 0x1234_5678,
        username: "root".into(),
        auth_revision: 3,
    });
    let with_header = || InternalRaftRequest {
        header: header.clone(),
        ..InternalRaftRequest::default()
    };
    vec![
        InternalRaftRequest {
            put: Some(PutRequest {
                key: "key".into(),
                value: vec![7; 300].into(),
                ..PutRequest::default()
            }),
            ..with_header()
        },
        InternalRaftRequest {
            lease_grant: Some(LeaseGrantRequest { id: 5, ttl: 60 }),
            ..with_header()
        },
        InternalRaftRequest {
            txn: Some(txn(1)),
            ..with_header()
        },
        InternalRaftRequest {
            txn: Some(txn(60)),
            ..with_header()
        },
    ]
}

#[test]
fn damaged_requests_are_refused_or_read() {
    let valid = requests().into_iter();
    let valid = valid.map(|request| request.encode_to_vec());
    drive(1, valid.collect(), STACK_BYTES, |bytes| {
        request::decode(bytes).map(drop)
    });
}

#[test]
fn damaged_transactions_are_refused_or_read() {
    let valid = [0, 2, 47, 130].map(|levels| txn(levels).encode_to_vec());
    drive(2, valid.into(), STACK_BYTES, |bytes| {
        request::decode_txn(bytes).map(drop)
    });
}

fn entries() -> Vec<Entry> {
    let entry = |kind, index, data: &'static [u8]| Entry {
        kind,
        term: Term(3),
        index: LogIndex(index),
        data: data.into(),
    };
    vec![
        entry(EntryKind::Normal, 4, b""),
        entry(EntryKind::Normal, 5, b"a request of some bytes"),
        entry(EntryKind::ConfChange, 1 << 40, b"\x08\x01"),
    ]
}

#[test]
fn damaged_entries_are_refused_or_read() {
    let encode = |entry: &Entry| {
        let mut buffer = Vec::new();
        entry.encode(&mut buffer);
        buffer
    };
    let valid = entries().iter().map(encode).collect();
    drive(3, valid, SMALL_STACK_BYTES, |bytes| {
        Entry::decode(bytes).map(drop)
    });
}

#[test]
fn damaged_hard_states_are_refused_or_read() {
    let state = HardState {
        term: Term(3),
        vote: MemberId(u64::MAX),
        commit: LogIndex(7),
    };
    let mut valid = Vec::new();
    state.encode(&mut valid);
    drive(4, vec![valid], SMALL_STACK_BYTES, |bytes| {
        HardState::decode(&bytes).map(drop)
    });
}

#[test]
fn damaged_changes_of_the_configuration_are_refused_or_read() {
    let one = ConfChange {
        id: 9,
        kind: ConfChangeKind::AddLearnerNode,
        member: MemberId(u64::MAX),
        context: Bytes::from_static(b"{\"id\":5,\"peerURLs\":[\"http://a:1\"]}"),
    };
    let many = ConfChangeV2 {
        changes: vec![ConfChangeSingle::default(); 3],
        context: Bytes::from_static(b"context"),
        ..ConfChangeV2::default()
    };
    drive(5, vec![one.encode().into()], SMALL_STACK_BYTES, |bytes| {
        ConfChange::decode(bytes).map(drop)
    });
    drive(6, vec![many.encode().into()], SMALL_STACK_BYTES, |bytes| {
        ConfChangeV2::decode(bytes).map(drop)
    });
}

fn snapshot() -> Snapshot {
    Snapshot {
        data: Bytes::from_static(b"{\"Root\":{}}"),
        conf_state: ConfState {
            voters: vec![MemberId(1), MemberId(u64::MAX)],
            learners: vec![MemberId(3)],
            auto_leave: true,
            ..ConfState::default()
        },
        index: LogIndex(4),
        term: Term(2),
    }
}

#[test]
fn damaged_snapshots_are_refused_or_read() {
    let valid = vec![snapshot().encode().into()];
    drive(7, valid, SMALL_STACK_BYTES, |bytes| {
        Snapshot::decode(bytes).map(drop)
    });
}

#[test]
fn damaged_messages_are_refused_or_read() {
    let append = Message {
        kind: MessageKind::App,
        to: MemberId(1),
        from: MemberId(2),
        term: Term(3),
        index: LogIndex(9),
        entries: entries(),
        commit: LogIndex(8),
        ..Message::default()
    };
    let storage = Message {
        kind: MessageKind::StorageAppend,
        snapshot: Some(Box::new(snapshot())),
        responses: vec![append.clone(), Message::default()],
        context: Bytes::from_static(b"context"),
        ..Message::default()
    };
    let valid = vec![append.encode().into(), storage.encode().into()];
    drive(8, valid, SMALL_STACK_BYTES, |bytes| {
        Message::decode(bytes).map(drop)
    });
}

/// `content` as a field of a message.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let wire_type = prost::encoding::WireType::LengthDelimited;
    prost::encoding::encode_key(number, wire_type, &mut out);
    prost::encoding::encode_varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

/// Transactions inside one another, each with `extra` beside the inner one.
fn nested(levels: usize, extra: &[u8]) -> Vec<u8> {
    let mut inner = Vec::new();
    for _ in 0..levels {
        let op = [extra, &field(4, &inner)].concat();
        inner = [extra, &field(2, &op)].concat();
    }
    inner
}

#[test]
fn groups_inside_one_another_do_not_spend_the_stack() {
    on_a_stack_of(SMALL_STACK_BYTES, || {
        // As many as a request can hold, at the top, and in places that no scan looks into.
        let groups = vec![0x0b; 2 << 20];
        let put = field(4, &groups);
        let op_put = field(2, &field(2, &groups));
        for bytes in [groups, put, op_put] {
            let bytes = Bytes::from(bytes);
            // What a group stands in may be text to some of them.
            let refused = [
                request::decode(bytes.clone()).is_err(),
                request::decode_txn(bytes.clone()).is_err(),
                RangeRequest::decode(bytes.clone()).is_err(),
                Entry::decode(bytes.clone()).is_err(),
                ConfChange::decode(bytes.clone()).is_err(),
                Message::decode(bytes.clone()).is_err(),
                Snapshot::decode(bytes.clone()).is_err(),
            ];
            let all = bytes[0] == 0x0b;
            assert!(refused.contains(&true) && (!all || refused == [true; 7]));
        }
    });
}

#[test]
fn a_group_before_it_hides_no_nesting() {
    // The decoder reads on behind the group.
    let group = [0x7b, 0x7c];
    for levels in [20, 500, 5_000] {
        let bytes = nested(levels, &group);
        on_a_stack_of(STACK_BYTES, move || {
            let whole = field(6, &bytes);
            if levels == 20 {
                request::decode_txn(bytes.into()).unwrap();
                request::decode(whole.into()).unwrap();
            } else {
                request::decode_txn(bytes.into()).unwrap_err();
                request::decode(whole.into()).unwrap_err();
            }
        });
    }
}

#[test]
fn what_is_too_deep_for_prost_reads_as_prost_would() {
    on_a_stack_of(STACK_BYTES, || {
        for levels in [40, 44, 45, 46, 48, 60, 200, 990] {
            let request = InternalRaftRequest {
                header: Some(RequestHeader {
                    id: 5,
                    ..RequestHeader::default()
                }),
                txn: Some(txn(levels)),
                ..InternalRaftRequest::default()
            };
            let inner = request.txn.clone().unwrap();
            let bytes = Bytes::from(inner.encode_to_vec());
            assert!(request::decode_txn(bytes).unwrap() == inner, "{levels}");
            assert!(request::decode(request::encode(&request)).unwrap() == request);
        }
    });
}

#[test]
fn a_deep_field_that_comes_again_is_merged_and_one_of_another_kind_replaces() {
    on_a_stack_of(STACK_BYTES, || {
        let deep = txn(60).encode_to_vec();
        let put = field(2, &PutRequest::default().encode_to_vec());
        let twice = [field(4, &deep), field(4, &deep)].concat();
        let replaced = [field(4, &deep), put.clone()].concat();
        let back = [field(4, &deep), put, field(4, &deep)].concat();
        let read = |op: &[u8]| request::decode_txn(field(2, op).into()).unwrap().success;
        match &read(&twice)[..] {
            [op] => match op.request.as_ref().unwrap() {
                Request::RequestTxn(txn) => assert_eq!(txn.success.len() + txn.failure.len(), 2),
                other => panic!("{other:?}"),
            },
            other => panic!("{} operations", other.len()),
        }
        let put = op(Request::RequestPut(PutRequest::default()));
        assert!(read(&replaced) == [put]);
        assert!(read(&back) == [op(Request::RequestTxn(txn(60)))]);
    });
}

#[test]
fn the_deepest_that_is_taken_fits_the_stack_and_one_more_is_refused() {
    on_a_stack_of(STACK_BYTES, || {
        let deepest = request::DEPTH_MAX / 2 - 1;
        let bytes = nested(deepest, &[]);
        let txn = request::decode_txn(bytes.clone().into()).unwrap();
        assert_eq!(txn.encode_to_vec(), bytes);
        drop(txn.clone());
        let past = nested(deepest + 1, &[]);
        let error = request::decode_txn(past.into()).unwrap_err();
        assert!(matches!(error, Error::TooDeep { .. }), "{error}");
    });
}
