//! Configuration and change give a configuration.
//!
//! A simple change alters at most one voter. Anything else goes through a joint configuration, in
//! which the outgoing voters and the incoming ones must both agree, and which a second change leaves.
//! A change that is refused alters nothing.
//!
//! # Source
//!
//! Ongaro's thesis, chapter 4; etcd-io/raft v3.7 `confchange`.

use keelson_proto::entry::{
    ConfChange, ConfChangeKind, ConfChangeSingle, ConfChangeTransition, ConfChangeV2, ConfState,
    EntryKind,
};
use keelson_proto::ids::{LogIndex, MemberId};
use thiserror::Error;

use crate::quorum::MajorityConfig;
use crate::tracker::Tracker;

/// Why a change does not fit the configuration.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfChangeError {
    /// A joint configuration must be left before the next one is entered.
    #[error("config is already joint")]
    AlreadyJoint,
    /// There is no joint configuration to leave.
    #[error("can't leave a non-joint config")]
    NotJoint,
    /// Without voters nothing can be agreed.
    #[error("can't make a zero-voter config joint")]
    JointWithoutVoters,
    /// A joint configuration must be left first.
    #[error("can't apply simple config change in joint config")]
    SimpleInJoint,
    /// Two majorities that may not overlap.
    #[error("more than one voter changed without entering joint config")]
    NotSimple,
    /// Nobody would be left to decide anything.
    #[error("removed all voters")]
    RemovedAllVoters,
    /// A stored configuration that no change leads to.
    #[error("ConfStates not equivalent after sorting")]
    NotEquivalent,
}

/// A change in either of its two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyConfChange {
    /// Of one member; the only form that etcd proposes.
    V1(ConfChange),
    /// Of several members.
    V2(ConfChangeV2),
}

impl From<ConfChange> for AnyConfChange {
    fn from(change: ConfChange) -> Self {
        AnyConfChange::V1(change)
    }
}

impl From<ConfChangeV2> for AnyConfChange {
    fn from(change: ConfChangeV2) -> Self {
        AnyConfChange::V2(change)
    }
}

impl AnyConfChange {
    /// The kind and the data of the entry that carries it.
    #[must_use]
    pub fn to_entry_data(&self) -> (EntryKind, bytes::Bytes) {
        match self {
            AnyConfChange::V1(change) => (EntryKind::ConfChange, change.encode()),
            AnyConfChange::V2(change) => (EntryKind::ConfChangeV2, change.encode()),
        }
    }

    /// The same change in the general form.
    #[must_use]
    pub fn into_v2(self) -> ConfChangeV2 {
        match self {
            AnyConfChange::V1(change) => as_v2(&change),
            AnyConfChange::V2(change) => change,
        }
    }
}

/// The same change in the general form.
#[must_use]
pub fn as_v2(change: &ConfChange) -> ConfChangeV2 {
    ConfChangeV2 {
        transition: ConfChangeTransition::Auto,
        changes: vec![ConfChangeSingle {
            kind: change.kind,
            member: change.member,
        }],
        context: change.context.clone(),
    }
}

/// Whether it leaves a joint configuration.
pub(crate) fn leaves_joint(change: &ConfChangeV2) -> bool {
    change.transition == ConfChangeTransition::Auto && change.changes.is_empty()
}

/// Whether it enters a joint configuration; if so, whether that one is left by itself.
fn enters_joint(change: &ConfChangeV2) -> Option<bool> {
    match change.transition {
        ConfChangeTransition::Auto => (change.changes.len() > 1).then_some(true),
        ConfChangeTransition::JointImplicit => Some(true),
        ConfChangeTransition::JointExplicit => Some(false),
    }
}

impl Tracker {
    /// Carries out a change in the way it asks for. `last_index` is the end of the leader's log,
    /// where new members are probed first.
    ///
    /// # Errors
    ///
    /// Those of [`Tracker::simple`], [`Tracker::enter_joint`] and [`Tracker::leave_joint`].
    pub fn change(
        &mut self,
        change: &ConfChangeV2,
        last_index: LogIndex,
    ) -> Result<(), ConfChangeError> {
        if leaves_joint(change) {
            self.leave_joint()
        } else if let Some(auto_leave) = enters_joint(change) {
            self.enter_joint(auto_leave, &change.changes, last_index)
        } else {
            self.simple(&change.changes, last_index)
        }
    }

    /// Alters at most one voter, at once.
    ///
    /// # Errors
    ///
    /// [`ConfChangeError::SimpleInJoint`], [`ConfChangeError::RemovedAllVoters`] and
    /// [`ConfChangeError::NotSimple`].
    pub fn simple(
        &mut self,
        changes: &[ConfChangeSingle],
        last_index: LogIndex,
    ) -> Result<(), ConfChangeError> {
        if self.config.is_joint() {
            return Err(ConfChangeError::SimpleInJoint);
        }
        let mut next = self.clone();
        next.apply_all(changes, last_index)?;
        let before = &self.config.voters.incoming.0;
        let after = &next.config.voters.incoming.0;
        if before.symmetric_difference(after).count() > 1 {
            return Err(ConfChangeError::NotSimple);
        }
        self.adopt(next);
        Ok(())
    }

