//! The writer: one write and at most one sync a batch.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use bytes::Bytes;
use keelson_proto::entry::{ConfState, Entry, HardState};
use keelson_proto::ids::LogIndex;

use crate::Error;
use crate::files::{Access, File, Files};
use crate::frame::{ALIGNMENT, Batch};
use crate::reader::Reader;
use crate::record::{Kind, Metadata, SnapshotMark};
use crate::repair::repair;
use crate::replay::{Replay, Replayer, exists};
use crate::segment::{self, Fill, Options, Prepared, Preparer, Segment, SegmentName};

/// How much of a segment's unused end is looked at at once.
const SCAN_BYTES: usize = 1 << 20;

/// What a commit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// How many bytes of frames were written.
    pub bytes: u64,
    /// Whether the disk was told to make them durable.
    pub synced: bool,
    /// Whether a new segment was begun.
    pub cut: bool,
}

/// The log, open for writing. Its segments are locked until they are released or it is dropped.
///
/// After an error of class failed nothing is known about what the disk holds: every later call
/// is refused with [`Error::Poisoned`], and the log must be opened again, by another process run.
#[derive(Debug)]
pub struct Wal {
    files: Arc<dyn Files>,
    dir: PathBuf,
    options: Options,
    metadata: Bytes,
    /// Locked segments, oldest first; the last one is written.
    segments: VecDeque<Segment>,
    /// Where the next frame goes in the last segment.
    offset: u64,
    batch: Batch,
    /// Whether the batch holds what must not be lost.
    must_sync: bool,
    /// Whether the last segment has had writes since its last sync.
    unsynced: bool,
    state: HardState,
    last_index: LogIndex,
    helper: Option<Helper>,
    poisoned: bool,
    never: AtomicBool,
}

/// The log's end of a [`Preparer`].
#[derive(Debug)]
struct Helper {
    wanted: Sender<PathBuf>,
    ready: Receiver<Prepared>,
    stop: Arc<AtomicBool>,
    /// The segment that was asked for and not taken yet.
    asked: Option<PathBuf>,
}

impl Wal {
    /// Makes a new log in a directory that must not hold one; its parent must exist. It appears
    /// as a whole or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] and [`Error::Failed`].
    pub fn create(
        files: Arc<dyn Files>,
        dir: &Path,
        metadata: Metadata,
        options: Options,
    ) -> Result<Wal, Error> {
        if exists(&*files, dir) {
            return Err(Error::Exists {
                dir: dir.to_owned(),
            });
        }
        let making = dir.with_added_extension("tmp");
        remove_dir(&*files, &making)?;
        files
            .create_dir(&making)
            .map_err(Error::failed("create", &making))?;
        let name = SegmentName {
            sequence: 0,
            index: LogIndex(0),
        };
        let never = AtomicBool::new(false);
        let path = making.join(name.to_string());
        let file = segment::prepare(&*files, &path, &options, &never)?;
        let mut wal = Wal {
            files,
            dir: making.clone(),
            options,
            metadata: metadata.encode(),
            segments: VecDeque::from([Segment { name, file }]),
            offset: 0,
            batch: Batch::new(0),
            must_sync: false,
            unsynced: false,
            state: HardState::default(),
            last_index: LogIndex(0),
            helper: None,
            poisoned: false,
            never,
        };
        wal.push_head();
        let beginning = SnapshotMark::default().encode(None);
        wal.batch.push(Kind::Snapshot, &beginning);
        wal.flush()?;
        wal.sync()?;
        wal.sync_dir(&making)?;
        // Left over from somebody who created the directory alone; it holds no log.
        remove_dir(&*wal.files, dir)?;
        wal.files
            .rename(&making, dir)
            .map_err(Error::failed("rename", &making))?;
        wal.sync_dir(dir.parent().unwrap_or(Path::new("")))?;
        wal.dir = dir.to_owned();
        Ok(wal)
    }

