//! Whether what is read is in memory: told by whether the reads before it have waited for the disk.
//!
//! A serving thread that touches a page of the file which is not in memory stops, with all its
//! connections, until the disk has brought it. Where all is in memory, though, to hand a short read to
//! another thread and back costs as much as the read. The system counts for each thread how often it
//! waited for a page (a major fault), so each read tells how the next will fare.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::sys::resource::{UsageWho, getrusage};

/// How many reads in a row must not have waited before the next is trusted not to.
pub(crate) const QUICK_READS: u32 = 16;

/// How often this thread has waited for a page.
type Faults = fn() -> io::Result<i64>;

/// How the last reads fared, whichever threads they were made on.
#[derive(Debug)]
pub(crate) struct Residency {
    /// Reads since one waited, but for reads that ended at the same time: a hint, no more.
    quick: AtomicU32,
    /// Reads that waited.
    waited: AtomicU64,
    faults: Faults,
}

/// A read that is being made.
#[derive(Debug)]
pub(crate) struct Watched {
    faults: Faults,
    before: io::Result<i64>,
}

impl Watched {
    /// Whether it has waited for the disk so far. Where the system does not say, it counts as one that has.
    pub(crate) fn has_waited(&self) -> bool {
        match (&self.before, (self.faults)()) {
            (Ok(before), Ok(now)) => *before != now,
            _ => true,
        }
    }
}

impl Default for Residency {
    fn default() -> Residency {
        Residency::with(|| Ok(getrusage(UsageWho::RUSAGE_THREAD)?.major_page_faults()))
    }
}

impl Residency {
    fn with(faults: Faults) -> Residency {
        Residency {
            quick: AtomicU32::new(0),
            waited: AtomicU64::new(0),
            faults,
        }
    }

    /// One whose reads never wait.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Residency {
        Residency::with(|| Ok(0))
    }

    /// One whose reads wait each time that somebody asks.
    #[cfg(test)]
    pub(crate) fn on_disk() -> Residency {
        static FAULTS: AtomicU32 = AtomicU32::new(0);
        Residency::with(|| Ok(FAULTS.fetch_add(1, Ordering::Relaxed).into()))
    }

    /// Whether the next read is unlikely to wait for the disk.
    pub(crate) fn is_likely(&self) -> bool {
        self.quick.load(Ordering::Relaxed) >= QUICK_READS
    }

    /// How many reads have waited for the disk.
    pub(crate) fn waited(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }

    /// Makes a read and takes note of how it fared.
    pub(crate) fn watch<T>(&self, read: impl FnOnce(&Watched) -> T) -> T {
        let watched = Watched {
            faults: self.faults,
            before: (self.faults)(),
        };
        let result = read(&watched);
        if watched.has_waited() {
            self.quick.store(0, Ordering::Relaxed);
            self.waited.fetch_add(1, Ordering::Relaxed);
        } else if !self.is_likely() {
            self.quick.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static FAULTS: Cell<i64> = const { Cell::new(0) };
    }

    fn wait_for_the_disk() {
        FAULTS.set(FAULTS.get() + 1);
    }

    #[test]
    fn reads_are_trusted_after_a_row_that_has_not_waited() {
        let residency = Residency::with(|| Ok(FAULTS.get()));
        for waited in 0..3 {
            assert_eq!(residency.waited(), waited);
            for _ in 0..QUICK_READS {
                assert!(!residency.is_likely());
                residency.watch(|read| assert!(!read.has_waited()));
            }
            assert!(residency.is_likely());
            residency.watch(|read| {
                wait_for_the_disk();
                assert!(read.has_waited());
            });
            assert!(!residency.is_likely());
        }
    }

    #[test]
    fn no_read_is_trusted_where_the_system_does_not_say_whether_it_waited() {
        let residency = Residency::with(|| Err(io::ErrorKind::Unsupported.into()));
        for _ in 0..2 * QUICK_READS {
            residency.watch(|read| assert!(read.has_waited()));
        }
        assert!(!residency.is_likely());
    }

    #[test]
    fn the_system_says_how_often_a_thread_has_waited() {
        assert!((Residency::default().faults)().is_ok());
    }
}
