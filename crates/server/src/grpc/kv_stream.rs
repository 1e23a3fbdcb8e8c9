//! `RangeStream`: a range in many messages, each a chunk of keys at one revision.
//!
//! Nothing is pinned between the chunks: where compaction passes the revision, the stream ends with
//! the error that says so.

use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, BytesMut};
use futures_util::stream;
use keelson_proto::rpc::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_proto::rpc::etcdserverpb::{RangeRequest, ResponseHeader};
use keelson_store::Shared;
use keelson_store::auth::Need;
use keelson_store::range::{self, Progress, ReadAt};
use prost::encoding::{WireType, decode_key, decode_varint};

use super::assemble::{self, refusal_of, status_of};
use super::call::{Call, Caller};
use super::splice::{self, Answer, Chunk, Ending, Framed};
use super::status::Status;
use super::validate;

/// Keys in the first chunk.
const FIRST_CHUNK: i64 = 10;

/// Room for what a message holds beside its rows, in bytes.
const MESSAGE_OVERHEAD: u64 = 1024;

/// Room behind the rows of a message for `more` and `count`.
const TAIL_MAX: usize = 16;

/// Room before the rows of a message for what can be written only after them: the prefix, the
/// length of the response, and a header.
const HEAD_MAX: usize = 80;

/// What is still to be sent.
struct Rest {
    request: RangeRequest,
    /// Keys in the next chunk.
    chunk: i64,
    sent: i64,
    /// The revision that the stream reads, where it is to stay at one.
    pinned: Option<i64>,
    /// What a response may hold, in bytes; decides how chunks grow.
    aim: u64,
}

/// A chunk that has been read.
struct Part {
    /// The fields `kvs`, one after another, behind [`HEAD_MAX`] bytes of room.
    rows: BytesMut,
    /// The revision that the header of the last message shows.
    revision: i64,
    /// `more` and `count` of the last message; `None` where others follow.
    last: Option<(bool, i64)>,
}

pub(super) async fn range_stream(call: Call, request: RangeRequest) -> Result<Answer, Status> {
    validate::range(&request)?;
    validate::range_stream(&request)?;
    if !request.serializable {
        call.read_barrier().await?;
    }
    let caller = call.permit(&Need::read(&request.key, &request.range_end))?;
    let rest = Rest {
        pinned: None,
        chunk: FIRST_CHUNK,
        sent: 0,
        aim: call.state.settings.max_request_bytes as u64,
        request,
    };
    // The first chunk is read before anything is sent, so that its error is all that is sent.
    let (part, rest) = read(&call, rest).await?;
    let first = Some(Next::Ready(part, rest));
    Ok(Answer::Pieces(Box::pin(stream::try_unfold(
        (call, caller, first),
        |(call, caller, next)| async move {
            let (part, rest) = match next {
                None => {
                    finish(&call, &caller)?;
                    return Ok(None);
                }
                Some(Next::Ready(part, rest)) => (part, rest),
                Some(Next::Unread(rest)) => read(&call, rest).await?,
            };
            let message = message(&call, part);
            Ok::<_, Ending>(Some((
                Chunk::from(message),
                (call, caller, rest.map(Next::Unread)),
            )))
        },
    ))))
}

/// A chunk to come. One is read when HTTP/2 has room for it, and not before: a client that reads
/// slowly costs one chunk.
enum Next {
    Ready(Part, Option<Rest>),
    Unread(Rest),
}

/// What was sent may have been the caller's no longer; etcd says so at the end.
fn finish(call: &Call, caller: &Caller) -> Result<(), Status> {
    call.still_permitted(caller)
}

async fn read(call: &Call, rest: Rest) -> Result<(Part, Option<Rest>), Status> {
    let shared = Arc::clone(call.shared());
    let cost = rest.aim.min(1 << 20);
    call.state
        .pool
        .run(cost, move || rest.next(&shared))
        .await?
}

