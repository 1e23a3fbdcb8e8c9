//! What the outside world gives to a member: time, files, randomness, threads.
//!
//! Nothing else in this crate reads a clock, draws a number or starts a thread, so that tests can
//! make time jump and files fail.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keelson_proto::ids::{LogIndex, Term};
use keelson_store::lease::Ticks;
use keelson_store::{OpenOptions, Opened};
use keelson_wal::{Files, RealFiles};

use crate::Error;

/// Time.
pub trait Clock: Send + Sync + 'static {
    /// The time since a moment of the clock's own choice; it never goes back.
    fn now(&self) -> Duration;

    /// The time of day, since the Unix epoch; it may jump.
    fn wall(&self) -> Duration;
}

/// The system's clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    origin: std::time::Instant,
}

impl SystemClock {
    /// A clock that begins now.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clock"
    )]
    pub fn new() -> SystemClock {
        SystemClock {
            origin: std::time::Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clock"
    )]
    fn wall(&self) -> Duration {
        // A clock before 1970 is as good as 1970: it only makes ids.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }
}

/// Draws 64 random bits.
pub type Random = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Is told why a member cannot go on.
pub type Failed = Arc<dyn Fn(&str) + Send + Sync>;

/// Opens the database at a path, or makes a new one.
pub type OpenDatabase =
    Arc<dyn Fn(&Path, &OpenOptions) -> Result<Opened, keelson_store::Error> + Send + Sync>;

/// Says which entry the database at a path is at, without opening it for writing.
pub type DatabasePosition =
    Arc<dyn Fn(&Path) -> Result<(LogIndex, Term), keelson_store::Error> + Send + Sync>;

/// Is told that the member was removed from its cluster.
pub type Removed = Arc<dyn Fn() + Send + Sync>;

/// What a member is given at start.
#[derive(Clone)]
pub struct Env {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The file system of the log and the `.snap` files.
    pub files: Arc<dyn Files>,
    /// The disk of the database.
    pub database: OpenDatabase,
    /// A first look at a database that another member has sent.
    pub position: DatabasePosition,
    /// Random bits; they spread election timeouts.
    pub random: Random,
    /// Called once, when the member cannot go on (a failing disk, an entry that it cannot apply): the
    /// process is to end. It comes from one of the member's threads, or from one that has taken a turn of
    /// consensus, such as a serving thread: it must neither block nor stop or kill the member itself.
    pub failed: Failed,
    /// Called once, from one of the member's threads, a moment after the entry was applied that removes
    /// this member from its cluster: the process is to end, in order and without an error.
    pub removed: Removed,
}

impl Env {
    /// The system's.
    #[must_use]
    pub fn real() -> Env {
        Env {
            clock: Arc::new(SystemClock::new()),
            files: Arc::new(RealFiles),
            database: Arc::new(keelson_store::open),
            random: Arc::new(rand::random::<u64>),
            position: Arc::new(keelson_store::position),
            failed: Arc::new(|_| {}),
            removed: Arc::new(|| {}),
        }
    }

    /// The moment as leases count it.
    #[must_use]
    pub fn ticks(&self) -> Ticks {
        Ticks(millis(self.clock.now()))
    }

    /// Starts a named thread with a stack of so many bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Thread`].
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        stack_bytes: usize,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<JoinHandle<()>, Error> {
        std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(stack_bytes)
            .spawn(body)
            .map_err(|source| Error::Thread { name, source })
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// Whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
