//! What hashes of several members say about who is corrupt. Pure.
//!
//! # Source
//!
//! `spec/formats.md` 5.6.

use std::collections::BTreeMap;

use keelson_proto::ids::MemberId;
use keelson_store::hash::HashKv;

/// What another member says of its history up to a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHash {
    /// Its current revision.
    pub revision: i64,
    /// The hash, and what it covers.
    pub hash: HashKv,
}

/// The answer of another member that was asked for a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAnswer {
    /// The hash.
    Hash(PeerHash),
    /// Its history does not reach that far, or has been compacted past it, or it is of another
    /// cluster: nothing can be said.
    Refused,
    /// None came.
    Silent,
}

/// An answer, and whose it is.
pub type Answer = (MemberId, PeerAnswer);

/// What one member found out about its own history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnHash {
    /// This member.
    pub member: MemberId,
    /// The hash, and what it covers.
    pub hash: HashKv,
    /// The current revision.
    pub revision: i64,
}

/// Compares a member that starts with those that run: whether it may go on.
///
/// # Errors
///
/// The members that differ at the same revision and compaction.
pub fn at_start(own: &OwnHash, answers: &[Answer]) -> Result<(), Vec<MemberId>> {
    let mut differ = Vec::new();
    for (member, answer) in answers {
        let PeerAnswer::Hash(peer) = answer else {
            tracing::warn!(
                "local-member-id" = %own.member,
                "remote-peer-id" = %member,
                ?answer,
                "failed hash kv request"
            );
            continue;
        };
        if peer.hash.hash == own.hash.hash {
            continue;
        }
        if peer.hash.compact_revision == own.hash.compact_revision {
            differ.push(*member);
        }
        tracing::warn!(
            "local-member-id" = %own.member,
            "local-member-revision" = own.hash.hash_revision,
            "local-member-compact-revision" = own.hash.compact_revision,
            "local-member-hash" = own.hash.hash,
            "remote-peer-id" = %member,
            "remote-peer-revision" = peer.revision,
            "remote-peer-compact-revision" = peer.hash.compact_revision,
            "remote-peer-hash" = peer.hash.hash,
            "found different hash values from remote peer"
        );
    }
    if differ.is_empty() {
        Ok(())
    } else {
        Err(differ)
    }
}

/// Compares the leader, before it has asked the others at its revision then and after that, with their
/// answers. Who is corrupt: at most one member a round, as in etcd.
#[must_use]
pub fn periodic(before: &OwnHash, after: &OwnHash, answers: &[Answer]) -> Option<MemberId> {
    let (first, second) = (&before.hash, &after.hash);
    let same_history = first.hash_revision == second.hash_revision
        && first.compact_revision == second.compact_revision;
    if same_history && first.hash != second.hash {
        tracing::warn!(
            "local-member-id" = %before.member,
            revision = first.hash_revision,
            "found hash mismatch"
        );
        return Some(before.member);
    }
    let is_corrupt = |peer: &PeerHash| {
        let theirs = &peer.hash;
        // A leader that was just heard by a quorum has applied all that anybody has.
        peer.revision > after.revision
            || theirs.compact_revision > second.compact_revision
            || theirs.compact_revision == first.compact_revision && theirs.hash != first.hash
    };
    answers.iter().find_map(|(member, answer)| match answer {
        PeerAnswer::Hash(peer) if is_corrupt(peer) => {
            tracing::warn!(
                "local-member-id" = %before.member,
                "remote-peer-id" = %member,
                "leader-revision" = after.revision,
                "leader-compact-revision" = second.compact_revision,
                "leader-hash" = first.hash,
                "peer-revision" = peer.revision,
                "peer-compact-revision" = peer.hash.compact_revision,
                "peer-hash" = peer.hash.hash,
                "found a member with other data than the leader"
            );
            Some(*member)
        }
        _ => None,
    })
}

/// What comes of comparing the hash of one compaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compared {
    /// All members have it, and it is the same.
    Whole,
    /// The same on all that could be compared; not all could.
    Part,
    /// These members are corrupt; nobody's id if no majority says who.
    Corrupt(Vec<MemberId>),
}

