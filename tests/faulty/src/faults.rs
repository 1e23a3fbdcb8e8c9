//! What goes wrong: the kinds, and how each is done to the members.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use keelson_harness::{Exit, wait};
use keelson_sim::Random;

use crate::members::{Ills, MEMBERS, Members};
use crate::stage::Cut;

/// So many entries behind, a member finds the log cut: a snapshot a hundred and fifty, and fifty kept.
const FAR_BEHIND: u64 = 250;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `SIGKILL` to one member.
    Kill,
    /// `SIGKILL` to all of them.
    KillAll,
    /// `SIGTERM` to one member.
    Stop,
    /// `SIGSTOP`, and `SIGCONT` after a while.
    Pause,
    /// One member that does not lead has no links.
    Partition,
    /// The leader has no links.
    LeaderIsolated,
    /// One member is not heard by the others, or hears none of them, or one link has one direction.
    OneWay,
    /// One member is gone for so long that it has to get a snapshot.
    LeftBehind,
    /// Syncs take long.
    SlowDisk,
    /// Nothing can be written, until there is space again.
    FullDisk,
    /// Syncs fail.
    FailingSync,
    /// The time of day jumps.
    WallJump,
    /// The monotonic clock jumps ahead.
    ClockAhead,
    /// `SIGKILL` again and again, also in mid-start.
    RestartLoop,
    /// Two at once: syncs of one member take long, and another one has no links.
    SlowDiskAndPartition,
    /// Two at once: the monotonic clock of one member jumps ahead, and another one is killed.
    ClockAheadAndKill,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Fault; 16] = [
        Fault::Kill,
        Fault::KillAll,
        Fault::Stop,
        Fault::Pause,
        Fault::Partition,
        Fault::LeaderIsolated,
        Fault::OneWay,
        Fault::LeftBehind,
        Fault::SlowDisk,
        Fault::FullDisk,
        Fault::FailingSync,
        Fault::WallJump,
        Fault::ClockAhead,
        Fault::RestartLoop,
        Fault::SlowDiskAndPartition,
        Fault::ClockAheadAndKill,
    ];

    /// What it is called in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill -9",
            Fault::KillAll => "kill -9 of all",
            Fault::Stop => "stop",
            Fault::Pause => "pause",
            Fault::Partition => "partition",
            Fault::LeaderIsolated => "leader isolated",
            Fault::OneWay => "one-way partition",
            Fault::LeftBehind => "left behind",
            Fault::SlowDisk => "slow disk",
            Fault::FullDisk => "full disk",
            Fault::FailingSync => "failing sync",
            Fault::WallJump => "wall clock jump",
            Fault::ClockAhead => "monotonic clock jump",
            Fault::RestartLoop => "restart loop",
            Fault::SlowDiskAndPartition => "slow disk and partition",
            Fault::ClockAheadAndKill => "monotonic clock jump and kill -9",
        }
    }

    /// All kinds in an order of chance.
    #[must_use]
    pub fn shuffled(random: &mut Random) -> Vec<Fault> {
        let mut all = Fault::ALL.to_vec();
        for last in (1..all.len()).rev() {
            all.swap(last, random.index(last + 1));
        }
        all
    }
}

/// The members, with what chance decides.
pub struct Inflicted<'a> {
    /// The members.
    pub members: &'a mut Members,
    /// What decides.
    pub random: &'a mut Random,
    /// Who leads now.
    pub leader: usize,
    /// The last entry of a member's log, if it says.
    pub last_entry: &'a dyn Fn(usize) -> Option<u64>,
}

