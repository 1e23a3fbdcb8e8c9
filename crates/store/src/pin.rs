//! Revisions in use: compaction removes nothing that a pinned read can see.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// The revisions that readers hold.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    /// How many pins there are at a revision; none below `broken_below`.
    counts: BTreeMap<i64, usize>,
    /// Pins below it hold nothing any more.
    broken_below: i64,
}

impl Default for Held {
    fn default() -> Held {
        Held {
            counts: BTreeMap::new(),
            // A compact revision of -1, for none, can be pinned too.
            broken_below: i64::MIN,
        }
    }
}

/// Keeps what a read at its revision sees from being removed, until it is dropped, or broken because
/// a compaction has waited for it too long.
///
/// Whoever takes one looks at the compact revision *afterwards*: a compaction that was published
/// before may have begun to remove below it.
#[derive(Debug)]
pub struct Pin {
    pins: Arc<Pins>,
    main: i64,
}

impl Pins {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no holder of this lock panics")
    }

    pub(crate) fn pin(self: &Arc<Self>, main: i64) -> Pin {
        let mut held = self.lock();
        if main >= held.broken_below {
            *held.counts.entry(main).or_default() += 1;
        }
        drop(held);
        Pin {
            pins: self.clone(),
            main,
        }
    }

    /// The oldest revision that is held.
    pub(crate) fn oldest(&self) -> Option<i64> {
        self.lock().counts.keys().next().copied()
    }

    /// Breaks all pins below a compact revision: no new ones are taken there. How many there were.
    pub(crate) fn break_below(&self, main: i64) -> usize {
        let mut held = self.lock();
        held.broken_below = held.broken_below.max(main);
        let kept = held.counts.split_off(&main);
        let broken = std::mem::replace(&mut held.counts, kept);
        broken.values().sum()
    }
}

impl Pin {
    /// The revision that is held.
    #[must_use]
    pub fn main(&self) -> i64 {
        self.main
    }

    /// Whether it holds nothing any more: what is read from then on counts only if it is there.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.main < self.pins.lock().broken_below
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        self.pins.pin(self.main)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut held = self.pins.lock();
        if self.main < held.broken_below {
            return;
        }
        let count = held
            .counts
            .get_mut(&self.main)
            .expect("a pin is counted while it lives");
        *count -= 1;
        if *count == 0 {
            held.counts.remove(&self.main);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_pin_counts_until_its_last_holder_is_gone() {
        let pins = Arc::new(Pins::default());
        let old = pins.pin(3);
        let newer = pins.pin(7);
        let again = old.clone();
        drop(old);
        assert_eq!(pins.oldest(), Some(3));
        drop(again);
        assert_eq!(pins.oldest(), Some(7));
        drop(newer);
        assert_eq!(pins.oldest(), None);
    }

    #[test]
    fn pins_that_are_broken_hold_nothing_and_neither_do_their_clones() {
        let pins = Arc::new(Pins::default());
        let (old, kept) = (pins.pin(-1), pins.pin(7));
        assert_eq!(pins.oldest(), Some(-1));
        assert_eq!(pins.break_below(7), 1);
        let again = old.clone();
        assert!(old.is_broken() && again.is_broken() && !kept.is_broken());
        assert_eq!(pins.oldest(), Some(7));
        drop((old, again));
        assert_eq!(pins.oldest(), Some(7));
        drop(kept);
        assert_eq!(pins.oldest(), None);
    }
}
