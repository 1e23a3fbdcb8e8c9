//! File descriptors of the process: how many connections they are enough for, how many are used, and a
//! warning when few are left.

use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use tokio::sync::Semaphore;

use crate::Error;

/// How often to look (`spec/formats.md` 8).
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// File descriptors that are no client's (api.md 4.1).
const RESERVED_FILES: usize = 150;

/// Which part of what may be opened is for connections of other members.
const PEERS_SHARE: usize = 8;

/// Which part is for connections to listeners for metrics, and how many these are at most.
const METRICS_SHARE: usize = 16;
const METRICS_MAX: usize = 256;

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionsMax {
    pub(crate) clients: usize,
    /// At listeners for nothing but metrics; 0 where there are none.
    pub(crate) metrics: usize,
    pub(crate) peers: usize,
}

/// How many connections there may be with so many open files, with listeners for metrics or without.
/// Each kind has files of its own: whatever comes to any port, the log has room for its next segment.
///
/// # Errors
///
/// [`Error::TooFewFiles`]
pub(crate) fn connections_max(limit: Option<u64>, metrics: bool) -> Result<ConnectionsMax, Error> {
    let limit = limit.map_or(usize::MAX, |it| usize::try_from(it).unwrap_or(usize::MAX));
    if limit <= RESERVED_FILES {
        return Err(Error::TooFewFiles {
            limit,
            reserved: RESERVED_FILES,
        });
    }
    let peers = (limit / PEERS_SHARE).clamp(1, keelson_transport::CONNECTIONS_MAX);
    let metrics = if metrics {
        (limit / METRICS_SHARE).clamp(1, METRICS_MAX)
    } else {
        0
    };
    let left = (limit - RESERVED_FILES).saturating_sub(peers + metrics);
    Ok(ConnectionsMax {
        clients: left.clamp(1, Semaphore::MAX_PERMITS),
        metrics,
        peers,
    })
}

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
    fn connections_leave_files_for_the_log() {
        for (limit, clients, metrics, peers) in [
            (151, 1, 0, 18),
            (1024, 1024 - 150 - 128, 0, 128),
            (1024, 1024 - 150 - 128 - 64, 64, 128),
            (20_000, 20_000 - 150 - 2048, 0, 2048),
            (20_000, 20_000 - 150 - 2048 - 256, 256, 2048),
        ] {
            let all = ConnectionsMax {
                clients,
                metrics,
                peers,
            };
            assert_eq!(connections_max(Some(limit), metrics > 0).unwrap(), all);
        }
        assert_eq!(
            connections_max(None, true).unwrap().clients,
            Semaphore::MAX_PERMITS
        );
        let few = connections_max(Some(150), false).unwrap_err();
        assert!(few.to_string().contains("file descriptor limit"), "{few}");
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
