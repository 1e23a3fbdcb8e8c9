//! Numbers that must not be mixed up, each a type of its own.
//!
//! Member, cluster and request ids print as etcd prints them: lower-case hex without padding.

use std::fmt;

/// An election term; 0 before the first election.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

/// A position in the replicated log; the first entry has 1, 0 is before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogIndex(pub u64);

/// A member of a cluster; 0 is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// A cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

/// A proposal, unique over members and restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A lease; 0 is none, negative ids are legal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl Term {
    /// The following term.
    #[must_use]
    pub fn next(self) -> Term {
        Term(self.0 + 1)
    }
}

impl LogIndex {
    /// The following position.
    #[must_use]
    pub fn next(self) -> LogIndex {
        LogIndex(self.0 + 1)
    }

    /// The position before, or 0.
    #[must_use]
    pub fn previous(self) -> LogIndex {
        LogIndex(self.0.saturating_sub(1))
    }
}

impl MemberId {
    /// Nobody: no vote, no leader.
    pub const NONE: MemberId = MemberId(0);

    /// Whether this is nobody.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == MemberId::NONE
    }
}

impl LeaseId {
    /// No lease.
    pub const NONE: LeaseId = LeaseId(0);

    /// Whether this is no lease.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == LeaseId::NONE
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// Sixteen hex digits, as etcd logs and prints leases.
impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_as_etcd_prints_them() {
        assert_eq!(
            MemberId(0x8e9e_05c5_2164_694d).to_string(),
            "8e9e05c52164694d"
        );
        assert_eq!(MemberId(0x1f).to_string(), "1f");
        assert_eq!(LeaseId(0x1f).to_string(), "000000000000001f");
        assert_eq!(LeaseId(-1).to_string(), "ffffffffffffffff");
        assert_eq!(Term(17).to_string(), "17");
    }
}
