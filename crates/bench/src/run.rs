//! A run: connect, fill, load, count.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use keelson_client::{Client, Error, Options, Put, Txn};
use tokio::runtime;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::idle;
use crate::lag::{self, Past};
use crate::load::{Data, Schedule};
use crate::process::Usage;
use crate::report::{LATENCY_MAX, Latency, Report, ServerCost};
use crate::spec::{Spec, Work};
use crate::watch;
use crate::work::Worker;

/// Operations in a transaction of the filling: below the limit of servers with their defaults.
const FILL_OPS: u64 = 100;
/// Bytes in a transaction of the filling.
const FILL_BYTES: u64 = 512 * 1024;
/// Failures after which a client gives up.
const ERRORS_MAX: u64 = 100;
/// The pause after a failure.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// Digits of latencies that are kept apart.
const DIGITS: u8 = 3;

/// Runs `spec` to its end.
///
/// # Errors
/// A setting out of its bounds, a server that cannot be reached or used, no operation that
/// succeeded.
pub fn run(spec: &Spec) -> anyhow::Result<Report> {
    spec.check()?;
    let runtime = if spec.threads == 1 {
        runtime::Builder::new_current_thread().enable_all().build()
    } else {
        runtime::Builder::new_multi_thread()
            .worker_threads(spec.threads)
            .enable_all()
            .build()
    };
    runtime?.block_on(load(spec))
}

async fn load(spec: &Spec) -> anyhow::Result<Report> {
    let clients = connect(spec, spec.connections).await?;
    let server_version = clients[0].status().await?.version;
    let data = Data::new(spec);
    if spec.work.reads() && spec.populate {
        fill(&clients, &data, spec).await?;
    }
    let watches = match spec.work {
        Work::Watch { watchers, streams } => {
            Some(watch::prepare(&clients, watchers, streams).await?)
        }
        _ => None,
    };
    let past = match spec.work {
        Work::Lag {
            watchers,
            behind,
            every,
        } => {
            let past = lag::prepare(&clients, &data, watchers, behind).await?;
            Some((past, every))
        }
        _ => None,
    };
    let workers = workers(spec, &clients, &data).await?;
    let _idle = idle::prepare(spec, &clients).await?;

    let before = Usage::of_all(&spec.pids)?;
    let own_before = Usage::of(std::process::id())?;
    let start = Instant::now();
    let tally = match watches {
        Some(watches) => watch::run(spec, &clients, &data, watches, start).await?,
        None => operate(spec, &clients, &data, workers, past, start).await?,
    };
    let own = Usage::of(std::process::id())?.cpu_since(&own_before);
    let after = Usage::of_all(&spec.pids)?;
    if tally.operations == 0 {
        let reason = tally.first_error.as_deref().unwrap_or("there was no time");
        bail!("no operation succeeded: {reason}");
    }
    let elapsed = tally.elapsed.as_secs_f64();
    Ok(Report {
        work: spec.work.name(),
        server_version,
        connections: spec.connections,
        clients: spec.clients,
        key_size: spec.key_size,
        value_size: spec.value_size,
        operations: tally.operations,
        items: tally.items,
        errors: tally.errors,
        first_error: tally.first_error,
        elapsed_seconds: elapsed,
        operations_per_second: tally.operations as f64 / elapsed,
        latency_us: Latency::of(&tally.latencies),
        client_cpu_us_per_operation: own * 1e6 / tally.operations as f64,
        server: ServerCost::of(&spec.pids, &before, &after, tally.operations),
    })
}

/// So many connections, spread over the members.
pub(crate) async fn connect(spec: &Spec, connections: usize) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(connections);
    for number in 0..connections {
        let mut options = Options::default();
        options.user.clone_from(&spec.user);
        let endpoint = &spec.endpoints[number % spec.endpoints.len()];
        clients.push(Client::connect_with(endpoint, options).await?);
    }
    Ok(clients)
}

/// The clients of a run, ready for their first operation; none where events are counted.
async fn workers(spec: &Spec, clients: &[Client], data: &Data) -> anyhow::Result<Vec<Worker>> {
    // Beside watchers that lag, what is measured is puts.
    let work = match spec.work {
        Work::Lag { .. } => &Work::Put,
        ref work => work,
    };
    let mut workers = Vec::with_capacity(spec.clients);
    for number in 0..spec.clients {
        let client = clients[number % clients.len()].clone();
        workers.extend(Worker::new(work, client, data.clone()).await?);
    }
    Ok(workers)
}

