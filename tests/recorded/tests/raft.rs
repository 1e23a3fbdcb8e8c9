//! Replays the scripts of etcd-io/raft v3.7 against our state machine.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use keelson_recorded::raft_script::{Command, replay};
use keelson_recorded::raft_script_cluster::Cluster;
use keelson_recorded::raft_script_confchange::Changer;
use keelson_recorded::raft_script_quorum;

/// Replays every script of a folder, each against a fresh `runner`; all must agree.
fn replay_folder<F>(folder: &str, scripts_count: usize, runner: impl Fn() -> F)
where
    F: FnMut(&Command) -> anyhow::Result<String>,
{
    let data = std::env::var_os("KEELSON_DATA").expect("KEELSON_DATA names the recorded data");
    let folder = PathBuf::from(data).join("raft").join(folder);
    let mut scripts: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the recorded data has the consensus scripts")
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "txt"))
        .collect();
    scripts.sort();
    assert_eq!(scripts.len(), scripts_count, "{}", folder.display());
    let failed: Vec<String> = scripts
        .iter()
        .filter_map(|script| replay(script, runner()).err())
        .map(|error| format!("{error:#}"))
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {} scripts differ\n{}",
        failed.len(),
        scripts.len(),
        failed.join("\n\n")
    );
}

#[test]
fn majorities_decide_as_recorded() {
    replay_folder("quorum", 4, || raft_script_quorum::run);
}

#[test]
fn configuration_changes_lead_where_recorded() {
    replay_folder("confchange", 9, || {
        let mut changer = Changer::default();
        move |command: &Command| changer.run(command)
    });
}

#[test]
fn clusters_talk_as_recorded() {
    replay_folder("interaction", 28, || {
        let mut cluster = Cluster::default();
        move |command: &Command| cluster.run(command)
    });
}
