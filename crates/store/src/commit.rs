//! The file's only writer: sealed segments, compactions and defragmentation go through here.
//!
//! Invariants:
//! 1. one transaction is all buckets as of one entry boundary, with its index, term and
//!    configuration; deletions of a compaction are transactions of their own that leave those rows
//!    alone;
//! 2. deletions come after the transaction that carries their schedule mark;
//! 3. every commit is answered with a read transaction that was opened before the next one begins.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelson_bolt::{Db, Options, Step, WriteTx};

use crate::compaction::CompactionJob;
use crate::disk::Disk;
use crate::hash::Hasher;
use crate::member;
use crate::row::RowChange;
use crate::tail::{Boundary, Durable, Sealed};
use crate::view::{Row, walk_file};
use crate::{BucketKey, Error, Revision, Shared, schema};

/// Records are appended in ascending order, so that leaves may be filled well.
const KEY_FILL: f64 = 0.9;

/// Rows that one transaction of a compaction looks at.
const BATCH_ROWS: usize = 1_000;

/// Committed segments stay in memory up to this many bytes, for watchers that lag.
const WINDOW_BYTES_MAX: u64 = 16 << 20;

/// Bytes of keys and values that one transaction of a defragmentation copies.
const DEFRAGMENT_TX_BYTES: u64 = 8 << 20;

/// Writes to the file; owned by the commit thread.
pub struct Committer {
    db: Db,
    /// Where the file is, if it is one.
    place: Option<Place>,
    options: Options,
    shared: Arc<Shared>,
    boundary: Boundary,
    running: Option<RunningJob>,
    /// Rows that compactions have removed since the start.
    compacted_rows: u64,
    window_bytes_max: u64,
}

/// The name of the file, and the disk that has it.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) path: PathBuf,
}

/// A compaction on its way through the file.
struct RunningJob {
    job: CompactionJob,
    /// The first row that was not looked at.
    next: Revision,
    crc: Option<Box<HashState>>,
}

type HashState = Hasher<fn(&Row<'_>) -> bool>;

/// How far a compaction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobProgress {
    /// Rows are left.
    More,
    /// It is finished, and its finish mark is in the file.
    Finished {
        /// Its compact revision.
        revision: i64,
    },
    /// There is none.
    Idle,
}

impl Committer {
    pub(crate) fn new(
        db: Db,
        place: Option<Place>,
        options: Options,
        shared: Arc<Shared>,
        boundary: Boundary,
    ) -> Committer {
        let committer = Committer {
            db,
            place,
            options,
            shared,
            boundary,
            running: None,
            compacted_rows: 0,
            window_bytes_max: WINDOW_BYTES_MAX,
        };
        committer.publish_sizes();
        committer
    }

    /// Says how many bytes of what is in the file stay in memory too, for watchers that lag; 16 MiB
    /// unless this is called. It counts from the next commit on.
    pub fn set_window_bytes(&mut self, bytes_max: u64) {
        self.window_bytes_max = bytes_max;
    }

    /// What the file holds now.
    ///
    /// # Errors
    ///
    /// A failing file.
    pub fn durable(&self) -> Result<Durable, Error> {
        Ok(Durable {
            boundary: self.boundary.clone(),
            read: self.db.begin_read()?,
        })
    }

    /// Writes a sealed segment; when this returns, it is in the file for good, and readers see it
    /// there.
    ///
    /// # Errors
    ///
    /// A failing file; the process must end then.
    pub fn commit(&mut self, sealed: &Sealed) -> Result<Durable, Error> {
        self.commit_in_steps(sealed, &mut |_| {})
    }

    /// As [`Committer::commit`], telling of each part of the engine's commit when it has ended.
    ///
    /// # Errors
    ///
    /// As [`Committer::commit`].
    pub fn commit_in_steps(
        &mut self,
        sealed: &Sealed,
        ended: &mut dyn FnMut(Step),
    ) -> Result<Durable, Error> {
        let boundary = &sealed.boundary;
        assert!(
            boundary.index >= self.boundary.index,
            "the consistent index never goes back: {} to {}",
            self.boundary.index,
            boundary.index
        );
        let mut tx = self.db.begin_write()?;
        let records = sealed
            .segment
            .copy(sealed.segment.first(), sealed.segment.end(), usize::MAX);
        if !records.is_empty() {
            let mut keys = tx.bucket_mut(schema::KEY.as_bytes())?;
            keys.set_fill_percent(KEY_FILL);
            for (revision, record) in &records {
                let key = BucketKey::encode(*revision, record.tombstone);
                keys.put(key.as_bytes(), &record.bytes)?;
            }
        }
        write_rows(&mut tx, &sealed.rows)?;
        write_rows(&mut tx, &boundary_rows(boundary))?;
        tx.commit_in_steps(ended)?;
        self.boundary = boundary.clone();
        let durable = self.durable()?;
        self.shared
            .change_view(|view| view.after_commit(&durable, self.window_bytes_max));
        self.shared.take_sealed_bytes(sealed.bytes());
        self.publish_sizes();
        Ok(durable)
    }

