//! Numbers about a database.

/// Sizes and counts as of the last commit or the last end of a write transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes up to the last page in use: high-water mark times page size.
    pub size: u64,
    /// Bytes of free pages. Those that wait for readers are not counted.
    pub free_bytes: u64,
    /// Free pages.
    pub free_pages: u64,
    /// Pages that were freed and wait for readers.
    pub pending_pages: u64,
    /// Bytes that the list of free pages would take in the file.
    pub freelist_bytes: u64,
    /// Read transactions that are open.
    pub open_read_txs: u64,
    /// Read transactions begun since the open.
    pub read_txs: u64,
    /// Commits since the open.
    pub commits: u64,
}
