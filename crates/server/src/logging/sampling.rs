//! Which lines are left out of a flood: of each message only so many a second are written, so that
//! whoever provokes a warning does not fill a disk with it.
//!
//! # Source
//!
//! The sampling that etcd sets for zap (api.md 5.7): the first 100 lines of a level and message in a
//! second, then every 100th.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::LogLevel;

/// How many lines of one message are written in a second before any is left out.
const FIRST: u64 = 100;
/// Of those after them, one in so many is written.
const THEREAFTER: u64 = 100;
/// Messages share counters by their hash; there are about as many as messages in the program.
const COUNTERS: usize = 4096;
/// The lower bits of a counter count, the upper ones are its second.
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// Counts lines.
pub(super) struct Sampling {
    counters: Box<[AtomicU64]>,
}

impl Sampling {
    pub(super) fn new() -> Sampling {
        Sampling {
            counters: (0..COUNTERS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Whether a line is to be written that comes `now`, counted from any moment.
    pub(super) fn admits(&self, level: LogLevel, message: &str, now: Duration) -> bool {
        if level > LogLevel::Error {
            // There is one at most, and it says why the process ends.
            return true;
        }
        let second = (now.as_secs() + 1) << COUNT_BITS;
        let slot = hash(level, message) % COUNTERS as u64;
        let Some(counter) = usize::try_from(slot)
            .ok()
            .and_then(|slot| self.counters.get(slot))
        else {
            return true;
        };
        let next = |before: u64| {
            let counted = if before & !COUNT_MASK == second {
                before & COUNT_MASK
            } else {
                0
            };
            // It stays at its largest: no second has so many lines.
            second | (counted + 1).min(COUNT_MASK)
        };
        let before = counter
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |it| Some(next(it)))
            .unwrap_or_default();
        let count = next(before) & COUNT_MASK;
        count <= FIRST || (count - FIRST).is_multiple_of(THEREAFTER)
    }
}

/// FNV-1a.
fn hash(level: LogLevel, message: &str) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325_u64 ^ level as u64;
    message.bytes().fold(start, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_secs(7);

    fn written(sampling: &Sampling, message: &str, lines: usize, now: Duration) -> usize {
        (0..lines)
            .filter(|_| sampling.admits(LogLevel::Warn, message, now))
            .count()
    }

    #[test]
    fn of_a_flood_the_first_hundred_are_written_and_then_every_hundredth() {
        let sampling = Sampling::new();
        assert_eq!(written(&sampling, "flood", 100, MOMENT), 100);
        assert_eq!(written(&sampling, "flood", 99, MOMENT), 0);
        assert_eq!(written(&sampling, "flood", 801, MOMENT), 9);
    }

    #[test]
    fn another_message_and_another_second_begin_anew() {
        let sampling = Sampling::new();
        assert_eq!(written(&sampling, "flood", 1000, MOMENT), 109);
        assert_eq!(written(&sampling, "other", 1, MOMENT), 1);
        assert!(sampling.admits(LogLevel::Info, "flood", MOMENT));
        let later = MOMENT + Duration::from_secs(1);
        assert_eq!(written(&sampling, "flood", 100, later), 100);
    }

    #[test]
    fn the_last_words_of_a_process_are_always_written() {
        let sampling = Sampling::new();
        let all = (0..1000).all(|_| sampling.admits(LogLevel::Fatal, "ends", MOMENT));
        assert!(all);
    }
}