    /// Takes in a compaction that is through the index. Its schedule mark must have been committed.
    ///
    /// # Panics
    ///
    /// If one is running, or its mark is not in the file yet.
    pub fn begin_compaction(&mut self, mut job: CompactionJob) {
        assert!(
            self.running.is_none(),
            "compactions run one after the other"
        );
        assert!(
            job.index <= self.boundary.index,
            "a compaction's mark is in the file before its deletions"
        );
        // Here, not where apply would wait for it: there may be millions.
        job.dead.sort_unstable();
        let next = Revision { main: 0, sub: 0 };
        self.running = Some(RunningJob {
            job,
            next,
            crc: None,
        });
    }

    /// Carries the running compaction on by one bounded transaction.
    ///
    /// # Errors
    ///
    /// A failing or damaged file; the process must end then.
    pub fn continue_compaction(&mut self) -> Result<JobProgress, Error> {
        let Some(mut running) = self.running.take() else {
            return Ok(JobProgress::Idle);
        };
        let revision = running.job.revision;
        let batch = running.look(&self.shared.view().read().clone())?;
        let finished = batch.next.is_none();
        if let Some(next) = batch.next
            && batch.dead.is_empty()
        {
            // Nothing to write: a transaction would cost a sync.
            running.next = next;
            self.running = Some(running);
            return Ok(JobProgress::More);
        }
        let mut tx = self.db.begin_write()?;
        let mut keys = tx.bucket_mut(schema::KEY.as_bytes())?;
        for (revision, tombstone) in &batch.dead {
            keys.delete(BucketKey::encode(*revision, *tombstone).as_bytes())?;
        }
        self.compacted_rows += batch.dead.len() as u64;
        if finished {
            let mark = BucketKey::encode(
                Revision {
                    main: revision,
                    sub: 0,
                },
                false,
            );
            tx.bucket_mut(schema::META.as_bytes())?
                .put(schema::FINISHED_COMPACT, mark.as_bytes())?;
        }
        tx.commit()?;
        let read = self.db.begin_read()?;
        self.shared.change_view(|view| view.with_read(read.clone()));
        self.publish_sizes();
        let Some(next) = batch.next else {
            if running.job.remember_hash
                && let Some(hasher) = running.crc
            {
                self.shared.remember_hash(hasher.finish());
            }
            return Ok(JobProgress::Finished { revision });
        };
        running.next = next;
        self.running = Some(running);
        Ok(JobProgress::More)
    }

    /// Copies the file into a new one without its free pages, and takes that in its place. Reads
    /// and apply go on meanwhile in the tail and the old file, which closes with its last reader.
    ///
    /// # Errors
    ///
    /// A failing file. Until the rename the old file is untouched, and stays in use; when that or what comes
    /// after it fails, nothing can be committed any more.
    pub fn defragment(&mut self) -> Result<Durable, Error> {
        let Place { disk, path } = self.place.clone().ok_or(Error::NoFile)?;
        let temporary = path.with_extension("tmp.defrag");
        let file = |action, path: &Path| {
            let path = path.to_owned();
            move |source| Error::File {
                action,
                path,
                source,
            }
        };
        if disk.exists(&temporary).map_err(file("find", &temporary))? {
            disk.remove(&temporary)
                .map_err(file("remove", &temporary))?;
        }
        let fresh = disk.open(
            &temporary,
            Options {
                initial_map_size: 0,
                ..self.options.clone()
            },
        )?;
        keelson_bolt::compact(&self.db, &fresh, DEFRAGMENT_TX_BYTES, KEY_FILL)?;
        fresh.close()?;
        let directory = path.parent().unwrap_or(Path::new("."));
        let replaced = disk
            .rename(&temporary, &path)
            .map_err(file("rename", &temporary))
            .and_then(|()| disk.sync_dir(directory).map_err(file("sync", directory)))
            .and_then(|()| Ok(disk.open(&path, self.options.clone())?));
        self.db = match replaced {
            Ok(db) => db,
            Err(error) => {
                // Which file has the name is not known: what went into one might be looked for in the other.
                self.db.clone().close()?;
                return Err(error);
            }
        };
        let durable = self.durable()?;
        self.shared
            .change_view(|view| view.with_read(durable.read.clone()));
        self.publish_sizes();
        Ok(durable)
    }

