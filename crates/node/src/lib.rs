//! A member without sockets: the consensus loop, its threads, boot and snapshots.
//!
//! [`Node`] is what the serving side sees. Inside, one thread owns each thing: the log thread the
//! write-ahead log, the commit thread the database file, the apply thread the store. The state machine of
//! raft ([`core`]) is behind a lock: whoever has something for it takes its next turn; so is the store's
//! writer, for turns that are shorter than waking its thread. They talk through [`mailbox::Mailbox`]es, and
//! a batch forms where the work waits.

mod apply;
mod auto_compaction;
mod beat;
mod boot;
mod bootstrap;
pub mod budget;
mod checker;
mod commit;
pub mod conf;
mod config;
mod consensus;
pub mod core;
pub mod corrupt;
mod duty;
mod env;
mod error;
mod force_new;
mod human;
mod links;
mod log;
pub mod mailbox;
pub mod memory_log;
mod monitor;
mod node;
mod old;
mod peek;
mod peers;
mod propose;
mod read;
mod receive;
mod replayed;
mod seats;
mod snapshot;
pub mod stats;
mod step;
mod stepped;
mod sync;
mod ticket;
mod turns;
mod versions;

pub use config::{AutoCompaction, Beginning, Config};
pub use env::{Clock, DatabasePosition, Env, Failed, OpenDatabase, Random, Removed, SystemClock};
pub use error::Error;
pub use human::HumanBytes;
pub use node::{Depths, Node, Order, Status};
pub use peers::{NoPeers, OutgoingSnapshot, Peers, Release};
pub use read::{Barrier, Gate};
pub use receive::SnapshotRefused;
pub use snapshot::SNAPSHOT_COUNT;
pub use stats::Stats;
pub use step::StepRefused;
pub use stepped::{Part, Stepped, Turn};
pub use ticket::{Asker, Duty, Replies, Reply, Ticket, Waiter, Watchers};
