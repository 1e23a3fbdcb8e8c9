//! How long the machine itself stood still: on a machine that has other work, threads and disks wait, and
//! limits in time must not count that.
//!
//! - *Processors*: others than this run had a share of them, and members' threads that could have run waited
//!   for one for a share of that time. The smaller share of a span is not theirs.
//! - *Time*: a thread that sleeps for a moment wakes up late.
//! - *The disk*: a sync of a few bytes takes long.
//!
//! Of the first two the longer one counts, and the third on top.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often it is looked.
const EVERY: Duration = Duration::from_millis(5);
/// A look that comes so much later tells of a stall.
const LATE: Duration = Duration::from_millis(20);
/// A sync of a few bytes takes no longer, but for a stall.
const SYNC: Duration = Duration::from_millis(50);
/// How often one is made.
const SYNC_EVERY: Duration = Duration::from_millis(250);

/// Two threads that look: one at the time, one at the disk.
#[derive(Debug)]
pub struct Stalls {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// In microseconds.
    late: AtomicU64,
    syncing: AtomicU64,
}

impl Stalls {
    /// Begins to look; the disk is that of `dir`.
    ///
    /// # Errors
    /// If no file can be made there.
    pub fn watch(dir: &Path) -> anyhow::Result<Stalls> {
        let shared = Arc::new(Shared::default());
        let of_time = Arc::clone(&shared);
        let time = thread::spawn(move || of_time.look_at_time());
        let mut file = File::create(dir.join("sync-probe"))?;
        let of_disk = Arc::clone(&shared);
        let disk = thread::spawn(move || of_disk.look_at_disk(&mut file));
        Ok(Stalls {
            shared,
            threads: vec![time, disk],
        })
    }

    /// Begins a span, over members in processes of these ids.
    pub fn begin(&self, members: impl IntoIterator<Item = u32>) -> Span {
        Span {
            began: Instant::now(),
            late: self.late(),
            syncing: self.syncing(),
            members: usages(members),
            own: usage(std::process::id()).unwrap_or_default(),
            machine: Machine::now().unwrap_or_default(),
        }
    }

    /// How long the machine stood still in a span. A process that was not there at its beginning counts from
    /// its start on.
    pub fn end(&self, span: &Span, members: impl IntoIterator<Item = u32>) -> Duration {
        let mut all = Usage::default();
        for (process, usage) in usages(members) {
            let before = span.members.get(&process).copied().unwrap_or_default();
            all = all.plus(usage.since(before));
        }
        let own = usage(std::process::id()).unwrap_or_default();
        let ours = all.plus(own.since(span.own));
        let machine = Machine::now().unwrap_or_default().since(span.machine);
        let share = all.share_waited().min(machine.share_of_others(ours));
        let waited = span.began.elapsed().mul_f64(share);
        let late = self.late().saturating_sub(span.late);
        waited.max(late) + self.syncing().saturating_sub(span.syncing)
    }

    fn late(&self) -> Duration {
        Duration::from_micros(self.shared.late.load(Ordering::Relaxed))
    }

    fn syncing(&self) -> Duration {
        Duration::from_micros(self.shared.syncing.load(Ordering::Relaxed))
    }
}

/// What there was at the beginning of a span.
#[derive(Debug)]
pub struct Span {
    began: Instant,
    late: Duration,
    syncing: Duration,
    members: BTreeMap<u32, Usage>,
    own: Usage,
    machine: Machine,
}

/// What the threads of a process had of the processors, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    ran: u64,
    /// Could have run, and did not.
    waited: u64,
}

impl Usage {
    fn plus(self, other: Usage) -> Usage {
        Usage {
            ran: self.ran + other.ran,
            waited: self.waited + other.waited,
        }
    }

    fn since(self, before: Usage) -> Usage {
        Usage {
            ran: self.ran.saturating_sub(before.ran),
            waited: self.waited.saturating_sub(before.waited),
        }
    }

    fn share_waited(self) -> f64 {
        let waited = Duration::from_nanos(self.waited).as_secs_f64();
        let wanted = Duration::from_nanos(self.ran + self.waited).as_secs_f64();
        if wanted > 0.0 { waited / wanted } else { 0.0 }
    }
}

