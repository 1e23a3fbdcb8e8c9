//! Transactions: the outcome says what happened, the request what was asked; the answer is both,
//! with the rows read where they lie.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use keelson_proto::rpc::etcdserverpb::request_op::Request;
use keelson_proto::rpc::etcdserverpb::{
    InternalRaftRequest, RequestOp, ResponseHeader, TxnRequest,
};
use keelson_store::auth::need_of_txn;
use keelson_store::range::{self, ReadAt};
use keelson_store::{OpOutcome, Outcome, Pin, Shared, quota, read_txn};

use super::assemble::{Assembly, ROWS_AT_ONCE, records_now, refusal_of};
use super::call::{Call, mismatched};
use super::kv::{header, push_records};
use super::slow;
use super::splice::{self, Answer};
use super::status::Status;
use super::trace::{self, Detail, Trace};
use super::validate;

/// What comparing is counted as in the reader pool, in bytes.
const COMPARE_COST: u64 = 4 << 10;

pub(super) async fn txn(call: &Call, request: TxnRequest) -> Result<Answer, Status> {
    call.check_space(quota::cost_of_txn(&request)).await?;
    validate::txn(&request, call.state.settings.max_txn_ops)?;
    let mut trace = Trace::begin(&call.state, "transaction");
    if is_read_only(&request) {
        let counts = slow::TxnCounts::of(&request);
        let result = read(call, request, trace).await;
        let took = trace.elapsed(&call.state);
        let metrics = &call.state.metrics;
        metrics.request("ReadonlyTxn", result.is_ok(), took);
        if let Err(status) = &result {
            slow::tell_failed_read(&call.state, took, "read-only txn ", status, || {
                counts.text()
            });
        }
        return result;
    }
    // Cheap: its keys and values are shared, not copied.
    let proposed = InternalRaftRequest {
        txn: Some(request.clone()),
        ..InternalRaftRequest::default()
    };
    let outcome = call.propose("Txn", proposed).await?;
    let took = trace.step(&call.state, trace::PROPOSE);
    if let Outcome::Txn { ops, revision, .. } = &outcome {
        trace.tell(took, |detail| told(detail, false, ops.len(), *revision));
    }
    answer(call, request, outcome).await
}

/// What a line says of a transaction.
fn told(detail: &mut Detail, read_only: bool, responses: usize, revision: i64) {
    detail
        .add("read_only", read_only)
        .add("number_of_response", responses)
        .add("response_revision", revision);
}

/// Whether neither branch can change anything; such a transaction needs no entry. One with another
/// inside always has an entry, as with etcd.
fn is_read_only(request: &TxnRequest) -> bool {
    ranges(request).all(|range| range.is_some())
}

/// Whether every range in it is; so is a transaction without any.
fn is_serializable(request: &TxnRequest) -> bool {
    ranges(request).all(|range| range.is_some_and(|range| range.serializable))
}

fn ranges(
    request: &TxnRequest,
) -> impl Iterator<Item = Option<&keelson_proto::rpc::etcdserverpb::RangeRequest>> {
    request
        .success
        .iter()
        .chain(&request.failure)
        .map(|operation| match &operation.request {
            Some(Request::RequestRange(range)) => Some(range),
            _ => None,
        })
}

async fn read(call: &Call, request: TxnRequest, mut trace: Trace) -> Result<Answer, Status> {
    let state = &call.state;
    let mut waited = Duration::ZERO;
    if !is_serializable(&request) {
        call.read_barrier().await?;
        waited = trace.step(state, trace::AGREEMENT);
    }
    let caller = {
        let leases = call.shared().leases();
        call.permit(&need_of_txn(&request, &*leases))?
    };
    let outcome = read_here_or_there(call, &request).await?;
    trace.step(state, "compare");
    call.still_permitted(&caller)?;
    let counts = slow::TxnCounts::of(&request);
    let (responses, operations, revision) = match &outcome {
        Outcome::Txn { ops, revision, .. } => {
            (ops.len(), ops.len() + request.compare.len(), *revision)
        }
        _ => (0, 0, 0),
    };
    let answer = answer(call, request, outcome).await?;
    let took = trace.step(state, trace::ASSEMBLE);
    state
        .metrics
        .read_txn(took.saturating_sub(waited), operations);
    slow::tell_read(state, took, "read-only txn ", || counts.text(), String::new);
    trace.tell(took, |detail| told(detail, true, responses, revision));
    Ok(answer)
}

/// Executes a read-only transaction: here, but where it compares values on the pool.
async fn read_here_or_there(call: &Call, request: &TxnRequest) -> Result<Outcome, Status> {
    let shared = call.shared();
    let outcome = if request.compare.is_empty() {
        read_txn(shared, request)
    } else {
        let (shared, request) = (Arc::clone(shared), request.clone());
        call.state
            .pool
            .run(COMPARE_COST, move || read_txn(&shared, &request))
            .await?
    };
    outcome.map_err(refusal_of)
}

/// The answer to a transaction, whichever way it was executed.
async fn answer(call: &Call, request: TxnRequest, outcome: Outcome) -> Result<Answer, Status> {
    let Outcome::Txn {
        revision,
        succeeded,
        ops,
        pin,
    } = outcome
    else {
        return Err(mismatched());
    };
    let head = call.header(revision);
    let records = previous(&ops);
    let shared = Arc::clone(call.shared());
    let work = move || assemble(&shared, &request, &head, succeeded, ops, pin);
    let assembly = if records <= ROWS_AT_ONCE {
        work()
    } else {
        call.state.pool.run(records as u64 * 1024, work).await?
    }?;
    assembly.answer(&call.state.pool)
}

