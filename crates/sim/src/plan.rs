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
    /// What the leader sends stays on its way until somebody else leads, and comes then.
    HoldLeader {
        /// Whether it does nothing meanwhile.
        pause: bool,
        /// How long, at most.
        time: Moment,
    },
    /// What a member sends, or is sent, stays on its way, and comes at once then.
    Hold {
        /// Which member.
        place: usize,
        /// Whether it is what it is sent.
        incoming: bool,
        /// How long.
        time: Moment,
    },
    /// A member's disk is full.
    FullDisk {
        /// Which member.
        place: usize,
        /// Whether overwriting needs room, too.
        writes: bool,
        /// Whether it is only a sync that finds out, at times.
        syncs: bool,
        /// How long.
        time: Moment,
    },
    /// The file of a member is rewritten without its free pages.
    Defragment {
        /// Which member.
        place: usize,
    },
    /// A member's clock runs fast or slow.
    ClockRate {
        /// Which member.
        place: usize,
        /// Its speed, per mille of what it should be.
        rate: u64,
        /// How long.
        time: Moment,
    },
    /// A member's time of day jumps.
    ClockJump {
        /// Which member.
        place: usize,
        /// By how much, in microseconds.
        by: i64,
    },
    /// A member's machine starts again with the time of day of its last start.
    ClockForgets {
        /// Which member.
        place: usize,
        /// How long it stays away.
        down: Moment,
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
    /// Whether what comes to a member that is asleep waits until it wakes.
    pub buffers: bool,
    /// How often a leader compares the members' states, if it does.
    pub checks: Option<Moment>,
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
const FAULTS_MAX: u64 = 16;
/// The speeds of clocks, per mille.
const RATES: (u64, u64) = (600, 1_600);

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
            buffers: random.chance(750),
            checks: [None, None, Some(1_700 * MILLI)][random.index(3)],
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

const FAULT_KINDS: u64 = 30;

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
        19 => Fault::Promote,
        _ => draw_more(kind, place, (time, down), random),
    }
}

/// Stale messages, and what is wrong with a machine.
fn draw_more(kind: u64, place: usize, times: (Moment, Moment), random: &mut Random) -> Fault {
    let (time, down) = times;
    match kind {
        20 | 21 => Fault::HoldLeader {
            pause: random.chance(500),
            time: time.max(2 * SECOND),
        },
        22 => Fault::Hold {
            place,
            incoming: random.chance(500),
            time,
        },
        23 | 24 => Fault::FullDisk {
            place,
            writes: random.chance(300),
            syncs: random.chance(300),
            time,
        },
        25 | 26 => Fault::Defragment { place },
        27 => Fault::ClockRate {
            place,
            rate: random.between(RATES.0, RATES.1),
            time: 2 * time,
        },
        28 => Fault::ClockJump {
            place,
            by: jump(random),
        },
        _ => Fault::ClockForgets { place, down },
    }
}

/// How much a clock jumps: a little, or by hours, forth or back.
fn jump(random: &mut Random) -> i64 {
    let most = [SECOND, 10 * SECOND, 20_000 * SECOND][random.index(3)];
    let by = i64::try_from(random.between(1, most)).expect("a few hours");
    if random.chance(600) { -by } else { by }
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
        assert_eq!(kinds.len(), 23, "{kinds:?}");
    }
}
