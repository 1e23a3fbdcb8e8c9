//! Every error that a client can see: gRPC code and exact text.
//!
//! Clients match on the text, so both are fixed. The table is that of etcd v3.7.1
//! (`api/v3rpc/rpctypes/error.go`), followed by the texts that etcd sends from elsewhere. Where the
//! code on the wire differs from etcd's own constant (its server hands two of them to gRPC as plain
//! errors, which gRPC calls `Unknown`), the code here is the one on the wire.

use std::fmt;

/// A gRPC status code, by its number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// gRPC code 0.
    Ok = 0,
    /// gRPC code 1.
    Canceled = 1,
    /// gRPC code 2.
    Unknown = 2,
    /// gRPC code 3.
    InvalidArgument = 3,
    /// gRPC code 4.
    DeadlineExceeded = 4,
    /// gRPC code 5.
    NotFound = 5,
    /// gRPC code 6.
    AlreadyExists = 6,
    /// gRPC code 7.
    PermissionDenied = 7,
    /// gRPC code 8.
    ResourceExhausted = 8,
    /// gRPC code 9.
    FailedPrecondition = 9,
    /// gRPC code 10.
    Aborted = 10,
    /// gRPC code 11.
    OutOfRange = 11,
    /// gRPC code 12.
    Unimplemented = 12,
    /// gRPC code 13.
    Internal = 13,
    /// gRPC code 14.
    Unavailable = 14,
    /// gRPC code 15.
    DataLoss = 15,
    /// gRPC code 16.
    Unauthenticated = 16,
}

impl Code {
    /// The name that Go's gRPC prints, as in logs, metrics and watch cancel reasons.
    #[must_use]
    pub fn go_name(self) -> &'static str {
        match self {
            Code::Ok => "OK",
            Code::Canceled => "Canceled",
            Code::Unknown => "Unknown",
            Code::InvalidArgument => "InvalidArgument",
            Code::DeadlineExceeded => "DeadlineExceeded",
            Code::NotFound => "NotFound",
            Code::AlreadyExists => "AlreadyExists",
            Code::PermissionDenied => "PermissionDenied",
            Code::ResourceExhausted => "ResourceExhausted",
            Code::FailedPrecondition => "FailedPrecondition",
            Code::Aborted => "Aborted",
            Code::OutOfRange => "OutOfRange",
            Code::Unimplemented => "Unimplemented",
            Code::Internal => "Internal",
            Code::Unavailable => "Unavailable",
            Code::DataLoss => "DataLoss",
            Code::Unauthenticated => "Unauthenticated",
        }
    }
}

