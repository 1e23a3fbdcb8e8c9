//! Numbers about peers, for metrics: counted here, named by whoever shows them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keelson_proto::ids::MemberId;

/// Durations in buckets that double.
#[derive(Debug)]
pub struct Histogram {
    first: Duration,
    buckets: Vec<AtomicU64>,
    sum_nanos: AtomicU64,
    count: AtomicU64,
}

/// What a [`Histogram`] holds at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramView {
    /// Upper bounds, inclusive, and how many values are at or below each.
    pub cumulative: Vec<(Duration, u64)>,
    /// The sum of all values.
    pub sum: Duration,
    /// How many values there are.
    pub count: u64,
}

impl Histogram {
    fn new(first: Duration, buckets: usize) -> Histogram {
        Histogram {
            first,
            buckets: (0..buckets).map(|_| AtomicU64::new(0)).collect(),
            sum_nanos: AtomicU64::new(0),
            count: AtomicU64::new(0),
        }
    }

    pub(crate) fn observe(&self, value: Duration) {
        let mut bound = self.first;
        for bucket in &self.buckets {
            if value <= bound {
                bucket.fetch_add(1, Ordering::Relaxed);
                break;
            }
            bound = bound.saturating_mul(2);
        }
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// What it holds now.
    #[must_use]
    pub fn view(&self) -> HistogramView {
        let (mut bound, mut below) = (self.first, 0);
        let cumulative = self.buckets.iter().map(|bucket| {
            below += bucket.load(Ordering::Relaxed);
            let entry = (bound, below);
            bound = bound.saturating_mul(2);
            entry
        });
        HistogramView {
            cumulative: cumulative.collect(),
            sum: Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed)),
            count: self.count.load(Ordering::Relaxed),
        }
    }
}

/// Snapshots in one direction.
#[derive(Debug)]
pub struct SnapshotStats {
    /// Transfers that succeeded: `etcd_network_snapshot_{send,receive}_success`.
    pub successes: AtomicU64,
    /// Transfers that failed: `etcd_network_snapshot_{send,receive}_failures`.
    pub failures: AtomicU64,
    /// Transfers under way: `etcd_network_snapshot_{send,receive}_inflights_total`.
    pub in_flight: AtomicI64,
    /// How long those that succeeded took, from 0.1 s in 10 buckets.
    pub took: Histogram,
}

impl SnapshotStats {
    fn new() -> SnapshotStats {
        SnapshotStats {
            successes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            in_flight: AtomicI64::new(0),
            took: Histogram::new(Duration::from_millis(100), 10),
        }
    }
}

/// Numbers about one other member. They outlive its removal, as counters do.
#[derive(Debug)]
pub struct PeerStats {
    /// `etcd_network_peer_sent_bytes_total`
    pub sent_bytes: AtomicU64,
    /// `etcd_network_peer_received_bytes_total`
    pub received_bytes: AtomicU64,
    /// `etcd_network_peer_sent_failures_total`
    pub send_failures: AtomicU64,
    /// `etcd_network_peer_received_failures_total`
    pub receive_failures: AtomicU64,
    /// Appends sent, and appends received.
    pub appends: [AtomicU64; 2],
    /// `etcd_network_active_peers`
    pub active: AtomicBool,
    /// `etcd_network_disconnected_peers_total`
    pub disconnects: AtomicU64,
    /// Snapshots sent to it.
    pub snapshots_sent: SnapshotStats,
    /// Snapshots received from it.
    pub snapshots_received: SnapshotStats,
    /// `etcd_network_peer_round_trip_time_seconds`: from 0.1 ms in 16 buckets.
    pub round_trip: Histogram,
    /// By how much its clock is behind ours, in nanoseconds, as the last probe saw it.
    pub clock_behind_nanos: AtomicI64,
}

impl PeerStats {
    fn new() -> PeerStats {
        PeerStats {
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            send_failures: AtomicU64::new(0),
            receive_failures: AtomicU64::new(0),
            appends: [AtomicU64::new(0), AtomicU64::new(0)],
            active: AtomicBool::new(false),
            disconnects: AtomicU64::new(0),
            snapshots_sent: SnapshotStats::new(),
            snapshots_received: SnapshotStats::new(),
            round_trip: Histogram::new(Duration::from_micros(100), 16),
            clock_behind_nanos: AtomicI64::new(0),
        }
    }
}

/// How many members are told apart; whoever comes later is counted under nobody's name.
const MEMBERS_MAX: usize = 1024;

/// Numbers about all other members.
#[derive(Debug, Default)]
pub struct Stats {
    peers: Mutex<BTreeMap<MemberId, Arc<PeerStats>>>,
    /// Requests on the peer port that could not be read, or whose sender is not known.
    pub bad_requests: AtomicU64,
}

impl Stats {
    /// The numbers of one member, who need not be known yet.
    pub(crate) fn of(&self, member: MemberId) -> Arc<PeerStats> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let full = peers.len() >= MEMBERS_MAX && !peers.contains_key(&member);
        let name = if full { MemberId::NONE } else { member };
        let new = || Arc::new(PeerStats::new());
        Arc::clone(peers.entry(name).or_insert_with(new))
    }

    /// The numbers of every member that was ever sent to or received from.
    #[must_use]
    pub fn peers(&self) -> Vec<(MemberId, Arc<PeerStats>)> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers
            .iter()
            .map(|(id, stats)| (*id, Arc::clone(stats)))
            .collect()
    }
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_from_below() {
        let histogram = Histogram::new(Duration::from_millis(1), 3);
        for millis in [1, 2, 3, 100] {
            histogram.observe(Duration::from_millis(millis));
        }
        let view = histogram.view();
        let counts: Vec<u64> = view.cumulative.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [1, 2, 3]);
        assert_eq!((view.count, view.sum), (4, Duration::from_millis(106)));
    }

    #[test]
    fn members_past_the_limit_share_a_line() {
        let stats = Stats::default();
        for id in 1..=2000 {
            add(&stats.of(MemberId(id)).sent_bytes, 1);
        }
        assert!(stats.peers().len() <= MEMBERS_MAX + 1);
        let counted =
            |(_, stats): (MemberId, Arc<PeerStats>)| stats.sent_bytes.load(Ordering::Relaxed);
        assert_eq!(stats.peers().into_iter().map(counted).sum::<u64>(), 2000);
    }
}
