//! One stream of a client: its watchers, and the responses that wait to be sent.
//!
//! Responses leave in the order in which they were queued. One whose events want values that lie in the
//! file has its place in the queue while those are read: what is behind it waits.

use std::collections::{BTreeMap, VecDeque};
use std::task::Waker;

use bytes::{Bytes, BytesMut};
use keelson_store::watch::Handle;

use crate::grpc::splice;
use crate::grpc::watch_response::{Encoded, Flags};

/// Bytes that may wait to be sent on one stream; its watchers lag beyond that. What is queued may be more
/// by one response: the events of a revision are not parted.
pub(super) const STREAM_BYTES_MAX: usize = 1 << 20;

/// Small responses are packed up to so many bytes: what most clients take in one frame.
pub(super) const PACK: usize = 16 << 10;

/// Bytes that are handed to HTTP/2 at once: what is handed over is no longer counted here.
pub(super) const PIECE: usize = 64 << 10;

/// One stream of a client.
#[derive(Default)]
pub(super) struct Stream {
    pub(super) watches: BTreeMap<i64, Watch>,
    pub(super) next_id: i64,
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    next_place: u64,
    /// Watchers that wait for room.
    pub(super) blocked: Vec<Handle>,
    /// A request for progress that is to be answered once the shard is this far.
    pub(super) progress_at: Option<i64>,
    pub(super) waker: Option<Waker>,
    /// Why it has to end, once what can be sent was sent.
    broken: Option<String>,
}

#[derive(Clone, Copy)]
pub(super) struct Watch {
    pub(super) handle: Handle,
    pub(super) flags: Flags,
    pub(super) progress_notify: bool,
}

/// A response that waits to be sent.
struct Queued {
    content: Content,
    /// The watcher whose events these are: they are dropped with it.
    events_of: Option<i64>,
    /// Whether a part of it is on its way: then the rest must follow.
    begun: bool,
}

enum Content {
    Here(Bytes),
    /// Events that others may get as well: they take no room of their own here.
    Events {
        watch_id: i64,
        encoded: Encoded,
    },
    /// Its values are being read.
    Awaited {
        place: Place,
        /// How long it will be, about, in bytes.
        len: usize,
    },
}

/// A place in the queue of a stream that is to be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u64);

/// What is handed to HTTP/2 at once: a part of a response, or several whole ones.
pub(crate) struct Piece {
    pub(crate) chunk: splice::Chunk,
    /// Whether a response ends with it.
    pub(crate) last: bool,
}

impl Content {
    fn len(&self) -> usize {
        match self {
            Content::Here(bytes) => bytes.len(),
            Content::Events { watch_id, encoded } => encoded.response_len(*watch_id),
            Content::Awaited { len, .. } => *len,
        }
    }

    fn is_awaited(&self) -> bool {
        matches!(self, Content::Awaited { .. })
    }

    /// Writes it behind what goes out with it; what is awaited is not there to be written.
    fn put(&self, out: &mut BytesMut) {
        match self {
            Content::Here(bytes) => out.extend_from_slice(bytes),
            Content::Events { watch_id, encoded } => encoded.put_response(*watch_id, out),
            Content::Awaited { .. } => {}
        }
    }
}

impl Stream {
    pub(super) fn is_full(&self) -> bool {
        self.queued_bytes >= STREAM_BYTES_MAX
    }

    /// Bytes that may be queued until it is full.
    pub(super) fn room(&self) -> usize {
        STREAM_BYTES_MAX.saturating_sub(self.queued_bytes)
    }

