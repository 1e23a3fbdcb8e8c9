//! Scripts about majorities: committed indexes and votes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, bail, ensure};
use keelson_proto::ids::MemberId;
use keelson_raft::quorum::{JointConfig, MajorityConfig};

use crate::raft_script::Command;

type Said = BTreeMap<MemberId, u64>;

/// Runs one command.
///
/// # Errors
///
/// If the command cannot be understood.
pub fn run(command: &Command) -> anyhow::Result<String> {
    let mut order = Vec::new();
    let mut said = Vec::new();
    let mut config = JointConfig::default();
    let mut joint = false;
    for argument in &command.arguments {
        match argument.key.as_str() {
            "cfg" => config.incoming = members(&argument.values, &mut order)?,
            "cfgj" => {
                joint = true;
                if argument.values != ["zero"] {
                    config.outgoing = members(&argument.values, &mut order)?;
                }
            }
            "idx" | "votes" => said.clone_from(&argument.values),
            other => bail!("unknown argument {other}"),
        }
    }
    ensure!(order.len() == said.len(), "mismatched input: {said:?}");
    let said = order.into_iter().zip(said);
    let said = said.filter(|(_, word)| word != "_");
    if command.name == "vote" {
        return vote(&config, joint, said);
    }
    ensure!(command.name == "committed", "unknown command");
    let said = said
        .map(|(id, word)| Ok((id, word.parse().with_context(|| word)?)))
        .collect::<anyhow::Result<Said>>()?;
    Ok(committed(&config, joint, &said))
}

/// A set of voters; those that are new go to the end of `order`.
fn members(ids: &[String], order: &mut Vec<MemberId>) -> anyhow::Result<MajorityConfig> {
    let mut config = MajorityConfig::default();
    for id in ids {
        let id = MemberId(id.parse().with_context(|| id.clone())?);
        config.0.insert(id);
        if !order.contains(&id) {
            order.push(id);
        }
    }
    Ok(config)
}

fn swapped(config: &JointConfig) -> JointConfig {
    JointConfig {
        incoming: config.outgoing.clone(),
        outgoing: config.incoming.clone(),
    }
}

fn vote(
    config: &JointConfig,
    joint: bool,
    said: impl Iterator<Item = (MemberId, String)>,
) -> anyhow::Result<String> {
    let votes = said
        .map(|(id, word)| match word.as_str() {
            "y" => Ok((id, true)),
            "n" => Ok((id, false)),
            other => bail!("unknown vote {other}"),
        })
        .collect::<anyhow::Result<BTreeMap<_, _>>>()?;
    let votes = |id| votes.get(&id).copied();
    let result = if joint {
        config.vote_result(votes)
    } else {
        config.incoming.vote_result(votes)
    };
    ensure!(
        swapped(config).vote_result(votes) == result,
        "the halves of a joint configuration are equals"
    );
    Ok(format!("{result}\n"))
}

fn committed(config: &JointConfig, joint: bool, said: &Said) -> String {
    let acked = |id| said.get(&id).copied();
    let index = if joint {
        config.committed(acked)
    } else {
        config.incoming.committed(acked)
    };
    let mut text = bars(&config.ids().into_iter().collect::<Vec<_>>(), said);
    let also = [
        ("via zero-joint quorum", config.committed(acked)),
        ("via symmetry", swapped(config).committed(acked)),
    ];
    for (way, other) in also {
        if other != index {
            let _ = writeln!(text, "{} <-- {way}", shown(other));
        }
    }
    text + &shown(index) + "\n"
}

fn shown(index: u64) -> String {
    if index == u64::MAX {
        "\u{221e}".to_owned()
    } else {
        index.to_string()
    }
}

/// A drawing: the further a member is, the longer its bar.
fn bars(ids: &[MemberId], said: &Said) -> String {
    if ids.is_empty() {
        return "<empty majority quorum>".to_owned();
    }
    let reached = |id: &MemberId| said.get(id).copied().unwrap_or(0);
    let width = ids.len();
    let mut text = format!("{:width$}    idx\n", "");
    for id in ids {
        let index = reached(id);
        let behind = ids.iter().filter(|other| reached(other) < index).count();
        let bar = if said.contains_key(id) {
            format!("{}>", "x".repeat(behind))
        } else {
            "?".to_owned()
        };
        let _ = writeln!(text, "{bar:<0$} {index:>5}    (id={id})", width + 1);
    }
    text
}
