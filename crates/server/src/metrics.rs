//! What `/metrics` shows, under etcd's names (api.md 7).
//!
//! Every member has a registry of its own, so two members in one process do not mix. What this crate
//! counts itself lives here; what the member counts is read from it when somebody asks. Families of
//! the Go runtime are left out: nothing is faked.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keelson_proto::Code;
use prometheus::core::Collector;
use prometheus::proto::{Metric, MetricFamily};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, exponential_buckets,
};

use crate::grpc::method::{Kind, Method};

pub(crate) mod member;

/// All gRPC codes, in the order of their numbers.
const CODES: [Code; 17] = [
    Code::Ok,
    Code::Canceled,
    Code::Unknown,
    Code::InvalidArgument,
    Code::DeadlineExceeded,
    Code::NotFound,
    Code::AlreadyExists,
    Code::PermissionDenied,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Aborted,
    Code::OutOfRange,
    Code::Unimplemented,
    Code::Internal,
    Code::Unavailable,
    Code::DataLoss,
    Code::Unauthenticated,
];

/// The counters of one member.
pub(crate) struct Metrics {
    registry: Registry,
    methods: Methods,
    received_bytes: IntCounter,
    sent_bytes: IntCounter,
    /// By `type` and `client_api_version`.
    requests: IntCounterVec,
    /// By `success` and `type`.
    request_seconds: HistogramVec,
    range_seconds: Histogram,
    pub(crate) health_success: IntCounter,
    pub(crate) health_failures: IntCounter,
    /// By `type` and `name`.
    pub(crate) healthcheck: IntGaugeVec,
    /// By `type`, `name` and `status`.
    pub(crate) healthchecks: IntCounterVec,
    pub(crate) hash_seconds: Histogram,
    pub(crate) hash_kv_seconds: Histogram,
    pub(crate) snapshot_seconds: Histogram,
    /// Ranges that were no part of an entry.
    pub(crate) ranges: IntCounter,
    /// Transactions of ranges alone.
    pub(crate) read_txns: IntCounter,
    /// Reads that took longer than apply may take.
    pub(crate) slow_reads: IntCounter,
    pub(crate) slow_read_indexes: IntCounter,
    pub(crate) failed_proposals: IntCounter,
    pub(crate) pending_proposals: IntGauge,
    pub(crate) failed_read_indexes: IntCounter,
    pub(crate) lease_renewed: IntCounter,
    pub(crate) promotions: IntCounter,
    /// By `Reason`.
    pub(crate) failed_promotions: IntCounterVec,
    gates: IntGaugeVec,
    /// Of one batch, or one reading of history, and all its watchers.
    watch_batch: Histogram,
    watch_event: Histogram,
    pub(crate) watch_control: Histogram,
    pub(crate) watch_progress: Histogram,
    scrapes: IntCounterVec,
    scrapes_inflight: IntGauge,
}

/// The counters of `grpc_server_*`.
struct Methods {
    meters: Vec<OnceLock<Meters>>,
    started: IntCounterVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    handled: IntCounterVec,
    seconds: Option<HistogramVec>,
}

struct Meters {
    started: IntCounter,
    received: IntCounter,
    sent: IntCounter,
    handled: [IntCounter; 17],
    seconds: Option<Histogram>,
}

/// A registry that families are made in.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let family = made.expect("names and labels of families are constants");
        self.0
            .register(Box::new(family.clone()))
            .expect("a family is registered once");
        family
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets);
        self.add(Histogram::with_opts(options))
    }
}

/// A counter that is shown under another name, together with others.
fn unregistered(name: &str) -> IntCounter {
    IntCounter::new(name, name).expect("the names of counters are constants")
}

/// Adds what is counted elsewhere for the same labels, and the labels that are not there.
fn merge(family: &mut MetricFamily, others: Vec<Metric>) {
    for other in others {
        let same = |metric: &&mut Metric| metric.get_label() == other.get_label();
        match family.mut_metric().iter_mut().find(same) {
            Some(metric) => add_histogram(metric, &other),
            None => family.mut_metric().push(other),
        }
    }
}

fn add_histogram(metric: &mut Metric, other: &Metric) {
    let other = other.get_histogram();
    let mut sum = metric.get_histogram().clone();
    let buckets = sum.get_bucket().iter().zip(other.get_bucket());
    let buckets = buckets.map(|(one, other)| {
        let mut bucket = one.clone();
        bucket.set_cumulative_count(one.cumulative_count() + other.cumulative_count());
        bucket
    });
    let buckets = buckets.collect();
    sum.set_bucket(buckets);
    sum.set_sample_count(sum.get_sample_count() + other.get_sample_count());
    sum.set_sample_sum(sum.get_sample_sum() + other.get_sample_sum());
    metric.set_histogram(sum);
}

