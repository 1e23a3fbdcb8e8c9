//! Listeners and peers.
//!
//! [`listener`] binds TCP and Unix sockets and gives their connections; it knows nothing of what is
//! spoken over them. [`Peers`] speaks etcd's own protocol with the other members of a cluster, on a
//! thread of its own; whoever starts it gives an [`Inbound`] that takes what they send, and
//! [`Routes`] for what else they ask for. [`PeerClient`] asks the same of others. [`tls`] holds the
//! certificates of both.

mod body;
mod client;
mod clock;
pub mod codec;
mod dial;
mod error;
mod handler;
mod inbound;
pub mod listener;
mod outbox;
mod peer;
mod peers;
mod pipeline;
mod probe;
mod serve;
mod snapshot;
pub mod stats;
mod status;
mod stream;
pub mod tls;
mod url;
mod version;

pub use client::{ClientError, HashKv, MemberInfo, MembersAnswer, PeerClient, VersionAnswer};
pub use error::Error;
pub use handler::{ROUTE_BODY_BYTES_MAX, RemoteAddress};
pub use inbound::{Inbound, RouteAnswer, Routes, SnapshotBody, SnapshotRefused, StepRefused};
pub use peers::{CONNECTIONS_MAX, Config, Peers, SILENCE_MAX};
pub use semver::Version;
pub use version::Versions;
