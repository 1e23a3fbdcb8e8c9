//! What was seen, for people and for programs.

use std::fmt::{self, Write as _};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::process::Usage;

/// Microseconds of a latency at most; longer ones are counted as this.
pub(crate) const LATENCY_MAX: u64 = 120_000_000;

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub mean: f64,
    pub p50: u64,
    pub p90: u64,
    pub p95: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Latency {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Latency {
            mean: histogram.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }
}

/// What the run cost the server: of several members, all of them together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServerCost {
    /// Processor time in seconds, user and system.
    pub cpu_seconds: f64,
    /// Processor time for each operation in microseconds.
    pub cpu_us_per_operation: f64,
    /// Each process.
    pub processes: Vec<ProcessCost>,
}

/// What the run cost one process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ProcessCost {
    /// Its process id.
    pub pid: u32,
    /// Processor time in seconds, user and system.
    pub cpu_seconds: f64,
    /// At the begin, after keys were written for reads.
    pub before: Usage,
    /// At the end.
    pub after: Usage,
}

impl ServerCost {
    /// Of the processes `pids` over so many operations; `None` if there are none.
    pub(crate) fn of(
        pids: &[u32],
        before: &[Usage],
        after: &[Usage],
        operations: u64,
    ) -> Option<ServerCost> {
        let usages = before.iter().zip(after);
        let processes = pids.iter().zip(usages).map(|(pid, (before, after))| {
            let cpu_seconds = after.cpu_since(before);
            ProcessCost {
                pid: *pid,
                cpu_seconds,
                before: *before,
                after: *after,
            }
        });
        let processes: Vec<_> = processes.collect();
        let cpu_seconds = processes.iter().map(|process| process.cpu_seconds).sum();
        (!processes.is_empty()).then_some(ServerCost {
            cpu_seconds,
            cpu_us_per_operation: cpu_seconds * 1e6 / operations as f64,
            processes,
        })
    }
}

/// What a run was and what was seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The name of the work.
    pub work: &'static str,
    /// The server's version.
    pub server_version: String,
    /// Connections.
    pub connections: usize,
    /// Clients.
    pub clients: usize,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value.
    pub value_size: usize,
    /// Operations that succeeded; for watches, events at watchers.
    pub operations: u64,
    /// Keys that were read, or writes that watchers saw.
    pub items: u64,
    /// Operations that failed.
    pub errors: u64,
    /// The first of the errors.
    pub first_error: Option<String>,
    /// From the first operation to the last answer.
    pub elapsed_seconds: f64,
    /// Operations in a second.
    pub operations_per_second: f64,
    /// In microseconds.
    pub latency_us: Latency,
    /// What the generator itself used for each operation, in microseconds.
    pub client_cpu_us_per_operation: f64,
    /// If the server's process was named.
    pub server: Option<ServerCost>,
}

impl Report {
    /// As JSON, on several lines.
    ///
    /// # Errors
    /// None that can happen: numbers and texts.
    pub fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }
}

/// A short table.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = String::new();
        let mut row = |name: &str, text: String| writeln!(table, "{name:<12}{text}");
        row(
            "work",
            format!(
                "{} on {}, {} clients, {} connections, keys {} B, values {} B",
                self.work,
                self.server_version,
                self.clients,
                self.connections,
                self.key_size,
                self.value_size
            ),
        )?;
        row(
            "operations",
            format!(
                "{} ({} items) in {:.3} s, {:.0} a second",
                self.operations, self.items, self.elapsed_seconds, self.operations_per_second
            ),
        )?;
        if let Some(error) = &self.first_error {
            row("errors", format!("{}, the first: {error}", self.errors))?;
        }
        let l = &self.latency_us;
        row(
            "latency us",
            format!(
                "mean {:.0}, p50 {}, p90 {}, p95 {}, p99 {}, p99.9 {}, max {}",
                l.mean, l.p50, l.p90, l.p95, l.p99, l.p999, l.max
            ),
        )?;
        row(
            "client",
            format!(
                "{:.2} us of CPU an operation",
                self.client_cpu_us_per_operation
            ),
        )?;
        if let Some(server) = &self.server {
            row(
                "server",
                format!(
                    "{:.2} us of CPU an operation ({:.2} s)",
                    server.cpu_us_per_operation, server.cpu_seconds
                ),
            )?;
            for process in &server.processes {
                row("", process.to_string())?;
            }
        }
        f.write_str(&table)
    }
}

impl fmt::Display for ProcessCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "process {}: {:.2} s, resident {:.1} to {:.1} MiB, anonymous {:.1} to {:.1} MiB",
            self.pid,
            self.cpu_seconds,
            mib(self.before.resident_bytes),
            mib(self.after.resident_bytes),
            mib(self.before.anonymous_bytes),
            mib(self.after.anonymous_bytes)
        )
    }
}