impl Inflicted<'_> {
    /// Lets a fault happen, and takes it back; what it was, for the report, and since when all is well.
    ///
    /// # Errors
    /// If a member does not do what it must, such as end with a clear line when its disk fails.
    pub fn inflict(&mut self, fault: Fault) -> anyhow::Result<(String, Instant)> {
        match fault {
            Fault::Kill => self.kill(),
            Fault::KillAll => self.kill_all(),
            Fault::Stop => self.stop(),
            Fault::Pause => self.pause(),
            Fault::Partition => self.partition(),
            Fault::LeaderIsolated => self.cut_off(self.leader, (false, false)),
            Fault::OneWay => self.one_way(),
            Fault::LeftBehind => self.left_behind(),
            Fault::SlowDisk => self.slow_disk(),
            Fault::FullDisk => self.bad_disk("full", "No space left on device"),
            Fault::FailingSync => self.bad_disk("syncs-fail", "Input/output error"),
            Fault::WallJump => self.wall_jump(),
            Fault::ClockAhead => self.clock_ahead(),
            Fault::RestartLoop => self.restart_loop(),
            Fault::SlowDiskAndPartition => self.slow_disk_and_partition(),
            Fault::ClockAheadAndKill => self.clock_ahead_and_kill(),
        }
    }

    /// The leader every other time, else another one.
    fn target(&mut self) -> usize {
        if self.random.chance(500) {
            return self.leader;
        }
        self.follower()
    }

    fn follower(&mut self) -> usize {
        (self.leader + 1 + self.random.index(MEMBERS - 1)) % MEMBERS
    }

    /// A member as reports call it.
    fn named(&self, member: usize) -> String {
        let role = if member == self.leader {
            "leader"
        } else {
            "follower"
        };
        format!("the {role} m{member}")
    }

    /// Lets things be for a time between two, in milliseconds; how long it was.
    fn hold(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        let long = Duration::from_millis(self.random.between(from_ms, to_ms));
        thread::sleep(long);
        long
    }

    fn kill(&mut self) -> anyhow::Result<(String, Instant)> {
        let member = self.target();
        self.members.kill(member)?;
        let long = self.hold(0, 3_000);
        self.members.spawn(member)?;
        Ok((
            format!("{} for {long:?}", self.named(member)),
            Instant::now(),
        ))
    }

    fn kill_all(&mut self) -> anyhow::Result<(String, Instant)> {
        for member in 0..MEMBERS {
            self.members.kill(member)?;
        }
        for member in 0..MEMBERS {
            self.members.spawn(member)?;
        }
        Ok(("all three".to_owned(), Instant::now()))
    }

    fn stop(&mut self) -> anyhow::Result<(String, Instant)> {
        let member = self.target();
        self.members.stop(member)?;
        let long = self.hold(0, 2_000);
        self.members.spawn(member)?;
        Ok((
            format!("{} for {long:?}", self.named(member)),
            Instant::now(),
        ))
    }

    fn pause(&mut self) -> anyhow::Result<(String, Instant)> {
        let member = self.target();
        self.members.pause(member)?;
        let long = self.hold(1_000, 5_000);
        self.members.go_on(member)?;
        Ok((
            format!("{} for {long:?}", self.named(member)),
            Instant::now(),
        ))
    }

    fn partition(&mut self) -> anyhow::Result<(String, Instant)> {
        let member = self.follower();
        self.cut_off(member, (false, false))
    }

    fn one_way(&mut self) -> anyhow::Result<(String, Instant)> {
        let member = self.target();
        match self.random.below(3) {
            0 => self.cut_off(member, (true, false)),
            1 => self.cut_off(member, (false, true)),
            _ => {
                let other = self.another(member);
                let how = self.how();
                self.members.network.cut(member, other, how)?;
                let long = self.hold(1_500, 6_000);
                self.members.network.heal()?;
                let what = format!("{} to m{other}, {how:?}, for {long:?}", self.named(member));
                Ok((what, Instant::now()))
            }
        }
    }

    fn how(&mut self) -> Cut {
        if self.random.chance(500) {
            Cut::Silent
        } else {
            Cut::Refused
        }
    }

    fn cut_off(
        &mut self,
        member: usize,
        (sends, hears): (bool, bool),
    ) -> anyhow::Result<(String, Instant)> {
        let how = self.how();
        self.members.cut_off(member, (sends, hears), how)?;
        let long = self.hold(1_500, 6_000);
        self.members.network.heal()?;
        let left = match (sends, hears) {
            (true, _) => " hears nobody",
            (_, true) => " is not heard",
            _ => "",
        };
        let what = format!("{}{left}, {how:?}, for {long:?}", self.named(member));
        Ok((what, Instant::now()))
    }

    fn left_behind(&mut self) -> anyhow::Result<(String, Instant)> {
        let member = self.follower();
        let (leader, last_entry) = (self.leader, self.last_entry);
        let began =
            wait::until(|| last_entry(leader)).context("the leader does not say where it is")?;
        let how = self.how();
        let is_killed = self.random.chance(500);
        if is_killed {
            self.members.kill(member)?;
        } else {
            self.members.cut_off(member, (false, false), how)?;
        }
        let is_far = || last_entry(leader).filter(|last| *last >= began + FAR_BEHIND);
        let behind = wait::until(is_far).context("the others do not go on")? - began;
        if is_killed {
            self.members.spawn(member)?;
        } else {
            self.members.network.heal()?;
        }
        let what = format!("{} by {behind} entries", self.named(member));
        Ok((what, Instant::now()))
    }

    fn slow_disk(&mut self) -> anyhow::Result<(String, Instant)> {
        let member = self.target();
        let takes = self.random.between(100, 900);
        let lines = match self.random.below(3) {
            0 => format!("log.sync-takes {takes}\ndatabase.sync-takes {takes}\n"),
            1 => format!("database.sync-takes {}\n", takes * 3),
            _ => format!("log.sync-takes {takes}\n"),
        };
        self.set_disk(member, &lines)?;
        let long = self.hold(1_500, 4_000);
        self.set_disk(member, "")?;
        let what = format!(
            "{} {} for {long:?}",
            self.named(member),
            lines.replace('\n', " ")
        );
        Ok((what, Instant::now()))
    }

    fn set_disk(&mut self, member: usize, lines: &str) -> anyhow::Result<()> {
        let ills = Ills {
            disk: lines.to_owned(),
            ..self.members.ills(member).clone()
        };
        self.members.steer(member, ills)
    }

    /// A member whose disk refuses ends with one clear line. Started while that lasts, it ends so again, or
    /// serves until it has to write. Then all is well.
    fn bad_disk(&mut self, what: &str, cause: &str) -> anyhow::Result<(String, Instant)> {
        let member = self.target();
        let part = if self.random.chance(750) {
            "log"
        } else {
            "database"
        };
        self.set_disk(member, &format!("{part}.{what}\n"))?;
        check_end(&self.members.wait_for_end(member)?, cause)?;
        self.members.spawn(member)?;
        if self.members.wait_until_ready_or_ended(member)? {
            self.members.kill(member)?;
        } else {
            check_end(&self.members.wait_for_end(member)?, cause)?;
        }
        self.set_disk(member, "")?;
        self.members.spawn(member)?;
        Ok((format!("{}, {part}", self.named(member)), Instant::now()))
    }

    fn wall_jump(&mut self) -> anyhow::Result<(String, Instant)> {
        let member = self.target();
        let minutes = i64::try_from(self.random.between(1, 600))?;
        let sign = if self.random.chance(500) { -1 } else { 1 };
        let ills = Ills {
            wall_ms: sign * minutes * 60_000,
            ..self.members.ills(member).clone()
        };
        self.members.steer(member, ills)?;
        let what = format!("{} to {} minutes off", self.named(member), sign * minutes);
        Ok((what, Instant::now()))
    }

    fn clock_ahead(&mut self) -> anyhow::Result<(String, Instant)> {
        let member = self.target();
        let by = self.jump_ahead(member)?;
        Ok((format!("{} by {by} ms", self.named(member)), Instant::now()))
    }

    /// By so many milliseconds.
    fn jump_ahead(&mut self, member: usize) -> anyhow::Result<u64> {
        let by = self.random.between(500, 30_000);
        let before = self.members.ills(member).clone();
        let ills = Ills {
            ahead_ms: before.ahead_ms + by,
            ..before
        };
        self.members.steer(member, ills)?;
        Ok(by)
    }

    /// Another member than this one.
    fn another(&mut self, member: usize) -> usize {
        (member + 1 + self.random.index(MEMBERS - 1)) % MEMBERS
    }

    fn slow_disk_and_partition(&mut self) -> anyhow::Result<(String, Instant)> {
        let slow = self.target();
        let takes = self.random.between(100, 500);
        self.set_disk(slow, &format!("log.sync-takes {takes}\n"))?;
        let cut = self.another(slow);
        let (what, _) = self.cut_off(cut, (false, false))?;
        self.set_disk(slow, "")?;
        let what = format!("syncs of {} take {takes} ms; {what}", self.named(slow));
        Ok((what, Instant::now()))
    }

    fn clock_ahead_and_kill(&mut self) -> anyhow::Result<(String, Instant)> {
        let killed = self.target();
        let ahead = self.another(killed);
        self.members.kill(killed)?;
        let by = self.jump_ahead(ahead)?;
        let long = self.hold(0, 2_000);
        self.members.spawn(killed)?;
        let what = format!(
            "{} by {by} ms; {} is away for {long:?}",
            self.named(ahead),
            self.named(killed)
        );
        Ok((what, Instant::now()))
    }

    fn restart_loop(&mut self) -> anyhow::Result<(String, Instant)> {
        let member = self.target();
        let times = self.random.between(3, 6);
        for _ in 0..times {
            self.members.kill(member)?;
            self.members.spawn(member)?;
            self.hold(0, 700);
        }
        self.members.kill(member)?;
        self.members.spawn(member)?;
        let what = format!("{}, {} times", self.named(member), times + 1);
        Ok((what, Instant::now()))
    }
}

/// That a member whose disk has refused has ended as it must.
fn check_end(exit: &Exit, cause: &str) -> anyhow::Result<()> {
    let fatal: Vec<&String> = exit
        .log
        .iter()
        .filter(|line| line.contains("\"level\":\"fatal\""))
        .collect();
    let is_clear = exit.code() == Some(1) && fatal.len() == 1 && fatal[0].contains(cause);
    ensure!(
        is_clear,
        "a member whose disk refuses ended with {} and said {fatal:#?}, not once {cause:?}",
        exit.status
    );
    Ok(())
}

/// Says so when a fault cannot be done.
pub(crate) fn in_fault<T>(fault: Fault, result: anyhow::Result<T>) -> anyhow::Result<T> {
    result.with_context(|| format!("in the fault {:?}", fault.name()))
}