    /// Opens a log for writing, reads it from a snapshot on, and leaves it ready for more: locks
    /// its segments, repairs a torn end (once), and clears what follows the last record. What it gives
    /// back is durable then.
    ///
    /// # Errors
    ///
    /// As [`crate::read`], [`Error::Locked`], [`Error::MetadataMissing`], and torn records that
    /// are not at the log's end.
    pub fn open(
        files: Arc<dyn Files>,
        dir: &Path,
        at: SnapshotMark,
        options: Options,
    ) -> Result<(Wal, Replay), Error> {
        match Wal::open_unrepaired(files.clone(), dir, at, options) {
            Err(error) if error.is_torn() => {
                let repaired = repair(&*files, dir)?;
                let (wal, mut replay) = Wal::open_unrepaired(files, dir, at, options)?;
                replay.repaired = repaired;
                Ok((wal, replay))
            }
            result => result,
        }
    }

    /// As [`Wal::open`], but a torn end is an error.
    ///
    /// # Errors
    ///
    /// As [`Wal::open`].
    pub fn open_unrepaired(
        files: Arc<dyn Files>,
        dir: &Path,
        at: SnapshotMark,
        options: Options,
    ) -> Result<(Wal, Replay), Error> {
        let mut segments = Vec::new();
        for name in segment::select(&*files, dir, at.index)? {
            let path = dir.join(name.to_string());
            let file = files
                .open(&path, Access::Write)
                .map_err(Error::failed("open", &path))?;
            segment::lock(&*file, &path)?;
            segments.push(Segment {
                name,
                file: file.into(),
            });
        }
        let mut reader = Reader::over(segments.clone(), dir)?;
        let mut replayer = Replayer::new(at);
        while let Some(frame) = reader.next_frame()? {
            replayer.take(&frame)?;
        }
        let Some(metadata) = replayer.metadata else {
            return Err(Error::MetadataMissing {
                dir: dir.to_owned(),
            });
        };
        let offset = reader.offset();
        if !offset.is_multiple_of(ALIGNMENT) {
            // The last length word says less padding than there is: nothing may be written behind it.
            let file = segments.last().map(|segment| segment.name.to_string());
            return Err(Error::Unparsable {
                file: file.unwrap_or_default(),
                offset,
            });
        }
        let mut wal = Wal {
            files,
            dir: dir.to_owned(),
            options,
            metadata,
            segments: segments.into(),
            offset,
            batch: Batch::new(reader.crc()),
            must_sync: false,
            // A process that was killed may have left what only the system's buffers have: it reads as if
            // it were on the disk, and whoever opens the log answers for it.
            unsynced: true,
            state: replayer.replay.hard_state.unwrap_or_default(),
            last_index: replayer.last_index,
            helper: None,
            poisoned: false,
            never: AtomicBool::new(false),
        };
        wal.clear_end()?;
        wal.sync_dir(dir)?;
        if offset == 0 {
            // A segment whose head was lost, with nothing after it.
            wal.push_head();
            wal.must_sync = true;
        }
        Ok((wal, replayer.replay))
    }

    /// Gives out what makes the next segment ready, to be run on a thread of its own, which ends
    /// when the log is dropped; its owner joins it before the log is opened again.
    ///
    /// # Panics
    ///
    /// If it was given out before: two would make the same files.
    pub fn preparer(&mut self) -> Preparer {
        assert!(self.helper.is_none(), "a log has one preparer");
        let (wanted, wants) = mpsc::channel();
        let (gives, ready) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        self.helper = Some(Helper {
            wanted,
            ready,
            stop: stop.clone(),
            asked: None,
        });
        Preparer {
            files: self.files.clone(),
            options: self.options,
            wanted: wants,
            ready: gives,
            stop,
        }
    }

    /// The directory that the log is in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The last index that was appended, or that a snapshot was recorded at if that is higher.
    #[must_use]
    pub fn last_index(&self) -> LogIndex {
        self.last_index
    }

    /// Whether what was appended since the last commit holds entries, or a hard state whose term
    /// or vote differs: what nobody may be answered about before it is durable.
    #[must_use]
    pub fn must_sync(&self) -> bool {
        self.must_sync
    }

    /// Adds entries and then a hard state to the batch. Nothing reaches the disk before
    /// [`Wal::commit`]. A hard state of zeros is passed over.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`].
    pub fn append(
        &mut self,
        hard_state: Option<HardState>,
        entries: &[Entry],
    ) -> Result<(), Error> {
        self.usable()?;
        for entry in entries {
            self.batch.push_entry(entry);
            self.last_index = entry.index;
            self.must_sync = true;
        }
        if let Some(state) = hard_state.filter(|state| !state.is_empty()) {
            self.must_sync |= state.term != self.state.term || state.vote != self.state.vote;
            self.state = state;
            let mut data = Vec::new();
            state.encode(&mut data);
            self.batch.push(Kind::State, &data);
        }
        Ok(())
    }

