//! What state a member's disks are in.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

/// Which files are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The log and the `.snap` files.
    Log,
    /// The database.
    Database,
}

/// What a disk does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskState {
    /// Every sync takes so much longer, by the system's clock.
    pub sync_takes: Duration,
    /// Whatever is written is refused, as file systems that copy on write do when they are full.
    pub full: bool,
    /// Every sync is refused.
    pub syncs_fail: bool,
}

/// The disks of one member.
#[derive(Debug, Default)]
pub(super) struct Disks {
    states: Mutex<[DiskState; 2]>,
    changed: Condvar,
}

impl Disks {
    pub(super) fn set(&self, part: Part, state: DiskState) {
        self.lock()[part as usize] = state;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, [DiskState; 2]> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What every change but a sync asks first.
    pub(super) fn write(&self, part: Part) -> io::Result<()> {
        if self.lock()[part as usize].full {
            return Err(Errno::NOSPC.into());
        }
        Ok(())
    }

    /// What every sync asks first. A disk that changes while a sync waits lets it go.
    pub(super) fn sync(&self, part: Part) -> io::Result<()> {
        let states = self.lock();
        let at = part as usize;
        let begun = states[at];
        let (states, _) = self
            .changed
            .wait_timeout_while(states, begun.sync_takes, |states| states[at] == begun)
            .unwrap_or_else(PoisonError::into_inner);
        if states[at].syncs_fail {
            return Err(Errno::IO.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn each_disk_refuses_what_it_is_told_to() {
        let disks = Disks::default();
        assert!(disks.write(Part::Log).is_ok() && disks.sync(Part::Log).is_ok());
        let full = DiskState {
            full: true,
            ..DiskState::default()
        };
        disks.set(Part::Log, full);
        let refused = disks.write(Part::Log).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert!(disks.sync(Part::Log).is_ok() && disks.write(Part::Database).is_ok());
        let failing = DiskState {
            syncs_fail: true,
            ..DiskState::default()
        };
        disks.set(Part::Database, failing);
        let refused = disks.sync(Part::Database).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::IO.raw_os_error()));
        disks.set(Part::Database, DiskState::default());
        assert!(disks.sync(Part::Database).is_ok());
    }

    #[test]
    fn a_sync_that_waits_on_a_slow_disk_ends_when_the_disk_is_well() {
        let disks = Arc::new(Disks::default());
        let slow = DiskState {
            sync_takes: Duration::from_hours(1),
            ..DiskState::default()
        };
        disks.set(Part::Log, slow);
        let of_the_thread = Arc::clone(&disks);
        let syncing = thread::spawn(move || of_the_thread.sync(Part::Log));
        disks.set(Part::Log, DiskState::default());
        syncing.join().unwrap().unwrap();
    }
}
