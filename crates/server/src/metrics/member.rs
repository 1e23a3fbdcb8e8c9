//! Families whose numbers the member keeps: read when somebody asks, and kept nowhere else.

use std::time::Duration;

use keelson_node::Node;
use keelson_node::stats::{Histogram, HistogramSnapshot};
use keelson_proto::ids::MemberId;
use keelson_proto::rpc::etcdserverpb::AlarmType;
use keelson_store::quota;
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};
use rustix::process::{Resource, getrlimit};

use crate::descriptors;
use crate::state::State;

mod peers;

/// A label and its value.
type Label<'a> = (&'a str, String);

/// Families in the making.
#[derive(Default)]
struct Families(Vec<MetricFamily>);

fn labelled(labels: &[Label<'_>]) -> Metric {
    let pair = |(name, value): &Label<'_>| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(value.clone());
        pair
    };
    let mut pairs: Vec<_> = labels.iter().map(pair).collect();
    pairs.sort();
    Metric::from_label(pairs)
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floating point")]
fn float(number: u64) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floating point")]
fn signed(number: i64) -> f64 {
    number as f64
}

fn truth(it: bool) -> f64 {
    if it { 1.0 } else { 0.0 }
}

impl Families {
    fn add(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }

    fn gauges<'a>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Vec<Label<'a>>, f64)>,
    ) {
        let metric = |(labels, value): (Vec<Label<'a>>, f64)| {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            let mut metric = labelled(&labels);
            metric.set_gauge(gauge);
            metric
        };
        let metrics: Vec<_> = values.into_iter().map(metric).collect();
        if !metrics.is_empty() {
            self.add(name, help, MetricType::GAUGE, metrics);
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help, [(Vec::new(), value)]);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let mut counter = proto::Counter::default();
        counter.set_value(float(value));
        let mut metric = labelled(&[]);
        metric.set_counter(counter);
        self.add(name, help, MetricType::COUNTER, vec![metric]);
    }

    fn histogram(&mut self, name: &str, help: &str, labels: &[Label<'_>], from: &Histogram) {
        self.histogram_of(name, help, labels, from.snapshot());
    }

    fn histogram_of(
        &mut self,
        name: &str,
        help: &str,
        labels: &[Label<'_>],
        times: HistogramSnapshot,
    ) {
        let HistogramSnapshot {
            cumulative,
            count,
            sum,
        } = times;
        let bucket = |(bound, count): (f64, u64)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        };
        let mut histogram = proto::Histogram::default();
        histogram.set_sample_count(count);
        histogram.set_sample_sum(sum);
        histogram.set_bucket(cumulative.into_iter().map(bucket).collect());
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        match self.0.iter_mut().find(|family| family.name() == name) {
            Some(family) => family.mut_metric().push(metric),
            None => self.add(name, help, MetricType::HISTOGRAM, vec![metric]),
        }
    }
}

/// Everything that the member counts.
pub(crate) fn families(state: &State) -> Vec<MetricFamily> {
    let mut all = Families::default();
    server(&mut all, state);
    peers::peers(&mut all, state);
    store(&mut all, state);
    operations(&mut all, state);
    watches(&mut all, state);
    disk(&mut all, &state.node);
    process(&mut all);
    all.0
}

fn watches(all: &mut Families, state: &State) {
    let watching = state.watching.numbers();
    all.gauge(
        "etcd_debugging_mvcc_watcher_total",
        "Total number of watchers.",
        float(watching.watchers),
    );
    all.gauge(
        "etcd_debugging_mvcc_watch_stream_total",
        "Total number of watch streams.",
        float(watching.streams),
    );
    all.gauge(
        "etcd_debugging_mvcc_slow_watcher_total",
        "Total number of unsynced slow watchers.",
        float(watching.lagging),
    );
    all.gauge(
        "etcd_debugging_mvcc_pending_events_total",
        "Total number of pending events to be sent.",
        float(watching.queued),
    );
    all.counter(
        "etcd_debugging_mvcc_events_total",
        "Total number of events sent by this member.",
        watching.events,
    );
}