impl Rest {
    /// Reads the next chunk: blocking.
    fn next(mut self, shared: &Arc<Shared>) -> Result<(Part, Option<Rest>), Status> {
        let limit = self.request.limit;
        let counting = self.request.count_only;
        let mut ask = self.request.clone();
        if let Some(pinned) = self.pinned {
            ask.revision = pinned;
        }
        if counting {
            ask.keys_only = false;
        } else {
            ask.limit = match limit {
                // (etcd answers a negative limit with one message of any size.)
                limit if limit <= 0 => self.chunk,
                limit => self.chunk.min(limit - self.sent),
            };
        }
        let mut plan = range::plan(shared, &ask, ReadAt::Current).map_err(refusal_of)?;
        if plan.more && ask.sort_target() != SortTarget::Key {
            // Chunks go on behind their last key, so only key order can be cut into them.
            ask.set_sort_target(SortTarget::Key);
            ask.set_sort_order(SortOrder::None);
            self.request.set_sort_target(SortTarget::Key);
            plan = range::plan(shared, &ask, ReadAt::Current).map_err(refusal_of)?;
        }
        if self.request.revision == 0 && self.pinned.is_none() {
            self.pinned = Some(plan.revision);
        }
        if plan.body_len() > splice::MESSAGE_MAX - MESSAGE_OVERHEAD {
            return Err(assemble::too_large(plan.body_len()));
        }
        let revision = self.pinned.unwrap_or(plan.revision);
        let (more, rows) = (plan.more, plan.rows());
        let count = i64::try_from(plan.count).unwrap_or(i64::MAX);
        let body_len = usize::try_from(plan.body_len()).unwrap_or(0);
        let mut out = BytesMut::with_capacity(HEAD_MAX + body_len + TAIL_MAX);
        out.put_bytes(0, HEAD_MAX);
        let mut emitter = plan.into_unpinned_emitter(Arc::clone(shared));
        while let Progress::More = emitter.next_rows(usize::MAX, &mut out).map_err(status_of)? {}
        let len = out.len() - HEAD_MAX;
        let sent_before = self.sent;
        self.sent += i64::try_from(rows).unwrap_or(i64::MAX);
        let enough = limit > 0 && self.sent >= limit;
        let next_key = last_key(&out[HEAD_MAX..])
            .filter(|_| more && !enough && !counting)
            .map(|last| {
                let mut key = BytesMut::with_capacity(last.len() + 1);
                key.extend_from_slice(last);
                key.extend_from_slice(&[0]);
                key.freeze()
            });
        let part = Part {
            rows: out,
            revision,
            last: next_key
                .is_none()
                .then(|| (more, sent_before.saturating_add(count))),
        };
        let rest = next_key.map(|key| {
            self.grow(len as u64);
            self.request.key = key;
            self
        });
        Ok((part, rest))
    }

    /// Chunks grow while they are small and shrink when they are large.
    fn grow(&mut self, len: u64) {
        if len < self.aim / 2 {
            self.chunk = self.chunk.saturating_mul(2);
        } else if len > self.aim.saturating_mul(2) {
            self.chunk = (self.chunk / 2).max(1);
        }
    }
}

/// The key of the last of these rows.
fn last_key(mut rows: &[u8]) -> Option<&[u8]> {
    let mut last = None;
    while let Ok((2, WireType::LengthDelimited)) = decode_key(&mut rows) {
        last = Some(take(&mut rows)?);
    }
    let mut row = last?;
    match decode_key(&mut row) {
        Ok((1, WireType::LengthDelimited)) => take(&mut row),
        _ => None,
    }
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(decode_varint(rest).ok()?).ok()?;
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}

fn message(call: &Call, part: Part) -> Framed {
    let header = part.last.map(|_| call.header(part.revision));
    frame(header.as_ref(), part)
}

/// Puts the head of a message before its rows, and the tail behind them.
fn frame(header: Option<&ResponseHeader>, part: Part) -> Framed {
    let (more, count) = part.last.unwrap_or_default();
    let mut out = part.rows;
    splice::put_int(3, i64::from(more), &mut out);
    splice::put_int(4, count, &mut out);
    let inner = header.map_or(0, splice::header_len) + (out.len() - HEAD_MAX) as u64;
    let mut head = splice::begin(splice::bytes_len(1, inner), HEAD_MAX - splice::PREFIX);
    splice::put_len(1, inner, &mut head);
    if let Some(header) = header {
        splice::put_message(1, header, &mut head);
    }
    let unused = HEAD_MAX
        .checked_sub(head.len())
        .expect("a header of four integers is shorter than the room for it");
    out[unused..HEAD_MAX].copy_from_slice(&head);
    out.advance(unused);
    Framed::finished(out)
}

#[cfg(test)]
mod tests {
    use keelson_proto::rpc::etcdserverpb::{RangeResponse, RangeStreamResponse};
    use keelson_proto::rpc::mvccpb::KeyValue;
    use prost::Message as _;

    use super::*;

    #[test]
    fn the_last_key_is_found_behind_the_rows_before_it() {
        let kv = |key: &'static str| KeyValue {
            key: key.into(),
            value: "value".into(),
            ..KeyValue::default()
        };
        let rows = RangeResponse {
            kvs: vec![kv("a"), kv("bb")],
            ..RangeResponse::default()
        };
        assert_eq!(last_key(&rows.encode_to_vec()), Some(&b"bb"[..]));
        assert_eq!(last_key(&[]), None);
    }

    #[test]
    fn the_largest_head_fits_before_the_rows() {
        let header = ResponseHeader {
            cluster_id: u64::MAX,
            member_id: u64::MAX,
            revision: i64::MIN,
            raft_term: u64::MAX,
        };
        let mut rows = BytesMut::zeroed(HEAD_MAX);
        rows.extend_from_slice(&[0x12, 3, 0x0a, 1, b'a']);
        let part = Part {
            rows,
            revision: i64::MIN,
            last: Some((true, i64::MIN)),
        };
        let message = frame(Some(&header), part).into_message();
        let decoded = RangeStreamResponse::decode(message).unwrap();
        let range = decoded.range_response.unwrap();
        assert_eq!(range.header, Some(header));
        assert_eq!(range.kvs[0].key, "a");
        assert_eq!((range.more, range.count), (true, i64::MIN));
    }
}
