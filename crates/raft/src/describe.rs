//! The text form of messages, entries and states that etcd's raft logs and its recorded scripts use.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Write as _};

use keelson_proto::entry::{
    ConfChange, ConfChangeKind, ConfChangeSingle, ConfChangeTransition, ConfChangeV2, ConfState,
    Entry, EntryKind, HardState, Snapshot,
};
use keelson_proto::ids::MemberId;
use keelson_proto::message::{Message, MessageKind};

use crate::node::{APPEND_THREAD, APPLY_THREAD, Ready};
use crate::progress::{Progress, ProgressState};
use crate::quorum::{JointConfig, MajorityConfig, VoteResult};
use crate::raft::{Role, SoftState};
use crate::tracker::Configuration;

/// The name of a kind of message, as etcd prints it.
#[must_use]
pub fn kind_name(kind: MessageKind) -> &'static str {
    match kind {
        MessageKind::Hup => "MsgHup",
        MessageKind::Beat => "MsgBeat",
        MessageKind::Prop => "MsgProp",
        MessageKind::App => "MsgApp",
        MessageKind::AppResp => "MsgAppResp",
        MessageKind::Vote => "MsgVote",
        MessageKind::VoteResp => "MsgVoteResp",
        MessageKind::Snap => "MsgSnap",
        MessageKind::Heartbeat => "MsgHeartbeat",
        MessageKind::HeartbeatResp => "MsgHeartbeatResp",
        MessageKind::Unreachable => "MsgUnreachable",
        MessageKind::SnapStatus => "MsgSnapStatus",
        MessageKind::CheckQuorum => "MsgCheckQuorum",
        MessageKind::TransferLeader => "MsgTransferLeader",
        MessageKind::TimeoutNow => "MsgTimeoutNow",
        MessageKind::ReadIndex => "MsgReadIndex",
        MessageKind::ReadIndexResp => "MsgReadIndexResp",
        MessageKind::PreVote => "MsgPreVote",
        MessageKind::PreVoteResp => "MsgPreVoteResp",
        MessageKind::StorageAppend => "MsgStorageAppend",
        MessageKind::StorageAppendResp => "MsgStorageAppendResp",
        MessageKind::StorageApply => "MsgStorageApply",
        MessageKind::StorageApplyResp => "MsgStorageApplyResp",
        MessageKind::ForgetLeader => "MsgForgetLeader",
    }
}

/// The name of a role, as etcd prints it.
#[must_use]
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Follower => "StateFollower",
        Role::Candidate => "StateCandidate",
        Role::Leader => "StateLeader",
        Role::PreCandidate => "StatePreCandidate",
    }
}

/// The ids with something between them.
pub(crate) fn list(ids: impl IntoIterator<Item = MemberId>, between: &str) -> String {
    let ids: Vec<String> = ids.into_iter().map(|id| id.to_string()).collect();
    ids.join(between)
}

/// Joins what is displayed with a space, or whatever else is between.
fn joined<T: Display>(items: impl IntoIterator<Item = T>, between: &str) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(between)
}

fn write_set(f: &mut fmt::Formatter<'_>, ids: &BTreeSet<MemberId>) -> fmt::Result {
    write!(f, "({})", list(ids.iter().copied(), " "))
}

/// `(1 2 3)`.
impl Display for MajorityConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_set(f, &self.0)
    }
}

/// `(1 2 3)`, or `(1 2)&&(1 3)` while joint.
impl Display for JointConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.incoming.fmt(f)?;
        if !self.outgoing.0.is_empty() {
            write!(f, "&&{}", self.outgoing)?;
        }
        Ok(())
    }
}

/// `voters=(1 2)&&(1 3) learners=(4) learners_next=(3) autoleave`, without what there is not.
impl Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "voters={}", self.voters)?;
        if !self.learners.is_empty() {
            f.write_str(" learners=")?;
            write_set(f, &self.learners)?;
        }
        if !self.learners_next.is_empty() {
            f.write_str(" learners_next=")?;
            write_set(f, &self.learners_next)?;
        }
        if self.auto_leave {
            f.write_str(" autoleave")?;
        }
        Ok(())
    }
}

/// `VotePending` and so on.
impl Display for VoteResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VoteResult::Pending => "VotePending",
            VoteResult::Lost => "VoteLost",
            VoteResult::Won => "VoteWon",
        })
    }
}

/// `StateProbe` and so on.
impl Display for ProgressState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProgressState::Probe => "StateProbe",
            ProgressState::Replicate => "StateReplicate",
            ProgressState::Snapshot => "StateSnapshot",
        })
    }
}

