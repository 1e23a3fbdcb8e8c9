//! The Raft algorithm as a pure state machine.
//!
//! A [`RawNode`] takes inputs (ticks, messages, proposals, answers of the own storage) and gives back
//! a [`Ready`]: what to write, what to apply and what to send. It owns no disk, socket, clock or
//! thread; time is a tick, randomness is a function that is passed in, and what it would log goes to
//! an [`EventSink`].
//!
//! Behaviour, message for message, is that of etcd-io/raft v3.7; the recorded scripts of that
//! implementation are replayed against this crate.
//!
//! Invariants that the crate leans on and asserts:
//!
//! 1. `applied <= applying <= committed <= last index`.
//! 2. An answer that counts towards an election or a commit (to an append, a vote, a pre-vote) leaves
//!    only after everything before it is durable. A lone voter is no exception: it counts its own
//!    vote and its own entries only once its storage has answered.
//! 3. A leader never overwrites its own entries, and commits only entries of its own term by counting.
//! 4. For each follower `match < next`.
//! 5. Learners and voters never overlap.

mod candidate;
pub mod confchange;
mod config;
pub mod describe;
mod error;
mod events;
mod follower;
mod inflights;
mod leader;
mod log;
mod node;
mod progress;
pub mod quorum;
mod raft;
mod read;
mod status;
mod storage;
mod tracker;
mod unstable;

pub use confchange::{AnyConfChange, ConfChangeError};
pub use config::{Config, ReadOnlyOption};
pub use error::{Error, StorageError};
pub use events::{EventSink, Level, TracingEvents};
pub use node::{APPEND_THREAD, APPLY_THREAD, RawNode, Ready, is_storage_thread};
pub use progress::{Progress, ProgressState};
pub use raft::{Draw, Role, SoftState};
pub use read::ReadState;
pub use status::{BasicStatus, Status};
pub use storage::{MemoryStorage, Storage};
pub use tracker::{Configuration, Tracker};
