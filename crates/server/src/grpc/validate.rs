//! What is wrong with a request before anything is looked up for it.
//!
//! The order of the checks decides which error a client sees; it is that of etcd 3.7.1
//! (`server/etcdserver/api/v3rpc/key.go`; api.md 2.2 to 2.6).

use std::collections::{BTreeMap, BTreeSet};

use keelson_proto::ApiError;
use keelson_proto::rpc::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_proto::rpc::etcdserverpb::request_op::Request;
use keelson_proto::rpc::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

pub(crate) fn range(request: &RangeRequest) -> Result<(), ApiError> {
    if request.key.is_empty() {
        return Err(ApiError::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err()
        || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(ApiError::InvalidSortOption);
    }
    Ok(())
}

/// What a streamed range must not ask for, past [`range`].
pub(crate) fn range_stream(request: &RangeRequest) -> Result<(), ApiError> {
    let by_key = request.sort_target() == SortTarget::Key;
    let sorted = match request.sort_order() {
        SortOrder::None => false,
        SortOrder::Ascend => !by_key,
        SortOrder::Descend => true,
    };
    if sorted {
        return Err(ApiError::RangeStreamSortOrder);
    }
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if filters.iter().any(|filter| *filter != 0) {
        return Err(ApiError::RangeStreamFilters);
    }
    Ok(())
}

pub(crate) fn put(request: &PutRequest) -> Result<(), ApiError> {
    if request.key.is_empty() {
        return Err(ApiError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(ApiError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(ApiError::LeaseProvided);
    }
    Ok(())
}

pub(crate) fn delete_range(request: &DeleteRangeRequest) -> Result<(), ApiError> {
    if request.key.is_empty() {
        return Err(ApiError::EmptyKey);
    }
    Ok(())
}

/// Checks a transaction; `operations_max` bounds each list of the outermost one, and what it uses
/// up is missing inside.
pub(crate) fn txn(request: &TxnRequest, operations_max: usize) -> Result<(), ApiError> {
    txn_operations(request, operations_max)?;
    written(&request.success)?;
    written(&request.failure)?;
    Ok(())
}

fn txn_operations(request: &TxnRequest, operations_max: usize) -> Result<(), ApiError> {
    let TxnRequest {
        compare,
        success,
        failure,
    } = request;
    let most = compare.len().max(success.len()).max(failure.len());
    let left = operations_max
        .checked_sub(most)
        .ok_or(ApiError::TooManyOps)?;
    if compare.iter().any(|Compare { key, .. }| key.is_empty()) {
        return Err(ApiError::EmptyKey);
    }
    for operation in success.iter().chain(failure) {
        match &operation.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Request::RequestTxn(request)) => txn_operations(request, left)?,
            // An operation that asks for nothing.
            None => return Err(ApiError::KeyNotFound),
        }
    }
    Ok(())
}

/// What a list of operations writes, over both branches of the transactions in it.
#[derive(Default)]
struct Written<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Deletes<'a>,
}

/// Collects what is written and refuses a key that might be written twice.
///
/// Deletes of this level and of the transactions before count against a put inside a transaction;
/// those of the transactions after it do not. That asymmetry is etcd's.
fn written(operations: &[RequestOp]) -> Result<Written<'_>, ApiError> {
    let mut all = Written::default();
    for operation in operations {
        if let Some(Request::RequestDeleteRange(request)) = &operation.request {
            all.deletes.insert(request);
        }
    }
    for operation in operations {
        let Some(Request::RequestTxn(request)) = &operation.request else {
            continue;
        };
        let success = written(&request.success)?;
        let failure = written(&request.failure)?;
        for key in &success.puts {
            all.put(key)?;
        }
        for key in &failure.puts {
            // Only one branch runs, so both may put the same key.
            if !success.puts.contains(key) {
                all.put(key)?;
            }
        }
        all.deletes.extend(success.deletes);
        all.deletes.extend(failure.deletes);
    }
    for operation in operations {
        if let Some(Request::RequestPut(request)) = &operation.request {
            all.put(&request.key)?;
        }
    }
    Ok(all)
}

