//! Replays recorded client traffic against a server and reports every difference.
//!
//! A recording is a file of JSON Lines: first the flags of the server, then calls, stream events and
//! HTTP requests in order (`wire/README.md` beside the recordings). Answers are decoded with the
//! schema in `crates/proto/proto` into protobuf's JSON form and compared with the recorded JSON, so
//! that a difference has a field path. What varies from run to run is named in [`compare`].

pub mod call;
pub mod compare;
mod fill;
mod members;
mod peer_port;
pub mod replay;
pub mod schema;
pub mod script;
pub mod server;
mod snapshot;

pub use peer_port::replay_peer_port;
pub use replay::replay;
