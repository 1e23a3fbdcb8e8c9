//! Sockets around a member: gRPC, HTTP, metrics, configuration.

mod addresses;
pub mod config;
mod descriptors;
mod error;
mod grpc;
mod hashing;
mod http;
mod leader;
pub mod logging;
mod member;
mod metrics;
mod peers;
mod pool;
mod residency;
mod run;
mod serving;
mod state;
mod tickets;
mod tls;
mod tokens;
pub mod url;
mod watching;

pub use error::Error;
pub use member::Member;
pub use run::{serve, serve_in};
pub use serving::serve_bare;

/// The wire tests' client serves the tests of this crate's inside too.
#[cfg(test)]
extern crate self as keelson_server;
#[cfg(test)]
#[path = "../tests/wire/mod.rs"]
mod wire;
