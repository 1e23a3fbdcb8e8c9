//! The replicated state machine: keys, leases, auth, membership, alarms.

pub mod v2json;