    /// Writes the batch with one call and, if asked, makes it durable, with all that was written
    /// before. Begins a new segment when this one is full, which makes everything durable anyhow.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`], and from then on [`Error::Poisoned`].
    pub fn commit(&mut self, must_sync: bool) -> Result<Synced, Error> {
        self.usable()?;
        let result = self.try_commit(must_sync);
        self.poisoned |= result.is_err();
        result
    }

    fn try_commit(&mut self, must_sync: bool) -> Result<Synced, Error> {
        let bytes = self.flush()?;
        let cut = self.offset >= self.options.segment_bytes;
        if cut {
            self.cut()?;
        } else if must_sync {
            self.sync()?;
        }
        self.ask();
        Ok(Synced {
            bytes,
            synced: cut || must_sync,
            cut,
        })
    }

    /// Records that a snapshot exists, with the configuration as of it, and makes that durable,
    /// with all that was appended before. The hard state that was appended last must have a
    /// commit index that covers the snapshot, or the record will not count.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`], and from then on [`Error::Poisoned`].
    ///
    /// # Panics
    ///
    /// If the mark's index is 0: the log has a record of its beginning already, and a second one
    /// could contradict it.
    pub fn save_snapshot(
        &mut self,
        mark: SnapshotMark,
        conf_state: &ConfState,
    ) -> Result<(), Error> {
        self.usable()?;
        assert!(mark.index > LogIndex(0), "a snapshot has an index");
        self.batch
            .push(Kind::Snapshot, &mark.encode(Some(conf_state)));
        self.last_index = self.last_index.max(mark.index);
        let result = self.flush().and_then(|_| self.sync());
        self.poisoned |= result.is_err();
        result
    }

    /// Gives up the locks of the segments that are not needed to read the log from an index on,
    /// so that they may be purged: all before the last one that begins below it.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`].
    pub fn release_to(&mut self, index: LogIndex) -> Result<(), Error> {
        self.usable()?;
        while self
            .segments
            .get(1)
            .is_some_and(|next| next.name.index < index)
        {
            self.segments.pop_front();
        }
        Ok(())
    }

