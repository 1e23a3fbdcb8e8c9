//! Entries, hard state and configurations: plain types, with their codec.
//!
//! The wire form is proto2 with explicit presence; an absent field means zero, which is what older
//! writers write out in full. We write what etcd 3.7 writes: fields that are set.

use bytes::{BufMut, Bytes};
use prost::Message as _;

use crate::Error;
use crate::ids::{LogIndex, MemberId, Term};
use crate::rpc::raftpb;

/// What an entry's data is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A request, or nothing at all at the start of a term.
    #[default]
    Normal,
    /// A [`ConfChange`].
    ConfChange,
    /// A [`ConfChangeV2`]; etcd never writes one.
    ConfChangeV2,
}

/// One position of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// What `data` is.
    pub kind: EntryKind,
    /// The term in which it was proposed.
    pub term: Term,
    /// Its position.
    pub index: LogIndex,
    /// Its content; empty for the entry that opens a term.
    pub data: Bytes,
}

/// What a member must not forget before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term seen.
    pub term: Term,
    /// Whom it voted for in that term, if anybody.
    pub vote: MemberId,
    /// The last index known to be committed; may lag.
    pub commit: LogIndex,
}

/// A configuration: who votes and who learns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfState {
    /// Voters of the configuration, or of the incoming one while it is joint.
    pub voters: Vec<MemberId>,
    /// Members that are sent the log and do not vote.
    pub learners: Vec<MemberId>,
    /// Voters of the outgoing configuration while it is joint.
    pub voters_outgoing: Vec<MemberId>,
    /// Outgoing voters that become learners when the joint configuration is left.
    pub learners_next: Vec<MemberId>,
    /// Whether a joint configuration is left by itself.
    pub auto_leave: bool,
}

/// What a configuration change does to its member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ConfChangeKind {
    /// Adds a voter, or makes a learner one.
    #[default]
    AddNode,
    /// Removes a member.
    RemoveNode,
    /// Changes the member's addresses; nothing for consensus.
    UpdateNode,
    /// Adds a learner, or makes a voter one.
    AddLearnerNode,
}

/// A change of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfChange {
    /// The request that it answers.
    pub id: u64,
    /// What it does.
    pub kind: ConfChangeKind,
    /// To whom; nobody makes it a change of nothing.
    pub member: MemberId,
    /// The member's description, for those who keep it.
    pub context: Bytes,
}

/// How a change of several members is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ConfChangeTransition {
    /// By a joint configuration where one is needed, which is left by itself.
    #[default]
    Auto,
    /// By a joint configuration that is left by itself.
    JointImplicit,
    /// By a joint configuration that is left by another change.
    JointExplicit,
}

/// One step of a [`ConfChangeV2`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfChangeSingle {
    /// What it does.
    pub kind: ConfChangeKind,
    /// To whom.
    pub member: MemberId,
}

/// A change of several members at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfChangeV2 {
    /// How it is carried out.
    pub transition: ConfChangeTransition,
    /// Its steps; none leaves a joint configuration.
    pub changes: Vec<ConfChangeSingle>,
    /// The members' description, for those who keep it.
    pub context: Bytes,
}

/// A snapshot of the state that the log made, as consensus sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Content that consensus does not look at.
    pub data: Bytes,
    /// The configuration as of `index`.
    pub conf_state: ConfState,
    /// The last entry that is in it; 0 for no snapshot.
    pub index: LogIndex,
    /// The term of that entry.
    pub term: Term,
}

fn decoded<T>(what: &'static str, result: Result<T, prost::DecodeError>) -> Result<T, Error> {
    result.map_err(|source| Error::Decode { what, source })
}

fn ids(list: &[u64]) -> Vec<MemberId> {
    list.iter().copied().map(MemberId).collect()
}

fn numbers(list: &[MemberId]) -> Vec<u64> {
    list.iter().map(|id| id.0).collect()
}

