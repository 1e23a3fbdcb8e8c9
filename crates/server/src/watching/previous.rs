//! Values that live events replaced: from memory where they are, else read by the pool.

use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::rpc::etcdserverpb::ResponseHeader;
use keelson_store::watch::{self, StreamId};
use keelson_store::{Error, EventRecord, Revision, Shared};

use super::stream::{Place, Stream};
use super::{Hub, lock, response, unreadable};
use crate::pool::Pool;

/// Bytes that are read at once, about.
const BATCH_BYTES: usize = 4 << 20;

/// What a value costs the reader pool beyond its bytes: the pages on the way to it.
const PLACE_COST: u64 = 4 << 10;

/// Events of one watcher and revision whose replaced values are to be read.
pub(super) struct Wanted {
    pub(super) stream: StreamId,
    /// Where they stand among the stream's responses.
    pub(super) place: Place,
    pub(super) watch_id: i64,
    pub(super) header: ResponseHeader,
    /// The size from which on the response is cut, if the watcher takes pieces.
    pub(super) fragment: Option<usize>,
    pub(super) events: Vec<EventRecord>,
    /// Where the value that each replaced stands.
    pub(super) places: Vec<Option<Revision>>,
    /// The bytes of all of them.
    pub(super) bytes: usize,
}

/// What is known without waiting for a disk.
pub(super) enum Found {
    /// The value that each event replaced; nothing for those that replaced none.
    Here(Vec<Option<Bytes>>),
    /// Some lie in the file.
    Elsewhere {
        /// Where the value of each event stands.
        places: Vec<Option<Revision>>,
        /// The bytes of all of them.
        bytes: usize,
    },
}

/// Looks for the values that events replaced, in the index and in memory.
///
/// # Errors
///
/// Memory that lacks what is not compacted.
pub(super) fn look(shared: &Shared, events: &[&EventRecord]) -> Result<Found, Error> {
    let mut places = Vec::with_capacity(events.len());
    let mut bytes = 0;
    for event in events {
        let state = watch::previous_place(shared, event)?;
        bytes += state.map_or(0, |state| state.stored_len as usize);
        places.push(state.map(|state| state.rev));
    }
    let view = shared.view();
    if !places.iter().flatten().all(|place| view.in_memory(*place)) {
        return Ok(Found::Elsewhere { places, bytes });
    }
    let values = events.iter().zip(&places).map(|(event, place)| {
        place.map_or(Ok(None), |place| {
            watch::previous_at(shared, &view, event, place)
        })
    });
    Ok(Found::Here(values.collect::<Result<_, _>>()?))
}

type Values = Result<Vec<Option<Bytes>>, Error>;

/// Reads the values. Waits for the disk.
fn values(shared: &Shared, wanted: &Wanted) -> Values {
    let view = shared.view();
    let places = wanted.events.iter().zip(&wanted.places);
    places
        .map(|(event, place)| {
            place.map_or(Ok(None), |place| {
                watch::previous_at(shared, &view, event, place)
            })
        })
        .collect()
}

/// Reads what is wanted on a thread's streams, batch after batch; runs on its runtime, without end.
pub(super) async fn read(hub: &Hub, shared: &Arc<Shared>, pool: &Pool) {
    loop {
        hub.wanted.notified().await;
        while let Some(batch) = take(hub) {
            let bytes: u64 = batch
                .iter()
                .map(|it| it.bytes as u64 + PLACE_COST * it.places.len() as u64)
                .sum();
            let shared = Arc::clone(shared);
            let work = move || -> Vec<(Wanted, Values)> {
                let with_values = |wanted| {
                    let values = values(&shared, &wanted);
                    (wanted, values)
                };
                batch.into_iter().map(with_values).collect()
            };
            // The pool has stopped: so does the member.
            let Ok(read) = pool.run(bytes, work).await else {
                return;
            };
            fill(hub, read);
        }
    }
}

/// The next batch; what nobody waits for any more is left out.
fn take(hub: &Hub) -> Option<Vec<Wanted>> {
    let mut core = lock(&hub.core);
    let mut batch = Vec::new();
    let mut bytes = 0;
    while bytes < BATCH_BYTES
        && let Some(wanted) = core.wanted.pop_front()
    {
        let watches = |stream: &Stream| stream.watches.contains_key(&wanted.watch_id);
        match core.streams.get_mut(&wanted.stream) {
            Some(stream) if watches(stream) => {
                bytes += wanted.bytes;
                batch.push(wanted);
            }
            // A watcher may come to have its id: nothing may be waited for in its name.
            Some(stream) => stream.fill(wanted.place, Vec::new()),
            None => {}
        }
    }
    (!batch.is_empty()).then_some(batch)
}

