//! Events on their way from a batch to the streams of their watchers.
//!
//! Most often many watchers want the same events: what they are sent differs in the watcher's id alone, so
//! it is encoded once, and the queues of their streams share it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;

use keelson_store::watch::{Flow, StreamId, Target};
use keelson_store::{EventRecord, Revision};

use super::stream::Stream;
use super::{previous, response, unreadable};
use crate::grpc::watch_response::Encoded;
use crate::state::State;

/// Events on their way to synced watchers.
pub(super) struct Live<'a> {
    state: &'a State,
    streams: &'a mut BTreeMap<StreamId, Stream>,
    wanted: &'a mut VecDeque<previous::Wanted>,
    /// Streams that have to end, and why.
    failed: &'a mut Vec<(StreamId, String)>,
    /// What was encoded last, without the values that events replaced and with them: most often the next
    /// watcher wants the same.
    last: [Option<Ready>; 2],
}

/// Events that are encoded.
struct Ready {
    /// Which events these are.
    revisions: Vec<Revision>,
    encoded: Encoded,
}

impl<'a> Live<'a> {
    pub(super) fn new(
        state: &'a State,
        streams: &'a mut BTreeMap<StreamId, Stream>,
        wanted: &'a mut VecDeque<previous::Wanted>,
        failed: &'a mut Vec<(StreamId, String)>,
    ) -> Live<'a> {
        Live {
            state,
            streams,
            wanted,
            failed,
            last: Default::default(),
        }
    }

    /// Sends the events of one revision to a synced watcher.
    pub(super) fn send(&mut self, target: Target, revision: i64, events: &[&EventRecord]) -> Flow {
        let Some(stream) = self.streams.get_mut(&target.stream) else {
            return Flow::Taken;
        };
        if stream.is_full() {
            stream.blocked.push(target.handle);
            return Flow::Full;
        }
        let Some(watch) = stream.watches.get(&target.watch_id) else {
            return Flow::Taken;
        };
        let state = self.state;
        state
            .watching
            .events
            .fetch_add(events.len() as u64, Ordering::Relaxed);
        let max = state.settings.message_max();
        let last = &mut self.last[usize::from(watch.flags.prev_kv)];
        if let Some(ready) = last
            && ready.is_of(events)
            && !(watch.flags.fragment && ready.encoded.response_len(target.watch_id) >= max)
        {
            stream.push_events(target.watch_id, ready.encoded.clone());
            return Flow::Taken;
        }
        let header = state.header(revision);
        let fragment = watch.flags.fragment.then_some(max);
        let mut replaced = Vec::new();
        if watch.flags.prev_kv {
            match previous::look(state.shared(), events) {
                Ok(previous::Found::Here(values)) => replaced = values,
                Ok(previous::Found::Elsewhere { places, bytes }) => {
                    let own: usize = events.iter().map(|event| event.record.bytes.len()).sum();
                    self.wanted.push_back(previous::Wanted {
                        stream: target.stream,
                        place: stream.keep_place(target.watch_id, own + bytes),
                        watch_id: target.watch_id,
                        header,
                        fragment,
                        events: events.iter().map(|&event| event.clone()).collect(),
                        places,
                        bytes,
                    });
                    return Flow::Taken;
                }
                Err(error) => {
                    tracing::error!(%error, "failed to read the previous values of events");
                    let reason = unreadable(&error);
                    // At once: what comes next must not be sent without this.
                    stream.break_off(reason.clone());
                    self.failed.push((target.stream, reason));
                    return Flow::Taken;
                }
            }
        }
        match response::pieces(&header, target.watch_id, events, &replaced, fragment) {
            Some(pieces) => {
                for bytes in pieces {
                    stream.push(bytes, Some(target.watch_id));
                }
            }
            None => {
                let encoded = Encoded::new(&header, events, &replaced);
                stream.push_events(target.watch_id, encoded.clone());
                *last = Some(Ready::new(events, encoded));
            }
        }
        Flow::Taken
    }
}

impl Ready {
    fn new(events: &[&EventRecord], encoded: Encoded) -> Ready {
        Ready {
            revisions: events.iter().map(|event| event.revision).collect(),
            encoded,
        }
    }

    fn is_of(&self, events: &[&EventRecord]) -> bool {
        let revisions = events.iter().map(|event| &event.revision);
        revisions.eq(&self.revisions)
    }
}
