//! What members of etcd 3.5, 3.6 and 3.7 said to one another, read and written by our transport; and
//! what etcd's peer port answered, asked of ours.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "peer/port.rs"]
mod port;
#[path = "peer/streams.rs"]
mod streams;
