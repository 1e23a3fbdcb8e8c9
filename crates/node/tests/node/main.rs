//! A member on a real directory.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod lives;
mod rig;
