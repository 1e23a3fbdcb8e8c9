//! Revisions in use: compaction removes nothing that a pinned read can see.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// The revisions that readers hold.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    held: Mutex<BTreeMap<i64, usize>>,
}

/// Keeps what a read at its revision sees from being removed, until it is dropped.
///
/// Whoever takes one looks at the compact revision *afterwards*: a compaction that was published
/// before may have begun to remove below it.
#[derive(Debug)]
pub struct Pin {
    pins: Arc<Pins>,
    main: i64,
}

impl Pins {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<i64, usize>> {
        self.held.lock().expect("no holder of this lock panics")
    }

    pub(crate) fn pin(self: &Arc<Self>, main: i64) -> Pin {
        *self.lock().entry(main).or_default() += 1;
        Pin {
            pins: self.clone(),
            main,
        }
    }

    /// The oldest revision that is held.
    pub(crate) fn oldest(&self) -> Option<i64> {
        self.lock().keys().next().copied()
    }
}

impl Pin {
    /// The revision that is held.
    #[must_use]
    pub fn main(&self) -> i64 {
        self.main
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
        let count = held
            .get_mut(&self.main)
            .expect("a pin is counted while it lives");
        *count -= 1;
        if *count == 0 {
            held.remove(&self.main);
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
}