/// `StateReplicate match=4 next=6 inflight=1`, with what else is out of the ordinary.
impl Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Progress {
            state,
            match_index,
            next_index,
            ..
        } = self;
        write!(f, "{state} match={match_index} next={next_index}")?;
        if self.is_learner {
            f.write_str(" learner")?;
        }
        if self.is_paused() {
            f.write_str(" paused")?;
        }
        if self.pending_snapshot.0 > 0 {
            write!(f, " pendingSnap={}", self.pending_snapshot)?;
        }
        if !self.recent_active {
            f.write_str(" inactive")?;
        }
        let inflight = self.inflight_count();
        if inflight > 0 {
            write!(f, " inflight={inflight}")?;
            if self.inflight_full() {
                f.write_str("[full]")?;
            }
        }
        Ok(())
    }
}

/// `Lead:1 State:StateLeader`.
impl Display for SoftState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lead:{} State:{}", self.lead.0, role_name(self.role))
    }
}

/// A storage thread by its name, a member by its id.
fn target(id: MemberId) -> String {
    match id {
        MemberId::NONE => "None".to_owned(),
        APPEND_THREAD => "AppendThread".to_owned(),
        APPLY_THREAD => "ApplyThread".to_owned(),
        id => id.to_string(),
    }
}

/// Bytes in quotes, as Go prints them with `%q`.
#[must_use]
pub fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from('"');
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '"' | '\\' => text.extend(['\\', char]),
                '\x07' => text.push_str("\\a"),
                '\x08' => text.push_str("\\b"),
                '\x0c' => text.push_str("\\f"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\x0b' => text.push_str("\\v"),
                char if char.is_ascii_control() => push_hex(&mut text, u32::from(char)),
                char if char.is_control() => {
                    let _ = write!(text, "\\u{:04x}", u32::from(char));
                }
                char => text.push(char),
            }
        }
        for &byte in chunk.invalid() {
            push_hex(&mut text, u32::from(byte));
        }
    }
    text.push('"');
    text
}

fn push_hex(text: &mut String, byte: u32) {
    let _ = write!(text, "\\x{byte:02x}");
}

fn conf_change_kind_name(kind: ConfChangeKind) -> &'static str {
    match kind {
        ConfChangeKind::AddNode => "ConfChangeAddNode",
        ConfChangeKind::RemoveNode => "ConfChangeRemoveNode",
        ConfChangeKind::UpdateNode => "ConfChangeUpdateNode",
        ConfChangeKind::AddLearnerNode => "ConfChangeAddLearnerNode",
    }
}

/// `transition:ConfChangeTransitionAuto changes:{type:ConfChangeAddNode node_id:4}`.
pub(crate) fn describe_conf_change(change: &ConfChangeV2) -> String {
    let transition = match change.transition {
        ConfChangeTransition::Auto => "ConfChangeTransitionAuto",
        ConfChangeTransition::JointImplicit => "ConfChangeTransitionJointImplicit",
        ConfChangeTransition::JointExplicit => "ConfChangeTransitionJointExplicit",
    };
    let mut text = format!("transition:{transition}");
    for single in &change.changes {
        let kind = conf_change_kind_name(single.kind);
        let _ = write!(text, " changes:{{type:{kind} node_id:{}}}", single.member.0);
    }
    if !change.context.is_empty() {
        let _ = write!(text, " context:{}", quoted(&change.context));
    }
    text
}

/// `v1 l2 r3 u4`: voters, learners, removed, updated.
fn short_changes(changes: &[ConfChangeSingle]) -> String {
    let short = |single: &ConfChangeSingle| {
        let letter = match single.kind {
            ConfChangeKind::AddNode => 'v',
            ConfChangeKind::AddLearnerNode => 'l',
            ConfChangeKind::RemoveNode => 'r',
            ConfChangeKind::UpdateNode => 'u',
        };
        format!("{letter}{}", single.member.0)
    };
    joined(changes.iter().map(short), " ")
}

/// `Term:1 Vote:1 Commit:4`.
#[must_use]
pub fn hard_state(state: &HardState) -> String {
    let vote = if state.vote.is_none() {
        String::new()
    } else {
        format!(" Vote:{}", state.vote.0)
    };
    format!("Term:{}{vote} Commit:{}", state.term, state.commit)
}

/// `Voters:[1 2 3] VotersOutgoing:[] Learners:[] LearnersNext:[] AutoLeave:false`.
#[must_use]
pub fn conf_state(state: &ConfState) -> String {
    let ids = |ids: &[MemberId]| joined(ids.iter().map(|id| id.0), " ");
    format!(
        "Voters:[{}] VotersOutgoing:[{}] Learners:[{}] LearnersNext:[{}] AutoLeave:{}",
        ids(&state.voters),
        ids(&state.voters_outgoing),
        ids(&state.learners),
        ids(&state.learners_next),
        state.auto_leave
    )
}