/// `None` for zero, so that the field is left out.
pub(crate) fn nonzero(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

pub(crate) fn nonempty(bytes: &Bytes) -> Option<Bytes> {
    (!bytes.is_empty()).then(|| bytes.clone())
}

impl Entry {
    /// The bytes that the data takes up; what limits on entries count.
    #[must_use]
    pub fn data_bytes(&self) -> usize {
        self.data.len()
    }

    /// The length of its encoding, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        raftpb::Entry::from(self).encoded_len()
    }

    /// Appends its encoding to `buffer`.
    ///
    /// # Panics
    ///
    /// If `buffer` cannot grow to hold it.
    pub fn encode(&self, buffer: &mut impl BufMut) {
        raftpb::Entry::from(self)
            .encode(buffer)
            .expect("the buffer grows, so only a bounded one can run out of room");
    }

    /// Decodes an entry; its data shares the buffer of `bytes`.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] and [`Error::UnknownKind`].
    pub fn decode(bytes: Bytes) -> Result<Entry, Error> {
        decoded("raftpb.Entry", raftpb::Entry::decode(bytes))?.try_into()
    }
}

impl From<&Entry> for raftpb::Entry {
    fn from(entry: &Entry) -> Self {
        raftpb::Entry {
            r#type: match entry.kind {
                EntryKind::Normal => None,
                EntryKind::ConfChange => Some(raftpb::EntryType::EntryConfChange.into()),
                EntryKind::ConfChangeV2 => Some(raftpb::EntryType::EntryConfChangeV2.into()),
            },
            term: Some(entry.term.0),
            index: Some(entry.index.0),
            data: nonempty(&entry.data),
        }
    }
}

impl TryFrom<raftpb::Entry> for Entry {
    type Error = Error;

    fn try_from(wire: raftpb::Entry) -> Result<Self, Error> {
        let number = wire.r#type.unwrap_or_default();
        let kind = match raftpb::EntryType::try_from(number) {
            Ok(raftpb::EntryType::EntryNormal) => EntryKind::Normal,
            Ok(raftpb::EntryType::EntryConfChange) => EntryKind::ConfChange,
            Ok(raftpb::EntryType::EntryConfChangeV2) => EntryKind::ConfChangeV2,
            Err(_) => {
                return Err(Error::UnknownKind {
                    what: "entry type",
                    number: number.into(),
                });
            }
        };
        Ok(Entry {
            kind,
            term: Term(wire.term.unwrap_or_default()),
            index: LogIndex(wire.index.unwrap_or_default()),
            data: wire.data.unwrap_or_default(),
        })
    }
}

impl HardState {
    /// Whether nothing has happened yet: such a state is never written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == HardState::default()
    }

    /// Appends its encoding to `buffer`; all fields are written, as every version of etcd does.
    ///
    /// # Panics
    ///
    /// If `buffer` cannot grow to hold it.
    pub fn encode(&self, buffer: &mut impl BufMut) {
        raftpb::HardState {
            term: Some(self.term.0),
            vote: Some(self.vote.0),
            commit: Some(self.commit.0),
        }
        .encode(buffer)
        .expect("the buffer grows, so only a bounded one can run out of room");
    }

    /// Decodes a hard state.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`].
    pub fn decode(bytes: &[u8]) -> Result<HardState, Error> {
        let wire = decoded("raftpb.HardState", raftpb::HardState::decode(bytes))?;
        Ok(HardState {
            term: Term(wire.term.unwrap_or_default()),
            vote: MemberId(wire.vote.unwrap_or_default()),
            commit: LogIndex(wire.commit.unwrap_or_default()),
        })
    }
}

impl From<&ConfState> for raftpb::ConfState {
    fn from(state: &ConfState) -> Self {
        raftpb::ConfState {
            voters: numbers(&state.voters),
            learners: numbers(&state.learners),
            voters_outgoing: numbers(&state.voters_outgoing),
            learners_next: numbers(&state.learners_next),
            auto_leave: Some(state.auto_leave),
        }
    }
}