/// An error of the client API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ApiError {
    /// `InvalidArgument`: etcdserver: key is not provided.
    EmptyKey,
    /// `InvalidArgument`: etcdserver: key not found.
    KeyNotFound,
    /// `InvalidArgument`: etcdserver: value is provided.
    ValueProvided,
    /// `InvalidArgument`: etcdserver: lease is provided.
    LeaseProvided,
    /// `InvalidArgument`: etcdserver: too many operations in txn request.
    TooManyOps,
    /// `InvalidArgument`: etcdserver: duplicate key given in txn request.
    DuplicateKey,
    /// `InvalidArgument`: etcdserver: invalid client api version.
    InvalidClientApiVersion,
    /// `InvalidArgument`: etcdserver: invalid sort option.
    InvalidSortOption,
    /// `OutOfRange`: etcdserver: mvcc: required revision has been compacted.
    Compacted,
    /// `OutOfRange`: etcdserver: mvcc: required revision is a future revision.
    FutureRev,
    /// `ResourceExhausted`: etcdserver: mvcc: database space exceeded.
    NoSpace,
    /// `NotFound`: etcdserver: requested lease not found.
    LeaseNotFound,
    /// `FailedPrecondition`: etcdserver: lease already exists.
    LeaseExist,
    /// `OutOfRange`: etcdserver: too large lease TTL.
    LeaseTtlTooLarge,
    /// `Canceled`: etcdserver: watch canceled.
    WatchCanceled,
    /// `FailedPrecondition`: etcdserver: member ID already exist.
    MemberExist,
    /// `FailedPrecondition`: etcdserver: Peer URLs already exists.
    PeerUrlExist,
    /// `Unknown`: etcdserver: re-configuration failed due to not enough started members.
    MemberNotEnoughStarted,
    /// `InvalidArgument`: etcdserver: given member URLs are invalid.
    MemberBadUrls,
    /// `NotFound`: etcdserver: member not found.
    MemberNotFound,
    /// `FailedPrecondition`: etcdserver: can only promote a learner member.
    MemberNotLearner,
    /// `FailedPrecondition`: etcdserver: can only promote a learner member which is in sync with leader.
    LearnerNotReady,
    /// `FailedPrecondition`: etcdserver: too many learner members in cluster.
    TooManyLearners,
    /// `FailedPrecondition`: etcdserver: cluster ID mismatch.
    ClusterIdMismatch,
    /// `InvalidArgument`: etcdserver: request is too large.
    RequestTooLarge,
    /// `Unknown`: etcdserver: too many requests.
    TooManyRequests,
    /// `FailedPrecondition`: etcdserver: root user does not exist.
    RootUserNotExist,
    /// `FailedPrecondition`: etcdserver: root user does not have root role.
    RootRoleNotExist,
    /// `FailedPrecondition`: etcdserver: user name already exists.
    UserAlreadyExist,
    /// `InvalidArgument`: etcdserver: user name is empty.
    UserEmpty,
    /// `FailedPrecondition`: etcdserver: user name not found.
    UserNotFound,
    /// `FailedPrecondition`: etcdserver: role name already exists.
    RoleAlreadyExist,
    /// `FailedPrecondition`: etcdserver: role name not found.
    RoleNotFound,
    /// `InvalidArgument`: etcdserver: role name is empty.
    RoleEmpty,
    /// `InvalidArgument`: etcdserver: authentication failed, invalid user ID or password.
    AuthFailed,
    /// `InvalidArgument`: etcdserver: permission not given.
    PermissionNotGiven,
    /// `PermissionDenied`: etcdserver: permission denied.
    PermissionDenied,
    /// `FailedPrecondition`: etcdserver: role is not granted to the user.
    RoleNotGranted,
    /// `FailedPrecondition`: etcdserver: permission is not granted to the role.
    PermissionNotGranted,
    /// `FailedPrecondition`: etcdserver: authentication is not enabled.
    AuthNotEnabled,
    /// `Unauthenticated`: etcdserver: invalid auth token.
    InvalidAuthToken,
    /// `InvalidArgument`: etcdserver: invalid auth management.
    InvalidAuthMgmt,
    /// `InvalidArgument`: etcdserver: revision of auth store is old.
    AuthOldRevision,
    /// `Unavailable`: etcdserver: no leader.
    NoLeader,
    /// `FailedPrecondition`: etcdserver: not leader.
    NotLeader,
    /// `Unavailable`: etcdserver: leader changed.
    LeaderChanged,
    /// `FailedPrecondition`: etcdserver: not capable.
    NotCapable,
    /// `Unavailable`: etcdserver: server stopped.
    Stopped,
    /// `Unavailable`: etcdserver: request timed out.
    Timeout,
    /// `Unavailable`: etcdserver: request timed out, possibly due to previous leader failure.
    TimeoutDueToLeaderFail,
    /// `Unavailable`: etcdserver: request timed out, possibly due to connection lost.
    TimeoutDueToConnectionLost,
    /// `Unavailable`: etcdserver: request timed out, waiting for the applied index took too long.
    TimeoutWaitAppliedIndex,
    /// `Unavailable`: etcdserver: unhealthy cluster.
    Unhealthy,
    /// `DataLoss`: etcdserver: corrupt cluster.
    Corrupt,
    /// `FailedPrecondition`: etcdserver: rpc not supported for learner.
    NotSupportedForLearner,
    /// `FailedPrecondition`: etcdserver: bad leader transferee.
    BadLeaderTransferee,
    /// `InvalidArgument`: etcdserver: wrong downgrade target version format.
    WrongDowngradeVersionFormat,
    /// `InvalidArgument`: etcdserver: invalid downgrade target version.
    InvalidDowngradeTargetVersion,
    /// `FailedPrecondition`: etcdserver: cluster version not found during downgrade.
    ClusterVersionUnavailable,
    /// `FailedPrecondition`: etcdserver: cluster has a downgrade job in progress.
    DowngradeInProcess,
    /// `FailedPrecondition`: etcdserver: no inflight downgrade job.
    NoInflightDowngrade,
    /// `Canceled`: etcdserver: request canceled.
    Canceled,
    /// `DeadlineExceeded`: etcdserver: context deadline exceeded.
    DeadlineExceeded,
    /// `Unknown`: auth: authentication failed, password was given for no password user.
    PasswordForNoPasswordUser,
    /// `Unknown`: bcrypt: password length exceeds 72 bytes.
    PasswordTooLong,
    /// `Unknown`: not a primary lessor.
    NotPrimaryLessor,
    /// `Unknown`: raft proposal dropped.
    ProposalDropped,
    /// `Unknown`: raft: stopped.
    RaftStopped,
    /// `Unknown`: etcdserver: unknown method.
    UnknownMethod,
    /// `Unknown`: etcdserver: request timed out, leader transfer took too long.
    LeaderTransferTimeout,
    /// `Canceled`: context canceled.
    ContextCanceled,
    /// `DeadlineExceeded`: context deadline exceeded.
    ContextDeadlineExceeded,
    /// `Unimplemented`: RangeStream does not support custom sort orders.
    RangeStreamSortOrder,
    /// `Unimplemented`: RangeStream does not support revision filters.
    RangeStreamFilters,
    /// `NotFound`: unknown service.
    UnknownHealthService,
}

