//! The locks of what is checked under all interleavings: the mailboxes, and whose turn it is.
//!
//! They come from here, so that the check can put its own in their place (`turns/interleave.rs`).

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, TryLockError};
#[cfg(not(shuttle))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, TryLockError};
