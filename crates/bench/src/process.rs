//! What a process has used, as `/proc` tells it.

use std::fs;

use anyhow::Context as _;
use serde::Serialize;

/// Processor time and memory of a process at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Seconds in user mode, in steps of a clock tick (usually 10 ms).
    pub user_seconds: f64,
    /// Seconds in the kernel, in the same steps.
    pub system_seconds: f64,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// The part of it that is no file's.
    pub anonymous_bytes: u64,
}

impl Usage {
    /// Of the process `pid`.
    ///
    /// # Errors
    /// If there is no such process, or it is somebody else's and hidden.
    pub fn of(pid: u32) -> anyhow::Result<Usage> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        let (user, system) = times(&read("stat")?).context("/proc/PID/stat is not as expected")?;
        let tick = rustix::param::clock_ticks_per_second() as f64;
        let status = read("status")?;
        Ok(Usage {
            user_seconds: user as f64 / tick,
            system_seconds: system as f64 / tick,
            resident_bytes: kibibytes(&status, "VmRSS:").unwrap_or(0) * 1024,
            anonymous_bytes: kibibytes(&status, "RssAnon:").unwrap_or(0) * 1024,
        })
    }

    /// Of several processes, in their order.
    ///
    /// # Errors
    /// As for [`Usage::of`].
    pub(crate) fn of_all(pids: &[u32]) -> anyhow::Result<Vec<Usage>> {
        pids.iter().map(|pid| Usage::of(*pid)).collect()
    }

    /// Processor time since `earlier`, in seconds.
    pub(crate) fn cpu_since(&self, earlier: &Usage) -> f64 {
        (self.user_seconds - earlier.user_seconds) + (self.system_seconds - earlier.system_seconds)
    }
}

/// The fields `utime` and `stime` of a `stat` line, in clock ticks. The name of the program, in
/// parentheses, may hold anything.
fn times(stat: &str) -> Option<(u64, u64)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 111 222 0 0 20";
        assert_eq!(times(stat), Some((111, 222)));
        assert_eq!(times("12 (x"), None);
    }

    #[test]
    fn this_process_uses_memory() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.resident_bytes >= usage.anonymous_bytes);
        assert!(usage.anonymous_bytes > 0);
    }
}