    /// Goes over to the file of another committer, which was opened beside this one; the old file closes
    /// with its last reader. A compaction of the old file is given up: the new one has its own marks.
    ///
    /// Readers see the new file when [`Store::take_over`](crate::Store::take_over) shows it: until then
    /// nothing may be committed.
    pub fn take_over(&mut self, fresh: Committer) {
        let Committer {
            db,
            place,
            options,
            boundary,
            ..
        } = fresh;
        self.db = db;
        self.place = place;
        self.options = options;
        self.boundary = boundary;
        self.running = None;
        self.publish_sizes();
    }

    /// Rows that compactions have removed from the file since the start.
    #[must_use]
    pub fn compacted_rows(&self) -> u64 {
        self.compacted_rows
    }

    /// Numbers of the engine, for metrics.
    #[must_use]
    pub fn stats(&self) -> keelson_bolt::Stats {
        self.db.stats()
    }

    fn publish_sizes(&self) {
        let stats = self.db.stats();
        self.shared.set_file_bytes(stats.size, stats.free_bytes);
        self.shared.set_file_readers(stats.open_read_txs);
    }
}

/// What one transaction of a compaction removes.
struct Batch {
    dead: Vec<(Revision, bool)>,
    /// Where the next one goes on; `None` at the end.
    next: Option<Revision>,
}

impl RunningJob {
    /// Walks the next rows of the file: hashes them, and picks those that died.
    fn look(&mut self, read: &keelson_bolt::ReadTx) -> Result<Batch, Error> {
        let (revision, previous) = (self.job.revision, self.job.previous);
        let keeps_any = self.job.keeps_any;
        // Whatever an earlier compaction has left is there: what died is told by the list below.
        let hasher = self.crc.get_or_insert_with(|| {
            let all: fn(&Row<'_>) -> bool = |_| true;
            Box::new(Hasher::new(previous, revision, all))
        });
        let mut batch = Batch {
            dead: Vec::new(),
            next: None,
        };
        let mut rows = 0;
        walk_file_from(read, self.next, revision, |row| {
            if rows == BATCH_ROWS {
                batch.next = Some(row.revision);
                return std::ops::ControlFlow::Break(());
            }
            rows += 1;
            let died = self
                .job
                .dead
                .binary_search(&(row.revision, row.tombstone))
                .is_ok();
            if died {
                batch.dead.push((row.revision, row.tombstone));
            }
            if !died || row.revision.main > previous || !keeps_any {
                hasher.row(&row);
            }
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(batch)
    }
}

fn walk_file_from(
    read: &keelson_bolt::ReadTx,
    from: Revision,
    to: i64,
    mut f: impl FnMut(Row<'_>) -> std::ops::ControlFlow<()>,
) -> Result<(), Error> {
    walk_file(read, from.main, to, |row| {
        if row.revision < from {
            std::ops::ControlFlow::Continue(())
        } else {
            f(row)
        }
    })
}

fn write_rows(tx: &mut WriteTx<'_>, rows: &[RowChange]) -> Result<(), Error> {
    for RowChange { bucket, key, value } in rows {
        let mut rows = tx.bucket_mut(bucket.as_bytes())?;
        match value {
            Some(value) => rows.put(key, value)?,
            None => rows.delete(key)?,
        }
    }
    Ok(())
}

/// The rows that say which entry a file is at.
pub(crate) fn boundary_rows(boundary: &Boundary) -> Vec<RowChange> {
    let row = |key: &[u8], value: Vec<u8>| RowChange {
        bucket: schema::META,
        key: key.to_vec(),
        value: Some(value),
    };
    let mut rows = Vec::with_capacity(3);
    if boundary.index.0 > 0 {
        rows.push(row(
            schema::CONSISTENT_INDEX,
            boundary.index.0.to_be_bytes().to_vec(),
        ));
        rows.push(row(
            schema::CONF_STATE,
            member::conf_state_to_json(&boundary.conf_state),
        ));
    }
    if boundary.term.0 > 0 {
        rows.push(row(schema::TERM, boundary.term.0.to_be_bytes().to_vec()));
    }
    rows
}
