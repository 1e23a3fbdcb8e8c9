//! The replicated state machine: keys, leases, auth, membership, alarms.

pub mod alarm;
pub mod quota;
pub mod row;
