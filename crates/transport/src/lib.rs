//! Listeners and peers.