/// Compares the leader's hash of a compaction with the others'.
#[must_use]
pub fn compaction(leader: MemberId, own: &HashKv, answers: &[Answer]) -> Compared {
    let mut members: BTreeMap<u32, Vec<MemberId>> = BTreeMap::new();
    members.entry(own.hash).or_default().push(leader);
    let mut compared = 0;
    for (member, answer) in answers {
        match answer {
            PeerAnswer::Hash(peer) if peer.hash.compact_revision == own.compact_revision => {
                compared += 1;
                members.entry(peer.hash.hash).or_default().push(*member);
            }
            other => tracing::warn!(
                "local-member-id" = %leader,
                "leader-compact-revision" = own.compact_revision,
                "remote-peer-id" = %member,
                answer = ?other,
                "Skipped peer's hash"
            ),
        }
    }
    if members.len() == 1 {
        return if compared == answers.len() {
            Compared::Whole
        } else {
            Compared::Part
        };
    }
    let everybody = answers.len() + 1;
    let quorum = everybody / 2 + 1;
    let majority = members.iter().find(|(_, of)| of.len() >= quorum);
    let Some(majority) = majority.map(|(hash, _)| *hash) else {
        tracing::error!(
            "Detected compaction hash mismatch but cannot identify the corrupted members, so \
             intentionally set the memberID as 0"
        );
        return Compared::Corrupt(vec![MemberId::NONE]);
    };
    members.remove(&majority);
    Compared::Corrupt(members.into_values().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: MemberId = MemberId(1);

    fn hash(hash: u32, compact_revision: i64) -> HashKv {
        HashKv {
            hash,
            compact_revision,
            hash_revision: 10,
        }
    }

    fn own(value: u32, compact_revision: i64) -> OwnHash {
        OwnHash {
            member: LEADER,
            hash: hash(value, compact_revision),
            revision: 12,
        }
    }

    fn says(member: u64, value: u32, compact_revision: i64, revision: i64) -> Answer {
        let hash = hash(value, compact_revision);
        (
            MemberId(member),
            PeerAnswer::Hash(PeerHash { revision, hash }),
        )
    }

    #[test]
    fn a_start_ends_at_another_hash_of_the_same_history_only() {
        let silent = (MemberId(4), PeerAnswer::Silent);
        let refused = (MemberId(5), PeerAnswer::Refused);
        let mut answers = vec![says(2, 7, 5, 20), says(3, 8, 6, 20), silent, refused];
        assert_eq!(at_start(&own(7, 5), &answers), Ok(()));
        answers.push(says(6, 8, 5, 20));
        assert_eq!(at_start(&own(7, 5), &answers), Err(vec![MemberId(6)]));
    }

    #[test]
    fn a_round_finds_the_leader_or_the_first_member_that_differs() {
        let round = |second: OwnHash, answers: &[Answer]| periodic(&own(7, 5), &second, answers);
        let good = says(2, 7, 5, 12);
        assert_eq!(round(own(7, 5), &[good]), None);
        assert_eq!(round(own(8, 5), &[good]), Some(LEADER));
        assert_eq!(round(own(8, 6), &[good]), None, "compacted meanwhile");
        assert_eq!(
            round(own(7, 5), &[good, says(3, 8, 5, 12)]),
            Some(MemberId(3))
        );
        assert_eq!(round(own(7, 5), &[says(3, 8, 4, 12)]), None);
        assert_eq!(round(own(7, 5), &[says(3, 7, 5, 13)]), Some(MemberId(3)));
        assert_eq!(round(own(7, 5), &[says(3, 7, 6, 12)]), Some(MemberId(3)));
    }

    #[test]
    fn the_majority_of_hashes_of_a_compaction_is_right() {
        let check = |answers: &[Answer]| compaction(LEADER, &hash(7, 5), answers);
        let same = says(2, 7, 5, 12);
        assert_eq!(check(&[same, says(3, 7, 5, 9)]), Compared::Whole);
        assert_eq!(check(&[same, says(3, 8, 4, 9)]), Compared::Part);
        assert_eq!(
            check(&[same, (MemberId(3), PeerAnswer::Silent)]),
            Compared::Part
        );
        let corrupt = |ids: &[u64]| Compared::Corrupt(ids.iter().map(|id| MemberId(*id)).collect());
        assert_eq!(check(&[same, says(3, 8, 5, 9)]), corrupt(&[3]));
        let (two, three) = (says(2, 8, 5, 9), says(3, 8, 5, 9));
        assert_eq!(check(&[two, three]), corrupt(&[1]));
        assert_eq!(check(&[two, says(3, 9, 5, 9)]), corrupt(&[0]));
        assert_eq!(check(&[two]), corrupt(&[0]), "one against one");
    }
}
