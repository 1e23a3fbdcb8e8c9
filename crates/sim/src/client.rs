//! What clients do: one request each at a time, and what came of it.

use keelson_node::{Barrier, Reply, Stepped, Ticket};
use keelson_proto::ids::LeaseId;
use keelson_proto::rpc::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::rpc::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, InternalRaftRequest, LeaseGrantRequest,
    LeaseRevokeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, request_op,
};
use keelson_store::lease::Renewal;
use keelson_store::range::{self, Progress, ReadAt};
use keelson_store::{OpOutcome, Outcome};
use prost::Message as _;

use crate::clock::{Moment, SECOND};
use crate::history::{Bytes, Expected, Request, Response, Write};
use crate::random::Random;
use crate::safety;

/// The lease times that clients ask for, in seconds.
const TTL: (u64, u64) = (2, 6);

/// What a client wants next.
#[derive(Clone, Debug)]
pub(crate) enum Want {
    /// Something that the history of all clients remembers.
    Recorded(Request),
    /// A new lease, and a key on it then.
    Grant { id: i64, ttl: i64 },
    /// Its lease is to end.
    Revoke { id: i64 },
    /// Old revisions are to go.
    Compact { keep: i64 },
}

/// What a client waits for.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) want: Want,
    pub(crate) place: usize,
    pub(crate) called: Moment,
}

/// A lease, as its client knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    pub(crate) id: i64,
    pub(crate) ttl: i64,
    /// When the last renewal that was acknowledged was asked for.
    pub(crate) renewed: Moment,
    /// Somebody has asked for its end.
    pub(crate) revoked: bool,
}

/// A client.
#[derive(Debug, Default)]
pub(crate) struct Client {
    /// Counts its requests: answers to earlier ones are late.
    pub(crate) generation: u32,
    pub(crate) pending: Option<Pending>,
    /// The last modification that it saw of some key.
    pub(crate) seen: Option<(Bytes, i64)>,
    pub(crate) lease: Option<Lease>,
}

/// How a request began.
pub(crate) enum Begun {
    /// An answer will come to the ticket, or none.
    Waiting,
    /// It was not taken in, for certain.
    Refused,
    /// It was answered at once.
    Answered(Response),
}

/// The key of a lease: nothing but its end deletes it.
pub(crate) fn lease_key(id: i64) -> Bytes {
    format!("lease/{id}").into_bytes()
}

impl Client {
    /// Draws what to do. Values are never the same twice.
    pub(crate) fn next(&self, random: &mut Random, keys: u64, unique: u64) -> Want {
        let key = format!("k{}", random.below(keys)).into_bytes();
        let value = format!("v{unique}").into_bytes();
        let recorded = Want::Recorded;
        match random.below(100) {
            0..30 => recorded(Request::Write(Write::Put {
                key,
                value,
                lease: 0,
            })),
            30..38 => recorded(Request::Write(Write::Delete { key })),
            38..56 => recorded(self.txn(random, key, value, unique)),
            56..76 => recorded(Request::Read {
                key: random.chance(500).then_some(key),
                serializable: false,
            }),
            76..86 => recorded(Request::Read {
                key: random.chance(500).then_some(key),
                serializable: true,
            }),
            86..92 => self.lease(random, value, unique),
            92..94 => match self.lease {
                Some(lease) if random.chance(300) => Want::Revoke { id: lease.id },
                _ => self.lease(random, value, unique),
            },
            94..97 => Want::Compact {
                keep: i64::try_from(random.below(20)).expect("below 20"),
            },
            _ => recorded(Request::Read {
                key: None,
                serializable: false,
            }),
        }
    }

    fn txn(&self, random: &mut Random, key: Bytes, value: Bytes, unique: u64) -> Request {
        let (key, expected) = match &self.seen {
            Some((seen, revision)) if random.chance(700) => {
                (seen.clone(), Expected::ModRevision(*revision))
            }
            _ if random.chance(500) => (key, Expected::ModRevision(0)),
            _ => (key, Expected::Value(b"v0".to_vec())),
        };
        let put = |key: Bytes, value| Write::Put {
            key,
            value,
            lease: 0,
        };
        let mut then = vec![put(key.clone(), value)];
        // A transaction writes each key once.
        if random.chance(500) && key != b"both" {
            then.push(put(b"both".to_vec(), format!("b{unique}").into_bytes()));
        }
        let otherwise = if random.chance(300) {
            vec![put(b"else".to_vec(), format!("e{unique}").into_bytes())]
        } else {
            Vec::new()
        };
        Request::Txn {
            key,
            expected,
            then,
            otherwise,
        }
    }

    fn lease(&self, random: &mut Random, value: Bytes, unique: u64) -> Want {
        let small = |number: u64| i64::try_from(number).expect("a small number");
        match self.lease {
            Some(lease) if !lease.revoked => Want::Recorded(Request::Write(Write::Put {
                key: lease_key(lease.id),
                value,
                lease: lease.id,
            })),
            _ => Want::Grant {
                id: small(unique) + 1,
                ttl: small(random.between(TTL.0, TTL.1)),
            },
        }
    }
}

