//! What goes into the consensus loop, and what comes out.

use bytes::Bytes;
use keelson_proto::ApiError;
use keelson_proto::entry::{ConfChange, Entry, HardState, Snapshot};
use keelson_proto::ids::{LogIndex, MemberId, RequestId, Term};
use keelson_proto::message::Message;
use keelson_raft::AnyConfChange;

use crate::Ticket;
use crate::ticket::Waiter;

/// What a proposal holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// An encoded request.
    Request(Bytes),
    /// A configuration change.
    ConfChange(ConfChange),
}

impl Content {
    /// Its size, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Content::Request(data) => data.len() as u64,
            Content::ConfChange(change) => change.context.len() as u64,
        }
    }
}

/// Something to be put into the log.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The request's id.
    pub id: RequestId,
    /// What.
    pub content: Content,
    /// It is only worth anything while this member leads in this term: otherwise it is dropped, and no
    /// other leader gets it.
    pub only_in: Option<Term>,
    /// Who waits; for the thread around the core.
    pub waiter: Option<Waiter>,
}

/// What happens to a member.
#[derive(Debug)]
pub enum Input {
    /// A heartbeat interval has passed.
    Tick,
    /// A request for the log.
    Propose(Proposal),
    /// A read that wants to see everything that is committed by now.
    ReadBarrier(Ticket),
    /// The writes up to this number are in the own log for good.
    Synced {
        /// The number of the last such [`Append`].
        upto: u64,
    },
    /// The entries up to this one are applied.
    Applied {
        /// The last such entry.
        index: LogIndex,
    },
    /// The configuration change of an entry that is being applied; comes before its `Applied`.
    ConfChange {
        /// The entry.
        index: LogIndex,
        /// The change; of nobody, if it was refused.
        change: AnyConfChange,
    },
    /// A message of another member.
    Step(Message),
    /// A message to this member was not delivered.
    Unreachable(MemberId),
    /// The sending of a snapshot has ended.
    SnapshotSent {
        /// To whom it went.
        to: MemberId,
        /// Whether it arrived.
        delivered: bool,
    },
    /// How far are the others?
    Progress(Ticket),
    /// Leadership is to be handed over.
    TransferLeader(MemberId),
}

/// Something to be written to the own log.
#[derive(Debug)]
pub struct Append {
    /// Writes are numbered from 1 on, without gaps.
    pub number: u64,
    /// The hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// A snapshot of the leader, in place of everything that the log has; before the entries.
    pub snapshot: Option<Snapshot>,
    /// Entries, in place of what the log has from the first of them on.
    pub entries: Vec<Entry>,
    /// Whether anybody waits for the disk.
    pub must_sync: bool,
}

/// How far a member is, as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// The member.
    pub member: MemberId,
    /// Up to here its log is known to be that of the leader.
    pub matched: LogIndex,
    /// Whether it has no vote.
    pub is_learner: bool,
    /// Whether it was heard of within the last election timeout.
    pub is_active: bool,
}

/// What is to be done, in the order of the fields.
#[derive(Debug, Default)]
pub struct Outputs {
    /// To be written.
    pub appends: Vec<Append>,
    /// To be sent to other members.
    pub messages: Vec<Message>,
    /// Members that need a snapshot. Each message stands for one that is made of what the file holds once
    /// everything applied until now is in it, and goes with the file.
    pub snapshots: Vec<Message>,
    /// A snapshot that the own log has for good, to be put in place of the state.
    pub install: Option<Snapshot>,
    /// To be applied, after that.
    pub apply: Vec<Entry>,
    /// Reads that may look at the state.
    pub readable: Vec<Ticket>,
    /// Reads that must be asked for again.
    pub unreadable: Vec<Ticket>,
    /// Answers to those who asked how far the others are; nothing where this member does not lead.
    pub progress: Vec<(Ticket, Vec<PeerProgress>)>,
    /// Proposals that will not be in the log.
    pub dropped: Vec<(RequestId, ApiError)>,
    /// Bytes of proposals that are on their way to the own log no longer.
    pub released_bytes: u64,
}

/// What others may know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The leader, or nobody.
    pub leader: MemberId,
    /// Whether that is this member.
    pub leads: bool,
    /// Whether this member is the only voter.
    pub only_voter: bool,
    /// Whether this member has no vote.
    pub is_learner: bool,
    /// The term.
    pub term: Term,
    /// Up to here the log is committed.
    pub committed: LogIndex,
    /// How often another leader was seen.
    pub leader_changes: u64,
}

/// How a core behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// raft's own options.
    pub raft: keelson_raft::Config,
    /// Up to here the log is applied before this member takes part.
    pub replay_to: LogIndex,
    /// Whether a lone voter campaigns as soon as it may.
    pub campaign_at_once: bool,
    /// Ticks after which nobody waits for a request any more.
    pub patience_ticks: u64,
    /// Contexts of read index requests are counted from here on.
    pub first_context: u64,
    /// Ticks after the end of a transfer of a snapshot during which the log is kept for the member
    /// that got it.
    pub hold_ticks: u64,
}
