//! Majorities: what is committed, and how a vote ends.

use std::collections::BTreeSet;

use keelson_proto::ids::MemberId;
use smallvec::SmallVec;

/// How a vote stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteResult {
    /// The votes that are missing decide.
    Pending,
    /// A yes of the quorum is no longer possible.
    Lost,
    /// A quorum said yes.
    Won,
}

/// A set of voters that decides by majority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MajorityConfig(pub BTreeSet<MemberId>);

impl MajorityConfig {
    fn quorum(&self) -> usize {
        self.0.len() / 2 + 1
    }

    /// The largest number that a majority has reached; `u64::MAX` for no voters, so that an empty
    /// half of a joint configuration decides nothing.
    ///
    /// `acked` says how far a voter is, if it said anything.
    pub fn committed(&self, acked: impl Fn(MemberId) -> Option<u64>) -> u64 {
        let mut reached: SmallVec<[u64; 8]> =
            self.0.iter().map(|&id| acked(id).unwrap_or(0)).collect();
        reached.sort_unstable_by(|a, b| b.cmp(a));
        if reached.is_empty() {
            u64::MAX
        } else {
            reached[self.quorum() - 1]
        }
    }

    /// How a vote stands; no voters agree to everything.
    ///
    /// `votes` says what a voter said, if it said anything.
    pub fn vote_result(&self, votes: impl Fn(MemberId) -> Option<bool>) -> VoteResult {
        let (mut yes, mut missing) = (0, 0);
        for &id in &self.0 {
            match votes(id) {
                Some(true) => yes += 1,
                Some(false) => {}
                None => missing += 1,
            }
        }
        if self.0.is_empty() || yes >= self.quorum() {
            VoteResult::Won
        } else if yes + missing >= self.quorum() {
            VoteResult::Pending
        } else {
            VoteResult::Lost
        }
    }
}

impl FromIterator<MemberId> for MajorityConfig {
    fn from_iter<I: IntoIterator<Item = MemberId>>(ids: I) -> Self {
        MajorityConfig(ids.into_iter().collect())
    }
}

/// Voters, and while a change is under way the outgoing ones too: then both must agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JointConfig {
    /// The voters, or those that will be.
    pub incoming: MajorityConfig,
    /// Those that were; empty unless joint.
    pub outgoing: MajorityConfig,
}

impl JointConfig {
    /// Everybody who votes in either half.
    #[must_use]
    pub fn ids(&self) -> BTreeSet<MemberId> {
        self.incoming.0.union(&self.outgoing.0).copied().collect()
    }

    /// Whether `id` votes in either half.
    #[must_use]
    pub fn contains(&self, id: MemberId) -> bool {
        self.incoming.0.contains(&id) || self.outgoing.0.contains(&id)
    }

    /// The largest number that both halves have reached.
    pub fn committed(&self, acked: impl Fn(MemberId) -> Option<u64>) -> u64 {
        self.incoming
            .committed(&acked)
            .min(self.outgoing.committed(&acked))
    }

    /// How a vote stands: won by both halves, lost by either.
    pub fn vote_result(&self, votes: impl Fn(MemberId) -> Option<bool>) -> VoteResult {
        match (
            self.incoming.vote_result(&votes),
            self.outgoing.vote_result(&votes),
        ) {
            (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
            (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
            _ => VoteResult::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn voters() -> impl Strategy<Value = MajorityConfig> {
        proptest::collection::btree_set((1_u64..10).prop_map(MemberId), 0..8)
            .prop_map(MajorityConfig)
    }

    fn joint() -> impl Strategy<Value = JointConfig> {
        (voters(), voters()).prop_map(|(incoming, outgoing)| JointConfig { incoming, outgoing })
    }

    fn majority_says(half: &MajorityConfig, says: impl Fn(MemberId) -> bool) -> bool {
        half.0.is_empty() || half.0.iter().filter(|&&id| says(id)).count() * 2 > half.0.len()
    }

    proptest! {
        #[test]
        fn committed_is_the_largest_index_that_a_majority_of_both_halves_has(
            config in joint(),
            acked in proptest::collection::btree_map((1_u64..10).prop_map(MemberId), 0_u64..20, 0..9),
        ) {
            let has = |index: u64| {
                let says = |id| acked.get(&id).copied().unwrap_or(0) >= index;
                majority_says(&config.incoming, says) && majority_says(&config.outgoing, says)
            };
            let committed = config.committed(|id| acked.get(&id).copied());
            if config.ids().is_empty() {
                prop_assert_eq!(committed, u64::MAX);
            } else {
                let dumb = (0..=20).rev().find(|&index| has(index)).unwrap();
                prop_assert_eq!(committed, dumb);
            }
        }

        #[test]
        fn a_vote_is_pending_exactly_while_both_ends_are_possible(
            config in joint(),
            votes in proptest::collection::btree_map((1_u64..10).prop_map(MemberId), any::<bool>(), 0..9),
        ) {
            let ends_well = |votes: &BTreeMap<MemberId, bool>, missing: bool| {
                let says = |id| votes.get(&id).copied().unwrap_or(missing);
                majority_says(&config.incoming, says) && majority_says(&config.outgoing, says)
            };
            let expected = match (ends_well(&votes, false), ends_well(&votes, true)) {
                (true, _) => VoteResult::Won,
                (false, true) => VoteResult::Pending,
                (false, false) => VoteResult::Lost,
            };
            prop_assert_eq!(config.vote_result(|id| votes.get(&id).copied()), expected);
        }
    }
}
