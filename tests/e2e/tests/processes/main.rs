//! Members as processes: each is started, asked, stopped or killed, and started again.
//!
//! One program of all of them, since most of these tests wait more than they work.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod damage;
mod keys;
mod leases;
mod log;
mod peer_port;
mod peer_streams;
mod peer_tls;
mod port;
mod recovery;
mod server;
mod start;
mod watches;
