//! Time: the world's, which passes when the world says so, and what members' own clocks make of it.
//!
//! A member's clock begins anew with each of its lives, as a machine's does that starts again. It may run
//! fast or slow, and its time of day may be any.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use keelson_node::Clock;

/// A moment, in microseconds since the world began.
pub type Moment = u64;

/// A millisecond in [`Moment`]s.
pub const MILLI: Moment = 1_000;
/// A second in [`Moment`]s.
pub const SECOND: Moment = 1_000_000;

/// The rate of a clock that is right, per mille.
pub(crate) const TRUE_RATE: u64 = 1_000;

/// The time of day at which every world begins.
const EPOCH: Moment = 1_700_000_000 * SECOND;

/// The world's time. Clones show the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct WorldTime {
    now: Arc<AtomicU64>,
}

impl WorldTime {
    /// Lets it be another time.
    ///
    /// # Panics
    ///
    /// If that is an earlier one.
    pub(crate) fn set(&self, now: Moment) {
        let before = self.now.swap(now, Ordering::SeqCst);
        assert!(before <= now, "time never goes back: {before} to {now}");
    }

    /// The moment.
    pub(crate) fn now(&self) -> Moment {
        self.now.load(Ordering::SeqCst)
    }

    /// The time of day, in seconds since the Unix epoch.
    pub(crate) fn seconds(&self) -> i64 {
        i64::try_from((EPOCH + self.now()) / SECOND).expect("a time of our days")
    }
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// The world's time when the rate was last set, and what this clock showed then.
    since: (Moment, Moment),
    /// How fast it runs, per mille.
    rate: u64,
    /// How far its time of day is ahead of the world's, in microseconds.
    ahead: i64,
    /// The time of day at its last start.
    started: Moment,
}

/// A member's clock. Clones show the same time.
#[derive(Clone, Debug)]
pub(crate) struct MemberClock {
    world: WorldTime,
    state: Arc<Mutex<State>>,
}

impl MemberClock {
    /// One that is right.
    pub(crate) fn new(world: WorldTime) -> MemberClock {
        let now = world.now();
        let state = State {
            since: (now, 0),
            rate: TRUE_RATE,
            ahead: 0,
            started: EPOCH + now,
        };
        MemberClock {
            world,
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// A process begins: so does its clock. The time of day goes on.
    pub(crate) fn start(&self) {
        let now = self.world.now();
        let mut state = self.state();
        state.since = (now, 0);
        state.started = wall(&state, now);
    }

    /// Runs at so many thousandths of the world's speed from now on.
    pub(crate) fn set_rate(&self, rate: u64) {
        let now = self.world.now();
        let mut state = self.state();
        state.since = (now, shown(&state, now));
        state.rate = rate;
    }

    /// The time of day jumps, by so many microseconds.
    pub(crate) fn jump(&self, by: i64) {
        self.state().ahead += by;
    }

    /// The time of day is what it was when the process last started, as on a machine whose clock does not
    /// outlive its power.
    pub(crate) fn forget(&self) {
        let now = self.world.now();
        let mut state = self.state();
        let lost = wall(&state, now).saturating_sub(state.started);
        state.ahead -= i64::try_from(lost).unwrap_or(i64::MAX);
    }

    /// The first moment at which it shows at least this.
    pub(crate) fn moment(&self, own: Duration) -> Moment {
        let Ok(own) = Moment::try_from(own.as_nanos().div_ceil(1_000)) else {
            return Moment::MAX;
        };
        let state = self.state();
        let ahead = own.saturating_sub(state.since.1);
        let delay = (u128::from(ahead) * u128::from(TRUE_RATE)).div_ceil(u128::from(state.rate));
        let delay = Moment::try_from(delay).unwrap_or(Moment::MAX);
        state.since.0.saturating_add(delay)
    }
}

fn shown(state: &State, now: Moment) -> Moment {
    state.since.1 + (now - state.since.0) * state.rate / TRUE_RATE
}

fn wall(state: &State, now: Moment) -> Moment {
    (EPOCH + now).saturating_add_signed(state.ahead)
}

impl Clock for MemberClock {
    fn now(&self) -> Duration {
        Duration::from_micros(shown(&self.state(), self.world.now()))
    }

    fn wall(&self) -> Duration {
        Duration::from_micros(wall(&self.state(), self.world.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_what_it_was_waited_for_and_never_goes_back() {
        let world = WorldTime::default();
        let clock = MemberClock::new(world.clone());
        let mut before = Duration::ZERO;
        for (at, rate) in [(7, 1_100), (1_013, 900), (5_000, 333), (9_999, 2_000)] {
            world.set(at);
            clock.set_rate(rate);
            assert!(clock.now() >= before);
            before = clock.now();
            let wanted = clock.now() + Duration::from_micros(100);
            let due = clock.moment(wanted);
            world.set(due - 1);
            assert!(clock.now() < wanted, "rate {rate}");
            world.set(due);
            assert!(clock.now() >= wanted, "rate {rate}");
        }
        assert_eq!(clock.moment(Duration::MAX), Moment::MAX);
    }

    #[test]
    fn a_clock_without_a_battery_shows_the_time_of_its_last_start() {
        let world = WorldTime::default();
        let clock = MemberClock::new(world.clone());
        world.set(3 * SECOND);
        clock.start();
        let started = clock.wall();
        world.set(8 * SECOND);
        clock.jump(-1_000);
        clock.forget();
        clock.start();
        assert_eq!(clock.wall(), started);
        assert_eq!(clock.now(), Duration::ZERO);
    }
}
