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

use crate::index::KeyState;
use crate::record::{self, RecordError};
use crate::{EventRecord, Revision, Shared, View};

/// Where the value stands that an event replaced or deleted, and its length, from the index alone;
/// `None` for a key that the event's transaction created, and where it has been compacted.
///
/// # Errors
///
/// An event that is damaged.
pub fn previous_place(
    shared: &Shared,
    event: &EventRecord,
) -> Result<Option<KeyState>, crate::Error> {
    let peeked = crate::store::peek(&event.record.bytes)?;
    let main = event.revision.main;
    if !event.record.tombstone && peeked.create_revision == main {
        return Ok(None);
    }
    let at = Revision::end_of(main - 1);
    Ok(shared.index().get(peeked.key, at))
}

/// The value at a place that [`previous_place`] has named; `None` only where compaction has taken it since.
/// May wait for the disk, unless the view holds the place [in memory](View::in_memory).
///
/// # Errors
///
/// A failing file, or a damaged one, which lacks what is not compacted.
pub fn previous_at(
    shared: &Shared,
    view: &View,
    event: &EventRecord,
    place: Revision,
) -> Result<Option<Bytes>, crate::Error> {
    let value = view.record(place)?;
    // What the event replaced stays until a compaction reaches the event.
    if value.is_none() && shared.compact_revision() < event.revision.main {
        return Err(crate::Error::missing_record(place));
    }
    Ok(value)
}

/// The value that an event replaced or deleted, as it is stored; `None` for a key that was created
/// by the event, and where it has been compacted. May wait for the disk.
///
/// # Errors
///
/// A failing or damaged file.
pub fn previous(shared: &Shared, event: &EventRecord) -> Result<Option<Bytes>, crate::Error> {
    let Some(state) = previous_place(shared, event)? else {
        return Ok(None);
    };
    previous_at(shared, &shared.view(), event, state.rev)
}

/// The key of an event.
///
/// # Errors
///
/// A record that is damaged.
pub fn key(event: &EventRecord) -> Result<&[u8], RecordError> {
    Ok(record::peek(&event.record.bytes)?.key)
}
