//! Numbers for metrics: plain atomics, read by whoever exports them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets that a histogram has at most.
const BUCKETS_MAX: usize = 24;

/// Times or other numbers, in buckets that grow by a factor of two.
#[derive(Debug)]
pub struct Histogram {
    first: u64,
    buckets: usize,
    /// Observations at or below each bound, not cumulative; the last one is what lies above.
    counts: [AtomicU64; BUCKETS_MAX + 1],
    sum: AtomicU64,
    /// How many of what is counted make one of what is shown.
    unit: f64,
}

/// What a histogram holds at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramSnapshot {
    /// Upper bounds, and how many observations lie at or below each. Times are in seconds, unless
    /// the histogram is in milliseconds.
    pub cumulative: Vec<(f64, u64)>,
    /// How many observations there were.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
}

impl Histogram {
    /// Times in seconds, with `buckets` (at most 24) bounds from `first` on, each twice the one
    /// before.
    #[must_use]
    pub fn new(first: Duration, buckets: usize) -> Histogram {
        Histogram::of(nanos(first), buckets, 1e9)
    }

    /// Times in milliseconds.
    #[must_use]
    pub fn millis(first: Duration, buckets: usize) -> Histogram {
        Histogram::of(nanos(first), buckets, 1e6)
    }

    /// Numbers.
    #[must_use]
    pub fn numbers(first: u64, buckets: usize) -> Histogram {
        Histogram::of(first, buckets, 1.0)
    }

    fn of(first: u64, buckets: usize, unit: f64) -> Histogram {
        assert!(
            buckets <= BUCKETS_MAX,
            "a histogram has at most {BUCKETS_MAX} buckets"
        );
        Histogram {
            first,
            buckets,
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            sum: AtomicU64::new(0),
            unit,
        }
    }

    /// Counts one time.
    pub fn observe(&self, took: Duration) {
        self.observe_number(nanos(took));
    }

    /// Counts one number.
    pub fn observe_number(&self, number: u64) {
        let mut bound = self.first;
        let mut bucket = 0;
        while bucket < self.buckets && number > bound {
            bound = bound.saturating_mul(2);
            bucket += 1;
        }
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(number, Ordering::Relaxed);
    }

    /// What it holds.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "metrics are floating point")]
    pub fn snapshot(&self) -> HistogramSnapshot {
        let mut count = 0;
        let mut cumulative = Vec::with_capacity(self.buckets);
        let mut bound = self.first as f64 / self.unit;
        for bucket in &self.counts[..self.buckets] {
            count += bucket.load(Ordering::Relaxed);
            cumulative.push((bound, count));
            bound *= 2.0;
        }
        count += self.counts[self.buckets].load(Ordering::Relaxed);
        HistogramSnapshot {
            cumulative,
            count,
            sum: self.sum.load(Ordering::Relaxed) as f64 / self.unit,
        }
    }
}

/// Times by what was done, and by whether it was done.
#[derive(Debug)]
pub struct ByOperation {
    /// In the order of [`OPERATIONS`]; of each, those that failed and those that did not.
    times: Vec<[Histogram; 2]>,
}

/// The names of operations, as etcd labels its metrics, with the field of the request that asks for
/// each. The last one is for everything else.
pub(crate) const OPERATIONS: [(u64, &str); 30] = [
    (3, "Range"),
    (4, "Put"),
    (5, "DeleteRange"),
    (6, "Txn"),
    (7, "Compaction"),
    (8, "LeaseGrant"),
    (9, "LeaseRevoke"),
    (10, "Alarm"),
    (11, "LeaseCheckpoint"),
    (1000, "AuthEnable"),
    (1011, "AuthDisable"),
    (1012, "Authenticate"),
    (1100, "AuthUserAdd"),
    (1101, "AuthUserDelete"),
    (1102, "AuthUserGet"),
    (1103, "AuthUserChangePassword"),
    (1104, "AuthUserGrantRole"),
    (1105, "AuthUserRevokeRole"),
    (1106, "AuthUserList"),
    (1107, "AuthRoleList"),
    (1200, "AuthRoleAdd"),
    (1201, "AuthRoleDelete"),
    (1202, "AuthRoleGet"),
    (1203, "AuthRoleGrantPermission"),
    (1204, "AuthRoleRevokePermission"),
    (1300, "ClusterVersionSet"),
    (1301, "ClusterMemberAttrSet"),
    (1302, "DowngradeInfoSet"),
    (9900, "DowngradeVersionTest"),
    (0, "unknown"),
];

