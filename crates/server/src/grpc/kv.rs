//! KV, but for transactions and streams.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use keelson_proto::rpc::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, InternalRaftRequest, PutRequest,
    RangeRequest, ResponseHeader,
};
use keelson_store::auth::Need;
use keelson_store::range::{self, Plan, ReadAt};
use keelson_store::{Outcome, quota};

use super::assemble::{self, Assembly};
use super::call::{Call, mismatched};
use super::slow;
use super::splice::{self, Answer};
use super::status::Status;
use super::validate;

/// What sorting by value is counted as in the reader pool, in bytes.
const SORT_COST: u64 = 1 << 20;

pub(super) async fn range(call: &Call, request: RangeRequest) -> Result<Answer, Status> {
    validate::range(&request)?;
    let started = Instant::now();
    let result = read(call, &request).await;
    let metrics = &call.state.metrics;
    metrics.request("Range", result.is_ok(), started.elapsed());
    result
}

async fn read(call: &Call, request: &RangeRequest) -> Result<Answer, Status> {
    if !request.serializable {
        call.read_barrier().await?;
    }
    let caller = call.permit(&Need::read(&request.key, &request.range_end))?;
    let started = Instant::now();
    let plan = planned(call, request).await?;
    let mut assembly = Assembly::default();
    assembly.push(header(&call.header(plan.revision)));
    let keys = match u64::try_from(request.limit) {
        _ if request.count_only => 0,
        Ok(limit @ 1..) => plan.count.min(limit),
        _ => plan.count,
    };
    assembly.push_rows(call.shared(), plan);
    let answer = assembly.answer(&call.state.pool)?;
    let took = started.elapsed();
    call.state.metrics.range(took);
    slow::tell_read(
        &call.state,
        took,
        "read-only range ",
        || slow::range_text(request),
        || format!("range_response_count:{keys}"),
    );
    call.still_permitted(&caller)?;
    Ok(answer)
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
    let request = InternalRaftRequest {
        put: Some(request),
        ..InternalRaftRequest::default()
    };
    let Outcome::Put { revision, prev } = call.propose("Put", request).await? else {
        return Err(mismatched());
    };
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
    let request = InternalRaftRequest {
        compaction: Some(request),
        ..InternalRaftRequest::default()
    };
    let Outcome::Compact { revision } = call.propose("Compaction", request).await? else {
        return Err(mismatched());
    };
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