    /// Makes the voters outgoing, and the changed ones incoming.
    ///
    /// # Errors
    ///
    /// [`ConfChangeError::AlreadyJoint`], [`ConfChangeError::JointWithoutVoters`] and
    /// [`ConfChangeError::RemovedAllVoters`].
    pub fn enter_joint(
        &mut self,
        auto_leave: bool,
        changes: &[ConfChangeSingle],
        last_index: LogIndex,
    ) -> Result<(), ConfChangeError> {
        if self.config.is_joint() {
            return Err(ConfChangeError::AlreadyJoint);
        }
        if self.config.voters.incoming.0.is_empty() {
            return Err(ConfChangeError::JointWithoutVoters);
        }
        let mut next = self.clone();
        next.config.voters.outgoing = next.config.voters.incoming.clone();
        next.apply_all(changes, last_index)?;
        next.config.auto_leave = auto_leave;
        self.adopt(next);
        Ok(())
    }

    /// Lets go of the outgoing voters; those that were to become learners do.
    ///
    /// # Errors
    ///
    /// [`ConfChangeError::NotJoint`].
    pub fn leave_joint(&mut self) -> Result<(), ConfChangeError> {
        if !self.config.is_joint() {
            return Err(ConfChangeError::NotJoint);
        }
        let mut next = self.clone();
        for id in std::mem::take(&mut next.config.learners_next) {
            next.config.learners.insert(id);
            if let Some(progress) = next.progress.get_mut(&id) {
                progress.is_learner = true;
            }
        }
        let outgoing = std::mem::take(&mut next.config.voters.outgoing);
        for id in outgoing.0 {
            if !next.config.voters.contains(id) && !next.config.learners.contains(&id) {
                next.progress.remove(&id);
            }
        }
        next.config.auto_leave = false;
        self.adopt(next);
        Ok(())
    }

    /// The tracker of a stored configuration, with the limits of this one.
    ///
    /// # Errors
    ///
    /// As for changes, and [`ConfChangeError::NotEquivalent`] if the lists contradict each other.
    pub fn restored(
        &self,
        state: &ConfState,
        last_index: LogIndex,
    ) -> Result<Tracker, ConfChangeError> {
        let all = |kind: ConfChangeKind, ids: &[MemberId]| {
            let single = |&member: &MemberId| ConfChangeSingle { kind, member };
            ids.iter().map(single).collect::<Vec<_>>()
        };
        let outgoing = all(ConfChangeKind::AddNode, &state.voters_outgoing);
        let incoming = [
            all(ConfChangeKind::RemoveNode, &state.voters_outgoing),
            all(ConfChangeKind::AddNode, &state.voters),
            all(ConfChangeKind::AddLearnerNode, &state.learners),
            all(ConfChangeKind::AddLearnerNode, &state.learners_next),
        ]
        .concat();

        let mut tracker = self.emptied();
        if outgoing.is_empty() {
            for change in incoming {
                tracker.simple(&[change], last_index)?;
            }
        } else {
            for change in outgoing {
                tracker.simple(&[change], last_index)?;
            }
            tracker.enter_joint(state.auto_leave, &incoming, last_index)?;
        }

        let mut sorted = state.clone();
        for ids in [
            &mut sorted.voters,
            &mut sorted.learners,
            &mut sorted.voters_outgoing,
            &mut sorted.learners_next,
        ] {
            ids.sort_unstable();
        }
        if tracker.config.conf_state() == sorted {
            Ok(tracker)
        } else {
            Err(ConfChangeError::NotEquivalent)
        }
    }

    fn apply_all(
        &mut self,
        changes: &[ConfChangeSingle],
        last_index: LogIndex,
    ) -> Result<(), ConfChangeError> {
        for change in changes {
            // A change that was refused when it was applied names nobody.
            if change.member.is_none() {
                continue;
            }
            match change.kind {
                ConfChangeKind::AddNode => self.make_voter(change.member, last_index),
                ConfChangeKind::AddLearnerNode => self.make_learner(change.member, last_index),
                ConfChangeKind::RemoveNode => self.remove(change.member),
                ConfChangeKind::UpdateNode => {}
            }
        }
        if self.config.voters.incoming.0.is_empty() {
            return Err(ConfChangeError::RemovedAllVoters);
        }
        Ok(())
    }

