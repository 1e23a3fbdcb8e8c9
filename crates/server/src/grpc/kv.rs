//! KV, but for transactions and streams.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use keelson_proto::rpc::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, InternalRaftRequest, PutRequest,
    RangeRequest, ResponseHeader,
};
use keelson_store::auth::Need;
use keelson_store::range::{self, Plan, ReadAt};
use keelson_store::{Outcome, quota};
use prost::Message as _;

use super::assemble::{self, Assembly};
use super::call::{Call, mismatched};
use super::slow;
use super::splice::{self, Answer};
use super::status::Status;
use super::trace::{self, Trace};
use super::validate;

/// What sorting by value is counted as in the reader pool, in bytes.
const SORT_COST: u64 = 1 << 20;

pub(super) async fn range(call: &Call, request: RangeRequest) -> Result<Answer, Status> {
    validate::range(&request)?;
    let trace = Trace::begin(&call.state, "range");
    let result = read(call, &request, trace).await;
    let took = trace.elapsed(&call.state);
    let metrics = &call.state.metrics;
    metrics.request("Range", result.is_ok(), took);
    if let Err(status) = &result {
        slow::tell_failed_read(&call.state, took, "read-only range ", status, || {
            slow::range_text(&request)
        });
    }
    result
}

async fn read(call: &Call, request: &RangeRequest, mut trace: Trace) -> Result<Answer, Status> {
    let state = &call.state;
    let mut waited = Duration::ZERO;
    if !request.serializable {
        call.read_barrier().await?;
        waited = trace.step(state, trace::AGREEMENT);
    }
    let caller = call.permit(&Need::read(&request.key, &request.range_end))?;
    let plan = planned(call, request).await?;
    trace.step(state, trace::INDEX);
    call.still_permitted(&caller)?;
    let mut assembly = Assembly::default();
    let revision = plan.revision;
    assembly.push(header(&call.header(revision)));
    let keys = match u64::try_from(request.limit) {
        _ if request.count_only => 0,
        Ok(limit @ 1..) => plan.count.min(limit),
        _ => plan.count,
    };
    assembly.push_rows(call.shared(), plan);
    let size = assembly.len();
    let told = (Arc::clone(state), request.clone());
    let planned = trace.elapsed(state);
    assembly.answer_and(&state.pool, move |reading| {
        let (state, request) = told;
        let took = if reading.is_zero() {
            trace.step(&state, trace::ASSEMBLE)
        } else {
            // Made piece by piece, as the client takes it: the client's time does not count.
            trace.step_until(trace::FILE, planned + reading)
        };
        state.metrics.range(took.saturating_sub(waited));
        slow::tell_read(
            &state,
            took,
            "read-only range ",
            || slow::range_text(&request),
            || format!("range_response_count:{keys} size:{size}"),
        );
        trace.tell(took, |detail| {
            detail
                .key("range_begin", &request.key)
                .key("range_end", &request.range_end)
                .add("response_count", keys)
                .add("response_revision", revision);
        });
    })
}

/// Plans a range: from the index alone, so here; but where it needs values to sort by, on the pool.
async fn planned(call: &Call, request: &RangeRequest) -> Result<Plan, Status> {
    let shared = call.shared();
    let plan = if range::reads_values(request) {
        let (shared, request) = (Arc::clone(shared), request.clone());
        call.state
            .pool
            .run(SORT_COST, move || {
                range::plan(&shared, &request, ReadAt::Current)
            })
            .await?
    } else {
        range::plan(shared, request, ReadAt::Current)
    };
    plan.map_err(assemble::refusal_of)
}

pub(super) async fn put(call: &Call, request: PutRequest) -> Result<Answer, Status> {
    call.check_space(quota::cost_of_put(&request)).await?;
    validate::put(&request)?;
    let mut trace = Trace::begin(&call.state, "put");
    let (key, size) = (request.key.clone(), request.encoded_len());
    let request = InternalRaftRequest {
        put: Some(request),
        ..InternalRaftRequest::default()
    };
    let Outcome::Put { revision, prev } = call.propose("Put", request).await? else {
        return Err(mismatched());
    };
    let took = trace.step(&call.state, trace::PROPOSE);
    trace.tell(took, |detail| {
        detail
            .key("key", &key)
            .add("req_size", size)
            .add("response_revision", revision);
    });
    let mut assembly = Assembly::default();
    assembly.push(header(&call.header(revision)));
    if let Some((prev, pin)) = prev {
        let pool = &call.state.pool;
        let records = assemble::records(call.shared(), pool, vec![prev], Some(pin)).await?;
        push_records(&mut assembly, 2, records);
    }
    assembly.answer(&call.state.pool)
}

pub(super) async fn delete_range(
    call: &Call,
    request: DeleteRangeRequest,
) -> Result<Answer, Status> {
    validate::delete_range(&request)?;
    let request = InternalRaftRequest {
        delete_range: Some(request),
        ..InternalRaftRequest::default()
    };
    let Outcome::Delete {
        revision,
        deleted,
        prevs,
        pin,
    } = call.propose("DeleteRange", request).await?
    else {
        return Err(mismatched());
    };
    let records = assemble::records(call.shared(), &call.state.pool, prevs, pin).await?;
    let mut assembly = Assembly::default();
    let mut head = header(&call.header(revision));
    splice::put_int(2, deleted, &mut head);
    assembly.push(head);
    push_records(&mut assembly, 3, records);
    assembly.answer(&call.state.pool)
}

pub(super) async fn compact(call: &Call, request: CompactionRequest) -> Result<Answer, Status> {
    let mut trace = Trace::begin(&call.state, "compact");
    let proposed = InternalRaftRequest {
        compaction: Some(request),
        ..InternalRaftRequest::default()
    };
    let Outcome::Compact { revision } = call.propose("Compaction", proposed).await? else {
        return Err(mismatched());
    };
    let step = if request.physical {
        "physically toApply compaction"
    } else {
        trace::PROPOSE
    };
    let took = trace.step(&call.state, step);
    trace.tell(took, |detail| {
        detail
            .add("revision", request.revision)
            .add("response_revision", revision);
    });
    Ok(Answer::message(&CompactionResponse {
        header: Some(call.header(revision)),
    }))
}

/// The header field of a response.
pub(super) fn header(header: &ResponseHeader) -> BytesMut {
    let mut out = BytesMut::with_capacity(64);
    splice::put_message(1, header, &mut out);
    out
}

/// Adds stored records as fields of this number.
pub(super) fn push_records(assembly: &mut Assembly, field: u32, records: Vec<bytes::Bytes>) {
    for record in records {
        let mut key = BytesMut::with_capacity(8);
        splice::put_len(field, record.len() as u64, &mut key);
        assembly.push(key);
        assembly.push(record);
    }
}