impl<'a> Written<'a> {
    fn put(&mut self, key: &'a [u8]) -> Result<(), ApiError> {
        if self.deletes.contain(key) || !self.puts.insert(key) {
            return Err(ApiError::DuplicateKey);
        }
        Ok(())
    }
}

/// Where an interval ends: before `key`, or right after it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct End<'a> {
    key: &'a [u8],
    inclusive: bool,
}

/// A set of keys as intervals that do not touch, by their first key.
#[derive(Default)]
struct Deletes<'a>(BTreeMap<&'a [u8], End<'a>>);

impl<'a> Deletes<'a> {
    fn insert(&mut self, request: &'a DeleteRangeRequest) {
        let end = if request.range_end.is_empty() {
            End {
                key: &request.key,
                inclusive: true,
            }
        } else {
            // An end of 0x00, which stands for "all from the key on", is below every key here and
            // so makes an interval of nothing: etcd conflicts with no put then, and so do we.
            End {
                key: &request.range_end,
                inclusive: false,
            }
        };
        self.unite(&request.key, end);
    }

    fn extend(&mut self, other: Deletes<'a>) {
        for (begin, end) in other.0 {
            self.unite(begin, end);
        }
    }

    fn unite(&mut self, mut begin: &'a [u8], mut end: End<'a>) {
        if end
            <= (End {
                key: begin,
                inclusive: false,
            })
        {
            return;
        }
        // Every interval that begins at or before the end of the new one and reaches it is eaten.
        while let Some((&other_begin, &other_end)) = self.0.range(..=end.key).next_back() {
            if other_end
                < (End {
                    key: begin,
                    inclusive: false,
                })
            {
                break;
            }
            self.0.remove(other_begin);
            begin = begin.min(other_begin);
            end = end.max(other_end);
        }
        self.0.insert(begin, end);
    }

