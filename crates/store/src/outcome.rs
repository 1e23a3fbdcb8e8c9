//! What applying an entry comes to: an answer for whoever waits, and work for the node.
//!
//! Values are never in an outcome: a range in a transaction and every previous value is a revision
//! to read at, with a pin, and the handler reads and splices it on its own thread.

use keelson_proto::ApiError;
use keelson_proto::entry::{ConfChange, ConfState};
use keelson_proto::ids::LeaseId;
use keelson_proto::rpc::authpb::Permission;
use keelson_proto::rpc::etcdserverpb::AlarmMember;
use smallvec::SmallVec;

use crate::Revision;
use crate::pin::Pin;

/// Whether somebody on this member waits for the answer: without a waiter none is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nobody waits.
    Unwanted,
    /// A handler waits.
    Wanted,
}

/// What [`crate::Store::apply`] returns.
#[derive(Debug)]
pub struct Applied {
    /// The answer.
    pub outcome: Outcome,
    /// What the node must do.
    pub effects: SmallVec<[Effect; 1]>,
}

/// The answer to a request.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// A key was set.
    Put {
        /// The revision of the put.
        revision: i64,
        /// Where the previous value stands, if there was one and it was asked for.
        prev: Option<(Revision, Pin)>,
    },
    /// Keys were deleted.
    Delete {
        /// The revision of the deletion, or the current one if there was nothing to delete.
        revision: i64,
        /// How many keys.
        deleted: i64,
        /// Where their values stand, in key order, if they were asked for.
        prevs: Vec<Revision>,
        /// Holds `prevs`.
        pin: Option<Pin>,
    },
    /// A transaction ran.
    Txn {
        /// Its revision, or the current one if it changed nothing.
        revision: i64,
        /// Whether its conditions held.
        succeeded: bool,
        /// One answer for each operation of the branch that ran.
        ops: Vec<OpOutcome>,
        /// Holds what `ops` read at.
        pin: Option<Pin>,
    },
    /// A compaction was scheduled.
    Compact {
        /// The current revision.
        revision: i64,
    },
    /// A lease was granted.
    LeaseGrant {
        /// Its id.
        id: LeaseId,
        /// What it was granted, in seconds.
        ttl: i64,
        /// The current revision.
        revision: i64,
    },
    /// A lease was revoked, and the keys attached to it deleted.
    LeaseRevoke {
        /// The revision of the deletion, or the current one.
        revision: i64,
    },
    /// Remaining times were noted.
    LeaseCheckpoint,
    /// Alarms, as asked for.
    Alarm {
        /// Which.
        alarms: Vec<AlarmMember>,
    },
    /// A change or question of auth.
    Auth(AuthOutcome),
    /// Cluster version, member attributes or downgrade were set.
    Cluster,
    /// A configuration change was carried out.
    ConfChange,
    /// The entry held nothing to answer.
    Nothing,
    /// The request was refused; unless it says [`ApiError::NoSpace`], nothing was changed.
    Refused(ApiError),
}

/// The answer to one operation of a transaction.
#[derive(Debug)]
pub enum OpOutcome {
    /// A range to be read by the handler.
    Range {
        /// The revision to read at, unless the request names one.
        at: Revision,
        /// The header's revision.
        header: i64,
    },
    /// A put.
    Put {
        /// The header's revision.
        revision: i64,
        /// Where the previous value stands, if there was one and it was asked for.
        prev: Option<Revision>,
    },
    /// A deletion.
    Delete {
        /// The header's revision.
        revision: i64,
        /// How many keys.
        deleted: i64,
        /// Where their values stand, in key order, if they were asked for.
        prevs: Vec<Revision>,
    },
    /// A transaction inside.
    Txn {
        /// Whether its conditions held.
        succeeded: bool,
        /// One answer for each operation of the branch that ran.
        ops: Vec<OpOutcome>,
    },
}

/// The answer to a request of the auth service.
#[derive(Debug)]
pub enum AuthOutcome {
    /// Done, and nothing to tell.
    Done,
    /// Whether auth is on.
    Status {
        /// Whether it is.
        enabled: bool,
        /// The revision of the auth store.
        revision: u64,
    },
    /// The roles of a user.
    User {
        /// Sorted by name.
        roles: Vec<String>,
    },
    /// All users.
    Users {
        /// Sorted by name.
        names: Vec<String>,
    },
    /// The permissions of a role.
    Role {
        /// In stored order.
        permissions: Vec<Permission>,
    },
    /// All roles.
    Roles {
        /// Sorted by name.
        names: Vec<String>,
    },
    /// A login went through the log.
    Authenticated {
        /// The simple token: the proposer's letters, a dot, the entry's index.
        token: String,
    },
}

/// What the node must do after an entry.
#[derive(Debug)]
#[non_exhaustive]
pub enum Effect {
    /// Hand the change to consensus; a change that was refused has nobody as its member.
    ConfChange {
        /// The change.
        change: ConfChange,
        /// The configuration after it.
        conf_state: ConfState,
    },
    /// Propose the NOSPACE alarm for this member.
    RaiseNoSpace,
    /// Seal the tail and commit it: a compaction waits for its mark to be in the file.
    Commit,
    /// Take a disk snapshot at once.
    ForceSnapshot,
    /// The entry is of a form that etcd 3.7 cannot read: take a disk snapshot behind it soon.
    LeaveOldLog,
    /// The leader's first entry of its term was applied: leases count from now on.
    PromoteLessor,
    /// A user has logged in: on this member, too, the token is that user's from here on.
    AssignToken {
        /// Whose.
        user: String,
        /// The simple token.
        token: String,
    },
    /// Tokens of this user are void; of every user without a name.
    RevokeTokens {
        /// Whose.
        user: Option<String>,
    },
    /// Stop this member, for a reason that an operator must read.
    Stop(String),
}