    /// Whether so little waits that watchers which lag may go on.
    pub(super) fn has_room(&self) -> bool {
        self.queued_bytes <= STREAM_BYTES_MAX / 2
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Responses that wait.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Queues a response; not on a stream that has to end.
    pub(super) fn push(&mut self, bytes: Bytes, events_of: Option<i64>) {
        self.queue(Content::Here(bytes), events_of);
    }

    /// Queues events for a watcher; not on a stream that has to end.
    pub(super) fn push_events(&mut self, watch_id: i64, encoded: Encoded) {
        self.queue(Content::Events { watch_id, encoded }, Some(watch_id));
    }

    fn queue(&mut self, content: Content, events_of: Option<i64>) {
        if self.broken.is_some() {
            return;
        }
        self.queued_bytes += content.len();
        self.queue.push_back(Queued {
            content,
            events_of,
            begun: false,
        });
        self.wake();
    }

    /// Keeps the next place for events of a watcher whose response will be about `len` bytes long. What
    /// is pushed afterwards goes out behind it.
    pub(super) fn keep_place(&mut self, watch_id: i64, len: usize) -> Place {
        let place = Place(self.next_place);
        self.next_place += 1;
        self.queued_bytes += len;
        self.queue.push_back(Queued {
            content: Content::Awaited { place, len },
            events_of: Some(watch_id),
            begun: false,
        });
        place
    }

    /// Fills a place that was kept; not if its watcher has ended meanwhile.
    pub(super) fn fill(&mut self, place: Place, responses: Vec<Bytes>) {
        let kept = |queued: &Queued| matches!(queued.content, Content::Awaited { place: at, .. } if at == place);
        let Some(at) = self.queue.iter().position(kept) else {
            return;
        };
        let Some(Queued {
            content, events_of, ..
        }) = self.queue.remove(at)
        else {
            return;
        };
        self.queued_bytes -= content.len();
        for (number, bytes) in responses.into_iter().enumerate() {
            self.queued_bytes += bytes.len();
            let queued = Queued {
                content: Content::Here(bytes),
                events_of,
                begun: false,
            };
            self.queue.insert(at + number, queued);
        }
        self.wake();
    }

    /// Lets the stream end with `reason`, once what comes before the first place that is kept was sent.
    pub(super) fn break_off(&mut self, reason: String) {
        self.broken.get_or_insert(reason);
        self.wake();
    }

    pub(super) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn has_ended(&self, queued: &Queued) -> bool {
        let gone = |id| !self.watches.contains_key(&id);
        !queued.begun && queued.events_of.is_some_and(gone)
    }

    /// Takes out what is to be sent next: a part of a response that is too long to be handed over at
    /// once, or whole responses.
    pub(super) fn next_piece(&mut self) -> Option<Piece> {
        self.skip_ended();
        let next = self.queue.front_mut()?;
        let first = !next.begun;
        let part = match &mut next.content {
            Content::Awaited { .. } => return None,
            Content::Here(bytes) if first && bytes.len() <= PIECE => return self.pack(),
            Content::Here(bytes) => bytes.split_to(bytes.len().min(PIECE)),
            Content::Events { watch_id, encoded } if encoded.response_len(*watch_id) <= PACK => {
                return self.pack();
            }
            // Not copied: the events go out as they are, behind a head of their own.
            Content::Events { watch_id, encoded } => {
                let mut head = BytesMut::new();
                encoded.put_head(*watch_id, &mut head);
                next.content = Content::Here(encoded.events());
                head.freeze()
            }
        };
        next.begun = true;
        let last = next.content.len() == 0;
        self.queued_bytes -= part.len();
        if last {
            self.queue.pop_front();
        }
        let chunk = if first {
            splice::Chunk::first(part)
        } else {
            splice::Chunk::further(part)
        };
        Some(Piece { chunk, last })
    }

    /// Takes out the next response, with those behind it as far as they fit into one frame: a frame
    /// of HTTP/2 costs more than a small response. What a watcher got that has ended is left out.
    fn pack(&mut self) -> Option<Piece> {
        let first = self.pop(usize::MAX)?;
        let room = PACK.saturating_sub(first.len());
        let (bytes, messages) = match (first, self.pop(room)) {
            (Content::Here(bytes), None) => (bytes, 1),
            (first, second) => {
                let all = first.len() + second.as_ref().map_or(0, Content::len) + self.queued_bytes;
                let mut packed = BytesMut::with_capacity(all.min(PACK));
                first.put(&mut packed);
                let mut messages = 1;
                let mut next = second;
                while let Some(content) = next {
                    content.put(&mut packed);
                    messages += 1;
                    next = self.pop(PACK.saturating_sub(packed.len()));
                }
                (packed.freeze(), messages)
            }
        };
        let chunk = splice::Chunk::packed(bytes, messages);
        Some(Piece { chunk, last: true })
    }

    /// Takes out the next response, if it is there and no longer than `most`.
    fn pop(&mut self, most: usize) -> Option<Content> {
        self.skip_ended();
        let fits = |next: &mut Queued| !next.content.is_awaited() && next.content.len() <= most;
        let content = self.queue.pop_front_if(fits)?.content;
        self.queued_bytes -= content.len();
        Some(content)
    }

    /// Drops what stands at the front for watchers that have ended.
    fn skip_ended(&mut self) {
        while let Some(next) = self.queue.front()
            && self.has_ended(next)
        {
            self.queued_bytes -= next.content.len();
            self.queue.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use keelson_proto::rpc::etcdserverpb::ResponseHeader;
    use keelson_store::watch::{Filters, Shard, Spec, StreamId};
    use keelson_store::{EventRecord, Record, Revision, record};

    use super::*;

    #[test]
    fn what_waits_is_packed_in_order_without_what_an_ended_watcher_got() {
        let mut stream = Stream::default();
        stream.push(Bytes::from_static(b"created"), None);
        stream.push(Bytes::from_static(b"gone"), Some(7));
        stream.push(Bytes::from_static(b"canceled"), None);
        stream.push(Bytes::from(vec![1; PACK]), None);
        stream.push(Bytes::from_static(b"last"), None);
        let pieces: Vec<_> = std::iter::from_fn(|| stream.pack()).collect();
        let bytes: Vec<_> = pieces.iter().map(|piece| piece.chunk.bytes()).collect();
        assert_eq!(bytes, [&b"createdcanceled"[..], &[1; PACK], b"last"]);
        assert_eq!(stream.queued_bytes, 0);
    }

    fn watch() -> Watch {
        let spec = Spec {
            key: [0].into(),
            range_end: [0].into(),
            filters: Filters::default(),
            start: 1,
        };
        Watch {
            handle: Shard::default().add(StreamId(0), 1, spec),
            flags: Flags::default(),
            progress_notify: false,
        }
    }

    fn sent(stream: &mut Stream) -> Vec<u8> {
        let pieces = std::iter::from_fn(|| stream.next_piece());
        pieces
            .flat_map(|piece| piece.chunk.bytes().to_vec())
            .collect()
    }

    /// One event with a value of so many bytes.
    fn encoded(value_len: usize) -> Encoded {
        let mut bytes = Vec::new();
        record::encode(b"k", 9, 9, 1, &vec![7; value_len], 0, &mut bytes);
        let event = EventRecord {
            revision: Revision { main: 9, sub: 0 },
            record: Record {
                bytes: bytes.into(),
                tombstone: false,
            },
        };
        Encoded::new(&ResponseHeader::default(), &[&event], &[])
    }

    fn response(encoded: &Encoded, watch_id: i64) -> BytesMut {
        let mut out = BytesMut::new();
        encoded.put_response(watch_id, &mut out);
        out
    }

    #[test]
    fn small_events_of_several_watchers_are_packed_each_with_its_id() {
        let mut stream = Stream::default();
        let encoded = encoded(100);
        for id in [1, 2, 300] {
            stream.watches.insert(id, watch());
            stream.push_events(id, encoded.clone());
        }
        let all = [1, 2, 300].map(|id| response(&encoded, id)).concat();
        assert_eq!(stream.queued_bytes(), all.len());
        let piece = stream.next_piece().unwrap();
        assert_eq!((piece.chunk.bytes(), piece.last), (&all[..], true));
        assert_eq!(piece.chunk.messages(), 3);
        assert_eq!((stream.queued(), stream.queued_bytes()), (0, 0));
    }

    #[test]
    fn large_events_go_to_each_watcher_as_they_are_without_a_copy() {
        let encoded = encoded(PIECE + 10);
        let events = encoded.events();
        let mut stream = Stream::default();
        for id in [1, 2] {
            stream.watches.insert(id, watch());
            stream.push_events(id, encoded.clone());
        }
        for id in [1, 2] {
            let pieces: Vec<_> = (0..3).filter_map(|_| stream.next_piece()).collect();
            assert_eq!([false, false, true], [0, 1, 2].map(|at| pieces[at].last));
            let bytes: Vec<_> = pieces.iter().map(|it| it.chunk.bytes()).collect();
            assert_eq!(bytes.concat(), response(&encoded, id));
            assert_eq!(bytes[1].as_ptr(), events.as_ptr());
            let messages: u64 = pieces.iter().map(|it| it.chunk.messages()).sum();
            assert_eq!(messages, 1);
        }
        assert_eq!((stream.queued(), stream.queued_bytes()), (0, 0));
    }

    #[test]
    fn large_events_that_have_begun_are_finished_though_their_watcher_ends() {
        let mut stream = Stream::default();
        let encoded = encoded(PACK);
        stream.watches.insert(1, watch());
        stream.push_events(1, encoded.clone());
        stream.push_events(1, encoded.clone());
        let mut bytes = stream.next_piece().unwrap().chunk.bytes().to_vec();
        stream.watches.clear();
        bytes.extend(sent(&mut stream));
        assert_eq!(bytes, response(&encoded, 1), "and the second is left out");
        assert_eq!((stream.queued(), stream.queued_bytes()), (0, 0));
    }

    #[test]
    fn a_place_that_is_kept_holds_up_what_is_behind_it() {
        let mut stream = Stream::default();
        stream.watches.extend([(1, watch()), (2, watch())]);
        stream.push(Bytes::from_static(b"a"), Some(1));
        let first = stream.keep_place(1, STREAM_BYTES_MAX);
        let second = stream.keep_place(2, 7);
        stream.push(Bytes::from_static(b"d"), Some(2));
        assert!(stream.is_full(), "what is awaited counts");
        assert_eq!(sent(&mut stream), b"a");
        stream.fill(second, vec![Bytes::from_static(b"c")]);
        assert_eq!(sent(&mut stream), b"");
        stream.fill(
            first,
            vec![Bytes::from_static(b"b1"), Bytes::from_static(b"b2")],
        );
        assert_eq!(sent(&mut stream), b"b1b2cd");
        assert_eq!(stream.queued_bytes(), 0);
        stream.fill(first, vec![Bytes::from_static(b"again")]);
        assert_eq!(stream.queued(), 0, "a place is filled once");
    }

    #[test]
    fn a_place_of_a_watcher_that_has_ended_holds_up_nothing() {
        let mut stream = Stream::default();
        stream.watches.insert(1, watch());
        let place = stream.keep_place(1, 100);
        stream.push(Bytes::from_static(b"canceled"), None);
        stream.watches.remove(&1);
        assert_eq!(sent(&mut stream), b"canceled");
        stream.fill(place, vec![Bytes::from_static(b"late")]);
        assert_eq!((stream.queued(), stream.queued_bytes()), (0, 0));
    }

    #[test]
    fn a_stream_that_has_to_end_sends_what_is_before_and_nothing_behind() {
        let mut stream = Stream::default();
        stream.watches.insert(1, watch());
        stream.push(Bytes::from_static(b"before"), Some(1));
        stream.keep_place(1, 100);
        stream.push(Bytes::from_static(b"behind"), Some(1));
        stream.break_off("first".to_owned());
        stream.break_off("second".to_owned());
        stream.push(Bytes::from_static(b"later"), Some(1));
        assert_eq!(sent(&mut stream), b"before");
        assert_eq!(stream.broken(), Some("first"));
    }
}
