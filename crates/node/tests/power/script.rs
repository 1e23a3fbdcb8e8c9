//! What a client does, drawn from a seed.

use bytes::Bytes;
use keelson_proto::rpc::etcdserverpb::compare::TargetUnion;
use keelson_proto::rpc::etcdserverpb::request_op::Request;
use keelson_proto::rpc::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, InternalRaftRequest, LeaseGrantRequest,
    LeaseRevokeRequest, PutRequest, RequestOp, TxnRequest,
};

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

    fn key(&mut self) -> Bytes {
        format!("key/{:02}", self.below(30)).into()
    }

    fn value(&mut self) -> Bytes {
        let len = match self.below(12) {
            0 => 3_000,
            _ => self.below(120),
        };
        vec![b'a' + self.below(26) as u8; len as usize].into()
    }

    fn put(&mut self) -> PutRequest {
        PutRequest {
            key: self.key(),
            value: self.value(),
            ..PutRequest::default()
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let key = self.key();
        let mut end = key.to_vec();
        end.push(b'~');
        DeleteRangeRequest {
            key,
            range_end: end.into(),
            ..DeleteRangeRequest::default()
        }
    }

    fn txn(&mut self) -> TxnRequest {
        let operation = |request| RequestOp {
            request: Some(request),
        };
        let compared = self.key();
        TxnRequest {
            compare: vec![Compare {
                key: compared,
                target_union: Some(TargetUnion::Version(self.below(2) as i64)),
                ..Compare::default()
            }],
            success: vec![
                operation(Request::RequestPut(PutRequest {
                    key: "twice/a".into(),
                    ..self.put()
                })),
                operation(Request::RequestPut(PutRequest {
                    key: "twice/b".into(),
                    ..self.put()
                })),
                operation(Request::RequestDeleteRange(self.delete())),
            ],
            failure: vec![operation(Request::RequestPut(self.put()))],
        }
    }

    /// The next request, when the store is at a revision. Not all are carried out: some compact
    /// what is compacted already, some lease ids are taken or unknown.
    pub(crate) fn request(&mut self, revision: i64) -> InternalRaftRequest {
        let lease = 1 + self.below(4) as i64;
        let nothing = InternalRaftRequest::default();
        match self.below(24) {
            0 | 1 => InternalRaftRequest {
                lease_grant: Some(LeaseGrantRequest {
                    ttl: 1_000_000 + lease,
                    id: lease,
                }),
                ..nothing
            },
            2 => InternalRaftRequest {
                lease_revoke: Some(LeaseRevokeRequest { id: lease }),
                ..nothing
            },
            3..=5 => InternalRaftRequest {
                put: Some(PutRequest {
                    lease,
                    ..self.put()
                }),
                ..nothing
            },
            6..=8 => InternalRaftRequest {
                txn: Some(self.txn()),
                ..nothing
            },
            9 | 10 => InternalRaftRequest {
                delete_range: Some(self.delete()),
                ..nothing
            },
            11 => InternalRaftRequest {
                compaction: Some(CompactionRequest {
                    revision: revision - self.below(12) as i64,
                    physical: false,
                }),
                ..nothing
            },
            _ => InternalRaftRequest {
                put: Some(self.put()),
                ..nothing
            },
        }
    }
}
