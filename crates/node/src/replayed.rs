//! What a log holds at a start, as the member goes on from it.

use std::sync::Arc;

use keelson_proto::entry::{Entry, HardState};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_store::{Boundary, Opened};
use keelson_wal::{Files, Replay, SnapshotMark, Wal};

use crate::{Config, Error, snapshot};

/// The log of a start.
pub(crate) struct Replayed {
    /// The entry before the first one.
    pub(crate) before: (LogIndex, Term),
    pub(crate) entries: Vec<Entry>,
    /// As consensus starts from it.
    pub(crate) hard_state: HardState,
}

impl Replayed {
    /// From what was read; the database holds everything up to `applied`, and so knows of commits that
    /// the log had no reason to note.
    pub(crate) fn new(replay: Replay, applied: LogIndex) -> Replayed {
        let start = replay.at;
        let last_term = replay.entries.last().map_or(start.term, |entry| entry.term);
        let mut hard_state = replay.hard_state.unwrap_or_default();
        if hard_state.term < last_term {
            // The end of the last write was torn off, and with it the term; nobody was answered about
            // it.
            hard_state.term = last_term;
            hard_state.vote = MemberId::NONE;
        }
        hard_state.commit = hard_state.commit.max(applied);
        Replayed {
            before: (start.index, start.term),
            entries: replay.entries,
            hard_state,
        }
    }

    /// The last entry.
    pub(crate) fn last(&self) -> LogIndex {
        self.entries
            .last()
            .map_or(self.before.0, |entry| entry.index)
    }

    /// Entries that are committed and that the database does not hold.
    pub(crate) fn committed_after(&self, applied: LogIndex) -> impl Iterator<Item = &Entry> {
        let commit = self.hard_state.commit;
        self.entries
            .iter()
            .filter(move |entry| entry.index > applied && entry.index <= commit)
    }

    /// Lets the log begin where the database ends, because it ends before.
    ///
    /// A member of a cluster may apply what others have synced before its own log has it (etcd does),
    /// so a power cut leaves this. What the database holds is committed: it stands for the log up to
    /// there. A lone voter's log cannot be behind; it has lost what it had promised.
    ///
    /// # Errors
    ///
    /// [`Error::LogBehindDatabase`] for the only voter, and a failing disk.
    pub(crate) fn begin_at_database(
        &mut self,
        config: &Config,
        files: &Arc<dyn Files>,
        wal: &mut Wal,
        opened: &Opened,
        own: MemberId,
    ) -> Result<(), Error> {
        let (index, term) = opened.store.applied();
        let last = self.last();
        if opened.store.conf_state().voters == [own] || term == Term(0) {
            return Err(Error::LogBehindDatabase {
                wal: config.wal_dir(),
                last,
                consistent: index,
            });
        }
        tracing::warn!(
            "last-index" = last.0,
            "consistent-index" = index.0,
            "the log ends before the database; it goes on from the database"
        );
        if self.hard_state.term < term {
            self.hard_state.term = term;
            self.hard_state.vote = MemberId::NONE;
        }
        wal.append(Some(self.hard_state), &[])?;
        wal.commit(true)?;
        let boundary = Boundary {
            members: opened.store.members().clone(),
            conf_state: opened.store.conf_state().clone(),
            ..opened.committer.durable()?.boundary
        };
        snapshot::save(files, config, &boundary)?;
        wal.save_snapshot(SnapshotMark { index, term }, &boundary.conf_state)?;
        self.before = (index, term);
        self.entries.clear();
        Ok(())
    }
}
