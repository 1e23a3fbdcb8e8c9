//! Entries of every kind, drawn from a seed.

use bytes::Bytes;
use keelson_proto::entry::{ConfChange, ConfChangeKind, Entry, EntryKind};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::request;
use keelson_proto::rpc::authpb::{Permission, UserAddOptions};
use keelson_proto::rpc::etcdserverpb::compare::TargetUnion;
use keelson_proto::rpc::etcdserverpb::request_op::Request;
use keelson_proto::rpc::etcdserverpb::{
    AlarmRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, CompactionRequest, Compare, DeleteRangeRequest, InternalRaftRequest,
    LeaseCheckpoint, LeaseCheckpointRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
    RangeRequest, RequestOp, TxnRequest,
};
use keelson_proto::rpc::membershippb::ClusterVersionSetRequest;
use keelson_proto::rpc::membershippb::{Attributes, ClusterMemberAttrSetRequest};

/// Numbers from a seed (splitmix64).
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn key(&mut self) -> Bytes {
        format!("key/{:02}", self.below(30)).into()
    }

    fn value(&mut self) -> Bytes {
        let len = match self.below(12) {
            0 => 3_000,
            _ => self.below(60),
        };
        vec![b'a' + self.below(26) as u8; len as usize].into()
    }
}

/// `count` entries, the first at index 1. Not all of them are carried out: there are revisions to
/// come, leases that are gone, users that are there.
pub(crate) fn entries(seed: u64, count: u64) -> Vec<Entry> {
    let mut random = Random(seed);
    (1..=count)
        .map(|index| {
            let (kind, data) = match (index, random.below(30)) {
                (1, _) => (EntryKind::ConfChange, add_member(1)),
                (_, 0) => {
                    let member = 1 + random.below(3);
                    (EntryKind::ConfChange, add_member(member))
                }
                (_, 1) => (EntryKind::Normal, Bytes::new()),
                _ => (
                    EntryKind::Normal,
                    request::encode(&draw(&mut random, index)),
                ),
            };
            Entry {
                kind,
                term: Term(1 + index / 100),
                index: LogIndex(index),
                data,
            }
        })
        .collect()
}

fn add_member(member: u64) -> Bytes {
    let context = format!(
        r#"{{"id":{member},"peerURLs":["http://10.0.0.{member}:2380"],"name":"m{member}","clientURLs":[]}}"#
    );
    let change = ConfChange {
        id: member,
        kind: ConfChangeKind::AddNode,
        member: MemberId(member),
        context: context.into(),
    };
    change.encode()
}

fn draw(random: &mut Random, index: u64) -> InternalRaftRequest {
    let mut request = InternalRaftRequest::default();
    match random.below(40) {
        0..14 => request.put = Some(put(random)),
        14..19 => request.delete_range = Some(delete(random)),
        19..25 => request.txn = Some(txn(random)),
        25..28 => {
            request.lease_grant = Some(LeaseGrantRequest {
                id: 1 + random.below(6) as i64,
                ttl: random.below(100) as i64,
            });
        }
        28 => {
            request.lease_revoke = Some(LeaseRevokeRequest {
                id: 1 + random.below(6) as i64,
            });
        }
        29 => {
            let checkpoint = |random: &mut Random| LeaseCheckpoint {
                id: 1 + random.below(6) as i64,
                remaining_ttl: 1 + random.below(50) as i64,
            };
            request.lease_checkpoint = Some(LeaseCheckpointRequest {
                checkpoints: (0..3).map(|_| checkpoint(random)).collect(),
            });
        }
        30..33 => {
            request.compaction = Some(CompactionRequest {
                revision: (index * 2 / 3).saturating_sub(random.below(20)) as i64,
                physical: false,
            });
        }
        33 | 36 => {
            request.alarm = Some(AlarmRequest {
                // Mostly off again, since it refuses puts.
                action: if random.below(6) == 0 { 1 } else { 2 },
                member_id: 1 + random.below(2),
                // Corruption would refuse everything that follows.
                alarm: 1,
            });
        }
        34 => {
            request.cluster_version_set = Some(ClusterVersionSetRequest {
                ver: "3.7.0".to_owned(),
            });
        }
        35 => {
            request.cluster_member_attr_set = Some(ClusterMemberAttrSetRequest {
                member_id: 1,
                member_attributes: Some(Attributes {
                    name: format!("name{}", random.below(4)),
                    client_urls: vec!["http://10.0.0.1:2379".to_owned()],
                }),
            });
        }
        _ => auth(random, &mut request),
    }
    request
}

fn put(random: &mut Random) -> PutRequest {
    let ignore_value = random.below(12) == 0;
    let ignore_lease = random.below(12) == 0;
    let leased = random.below(3) == 0 && !ignore_lease;
    PutRequest {
        key: random.key(),
        value: if ignore_value {
            Bytes::new()
        } else {
            random.value()
        },
        lease: if leased {
            1 + random.below(6) as i64
        } else {
            0
        },
        prev_kv: random.below(2) == 0,
        ignore_value,
        ignore_lease,
    }
}

fn delete(random: &mut Random) -> DeleteRangeRequest {
    let (key, other) = (random.key(), random.key());
    let range_end = match random.below(3) {
        0 if key < other => other,
        _ => Bytes::new(),
    };
    DeleteRangeRequest {
        key,
        range_end,
        prev_kv: random.below(2) == 0,
    }
}

/// Every key is changed once at most, as requests are that pass the checks of the API.
fn txn(random: &mut Random) -> TxnRequest {
    let compare = Compare {
        result: random.below(4) as i32,
        target: 0,
        key: random.key(),
        target_union: Some(TargetUnion::Version(random.below(3) as i64)),
        range_end: Bytes::new(),
    };
    let mut ops = || {
        let first = random.below(30);
        let mut ops: Vec<RequestOp> = (0..random.below(5))
            .map(|place| {
                let key: Bytes = format!("key/{:02}", (first + place) % 30).into();
                let request = match random.below(3) {
                    0 => Request::RequestRange(RangeRequest {
                        key,
                        ..Default::default()
                    }),
                    1 => Request::RequestDeleteRange(DeleteRangeRequest {
                        key,
                        prev_kv: true,
                        ..Default::default()
                    }),
                    _ => Request::RequestPut(PutRequest { key, ..put(random) }),
                };
                RequestOp {
                    request: Some(request),
                }
            })
            .collect();
        if let Some(last) = ops.pop() {
            let nested = TxnRequest {
                success: vec![last],
                ..Default::default()
            };
            ops.push(RequestOp {
                request: Some(Request::RequestTxn(nested)),
            });
        }
        ops
    };
    let (success, failure) = (ops(), ops());
    TxnRequest {
        compare: vec![compare],
        success,
        failure,
    }
}

fn auth(random: &mut Random, request: &mut InternalRaftRequest) {
    let role = format!("role{}", random.below(3));
    let user = format!("user{}", random.below(3));
    match random.below(4) {
        0 => request.auth_role_add = Some(AuthRoleAddRequest { name: role }),
        1 => {
            request.auth_user_add = Some(AuthUserAddRequest {
                name: user,
                options: Some(UserAddOptions { no_password: true }),
                ..Default::default()
            });
        }
        2 => request.auth_user_grant_role = Some(AuthUserGrantRoleRequest { user, role }),
        _ => {
            request.auth_role_grant_permission = Some(AuthRoleGrantPermissionRequest {
                name: role,
                perm: Some(Permission {
                    key: random.key(),
                    ..Default::default()
                }),
            });
        }
    }
}