/// Lets an interrupt (`^C`) end the schedule and not the process, so that what was seen is told. It
/// is watched for while the answer lives.
pub(crate) fn stop_when_interrupted(schedule: &Arc<Schedule>) -> JoinSet<()> {
    let schedule = Arc::clone(schedule);
    let mut watching = JoinSet::new();
    watching.spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            schedule.stop();
        }
    });
    watching
}

/// Lets the workers take turns as scheduled.
async fn operate(
    spec: &Spec,
    clients: &[Client],
    data: &Data,
    workers: Vec<Worker>,
    past: Option<(Past, Duration)>,
    start: Instant,
) -> anyhow::Result<Tally> {
    let schedule = Arc::new(Schedule::new(spec, start));
    let _interrupt = stop_when_interrupted(&schedule);
    let lagging = past.map(|(past, every)| lag::spawn(clients, data, past, every, &schedule));
    let mut running = JoinSet::new();
    for worker in workers {
        running.spawn(turns(worker, Arc::clone(&schedule)));
    }
    let mut tally = Tally::default();
    let mut done = Vec::new();
    while let Some(worker) = running.join_next().await {
        let (worker, counted) = worker?;
        tally.merge(counted)?;
        done.push(worker);
    }
    tally.elapsed = start.elapsed();
    if let Some(mut lagging) = lagging {
        // What was written is in the operations; items are the times that a watcher has caught up.
        tally.items = 0;
        while let Some(times) = lagging.join_next().await {
            tally.items += times??;
        }
    }
    for worker in done {
        worker.end().await?;
    }
    Ok(tally)
}

async fn turns(mut worker: Worker, schedule: Arc<Schedule>) -> (Worker, Tally) {
    let mut tally = Tally::default();
    while let Some(turn) = schedule.turn().await {
        match worker.once(turn.number).await {
            Ok(items) => {
                tally.operations += 1;
                tally.items += items;
                record(&mut tally.latencies, turn.since.elapsed());
            }
            Err(error) => {
                if tally.failed(&error).await {
                    break;
                }
            }
        }
    }
    (worker, tally)
}

/// Writes every key once.
async fn fill(clients: &[Client], data: &Data, spec: &Spec) -> anyhow::Result<()> {
    let each = (spec.key_size + spec.value_size) as u64;
    let batch = (FILL_BYTES / each).clamp(1, FILL_OPS);
    let lanes = clients.len().max(8) as u64;
    let mut fillers: JoinSet<Result<(), Error>> = JoinSet::new();
    for lane in 0..lanes {
        let client = clients[lane as usize % clients.len()].clone();
        let data = data.clone();
        fillers.spawn(async move {
            let mut begin = lane * batch;
            while begin < data.keys {
                let numbers = begin..(begin + batch).min(data.keys);
                let txn = numbers.fold(Txn::new(), |txn, number| {
                    txn.then(Put::new(data.key(number), data.value.clone()))
                });
                client.txn(txn).await?;
                begin += lanes * batch;
            }
            Ok(())
        });
    }
    while let Some(filler) = fillers.join_next().await {
        filler?.context("write the keys to read")?;
    }
    Ok(())
}

/// What one client, or all, have counted.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) operations: u64,
    pub(crate) items: u64,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    pub(crate) latencies: Histogram<u64>,
    pub(crate) elapsed: Duration,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            operations: 0,
            items: 0,
            errors: 0,
            first_error: None,
            latencies: histogram(),
            elapsed: Duration::ZERO,
        }
    }
}

impl Tally {
    pub(crate) fn merge(&mut self, other: Tally) -> anyhow::Result<()> {
        self.operations += other.operations;
        self.items += other.items;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latencies.add(other.latencies)?;
        Ok(())
    }

    /// Counts a failure, waits a moment, and says whether it is enough.
    pub(crate) async fn failed(&mut self, error: &Error) -> bool {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
        sleep(ERROR_PAUSE).await;
        self.errors >= ERRORS_MAX
    }
}

/// Grows with what is recorded, so that thousands of clients are no burden.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new(DIGITS).expect("three digits are allowed")
}

/// Records a latency in microseconds.
pub(crate) fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_MAX);
    histogram
        .record(micros.min(LATENCY_MAX))
        .expect("the histogram grows to what it is given");
}
