//! End-to-end tests: the program as a process, a client on the network.
//!
//! `KEELSON_E2E_BINARY` names another program to test, such as a real etcd: what the tests of
//! `keys.rs`, `leases.rs` and `recovery.rs` ask for is true of both.

use std::path::PathBuf;

mod certificates;
mod metrics;

pub use certificates::{Authority, Names};
pub use keelson_harness::{Exit, Launch, Process, ProcessCluster, patient};
pub use metrics::{counted, metrics};

/// Names the program to test.
pub const BINARY: &str = "KEELSON_E2E_BINARY";

/// How to start the program under test: `built`, which is ours, unless another is named.
#[must_use]
pub fn launch(built: &str) -> Launch {
    let binary = std::env::var_os(BINARY).map_or_else(|| PathBuf::from(built), PathBuf::from);
    Launch::new(binary)
}
