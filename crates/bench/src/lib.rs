//! A load generator for servers of the etcd v3 API, and what the load costs the server.
//!
//! [`Spec`] says what to do, [`run`] does it, [`Report`] is what was seen: throughput, latencies,
//! and with the server's process id its processor time for each operation and its memory.

mod idle;
mod lag;
mod load;
mod process;
mod report;
mod run;
mod spec;
mod watch;
mod work;

pub use process::Usage;
pub use report::{Latency, ProcessCost, Report, ServerCost};
pub use run::run;
pub use spec::{DEFAULT_ENDPOINT, Spec, Work};
