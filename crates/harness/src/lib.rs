//! Servers for tests: started on free ports in directories of their own, stopped, killed, started
//! again in the same place.
//!
//! [`TestMember`] runs a member inside the test, [`TestCluster`] several with links that can be cut,
//! [`Process`] a program that takes etcd's flags, ours or the real one, [`ProcessCluster`] several of
//! them.

mod cluster;
mod faulty;
mod link;
mod log;
mod member;
mod ports;
mod process;
mod process_cluster;
pub mod wait;

use keelson_client::Options;

pub use cluster::{Room, TestCluster};
pub use faulty::{DiskState, Faults, Part};
pub use log::LogLine;
pub use member::TestMember;
pub use ports::free_port;
pub use process::{Exit, Launch, Process};
pub use process_cluster::ProcessCluster;

/// What clients of tests are made with: a call takes as long as the machine needs, and an election is part
/// of it.
#[must_use]
pub fn patient() -> Options {
    let mut options = Options::default();
    options.connect_timeout = wait::PATIENCE / 4;
    options.call_timeout = wait::PATIENCE;
    options
}