    /// The segments that are locked, oldest first.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentName> {
        self.segments.iter().map(|segment| segment.name).collect()
    }

    fn usable(&self) -> Result<(), Error> {
        if self.poisoned {
            return Err(Error::Poisoned {
                dir: self.dir.clone(),
            });
        }
        Ok(())
    }

    fn tail(&self) -> &Segment {
        self.segments.back().expect("a log has a segment")
    }

    fn tail_path(&self) -> PathBuf {
        self.dir.join(self.tail().name.to_string())
    }

    /// The records that every segment begins with.
    fn push_head(&mut self) {
        self.batch.push_crc();
        self.batch.push(Kind::Metadata, &self.metadata);
        if !self.state.is_empty() {
            let mut data = Vec::new();
            self.state.encode(&mut data);
            self.batch.push(Kind::State, &data);
        }
    }

    /// Hands the batch to the system.
    fn flush(&mut self) -> Result<u64, Error> {
        let bytes = self.batch.bytes();
        if bytes == 0 {
            return Ok(0);
        }
        let path = self.tail_path();
        let file = self.tail().file.clone();
        file.write_at(self.offset, &mut self.batch.slices())
            .map_err(Error::failed("write", &path))?;
        self.batch.clear();
        self.must_sync = false;
        self.unsynced = true;
        self.offset += bytes;
        Ok(bytes)
    }

    fn sync(&mut self) -> Result<(), Error> {
        if self.unsynced && !self.options.unsafe_no_fsync {
            let path = self.tail_path();
            self.tail()
                .file
                .sync()
                .map_err(Error::failed("sync", &path))?;
        }
        self.unsynced = false;
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), Error> {
        if self.options.unsafe_no_fsync {
            return Ok(());
        }
        self.files.sync_dir(dir).map_err(Error::failed("sync", dir))
    }

    /// Closes the segment and begins the next one. The next one takes its name only when this one
    /// is whole on the disk: so only a log's last segment can ever be torn.
    fn cut(&mut self) -> Result<(), Error> {
        assert_eq!(self.batch.bytes(), 0, "a cut happens between batches");
        let path = self.tail_path();
        self.tail()
            .file
            .truncate(self.offset)
            .map_err(Error::failed("truncate", &path))?;
        self.unsynced = true;
        self.sync()?;

        let Some(name) = self.tail().name.after(self.last_index) else {
            return Err(Error::NamesExhausted { path });
        };
        let (made_at, file) = self.next_segment()?;
        self.push_head();
        let bytes = self.batch.bytes();
        file.write_at(0, &mut self.batch.slices())
            .map_err(Error::failed("write", &made_at))?;
        self.batch.clear();
        if !self.options.unsafe_no_fsync {
            file.sync().map_err(Error::failed("sync", &made_at))?;
        }
        self.files
            .rename(&made_at, &self.dir.join(name.to_string()))
            .map_err(Error::failed("rename", &made_at))?;
        self.sync_dir(&self.dir)?;
        self.segments.push_back(Segment { name, file });
        self.offset = bytes;
        Ok(())
    }

    /// Where the next segment is made. Two names take turns: the helper may begin the one after
    /// while the one before still waits to be renamed.
    fn making_path(&self) -> PathBuf {
        let other = 1 - self.tail().name.sequence % 2;
        self.dir.join(format!("{other}.tmp"))
    }

    /// Asks the helper for the next segment once this one is half full: early enough for it, and
    /// a log that is never filled never pays.
    fn ask(&mut self) {
        let path = self.making_path();
        let half = self.options.segment_bytes / 2;
        let early = self.offset < half;
        if let Some(helper) = &mut self.helper
            && helper.asked.is_none()
            && !early
            && helper.wanted.send(path.clone()).is_ok()
        {
            helper.asked = Some(path);
        }
    }

    fn next_segment(&mut self) -> Result<(PathBuf, Arc<dyn File>), Error> {
        if let Some(helper) = &mut self.helper
            && let Some(path) = helper.asked.take()
            && let Ok(prepared) = helper.ready.recv()
        {
            return Ok((path, prepared?));
        }
        let path = self.making_path();
        let file = segment::prepare(&*self.files, &path, &self.options, &self.never)?;
        Ok((path, file))
    }

    /// Clears what follows the last record of a log just opened, durably: a torn write may have
    /// left later parts without the first one, and new records must not end where such begin.
    /// Then gives the segment its full size.
    fn clear_end(&mut self) -> Result<(), Error> {
        let path = self.tail_path();
        let file = self.tail().file.clone();
        let size = file.size().map_err(Error::failed("stat", &path))?;
        let mut at = self.offset;
        let mut buffer = vec![0; SCAN_BYTES.min((size - at) as usize)];
        while at < size {
            let count = file
                .read_at(at, &mut buffer)
                .map_err(Error::failed("read", &path))?;
            if count == 0 {
                break;
            }
            if buffer[..count].iter().any(|byte| *byte != 0) {
                buffer[..count].fill(0);
                file.write_at(at, &mut [IoSlice::new(&buffer[..count])])
                    .map_err(Error::failed("write", &path))?;
                self.unsynced = true;
            }
            at += count as u64;
        }
        if size < self.options.segment_bytes {
            match self.options.fill {
                Fill::Zeros => {
                    let full = self.options.segment_bytes;
                    segment::write_zeros(&*file, &path, size, full, &self.never)?;
                }
                Fill::Reserve => file
                    .allocate(self.options.segment_bytes)
                    .map_err(Error::failed("allocate", &path))?,
            }
            self.unsynced = true;
        }
        self.sync()
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        if let Some(helper) = &mut self.helper {
            helper.stop.store(true, Ordering::Relaxed);
            // One that is ready and was never used need not stay. If this fails it stays, which
            // is harmless: it is emptied before its name is used again.
            if let Some(path) = helper.asked.take()
                && helper.ready.try_recv().is_ok()
            {
                drop(self.files.remove(&path));
            }
        }
    }
}

fn remove_dir(files: &dyn Files, dir: &Path) -> Result<(), Error> {
    if files.exists(dir).map_err(Error::failed("stat", dir))? {
        files
            .remove_dir(dir)
            .map_err(Error::failed("remove", dir))?;
    }
    Ok(())
}
