//! How a database is opened.

use std::time::Duration;

use crate::freelist::FreelistKind;

/// How a database is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only reading; the lock is then shared with other readers. The file must exist.
    pub read_only: bool,
    /// Page size of a new file in bytes, a power of two from 1024 to 16777216. `None`: the
    /// system's. An existing file keeps its own.
    pub page_size: Option<u32>,
    /// Read the whole map into memory at the open, at the cost of that much reading. bbolt's
    /// `MAP_POPULATE`; off, because a large file then takes minutes to open.
    pub populate: bool,
    /// Bytes to map at first. Costs address space only; larger than the file will ever be, the
    /// map never has to be made anew.
    pub initial_map_size: u64,
    /// How free pages are kept in memory.
    pub freelist: FreelistKind,
    /// Do not write the list of free pages: commits are cheaper, and after a later open the whole
    /// tree is read to find them.
    pub no_freelist_sync: bool,
    /// Where a file does not list its free pages and is larger than 8 MiB, find them on a thread
    /// while the database is already in use; until then the file grows at its end. Otherwise the
    /// open waits for it.
    pub walk_in_background: bool,
    /// Do not sync at a commit: a crash can then destroy the file.
    pub no_sync: bool,
    /// Do not grow the file ahead of its use, with a sync; it grows by being written.
    pub no_grow_sync: bool,
    /// How long to wait for another process to let go of the file. `None`: for ever.
    pub lock_timeout: Option<Duration>,
    /// Refuse to grow the file past this many bytes.
    pub max_size: Option<u64>,
    /// Permissions of a new file.
    pub mode: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            read_only: false,
            page_size: None,
            populate: false,
            initial_map_size: 0,
            freelist: FreelistKind::Map,
            no_freelist_sync: false,
            walk_in_background: true,
            no_sync: false,
            no_grow_sync: false,
            lock_timeout: None,
            max_size: None,
            mode: 0o600,
        }
    }
}
