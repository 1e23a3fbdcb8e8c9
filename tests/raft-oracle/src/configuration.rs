//! Configurations under random changes, and what they decide.

use std::collections::BTreeMap;

use anyhow::{bail, ensure};
use keelson_proto::entry::{ConfChangeKind, ConfChangeSingle, ConfState};
use keelson_proto::ids::{LogIndex, MemberId};
use keelson_raft::Tracker;
use keelson_raft::quorum::VoteResult;
use raft::eraftpb;
use raft::{Changer, ProgressTracker};

use crate::Counts;
use crate::random::Random;

const MEMBERS: u64 = 7;
const STEPS: u64 = 30;
const WINDOW: usize = 8;

/// Both implementations, side by side.
struct Pair {
    ours: Tracker,
    theirs: ProgressTracker,
}

#[derive(Debug)]
enum Change {
    Simple(Vec<ConfChangeSingle>),
    Enter(bool, Vec<ConfChangeSingle>),
    Leave,
}

/// One walk from an empty configuration.
pub fn round(random: &mut Random, counts: &mut Counts) -> anyhow::Result<()> {
    let mut pair = Pair {
        ours: Tracker::new(WINDOW, 0),
        theirs: ProgressTracker::new(WINDOW),
    };
    for step in 0..STEPS {
        let change = draw(random);
        let before = pair.ours.config().conf_state();
        let taken = pair.change(&change);
        let said = || format!("step {step}: {change:?} from {before:?}");
        match taken {
            (Ok(()), Ok(())) => counts.changes_taken += 1,
            (Err(_), Err(_)) => counts.changes_refused += 1,
            (ours, theirs) => bail!("{}: we say {ours:?}, they say {theirs:?}", said()),
        }
        pair.compare().map_err(|error| error.context(said()))?;
        pair.decide(random).map_err(|error| error.context(said()))?;
    }
    Ok(())
}

fn draw(random: &mut Random) -> Change {
    let singles = |random: &mut Random, most: u64| {
        (0..random.below(most) + 1)
            .map(|_| ConfChangeSingle {
                kind: match random.below(3) {
                    0 => ConfChangeKind::AddNode,
                    1 => ConfChangeKind::RemoveNode,
                    _ => ConfChangeKind::AddLearnerNode,
                },
                // 0 stands for a change that was refused on its way.
                member: MemberId(random.below(MEMBERS + 1)),
            })
            .collect()
    };
    match random.below(10) {
        0..5 => Change::Simple(singles(random, 2)),
        5..8 => Change::Enter(random.percent(50), singles(random, 4)),
        _ => Change::Leave,
    }
}

fn translate(changes: &[ConfChangeSingle]) -> Vec<eraftpb::ConfChangeSingle> {
    let one = |change: &ConfChangeSingle| {
        let mut single = eraftpb::ConfChangeSingle::default();
        // By name: the two number them differently.
        single.set_change_type(match change.kind {
            ConfChangeKind::AddNode => eraftpb::ConfChangeType::AddNode,
            ConfChangeKind::RemoveNode => eraftpb::ConfChangeType::RemoveNode,
            ConfChangeKind::AddLearnerNode => eraftpb::ConfChangeType::AddLearnerNode,
            ConfChangeKind::UpdateNode => unreachable!("never drawn: they have no such change"),
        });
        single.set_node_id(change.member.0);
        single
    };
    changes.iter().map(one).collect()
}

type Verdict = Result<(), String>;

impl Pair {
    fn change(&mut self, change: &Change) -> (Verdict, Verdict) {
        let last = LogIndex(0);
        let ours = match change {
            Change::Simple(changes) => self.ours.simple(changes, last),
            Change::Enter(auto_leave, changes) => self.ours.enter_joint(*auto_leave, changes, last),
            Change::Leave => self.ours.leave_joint(),
        };
        let mut changer = Changer::new(&self.theirs);
        let theirs = match change {
            Change::Simple(changes) => changer.simple(&translate(changes)),
            Change::Enter(auto_leave, changes) => {
                changer.enter_joint(*auto_leave, &translate(changes))
            }
            Change::Leave => changer.leave_joint(),
        };
        let theirs = theirs.map(|(config, changes)| self.theirs.apply_conf(config, changes, 1));
        (
            ours.map_err(|error| error.to_string()),
            theirs.map_err(|error| error.to_string()),
        )
    }

    fn compare(&self) -> anyhow::Result<()> {
        let ours = self.ours.config().conf_state();
        let state = self.theirs.conf().to_conf_state();
        let sorted = |ids: &[u64]| {
            let mut ids: Vec<_> = ids.iter().copied().map(MemberId).collect();
            ids.sort_unstable();
            ids
        };
        let theirs = ConfState {
            voters: sorted(state.get_voters()),
            learners: sorted(state.get_learners()),
            voters_outgoing: sorted(state.get_voters_outgoing()),
            learners_next: sorted(state.get_learners_next()),
            auto_leave: state.get_auto_leave(),
        };
        ensure!(ours == theirs, "we have {ours:?}, they have {theirs:?}");

        let ours: Vec<_> = self.ours.progress().keys().map(|id| id.0).collect();
        let mut theirs: Vec<_> = self.theirs.iter().map(|(id, _)| *id).collect();
        theirs.sort_unstable();
        ensure!(ours == theirs, "we track {ours:?}, they track {theirs:?}");
        Ok(())
    }

    /// What is committed, and how a vote stands, at random.
    fn decide(&mut self, random: &mut Random) -> anyhow::Result<()> {
        let mut reached = BTreeMap::new();
        for (id, progress) in self.theirs.iter_mut() {
            progress.matched = random.below(20);
            reached.insert(*id, progress.matched);
        }
        let voters = &self.ours.config().voters;
        let ours = voters.committed(|id| reached.get(&id.0).copied());
        let (theirs, _) = self.theirs.maximal_committed_index();
        ensure!(
            ours == theirs,
            "of {reached:?} we commit {ours}, they commit {theirs}"
        );

        self.theirs.reset_votes();
        let mut votes = BTreeMap::new();
        for id in 1..=MEMBERS {
            if random.percent(60) {
                let granted = random.percent(50);
                votes.insert(id, granted);
                self.theirs.record_vote(id, granted);
            }
        }
        let ours = match voters.vote_result(|id| votes.get(&id.0).copied()) {
            VoteResult::Pending => "Pending",
            VoteResult::Lost => "Lost",
            VoteResult::Won => "Won",
        };
        let (_, _, result) = self.theirs.tally_votes();
        let theirs = format!("{result:?}");
        ensure!(
            ours == theirs,
            "of {votes:?} we say {ours}, they say {theirs}"
        );
        Ok(())
    }
}
