//! How many operations entries have asked for, as etcd counts them for its metrics.

/// Operations on keys since they were last asked for.
///
/// # Source
///
/// The families `etcd_mvcc_*_total` (`spec/api.md` 7). Looking at a key on the way (a condition, a
/// previous value) counts as a range there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpCounts {
    /// Puts.
    pub puts: u64,
    /// Bytes of their keys and values.
    pub put_bytes: u64,
    /// Deletions of a range, however many keys were in it; the revoking of a lease is one for each
    /// of its keys.
    pub deletes: u64,
    /// Ranges inside transactions.
    pub ranges: u64,
    /// Entries, and checks of conditions, that were more than one operation.
    pub txns: u64,
}

impl OpCounts {
    /// Notes the end of one phase that began at `before`.
    pub(crate) fn end_phase(&mut self, before: OpCounts) {
        let operations = |counts: OpCounts| counts.puts + counts.deletes + counts.ranges;
        if operations(*self) - operations(before) > 1 {
            self.txns += 1;
        }
    }
}
