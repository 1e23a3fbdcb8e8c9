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
    /// Whether all free pages are known; not yet, while the walk after the open of a large file
    /// without a stored list goes on.
    pub freelist_known: bool,
    /// Pages that commits allocated since the open.
    pub pages_allocated: u64,
    /// Pages that commits wrote since the open.
    pub pages_written: u64,
    /// Nodes that commits decoded or made since the open.
    pub nodes: u64,
    /// Cuts of nodes that had become too large, since the open.
    pub splits: u64,
    /// Nodes that had become too small and were merged, since the open.
    pub merges: u64,
}

/// Counts of one bucket with all buckets in it, as bbolt's (formats 1.17).
///
/// In a write transaction what it has changed is counted as one page a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BucketStats {
    /// Branch pages, without their overflow pages.
    pub branch_pages: u64,
    /// Overflow pages of branch pages.
    pub branch_overflow_pages: u64,
    /// Leaf pages, without their overflow pages.
    pub leaf_pages: u64,
    /// Overflow pages of leaf pages.
    pub leaf_overflow_pages: u64,
    /// Keys, those of nested buckets and their names among them.
    pub keys: u64,
    /// Levels of pages, those of the deepest nested bucket added.
    pub depth: u64,
    /// Bytes of branch pages.
    pub branch_bytes: u64,
    /// Bytes in use of those.
    pub branch_used: u64,
    /// Bytes of leaf pages.
    pub leaf_bytes: u64,
    /// Bytes in use of those.
    pub leaf_used: u64,
    /// Buckets: this one and all in it.
    pub buckets: u64,
    /// Those of them that are inline.
    pub inline_buckets: u64,
    /// Bytes in use of the inline ones, in the leaves that hold them.
    pub inline_used: u64,
}

impl BucketStats {
    /// Adds another's counts; of the depths it takes the greater.
    pub fn add(&mut self, other: &BucketStats) {
        self.branch_pages += other.branch_pages;
        self.branch_overflow_pages += other.branch_overflow_pages;
        self.leaf_pages += other.leaf_pages;
        self.leaf_overflow_pages += other.leaf_overflow_pages;
        self.keys += other.keys;
        self.depth = self.depth.max(other.depth);
        self.branch_bytes += other.branch_bytes;
        self.branch_used += other.branch_used;
        self.leaf_bytes += other.leaf_bytes;
        self.leaf_used += other.leaf_used;
        self.buckets += other.buckets;
        self.inline_buckets += other.inline_buckets;
        self.inline_used += other.inline_used;
    }
}
