//! Whether a change of the membership may be proposed: what etcd checks on the member that is asked,
//! before anything reaches the log. Pure.
//!
//! What an entry does when it is applied is another matter, and the same on all members:
//! `keelson_store::member`.
//!
//! # Source
//!
//! `spec/api.md` 2.10, `spec/formats.md` 7.9.

use std::time::Duration;

use keelson_proto::ApiError;
use keelson_proto::entry::{ConfChange, ConfChangeKind};
use keelson_proto::ids::MemberId;
use keelson_store::member::{Member, Membership};

use crate::core::PeerProgress;

/// How long a connection must have been up to count.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);

/// Of ten parts of the leader's log, a learner that becomes a voter must have so many.
const READY_TENTHS: u128 = 9;

/// What the member that is asked knows of the others.
pub struct Surroundings<'a> {
    /// That member.
    pub own: MemberId,
    /// The time, by its clock.
    pub now: Duration,
    /// Whether reconfigurations are checked that could cost the quorum (`--strict-reconfig-check`).
    pub strict: bool,
    /// The members as applied.
    pub members: &'a Membership,
    /// Since when the connection to a member has been up.
    pub active_since: &'a dyn Fn(MemberId) -> Option<Duration>,
}

impl Surroundings<'_> {
    /// Voters that have been connected for a while, this member included.
    fn steady_voters(&self) -> usize {
        let before = self.now.checked_sub(HEALTH_INTERVAL);
        let is_steady = |id: MemberId| {
            let since = (self.active_since)(id);
            id == self.own || since.is_some_and(|since| before.is_some_and(|before| since < before))
        };
        let voters = self.members.voters();
        voters.filter(|member| is_steady(member.id)).count()
    }

    /// The change that adds a member.
    ///
    /// # Errors
    ///
    /// [`ApiError::MemberNotEnoughStarted`], [`ApiError::Unhealthy`].
    pub fn add(&self, member: &Member) -> Result<ConfChange, ApiError> {
        if self.strict {
            if !member.is_learner && !self.members.may_add_voter() {
                return Err(ApiError::MemberNotEnoughStarted);
            }
            // The new member counts as down; a lone one may always get a second one.
            let voters = self.members.voters().count();
            if voters != 1 && self.steady_voters() < quorum(voters + 1) {
                return Err(ApiError::Unhealthy);
            }
        }
        let kind = if member.is_learner {
            ConfChangeKind::AddLearnerNode
        } else {
            ConfChangeKind::AddNode
        };
        Ok(change(kind, member.id, member.add_context()))
    }

    /// The change that removes a member.
    ///
    /// # Errors
    ///
    /// As [`Surroundings::add`].
    pub fn remove(&self, id: MemberId) -> Result<ConfChange, ApiError> {
        let is_learner = self.members.member(id).is_some_and(|it| it.is_learner);
        if self.strict && !is_learner {
            if !self.members.may_remove_voter(id) {
                return Err(ApiError::MemberNotEnoughStarted);
            }
            // One that is down may go: it is no part of the quorum that works.
            let is_up = id == self.own || (self.active_since)(id).is_some();
            let left = self.members.voters().count().saturating_sub(1);
            if is_up && self.steady_voters() <= quorum(left) {
                return Err(ApiError::Unhealthy);
            }
        }
        Ok(change(ConfChangeKind::RemoveNode, id, Vec::new()))
    }

    /// The change that gives a member other peer URLs.
    #[must_use]
    pub fn update(&self, id: MemberId, peer_urls: Vec<String>) -> ConfChange {
        let member = Member {
            id,
            peer_urls,
            ..Member::default()
        };
        change(ConfChangeKind::UpdateNode, id, member.to_json())
    }

    /// The change that makes a learner a voter, by what the leader knows of the others.
    ///
    /// # Errors
    ///
    /// [`ApiError::NotLeader`] where nothing is known, [`ApiError::MemberNotFound`],
    /// [`ApiError::LearnerNotReady`], [`ApiError::MemberNotEnoughStarted`].
    pub fn promote(&self, id: MemberId, progress: &[PeerProgress]) -> Result<ConfChange, ApiError> {
        let matched = |id| {
            let mut found = progress.iter().filter(|it| it.member == id);
            found.next().map(|it| u128::from(it.matched.0))
        };
        let leader = matched(self.own).ok_or(ApiError::NotLeader)?;
        let learner = matched(id).ok_or(ApiError::MemberNotFound)?;
        if learner * 10 < leader * READY_TENTHS {
            return Err(ApiError::LearnerNotReady);
        }
        if self.strict && !self.members.may_promote() {
            return Err(ApiError::MemberNotEnoughStarted);
        }
        let context = Member::promote_context(id);
        Ok(change(ConfChangeKind::AddNode, id, context))
    }
}

fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

fn change(kind: ConfChangeKind, member: MemberId, context: Vec<u8>) -> ConfChange {
    ConfChange {
        id: 0,
        kind,
        member,
        context: context.into(),
    }
}

#[cfg(test)]
mod tests {
    use keelson_proto::ids::LogIndex;
    use keelson_proto::rpc::membershippb::{Attributes, ClusterMemberAttrSetRequest};
    use keelson_store::member::Change;

    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn member(id: u64, is_learner: bool) -> Member {
        Member {
            id: MemberId(id),
            peer_urls: vec![format!("http://127.0.0.1:{id}")],
            is_learner,
            ..Member::default()
        }
    }

