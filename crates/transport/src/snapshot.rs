//! Snapshots in requests of their own: a message with its length before it, and then the database's
//! file, streamed from whoever has it to whoever stores it.
//!
//! 1. No more of a file than a few parts is in memory at once, on either side.
//! 2. A file that cannot be read to its end breaks the connection: etcd takes whatever ends well.
//! 3. Between members of this kind the length goes ahead in a header and a checksum ([`Sum`])
//!    follows in a trailer; etcd sends neither, and looks at neither.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::HeaderName;

use crate::stats::{PeerStats, SnapshotStats, add};

mod receive;
mod send;
mod sum;

pub(crate) use receive::receive;
pub(crate) use send::send;
use sum::Sum;

const PATH: &str = "/raft/snapshot";

/// Header: how many bytes the file has.
const FILE_BYTES: HeaderName = HeaderName::from_static("x-keelson-snapshot-bytes");

/// Trailer: the file's checksum, in hex.
const FILE_SUM: HeaderName = HeaderName::from_static("x-keelson-snapshot-sum");

/// How much of a file goes from thread to thread at once, in bytes: each time somebody is woken.
const PART_BYTES: usize = 256 << 10;

/// How many parts may wait for the other side of a channel.
const PARTS_WAITING: usize = 4;

/// Counts a transfer from its beginning to its end, whichever way that comes.
struct Transfer {
    stats: Arc<PeerStats>,
    of: fn(&PeerStats) -> &SnapshotStats,
    start: Instant,
    succeeded: bool,
}

impl Transfer {
    fn begin(stats: &Arc<PeerStats>, of: fn(&PeerStats) -> &SnapshotStats) -> Transfer {
        of(stats).in_flight.fetch_add(1, Ordering::Relaxed);
        Transfer {
            stats: Arc::clone(stats),
            of,
            start: Instant::now(),
            succeeded: false,
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let stats = (self.of)(&self.stats);
        stats.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.succeeded {
            add(&stats.successes, 1);
            stats.took.observe(self.start.elapsed());
        } else {
            add(&stats.failures, 1);
        }
    }
}

/// A size as logs show it: powers of 1000, one digit after the point below 10.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut tenths, mut unit) = (u128::from(bytes) * 10, 0);
    let mut divisor = 1_u128;
    while tenths / divisor >= 10_000 {
        divisor *= 1000;
        unit += 1;
    }
    tenths = (tenths + divisor / 2) / divisor;
    if tenths < 100 && unit > 0 {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    } else {
        format!("{} {}", (tenths + 5) / 10, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_in_etcds_log() {
        for (bytes, text) in [
            (0, "0 B"),
            (9009, "9.0 kB"),
            (82_854_982, "83 MB"),
            (3_067_904, "3.1 MB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
