//! Segments: their names, and how the next one is made ready.

use std::fmt;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};

use keelson_proto::ids::LogIndex;

use crate::Error;
use crate::files::{File, Files};

/// How large etcd makes a segment: 64 million bytes.
pub const SEGMENT_BYTES: u64 = 64_000_000;

/// The mode of segments.
pub(crate) const SEGMENT_MODE: u32 = 0o600;

const SUFFIX: &str = ".wal";
/// Hex digits of each number in a segment's name.
const NAME_DIGITS: usize = 16;
/// How many zeros are written by one call.
const ZEROS_BYTES: usize = 1 << 20;

/// How a new segment gets its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fill {
    /// Zeros are written and synced, so that later syncs have no new blocks to commit.
    #[default]
    Zeros,
    /// Blocks are only reserved, as etcd does: quick, and each later sync costs more.
    Reserve,
}

/// How a log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The size from which on a segment is closed and the next one begun.
    pub segment_bytes: u64,
    /// How new segments get their size.
    pub fill: Fill,
    /// Nothing is ever synced: a crash of the machine may lose or break the log.
    pub unsafe_no_fsync: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: SEGMENT_BYTES,
            fill: Fill::Zeros,
            unsafe_no_fsync: false,
        }
    }
}

/// A segment's name: its place in the sequence, and the first index that it may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentName {
    /// 0 for the first segment of a log, one more for each one after.
    pub sequence: u64,
    /// The index after the last one that was written before the segment began.
    pub index: LogIndex,
}

impl SegmentName {
    /// Reads a file name; `None` for one that is no segment's.
    #[must_use]
    pub fn parse(name: &str) -> Option<SegmentName> {
        let (sequence, index) = name.strip_suffix(SUFFIX)?.split_once('-')?;
        Some(SegmentName {
            sequence: parse_hex(sequence)?,
            index: LogIndex(parse_hex(index)?),
        })
    }
}

impl SegmentName {
    /// The name of the next segment, begun after this index; `None` when the numbers of a log
    /// from elsewhere are at their end.
    pub(crate) fn after(self, last_index: LogIndex) -> Option<SegmentName> {
        Some(SegmentName {
            sequence: self.sequence.checked_add(1)?,
            index: LogIndex(last_index.0.checked_add(1)?),
        })
    }
}

/// Exactly sixteen hex digits.
pub(crate) fn parse_hex(text: &str) -> Option<u64> {
    let digits = text.len() == NAME_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}{SUFFIX}", self.sequence, self.index.0)
    }
}

/// The segments of a directory, in order. Other names are passed over, with a warning unless they
/// are those of segments in the making.
pub(crate) fn list(files: &dyn Files, dir: &Path) -> Result<Vec<SegmentName>, Error> {
    let names = files.list(dir).map_err(Error::failed("list", dir))?;
    let mut segments = Vec::new();
    for name in names {
        match SegmentName::parse(&name) {
            Some(segment) => segments.push(segment),
            None if name.ends_with(".tmp") => {}
            None => tracing::warn!(path = %name, "ignored file in WAL directory"),
        }
    }
    segments.sort();
    if segments.is_empty() {
        return Err(Error::NotFound {
            dir: dir.to_owned(),
        });
    }
    Ok(segments)
}

/// The segments to read from an index on: from the last one that begins at or before it.
pub(crate) fn select(
    files: &dyn Files,
    dir: &Path,
    index: LogIndex,
) -> Result<Vec<SegmentName>, Error> {
    let mut segments = list(files, dir)?;
    let Some(position) = segments.iter().rposition(|name| name.index <= index) else {
        return Err(Error::NoSegment {
            dir: dir.to_owned(),
            index: index.0,
        });
    };
    let chosen = segments.split_off(position);
    // As in etcd, what follows sequence 0 is not compared with it; the checksums tell.
    let gap = |pair: &[SegmentName]| {
        pair[0].sequence != 0 && pair[0].sequence.checked_add(1) != Some(pair[1].sequence)
    };
    if chosen.windows(2).any(gap) {
        return Err(Error::SequenceGap {
            dir: dir.to_owned(),
            position,
        });
    }
    Ok(chosen)
}

