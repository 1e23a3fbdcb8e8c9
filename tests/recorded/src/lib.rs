//! Tests over files and calls recorded from real programs: traces, directories, client traffic.
//!
//! The recordings are not in this repository; `KEELSON_DATA` names the folder, and a test without it
//! fails. The library holds what the tests share: [`wire`] replays client traffic against a server.

pub mod dirs;
pub mod dirs_compare;
pub mod raft_script;
pub mod raft_script_cluster;
pub mod raft_script_confchange;
pub mod raft_script_quorum;
pub mod wire;

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The folder of the recordings, from `KEELSON_DATA`.
///
/// # Errors
/// When the variable is not set or names no folder.
pub fn data_folder() -> Result<PathBuf> {
    let folder = std::env::var_os("KEELSON_DATA")
        .map(PathBuf::from)
        .context("KEELSON_DATA must name the folder of the recordings")?;
    let folder = folder
        .canonicalize()
        .with_context(|| format!("KEELSON_DATA={}", folder.display()))?;
    Ok(folder)
}
