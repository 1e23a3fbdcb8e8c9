//! The commit thread: the file's only writer.
//!
//! [`Commits`] is what it does, a turn at a time. Segments, compactions and defragmentations come in one queue and are
//! carried out in its order; a compaction goes a bounded transaction at a time, with segments in between, and rests after
//! each as long as it took: the log's syncs wait for the same disk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keelson_proto::ids::LogIndex;
use keelson_proto::message::Message;
use keelson_store::{CommitStep, Committer, CompactionJob, Durable, JobProgress, Sealed};

use crate::apply::ApplyRequest;
use crate::human::HumanBytes;
use crate::links::Links;
use crate::mailbox::Taken;
use crate::snapshot::{self, Snapshots};
use crate::ticket::{Outbox, Reply};
use crate::{Error, Ticket, boot};

/// How long a compaction rests at most between two transactions: on a slow disk it must end too.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Work for the file.
#[derive(Debug)]
pub(crate) enum CommitRequest {
    /// A segment, and who waits for it; without one everything is in the file already.
    Segment {
        sealed: Option<Box<Sealed>>,
        answers: Vec<Ticket>,
        /// Whether a disk snapshot is to be taken at its end.
        snapshot: bool,
        /// Members that get the file as of its end, each by the message that goes with it.
        send: Vec<Message>,
    },
    /// The database of a snapshot that the leader has sent is to take the file's place.
    Install(LogIndex),
    /// A compaction that is through the index.
    Compaction(Box<CompactionJob>),
    /// The file is to be rewritten without its free pages.
    Defragment(Option<Ticket>),
}

/// What the thread starts with.
pub(crate) struct Commits {
    links: Arc<Links>,
    committer: Committer,
    snapshots: Snapshots,
    jobs: VecDeque<Box<CompactionJob>>,
    /// When the running compaction began.
    compacting_since: Option<Duration>,
    /// When its next transaction may begin.
    compact_at: Duration,
    /// Rows that had been removed before it.
    rows_before: u64,
}

impl Commits {
    pub(crate) fn new(links: Arc<Links>, committer: Committer, snapshots: Snapshots) -> Commits {
        Commits {
            links,
            committer,
            snapshots,
            jobs: VecDeque::new(),
            compacting_since: None,
            compact_at: Duration::ZERO,
            rows_before: 0,
        }
    }

    /// Runs until the mailbox is closed and empty. A compaction that is not through goes on after the
    /// next start.
    pub(crate) fn run(mut self) {
        if let Err(error) = self.work() {
            self.links.fail(&error);
        }
    }

    fn work(&mut self) -> Result<(), Error> {
        let mut one = Vec::new();
        loop {
            let patience = self.next().map(|at| at.saturating_sub(self.now()));
            if self.links.commit.take_up_to(1, &mut one, patience) == Taken::Closed {
                return Ok(());
            }
            self.turn(one.pop())?;
        }
    }

    /// When a turn is due even if nothing comes.
    pub(crate) fn next(&self) -> Option<Duration> {
        let has_work = self.compacting_since.is_some() || !self.jobs.is_empty();
        has_work.then_some(self.compact_at)
    }

    /// Carries out what came, and one transaction of a compaction if it is due.
    pub(crate) fn turn(&mut self, request: Option<CommitRequest>) -> Result<(), Error> {
        if let Some(request) = request {
            self.carry_out(request)?;
        }
        let begun = self.now();
        if self.next().is_some_and(|at| at <= begun) {
            self.compact()?;
            let now = self.now();
            self.compact_at = now + now.saturating_sub(begun).min(PAUSE_MAX);
        }
        Ok(())
    }

    fn now(&self) -> Duration {
        self.links.env.clock.now()
    }

    fn carry_out(&mut self, request: CommitRequest) -> Result<(), Error> {
        match request {
            CommitRequest::Segment {
                sealed,
                answers,
                snapshot,
                send,
            } => {
                let durable = self.commit(sealed.as_deref(), answers, snapshot)?;
                for message in send {
                    snapshot::send(&self.links, message, &durable);
                }
                Ok(())
            }
            CommitRequest::Install(index) => self.install(index),
            CommitRequest::Compaction(job) => {
                self.jobs.push_back(job);
                Ok(())
            }
            CommitRequest::Defragment(ticket) => self.defragment(ticket),
        }
    }

    fn commit(
        &mut self,
        sealed: Option<&Sealed>,
        answers: Vec<Ticket>,
        snapshot: bool,
    ) -> Result<Durable, Error> {
        let durable = match sealed {
            Some(sealed) => self.commit_segment(sealed)?,
            None => self.committer.durable()?,
        };
        let mut outbox = Outbox::default();
        for ticket in answers {
            outbox.add(ticket, Reply::Durable(durable.clone()));
        }
        outbox.send(&*self.links.replies);
        self.snapshots
            .after_commit(&self.links, &durable, snapshot)?;
        Ok(durable)
    }

    /// Puts a received database in the place of the file, and hands its state to apply. The log has a
    /// mark of it: a start that comes in between finds the file under either name.
    fn install(&mut self, index: LogIndex) -> Result<(), Error> {
        let (config, env) = (&self.links.config, &self.links.env);
        boot::put_in_place(config, &env.files, index)?;
        let opened = boot::open_database(config, env, &config.db_path())?;
        let (found, _) = opened.store.applied();
        if found < index {
            return Err(Error::DatabaseBehindSnapshot {
                db: config.db_path(),
                consistent: found,
                snapshot: index,
            });
        }
        self.jobs.clear();
        self.compacting_since = None;
        self.committer.take_over(opened.committer);
        self.rows_before = self.committer.compacted_rows();
        self.snapshots.installed(found)?;
        let request = ApplyRequest::Opened(Box::new(opened.store));
        drop(self.links.apply.push_always(request, 0));
        Ok(())
    }

