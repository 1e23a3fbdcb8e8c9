//! Messages between members, and between a member and its own storage: plain, with codec.

use bytes::Bytes;
use prost::Message as _;

use crate::entry::{Entry, Snapshot, nonempty, nonzero};
use crate::ids::{LogIndex, MemberId, Term};
use crate::rpc::raftpb;
use crate::{Error, scan};

/// What a message says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MessageKind {
    /// Start an election (local).
    #[default]
    Hup = 0,
    /// Send heartbeats (local).
    Beat = 1,
    /// Propose entries.
    Prop = 2,
    /// Append entries.
    App = 3,
    /// The answer to an append.
    AppResp = 4,
    /// A request for a vote.
    Vote = 5,
    /// The answer to it.
    VoteResp = 6,
    /// A snapshot in place of entries.
    Snap = 7,
    /// A heartbeat.
    Heartbeat = 8,
    /// The answer to it.
    HeartbeatResp = 9,
    /// The last message to a member was not delivered (local).
    Unreachable = 10,
    /// How the sending of a snapshot ended (local).
    SnapStatus = 11,
    /// Check whether a quorum is active (local).
    CheckQuorum = 12,
    /// Hand leadership over.
    TransferLeader = 13,
    /// Start an election at once.
    TimeoutNow = 14,
    /// Ask for a read index.
    ReadIndex = 15,
    /// The answer to it.
    ReadIndexResp = 16,
    /// A request for a vote that changes nothing yet.
    PreVote = 17,
    /// The answer to it.
    PreVoteResp = 18,
    /// Write to the own log (local).
    StorageAppend = 19,
    /// The write is durable (local).
    StorageAppendResp = 20,
    /// Apply entries (local).
    StorageApply = 21,
    /// The entries are applied (local).
    StorageApplyResp = 22,
    /// Forget who leads (local).
    ForgetLeader = 23,
}

impl MessageKind {
    /// Every kind, by number.
    pub const ALL: [MessageKind; 24] = [
        MessageKind::Hup,
        MessageKind::Beat,
        MessageKind::Prop,
        MessageKind::App,
        MessageKind::AppResp,
        MessageKind::Vote,
        MessageKind::VoteResp,
        MessageKind::Snap,
        MessageKind::Heartbeat,
        MessageKind::HeartbeatResp,
        MessageKind::Unreachable,
        MessageKind::SnapStatus,
        MessageKind::CheckQuorum,
        MessageKind::TransferLeader,
        MessageKind::TimeoutNow,
        MessageKind::ReadIndex,
        MessageKind::ReadIndexResp,
        MessageKind::PreVote,
        MessageKind::PreVoteResp,
        MessageKind::StorageAppend,
        MessageKind::StorageAppendResp,
        MessageKind::StorageApply,
        MessageKind::StorageApplyResp,
        MessageKind::ForgetLeader,
    ];
}

/// One message. Fields that a kind does not use are zero or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What it says.
    pub kind: MessageKind,
    /// To whom.
    pub to: MemberId,
    /// From whom.
    pub from: MemberId,
    /// The sender's term; 0 for local messages and forwarded proposals.
    pub term: Term,
    /// The term of the entry at `index`.
    pub log_term: Term,
    /// For an append: the entry before `entries`; otherwise by kind.
    pub index: LogIndex,
    /// Entries to append, propose or apply.
    pub entries: Vec<Entry>,
    /// The sender's commit index.
    pub commit: LogIndex,
    /// The snapshot, where there is one.
    pub snapshot: Option<Box<Snapshot>>,
    /// Whether this answer is a no.
    pub reject: bool,
    /// With a no to an append: where the logs may agree.
    pub reject_hint: LogIndex,
    /// Bytes that come back with the answer.
    pub context: Bytes,
    /// With a storage message: the vote to make durable.
    pub vote: MemberId,
    /// With a storage message: what to deliver once it is done.
    pub responses: Vec<Message>,
}

/// How deep messages may lie inside one another: a message, its responses, their entries or
/// snapshot, its metadata and configuration.
const DEPTH_MAX: usize = 8;

fn nested((): (), field: u32) -> Option<()> {
    (field == 14).then_some(())
}