impl From<raftpb::ConfState> for ConfState {
    fn from(wire: raftpb::ConfState) -> Self {
        ConfState {
            voters: ids(&wire.voters),
            learners: ids(&wire.learners),
            voters_outgoing: ids(&wire.voters_outgoing),
            learners_next: ids(&wire.learners_next),
            auto_leave: wire.auto_leave.unwrap_or_default(),
        }
    }
}

fn change_kind(number: i32) -> Result<ConfChangeKind, Error> {
    match raftpb::ConfChangeType::try_from(number) {
        Ok(raftpb::ConfChangeType::ConfChangeAddNode) => Ok(ConfChangeKind::AddNode),
        Ok(raftpb::ConfChangeType::ConfChangeRemoveNode) => Ok(ConfChangeKind::RemoveNode),
        Ok(raftpb::ConfChangeType::ConfChangeUpdateNode) => Ok(ConfChangeKind::UpdateNode),
        Ok(raftpb::ConfChangeType::ConfChangeAddLearnerNode) => Ok(ConfChangeKind::AddLearnerNode),
        Err(_) => Err(Error::UnknownKind {
            what: "configuration change",
            number: number.into(),
        }),
    }
}

fn change_number(kind: ConfChangeKind) -> i32 {
    match kind {
        ConfChangeKind::AddNode => raftpb::ConfChangeType::ConfChangeAddNode,
        ConfChangeKind::RemoveNode => raftpb::ConfChangeType::ConfChangeRemoveNode,
        ConfChangeKind::UpdateNode => raftpb::ConfChangeType::ConfChangeUpdateNode,
        ConfChangeKind::AddLearnerNode => raftpb::ConfChangeType::ConfChangeAddLearnerNode,
    }
    .into()
}

impl ConfChange {
    /// Its encoding.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        raftpb::ConfChange {
            id: Some(self.id),
            r#type: Some(change_number(self.kind)),
            node_id: Some(self.member.0),
            context: nonempty(&self.context),
        }
        .encode_to_vec()
        .into()
    }

    /// Decodes a change.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] and [`Error::UnknownKind`].
    pub fn decode(bytes: Bytes) -> Result<ConfChange, Error> {
        let wire = decoded("raftpb.ConfChange", raftpb::ConfChange::decode(bytes))?;
        Ok(ConfChange {
            id: wire.id.unwrap_or_default(),
            kind: change_kind(wire.r#type.unwrap_or_default())?,
            member: MemberId(wire.node_id.unwrap_or_default()),
            context: wire.context.unwrap_or_default(),
        })
    }
}

impl ConfChangeV2 {
    /// Its encoding.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let transition = match self.transition {
            ConfChangeTransition::Auto => None,
            ConfChangeTransition::JointImplicit => {
                Some(raftpb::ConfChangeTransition::JointImplicit.into())
            }
            ConfChangeTransition::JointExplicit => {
                Some(raftpb::ConfChangeTransition::JointExplicit.into())
            }
        };
        raftpb::ConfChangeV2 {
            transition,
            changes: self
                .changes
                .iter()
                .map(|single| raftpb::ConfChangeSingle {
                    r#type: Some(change_number(single.kind)),
                    node_id: nonzero(single.member.0),
                })
                .collect(),
            context: nonempty(&self.context),
        }
        .encode_to_vec()
        .into()
    }

    /// Decodes a change.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] and [`Error::UnknownKind`].
    pub fn decode(bytes: Bytes) -> Result<ConfChangeV2, Error> {
        let wire = decoded("raftpb.ConfChangeV2", raftpb::ConfChangeV2::decode(bytes))?;
        let number = wire.transition.unwrap_or_default();
        let transition = match raftpb::ConfChangeTransition::try_from(number) {
            Ok(raftpb::ConfChangeTransition::Auto) => ConfChangeTransition::Auto,
            Ok(raftpb::ConfChangeTransition::JointImplicit) => ConfChangeTransition::JointImplicit,
            Ok(raftpb::ConfChangeTransition::JointExplicit) => ConfChangeTransition::JointExplicit,
            Err(_) => {
                return Err(Error::UnknownKind {
                    what: "transition",
                    number: number.into(),
                });
            }
        };
        let changes = wire.changes.iter().map(|single| {
            Ok(ConfChangeSingle {
                kind: change_kind(single.r#type.unwrap_or_default())?,
                member: MemberId(single.node_id.unwrap_or_default()),
            })
        });
        Ok(ConfChangeV2 {
            transition,
            changes: changes.collect::<Result<_, Error>>()?,
            context: wire.context.unwrap_or_default(),
        })
    }
}