/// What all processors did, in hundredths of a second.
#[derive(Clone, Copy, Debug, Default)]
struct Machine {
    all: u64,
    idle: u64,
}

impl Machine {
    /// None where the system does not say it.
    fn now() -> Option<Machine> {
        let text = fs::read_to_string("/proc/stat").ok()?;
        let numbers = text.lines().next()?.split_whitespace().skip(1);
        // User, nice, system, idle, waiting for disks, interrupts, theirs, stolen; guests are in the first.
        let numbers: Vec<u64> = numbers.take(8).filter_map(|it| it.parse().ok()).collect();
        Some(Machine {
            all: numbers.iter().sum(),
            idle: numbers.get(3)? + numbers.get(4)?,
        })
    }

    fn since(self, before: Machine) -> Machine {
        Machine {
            all: self.all.saturating_sub(before.all),
            idle: self.idle.saturating_sub(before.idle),
        }
    }

    /// What others than we had of all.
    fn share_of_others(self, ours: Usage) -> f64 {
        let hundredths = |count: u64| Duration::from_millis(count.saturating_mul(10)).as_secs_f64();
        let (all, idle) = (hundredths(self.all), hundredths(self.idle));
        let ours = Duration::from_nanos(ours.ran).as_secs_f64();
        if all > 0.0 {
            ((all - idle - ours) / all).clamp(0.0, 1.0)
        } else {
            0.0
        }
    }
}

fn usages(processes: impl IntoIterator<Item = u32>) -> BTreeMap<u32, Usage> {
    let usage = |process| (process, usage(process).unwrap_or_default());
    processes.into_iter().map(usage).collect()
}

/// None of a process that has ended.
fn usage(process: u32) -> Option<Usage> {
    let mut all = Usage::default();
    for thread in fs::read_dir(format!("/proc/{process}/task")).ok()? {
        // A thread may end meanwhile.
        let Ok(text) = fs::read_to_string(thread.ok()?.path().join("schedstat")) else {
            continue;
        };
        let mut numbers = text.split_whitespace().map(str::parse::<u64>);
        all.ran += numbers.next()?.ok()?;
        all.waited += numbers.next()?.ok()?;
    }
    Some(all)
}

impl Shared {
    fn look_at_time(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            thread::sleep(EVERY);
            add(&self.late, begun.elapsed().saturating_sub(EVERY), LATE);
        }
    }

    fn look_at_disk(&self, file: &mut File) {
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            // A disk that refuses shows in the members.
            let _written = file.write_all(b"probe").and_then(|()| file.sync_data());
            add(&self.syncing, begun.elapsed(), SYNC);
            thread::sleep(SYNC_EVERY);
        }
    }
}

fn add(to: &AtomicU64, took: Duration, usual: Duration) {
    if took > usual {
        let micros = u64::try_from((took - usual).as_micros()).unwrap_or(u64::MAX);
        to.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Neither of them panics.
            let _joined = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_had_of_the_processors_counts() {
        let second = 1_000_000_000;
        let machine = Machine {
            all: 400,
            idle: 100,
        };
        let ours = Usage {
            ran: second,
            waited: second,
        };
        assert_eq!(machine.share_of_others(ours), 0.5);
        assert_eq!(ours.share_waited(), 0.5);
        let alone = Usage {
            ran: 3 * second,
            ..ours
        };
        assert_eq!(machine.share_of_others(alone), 0.0);
        assert_eq!(Usage::default().share_waited(), 0.0);
        assert_eq!(Machine::default().share_of_others(ours), 0.0);
    }

    #[test]
    fn the_system_counts_what_a_process_had_of_the_processors() {
        let dir = tempfile::tempdir().unwrap();
        let stalls = Stalls::watch(dir.path()).unwrap();
        let process = std::process::id();
        let span = stalls.begin([process]);
        let used = || usage(process).unwrap().ran;
        let before = used();
        while used() < before + 1_000_000 {}
        let stalled = stalls.end(&span, [process]);
        assert!(stalled <= span.began.elapsed() + stalls.syncing());
        assert!(Machine::now().unwrap().all > 0 && usage(u32::MAX).is_none());
    }
}
