//! Tests over files and calls recorded from real programs.

pub mod dirs;
pub mod dirs_compare;
pub mod raft_script;
pub mod raft_script_cluster;
pub mod raft_script_confchange;
pub mod raft_script_quorum;
