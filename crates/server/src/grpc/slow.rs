//! What operators are told of calls and reads that take long: etcd's lines with etcd's fields.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use keelson_proto::rpc::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, RangeRequest, RangeResponse, TxnRequest,
    TxnResponse,
};
use prost::Message;

use super::method::Method;
use super::splice::Answer;
use super::status::Status;
use crate::logging;
use crate::serving::Origin;
use crate::state::State;

/// How much of a key a line shows.
const SHOWN_BYTES: usize = 128;

/// One call that has been answered.
pub(super) struct Answered<'a> {
    pub(super) origin: Origin,
    pub(super) method: Method,
    pub(super) started: Instant,
    /// The request as it came, of the calls on keys alone.
    pub(super) request: Option<Bytes>,
    pub(super) result: &'a Result<Answer, Status>,
}

/// What a line says of a call; -1 where that is not known.
struct Stats {
    request_count: i64,
    request_size: i64,
    response_count: i64,
    response_size: i64,
    content: String,
}

/// Tells of a unary call that took longer than the operator wants; of every one where the log is
/// that fine.
pub(super) fn tell(state: &State, call: &Answered<'_>) {
    let took = call.started.elapsed();
    let slow_call = state.settings.slow_call;
    let is_slow = !slow_call.is_zero() && took > slow_call;
    if !is_slow && !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let stats = stats(call);
    let start = SystemTime::now().checked_sub(took);
    let remote = call.origin.remote.map(|remote| remote.to_string());
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                "start time" = start.map(logging::timestamp),
                "time spent" = ?took,
                remote = remote.as_deref().unwrap_or("@"),
                "response type" = format!("/{}/{}", call.method.service(), call.method.name()),
                "request count" = stats.request_count,
                "request size" = stats.request_size,
                "response count" = stats.response_count,
                "response size" = stats.response_size,
                "request content" = stats.content,
                "request stats"
            )
        };
    }
    if is_slow {
        line!(warn);
    } else {
        line!(debug);
    }
}

fn stats(call: &Answered<'_>) -> Stats {
    let mut stats = Stats {
        request_count: -1,
        request_size: -1,
        response_count: -1,
        response_size: -1,
        content: String::new(),
    };
    let Some(request) = &call.request else {
        return stats;
    };
    let answer = match call.result {
        Ok(Answer::Whole(message)) => Some(message.clone().into_message()),
        // Too large to be in memory at once.
        Ok(Answer::Pieces(_)) | Err(_) => None,
    };
    stats.request_size = size(request.len());
    stats.response_size = answer.as_ref().map_or(-1, |answer| size(answer.len()));
    let answer = answer.unwrap_or_default();
    match call.method {
        Method::Range => {
            stats.request_count = 0;
            stats.content = RangeRequest::decode(request.clone())
                .map_or_else(|_| String::new(), |request| range_text(&request));
            stats.response_count =
                RangeResponse::decode(answer).map_or(-1, |answer| size(answer.kvs.len()));
        }
        Method::Put => {
            stats.request_count = 1;
            stats.response_count = 0;
            stats.content = PutRequest::decode(request.clone())
                .map_or_else(|_| String::new(), |request| put_text(&request));
        }
        Method::DeleteRange => {
            stats.request_count = 0;
            stats.content = DeleteRangeRequest::decode(request.clone()).map_or_else(
                |_| String::new(),
                |request| keys_text(&request.key, &request.range_end),
            );
            stats.response_count =
                DeleteRangeResponse::decode(answer).map_or(-1, |answer| answer.deleted);
        }
        Method::Txn => {
            if let Ok(request) = TxnRequest::decode(request.clone()) {
                stats.request_count = size(request.success.len().max(request.failure.len()));
                stats.content = TxnCounts::of(&request).text();
            }
            stats.response_count =
                TxnResponse::decode(answer).map_or(-1, |answer| size(answer.responses.len()));
        }
        _ => {}
    }
    stats
}

fn size(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Tells of a range or a transaction of ranges that took longer to read than apply may take.
pub(super) fn tell_read(
    state: &State,
    took: Duration,
    prefix: &str,
    request: impl FnOnce() -> String,
    response: impl FnOnce() -> String,
) {
    let expected = state.settings.slow_apply;
    if took <= expected {
        return;
    }
    state.metrics.slow_reads.inc();
    tracing::warn!(
        took = ?took,
        "expected-duration" = ?expected,
        prefix,
        request = request(),
        response = response(),
        "apply request took too long"
    );
}

/// As [`tell_read`], of one that failed.
pub(super) fn tell_failed_read(
    state: &State,
    took: Duration,
    prefix: &str,
    status: &Status,
    request: impl FnOnce() -> String,
) {
    let expected = state.settings.slow_apply;
    if took <= expected {
        return;
    }
    state.metrics.slow_reads.inc();
    tracing::warn!(
        took = ?took,
        "expected-duration" = ?expected,
        prefix,
        request = request(),
        response = "",
        error = status.text.as_ref(),
        "apply request took too long"
    );
}

pub(super) fn range_text(request: &RangeRequest) -> String {
    let mut text = keys_text(&request.key, &request.range_end);
    // Writing to a string cannot fail.
    if request.limit != 0 {
        let _ = write!(text, " limit:{}", request.limit);
    }
    if request.revision != 0 {
        let _ = write!(text, " revision:{}", request.revision);
    }
    for (is, name) in [
        (request.serializable, "serializable"),
        (request.keys_only, "keys_only"),
        (request.count_only, "count_only"),
    ] {
        if is {
            let _ = write!(text, " {name}:true");
        }
    }
    text
}

fn put_text(request: &PutRequest) -> String {
    let mut text = format!(
        "key:{} value_size:{} ",
        quoted(&request.key),
        request.value.len()
    );
    if request.lease != 0 {
        let _ = write!(text, "lease:{} ", request.lease);
    }
    text
}

/// How many conditions and operations a transaction has.
#[derive(Clone, Copy)]
pub(super) struct TxnCounts([usize; 3]);

impl TxnCounts {
    pub(super) fn of(request: &TxnRequest) -> TxnCounts {
        let TxnRequest {
            compare,
            success,
            failure,
        } = request;
        TxnCounts([compare.len(), success.len(), failure.len()])
    }

    pub(super) fn text(self) -> String {
        let TxnCounts([compare, success, failure]) = self;
        format!("compare:{compare} success:{success} failure:{failure}")
    }
}

fn keys_text(key: &[u8], end: &[u8]) -> String {
    let mut text = format!("key:{}", quoted(key));
    if !end.is_empty() {
        let _ = write!(text, " range_end:{}", quoted(end));
    }
    text
}

fn quoted(bytes: &[u8]) -> String {
    let shown = bytes.get(..SHOWN_BYTES).unwrap_or(bytes);
    format!("\"{}\"", shown.escape_ascii())
}
