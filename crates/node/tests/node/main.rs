//! A member on a real directory.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod boots;
mod compactions;
mod duties;
mod faults;
mod lives;
mod pasts;
mod rig;
mod snapshots;
mod stepped;
mod tokens;
