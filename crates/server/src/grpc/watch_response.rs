//! The bytes of watch responses: stored records behind a header, nothing decoded.

use bytes::{Bytes, BytesMut};
use keelson_proto::rpc::etcdserverpb::{ResponseHeader, WatchResponse};
use keelson_store::EventRecord;

use super::splice::{self, Framed};
use crate::state::State;

/// How a watcher wants its events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// With the values that they replaced.
    pub(crate) prev_kv: bool,
    /// Large responses in pieces.
    pub(crate) fragment: bool,
}

/// The fields of `WatchResponse` that events need.
const WATCH_ID: u32 = 2;
const FRAGMENT: u32 = 7;
const EVENTS: u32 = 11;

/// The fields of `Event`.
const TYPE: u32 = 1;
const KV: u32 = 2;
const PREV_KV: u32 = 3;

/// The field of `KeyValue` that a tombstone lacks.
const MOD_REVISION: u32 = 3;

/// `EventType::Delete`.
const DELETE: i64 = 1;

/// One event on its way, with what it replaced.
struct Item<'a> {
    event: &'a EventRecord,
    prev: Option<&'a Bytes>,
}

impl Item<'_> {
    fn kv_len(&self) -> u64 {
        let record = self.event.record.bytes.len() as u64;
        if self.event.record.tombstone {
            record + splice::int_len(MOD_REVISION, self.event.revision.main)
        } else {
            record
        }
    }

    fn event_len(&self) -> u64 {
        let kind = if self.event.record.tombstone {
            splice::int_len(TYPE, DELETE)
        } else {
            0
        };
        let prev = self
            .prev
            .map_or(0, |prev| splice::bytes_len(PREV_KV, prev.len() as u64));
        kind + splice::bytes_len(KV, self.kv_len()) + prev
    }

    fn len(&self) -> u64 {
        splice::bytes_len(EVENTS, self.event_len())
    }

    fn put(&self, out: &mut BytesMut) {
        splice::put_len(EVENTS, self.event_len(), out);
        if self.event.record.tombstone {
            splice::put_int(TYPE, DELETE, out);
        }
        splice::put_len(KV, self.kv_len(), out);
        out.extend_from_slice(&self.event.record.bytes);
        if self.event.record.tombstone {
            splice::put_int(MOD_REVISION, self.event.revision.main, out);
        }
        if let Some(prev) = self.prev {
            splice::put_len(PREV_KV, prev.len() as u64, out);
            out.extend_from_slice(prev);
        }
    }
}

/// Some events as every watcher gets them that wants just these, encoded once: a response is made of it by
/// its watcher's id alone.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    /// The field of the header, then those of the events.
    fields: Bytes,
    header_len: usize,
}

impl Encoded {
    /// Encodes events; `previous` is what each replaced, or empty.
    pub(crate) fn new(
        header: &ResponseHeader,
        events: &[&EventRecord],
        previous: &[Option<Bytes>],
    ) -> Encoded {
        Encoded::items(header, &items(events, previous))
    }

    fn items(header: &ResponseHeader, items: &[Item<'_>]) -> Encoded {
        let header_len = splice::header_len(header);
        let len = header_len + items.iter().map(Item::len).sum::<u64>();
        let mut out = BytesMut::with_capacity(usize::try_from(len).unwrap_or_default());
        splice::put_message(1, header, &mut out);
        let header_len = out.len();
        for item in items {
            item.put(&mut out);
        }
        Encoded {
            fields: out.freeze(),
            header_len,
        }
    }

    /// How long the response to a watcher is, with its prefix.
    pub(crate) fn response_len(&self, watch_id: i64) -> usize {
        splice::PREFIX + usize::try_from(self.message_len(watch_id)).unwrap_or(usize::MAX)
    }

    fn message_len(&self, watch_id: i64) -> u64 {
        self.fields.len() as u64 + splice::int_len(WATCH_ID, watch_id)
    }

    /// Writes the response to a watcher up to where [`Encoded::events`] are to follow.
    pub(crate) fn put_head(&self, watch_id: i64, out: &mut BytesMut) {
        splice::put_prefix(self.message_len(watch_id), out);
        out.extend_from_slice(&self.fields[..self.header_len]);
        splice::put_int(WATCH_ID, watch_id, out);
    }

    /// The fields of the events: the end of each response.
    pub(crate) fn events(&self) -> Bytes {
        self.fields.slice(self.header_len..)
    }

    /// Writes the response to a watcher.
    pub(crate) fn put_response(&self, watch_id: i64, out: &mut BytesMut) {
        self.put_head(watch_id, out);
        out.extend_from_slice(&self.fields[self.header_len..]);
    }
}

fn items<'a>(events: &[&'a EventRecord], previous: &'a [Option<Bytes>]) -> Vec<Item<'a>> {
    let none = std::iter::repeat(&None);
    let with_previous = events.iter().zip(previous.iter().chain(none));
    with_previous
        .map(|(event, prev)| Item {
            event,
            prev: prev.as_ref(),
        })
        .collect()
}

/// Events of one watcher, as one response; where it takes pieces, as several from `fragment` bytes on.
/// `previous` is what each event replaced, or empty.
pub(crate) fn events(
    header: &ResponseHeader,
    watch_id: i64,
    events: &[&EventRecord],
    previous: &[Option<Bytes>],
    fragment: Option<usize>,
) -> Vec<Bytes> {
    // Straight into the response: nobody shares these, so that encoding them apart would be a copy more.
    pieces(header, watch_id, events, previous, fragment)
        .unwrap_or_else(|| vec![message(header, watch_id, &items(events, previous), false)])
}