    fn commit_segment(&mut self, sealed: &Sealed) -> Result<Durable, Error> {
        let synced = self.links.synced.load(Ordering::Acquire);
        assert!(
            sealed.boundary.index.0 <= synced,
            "the file would hold entry {}, but the own log ends at {synced}",
            sealed.boundary.index
        );
        let (stats, clock) = (&self.links.stats, &self.links.env.clock);
        let begun = clock.now();
        let mut step_begun = begun;
        let durable = self.committer.commit_in_steps(sealed, &mut |step| {
            let now = clock.now();
            let times = match step {
                CommitStep::Begun => None,
                CommitStep::Rebalanced => Some(&stats.commit_rebalance),
                CommitStep::Spilled => Some(&stats.commit_spill),
                CommitStep::Written => Some(&stats.commit_write),
            };
            if let Some(times) = times {
                times.observe(now.saturating_sub(step_begun));
            }
            step_begun = now;
        })?;
        stats
            .backend_commit
            .observe(clock.now().saturating_sub(begun));
        Ok(durable)
    }

    /// One transaction of the running compaction, or of the next one.
    fn compact(&mut self) -> Result<(), Error> {
        if self.compacting_since.is_none() {
            let Some(job) = self.jobs.pop_front() else {
                return Ok(());
            };
            self.compacting_since = Some(self.now());
            self.rows_before = self.committer.compacted_rows();
            self.committer.begin_compaction(*job);
        }
        let begun = self.now();
        let progress = self.committer.continue_compaction()?;
        let stats = &self.links.stats;
        if progress != JobProgress::Idle {
            let took = self.now().saturating_sub(begun);
            stats.compaction_pause.observe(took);
            stats.compacted_rows.set(self.committer.compacted_rows());
        }
        match progress {
            JobProgress::More => {}
            JobProgress::Idle => self.compacting_since = None,
            JobProgress::Finished { revision } => {
                let begun = self.compacting_since.take().unwrap_or_default();
                let keys = self.committer.compacted_rows() - self.rows_before;
                self.finished(revision, self.now().saturating_sub(begun), keys);
            }
        }
        Ok(())
    }

    fn finished(&self, revision: i64, took: Duration, keys: u64) {
        let stats = &self.links.stats;
        stats.compaction.observe(took);
        stats
            .last_compaction
            .set(self.links.env.clock.wall().as_secs());
        let hashes = self.links.shared.compaction_hashes();
        let hash = hashes
            .iter()
            .find(|hash| hash.hash_revision == revision)
            .map(|it| it.hash);
        let sizes = self.links.shared.sizes();
        tracing::info!(
            "compact-revision" = revision,
            took = ?took,
            "number-of-keys-compacted" = keys,
            hash,
            "current-db-size-bytes" = sizes.total,
            "current-db-size" = %HumanBytes(sizes.total),
            "current-db-size-in-use-bytes" = sizes.in_use,
            "current-db-size-in-use" = %HumanBytes(sizes.in_use),
            "finished scheduled compaction"
        );
        drop(
            self.links
                .apply
                .push_always(ApplyRequest::CompactionFinished, 0),
        );
    }

    fn defragment(&mut self, ticket: Option<Ticket>) -> Result<(), Error> {
        let path = self.links.config.db_path();
        let before = self.links.shared.sizes();
        tracing::info!(
            path = %path.display(),
            "current-db-size-bytes" = before.total,
            "current-db-size" = %HumanBytes(before.total),
            "current-db-size-in-use-bytes" = before.in_use,
            "current-db-size-in-use" = %HumanBytes(before.in_use),
            "defragmenting"
        );
        self.links.stats.defrag_in_flight.set(1);
        let begun = self.now();
        if let Err(error) = self.committer.defragment() {
            self.links.stats.defrag_in_flight.set(0);
            // A disk without room for the copy is no reason to end, as long as the old file serves.
            self.committer.durable()?;
            tracing::error!(path = %path.display(), %error, "failed to defragment");
            if let Some(ticket) = ticket {
                self.links.reply(ticket, Reply::Failed(error.to_string()));
            }
            return Ok(());
        }
        let took = self.now().saturating_sub(begun);
        self.links.stats.defrag_in_flight.set(0);
        self.links.stats.defrag.observe(took);
        let after = self.links.shared.sizes();
        tracing::info!(
            path = %path.display(),
            "current-db-size-bytes-diff" = after.total.cast_signed() - before.total.cast_signed(),
            "current-db-size-bytes" = after.total,
            "current-db-size" = %HumanBytes(after.total),
            "current-db-size-in-use-bytes-diff" = after.in_use.cast_signed() - before.in_use.cast_signed(),
            "current-db-size-in-use-bytes" = after.in_use,
            "current-db-size-in-use" = %HumanBytes(after.in_use),
            took = ?took,
            "finished defragmenting directory"
        );
        if let Some(ticket) = ticket {
            self.links.reply(ticket, Reply::Done);
        }
        Ok(())
    }
}