fn server(all: &mut Families, state: &State) {
    let status = state.node.status();
    let id = state.node.member_id();
    let stats = state.node.stats();
    all.gauge(
        "etcd_server_has_leader",
        "Whether or not a leader exists. 1 is existence, 0 is not.",
        truth(!status.leader.is_none()),
    );
    all.gauge(
        "etcd_server_is_leader",
        "Whether or not this member is a leader. 1 if is, 0 otherwise.",
        truth(status.leader == id),
    );
    all.gauge(
        "etcd_server_is_learner",
        "Whether or not this member is a learner. 1 if is, 0 otherwise.",
        truth(status.is_learner),
    );
    all.gauges(
        "etcd_server_id",
        "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
        [(vec![("server_id", id.to_string())], 1.0)],
    );
    let members = state.shared().members();
    let known = members.members().map(|member| (member.id, 1.0));
    let removed = members.removed().map(|id| (id, 0.0));
    let both = |remote: MemberId| vec![("Local", id.to_string()), ("Remote", remote.to_string())];
    all.gauges(
        "etcd_network_known_peers",
        "The current number of known peers.",
        known
            .chain(removed)
            .map(|(remote, known)| (both(remote), known)),
    );
    all.gauge(
        "etcd_server_proposals_committed_total",
        "The total number of consensus proposals committed.",
        float(status.committed.0),
    );
    all.gauge(
        "etcd_server_proposals_applied_total",
        "The total number of consensus proposals applied.",
        float(status.applied.0),
    );
    all.counter(
        "etcd_server_leader_changes_seen_total",
        "The number of leader changes seen.",
        status.leader_changes,
    );
    let configured = state.settings.quota_backend_bytes;
    all.gauge(
        "etcd_server_quota_backend_bytes",
        "Current backend storage quota size in bytes.",
        quota::effective(configured).map_or(signed(configured), float),
    );
    all.counter(
        "etcd_server_slow_apply_total",
        "The total number of slow apply requests (likely overloaded from slow disk).",
        stats.slow_applies.get() + state.metrics.slow_reads.get(),
    );
    all.counter(
        "etcd_server_heartbeat_send_failures_total",
        "The total number of leader heartbeat send failures (likely overloaded from slow disk).",
        stats.heartbeat_failures.get(),
    );
    all.counter(
        "etcd_debugging_server_lease_expired_total",
        "The total number of expired leases.",
        stats.leases_expired.get(),
    );
    for (op, success, times) in stats.apply.seen() {
        let labels = [
            ("version", "v3".to_owned()),
            ("op", op.to_owned()),
            ("success", success.to_string()),
        ];
        all.histogram_of(
            "etcd_server_apply_duration_seconds",
            "The latency distributions of v2 apply called by backend.",
            &labels,
            times,
        );
    }
    for (kind, success, times) in stats.own_requests.seen() {
        let labels = [("type", kind.to_owned()), ("success", success.to_string())];
        all.histogram_of(
            "etcd_server_request_duration_seconds",
            "Response latency distributions in seconds for each type.",
            &labels,
            times,
        );
    }
    all.counter(
        "keelson_server_reads_waited_total",
        "The total number of reads of long answers that waited for the disk.",
        state.pool.waited(),
    );
    all.gauge(
        "etcd_server_snapshot_apply_in_progress_total",
        "1 if the server is applying the incoming snapshot. 0 if none.",
        float(stats.installing.get()),
    );
}

