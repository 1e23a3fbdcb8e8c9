//! History for watchers that lag: from the window in memory if it reaches back that far, else from
//! the file. A watcher of one key is fed through the index, others share a scan.

use std::sync::Arc;

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
/// serves all ranges, and as much for all single keys together, but some for each. Reads the file: to be called where waiting for
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
    Ok(Fetched::Events {
        events,
        upto: cut.unwrap_or(upto),
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
    let compacted = shared.compact_revision();
    for job in jobs {
        let fetched = if job.from < compacted {
            Fetched::Compacted {
                revision: compacted,
            }
        } else {
            let mut wanted = Vec::new();
            for event in &events {
                if event.revision.main >= job.from
                    && job
                        .spec
                        .range()
                        .contains(crate::store::peek(&event.record.bytes)?.key)
                    && job.spec.filters.pass(event)
                {
                    wanted.push(event.clone());
                }
            }
            // A job that starts past the scan's end has nothing yet, and is missing nothing.
            Fetched::Events {
                events: wanted,
                upto: last.max(job.from - 1),
            }
        };
        chunks.push(Chunk {
            target: job.target,
            fetched,
        });
    }
    Ok(())
}
