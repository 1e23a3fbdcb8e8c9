//! Wire types of the etcd v3 API, consensus messages, log records, and the error table.
//!
//! The lowest floor: every other crate speaks these types, and this one knows nothing of ours.
//!
//! - [`rpc`] holds the generated messages and client stubs, one module a protobuf package.
//! - [`ids`] are the numbers that must not be mixed up.
//! - [`entry`] and [`message`] are the plain types of consensus and log, with their codec: the
//!   generated proto2 types, full of `Option`, stay inside this crate.
//! - [`request`] turns an entry's bytes into a request, and back; [`raw_v2`] reads those of etcd 3.5.
//! - [`response`] decodes the answers that nest.
//! - [`api_error`] is the table of errors that a client can see.

pub mod api_error;
mod deep;
pub mod entry;
mod error;
pub mod ids;
pub mod message;
pub mod raw_v2;
pub mod request;
pub mod response;
pub mod rpc;
mod scan;

pub use api_error::{ApiError, Code};
pub use error::Error;
