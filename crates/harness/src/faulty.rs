//! Disks and clocks that do what a test wants: syncs of the log that wait until they are let go, disks
//! that are slow, full or failing, and time that jumps. Nothing here depends on how fast the machine is.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keelson_node::{Clock, Env, SystemClock};
use keelson_store::Disk;

mod database;
mod disk;
mod files;
mod steered;

pub use disk::{DiskState, Part};

use disk::Disks;

/// How long a sync is waited for.
const PATIENCE: Duration = crate::wait::PATIENCE;

/// The world of one member, and the handle by which a test changes it.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    syncs: Mutex<Syncs>,
    changed: Condvar,
    disks: Disks,
    system: SystemClock,
    /// Where the system's clock was stopped.
    stopped: Mutex<Option<Duration>>,
    /// By how much the clock is ahead, in microseconds.
    ahead: AtomicU64,
    /// How far the time of day is off, in microseconds.
    wall_off: AtomicI64,
    /// How much every reading of the clock moves it on, in microseconds.
    step: AtomicU64,
    /// How long a sync takes, in microseconds of the clock.
    sync_takes: AtomicU64,
}

#[derive(Debug, Default)]
struct Syncs {
    held: bool,
    waiting: u32,
}

impl Faults {
    /// What a member is to be started with.
    #[must_use]
    pub fn env(&self) -> Env {
        let disk = Arc::new(self.clone());
        Env {
            clock: Arc::new(self.clone()),
            files: Arc::new(self.clone()),
            database: Arc::new(move |path, options| {
                keelson_store::open_on(Arc::clone(&disk) as Arc<dyn Disk>, path, options)
            }),
            ..Env::real()
        }
    }

    /// From now on the disk of `part` is like this. Syncs that wait there end at once.
    pub fn set_disk(&self, part: Part, state: DiskState) {
        self.shared.disks.set(part, state);
    }

    /// Sets the time of day off by so much, in milliseconds; it may go back.
    pub fn set_wall_off(&self, millis: i64) {
        let micros = millis.saturating_mul(1000);
        self.shared.wall_off.store(micros, Ordering::SeqCst);
    }

    /// Moves the clock on, so that it is ahead of the system's by at least so much.
    pub fn set_ahead(&self, by: Duration) {
        self.shared.ahead.fetch_max(micros(by), Ordering::SeqCst);
    }

    /// Lets no sync of the log return until [`Faults::release_syncs`]: what is proposed meanwhile is
    /// neither committed nor applied.
    pub fn hold_syncs(&self) {
        self.syncs().held = true;
    }

    /// Lets all syncs return.
    pub fn release_syncs(&self) {
        self.syncs().held = false;
        self.shared.changed.notify_all();
    }

    /// Waits until a sync waits.
    ///
    /// # Panics
    ///
    /// If none comes in time.
    pub fn wait_until_held(&self) {
        let (_syncs, waited) = self
            .shared
            .changed
            .wait_timeout_while(self.syncs(), PATIENCE, |syncs| syncs.waiting == 0)
            .unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "nothing was synced");
    }

    /// Moves the clock on.
    pub fn jump(&self, by: Duration) {
        self.shared.ahead.fetch_add(micros(by), Ordering::SeqCst);
    }

    /// Stops the clock: nothing takes any time until [`Faults::go_on`].
    pub fn stop_clock(&self) {
        *self.stopped() = Some(self.shared.system.now());
    }

    /// Lets the clock go on where the system's is.
    pub fn go_on(&self) {
        *self.stopped() = None;
    }

    fn stopped(&self) -> MutexGuard<'_, Option<Duration>> {
        self.shared
            .stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on each reading of the clock moves it on, but for those that only wait for the next beat:
    /// whatever is measured takes at least so long.
    pub fn step(&self, by: Duration) {
        self.shared.step.store(micros(by), Ordering::SeqCst);
    }

    /// From now on each sync of the log takes so long by the clock.
    pub fn syncs_take(&self, long: Duration) {
        self.shared.sync_takes.store(micros(long), Ordering::SeqCst);
    }

    fn syncs(&self) -> MutexGuard<'_, Syncs> {
        self.shared
            .syncs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What every sync of the log waits for.
    fn pass_sync(&self) {
        let takes = self.shared.sync_takes.load(Ordering::SeqCst);
        self.shared.ahead.fetch_add(takes, Ordering::SeqCst);
        let mut syncs = self.syncs();
        if syncs.held {
            syncs.waiting += 1;
            self.shared.changed.notify_all();
            syncs = self
                .shared
                .changed
                .wait_while(syncs, |syncs| syncs.held)
                .unwrap_or_else(PoisonError::into_inner);
            syncs.waiting -= 1;
        }
    }
}

/// Whether this thread looks at the clock again and again to know when something is due. Moved on by
/// those looks, time would run as fast as the thread does, and every request would be too late.
fn keeps_a_beat() -> bool {
    let thread = std::thread::current();
    matches!(thread.name(), Some("consensus" | "duty"))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Clock for Faults {
    fn now(&self) -> Duration {
        let step = if keeps_a_beat() {
            0
        } else {
            self.shared.step.load(Ordering::SeqCst)
        };
        let ahead = self.shared.ahead.fetch_add(step, Ordering::SeqCst);
        let system = self.stopped().unwrap_or_else(|| self.shared.system.now());
        system + Duration::from_micros(ahead)
    }

    fn wall(&self) -> Duration {
        let off = self.shared.wall_off.load(Ordering::SeqCst);
        let size = Duration::from_micros(off.unsigned_abs());
        let system = self.shared.system.wall();
        if off < 0 {
            system.saturating_sub(size)
        } else {
            system + size
        }
    }
}
