//! The replicated state machine: keys, leases, auth, membership, alarms.
