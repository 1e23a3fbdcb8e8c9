//! Members inside of the test's process, where their disks, clocks and links can be made to fail.
//!
//! One program of all of them, since most of these tests wait more than they work.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod auth_races;
mod cluster;
mod corruption;
mod full_disk;
mod joining;
mod loads;
mod tls;
