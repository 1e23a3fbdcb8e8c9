//! The index: which revisions each key has had, and which of them a read at some revision sees.
//!
//! A counted B+tree of its own making. Leaves pack their keys, the common prefix once, beside the newest state of each
//! key; older revisions stand in a small vector only where there are some. Every subtree knows how many of its keys are
//! alive (`live`) and the latest revision at which one of them began or ended a life (`flipped`), so that counting a
//! range costs O(log n) wherever nothing flipped after the revision asked for.
//!
//! One [`IndexWriter`], held by apply, changes it; any number of [`IndexReader`]s read it, on any thread. Between them
//! stands one lock, which neither side holds for more than [`KEYS_PER_LOCK`] keys, nor to drop more than
//! [`REVISIONS_PER_LOCK`] revisions.
//!
//! Invariants:
//!
//! 1. The revisions of a key rise strictly. What a reader sees at a revision never changes by later writes, so a scan
//!    that lets go of the lock between two slices still sees one moment; half-done transactions are invisible because
//!    nobody reads at their revision yet.
//! 2. Reads are at revisions that are not compacted. A scan that a compaction may overtake has to look at the compact
//!    revision once more when it is done.
//! 3. A key stays in the tree until compaction takes its last revision.
//!
//! No values are held here, and no names of leases.

mod history;
mod key_range;
mod keys;
mod leaf;
mod prune;
mod reader;
mod tree;
mod writer;

pub use key_range::KeyRange;
pub use prune::{Progress, Pruner};
pub use reader::{Found, IndexReader, KeepSet, KeyState};
pub use writer::{IndexWriter, PutState, Restored};

/// Keys that are looked at, at most, while the lock is held once.
pub const KEYS_PER_LOCK: usize = 256;

/// Revisions that a compaction drops, at most, while the lock is held once: also of one key that has more of them.
pub const REVISIONS_PER_LOCK: usize = 8 << 10;