    fn contain(&self, key: &[u8]) -> bool {
        self.0.range(..=key).next_back().is_some_and(|(_, end)| {
            (End {
                key,
                inclusive: false,
            }) < *end
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(request: Request) -> RequestOp {
        RequestOp {
            request: Some(request),
        }
    }

    fn put_op(key: &'static str) -> RequestOp {
        op(Request::RequestPut(PutRequest {
            key: key.into(),
            ..PutRequest::default()
        }))
    }

    fn delete_op(key: &'static str, range_end: &'static str) -> RequestOp {
        op(Request::RequestDeleteRange(DeleteRangeRequest {
            key: key.into(),
            range_end: range_end.into(),
            prev_kv: false,
        }))
    }

    fn range_op(key: &'static str) -> RequestOp {
        op(Request::RequestRange(RangeRequest {
            key: key.into(),
            ..RangeRequest::default()
        }))
    }

    fn branches(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
        TxnRequest {
            compare: Vec::new(),
            success,
            failure,
        }
    }

    fn txn_op(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        op(Request::RequestTxn(branches(success, failure)))
    }

    fn checked(success: Vec<RequestOp>) -> Result<(), ApiError> {
        txn(&branches(success, Vec::new()), 128)
    }

    const DUPLICATE: Result<(), ApiError> = Err(ApiError::DuplicateKey);

    #[test]
    fn one_level_may_write_a_key_once() {
        assert_eq!(checked(vec![put_op("a"), put_op("a")]), DUPLICATE);
        assert_eq!(checked(vec![put_op("a"), delete_op("a", "")]), DUPLICATE);
        assert_eq!(checked(vec![delete_op("a", ""), put_op("a")]), DUPLICATE);
        assert_eq!(checked(vec![put_op("b"), delete_op("a", "c")]), DUPLICATE);
        assert_eq!(checked(vec![put_op("c"), delete_op("a", "c")]), Ok(()));
        assert_eq!(
            checked(vec![delete_op("a", ""), delete_op("a", "z")]),
            Ok(())
        );
        assert_eq!(checked(vec![range_op("a"), put_op("a")]), Ok(()));
    }

    #[test]
    fn a_delete_from_a_key_on_conflicts_with_nothing() {
        assert_eq!(checked(vec![delete_op("a", "\0"), put_op("b")]), Ok(()));
    }

    #[test]
    fn branches_exclude_each_other_but_not_their_siblings() {
        let both = || txn_op(vec![put_op("a")], vec![put_op("a")]);
        assert_eq!(checked(vec![both()]), Ok(()));
        assert_eq!(checked(vec![both(), both()]), DUPLICATE);
        assert_eq!(checked(vec![both(), put_op("a")]), DUPLICATE);
        assert_eq!(checked(vec![both(), delete_op("a", "b")]), DUPLICATE);
    }

    #[test]
    fn deletes_of_earlier_siblings_count_against_later_puts_only() {
        let put = || txn_op(vec![put_op("a")], Vec::new());
        let delete = || txn_op(vec![delete_op("a", "")], Vec::new());
        assert_eq!(checked(vec![put(), delete()]), Ok(()));
        assert_eq!(checked(vec![delete(), put()]), DUPLICATE);
    }

    #[test]
    fn the_failure_branch_is_checked_as_well() {
        let request = branches(Vec::new(), vec![put_op("a"), put_op("a")]);
        assert_eq!(txn(&request, 128), DUPLICATE);
    }

    #[test]
    fn nested_transactions_share_one_budget() {
        let mut request = branches(vec![put_op("a")], Vec::new());
        for _ in 0..127 {
            request = branches(vec![op(Request::RequestTxn(request))], Vec::new());
        }
        assert_eq!(txn(&request, 128), Ok(()));
        request = branches(vec![op(Request::RequestTxn(request))], Vec::new());
        assert_eq!(txn(&request, 128), Err(ApiError::TooManyOps));
    }

    #[test]
    fn an_operation_that_asks_for_nothing_is_a_missing_key() {
        let nothing = RequestOp { request: None };
        assert_eq!(checked(vec![nothing]), Err(ApiError::KeyNotFound));
    }

    #[test]
    fn intervals_are_united_whichever_way_they_meet() {
        let ends = ["", "b", "c", "d", "e", "f", "g"];
        let keys = ["a", "b", "c", "d", "e", "f"];
        let mut requests = Vec::new();
        for key in keys {
            for end in ends {
                requests.push(DeleteRangeRequest {
                    key: key.into(),
                    range_end: end.into(),
                    prev_kv: false,
                });
            }
        }
        // Every ordered triple of intervals against the plain reading of each.
        for a in &requests {
            for b in &requests {
                for c in &requests {
                    let mut set = Deletes::default();
                    let three = [a, b, c];
                    three.iter().for_each(|request| set.insert(request));
                    for key in ["a", "a\0", "b", "bb", "c", "d", "e", "f", "g"] {
                        let plain = three.iter().any(|r| {
                            if r.range_end.is_empty() {
                                r.key == key.as_bytes()
                            } else {
                                r.key <= key.as_bytes() && key.as_bytes() < &r.range_end[..]
                            }
                        });
                        assert_eq!(set.contain(key.as_bytes()), plain, "{three:?} {key:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn streams_take_key_order_and_no_filters() {
        let request = |order: SortOrder, target: SortTarget, min: i64| RangeRequest {
            key: "a".into(),
            sort_order: order.into(),
            sort_target: target.into(),
            min_mod_revision: min,
            ..RangeRequest::default()
        };
        let sorted = Err(ApiError::RangeStreamSortOrder);
        for (order, target, expected) in [
            (SortOrder::None, SortTarget::Value, Ok(())),
            (SortOrder::Ascend, SortTarget::Key, Ok(())),
            (SortOrder::Ascend, SortTarget::Mod, sorted),
            (SortOrder::Descend, SortTarget::Key, sorted),
        ] {
            assert_eq!(range_stream(&request(order, target, 0)), expected);
        }
        assert_eq!(
            range_stream(&request(SortOrder::None, SortTarget::Key, -1)),
            Err(ApiError::RangeStreamFilters)
        );
    }
}
