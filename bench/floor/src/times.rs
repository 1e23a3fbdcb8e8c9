//! How long something took, each time, and what this process used for it.

use std::time::{Duration, Instant};

use keelson_bench::Usage;
use serde_json::{Value, json};

/// What was seen.
pub(crate) struct Times {
    /// Nanoseconds, ascending.
    each: Vec<u64>,
    cpu_seconds: f64,
    operations: u64,
}

impl Times {
    /// Does something again and again, for so long. A call of `work` is `batch` operations, which share its
    /// time.
    pub(crate) fn of(
        time: Duration,
        batch: u64,
        mut work: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Times> {
        let used = || Usage::of(std::process::id());
        let mut each = Vec::new();
        let before = used()?;
        let begin = Instant::now();
        let mut last = begin;
        while last - begin < time {
            work()?;
            let now = Instant::now();
            each.push(u64::try_from((now - last).as_nanos())? / batch);
            last = now;
        }
        let after = used()?;
        each.sort_unstable();
        let seconds = |usage: &Usage| usage.user_seconds + usage.system_seconds;
        Ok(Times {
            operations: each.len() as u64 * batch,
            each,
            cpu_seconds: seconds(&after) - seconds(&before),
        })
    }

    /// In microseconds.
    pub(crate) fn json(&self) -> Value {
        let at = |per_mille: usize| {
            let place =
                (self.each.len() * per_mille / 1_000).min(self.each.len().saturating_sub(1));
            self.each.get(place).map(|nanos| *nanos as f64 / 1e3)
        };
        json!({
            "operations": self.operations,
            "cpu_us_per_operation": self.cpu_seconds * 1e6 / self.operations as f64,
            "latency_us": { "p50": at(500), "p99": at(990) },
        })
    }
}