/// Puts a request on its way.
pub(crate) fn begin(stepped: &Stepped, want: &Want, ticket: Ticket) -> Begun {
    let node = stepped.node();
    if let Want::Recorded(Request::Read { key, serializable }) = want {
        if *serializable {
            return Begun::Answered(read(stepped, key.as_ref()));
        }
        return match node.read_barrier(ticket) {
            Ok(Barrier::Passed) => Begun::Answered(read(stepped, key.as_ref())),
            Ok(Barrier::Waiting) => Begun::Waiting,
            Err(_) => Begun::Refused,
        };
    }
    match node.propose(encode(want, node.shared().revision()), ticket) {
        Ok(()) => Begun::Waiting,
        Err(_) => Begun::Refused,
    }
}

/// Renews a lease on this member; whether that was acknowledged.
pub(crate) fn renew(stepped: &Stepped, id: i64) -> bool {
    let node = stepped.node();
    let now = node.ticks();
    let renewal = node.shared().deadlines().renew(LeaseId(id), now);
    matches!(renewal, Renewal::Renewed { .. })
}

/// Reads the state as it is.
pub(crate) fn read(stepped: &Stepped, key: Option<&Bytes>) -> Response {
    let shared = stepped.node().shared();
    let request = match key {
        Some(key) => RangeRequest {
            key: key.clone().into(),
            ..RangeRequest::default()
        },
        None => RangeRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            ..RangeRequest::default()
        },
    };
    let plan = range::plan(shared, &request, ReadAt::Current).expect("the current state is there");
    let revision = plan.revision;
    let mut body = bytes::BytesMut::new();
    let mut emitter = plan.into_emitter(shared.clone());
    while emitter
        .next_chunk(1 << 16, &mut body)
        .expect("the current state can be read")
        == Progress::More
    {}
    let found = RangeResponse::decode(body.freeze()).expect("what is emitted is an answer");
    Response {
        revision,
        deleted: 0,
        succeeded: false,
        rows: found.kvs.iter().map(safety::row).collect(),
    }
}

/// What an outcome answers to a recorded request; `None` if it was refused and has changed nothing.
pub(crate) fn answer(outcome: &Outcome) -> Option<Response> {
    let response = |revision| Response {
        revision,
        deleted: 0,
        succeeded: false,
        rows: Vec::new(),
    };
    match outcome {
        Outcome::Put { revision, .. } => Some(response(*revision)),
        Outcome::Delete {
            revision, deleted, ..
        } => Some(Response {
            deleted: *deleted,
            ..response(*revision)
        }),
        Outcome::Txn {
            revision,
            succeeded,
            ops,
            ..
        } => {
            let only_puts = ops.iter().all(|op| matches!(op, OpOutcome::Put { .. }));
            only_puts.then(|| Response {
                succeeded: *succeeded,
                ..response(*revision)
            })
        }
        _ => None,
    }
}

/// Whether a reply leaves it open whether the request happened.
pub(crate) fn is_open(reply: &Reply) -> bool {
    !matches!(reply, Reply::Applied(_) | Reply::Readable)
}

fn put(key: &Bytes, value: &Bytes, lease: i64) -> PutRequest {
    PutRequest {
        key: key.clone().into(),
        value: value.clone().into(),
        lease,
        ..PutRequest::default()
    }
}

fn operation(write: &Write) -> RequestOp {
    let request = match write {
        Write::Put { key, value, lease } => {
            request_op::Request::RequestPut(put(key, value, *lease))
        }
        Write::Delete { key } => request_op::Request::RequestDeleteRange(DeleteRangeRequest {
            key: key.clone().into(),
            ..DeleteRangeRequest::default()
        }),
    };
    RequestOp {
        request: Some(request),
    }
}

fn compare(key: &Bytes, expected: &Expected) -> Compare {
    let (target, union) = match expected {
        Expected::ModRevision(revision) => {
            (CompareTarget::Mod, TargetUnion::ModRevision(*revision))
        }
        Expected::Value(value) => (
            CompareTarget::Value,
            TargetUnion::Value(value.clone().into()),
        ),
    };
    Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: key.clone().into(),
        target_union: Some(union),
        ..Compare::default()
    }
}

/// The request of the log for what a client wants, when the store is at a revision.
fn encode(want: &Want, revision: i64) -> InternalRaftRequest {
    let mut request = InternalRaftRequest::default();
    match want {
        Want::Recorded(Request::Write(Write::Put { key, value, lease })) => {
            request.put = Some(put(key, value, *lease));
        }
        Want::Recorded(Request::Write(Write::Delete { key })) => {
            request.delete_range = Some(DeleteRangeRequest {
                key: key.clone().into(),
                ..DeleteRangeRequest::default()
            });
        }
        Want::Recorded(Request::Txn {
            key,
            expected,
            then,
            otherwise,
        }) => {
            request.txn = Some(TxnRequest {
                compare: vec![compare(key, expected)],
                success: then.iter().map(operation).collect(),
                failure: otherwise.iter().map(operation).collect(),
            });
        }
        // Reads do not come here; an empty request changes nothing.
        Want::Recorded(Request::Read { .. }) => {}
        Want::Grant { id, ttl } => {
            request.lease_grant = Some(LeaseGrantRequest { id: *id, ttl: *ttl });
        }
        Want::Revoke { id } => request.lease_revoke = Some(LeaseRevokeRequest { id: *id }),
        Want::Compact { keep } => {
            request.compaction = Some(CompactionRequest {
                revision: (revision - keep).max(1),
                physical: false,
            });
        }
    }
    request
}

/// How long anybody waits for an answer.
pub(crate) const PATIENCE: Moment = 7 * SECOND;