impl ByOperation {
    fn new(first: Duration, buckets: usize) -> ByOperation {
        let both = |_| [0, 1].map(|_| Histogram::new(first, buckets));
        ByOperation {
            times: OPERATIONS.iter().map(both).collect(),
        }
    }

    /// Counts one operation, by its place in [`OPERATIONS`].
    pub(crate) fn observe(&self, operation: usize, success: bool, took: Duration) {
        let operation = operation.min(OPERATIONS.len() - 1);
        self.times[operation][usize::from(success)].observe(took);
    }

    /// Counts one operation by its name.
    pub(crate) fn observe_named(&self, name: &str, success: bool, took: Duration) {
        let place = OPERATIONS.iter().position(|(_, known)| *known == name);
        self.observe(place.unwrap_or(OPERATIONS.len() - 1), success, took);
    }

    /// What was done at least once: its name, whether it was done, and its times.
    pub fn seen(&self) -> impl Iterator<Item = (&'static str, bool, HistogramSnapshot)> {
        let both = OPERATIONS.iter().zip(&self.times);
        both.flat_map(|((_, name), times)| {
            [false, true].map(|success| (*name, success, times[usize::from(success)].snapshot()))
        })
        .filter(|(_, _, times)| times.count > 0)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A number that is counted up, or set.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Its value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, to: u64) {
        self.0.store(to, Ordering::Relaxed);
    }
}

/// A member's numbers. The names of metrics that they stand for are etcd's.
#[derive(Debug)]
pub struct Stats {
    /// `etcd_disk_wal_fsync_duration_seconds`.
    pub wal_fsync: Histogram,
    /// `etcd_disk_wal_write_duration_seconds`. One call writes and syncs, so this is its time where
    /// nothing was synced.
    pub wal_write: Histogram,
    /// `etcd_disk_wal_write_bytes_total`.
    pub wal_write_bytes: Number,
    /// `etcd_disk_backend_commit_duration_seconds`.
    pub backend_commit: Histogram,
    /// `etcd_debugging_disk_backend_commit_rebalance_duration_seconds`.
    pub commit_rebalance: Histogram,
    /// `etcd_debugging_disk_backend_commit_spill_duration_seconds`.
    pub commit_spill: Histogram,
    /// `etcd_debugging_disk_backend_commit_write_duration_seconds`.
    pub commit_write: Histogram,
    /// `etcd_disk_backend_defrag_duration_seconds`.
    pub defrag: Histogram,
    /// `etcd_disk_defrag_inflight`.
    pub defrag_in_flight: Number,
    /// `etcd_snap_fsync_duration_seconds`: writing and syncing of a `.snap` file.
    pub snap_sync: Histogram,
    /// `etcd_debugging_snap_save_marshalling_duration_seconds`.
    pub snap_encode: Histogram,
    /// `etcd_debugging_snap_save_total_duration_seconds`.
    pub snap_save: Histogram,
    /// `etcd_server_apply_duration_seconds`: of requests, not of what consensus adds.
    pub apply: ByOperation,
    /// `etcd_server_request_duration_seconds` of requests that the member makes by itself.
    pub own_requests: ByOperation,
    /// `etcd_mvcc_put_total`.
    pub puts: Number,
    /// `etcd_debugging_mvcc_total_put_size_in_bytes`.
    pub put_bytes: Number,
    /// `etcd_mvcc_delete_total`.
    pub deletes: Number,
    /// Ranges of transactions that are in the log, a part of `etcd_mvcc_range_total`.
    pub ranges: Number,
    /// `etcd_mvcc_txn_total`, but for those that only read.
    pub txns: Number,
    /// `etcd_debugging_lease_granted_total`.
    pub leases_granted: Number,
    /// `etcd_debugging_lease_revoked_total`.
    pub leases_revoked: Number,
    /// `etcd_debugging_lease_ttl_total`: what leases were granted, in seconds.
    pub lease_ttl: Histogram,
    /// `etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds`: one transaction of a
    /// compaction.
    pub compaction_pause: Histogram,
    /// `etcd_debugging_mvcc_db_compaction_total_duration_milliseconds`.
    pub compaction: Histogram,
    /// `etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds`: one slice of the index, in
    /// which apply waits.
    pub index_compaction_pause: Histogram,
    /// `etcd_debugging_mvcc_db_compaction_keys_total`.
    pub compacted_rows: Number,
    /// `etcd_debugging_mvcc_db_compaction_last`, in seconds since 1970.
    pub last_compaction: Number,
    /// `etcd_server_proposals_failed_total`.
    pub proposals_failed: Number,
    /// `etcd_server_snapshot_apply_in_progress_total`: 1 while a snapshot of the leader takes the place
    /// of the state.
    pub installing: Number,
    /// `etcd_server_slow_apply_total`.
    pub slow_applies: Number,
    /// `etcd_server_heartbeat_send_failures_total`.
    pub heartbeat_failures: Number,
    /// Ticks that came late by a whole interval or more.
    pub missed_ticks: Number,
    /// `etcd_debugging_server_lease_expired_total`.
    pub leases_expired: Number,
    /// Entries that one batch of the log had, all told: with `log_batches` the mean.
    pub log_entries: Number,
    /// Batches of the log.
    pub log_batches: Number,
    /// Batches of apply.
    pub apply_batches: Number,
    /// How often apply waited for the file.
    pub apply_waits: Number,
}

