//! The replicated state machine: keys, leases, auth, membership, alarms.

pub mod alarm;
pub mod auth;
pub mod lease;
pub mod member;
pub mod quota;
pub mod row;