/// Bounds that grow by a factor of two.
fn doubling(first: f64, count: usize) -> Vec<f64> {
    exponential_buckets(first, 2.0, count).expect("the bounds are constants in order")
}

/// A gauge that always says 1, with what it is about in its label.
fn fact(maker: &Maker<'_>, name: &str, help: &str, label: &str, value: &str) {
    maker
        .gauges(name, help, &[label])
        .with_label_values(&[value])
        .set(1);
}

impl Metrics {
    /// A member's registry. `extensive` adds the histogram of calls.
    pub(crate) fn new(version: &str, extensive: bool) -> Metrics {
        let registry = Registry::new();
        let make = Maker(&registry);
        fact(
            &make,
            "etcd_server_version",
            "Which version is running. 1 for 'server_version' label with current version.",
            "server_version",
            version,
        );
        fact(
            &make,
            "keelson_version",
            "Which version of Keelson is running.",
            "version",
            env!("CARGO_PKG_VERSION"),
        );
        make.0
            .register(Box::new(
                prometheus::process_collector::ProcessCollector::for_self(),
            ))
            .expect("nothing else names the process");
        let scrapes = make.counters(
            "promhttp_metric_handler_requests_total",
            "Total number of scrapes by HTTP status code.",
            &["code"],
        );
        for code in ["200", "500", "503"] {
            scrapes.with_label_values(&[code]);
        }
        let request_seconds = make.add(HistogramVec::new(
            HistogramOpts::new(
                "etcd_server_request_duration_seconds",
                "Response latency distributions in seconds for each type.",
            )
            .buckets(doubling(0.001, 14)),
            &["type", "success"],
        ));
        let range_seconds = make.add(HistogramVec::new(
            HistogramOpts::new(
                "etcd_server_range_duration_seconds",
                "The latency distributions of txn.Range",
            )
            .buckets(doubling(0.0001, 20)),
            &["success"],
        ));
        Metrics {
            methods: Methods::new(&make, extensive),
            received_bytes: make.counter(
                "etcd_network_client_grpc_received_bytes_total",
                "The total number of bytes received from grpc clients.",
            ),
            sent_bytes: make.counter(
                "etcd_network_client_grpc_sent_bytes_total",
                "The total number of bytes sent to grpc clients.",
            ),
            requests: make.counters(
                "etcd_server_client_requests_total",
                "The total number of client requests per client version.",
                &["type", "client_api_version"],
            ),
            request_seconds,
            range_seconds: range_seconds.with_label_values(&["true"]),
            health_success: make.counter(
                "etcd_server_health_success",
                "The total number of successful health checks",
            ),
            health_failures: make.counter(
                "etcd_server_health_failures",
                "The total number of failed health checks",
            ),
            healthcheck: make.gauges(
                "etcd_server_healthcheck",
                "The result of each kind of healthcheck.",
                &["type", "name"],
            ),
            healthchecks: make.counters(
                "etcd_server_healthchecks_total",
                "The total number of each kind of healthcheck.",
                &["type", "name", "status"],
            ),
            hash_seconds: make.histogram(
                "etcd_mvcc_hash_duration_seconds",
                "The latency distribution of storage hash operation.",
                doubling(0.01, 15),
            ),
            hash_kv_seconds: make.histogram(
                "etcd_mvcc_hash_rev_duration_seconds",
                "The latency distribution of storage hash by revision operation.",
                doubling(0.01, 15),
            ),
            snapshot_seconds: make.histogram(
                "etcd_disk_backend_snapshot_duration_seconds",
                "The latency distribution of backend snapshots.",
                doubling(0.01, 17),
            ),
            // Shown together with what the node counts.
            ranges: unregistered("ranges"),
            read_txns: unregistered("read_txns"),
            slow_reads: unregistered("slow_reads"),
            slow_read_indexes: make.counter(
                "etcd_server_slow_read_indexes_total",
                "The total number of pending read indexes not in sync with leader's or timed out read index requests.",
            ),
            failed_proposals: make.counter(
                "etcd_server_proposals_failed_total",
                "The total number of failed proposals seen.",
            ),
            pending_proposals: make.gauge(
                "etcd_server_proposals_pending",
                "The current number of pending proposals to commit.",
            ),
            failed_read_indexes: make.counter(
                "etcd_server_read_indexes_failed_total",
                "The total number of failed read indexes seen.",
            ),
            promotions: make.counter(
                "etcd_server_learner_promote_successes",
                "The total number of successful learner promotions while this member is leader.",
            ),
            failed_promotions: make.counters(
                "etcd_server_learner_promote_failures",
                "The total number of failed learner promotions (likely learner not ready) while this \
                 member is leader.",
                &["Reason"],
            ),
            lease_renewed: make.counter(
                "etcd_debugging_lease_renewed_total",
                "The number of renewed leases seen by the leader.",
            ),
            gates: make.gauges(
                "etcd_server_feature_enabled",
                "Whether or not a feature is enabled. 1 is enabled, 0 is not.",
                &["name", "stage"],
            ),
            watch_batch: make.histogram(
                "etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds",
                "The total duration in seconds of running through the send loop watch stream response all times.",
                doubling(0.001, 14),
            ),
            watch_event: make.histogram(
                "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds",
                "The average duration in seconds of running through the send loop watch stream response, per event.",
                doubling(0.001, 14),
            ),
            watch_control: make.histogram(
                "etcd_debugging_server_watch_send_loop_control_stream_duration_seconds",
                "The total duration in seconds of running through the send loop control stream response all times.",
                doubling(0.001, 14),
            ),
            watch_progress: make.histogram(
                "etcd_debugging_server_watch_send_loop_progress_duration_seconds",
                "The total duration in seconds of running through the progress loop control stream response all times.",
                doubling(0.001, 14),
            ),
            scrapes,
            scrapes_inflight: make.gauge(
                "promhttp_metric_handler_requests_in_flight",
                "Current number of scrapes being served.",
            ),
            registry,
        }
    }

