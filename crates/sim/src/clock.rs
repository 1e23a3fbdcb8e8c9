//! The world's time: it passes when the world says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keelson_node::Clock;

/// A moment, in microseconds since the world began.
pub type Moment = u64;

/// A millisecond in [`Moment`]s.
pub const MILLI: Moment = 1_000;
/// A second in [`Moment`]s.
pub const SECOND: Moment = 1_000_000;

/// The time of day at which every world begins, in seconds since the Unix epoch.
const EPOCH_SECONDS: u64 = 1_700_000_000;

/// A member's clock. Clones show the same time.
#[derive(Clone, Debug, Default)]
pub(crate) struct SimClock {
    now: Arc<AtomicU64>,
}

impl SimClock {
    /// Lets it show another time.
    ///
    /// # Panics
    ///
    /// If that is an earlier one.
    pub(crate) fn set(&self, now: Moment) {
        let before = self.now.swap(now, Ordering::SeqCst);
        assert!(before <= now, "time never goes back: {before} to {now}");
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        Duration::from_micros(self.now.load(Ordering::SeqCst))
    }

    fn wall(&self) -> Duration {
        Duration::from_secs(EPOCH_SECONDS) + self.now()
    }
}

/// A time as a moment.
#[must_use]
pub(crate) fn moment(time: Duration) -> Moment {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