impl Default for Stats {
    fn default() -> Stats {
        let millis = |first, buckets| Histogram::new(Duration::from_millis(first), buckets);
        Stats {
            wal_fsync: millis(1, 14),
            wal_write: millis(1, 14),
            wal_write_bytes: Number::default(),
            backend_commit: millis(1, 14),
            defrag: millis(100, 13),
            defrag_in_flight: Number::default(),
            commit_rebalance: millis(1, 14),
            commit_spill: millis(1, 14),
            commit_write: millis(1, 14),
            snap_sync: millis(1, 14),
            snap_encode: millis(1, 14),
            snap_save: millis(1, 14),
            apply: ByOperation::new(Duration::from_micros(100), 20),
            own_requests: ByOperation::new(Duration::from_millis(1), 14),
            puts: Number::default(),
            put_bytes: Number::default(),
            deletes: Number::default(),
            ranges: Number::default(),
            txns: Number::default(),
            leases_granted: Number::default(),
            leases_revoked: Number::default(),
            lease_ttl: Histogram::numbers(1, 24),
            compaction_pause: Histogram::millis(Duration::from_millis(1), 13),
            compaction: Histogram::millis(Duration::from_millis(100), 14),
            index_compaction_pause: Histogram::millis(Duration::from_micros(500), 14),
            compacted_rows: Number::default(),
            last_compaction: Number::default(),
            proposals_failed: Number::default(),
            installing: Number::default(),
            slow_applies: Number::default(),
            heartbeat_failures: Number::default(),
            missed_ticks: Number::default(),
            leases_expired: Number::default(),
            log_entries: Number::default(),
            log_batches: Number::default(),
            apply_batches: Number::default(),
            apply_waits: Number::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_fall_into_etcds_buckets() {
        let histogram = Histogram::new(Duration::from_millis(1), 14);
        for micros in [500, 1_000, 1_001, 3_000, 60_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.count, 5);
        assert_eq!(snapshot.cumulative.len(), 14);
        assert_eq!(
            snapshot.cumulative[..3],
            [(0.001, 2), (0.002, 3), (0.004, 4)]
        );
        assert_eq!(snapshot.cumulative[13].1, 4, "a minute lies above 8.192 s");
        assert!((snapshot.sum - 60.005_501).abs() < 1e-9);
    }
}
