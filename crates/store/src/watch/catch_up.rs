//! History for watchers that lag: from the window in memory if it reaches back that far, else from
//! the file. A watcher of one key is fed through the index, others share a scan.

use std::sync::Arc;

use bytes::Bytes;

use super::shard::{Spec, Target};
use crate::index::KeyRange;
use crate::{Error, EventRecord, Record, Revision, Shared};

/// Main revisions that one chunk of history spans, at most.
const MAINS_MAX: usize = 1_000;

/// Bytes of records that a fetch reads, about, where memory is plenty.
pub const FETCH_BYTES: usize = 4 << 20;

/// Bytes of records that a single key gets at least, however many there are.
const KEY_BYTES_MIN: usize = 16 << 10;

/// What to fetch for one watcher.
#[derive(Clone, Debug)]
pub struct Job {
    /// For whom.
    pub target: Target,
    /// What it watches.
    pub spec: Spec,
    /// The first main revision.
    pub from: i64,
    /// Whether it wants the values that events replaced.
    pub previous: bool,
}

/// What was fetched for one watcher.
#[derive(Debug)]
pub struct Chunk {
    /// For whom.
    pub target: Target,
    /// What came of it.
    pub fetched: Fetched,
}

/// What came of a fetch.
#[derive(Debug)]
pub enum Fetched {
    /// Events in revision order, and the main revision up to which nothing is missing.
    Events {
        /// All events of their revisions that the watcher wants.
        events: Vec<EventRecord>,
        /// What each of them replaced, where there is something; empty where that is not wanted.
        previous: Vec<Option<Bytes>>,
        /// The last main revision that they cover.
        upto: i64,
    },
    /// Compaction has passed the watcher.
    Compacted {
        /// The compact revision.
        revision: i64,
    },
}

/// Fetches the next chunk of history for each job: about `bytes_max` of records for one scan that
/// serves all ranges, and as much for all single keys together, but some for each; of the values that events
/// replaced as much again. Reads the file: to be called where waiting for
/// a disk hurts nobody.
///
/// # Errors
///
/// A failing or damaged file.
pub fn fetch(shared: &Arc<Shared>, jobs: Vec<Job>, bytes_max: usize) -> Result<Vec<Chunk>, Error> {
    let (single, ranges): (Vec<Job>, Vec<Job>) = jobs
        .into_iter()
        .partition(|job| matches!(job.spec.range(), KeyRange::Single(_)));
    let mut chunks = Vec::with_capacity(single.len() + ranges.len());
    let key_bytes_max = (bytes_max / single.len().max(1)).max(KEY_BYTES_MIN);
    for job in single {
        let fetched = one_key(shared, &job, key_bytes_max)?;
        chunks.push(Chunk {
            target: job.target,
            fetched,
        });
    }
    if !ranges.is_empty() {
        scan(shared, ranges, bytes_max, &mut chunks)?;
    }
    Ok(chunks)
}

fn one_key(shared: &Arc<Shared>, job: &Job, bytes_max: usize) -> Result<Fetched, Error> {
    let upto = shared.revision();
    let mut places: Vec<(Revision, bool)> = Vec::new();
    let mut cut = None;
    let mut mains = 0;
    let end = Revision::end_of(upto);
    shared
        .index()
        .since(&job.spec.key, job.from, end, &mut |revision, tombstone| {
            if cut.is_some() {
                return;
            }
            if places
                .last()
                .is_none_or(|(last, _)| last.main != revision.main)
            {
                if mains == MAINS_MAX {
                    cut = Some(revision.main - 1);
                    return;
                }
                mains += 1;
            }
            places.push((revision, tombstone));
        });
    let view = shared.view();
    let mut events = Vec::with_capacity(places.len());
    let mut missing = None;
    let (mut bytes_read, mut last) = (0, 0);
    for (revision, tombstone) in places {
        if revision.main != last && bytes_read > bytes_max {
            cut = Some(revision.main - 1);
            break;
        }
        last = revision.main;
        match view.event(revision, tombstone)? {
            Some(bytes) => {
                bytes_read += bytes.len();
                let event = EventRecord {
                    revision,
                    record: Record { bytes, tombstone },
                };
                if job.spec.filters.pass(&event) {
                    events.push(event);
                }
            }
            None => missing = Some(revision),
        }
    }
    let compacted = shared.compact_revision();
    if job.from < compacted {
        return Ok(Fetched::Compacted {
            revision: compacted,
        });
    }
    // A value that the very transaction compacted to replaced again may have gone meanwhile.
    if missing.is_some_and(|revision| revision.main > compacted) {
        return Err(Error::Missing {
            what: "a record that the index names",
        });
    }
    events_of(shared, job, events, cut.unwrap_or(upto), bytes_max)
}

/// What was fetched, with the values that the events replaced if the job wants them: then up to about
/// `bytes_max` of those, and only the main revisions that they belong to.
fn events_of(
    shared: &Shared,
    job: &Job,
    mut events: Vec<EventRecord>,
    mut upto: i64,
    bytes_max: usize,
) -> Result<Fetched, Error> {
    let mut previous = Vec::new();
    if job.previous {
        let view = shared.view();
        let (mut bytes_read, mut last) = (0, 0);
        let mut cut = events.len();
        for (at, event) in events.iter().enumerate() {
            let main = event.revision.main;
            if main != last && bytes_read > bytes_max {
                (cut, upto) = (at, main - 1);
                break;
            }
            last = main;
            let value = match super::previous_place(shared, event)? {
                Some(state) => super::previous_at(shared, &view, event, state.rev)?,
                None => None,
            };
            bytes_read += value.as_ref().map_or(0, Bytes::len);
            previous.push(value);
        }
        events.truncate(cut);
    }
    Ok(Fetched::Events {
        events,
        previous,
        upto,
    })
}