/// How many records are to be read before the answer's length is known.
fn previous(ops: &[OpOutcome]) -> usize {
    ops.iter()
        .map(|op| match op {
            OpOutcome::Range { .. } => 0,
            OpOutcome::Put { prev, .. } => usize::from(prev.is_some()),
            OpOutcome::Delete { prevs, .. } => prevs.len(),
            OpOutcome::Txn { ops, .. } => previous(ops),
        })
        .sum()
}

fn assemble(
    shared: &Arc<Shared>,
    request: &TxnRequest,
    head: &ResponseHeader,
    succeeded: bool,
    ops: Vec<OpOutcome>,
    pin: Option<Pin>,
) -> Result<Assembly, Status> {
    let mut assembly = Assembly::new(pin);
    assembly.push(header(head));
    body(shared, &mut assembly, request, succeeded, ops)?;
    Ok(assembly)
}

/// Adds what follows the header of a transaction's response. Recurses as deep as transactions nest,
/// which validation has bounded.
fn body(
    shared: &Arc<Shared>,
    assembly: &mut Assembly,
    request: &TxnRequest,
    succeeded: bool,
    ops: Vec<OpOutcome>,
) -> Result<(), Status> {
    let mut flag = BytesMut::new();
    splice::put_int(2, i64::from(succeeded), &mut flag);
    assembly.push(flag);
    let branch = if succeeded {
        &request.success
    } else {
        &request.failure
    };
    if branch.len() != ops.len() {
        return Err(mismatched());
    }
    for (operation, outcome) in branch.iter().zip(ops) {
        let place = assembly.place();
        let field = response(shared, assembly, operation, outcome)?;
        // A ResponseOp holds one field, which is the response.
        let inner = assembly.len_since(&place);
        let mut keys = BytesMut::with_capacity(16);
        splice::put_len(3, splice::bytes_len(field, inner), &mut keys);
        splice::put_len(field, inner, &mut keys);
        assembly.fill(place, keys);
    }
    Ok(())
}

/// Adds the response of one operation; the number of its field in `ResponseOp`.
fn response(
    shared: &Arc<Shared>,
    assembly: &mut Assembly,
    operation: &RequestOp,
    outcome: OpOutcome,
) -> Result<u32, Status> {
    match (&operation.request, outcome) {
        (
            Some(Request::RequestRange(request)),
            OpOutcome::Range {
                at,
                header: revision,
            },
        ) => {
            let at = ReadAt::InTxn {
                at,
                header: revision,
            };
            let plan = range::plan(shared, request, at).map_err(refusal_of)?;
            assembly.push(inner_header(plan.revision));
            assembly.push_rows(shared, plan);
            Ok(1)
        }
        (Some(Request::RequestPut(_)), OpOutcome::Put { revision, prev }) => {
            assembly.push(inner_header(revision));
            push_records(
                assembly,
                2,
                records_now(shared, prev.as_slice(), assembly.pin())?,
            );
            Ok(2)
        }
        (
            Some(Request::RequestDeleteRange(_)),
            OpOutcome::Delete {
                revision,
                deleted,
                prevs,
            },
        ) => {
            let mut head = inner_header(revision);
            splice::put_int(2, deleted, &mut head);
            assembly.push(head);
            push_records(assembly, 3, records_now(shared, &prevs, assembly.pin())?);
            Ok(3)
        }
        (Some(Request::RequestTxn(request)), OpOutcome::Txn { succeeded, ops }) => {
            // A nested transaction's header is there, and empty.
            assembly.push(header(&ResponseHeader::default()));
            body(shared, assembly, request, succeeded, ops)?;
            Ok(4)
        }
        _ => Err(mismatched()),
    }
}

/// Inside of a transaction, headers say nothing but the revision.
fn inner_header(revision: i64) -> BytesMut {
    header(&ResponseHeader {
        revision,
        ..ResponseHeader::default()
    })
}

#[cfg(test)]
mod tests {
    use keelson_proto::rpc::etcdserverpb::{PutRequest, RangeRequest};

    use super::*;

    fn range(serializable: bool) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestRange(RangeRequest {
                serializable,
                ..RangeRequest::default()
            })),
        }
    }

    fn txn_of(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
        TxnRequest {
            compare: Vec::new(),
            success,
            failure,
        }
    }

    #[test]
    fn only_ranges_make_a_transaction_that_needs_no_entry() {
        let put = RequestOp {
            request: Some(Request::RequestPut(PutRequest::default())),
        };
        let nested = RequestOp {
            request: Some(Request::RequestTxn(TxnRequest::default())),
        };
        assert!(is_read_only(&txn_of(vec![], vec![])));
        assert!(is_read_only(&txn_of(vec![range(true)], vec![range(false)])));
        assert!(!is_read_only(&txn_of(vec![range(true)], vec![put])));
        assert!(!is_read_only(&txn_of(vec![nested], vec![])));
    }

    #[test]
    fn one_range_that_is_not_serializable_makes_the_transaction_so() {
        assert!(is_serializable(&txn_of(vec![], vec![])));
        assert!(is_serializable(&txn_of(vec![range(true)], vec![])));
        assert!(!is_serializable(&txn_of(
            vec![range(true)],
            vec![range(false)]
        )));
    }
}