/// What has been done to keys and leases.
fn operations(all: &mut Families, state: &State) {
    let stats = state.node.stats();
    let metrics = &state.metrics;
    let counters = [
        (
            "etcd_mvcc_put_total",
            "Total number of puts seen by this member.",
            stats.puts.get(),
        ),
        (
            "etcd_mvcc_delete_total",
            "Total number of deletes seen by this member.",
            stats.deletes.get(),
        ),
        (
            "etcd_mvcc_range_total",
            "Total number of ranges seen by this member.",
            stats.ranges.get() + metrics.ranges.get(),
        ),
        (
            "etcd_mvcc_txn_total",
            "Total number of txns seen by this member.",
            stats.txns.get() + metrics.read_txns.get(),
        ),
        (
            "etcd_debugging_lease_granted_total",
            "The total number of granted leases.",
            stats.leases_granted.get(),
        ),
        (
            "etcd_debugging_lease_revoked_total",
            "The total number of revoked leases.",
            stats.leases_revoked.get(),
        ),
        (
            "etcd_debugging_mvcc_db_compaction_keys_total",
            "Total number of db keys compacted.",
            stats.compacted_rows.get(),
        ),
    ];
    for (name, help, value) in counters {
        all.counter(name, help, value);
    }
    all.gauge(
        "etcd_debugging_mvcc_total_put_size_in_bytes",
        "The total size of put kv pairs seen by this member.",
        float(stats.put_bytes.get()),
    );
    all.gauge(
        "etcd_debugging_mvcc_db_compaction_last",
        "The unix time of the last db compaction. Resets to 0 on start.",
        float(stats.last_compaction.get()),
    );
    let histograms = [
        (
            "etcd_debugging_lease_ttl_total",
            "Bucketed histogram of lease TTLs.",
            &stats.lease_ttl,
        ),
        (
            "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
            "Bucketed histogram of db compaction pause duration.",
            &stats.compaction_pause,
        ),
        (
            "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
            "Bucketed histogram of db compaction total duration.",
            &stats.compaction,
        ),
        (
            "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
            "Bucketed histogram of index compaction pause duration.",
            &stats.index_compaction_pause,
        ),
    ];
    for (name, help, from) in histograms {
        all.histogram(name, help, &[], from);
    }
}

fn store(all: &mut Families, state: &State) {
    let shared = state.shared();
    let members = shared.members();
    all.gauges(
        "etcd_cluster_version",
        "Which version is running. 1 for 'cluster_version' label with current cluster version",
        members.version().map(|version| {
            let text = format!("{}.{}", version.major, version.minor);
            (vec![("cluster_version", text)], 1.0)
        }),
    );
    let alarms = shared.alarms().get(AlarmType::None.into());
    all.gauges(
        "etcd_debugging_server_alarms",
        "Alarms for every member in cluster. 1 for 'server_id' label with current ID. 2 for 'alarm_type' label with type of this alarm",
        alarms.iter().map(|alarm| {
            let kind = alarm.alarm().as_str_name().to_owned();
            let id = MemberId(alarm.member_id).to_string();
            (vec![("server_id", id), ("alarm_type", kind)], 1.0)
        }),
    );
    all.gauge(
        "etcd_debugging_auth_revision",
        "The current revision of auth store.",
        float(shared.auth().revision()),
    );
    all.gauge(
        "etcd_debugging_mvcc_current_revision",
        "The current revision of store.",
        signed(shared.revision()),
    );
    all.gauge(
        "etcd_debugging_mvcc_compact_revision",
        "The revision of the last compaction in store.",
        signed(shared.compact_revision()),
    );
    all.gauge(
        "etcd_debugging_mvcc_keys_total",
        "Total number of keys.",
        float(shared.index().keys()),
    );
    all.gauge(
        "etcd_mvcc_db_open_read_transactions",
        "The number of currently open read transactions",
        float(shared.file_readers()),
    );
    let sizes = shared.sizes();
    all.gauge(
        "etcd_mvcc_db_total_size_in_bytes",
        "Total size of the underlying database physically allocated in bytes.",
        float(sizes.total),
    );
    all.gauge(
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Total size of the underlying database logically in use in bytes.",
        float(sizes.in_use),
    );
}