    /// Members from 1 on; those in `silent` have not started, those in `learners` have no vote.
    fn members(count: u64, silent: &[u64], learners: &[u64]) -> Membership {
        let (mut members, mut rows) = (Membership::default(), Vec::new());
        for id in 1..=count {
            let is_learner = learners.contains(&id);
            let member = member(id, is_learner);
            let as_learner = is_learner;
            members.apply(Change::Add { member, as_learner }, &mut rows);
            if !silent.contains(&id) {
                let request = ClusterMemberAttrSetRequest {
                    member_id: id,
                    member_attributes: Some(Attributes {
                        name: format!("m{id}"),
                        client_urls: Vec::new(),
                    }),
                };
                members.set_attributes(&request, &mut rows).unwrap();
            }
        }
        members
    }

    /// Asks member 1, where those in `down` are not connected and those in `fresh` only just.
    fn ask<T>(
        members: &Membership,
        (down, fresh): (&[u64], &[u64]),
        question: impl FnOnce(&Surroundings<'_>) -> T,
    ) -> T {
        let active_since = |id: MemberId| {
            let since = if fresh.contains(&id.0) { 97 } else { 10 };
            (!down.contains(&id.0)).then_some(Duration::from_secs(since))
        };
        question(&Surroundings {
            own: MemberId(1),
            now: NOW,
            strict: true,
            members,
            active_since: &active_since,
        })
    }

    #[test]
    fn a_voter_is_added_only_where_the_larger_cluster_still_has_a_quorum() {
        let add = |of: &Membership, links| ask(of, links, |it| it.add(&member(9, false)));
        assert!(add(&members(1, &[], &[]), (&[], &[])).is_ok());
        assert!(add(&members(3, &[], &[]), (&[], &[])).is_ok());
        let error = add(&members(3, &[3], &[]), (&[], &[])).unwrap_err();
        assert_eq!(error, ApiError::MemberNotEnoughStarted);
        let error = add(&members(3, &[], &[]), (&[2], &[])).unwrap_err();
        assert_eq!(error, ApiError::Unhealthy);
        let error = add(&members(3, &[], &[]), (&[], &[2])).unwrap_err();
        assert_eq!(error, ApiError::Unhealthy, "three seconds are too few");
        // Five voters: four of six is a quorum.
        assert!(add(&members(5, &[], &[]), (&[2], &[])).is_ok());
    }

    #[test]
    fn a_learner_needs_connections_and_no_started_members() {
        let add = |of: &Membership, links| ask(of, links, |it| it.add(&member(9, true)));
        let change = add(&members(3, &[3], &[]), (&[], &[])).unwrap();
        assert_eq!(change.kind, ConfChangeKind::AddLearnerNode);
        let error = add(&members(3, &[], &[]), (&[2], &[])).unwrap_err();
        assert_eq!(error, ApiError::Unhealthy);
    }

    #[test]
    fn a_member_that_is_down_may_go_and_one_that_works_only_if_enough_are_left() {
        let remove =
            |of: &Membership, id, links| ask(of, links, |it| it.remove(MemberId(id)).err());
        let three = members(3, &[], &[]);
        assert_eq!(remove(&three, 2, (&[], &[])), None);
        assert_eq!(remove(&three, 2, (&[2], &[])), None);
        assert_eq!(remove(&three, 3, (&[2], &[])), Some(ApiError::Unhealthy));
        assert_eq!(remove(&three, 1, (&[2], &[])), Some(ApiError::Unhealthy));
        let silent = members(3, &[2, 3], &[]);
        assert_eq!(
            remove(&silent, 3, (&[], &[])),
            Some(ApiError::MemberNotEnoughStarted)
        );
        let learner = members(2, &[2], &[2]);
        assert_eq!(remove(&learner, 2, (&[2], &[])), None);
    }

    #[test]
    fn a_learner_is_promoted_at_nine_tenths_of_the_leaders_log() {
        let of = members(2, &[], &[2]);
        let progress = |matched| {
            [(1, 1_000), (2, matched)].map(|(id, matched)| PeerProgress {
                member: MemberId(id),
                matched: LogIndex(matched),
                is_learner: id == 2,
                is_active: true,
            })
        };
        let promote = |id, progress: &[PeerProgress]| {
            ask(&of, (&[], &[]), |it| {
                it.promote(MemberId(id), progress).err()
            })
        };
        assert_eq!(promote(2, &progress(900)), None);
        assert_eq!(promote(2, &progress(899)), Some(ApiError::LearnerNotReady));
        assert_eq!(promote(3, &progress(900)), Some(ApiError::MemberNotFound));
        assert_eq!(promote(2, &[]), Some(ApiError::NotLeader));
    }

    #[test]
    fn without_the_strict_check_everything_may_be_proposed() {
        let of = members(3, &[2, 3], &[]);
        ask(&of, (&[2, 3], &[]), |it| {
            let it = Surroundings {
                strict: false,
                active_since: it.active_since,
                ..*it
            };
            assert!(it.add(&member(9, false)).is_ok());
            assert!(it.remove(MemberId(1)).is_ok());
        });
    }
}
