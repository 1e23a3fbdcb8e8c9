//! The log thread: takes all writes that wait, one write and one sync for all of them. A [`Logger`] is
//! what it does, a turn at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keelson_proto::entry::{ConfState, HardState, Snapshot};
use keelson_proto::ids::LogIndex;
use keelson_wal::{Preparer, SnapFiles, SnapshotMark, Wal};

use crate::core::{Append, Input};
use crate::links::Links;
use crate::mailbox::Taken;
use crate::seats::Seats;

/// A sync that takes longer is worth a warning.
const SLOW_SYNC: Duration = Duration::from_secs(1);

/// Work for the log.
#[derive(Debug)]
pub(crate) enum LogRequest {
    /// Something of consensus.
    Append(Append),
    /// The file holds everything up to here, and there is a `.snap` file that says so: the log needs
    /// not reach back further.
    Mark {
        mark: SnapshotMark,
        /// The configuration as of it.
        conf_state: ConfState,
    },
}

/// What the thread does.
pub(crate) struct Logger {
    links: Arc<Links>,
    wal: Wal,
    /// The last one that was written.
    hard_state: HardState,
    /// The last snapshot that the log has a mark of.
    marked: LogIndex,
}

impl Logger {
    pub(crate) fn new(
        links: Arc<Links>,
        wal: Wal,
        hard_state: HardState,
        marked: LogIndex,
    ) -> Logger {
        Logger {
            links,
            wal,
            hard_state,
            marked,
        }
    }

    /// The log's helper, which makes the next segment ready; for a thread of its own. Without one the log
    /// makes its segments itself.
    pub(crate) fn preparer(&mut self) -> Preparer {
        self.wal.preparer()
    }

    /// Runs until the mailbox is closed and empty. The log is closed with it.
    pub(crate) fn run(mut self, seats: &Seats) {
        if let Err(error) = self.work(seats) {
            self.links.fail(&error.into());
        }
    }

    fn work(&mut self, seats: &Seats) -> Result<(), keelson_wal::Error> {
        let mut requests = Vec::new();
        while self.links.log.take(&mut requests, None) == Taken::Some {
            self.turn(&mut requests)?;
            // The disk does not wait for a turn while there is more to be written.
            seats.take_unless(|| self.links.log.depth() > 0);
        }
        Ok(())
    }

    /// Writes what came, and leaves consensus to be given a turn for it.
    pub(crate) fn turn(
        &mut self,
        requests: &mut Vec<LogRequest>,
    ) -> Result<(), keelson_wal::Error> {
        let mut upto = None;
        let mut must_sync = false;
        let mut entries = 0;
        for request in requests.drain(..) {
            match request {
                LogRequest::Append(append) => {
                    if let Some(snapshot) = &append.snapshot {
                        self.take_snapshot(snapshot, append.hard_state)?;
                    }
                    self.wal.append(append.hard_state, &append.entries)?;
                    self.hard_state = append.hard_state.unwrap_or(self.hard_state);
                    must_sync |= append.must_sync;
                    entries += append.entries.len() as u64;
                    upto = Some(append.number);
                }
                LogRequest::Mark { mark, conf_state } => self.mark(mark, &conf_state)?,
            }
        }
        let Some(upto) = upto else { return Ok(()) };
        let clock = &self.links.env.clock;
        let begun = clock.now();
        let written = self.wal.commit(must_sync)?;
        let took = clock.now().saturating_sub(begun);
        let stats = &self.links.stats;
        if written.synced {
            stats.wal_fsync.observe(took);
            if took > SLOW_SYNC {
                tracing::warn!(
                    took = ?took,
                    "expected-duration" = ?SLOW_SYNC,
                    "slow fdatasync"
                );
            }
        } else {
            stats.wal_write.observe(took);
        }
        stats.wal_write_bytes.add(written.bytes);
        stats.log_batches.add(1);
        stats.log_entries.add(entries);
        if must_sync {
            self.links
                .synced
                .store(self.wal.last_index().0, Ordering::Release);
        }
        let synced = Input::Synced { upto };
        drop(self.links.consensus.push_quietly(synced, 0, || false));
        Ok(())
    }

    /// Begins again behind a snapshot of the leader: first its `.snap` file, then the mark.
    fn take_snapshot(
        &mut self,
        snapshot: &Snapshot,
        hard_state: Option<HardState>,
    ) -> Result<(), keelson_wal::Error> {
        let links = &self.links;
        SnapFiles::new(links.env.files.clone(), &links.config.snap_dir()).save(snapshot)?;
        self.hard_state = hard_state.unwrap_or(self.hard_state);
        self.wal.append(hard_state, &[])?;
        let mark = SnapshotMark {
            index: snapshot.index,
            term: snapshot.term,
        };
        self.mark(mark, &snapshot.conf_state)
    }

    /// Records a snapshot, and lets go of what lies before it.
    fn mark(
        &mut self,
        mark: SnapshotMark,
        conf_state: &ConfState,
    ) -> Result<(), keelson_wal::Error> {
        if mark.index <= self.marked {
            // Of the file that a snapshot of the leader replaces: it came later, and the log does not hold
            // what lies between.
            return Ok(());
        }
        self.marked = mark.index;
        if self.hard_state.commit < mark.index {
            // What the file holds is committed, whether or not the log has been told yet; a mark
            // counts only up to the commit index that the log knows.
            self.hard_state.commit = mark.index;
            self.wal.append(Some(self.hard_state), &[])?;
        }
        self.wal.save_snapshot(mark, conf_state)?;
        self.wal.release_to(mark.index)
    }
}
