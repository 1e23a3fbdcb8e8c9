//! Leases: what is replicated, and what only the leader keeps.
//!
//! [`Table`] belongs to apply: which leases there are, and which keys hang on them. [`Deadlines`]
//! is the leader's, volatile: when each lease runs out, and when its remaining time is to be
//! written down. Keep-alive touches the latter alone.

mod checkpoint;
mod deadlines;
mod keys;
mod table;
mod wheel;

pub use checkpoint::{CHECKPOINT_EVERY, CHECKPOINTS_PER_REQUEST};
pub use deadlines::{
    Deadlines, EXPIRED_PER_CHECK, EXPIRY_CHECK_EVERY, REVOKE_RETRY_EVERY, REVOKES_PER_SECOND,
    Remaining, Renewal, Ticks,
};
pub use keys::KeySet;
pub use table::{Lease, TTL_SECONDS_MAX, Table, ttl_seconds_min};
