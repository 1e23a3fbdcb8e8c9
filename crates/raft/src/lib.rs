//! The Raft algorithm as a pure state machine.
