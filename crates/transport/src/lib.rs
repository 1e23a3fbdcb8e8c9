//! Listeners and peers.
//!
//! [`listener`] binds TCP and Unix sockets and gives their connections; it knows nothing of what is
//! spoken over them.

mod error;
pub mod listener;

pub use error::Error;