/// Events of one watcher that takes pieces, as several responses; `None` if one will do.
pub(crate) fn pieces(
    header: &ResponseHeader,
    watch_id: i64,
    events: &[&EventRecord],
    previous: &[Option<Bytes>],
    fragment: Option<usize>,
) -> Option<Vec<Bytes>> {
    let max = fragment.filter(|_| events.len() > 1)? as u64;
    let items = items(events, previous);
    let fixed = splice::header_len(header) + splice::int_len(WATCH_ID, watch_id);
    let whole = fixed + items.iter().map(Item::len).sum::<u64>();
    if whole < max {
        return None;
    }
    let mut pieces = Vec::new();
    let mut rest = items.as_slice();
    while !rest.is_empty() {
        let mut len = fixed + splice::int_len(FRAGMENT, 1);
        let fitting = rest.iter().take_while(|item| {
            len += item.len();
            len < max
        });
        let (piece, after) = rest.split_at(fitting.count().max(1));
        pieces.push(message(header, watch_id, piece, !after.is_empty()));
        rest = after;
    }
    Some(pieces)
}

/// A response; `more` if it is one of several, and others follow it.
fn message(header: &ResponseHeader, watch_id: i64, items: &[Item<'_>], more: bool) -> Bytes {
    let len = splice::header_len(header)
        + splice::int_len(WATCH_ID, watch_id)
        + splice::int_len(FRAGMENT, i64::from(more))
        + items.iter().map(Item::len).sum::<u64>();
    let mut out = splice::begin(len, usize::try_from(len).unwrap_or_default());
    splice::put_message(1, header, &mut out);
    splice::put_int(WATCH_ID, watch_id, &mut out);
    splice::put_int(FRAGMENT, i64::from(more), &mut out);
    for item in items {
        item.put(&mut out);
    }
    Framed::finished(out).into_bytes()
}

fn framed(response: &WatchResponse) -> Bytes {
    Framed::message(response).into_bytes()
}

/// A watcher was made.
pub(crate) fn created(header: &ResponseHeader, watch_id: i64) -> Bytes {
    framed(&WatchResponse {
        header: Some(*header),
        watch_id,
        created: true,
        ..Default::default()
    })
}

/// A watcher was ended by the client.
pub(crate) fn canceled(header: &ResponseHeader, watch_id: i64) -> Bytes {
    framed(&WatchResponse {
        header: Some(*header),
        watch_id,
        canceled: true,
        ..Default::default()
    })
}

/// A watcher was not made.
pub(crate) fn refused(header: &ResponseHeader, cancel_reason: String) -> Bytes {
    framed(&WatchResponse {
        header: Some(*header),
        watch_id: -1,
        created: true,
        canceled: true,
        cancel_reason,
        ..Default::default()
    })
}

/// Compaction has passed a watcher. The header names no revision, as in etcd.
pub(crate) fn compacted(state: &State, watch_id: i64, compact_revision: i64) -> Bytes {
    framed(&WatchResponse {
        header: Some(state.header(0)),
        watch_id,
        canceled: true,
        compact_revision,
        ..Default::default()
    })
}

/// Nothing is missing up to the header's revision.
pub(crate) fn progress(header: &ResponseHeader, watch_id: i64) -> Bytes {
    framed(&WatchResponse {
        header: Some(*header),
        watch_id,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use keelson_proto::rpc::mvccpb::{Event, KeyValue, event::EventType};
    use keelson_store::{Record, Revision, record};

    use super::*;

    #[test]
    fn spliced_events_are_what_a_decoder_expects() {
        let header = ResponseHeader {
            revision: 9,
            raft_term: 2,
            ..Default::default()
        };
        let mut put = Vec::new();
        record::encode(b"k", 9, 9, 1, b"v", 0, &mut put);
        let mut tombstone = Vec::new();
        record::encode_tombstone(b"gone", &mut tombstone);
        let event = |sub, bytes: &Vec<u8>, tombstone| EventRecord {
            revision: Revision { main: 9, sub },
            record: Record {
                bytes: bytes.clone().into(),
                tombstone,
            },
        };
        let (put_event, delete_event) = (event(0, &put, false), event(1, &tombstone, true));
        let put_bytes = Bytes::from(put.clone());
        let items = [
            Item {
                event: &put_event,
                prev: None,
            },
            Item {
                event: &delete_event,
                prev: Some(&put_bytes),
            },
        ];
        let bytes = message(&header, 3, &items, true);
        let decoded = WatchResponse::decode(bytes.slice(splice::PREFIX..)).unwrap();
        let kv = KeyValue::decode(&put[..]).unwrap();
        let gone = KeyValue {
            key: "gone".into(),
            mod_revision: 9,
            ..Default::default()
        };
        let expected = WatchResponse {
            header: Some(header),
            watch_id: 3,
            fragment: true,
            events: vec![
                Event {
                    r#type: EventType::Put.into(),
                    kv: Some(kv.clone()),
                    prev_kv: None,
                },
                Event {
                    r#type: EventType::Delete.into(),
                    kv: Some(gone),
                    prev_kv: Some(kv),
                },
            ],
            ..Default::default()
        };
        assert_eq!(decoded, expected);
        // Whole, it is the same but for the mark of a piece.
        let encoded = Encoded::items(&header, &items);
        let mut out = BytesMut::new();
        encoded.put_response(3, &mut out);
        assert_eq!(out.len(), encoded.response_len(3));
        let decoded = WatchResponse::decode(out.freeze().slice(splice::PREFIX..)).unwrap();
        let expected = WatchResponse {
            fragment: false,
            ..expected
        };
        assert_eq!(decoded, expected);
    }
}