fn fill(hub: &Hub, read: Vec<(Wanted, Values)>) {
    let mut core = lock(&hub.core);
    for (wanted, values) in read {
        let values = match values {
            Ok(values) => values,
            Err(error) => {
                tracing::error!(%error, "failed to read the previous values of events");
                core.break_stream(wanted.stream, &unreadable(&error));
                continue;
            }
        };
        if let Some(stream) = core.streams.get_mut(&wanted.stream) {
            let events: Vec<&EventRecord> = wanted.events.iter().collect();
            let Wanted {
                header,
                watch_id,
                fragment,
                ..
            } = wanted;
            let responses = response::events(&header, watch_id, &events, &values, fragment);
            stream.fill(wanted.place, responses);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use keelson_proto::entry::{Entry, EntryKind};
    use keelson_proto::ids::{LogIndex, Term};
    use keelson_proto::request;
    use keelson_proto::rpc::etcdserverpb::{
        CompactionRequest, InternalRaftRequest, PutRequest, WatchResponse,
    };
    use keelson_store::watch::{Filters, Spec};
    use keelson_store::{Answer, OpenOptions, Opened, Quota, open};
    use prost::Message as _;

    use super::super::{Watch, Watching};
    use super::*;
    use crate::grpc::splice;

    struct Bench {
        opened: Opened,
        watching: Watching,
        _dir: tempfile::TempDir,
    }

    impl Bench {
        /// A store whose first value is in the file alone, and a stream with one watcher.
        fn new() -> Bench {
            let dir = tempfile::tempdir().unwrap();
            let options = OpenOptions {
                bolt: OpenOptions::bolt(),
                quota: Quota::new(-1),
                lease_ttl_min: 2,
                lease_checkpoints: false,
            };
            let mut bench = Bench {
                opened: open(&dir.path().join("db"), &options).unwrap(),
                watching: Watching::new(1),
                _dir: dir,
            };
            bench.put("first");
            bench.opened.committer.set_window_bytes(0);
            let sealed = bench.opened.store.seal();
            bench.opened.committer.commit(&sealed).unwrap();
            let hub = &bench.watching.threads[0];
            let mut core = lock(&hub.core);
            let spec = Spec {
                key: b"k"[..].into(),
                range_end: [].into(),
                filters: Filters::default(),
                start: 1,
            };
            let handle = core.shard.add(StreamId(0), 1, spec);
            let mut stream = Stream::default();
            stream.watches.insert(
                1,
                Watch {
                    handle,
                    flags: Default::default(),
                    progress_notify: false,
                },
            );
            core.streams.insert(StreamId(0), stream);
            drop(core);
            bench
        }

        fn apply(&mut self, request: &InternalRaftRequest) {
            let entry = Entry {
                kind: EntryKind::Normal,
                term: Term(1),
                index: LogIndex(self.opened.store.applied().0.0 + 1),
                data: request::encode(request),
            };
            self.opened.store.apply(&entry, Answer::Unwanted).unwrap();
        }

        /// Puts the key, and returns the event.
        fn put(&mut self, value: &'static str) -> EventRecord {
            let put = Some(PutRequest {
                key: Bytes::from_static(b"k"),
                value: value.into(),
                ..PutRequest::default()
            });
            self.apply(&InternalRaftRequest {
                put,
                ..InternalRaftRequest::default()
            });
            let events = self.opened.store.take_events().unwrap();
            events.records.last().unwrap().clone()
        }

        fn hub(&self) -> &Hub {
            &self.watching.threads[0]
        }

        /// Sends an event as a batch would.
        fn send(&self, event: &EventRecord) {
            let mut core = lock(&self.hub().core);
            let header = ResponseHeader {
                revision: event.revision.main,
                ..ResponseHeader::default()
            };
            let events = vec![event.clone()];
            let found = look(self.opened.store.shared(), &[event]).unwrap();
            let stream = core.streams.get_mut(&StreamId(0)).unwrap();
            match found {
                Found::Here(values) => {
                    for bytes in response::events(&header, 1, &[event], &values, None) {
                        stream.push(bytes, Some(1));
                    }
                }
                Found::Elsewhere { places, bytes } => {
                    let place = stream.keep_place(1, bytes);
                    core.wanted.push_back(Wanted {
                        stream: StreamId(0),
                        place,
                        watch_id: 1,
                        header,
                        fragment: None,
                        events,
                        places,
                        bytes,
                    });
                    self.hub().wanted.notify_one();
                }
            }
        }

        /// What can be sent now: the value of each event, and of what it replaced.
        fn sent(&self) -> Vec<(Bytes, Option<Bytes>)> {
            let mut core = lock(&self.hub().core);
            let stream = core.streams.get_mut(&StreamId(0)).unwrap();
            let mut sent = Vec::new();
            while let Some(piece) = stream.next_piece() {
                let mut rest = Bytes::copy_from_slice(piece.chunk.bytes());
                while !rest.is_empty() {
                    let prefix = rest.split_to(splice::PREFIX);
                    let len = u32::from_be_bytes(prefix[1..].try_into().unwrap());
                    let response = WatchResponse::decode(rest.split_to(len as usize)).unwrap();
                    sent.extend(response.events.into_iter().map(|event| {
                        let value = event.kv.unwrap().value;
                        (value, event.prev_kv.map(|kv| kv.value))
                    }));
                }
            }
            sent
        }

        fn broken(&self) -> Option<String> {
            let core = lock(&self.hub().core);
            core.streams[&StreamId(0)].broken().map(str::to_owned)
        }

        /// Lets values be read until `done`.
        async fn read_until(&self, pool: &Pool, mut done: impl FnMut() -> bool) {
            let waiting = async {
                while !done() {
                    tokio::task::yield_now().await;
                }
            };
            let both = async {
                tokio::select! {
                    () = read(self.hub(), self.opened.store.shared(), pool) => {}
                    () = waiting => {}
                }
            };
            let deadline = Duration::from_secs(120);
            tokio::time::timeout(deadline, both).await.unwrap();
        }
    }

    #[tokio::test]
    async fn values_in_the_file_are_read_by_the_pool_and_events_keep_their_order() {
        let mut bench = Bench::new();
        let pool = Arc::new(Pool::start(1).unwrap());
        let (open, gate) = mpsc::channel::<()>();
        let busy = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.run(1, move || gate.recv().unwrap()).await }
        });
        tokio::task::yield_now().await;
        for value in ["second", "third"] {
            let event = bench.put(value);
            bench.send(&event);
        }
        let (mut polls, mut sent) = (0, Vec::new());
        bench
            .read_until(&pool, || {
                polls += 1;
                sent.extend(bench.sent());
                if polls == 100 {
                    assert!(lock(&bench.hub().core).wanted.is_empty(), "it is asked for");
                    assert_eq!(sent, [], "the pool is busy");
                    open.send(()).unwrap();
                }
                sent.len() == 2
            })
            .await;
        let value = |value: &'static str| Bytes::from_static(value.as_bytes());
        let expected = [
            (value("second"), Some(value("first"))),
            (value("third"), Some(value("second"))),
        ];
        assert_eq!(sent, expected);
        busy.await.unwrap().unwrap();
        pool.stop();
    }

    #[tokio::test]
    async fn a_value_that_is_compacted_meanwhile_is_left_out() {
        let mut bench = Bench::new();
        let pool = Pool::start(1).unwrap();
        let event = bench.put("second");
        bench.send(&event);
        // The place is known; then its value goes.
        lock(&bench.hub().core).wanted[0].places = vec![Some(Revision { main: 2, sub: 9 })];
        bench.apply(&InternalRaftRequest {
            compaction: Some(CompactionRequest {
                revision: event.revision.main,
                physical: false,
            }),
            ..InternalRaftRequest::default()
        });
        let mut sent = Vec::new();
        bench
            .read_until(&pool, || {
                sent.extend(bench.sent());
                !sent.is_empty()
            })
            .await;
        assert_eq!(sent, [(Bytes::from_static(b"second"), None)]);
        assert_eq!(bench.broken(), None);
        pool.stop();
    }

    #[tokio::test]
    async fn a_value_that_cannot_be_read_ends_the_stream_before_its_event() {
        let mut bench = Bench::new();
        let pool = Pool::start(1).unwrap();
        for value in ["second", "third"] {
            let event = bench.put(value);
            bench.send(&event);
        }
        lock(&bench.hub().core).wanted[0].places = vec![Some(Revision { main: 2, sub: 9 })];
        bench.read_until(&pool, || bench.broken().is_some()).await;
        let reason = bench.broken().unwrap();
        assert!(
            reason.starts_with("keelson: history could not be read: database file: "),
            "{reason}"
        );
        assert_eq!(bench.sent(), []);
        pool.stop();
    }
}