    /// The text that `/metrics` answers with: what is counted here, and what the member counts.
    pub(crate) fn text(&self, of_member: Vec<MetricFamily>) -> String {
        self.scrapes_inflight.inc();
        let mut families = self.registry.gather();
        for mut family in of_member {
            let same = |other: &&mut MetricFamily| other.name() == family.name();
            // Some of a family is counted here and some by the node.
            match families.iter_mut().find(same) {
                Some(other) => merge(other, family.take_metric()),
                None => families.push(family),
            }
        }
        families.sort_by(|one, other| one.name().cmp(other.name()));
        let text = TextEncoder::new().encode_to_string(&families);
        self.scrapes_inflight.dec();
        let code = if text.is_ok() { "200" } else { "500" };
        self.scrapes.with_label_values(&[code]).inc();
        text.unwrap_or_default()
    }

    /// Counts a request of a client.
    pub(crate) fn client_request(&self, kind: Kind, client_api_version: &str) {
        let kind = if kind.is_unary() { "unary" } else { "stream" };
        self.requests
            .with_label_values(&[kind, client_api_version])
            .inc();
    }

    /// Notes how long a request took from its proposal, or its read, to its outcome.
    pub(crate) fn request(&self, kind: &str, success: bool, took: Duration) {
        let success = if success { "true" } else { "false" };
        self.request_seconds
            .with_label_values(&[kind, success])
            .observe(took.as_secs_f64());
    }

    /// Says whether a feature gate is open.
    pub(crate) fn gate(&self, name: &str, stage: &str, enabled: bool) {
        self.gates
            .with_label_values(&[name, stage])
            .set(i64::from(enabled));
    }

    /// Notes how long it took to hand events to their watchers.
    pub(crate) fn watch_events(&self, took: Duration, events: u64) {
        if events == 0 {
            return;
        }
        let took = took.as_secs_f64();
        self.watch_batch.observe(took);
        #[expect(clippy::cast_precision_loss, reason = "metrics are floating point")]
        self.watch_event.observe(took / events as f64);
    }

    /// Notes how long a transaction of ranges and conditions took.
    pub(crate) fn read_txn(&self, took: Duration, operations: usize) {
        self.ranges.inc_by(operations as u64);
        self.read_txns.inc_by(u64::from(operations > 1));
        self.range_seconds.observe(took.as_secs_f64());
    }

    /// Notes how long the reading of a range took.
    pub(crate) fn range(&self, took: Duration) {
        self.ranges.inc();
        self.range_seconds.observe(took.as_secs_f64());
    }
}

