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

/// How the last reads fared, whichever threads they were made on.
#[derive(Debug, Default)]
pub(crate) struct Residency {
    /// Reads since one waited; no higher than [`QUICK_READS`].
    quick: AtomicU32,
    /// Reads that waited.
    waited: AtomicU64,
}

impl Residency {
    /// Whether the next read is unlikely to wait for the disk.
    pub(crate) fn is_likely(&self) -> bool {
        self.quick.load(Ordering::Relaxed) >= QUICK_READS
    }

    /// How many reads have waited for the disk.
    pub(crate) fn waited(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }

    /// Makes a read and takes note of how it fared.
    pub(crate) fn watch<T>(&self, read: impl FnOnce() -> T) -> T {
        let before = major_faults();
        let result = read();
        // Where the system does not say, no read is trusted.
        self.note(!matches!((before, major_faults()), (Ok(before), Ok(after)) if before == after));
        result
    }

    /// Two reads that end at once may count as one: the next is trusted a read later, no more.
    pub(crate) fn note(&self, waited: bool) {
        if waited {
            self.quick.store(0, Ordering::Relaxed);
            self.waited.fetch_add(1, Ordering::Relaxed);
        } else if !self.is_likely() {
            self.quick.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// How often this thread has waited for a page.
fn major_faults() -> io::Result<i64> {
    Ok(getrusage(UsageWho::RUSAGE_THREAD)?.major_page_faults())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_trusted_after_a_row_that_has_not_waited() {
        let residency = Residency::default();
        for _ in 0..QUICK_READS {
            assert!(!residency.is_likely());
            residency.note(false);
        }
        assert!(residency.is_likely());
        residency.note(true);
        assert!(!residency.is_likely());
        assert_eq!(residency.waited(), 1);
        for _ in 0..QUICK_READS {
            assert!(!residency.is_likely());
            residency.note(false);
        }
        assert!(residency.is_likely());
    }

    #[test]
    fn a_read_that_touches_no_page_is_a_quick_one() {
        let residency = Residency::default();
        for number in 0..QUICK_READS {
            assert_eq!(residency.watch(|| number), number);
        }
        assert!(residency.is_likely());
        assert_eq!(residency.waited(), 0);
    }
}