impl Message {
    /// Its encoding.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        <raftpb::Message as From<&Message>>::from(self)
            .encode_to_vec()
            .into()
    }

    /// Decodes a message; its entries share the buffer of `bytes`.
    ///
    /// A snapshot with index 0, as 3.5 writes on every message, is read as none.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`], [`Error::UnknownKind`], and [`Error::TooDeep`] where responses nest.
    pub fn decode(bytes: Bytes) -> Result<Message, Error> {
        const WHAT: &str = "raftpb.Message";
        if scan::deeper_than(&bytes, (), DEPTH_MAX, nested) {
            return Err(Error::TooDeep {
                what: WHAT,
                limit: DEPTH_MAX,
            });
        }
        raftpb::Message::decode(bytes)
            .map_err(|source| Error::Decode { what: WHAT, source })?
            .try_into()
    }
}

impl From<&Message> for raftpb::Message {
    fn from(message: &Message) -> Self {
        raftpb::Message {
            r#type: Some(message.kind as i32),
            to: nonzero(message.to.0),
            from: nonzero(message.from.0),
            term: nonzero(message.term.0),
            log_term: nonzero(message.log_term.0),
            index: nonzero(message.index.0),
            entries: message.entries.iter().map(raftpb::Entry::from).collect(),
            commit: nonzero(message.commit.0),
            snapshot: message.snapshot.as_deref().map(raftpb::Snapshot::from),
            reject: message.reject.then_some(true),
            reject_hint: nonzero(message.reject_hint.0),
            context: nonempty(&message.context),
            vote: nonzero(message.vote.0),
            responses: message.responses.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<raftpb::Message> for Message {
    type Error = Error;

    fn try_from(wire: raftpb::Message) -> Result<Self, Error> {
        let number = wire.r#type.unwrap_or_default();
        let kind = usize::try_from(number)
            .ok()
            .and_then(|number| MessageKind::ALL.get(number).copied())
            .ok_or(Error::UnknownKind {
                what: "message type",
                number: number.into(),
            })?;
        Ok(Message {
            kind,
            to: MemberId(wire.to.unwrap_or_default()),
            from: MemberId(wire.from.unwrap_or_default()),
            term: Term(wire.term.unwrap_or_default()),
            log_term: Term(wire.log_term.unwrap_or_default()),
            index: LogIndex(wire.index.unwrap_or_default()),
            entries: wire
                .entries
                .into_iter()
                .map(Entry::try_from)
                .collect::<Result<_, _>>()?,
            commit: LogIndex(wire.commit.unwrap_or_default()),
            snapshot: wire
                .snapshot
                .map(Snapshot::from)
                .filter(|snapshot| !snapshot.is_empty())
                .map(Box::new),
            reject: wire.reject.unwrap_or_default(),
            reject_hint: LogIndex(wire.reject_hint.unwrap_or_default()),
            context: wire.context.unwrap_or_default(),
            vote: MemberId(wire.vote.unwrap_or_default()),
            responses: wire
                .responses
                .into_iter()
                .map(Message::try_from)
                .collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_numbers_of_the_wire() {
        for (number, kind) in MessageKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, number);
        }
    }

    #[test]
    fn a_message_comes_back_as_it_went_in() {
        let message = Message {
            kind: MessageKind::App,
            to: MemberId(1),
            from: MemberId(2),
            term: Term(3),
            log_term: Term(2),
            index: LogIndex(9),
            entries: vec![Entry {
                term: Term(3),
                index: LogIndex(10),
                data: Bytes::from_static(b"put"),
                ..Entry::default()
            }],
            commit: LogIndex(8),
            ..Message::default()
        };
        assert_eq!(Message::decode(message.encode()).unwrap(), message);
    }

    #[test]
    fn an_empty_snapshot_on_a_message_is_none() {
        let wire = raftpb::Message {
            r#type: Some(8),
            snapshot: Some(raftpb::Snapshot::default()),
            ..raftpb::Message::default()
        };
        let message = Message::decode(wire.encode_to_vec().into()).unwrap();
        assert_eq!(message.kind, MessageKind::Heartbeat);
        assert!(message.snapshot.is_none());
    }

    #[test]
    fn responses_inside_responses_are_bounded() {
        let mut bytes = Vec::new();
        for _ in 0..10_000 {
            let mut outer = Vec::new();
            prost::encoding::encode_key(14, prost::encoding::WireType::LengthDelimited, &mut outer);
            prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
            outer.extend_from_slice(&bytes);
            bytes = outer;
        }
        assert!(matches!(
            Message::decode(bytes.into()),
            Err(Error::TooDeep { .. })
        ));
    }
}
