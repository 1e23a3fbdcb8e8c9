//! Numbers for metrics: plain atomics, read by whoever exports them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets that a histogram has at most.
const BUCKETS_MAX: usize = 20;

/// Times, in buckets that grow by a factor of two.
#[derive(Debug)]
pub struct Histogram {
    first_nanos: u64,
    buckets: usize,
    /// Observations at or below each bound, not cumulative; the last one is what lies above.
    counts: [AtomicU64; BUCKETS_MAX + 1],
    sum_nanos: AtomicU64,
}

/// What a histogram holds at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramSnapshot {
    /// Upper bounds in seconds, and how many observations lie at or below each.
    pub cumulative: Vec<(f64, u64)>,
    /// How many observations there were.
    pub count: u64,
    /// Their sum, in seconds.
    pub sum: f64,
}

impl Histogram {
    /// `buckets` (at most 20) bounds from `first` on, each twice the one before.
    #[must_use]
    pub fn new(first: Duration, buckets: usize) -> Histogram {
        assert!(
            buckets <= BUCKETS_MAX,
            "a histogram has at most {BUCKETS_MAX} buckets"
        );
        Histogram {
            first_nanos: nanos(first),
            buckets,
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            sum_nanos: AtomicU64::new(0),
        }
    }

    /// Counts one observation.
    pub fn observe(&self, took: Duration) {
        let nanos = nanos(took);
        let mut bound = self.first_nanos;
        let mut bucket = 0;
        while bucket < self.buckets && nanos > bound {
            bound = bound.saturating_mul(2);
            bucket += 1;
        }
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What it holds.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "metrics are floating point")]
    pub fn snapshot(&self) -> HistogramSnapshot {
        let mut count = 0;
        let mut cumulative = Vec::with_capacity(self.buckets);
        let mut bound = self.first_nanos as f64 / 1e9;
        for bucket in &self.counts[..self.buckets] {
            count += bucket.load(Ordering::Relaxed);
            cumulative.push((bound, count));
            bound *= 2.0;
        }
        count += self.counts[self.buckets].load(Ordering::Relaxed);
        HistogramSnapshot {
            cumulative,
            count,
            sum: self.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9,
        }
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
    /// `etcd_disk_backend_defrag_duration_seconds`.
    pub defrag: Histogram,
    /// `etcd_disk_defrag_inflight`.
    pub defrag_in_flight: Number,
    /// `etcd_snap_fsync_duration_seconds`, and the total time of saving a `.snap` file.
    pub snap_save: Histogram,
    /// The time that applying one entry took.
    pub apply: Histogram,
    /// `etcd_server_proposals_failed_total`.
    pub proposals_failed: Number,
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
            snap_save: millis(1, 14),
            apply: Histogram::new(Duration::from_micros(100), 20),
            proposals_failed: Number::default(),
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
