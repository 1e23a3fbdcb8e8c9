//! Sockets around a member: gRPC, HTTP, metrics, configuration.

pub mod config;
pub mod logging;
pub mod url;