/// `Index:11 Term:1 ConfState:...`.
#[must_use]
pub fn snapshot(snapshot: &Snapshot) -> String {
    format!(
        "Index:{} Term:{} ConfState:{}",
        snapshot.index,
        snapshot.term,
        conf_state(&snapshot.conf_state)
    )
}

/// `1/11 EntryNormal "data"`: term, index, kind and content.
#[must_use]
pub fn entry(entry: &Entry) -> String {
    let (kind, content) = match entry.kind {
        EntryKind::Normal => ("EntryNormal", quoted(&entry.data)),
        EntryKind::ConfChange => (
            "EntryConfChange",
            ConfChange::decode(entry.data.clone()).map_or_else(
                |error| error.to_string(),
                |change| {
                    short_changes(&[ConfChangeSingle {
                        kind: change.kind,
                        member: change.member,
                    }])
                },
            ),
        ),
        EntryKind::ConfChangeV2 => (
            "EntryConfChangeV2",
            ConfChangeV2::decode(entry.data.clone()).map_or_else(
                |error| error.to_string(),
                |change| short_changes(&change.changes),
            ),
        ),
    };
    let space = if content.is_empty() { "" } else { " " };
    format!("{}/{} {kind}{space}{content}", entry.term, entry.index)
}

/// One line an entry.
#[must_use]
pub fn entries(list: &[Entry]) -> String {
    list.iter().map(|one| entry(one) + "\n").collect()
}

/// `1->2 MsgApp Term:1 Log:1/10 Commit:11 Entries:[...]`, several lines if there is much in it.
#[must_use]
pub fn message(message: &Message) -> String {
    indented_message("", message)
}

fn indented_message(indent: &str, message: &Message) -> String {
    let mut text = format!(
        "{indent}{}->{} {} Term:{} Log:{}/{}",
        target(message.from),
        target(message.to),
        kind_name(message.kind),
        message.term,
        message.log_term,
        message.index
    );
    if message.reject {
        let _ = write!(text, " Rejected (Hint: {})", message.reject_hint);
    }
    if message.commit.0 != 0 {
        let _ = write!(text, " Commit:{}", message.commit);
    }
    if !message.vote.is_none() {
        let _ = write!(text, " Vote:{}", message.vote.0);
    }
    match message.entries.as_slice() {
        [] => {}
        [one] => {
            let _ = write!(text, " Entries:[{}]", entry(one));
        }
        several => {
            text.push_str(" Entries:[");
            for one in several {
                let _ = write!(text, "\n{indent}  {}", entry(one));
            }
            let _ = write!(text, "\n{indent}]");
        }
    }
    if let Some(held) = &message.snapshot {
        let _ = write!(text, "\n{indent}  Snapshot: {}", snapshot(held));
    }
    if !message.responses.is_empty() {
        text.push_str(" Responses:[");
        let deeper = format!("{indent}  ");
        for response in &message.responses {
            text.push('\n');
            text.push_str(&indented_message(&deeper, response));
        }
        let _ = write!(text, "\n{indent}]");
    }
    text
}

/// All of a [`Ready`], or `<empty Ready>`.
#[must_use]
pub fn ready(ready: &Ready) -> String {
    let mut text = String::new();
    if let Some(state) = &ready.soft_state {
        let _ = writeln!(text, "{state}");
    }
    if let Some(state) = &ready.hard_state {
        let _ = writeln!(text, "HardState {}", hard_state(state));
    }
    if !ready.read_states.is_empty() {
        let states = ready.read_states.iter().map(|state| {
            let context = joined(&state.context, " ");
            format!("{{{} [{context}]}}", state.index)
        });
        let _ = writeln!(text, "ReadStates [{}]", joined(states, " "));
    }
    if !ready.entries.is_empty() {
        let _ = write!(text, "Entries:\n{}", entries(&ready.entries));
    }
    if let Some(held) = &ready.snapshot {
        let _ = writeln!(text, "Snapshot {}", snapshot(held));
    }
    if !ready.committed_entries.is_empty() {
        let committed = entries(&ready.committed_entries);
        let _ = write!(text, "CommittedEntries:\n{committed}");
    }
    if !ready.messages.is_empty() {
        text.push_str("Messages:\n");
        for sent in &ready.messages {
            let _ = writeln!(text, "{}", message(sent));
        }
    }
    if text.is_empty() {
        "<empty Ready>".to_owned()
    } else {
        format!("Ready MustSync={}:\n{text}", ready.must_sync)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_quoted_as_go_quotes_them() {
        assert_eq!(quoted(b"put \"a\\b\"\n"), r#""put \"a\\b\"\n""#);
        assert_eq!(quoted(b"\x00\x1f\xff"), r#""\x00\x1f\xff""#);
        assert_eq!(quoted("gr\u{fc}n".as_bytes()), "\"gr\u{fc}n\"");
    }
}
