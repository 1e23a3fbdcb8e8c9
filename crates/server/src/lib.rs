//! Sockets around a member: gRPC, HTTP, metrics, configuration.

pub mod config;
mod descriptors;
mod error;
mod grpc;
mod http;
pub mod logging;
mod member;
mod metrics;
mod peers;
mod pool;
mod run;
mod serving;
mod state;
mod tickets;
mod tokens;
pub mod url;
mod watching;

pub use error::Error;
pub use member::Member;
pub use run::serve;
