//! Scripts about configuration changes and the configuration that they lead to.

use anyhow::{Context, bail, ensure};
use keelson_proto::entry::{ConfChangeKind, ConfChangeSingle};
use keelson_proto::ids::{LogIndex, MemberId};
use keelson_raft::Tracker;

use crate::raft_script::Command;
use crate::raft_script_cluster::progress_lines;

/// `v1 l2 r3 u4`: a voter, a learner, nobody any more, the same with other addresses.
///
/// # Errors
///
/// If a word is none of these.
pub fn changes(text: &str) -> anyhow::Result<Vec<ConfChangeSingle>> {
    text.split_whitespace()
        .map(|word| {
            let (letter, id) = word.split_at_checked(1).context("an empty word")?;
            Ok(ConfChangeSingle {
                kind: match letter {
                    "v" => ConfChangeKind::AddNode,
                    "l" => ConfChangeKind::AddLearnerNode,
                    "r" => ConfChangeKind::RemoveNode,
                    "u" => ConfChangeKind::UpdateNode,
                    _ => bail!("unknown input: {word}"),
                },
                member: MemberId(id.parse().with_context(|| word.to_owned())?),
            })
        })
        .collect()
}

/// The state between the commands of a script.
#[derive(Debug)]
pub struct Changer {
    tracker: Tracker,
    /// One more with every command.
    last_index: LogIndex,
}

impl Default for Changer {
    fn default() -> Self {
        Changer {
            tracker: Tracker::new(10, 0),
            last_index: LogIndex(0),
        }
    }
}

impl Changer {
    /// Runs one command.
    ///
    /// # Errors
    ///
    /// If the command cannot be understood.
    pub fn run(&mut self, command: &Command) -> anyhow::Result<String> {
        let changes = changes(&command.input)?;
        let outcome = match command.name.as_str() {
            "simple" => self.tracker.simple(&changes, self.last_index),
            "enter-joint" => {
                let auto_leave = command.value("autoleave") == Some("true");
                self.tracker
                    .enter_joint(auto_leave, &changes, self.last_index)
            }
            "leave-joint" => {
                ensure!(changes.is_empty(), "this command takes no input");
                self.tracker.leave_joint()
            }
            other => bail!("unknown command {other}"),
        };
        self.last_index = self.last_index.next();
        Ok(match outcome {
            Err(refused) => format!("{refused}\n"),
            Ok(()) => format!(
                "{}\n{}",
                self.tracker.config(),
                progress_lines(self.tracker.progress())
            ),
        })
    }
}
