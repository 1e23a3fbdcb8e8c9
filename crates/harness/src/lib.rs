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

pub use cluster::{Room, TestCluster};
pub use faulty::{DiskState, Faults, Part};
pub use log::LogLine;
pub use member::TestMember;
pub use ports::free_port;
pub use process::{Exit, Launch, Process};
pub use process_cluster::ProcessCluster;