impl ApiError {
    /// Every error, in the order of the table.
    pub const ALL: &'static [ApiError] = &[
        ApiError::EmptyKey,
        ApiError::KeyNotFound,
        ApiError::ValueProvided,
        ApiError::LeaseProvided,
        ApiError::TooManyOps,
        ApiError::DuplicateKey,
        ApiError::InvalidClientApiVersion,
        ApiError::InvalidSortOption,
        ApiError::Compacted,
        ApiError::FutureRev,
        ApiError::NoSpace,
        ApiError::LeaseNotFound,
        ApiError::LeaseExist,
        ApiError::LeaseTtlTooLarge,
        ApiError::WatchCanceled,
        ApiError::MemberExist,
        ApiError::PeerUrlExist,
        ApiError::MemberNotEnoughStarted,
        ApiError::MemberBadUrls,
        ApiError::MemberNotFound,
        ApiError::MemberNotLearner,
        ApiError::LearnerNotReady,
        ApiError::TooManyLearners,
        ApiError::ClusterIdMismatch,
        ApiError::RequestTooLarge,
        ApiError::TooManyRequests,
        ApiError::RootUserNotExist,
        ApiError::RootRoleNotExist,
        ApiError::UserAlreadyExist,
        ApiError::UserEmpty,
        ApiError::UserNotFound,
        ApiError::RoleAlreadyExist,
        ApiError::RoleNotFound,
        ApiError::RoleEmpty,
        ApiError::AuthFailed,
        ApiError::PermissionNotGiven,
        ApiError::PermissionDenied,
        ApiError::RoleNotGranted,
        ApiError::PermissionNotGranted,
        ApiError::AuthNotEnabled,
        ApiError::InvalidAuthToken,
        ApiError::InvalidAuthMgmt,
        ApiError::AuthOldRevision,
        ApiError::NoLeader,
        ApiError::NotLeader,
        ApiError::LeaderChanged,
        ApiError::NotCapable,
        ApiError::Stopped,
        ApiError::Timeout,
        ApiError::TimeoutDueToLeaderFail,
        ApiError::TimeoutDueToConnectionLost,
        ApiError::TimeoutWaitAppliedIndex,
        ApiError::Unhealthy,
        ApiError::Corrupt,
        ApiError::NotSupportedForLearner,
        ApiError::BadLeaderTransferee,
        ApiError::WrongDowngradeVersionFormat,
        ApiError::InvalidDowngradeTargetVersion,
        ApiError::ClusterVersionUnavailable,
        ApiError::DowngradeInProcess,
        ApiError::NoInflightDowngrade,
        ApiError::Canceled,
        ApiError::DeadlineExceeded,
        ApiError::PasswordForNoPasswordUser,
        ApiError::PasswordTooLong,
        ApiError::NotPrimaryLessor,
        ApiError::ProposalDropped,
        ApiError::RaftStopped,
        ApiError::UnknownMethod,
        ApiError::LeaderTransferTimeout,
        ApiError::ContextCanceled,
        ApiError::ContextDeadlineExceeded,
        ApiError::RangeStreamSortOrder,
        ApiError::RangeStreamFilters,
        ApiError::UnknownHealthService,
    ];

    /// The gRPC code that goes out with it.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            ApiError::EmptyKey
            | ApiError::KeyNotFound
            | ApiError::ValueProvided
            | ApiError::LeaseProvided
            | ApiError::TooManyOps
            | ApiError::DuplicateKey
            | ApiError::InvalidClientApiVersion
            | ApiError::InvalidSortOption
            | ApiError::MemberBadUrls
            | ApiError::RequestTooLarge
            | ApiError::UserEmpty
            | ApiError::RoleEmpty
            | ApiError::AuthFailed
            | ApiError::PermissionNotGiven
            | ApiError::InvalidAuthMgmt
            | ApiError::AuthOldRevision
            | ApiError::WrongDowngradeVersionFormat
            | ApiError::InvalidDowngradeTargetVersion => Code::InvalidArgument,
            ApiError::Compacted | ApiError::FutureRev | ApiError::LeaseTtlTooLarge => {
                Code::OutOfRange
            }
            ApiError::NoSpace => Code::ResourceExhausted,
            ApiError::LeaseNotFound | ApiError::MemberNotFound | ApiError::UnknownHealthService => {
                Code::NotFound
            }
            ApiError::LeaseExist
            | ApiError::MemberExist
            | ApiError::PeerUrlExist
            | ApiError::MemberNotLearner
            | ApiError::LearnerNotReady
            | ApiError::TooManyLearners
            | ApiError::ClusterIdMismatch
            | ApiError::RootUserNotExist
            | ApiError::RootRoleNotExist
            | ApiError::UserAlreadyExist
            | ApiError::UserNotFound
            | ApiError::RoleAlreadyExist
            | ApiError::RoleNotFound
            | ApiError::RoleNotGranted
            | ApiError::PermissionNotGranted
            | ApiError::AuthNotEnabled
            | ApiError::NotLeader
            | ApiError::NotCapable
            | ApiError::NotSupportedForLearner
            | ApiError::BadLeaderTransferee
            | ApiError::ClusterVersionUnavailable
            | ApiError::DowngradeInProcess
            | ApiError::NoInflightDowngrade => Code::FailedPrecondition,
            ApiError::WatchCanceled | ApiError::Canceled | ApiError::ContextCanceled => {
                Code::Canceled
            }
            ApiError::MemberNotEnoughStarted
            | ApiError::TooManyRequests
            | ApiError::PasswordForNoPasswordUser
            | ApiError::PasswordTooLong
            | ApiError::NotPrimaryLessor
            | ApiError::ProposalDropped
            | ApiError::RaftStopped
            | ApiError::UnknownMethod
            | ApiError::LeaderTransferTimeout => Code::Unknown,
            ApiError::PermissionDenied => Code::PermissionDenied,
            ApiError::InvalidAuthToken => Code::Unauthenticated,
            ApiError::NoLeader
            | ApiError::LeaderChanged
            | ApiError::Stopped
            | ApiError::Timeout
            | ApiError::TimeoutDueToLeaderFail
            | ApiError::TimeoutDueToConnectionLost
            | ApiError::TimeoutWaitAppliedIndex
            | ApiError::Unhealthy => Code::Unavailable,
            ApiError::Corrupt => Code::DataLoss,
            ApiError::DeadlineExceeded | ApiError::ContextDeadlineExceeded => {
                Code::DeadlineExceeded
            }
            ApiError::RangeStreamSortOrder | ApiError::RangeStreamFilters => Code::Unimplemented,
        }
    }

    /// The text, byte for byte etcd's.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            ApiError::EmptyKey => "etcdserver: key is not provided",
            ApiError::KeyNotFound => "etcdserver: key not found",
            ApiError::ValueProvided => "etcdserver: value is provided",
            ApiError::LeaseProvided => "etcdserver: lease is provided",
            ApiError::TooManyOps => "etcdserver: too many operations in txn request",
            ApiError::DuplicateKey => "etcdserver: duplicate key given in txn request",
            ApiError::InvalidClientApiVersion => "etcdserver: invalid client api version",
            ApiError::InvalidSortOption => "etcdserver: invalid sort option",
            ApiError::Compacted => "etcdserver: mvcc: required revision has been compacted",
            ApiError::FutureRev => "etcdserver: mvcc: required revision is a future revision",
            ApiError::NoSpace => "etcdserver: mvcc: database space exceeded",
            ApiError::LeaseNotFound => "etcdserver: requested lease not found",
            ApiError::LeaseExist => "etcdserver: lease already exists",
            ApiError::LeaseTtlTooLarge => "etcdserver: too large lease TTL",
            ApiError::WatchCanceled => "etcdserver: watch canceled",
            ApiError::MemberExist => "etcdserver: member ID already exist",
            ApiError::PeerUrlExist => "etcdserver: Peer URLs already exists",
            ApiError::MemberNotEnoughStarted => {
                "etcdserver: re-configuration failed due to not enough started members"
            }
            ApiError::MemberBadUrls => "etcdserver: given member URLs are invalid",
            ApiError::MemberNotFound => "etcdserver: member not found",
            ApiError::MemberNotLearner => "etcdserver: can only promote a learner member",
            ApiError::LearnerNotReady => {
                "etcdserver: can only promote a learner member which is in sync with leader"
            }
            ApiError::TooManyLearners => "etcdserver: too many learner members in cluster",
            ApiError::ClusterIdMismatch => "etcdserver: cluster ID mismatch",
            ApiError::RequestTooLarge => "etcdserver: request is too large",
            ApiError::TooManyRequests => "etcdserver: too many requests",
            ApiError::RootUserNotExist => "etcdserver: root user does not exist",
            ApiError::RootRoleNotExist => "etcdserver: root user does not have root role",
            ApiError::UserAlreadyExist => "etcdserver: user name already exists",
            ApiError::UserEmpty => "etcdserver: user name is empty",
            ApiError::UserNotFound => "etcdserver: user name not found",
            ApiError::RoleAlreadyExist => "etcdserver: role name already exists",
            ApiError::RoleNotFound => "etcdserver: role name not found",
            ApiError::RoleEmpty => "etcdserver: role name is empty",
            ApiError::AuthFailed => {
                "etcdserver: authentication failed, invalid user ID or password"
            }
            ApiError::PermissionNotGiven => "etcdserver: permission not given",
            ApiError::PermissionDenied => "etcdserver: permission denied",
            ApiError::RoleNotGranted => "etcdserver: role is not granted to the user",
            ApiError::PermissionNotGranted => "etcdserver: permission is not granted to the role",
            ApiError::AuthNotEnabled => "etcdserver: authentication is not enabled",
            ApiError::InvalidAuthToken => "etcdserver: invalid auth token",
            ApiError::InvalidAuthMgmt => "etcdserver: invalid auth management",
            ApiError::AuthOldRevision => "etcdserver: revision of auth store is old",
            ApiError::NoLeader => "etcdserver: no leader",
            ApiError::NotLeader => "etcdserver: not leader",
            ApiError::LeaderChanged => "etcdserver: leader changed",
            ApiError::NotCapable => "etcdserver: not capable",
            ApiError::Stopped => "etcdserver: server stopped",
            ApiError::Timeout => "etcdserver: request timed out",
            ApiError::TimeoutDueToLeaderFail => {
                "etcdserver: request timed out, possibly due to previous leader failure"
            }
            ApiError::TimeoutDueToConnectionLost => {
                "etcdserver: request timed out, possibly due to connection lost"
            }
            ApiError::TimeoutWaitAppliedIndex => {
                "etcdserver: request timed out, waiting for the applied index took too long"
            }
            ApiError::Unhealthy => "etcdserver: unhealthy cluster",
            ApiError::Corrupt => "etcdserver: corrupt cluster",
            ApiError::NotSupportedForLearner => "etcdserver: rpc not supported for learner",
            ApiError::BadLeaderTransferee => "etcdserver: bad leader transferee",
            ApiError::WrongDowngradeVersionFormat => {
                "etcdserver: wrong downgrade target version format"
            }
            ApiError::InvalidDowngradeTargetVersion => {
                "etcdserver: invalid downgrade target version"
            }
            ApiError::ClusterVersionUnavailable => {
                "etcdserver: cluster version not found during downgrade"
            }
            ApiError::DowngradeInProcess => "etcdserver: cluster has a downgrade job in progress",
            ApiError::NoInflightDowngrade => "etcdserver: no inflight downgrade job",
            ApiError::Canceled => "etcdserver: request canceled",
            ApiError::DeadlineExceeded => "etcdserver: context deadline exceeded",
            ApiError::PasswordForNoPasswordUser => {
                "auth: authentication failed, password was given for no password user"
            }
            ApiError::PasswordTooLong => "bcrypt: password length exceeds 72 bytes",
            ApiError::NotPrimaryLessor => "not a primary lessor",
            ApiError::ProposalDropped => "raft proposal dropped",
            ApiError::RaftStopped => "raft: stopped",
            ApiError::UnknownMethod => "etcdserver: unknown method",
            ApiError::LeaderTransferTimeout => {
                "etcdserver: request timed out, leader transfer took too long"
            }
            ApiError::ContextCanceled => "context canceled",
            ApiError::ContextDeadlineExceeded => "context deadline exceeded",
            ApiError::RangeStreamSortOrder => "RangeStream does not support custom sort orders",
            ApiError::RangeStreamFilters => "RangeStream does not support revision filters",
            ApiError::UnknownHealthService => "unknown service",
        }
    }

    /// The error with exactly this text.
    #[must_use]
    pub fn from_text(text: &str) -> Option<ApiError> {
        ApiError::ALL.iter().copied().find(|e| e.text() == text)
    }

    /// The text that Go's gRPC prints for a status: what watch cancel reasons carry.
    #[must_use]
    pub fn go_status_text(self) -> String {
        format!(
            "rpc error: code = {} desc = {}",
            self.code().go_name(),
            self.text()
        )
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn texts_are_unique_and_lead_back_to_their_error() {
        let texts: BTreeSet<_> = ApiError::ALL.iter().map(|e| e.text()).collect();
        assert_eq!(texts.len(), ApiError::ALL.len());
        for error in ApiError::ALL {
            assert_eq!(ApiError::from_text(error.text()), Some(*error));
        }
    }

    #[test]
    fn a_denied_watch_carries_the_text_that_go_prints() {
        assert_eq!(
            ApiError::PermissionDenied.go_status_text(),
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
        );
    }

    #[test]
    fn two_errors_go_out_as_unknown_although_their_names_say_otherwise() {
        assert_eq!(ApiError::TooManyRequests.code(), Code::Unknown);
        assert_eq!(ApiError::MemberNotEnoughStarted.code(), Code::Unknown);
    }
}
