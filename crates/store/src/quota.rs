//! What a request may cost, and whether that still fits.
//!
//! Sizes and costs are bytes. The rules are etcd's (`server/storage/quota.go`).

use keelson_proto::rpc::etcdserverpb::{
    InternalRaftRequest, PutRequest, RequestOp, TxnRequest, request_op::Request,
};

/// The quota where none is given: 2 GiB.
pub const QUOTA_DEFAULT: i64 = 2 << 30;

/// Above this quota a warning is logged at start: 8 GiB.
pub const QUOTA_WARNING: i64 = 8 << 30;

/// What a key takes beside its own bytes and those of its value.
const KEY_OVERHEAD: u64 = 256;

/// What a lease takes.
const LEASE_COST: u64 = 64;

/// The bytes that a put may need.
#[must_use]
pub fn cost_of_put(request: &PutRequest) -> u64 {
    KEY_OVERHEAD + (request.key.len() + request.value.len()) as u64
}

/// The bytes that a transaction may need: those of its dearer branch. Only puts count, nested ones
/// too.
#[must_use]
pub fn cost_of_txn(request: &TxnRequest) -> u64 {
    let cost = |operations: &[RequestOp]| {
        operations
            .iter()
            .map(|operation| match &operation.request {
                Some(Request::RequestPut(put)) => cost_of_put(put),
                Some(Request::RequestTxn(txn)) => cost_of_txn(txn),
                Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => 0,
            })
            .sum::<u64>()
    };
    cost(&request.success).max(cost(&request.failure))
}

/// The bytes that a request may need; 0 for those that the quota does not touch.
#[must_use]
pub fn cost(request: &InternalRaftRequest) -> u64 {
    if let Some(put) = &request.put {
        cost_of_put(put)
    } else if let Some(txn) = &request.txn {
        cost_of_txn(txn)
    } else if request.lease_grant.is_some() {
        LEASE_COST
    } else {
        0
    }
}

/// The quota that the flag's value stands for: 0 is [`QUOTA_DEFAULT`], a negative one is none.
#[must_use]
pub fn effective(configured: i64) -> Option<u64> {
    match configured {
        0 => u64::try_from(QUOTA_DEFAULT).ok(),
        configured => u64::try_from(configured).ok(),
    }
}

/// Whether a request of this cost fits into a file of this size. What costs nothing always does,
/// and everything does without a quota.
#[must_use]
pub fn fits(size: u64, cost: u64, quota: Option<u64>) -> bool {
    cost == 0 || quota.is_none_or(|quota| size.saturating_add(cost) < quota)
}

#[cfg(test)]
mod tests {
    use keelson_proto::rpc::etcdserverpb::{LeaseGrantRequest, RangeRequest};

    use super::*;

    fn put(key: usize, value: usize) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: vec![0; key].into(),
                value: vec![0; value].into(),
                ..PutRequest::default()
            })),
        }
    }

    fn txn(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
        TxnRequest {
            compare: Vec::new(),
            success,
            failure,
        }
    }

    #[test]
    fn a_transaction_costs_what_its_dearer_branch_costs() {
        let nested = RequestOp {
            request: Some(Request::RequestTxn(txn(vec![], vec![put(1, 9)]))),
        };
        let range = RequestOp {
            request: Some(Request::RequestRange(RangeRequest::default())),
        };
        let txn = txn(vec![put(3, 7), range], vec![nested, put(0, 0)]);
        assert_eq!(cost_of_txn(&txn), 256 + 10 + 256);
        let request = InternalRaftRequest {
            txn: Some(txn),
            ..InternalRaftRequest::default()
        };
        assert_eq!(cost(&request), 522);
    }

    #[test]
    fn puts_and_leases_cost_and_nothing_else_does() {
        let request = InternalRaftRequest {
            lease_grant: Some(LeaseGrantRequest::default()),
            ..InternalRaftRequest::default()
        };
        assert_eq!(cost(&request), 64);
        let request = InternalRaftRequest {
            range: Some(RangeRequest::default()),
            ..InternalRaftRequest::default()
        };
        assert_eq!(cost(&request), 0);
    }

    #[test]
    fn the_quota_itself_is_not_reached() {
        assert!(fits(100, 99, Some(200)));
        assert!(!fits(100, 100, Some(200)));
        assert!(fits(500, 0, Some(200)));
        assert!(fits(u64::MAX, u64::MAX, None));
        assert!(!fits(u64::MAX, 1, Some(u64::MAX)));
        assert_eq!(effective(0), Some(2_147_483_648));
        assert_eq!(effective(-1), None);
        assert_eq!(effective(7), Some(7));
    }
}