fn disk(all: &mut Families, node: &Node) {
    let stats = node.stats();
    let histograms = [
        (
            "etcd_disk_wal_fsync_duration_seconds",
            "The latency distributions of fsync called by WAL.",
            &stats.wal_fsync,
        ),
        (
            "etcd_disk_wal_write_duration_seconds",
            "The latency distributions of write called by WAL.",
            &stats.wal_write,
        ),
        (
            "etcd_disk_backend_commit_duration_seconds",
            "The latency distributions of commit called by backend.",
            &stats.backend_commit,
        ),
        (
            "etcd_disk_backend_defrag_duration_seconds",
            "The latency distribution of backend defragmentation.",
            &stats.defrag,
        ),
        (
            "etcd_debugging_disk_backend_commit_rebalance_duration_seconds",
            "The latency distributions of commit.rebalance called by bboltdb backend.",
            &stats.commit_rebalance,
        ),
        (
            "etcd_debugging_disk_backend_commit_spill_duration_seconds",
            "The latency distributions of commit.spill called by bboltdb backend.",
            &stats.commit_spill,
        ),
        (
            "etcd_debugging_disk_backend_commit_write_duration_seconds",
            "The latency distributions of commit.write called by bboltdb backend.",
            &stats.commit_write,
        ),
        (
            "etcd_snap_fsync_duration_seconds",
            "The latency distributions of fsync called by snap.",
            &stats.snap_sync,
        ),
        (
            "etcd_debugging_snap_save_marshalling_duration_seconds",
            "The marshalling cost distributions of save called by snapshot.",
            &stats.snap_encode,
        ),
        (
            "etcd_debugging_snap_save_total_duration_seconds",
            "The total latency distributions of save called by snapshot.",
            &stats.snap_save,
        ),
        // Databases come from other members only.
        (
            "etcd_snap_db_fsync_duration_seconds",
            "The latency distributions of fsyncing .snap.db file",
            &Histogram::new(Duration::from_millis(1), 14),
        ),
        (
            "etcd_snap_db_save_total_duration_seconds",
            "The total latency distributions of v3 snapshot save",
            &Histogram::new(Duration::from_millis(100), 10),
        ),
    ];
    for (name, help, from) in histograms {
        all.histogram(name, help, &[], from);
    }
    all.gauge(
        "etcd_disk_wal_write_bytes_total",
        "Total number of bytes written in WAL.",
        float(stats.wal_write_bytes.get()),
    );
    all.gauge(
        "etcd_disk_defrag_inflight",
        "Whether or not defrag is active on the member. 1 means active, 0 means not.",
        float(stats.defrag_in_flight.get()),
    );
}

fn process(all: &mut Families) {
    all.gauge(
        "os_fd_used",
        "The number of used file descriptors.",
        float(descriptors::used().unwrap_or_default()),
    );
    if let Some(limit) = descriptors::limit() {
        all.gauge("os_fd_limit", "The file descriptor limit.", float(limit));
    }
    all.gauge(
        "process_virtual_memory_max_bytes",
        "Maximum amount of virtual memory available in bytes.",
        getrlimit(Resource::As)
            .current
            .map_or(float(u64::MAX), float),
    );
    let network = std::fs::read_to_string("/proc/self/net/netstat").unwrap_or_default();
    if let Some((received, sent)) = network_bytes(&network) {
        all.counter(
            "process_network_receive_bytes_total",
            "Number of bytes received by the process over the network.",
            received,
        );
        all.counter(
            "process_network_transmit_bytes_total",
            "Number of bytes sent by the process over the network.",
            sent,
        );
    }
}

/// What the process's network namespace has received and sent: `InOctets` and `OutOctets` of the
/// lines `IpExt` of `netstat`, of which the first names and the second counts.
fn network_bytes(netstat: &str) -> Option<(u64, u64)> {
    let mut lines = netstat.lines().filter(|line| line.starts_with("IpExt:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let number = |wanted: &str| {
        let mut both = names.split_whitespace().zip(numbers.split_whitespace());
        let (_, number) = both.find(|(name, _)| *name == wanted)?;
        number.parse().ok()
    };
    Some((number("InOctets")?, number("OutOctets")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_the_network_are_those_of_the_ip_lines() {
        let netstat = "TcpExt: InOctets OutOctets\nTcpExt: 1 2\n\
                       IpExt: InNoRoutes InOctets OutOctets\nIpExt: 0 77 88\n";
        assert_eq!(network_bytes(netstat), Some((77, 88)));
        assert_eq!(network_bytes("TcpExt: InOctets\nTcpExt: 1\n"), None);
        assert_eq!(network_bytes(""), None);
    }
}
