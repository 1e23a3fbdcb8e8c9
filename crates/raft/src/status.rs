//! What a member knows of itself and of the others, for those who ask.

use std::collections::BTreeMap;

use keelson_proto::entry::HardState;
use keelson_proto::ids::{LogIndex, MemberId};

use crate::progress::Progress;
use crate::raft::{Raft, Role, SoftState};
use crate::tracker::Configuration;

/// The state of a member; cheap to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BasicStatus {
    /// The member.
    pub id: MemberId,
    /// Term, vote and commit index.
    pub hard_state: HardState,
    /// Leader and role.
    pub soft_state: SoftState,
    /// Up to here it is applied.
    pub applied: LogIndex,
    /// To whom leadership is being handed over, if to anybody.
    pub lead_transferee: MemberId,
}

/// The state of a member, with the configuration and, on a leader, its view of the others.
#[derive(Clone, Debug)]
pub struct Status {
    /// The member's own state.
    pub basic: BasicStatus,
    /// Who votes and who learns.
    pub config: Configuration,
    /// How far each member is; empty unless this one leads.
    pub progress: BTreeMap<MemberId, Progress>,
}

impl BasicStatus {
    pub(crate) fn of<S: crate::Storage>(raft: &Raft<S>) -> BasicStatus {
        BasicStatus {
            id: raft.id,
            hard_state: raft.hard_state(),
            soft_state: raft.soft_state(),
            applied: raft.log.applied,
            lead_transferee: raft.leadership.transferee,
        }
    }
}

impl Status {
    pub(crate) fn of<S: crate::Storage>(raft: &Raft<S>) -> Status {
        let progress = if raft.role == Role::Leader {
            raft.tracker.progress.clone()
        } else {
            BTreeMap::new()
        };
        Status {
            basic: BasicStatus::of(raft),
            config: raft.tracker.config.clone(),
            progress,
        }
    }
}
