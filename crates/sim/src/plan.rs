//! From a seed to a plan: how many members, what clients do, what fails and when.
//!
//! Everything in a plan is something that the cluster must survive: what was synced is never lost, and
//! at the end of the first phase all links are mended and all members run. Safety is asserted throughout;
//! that the cluster serves again is asserted in the second phase, when the faults have stopped.

use crate::clock::{MILLI, Moment, SECOND};
use crate::net::Weather;
use crate::random::Random;

/// A fault, or something that an operator does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power of a member goes: at once, or after so many more changes of its disk.
    Power {
        /// Which member, as a number that is taken modulo those there are.
        place: usize,
        /// Changes that still pass.
        after: Option<u64>,
        /// How long it stays away.
        down: Moment,
    },
    /// The power of all members goes at once.
    Blackout {
        /// How long it stays away.
        down: Moment,
    },
    /// The process of a member ends; its disk keeps everything.
    Kill {
        /// Which member.
        place: usize,
        /// How long it stays away.
        down: Moment,
    },
    /// A member stops in order.
    Stop {
        /// Which member.
        place: usize,
        /// How long it stays away.
        down: Moment,
    },
    /// A member does nothing for a while, and notices nothing.
    Pause {
        /// Which member.
        place: usize,
        /// How long.
        time: Moment,
    },
    /// A member's disk is slow.
    SlowDisk {
        /// Which member.
        place: usize,
        /// What a sync takes, at most.
        sync: Moment,
        /// How long.
        time: Moment,
    },
    /// Some members cannot reach the others.
    Partition {
        /// Bit by bit, who is on this side.
        side: u64,
        /// Whether messages from the other side still come.
        one_way: bool,
        /// How long.
        time: Moment,
    },
    /// The leader cannot reach the others, nor be reached.
    IsolateLeader {
        /// How long.
        time: Moment,
    },
    /// The power of the leader goes.
    LeaderPower {
        /// Changes that still pass.
        after: u64,
        /// How long it stays away.
        down: Moment,
    },
    /// Links behave differently from now on.
    Weather(Weather),
    /// A member is cut off while the others go on, take snapshots and start again: it needs one then.
    Lag {
        /// Which member.
        place: usize,
        /// How long.
        time: Moment,
    },
    /// Leadership is to be handed over.
    MoveLeader {
        /// To whom.
        place: usize,
    },
    /// Everything that is applied goes to the file of a member.
    Commit {
        /// Which member.
        place: usize,
    },
    /// A member is added: it starts when it is.
    Add {
        /// Whether as a learner.
        learner: bool,
    },
    /// A learner gets a vote.
    Promote,
    /// A member is removed.
    Remove {
        /// Which member.
        place: usize,
    },
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its seed: it also decides everything in the run that the plan leaves open.
    pub seed: u64,
    /// Members at the beginning.
    pub members: usize,
    /// Clients.
    pub clients: usize,
    /// Watchers.
    pub watchers: usize,
    /// Keys.
    pub keys: u64,
    /// How long clients think between two requests, at most.
    pub think: Moment,
    /// Entries between two snapshots.
    pub snapshot_count: Option<u64>,
    /// The bytes of a log segment.
    pub segment_bytes: u64,
    /// Whether candidates ask before they raise the term.
    pub pre_vote: bool,
    /// How links behave at first.
    pub weather: Weather,
    /// What a sync takes, at most.
    pub sync: Moment,
    /// What happens, and when.
    pub faults: Vec<(Moment, Fault)>,
    /// When the faults stop.
    pub heal_at: Moment,
}

/// Faults of one plan, at most.
const FAULTS_MAX: u64 = 14;

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Plan {
        let mut random = Random::new(seed);
        let members = [1, 2, 3, 3, 3, 3, 3, 5, 5][random.index(9)];
        let heal_at = random.between(6 * SECOND, 14 * SECOND);
        let mut plan = Plan {
            seed,
            members,
            clients: random.index(4) + 2,
            watchers: random.index(3) + 1,
            keys: random.between(2, 8),
            think: random.between(20 * MILLI, 300 * MILLI),
            snapshot_count: [None, Some(5), Some(20), Some(60)][random.index(4)],
            segment_bytes: random.between(4, 32) << 10,
            pre_vote: !random.chance(200),
            weather: Weather::draw(&mut random),
            sync: [MILLI, 4 * MILLI, 30 * MILLI][random.index(3)],
            faults: Vec::new(),
            heal_at,
        };
        // Some plans have one kind of fault again and again.
        let favourite = random.chance(400).then(|| random.below(FAULT_KINDS));
        for _ in 0..random.below(FAULTS_MAX + 1) {
            let at = random.between(SECOND / 2, heal_at);
            let kind = match favourite {
                Some(kind) if random.chance(600) => kind,
                _ => random.below(FAULT_KINDS),
            };
            let fault = draw(kind, &mut random);
            plan.faults.push((at, fault));
        }
        plan.faults.sort_by_key(|(at, _)| *at);
        plan
    }
}

const FAULT_KINDS: u64 = 20;

fn draw(kind: u64, random: &mut Random) -> Fault {
    let place = random.index(16);
    let time = random.between(200 * MILLI, 4 * SECOND);
    // Often just long enough for nobody to notice.
    let down = if random.chance(500) {
        random.between(MILLI, 300 * MILLI)
    } else {
        time
    };
    match kind {
        0 | 1 => Fault::Power {
            place,
            after: random.chance(600).then_some(random.below(60)),
            down,
        },
        2 => Fault::Blackout { down },
        3 => Fault::Kill { place, down },
        4 => Fault::Stop { place, down },
        5 | 6 => Fault::Pause { place, time },
        7 => Fault::SlowDisk {
            place,
            sync: random.between(50 * MILLI, 2 * SECOND),
            time,
        },
        8 | 9 => Fault::Partition {
            side: random.below(32),
            one_way: random.chance(400),
            time,
        },
        10 => Fault::IsolateLeader { time },
        11 => Fault::LeaderPower {
            after: random.below(20),
            down,
        },
        12 => Fault::Weather(Weather::draw(random)),
        13 => Fault::MoveLeader { place },
        14 => Fault::Commit { place },
        15 => Fault::Add {
            learner: random.chance(400),
        },
        16 => Fault::Remove { place },
        17 | 18 => Fault::Lag {
            place,
            time: time.max(2 * SECOND),
        },
        _ => Fault::Promote,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan_and_plans_hold_every_kind_of_fault() {
        assert_eq!(Plan::new(7), Plan::new(7));
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let plan = Plan::new(seed);
            assert!(plan.faults.iter().all(|(at, _)| *at <= plan.heal_at));
            let names = plan.faults.iter().map(|(_, fault)| format!("{fault:?}"));
            kinds.extend(names.map(|name| name.split([' ', '(']).next().unwrap().to_owned()));
        }
        assert_eq!(kinds.len(), 16, "{kinds:?}");
    }
}