/// One scan from the earliest start serves every job that starts before it ends.
fn scan(
    shared: &Arc<Shared>,
    jobs: Vec<Job>,
    bytes_max: usize,
    chunks: &mut Vec<Chunk>,
) -> Result<(), Error> {
    let upto = shared.revision();
    let compacted = shared.compact_revision();
    let from = jobs
        .iter()
        .map(|job| job.from)
        .filter(|from| *from >= compacted)
        .min();
    let (events, last) = match from {
        Some(from) => shared.view().scan(from, upto, MAINS_MAX, bytes_max)?,
        None => (Vec::new(), upto),
    };
    // Each key is looked for once, however many jobs ask whether it is theirs.
    let keys = events
        .iter()
        .map(|event| Ok(crate::store::peek(&event.record.bytes)?.key))
        .collect::<Result<Vec<_>, Error>>()?;
    let compacted = shared.compact_revision();
    let job_bytes_max = (bytes_max / jobs.len().max(1)).max(KEY_BYTES_MIN);
    for job in jobs {
        let fetched = if job.from < compacted {
            Fetched::Compacted {
                revision: compacted,
            }
        } else {
            let first = events.partition_point(|event| event.revision.main < job.from);
            let range = job.spec.range();
            let is_wanted = |key: &[u8], event: &EventRecord| {
                range.contains(key) && job.spec.filters.pass(event)
            };
            let from_first = keys.iter().zip(&events).skip(first);
            let wanted = from_first
                .filter(|(key, event)| is_wanted(key, event))
                .map(|(_, event)| event.clone())
                .collect();
            // A job that starts past the scan's end has nothing yet, and is missing nothing.
            events_of(shared, &job, wanted, last.max(job.from - 1), job_bytes_max)?
        };
        chunks.push(Chunk {
            target: job.target,
            fetched,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use keelson_proto::entry::{Entry, EntryKind};
    use keelson_proto::ids::{LogIndex, Term};
    use keelson_proto::request;
    use keelson_proto::rpc::etcdserverpb::{
        DeleteRangeRequest, InternalRaftRequest, PutRequest, RequestOp, TxnRequest, request_op,
    };

    use super::super::shard::{Filters, Shard, StreamId};
    use super::*;
    use crate::{Answer, OpenOptions, Opened, Quota, open_db};

    const KEYS: usize = 40;
    const VALUE: usize = 10_000;

    /// Forty keys with values, each deleted again, two of them by one transaction.
    fn deleted() -> Opened {
        let options = OpenOptions {
            bolt: OpenOptions::bolt(),
            quota: Quota::new(-1),
            lease_ttl_min: 2,
            lease_checkpoints: false,
        };
        let storage = Box::new(keelson_bolt::MemStorage::default());
        let db = keelson_bolt::Db::open_storage(storage, options.bolt.clone()).unwrap();
        let mut opened = open_db(db, None, &options).unwrap();
        let mut index = 0;
        let mut apply = |request: InternalRaftRequest| {
            index += 1;
            let entry = Entry {
                kind: EntryKind::Normal,
                term: Term(1),
                index: LogIndex(index),
                data: request::encode(&request),
            };
            opened.store.apply(&entry, Answer::Unwanted).unwrap();
        };
        let key = |at: usize| Bytes::from(format!("{at:02}"));
        for at in 0..KEYS {
            let put = Some(PutRequest {
                key: key(at),
                value: vec![0; VALUE].into(),
                ..PutRequest::default()
            });
            apply(InternalRaftRequest {
                put,
                ..InternalRaftRequest::default()
            });
        }
        for at in (0..KEYS).step_by(2) {
            let delete = |at| RequestOp {
                request: Some(request_op::Request::RequestDeleteRange(
                    DeleteRangeRequest {
                        key: key(at),
                        ..DeleteRangeRequest::default()
                    },
                )),
            };
            let txn = Some(TxnRequest {
                success: vec![delete(at), delete(at + 1)],
                ..TxnRequest::default()
            });
            apply(InternalRaftRequest {
                txn,
                ..InternalRaftRequest::default()
            });
        }
        opened
    }

    #[test]
    fn replaced_values_are_bounded_and_cut_between_main_revisions() {
        let opened = deleted();
        let shared = opened.store.shared();
        let mut shard = Shard::default();
        shard.open_at(shared.revision());
        let spec = Spec {
            key: [0].into(),
            range_end: [0].into(),
            filters: Filters {
                no_put: true,
                no_delete: false,
            },
            start: 1,
        };
        shard.add(StreamId(0), 0, spec);
        let (mut seen, mut chunks) = (0, 0);
        while shard.wants_history() {
            let mut jobs = shard.jobs(1);
            jobs[0].previous = true;
            let chunk = fetch(shared, jobs, 45_000).unwrap().pop().unwrap();
            let Fetched::Events {
                events,
                previous,
                upto,
            } = chunk.fetched
            else {
                panic!("nothing is compacted")
            };
            assert_eq!(events.len(), previous.len());
            assert!(events.len().is_multiple_of(2), "whole main revisions");
            assert!(
                events.len() <= 6,
                "as much as was allowed, and what goes with it"
            );
            assert!(previous.iter().flatten().all(|value| value.len() > VALUE));
            assert_eq!(previous.iter().flatten().count(), events.len());
            assert!(events.last().is_none_or(|last| last.revision.main <= upto));
            seen += events.len();
            chunks += 1;
            shard.fetched(chunk.target.handle, upto, !events.is_empty());
        }
        assert_eq!(seen, KEYS);
        assert!(chunks >= KEYS / 6);
    }
}
