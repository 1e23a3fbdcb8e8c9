//! Watches: one shard a serving thread, and the fetching of history for watchers that lag.
//!
//! There is no central hub. A [`Shard`] owns the watchers of its thread's connections; apply sends
//! it the records of each batch. A watcher is *synced* (it gets what batches bring), *lagging* (it
//! is fed from history by [`fetch`], in chunks, until a chunk ends where the shard is), or ended by
//! compaction. One whose stream is full simply lags.
//!
//! Invariants:
//! 1. a watcher gets each event of its range from its start revision on exactly once, in revision
//!    order, and all events of one revision together;
//! 2. a shard's batches follow one another without a gap from the moment that it was opened at;
//! 3. nothing here waits: fetching is handed out as jobs and comes back as chunks.

mod catch_up;
mod interval;
mod matcher;
mod shard;

pub use catch_up::{Chunk, FETCH_BYTES, Fetched, Job, fetch};
pub use shard::{Filters, Flow, Handle, Shard, Spec, State, StreamId, Target};

use bytes::Bytes;

use crate::record::{self, RecordError};
use crate::{EventRecord, Revision, Shared};

/// The value that an event replaced or deleted, as it is stored; `None` for a key that was created
/// by the event, and where it has been compacted.
///
/// # Errors
///
/// A failing or damaged file.
pub fn previous(shared: &Shared, event: &EventRecord) -> Result<Option<Bytes>, crate::Error> {
    let peeked = crate::store::peek(&event.record.bytes)?;
    let main = event.revision.main;
    if !event.record.tombstone && peeked.create_revision == main {
        return Ok(None);
    }
    let at = Revision::end_of(main - 1);
    let Some(state) = shared.index().get(peeked.key, at) else {
        return Ok(None);
    };
    shared.record(state.rev)
}

/// The key of an event.
///
/// # Errors
///
/// A record that is damaged.
pub fn key(event: &EventRecord) -> Result<&[u8], RecordError> {
    Ok(record::peek(&event.record.bytes)?.key)
}
