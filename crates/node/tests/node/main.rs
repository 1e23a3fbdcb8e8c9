//! A member on a real directory.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod boots;
mod compactions;
mod disk;
mod duties;
mod faults;
mod lives;
mod pasts;
mod rig;
mod seats;
mod snapshots;
mod stepped;
mod syncs;
mod tokens;
