//! The options of one member.

use keelson_proto::ids::{LogIndex, MemberId};

use crate::Error;
use crate::node::is_storage_thread;

/// How a leader makes sure that it still leads before it answers a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadOnlyOption {
    /// By hearing from a quorum.
    #[default]
    Safe,
    /// By trusting the clocks: it heard from a quorum within the last election timeout.
    LeaseBased,
}

/// The options of one member. Sizes are bytes, times are ticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who this member is.
    pub id: MemberId,
    /// A follower that hears nothing for this long campaigns; the actual time is drawn from
    /// `election_tick .. 2 * election_tick`.
    pub election_tick: u32,
    /// A leader sends heartbeats this often.
    pub heartbeat_tick: u32,
    /// Entries of one append message; one entry always fits.
    pub max_size_per_message: u64,
    /// Entries that are being applied and not yet acknowledged; 0 for the size of a message.
    pub max_committed_size_per_ready: u64,
    /// Entry data that a leader takes without having it committed; 0 for no limit.
    pub max_uncommitted_entries_size: u64,
    /// Append messages under way to one follower.
    pub max_inflight_messages: usize,
    /// Entry data under way to one follower; 0 for no limit.
    pub max_inflight_bytes: u64,
    /// Whether a leader steps down that does not hear from a quorum.
    pub check_quorum: bool,
    /// Whether a member asks whether it would win before it disturbs a term.
    pub pre_vote: bool,
    /// How reads are answered.
    pub read_only: ReadOnlyOption,
    /// Whether writes are asked for by messages to the own storage instead of by
    /// [`RawNode::advance`](crate::RawNode::advance).
    pub async_storage_writes: bool,
    /// The last applied entry after a restart; 0 for what the storage's snapshot holds.
    pub applied: LogIndex,
    /// Whether followers refuse proposals instead of passing them on to the leader.
    pub disable_proposal_forwarding: bool,
    /// Whether configuration changes are taken without a look at the present configuration.
    pub disable_conf_change_validation: bool,
    /// Whether a leader steps down that is removed or made a learner.
    pub step_down_on_removal: bool,
}

impl Config {
    /// etcd's options, with asynchronous storage writes.
    ///
    /// # Source
    ///
    /// `spec/formats.md` 6.5.
    #[must_use]
    pub fn new(id: MemberId) -> Config {
        Config {
            id,
            election_tick: 10,
            heartbeat_tick: 1,
            max_size_per_message: 1 << 20,
            max_committed_size_per_ready: 0,
            max_uncommitted_entries_size: 0,
            max_inflight_messages: 512,
            max_inflight_bytes: 0,
            check_quorum: true,
            pre_vote: true,
            read_only: ReadOnlyOption::Safe,
            async_storage_writes: true,
            applied: LogIndex(0),
            disable_proposal_forwarding: false,
            disable_conf_change_validation: false,
            step_down_on_removal: false,
        }
    }

    /// Checks the ranges and fills in the limits that are left at 0.
    pub(crate) fn checked(mut self) -> Result<Config, Error> {
        let rules = [
            (!self.id.is_none(), "cannot use none as id"),
            (!is_storage_thread(self.id), "cannot use local target as id"),
            (
                self.heartbeat_tick > 0,
                "heartbeat tick must be greater than 0",
            ),
            (
                self.election_tick > self.heartbeat_tick,
                "election tick must be greater than heartbeat tick",
            ),
            (
                self.election_tick <= u32::MAX / 2,
                "election tick is too large",
            ),
            (
                self.max_inflight_messages > 0,
                "max inflight messages must be greater than 0",
            ),
            (
                self.max_inflight_bytes == 0
                    || self.max_inflight_bytes >= self.max_size_per_message,
                "max inflight bytes must be >= max message size",
            ),
            (
                self.read_only == ReadOnlyOption::Safe || self.check_quorum,
                "CheckQuorum must be enabled when ReadOnlyOption is ReadOnlyLeaseBased",
            ),
        ];
        if let Some((_, what)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(Error::BadConfig { what });
        }
        if self.max_uncommitted_entries_size == 0 {
            self.max_uncommitted_entries_size = u64::MAX;
        }
        if self.max_committed_size_per_ready == 0 {
            self.max_committed_size_per_ready = self.max_size_per_message;
        }
        Ok(self)
    }
}
