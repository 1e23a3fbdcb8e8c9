//! Clusters of members in one process, with a network in memory: elections, replication, reads,
//! snapshots, changes of the membership, and what is left when links are cut and members die.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod duties;
mod elections;
mod membership;
mod net;
mod orders;
mod replication;
mod rig;
mod snapshots;
