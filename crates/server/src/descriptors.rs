//! File descriptors of the process: how many are used, and a warning when few are left.

use std::time::Duration;

use rustix::process::{Resource, getrlimit};

/// How often to look (`spec/formats.md` 8).
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// How many are used, where the system tells.
pub(crate) fn used() -> Option<u64> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?;
    // The listing itself is one of them.
    u64::try_from(open.count()).ok()?.checked_sub(1)
}

/// How many there may be; `None` for any number.
pub(crate) fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

fn are_few(used: u64, limit: u64) -> bool {
    used >= limit / 5 * 4
}

/// Warns at once and every ten minutes of too few that are left. Runs without end.
pub(crate) async fn watch() {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        let (Some(used), Some(limit)) = (used(), limit()) else {
            return;
        };
        if are_few(used, limit) {
            tracing::warn!(used, limit, "80% of file descriptors are used");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_fifths_are_few() {
        assert!(!are_few(79, 100));
        assert!(are_few(80, 100));
        assert!(are_few(81, 102), "the fifth is rounded down");
    }

    #[test]
    fn an_open_file_is_counted() {
        let before = used().unwrap();
        let files: Vec<_> = (0..40)
            .map(|_| std::fs::File::open("/proc/self/status").unwrap())
            .collect();
        // Other tests open and close some meanwhile, but not that many.
        assert!(used().unwrap() >= before + 20);
        drop(files);
    }
}