    fn make_voter(&mut self, id: MemberId, last_index: LogIndex) {
        match self.progress.get_mut(&id) {
            Some(progress) => {
                progress.is_learner = false;
                self.config.learners.remove(&id);
                self.config.learners_next.remove(&id);
            }
            None => self.start_tracking(id, last_index, false),
        }
        self.config.voters.incoming.0.insert(id);
    }

    fn make_learner(&mut self, id: MemberId, last_index: LogIndex) {
        let Some(progress) = self.progress.get_mut(&id) else {
            self.start_tracking(id, last_index, true);
            self.config.learners.insert(id);
            return;
        };
        if progress.is_learner {
            return;
        }
        self.config.voters.incoming.0.remove(&id);
        // An outgoing voter cannot be a learner as well: it becomes one when it stops voting.
        if self.config.voters.outgoing.0.contains(&id) {
            self.config.learners_next.insert(id);
        } else {
            progress.is_learner = true;
            self.config.learners.insert(id);
        }
    }

    fn remove(&mut self, id: MemberId) {
        self.config.voters.incoming.0.remove(&id);
        self.config.learners.remove(&id);
        self.config.learners_next.remove(&id);
        if !self.config.voters.outgoing.0.contains(&id) {
            self.progress.remove(&id);
        }
    }

    fn start_tracking(&mut self, id: MemberId, last_index: LogIndex, is_learner: bool) {
        let mut progress = self.new_progress(last_index.max(LogIndex(1)), is_learner);
        // Otherwise the next check of the quorum could fail before it had a chance to answer.
        progress.recent_active = true;
        self.progress.insert(id, progress);
    }

    fn adopt(&mut self, next: Tracker) {
        next.check();
        *self = next;
    }

    /// Asserts that configuration and progress fit each other.
    fn check(&self) {
        let config = &self.config;
        let members = config.voters.ids().into_iter();
        for id in members.chain(config.learners.iter().copied()) {
            let progress = self.progress.get(&id);
            let progress = progress.expect("every member has a progress");
            assert_eq!(
                progress.is_learner,
                config.learners.contains(&id),
                "{id} must be marked as what it is"
            );
        }
        for id in &config.learners {
            assert!(!config.voters.contains(*id), "{id} is learner and voter");
        }
        let MajorityConfig(outgoing) = &config.voters.outgoing;
        assert!(
            config.learners_next.is_subset(outgoing),
            "only outgoing voters wait to become learners"
        );
        assert!(
            config.is_joint() || !config.auto_leave,
            "only a joint configuration can be left"
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn changes() -> impl Strategy<Value = Vec<ConfChangeSingle>> {
        let kind = prop_oneof![
            Just(ConfChangeKind::AddNode),
            Just(ConfChangeKind::AddLearnerNode),
            Just(ConfChangeKind::RemoveNode),
            Just(ConfChangeKind::UpdateNode),
        ];
        let single = (kind, 0_u64..7).prop_map(|(kind, id)| ConfChangeSingle {
            kind,
            member: MemberId(id),
        });
        proptest::collection::vec(single, 0..6)
    }

    fn started() -> Tracker {
        let state = ConfState {
            voters: vec![MemberId(1)],
            ..ConfState::default()
        };
        Tracker::new(10, 0).restored(&state, LogIndex(1)).unwrap()
    }

    proptest! {
        #[test]
        fn a_joint_change_ends_where_the_single_ones_end(steps in changes()) {
            let mut joint = started();
            let joined = joint.enter_joint(false, &steps, LogIndex(5));
            prop_assume!(joined.is_ok());
            let state = joint.config().conf_state();
            prop_assert_eq!(
                joint.restored(&state, LogIndex(5)).unwrap().config().conf_state(),
                state
            );
            joint.leave_joint().unwrap();

            let mut single = started();
            // A voter first, so that none of the steps removes the last one.
            let anchor = ConfChangeSingle { kind: ConfChangeKind::AddNode, member: MemberId(99) };
            single.simple(&[anchor], LogIndex(5)).unwrap();
            for step in &steps {
                single.simple(std::slice::from_ref(step), LogIndex(5)).unwrap();
            }
            single.remove(MemberId(99));
            prop_assert_eq!(single.config().conf_state(), joint.config().conf_state());
        }

        #[test]
        fn a_refused_change_alters_nothing(steps in changes()) {
            let mut tracker = started();
            let before = tracker.config().clone();
            if tracker.simple(&steps, LogIndex(5)).is_err() {
                prop_assert_eq!(tracker.config(), &before);
            }
        }
    }

    #[test]
    fn a_configuration_that_contradicts_itself_is_refused() {
        let state = ConfState {
            voters: vec![MemberId(1), MemberId(2)],
            learners: vec![MemberId(2)],
            ..ConfState::default()
        };
        let restored = Tracker::new(10, 0).restored(&state, LogIndex(1));
        assert_eq!(restored.unwrap_err(), ConfChangeError::NotEquivalent);
    }
}
