//! The replicated state machine: keys, leases, auth, membership, alarms.

pub mod index;
pub mod record;
pub mod revision;