impl Methods {
    fn new(make: &Maker<'_>, extensive: bool) -> Methods {
        const LABELS: [&str; 3] = ["grpc_type", "grpc_service", "grpc_method"];
        let methods = Methods {
            meters: Method::ALL.iter().map(|_| OnceLock::new()).collect(),
            started: make.counters(
                "grpc_server_started_total",
                "Total number of RPCs started on the server.",
                &LABELS,
            ),
            received: make.counters(
                "grpc_server_msg_received_total",
                "Total number of RPC stream messages received on the server.",
                &LABELS,
            ),
            sent: make.counters(
                "grpc_server_msg_sent_total",
                "Total number of gRPC stream messages sent by the server.",
                &LABELS,
            ),
            handled: make.counters(
                "grpc_server_handled_total",
                "Total number of RPCs completed on the server, regardless of success or failure.",
                &["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
            ),
            seconds: extensive.then(|| {
                make.add(HistogramVec::new(
                    HistogramOpts::new(
                        "grpc_server_handling_seconds",
                        "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.",
                    ),
                    &LABELS,
                ))
            }),
        };
        for method in Method::ALL {
            // The recipes show up when they are used; everything else is there from the start.
            if method.service().starts_with("etcdserverpb") || method.service().starts_with("grpc")
            {
                methods.meters(*method);
            }
        }
        methods
    }

    fn meters(&self, method: Method) -> &Meters {
        let cell = self
            .meters
            .get(method.number())
            .expect("there is a cell for each method");
        cell.get_or_init(|| {
            let labels = [method.kind().label(), method.service(), method.name()];
            let [kind, service, name] = labels;
            Meters {
                started: self.started.with_label_values(&labels),
                received: self.received.with_label_values(&labels),
                sent: self.sent.with_label_values(&labels),
                handled: CODES.map(|code| {
                    self.handled
                        .with_label_values(&[kind, service, name, code.go_name()])
                }),
                seconds: self
                    .seconds
                    .as_ref()
                    .map(|seconds| seconds.with_label_values(&labels)),
            }
        })
    }
}

/// Counts one call; a call whose meter is dropped before it ended was cancelled.
pub(crate) struct CallMeter {
    metrics: Arc<Metrics>,
    method: Method,
    started: std::time::Instant,
    ended: bool,
}

impl CallMeter {
    /// A call has begun.
    pub(crate) fn start(metrics: &Arc<Metrics>, method: Method) -> CallMeter {
        metrics.methods.meters(method).started.inc();
        CallMeter {
            metrics: Arc::clone(metrics),
            method,
            started: std::time::Instant::now(),
            ended: false,
        }
    }

    /// What counts the messages that come in.
    pub(crate) fn receiver(&self) -> Receiver {
        Receiver {
            metrics: Arc::clone(&self.metrics),
            method: self.method,
        }
    }

    /// A whole message goes out.
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent_messages(1);
        self.sent_bytes(bytes);
    }

    /// So many messages begin to go out.
    pub(crate) fn sent_messages(&self, count: u64) {
        self.metrics.methods.meters(self.method).sent.inc_by(count);
    }

    /// Bytes of a message go out.
    pub(crate) fn sent_bytes(&self, bytes: usize) {
        self.metrics.sent_bytes.inc_by(bytes as u64);
    }

    /// The call has ended.
    pub(crate) fn ended(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let meters = self.metrics.methods.meters(self.method);
        if let Some(counter) = meters.handled.get(code as usize) {
            counter.inc();
        }
        if let Some(seconds) = &meters.seconds {
            seconds.observe(self.started.elapsed().as_secs_f64());
        }
    }
}

impl Drop for CallMeter {
    fn drop(&mut self) {
        self.ended(Code::Canceled);
    }
}

/// Counts what comes in over one call.
pub(crate) struct Receiver {
    metrics: Arc<Metrics>,
    method: Method,
}

impl Receiver {
    /// A message has come in.
    pub(crate) fn received(&self, bytes: usize) {
        self.metrics.methods.meters(self.method).received.inc();
        self.metrics.received_bytes.inc_by(bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_every_method_is_there_before_it_is_used() {
        let text = Metrics::new("3.7.1", false).text(Vec::new());
        assert!(text.contains(
            "grpc_server_handled_total{grpc_code=\"OutOfRange\",grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 0\n"
        ));
        assert!(text.contains("etcd_server_version{server_version=\"3.7.1\"} 1\n"));
        assert!(text.contains("process_resident_memory_bytes "));
        assert!(!text.contains("v3lockpb"));
        assert!(!text.contains("grpc_server_handling_seconds"));
    }

    #[test]
    fn a_call_that_is_dropped_was_cancelled() {
        let metrics = Arc::new(Metrics::new("3.7.1", true));
        drop(CallMeter::start(&metrics, Method::Put));
        let mut meter = CallMeter::start(&metrics, Method::Put);
        meter.ended(Code::Ok);
        drop(meter);
        let text = metrics.text(Vec::new());
        let line = |code: &str| {
            format!(
                "grpc_server_handled_total{{grpc_code=\"{code}\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}} 1\n"
            )
        };
        assert!(text.contains(&line("Canceled")));
        assert!(text.contains(&line("OK")));
        assert!(text.contains("grpc_server_handling_seconds_count{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 2\n"));
    }

    #[test]
    fn two_members_do_not_mix() {
        let (one, other) = (Metrics::new("3.7.1", false), Metrics::new("3.7.1", false));
        one.health_success.inc();
        assert!(
            other
                .text(Vec::new())
                .contains("etcd_server_health_success 0\n")
        );
    }
}