/// A segment that is locked by us.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) name: SegmentName,
    pub(crate) file: Arc<dyn File>,
}

/// Writes zeros over a range. False when `stop` was set meanwhile.
pub(crate) fn write_zeros(
    file: &dyn File,
    path: &Path,
    from: u64,
    to: u64,
    stop: &AtomicBool,
) -> Result<bool, Error> {
    let zeros = vec![0; ZEROS_BYTES.min(to.saturating_sub(from) as usize)];
    let mut at = from;
    while at < to {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let count = (to - at).min(zeros.len() as u64);
        file.write_at(at, &mut [IoSlice::new(&zeros[..count as usize])])
            .map_err(Error::failed("write", path))?;
        at += count;
    }
    Ok(true)
}

/// Makes an empty, locked segment of full size. What a crash left under this name is cut away
/// first: stale records must not follow new ones.
pub(crate) fn prepare(
    files: &dyn Files,
    path: &Path,
    options: &Options,
    stop: &AtomicBool,
) -> Result<Arc<dyn File>, Error> {
    let file: Arc<dyn File> = files
        .create(path, SEGMENT_MODE)
        .map_err(Error::failed("create", path))?
        .into();
    lock(&*file, path)?;
    match options.fill {
        Fill::Zeros => {
            write_zeros(&*file, path, 0, options.segment_bytes, stop)?;
        }
        Fill::Reserve => {
            file.allocate(options.segment_bytes)
                .map_err(Error::failed("allocate", path))?;
        }
    }
    if !options.unsafe_no_fsync {
        file.sync().map_err(Error::failed("sync", path))?;
    }
    Ok(file)
}

pub(crate) fn lock(file: &dyn File, path: &Path) -> Result<(), Error> {
    if file.try_lock().map_err(Error::failed("lock", path))? {
        Ok(())
    } else {
        Err(Error::Locked {
            path: path.to_owned(),
        })
    }
}

pub(crate) type Prepared = Result<Arc<dyn File>, Error>;

/// Makes the next segment ready while the current one is written.
///
/// [`crate::Wal::preparer`] gives it out; its owner runs it on a thread of its own, and joins that
/// thread before the log is opened again. Without one, the log makes its segments itself, when it
/// needs them.
#[derive(Debug)]
pub struct Preparer {
    pub(crate) files: Arc<dyn Files>,
    pub(crate) options: Options,
    pub(crate) wanted: Receiver<PathBuf>,
    pub(crate) ready: Sender<Prepared>,
    pub(crate) stop: Arc<AtomicBool>,
}

impl Preparer {
    /// Works until the log is dropped.
    pub fn run(self) {
        while let Ok(path) = self.wanted.recv() {
            let prepared = prepare(&*self.files, &path, &self.options, &self.stop);
            if self.ready.send(prepared).is_err() {
                // Nobody wants it any more. What stays behind is harmless: see `prepare`.
                drop(self.files.remove(&path));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_others_are_none() {
        let name = SegmentName {
            sequence: 3,
            index: LogIndex(0x36),
        };
        let text = "0000000000000003-0000000000000036.wal";
        assert_eq!(name.to_string(), text);
        assert_eq!(SegmentName::parse(text), Some(name));
        for other in [
            "0.tmp",
            "zzzz.wal",
            "0000000000000003-0000000000000036.wal.broken",
            "000000000000003-0000000000000036.wal",
            "000000000000000g-0000000000000036.wal",
            "+000000000000003-0000000000000036.wal",
            "00000000000000030000000000000036.wal",
        ] {
            assert_eq!(SegmentName::parse(other), None, "{other}");
        }
    }
}
