//! Cutting off the end of a log that a crash left half written.

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::files::{Access, File, Files};
use crate::reader::Reader;
use crate::replay::last_segment;
use crate::segment::{self, SEGMENT_MODE, Segment};

/// The copy's suffix after the segment's name.
const BROKEN_SUFFIX: &str = "broken";
const COPY_BYTES: usize = 1 << 20;

/// What a repair did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The segment that was cut.
    pub path: PathBuf,
    /// Where it ends now.
    pub offset: u64,
    /// The copy of what it was.
    pub broken: PathBuf,
}

/// Repairs the last segment of a log if its end is torn: copies it to `<name>.broken` and cuts it
/// where its last good record ends. `None` when there was nothing to cut. Earlier segments are
/// not looked at: what is torn there cannot be repaired.
///
/// # Errors
///
/// Damage that is not a torn write, as [`Reader`] gives it; [`Error::NotFound`],
/// [`Error::Locked`], [`Error::Failed`].
pub fn repair(files: &dyn Files, dir: &Path) -> Result<Option<Repair>, Error> {
    let name = last_segment(files, dir)?;
    let path = dir.join(name.to_string());
    let file = files
        .open(&path, Access::Write)
        .map_err(Error::failed("open", &path))?;
    segment::lock(&*file, &path)?;
    let segment = Segment {
        name,
        file: file.into(),
    };
    let file = segment.file.clone();
    let mut reader = Reader::over(vec![segment], dir)?;
    loop {
        match reader.next_frame() {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(error) if error.is_torn() => break,
            Err(error) => return Err(error),
        }
    }
    let offset = reader.offset();
    let broken = path.with_added_extension(BROKEN_SUFFIX);
    tracing::info!(path = %path.display(), "repairing");
    copy(files, &*file, &path, &broken)?;
    files.sync_dir(dir).map_err(Error::failed("sync", dir))?;
    file.truncate(offset)
        .map_err(Error::failed("truncate", &path))?;
    file.sync().map_err(Error::failed("sync", &path))?;
    tracing::info!(path = %path.display(), error = "unexpected EOF", "repaired");
    Ok(Some(Repair {
        path,
        offset,
        broken,
    }))
}

fn copy(files: &dyn Files, from: &dyn File, path: &Path, to: &Path) -> Result<(), Error> {
    let copy = files
        .create(to, SEGMENT_MODE)
        .map_err(Error::failed("create", to))?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    loop {
        let count = from
            .read_at(at, &mut buffer)
            .map_err(Error::failed("read", path))?;
        if count == 0 {
            break;
        }
        copy.write_at(at, &mut [IoSlice::new(&buffer[..count])])
            .map_err(Error::failed("write", to))?;
        at += count as u64;
    }
    copy.sync().map_err(Error::failed("sync", to))
}
