//! Removing the oldest segments and snapshot files beyond a number.

use std::io;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::files::{Access, Files};

/// Whether a file in use is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    /// A file that somebody has locked ends the round: segments.
    Keep,
    /// Locks are not looked at: `.snap` and `.snap.db` files.
    Ignore,
}

/// What a round of purging did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// What was removed, oldest first.
    pub removed: Vec<PathBuf>,
    /// The locked file that ended the round.
    pub locked: Option<PathBuf>,
}

/// Removes the files with a suffix, lowest names first, until at most `max` are left; 0 keeps all.
/// The suffix is compared as text, so `wal` leaves `.wal.broken` alone.
///
/// # Errors
///
/// [`Error::Failed`]; what was removed until then is gone.
pub fn purge(
    files: &dyn Files,
    dir: &Path,
    suffix: &str,
    max: usize,
    in_use: InUse,
) -> Result<Purged, Error> {
    let mut purged = Purged::default();
    if max == 0 {
        return Ok(purged);
    }
    let mut names = files.list(dir).map_err(Error::failed("list", dir))?;
    names.retain(|name| name.ends_with(suffix));
    let surplus = names.len().saturating_sub(max);
    for name in names.into_iter().take(surplus) {
        let path = dir.join(name);
        // Kept open until the file is gone: nobody else may take the lock in between.
        let _lock = match in_use {
            InUse::Keep => {
                let file = files
                    .open(&path, Access::Write)
                    .map_err(Error::failed("open", &path))?;
                if !file.try_lock().map_err(Error::failed("lock", &path))? {
                    tracing::warn!(path = %path.display(), "failed to lock file");
                    purged.locked = Some(path);
                    break;
                }
                Some(file)
            }
            InUse::Ignore => None,
        };
        match files.remove(&path) {
            Ok(()) => {
                tracing::info!(path = %path.display(), "purged");
                purged.removed.push(path);
            }
            // Somebody was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::failed("remove", &path)(error)),
        }
    }
    Ok(purged)
}
