//! Bytes appended to a file that was filled before, and one `fdatasync` each time: what the log does, and
//! by its own calls.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use keelson_wal::{File, Files as _, RealFiles};

use crate::times::Times;

/// As large as a segment of the log.
const FILE: u64 = 64 << 20;

/// Bytes of a record begin at multiples of this.
const ALIGNMENT: usize = 8;

/// A file that goes with its end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

pub(crate) fn sync(folder: &Path, bytes: usize, time: Duration) -> anyhow::Result<Times> {
    let path = folder.join(format!("floor-{}", std::process::id()));
    let file = RealFiles
        .create(&path, 0o600)
        .with_context(|| format!("create {}", path.display()))?;
    let _scratch = Scratch(path);
    fill(&*file)?;
    let record = vec![b'v'; bytes.next_multiple_of(ALIGNMENT)];
    let length = record.len() as u64;
    anyhow::ensure!(
        length <= FILE,
        "more than a segment of the log holds: {length}"
    );
    let mut offset = 0;
    Times::of(time, 1, || {
        if offset + length > FILE {
            offset = 0;
        }
        file.write_at(offset, &mut [IoSlice::new(&record)])?;
        file.sync()?;
        offset += length;
        Ok(())
    })
}

/// Gives the file its blocks: a sync into merely reserved ones would commit the file system's metadata too.
fn fill(file: &dyn File) -> anyhow::Result<()> {
    let zeros = vec![0; 1 << 20];
    for piece in 0..FILE >> 20 {
        file.write_at(piece << 20, &mut [IoSlice::new(&zeros)])?;
    }
    Ok(file.sync()?)
}
