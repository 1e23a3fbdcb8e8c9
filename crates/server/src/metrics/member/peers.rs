//! What the transport counts of each other member (api.md 7).

use std::sync::atomic::{AtomicU64, Ordering};

use keelson_node::stats::HistogramSnapshot;
use keelson_proto::ids::MemberId;
use keelson_transport::stats::{HistogramView, PeerStats, SnapshotStats};

use super::{Families, Label, MetricType, labelled, proto, signed, truth};
use crate::state::State;

/// One number of a member.
type Field = fn(&PeerStats) -> &AtomicU64;

/// The families of connections to other members.
pub(super) fn peers(all: &mut Families, state: &State) {
    let Some(stats) = state.peers.stats() else {
        return;
    };
    let own = state.node.member_id().to_string();
    let of: Vec<(MemberId, _)> = stats.peers();
    let both = |id: &MemberId| vec![("Local", own.clone()), ("Remote", id.to_string())];
    all.gauges(
        "etcd_network_active_peers",
        "The current number of active peer connections.",
        of.iter()
            .map(|(id, peer)| (both(id), truth(peer.active.load(Ordering::Relaxed)))),
    );
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    all.counters(
        "etcd_network_disconnected_peers_total",
        "The total number of disconnected peers.",
        of.iter()
            .map(|(id, peer)| (both(id), count(&peer.disconnects))),
    );
    let table: [(&str, &str, &'static str, Field); 4] = [
        (
            "etcd_network_peer_sent_bytes_total",
            "The total number of bytes sent to peers.",
            "To",
            |peer| &peer.sent_bytes,
        ),
        (
            "etcd_network_peer_received_bytes_total",
            "The total number of bytes received from peers.",
            "From",
            |peer| &peer.received_bytes,
        ),
        (
            "etcd_network_peer_sent_failures_total",
            "The total number of send failures from peers.",
            "To",
            |peer| &peer.send_failures,
        ),
        (
            "etcd_network_peer_received_failures_total",
            "The total number of receive failures from peers.",
            "From",
            |peer| &peer.receive_failures,
        ),
    ];
    for (name, help, label, field) in table {
        let values = of
            .iter()
            .map(|(id, peer)| (vec![(label, id.to_string())], count(field(peer))));
        all.counters(name, help, values);
    }
    for (id, peer) in &of {
        all.histogram_of(
            "etcd_network_peer_round_trip_time_seconds",
            "Round-Trip-Time histogram between peers",
            &[("To", id.to_string())],
            seconds(peer.round_trip.view()),
        );
        snapshots(all, "send", "To", *id, &peer.snapshots_sent);
        snapshots(all, "receive", "From", *id, &peer.snapshots_received);
    }
}

fn snapshots(
    all: &mut Families,
    way: &str,
    label: &'static str,
    id: MemberId,
    stats: &SnapshotStats,
) {
    let labels = [(label, id.to_string())];
    let doing = format!("snapshot {way}s");
    all.more_counters(
        &format!("etcd_network_snapshot_{way}_success"),
        &format!("Total number of successful {doing}."),
        &labels,
        stats.successes.load(Ordering::Relaxed),
    );
    all.more_counters(
        &format!("etcd_network_snapshot_{way}_failures"),
        &format!("Total number of {way} failures of snapshots."),
        &labels,
        stats.failures.load(Ordering::Relaxed),
    );
    let mut gauge = proto::Gauge::default();
    gauge.set_value(signed(stats.in_flight.load(Ordering::Relaxed)));
    let mut metric = labelled(&labels);
    metric.set_gauge(gauge);
    let name = format!("etcd_network_snapshot_{way}_inflights_total");
    let help = format!("Total number of inflight {doing}.");
    all.push(&name, &help, MetricType::GAUGE, metric);
    all.histogram_of(
        &format!("etcd_network_snapshot_{way}_total_duration_seconds"),
        &format!("Total latency distributions of {doing}."),
        &labels,
        seconds(stats.took.view()),
    );
}

fn seconds(view: HistogramView) -> HistogramSnapshot {
    let buckets = view.cumulative.into_iter();
    HistogramSnapshot {
        cumulative: buckets
            .map(|(bound, count)| (bound.as_secs_f64(), count))
            .collect(),
        count: view.count,
        sum: view.sum.as_secs_f64(),
    }
}

impl Families {
    /// Counters of one name, each with its labels; nothing where there are none.
    fn counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Vec<Label<'a>>, u64)>,
    ) {
        for (labels, value) in values {
            self.more_counters(name, help, &labels, value);
        }
    }

    fn more_counters(&mut self, name: &str, help: &str, labels: &[Label<'_>], value: u64) {
        let mut counter = proto::Counter::default();
        counter.set_value(super::float(value));
        let mut metric = labelled(labels);
        metric.set_counter(counter);
        self.push(name, help, MetricType::COUNTER, metric);
    }

    /// One more of a family that may be there already.
    fn push(&mut self, name: &str, help: &str, kind: MetricType, metric: proto::Metric) {
        match self.0.iter_mut().find(|family| family.name() == name) {
            Some(family) => family.mut_metric().push(metric),
            None => self.add(name, help, kind, vec![metric]),
        }
    }
}
