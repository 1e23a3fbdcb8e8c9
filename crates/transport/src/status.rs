//! Whether a peer is in reach, said in the log when it changes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use keelson_proto::ids::MemberId;

use crate::stats::{PeerStats, add};

/// Since when a peer is in reach.
#[derive(Debug)]
pub(crate) struct Status {
    member: MemberId,
    since: Mutex<Option<Instant>>,
    stats: Arc<PeerStats>,
}

impl Status {
    pub(crate) fn new(member: MemberId, stats: Arc<PeerStats>) -> Status {
        Status {
            member,
            since: Mutex::new(None),
            stats,
        }
    }

    /// Something got through.
    pub(crate) fn activate(&self) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_none() {
            *since = Some(Instant::now());
            self.stats.active.store(true, Ordering::Relaxed);
            tracing::info!("peer-id" = %self.member, "peer became active");
        }
    }

    /// Something did not.
    pub(crate) fn deactivate(&self, source: &str, action: &str, reason: &str) {
        let error = format!("failed to {action} {} on {source} ({reason})", self.member);
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.take().is_some() {
            self.stats.active.store(false, Ordering::Relaxed);
            add(&self.stats.disconnects, 1);
            tracing::warn!(
                "peer-id" = %self.member,
                error,
                "peer became inactive (message send to peer failed)"
            );
        } else {
            tracing::debug!("peer-id" = %self.member, error, "peer deactivated again");
        }
    }

    /// The peer is gone for good.
    pub(crate) fn retire(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.stats.active.store(false, Ordering::Relaxed);
    }

    pub(crate) fn since(&self) -> Option<Instant> {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
