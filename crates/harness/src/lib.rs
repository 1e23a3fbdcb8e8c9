//! Servers for tests: started on free ports in directories of their own, stopped, killed, started
//! again in the same place.
//!
//! [`Process`] runs a program that takes etcd's flags, ours or the real one.

mod log;
mod ports;
mod process;

pub use log::LogLine;
pub use ports::free_port;
pub use process::{Exit, Launch, Process};
