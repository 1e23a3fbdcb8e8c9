//! Waiting for a condition, with an end.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

/// The longest that anything is waited for, on a machine that has other work.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(5);

/// What `look` finds, as soon as it finds something.
///
/// # Errors
/// If that takes longer than anything may.
pub fn until<T>(mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("not within {PATIENCE:?}");
        }
        thread::sleep(POLL);
    }
}
