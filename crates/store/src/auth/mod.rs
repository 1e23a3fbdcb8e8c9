//! Users, roles, and the one check of who may do what.
//!
//! [`AuthState`] is the replicated state; [`need()`] says what a request needs, [`permit`] whether
//! somebody has it. Tokens are not known here: a caller comes as [`Who`].

mod need;
mod password;
mod permit;
mod ranges;
mod sort;
mod state;
pub(crate) mod told;
mod tree;

pub use need::{Access, KeyNeed, LeaseKeys, Need, before_proposal, need, need_of_txn};
pub use password::{COST_DEFAULT, PASSWORD_BYTES_MAX, hash, propose_hash, verify};
pub use permit::{Who, is_current, permit, permit_entry};
pub use state::{AuthState, ROOT};