impl From<&Snapshot> for raftpb::Snapshot {
    fn from(snapshot: &Snapshot) -> Self {
        raftpb::Snapshot {
            data: nonempty(&snapshot.data),
            metadata: Some(raftpb::SnapshotMetadata {
                conf_state: Some((&snapshot.conf_state).into()),
                index: Some(snapshot.index.0),
                term: Some(snapshot.term.0),
            }),
        }
    }
}

impl From<raftpb::Snapshot> for Snapshot {
    fn from(wire: raftpb::Snapshot) -> Self {
        let metadata = wire.metadata.unwrap_or_default();
        Snapshot {
            data: wire.data.unwrap_or_default(),
            conf_state: metadata.conf_state.unwrap_or_default().into(),
            index: LogIndex(metadata.index.unwrap_or_default()),
            term: Term(metadata.term.unwrap_or_default()),
        }
    }
}

impl Snapshot {
    /// Whether this is no snapshot at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index == LogIndex(0)
    }

    /// Its encoding.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        raftpb::Snapshot::from(self).encode_to_vec().into()
    }

    /// Decodes a snapshot.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`].
    pub fn decode(bytes: Bytes) -> Result<Snapshot, Error> {
        Ok(decoded("raftpb.Snapshot", raftpb::Snapshot::decode(bytes))?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_with_every_zero_written_out_reads_as_one_with_none() {
        // As 3.5 and 3.6 write it: Type 0, Term 0, Index 0, Data empty.
        let full = Bytes::from_static(&[0x08, 0, 0x10, 0, 0x18, 0, 0x22, 0]);
        assert_eq!(Entry::decode(full).unwrap(), Entry::default());
        assert_eq!(Entry::decode(Bytes::new()).unwrap(), Entry::default());
    }

    #[test]
    fn an_entry_of_an_unknown_kind_is_an_error() {
        let error = Entry::decode(Bytes::from_static(&[0x08, 9])).unwrap_err();
        assert_eq!(error.to_string(), "unknown entry type 9");
    }

    #[test]
    fn configuration_changes_keep_etcds_numbers() {
        let change = ConfChange {
            id: 3,
            kind: ConfChangeKind::AddLearnerNode,
            member: MemberId(5),
            context: Bytes::from_static(b"x"),
        };
        let bytes = change.encode();
        assert_eq!(&bytes[..], [0x08, 3, 0x10, 3, 0x18, 5, 0x22, 1, b'x']);
        assert_eq!(ConfChange::decode(bytes).unwrap(), change);
    }

    #[test]
    fn conf_states_are_written_unpacked_and_read_either_way() {
        let state = ConfState {
            voters: vec![MemberId(1), MemberId(2)],
            ..ConfState::default()
        };
        let bytes = raftpb::ConfState::from(&state).encode_to_vec();
        assert_eq!(bytes, [0x08, 1, 0x08, 2, 0x28, 0]);
        let packed: &[u8] = &[0x0a, 2, 1, 2];
        assert_eq!(
            ConfState::from(raftpb::ConfState::decode(packed).unwrap()),
            state
        );
    }

    #[test]
    fn a_snapshot_comes_back_as_it_went_in() {
        let snapshot = Snapshot {
            data: Bytes::from_static(b"{}"),
            conf_state: ConfState {
                voters: vec![MemberId(9)],
                ..ConfState::default()
            },
            index: LogIndex(4),
            term: Term(2),
        };
        assert_eq!(Snapshot::decode(snapshot.encode()).unwrap(), snapshot);
    }
}
