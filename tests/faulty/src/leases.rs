//! Leases under faults: one that is kept alive does not end before its time, one that nobody keeps ends.
//!
//! How long a lease may live without a renewal is counted from when the last one was asked for that was
//! acknowledged, with what the members' clocks have jumped ahead since. So nothing depends on how long
//! faults last, or on how fast the machine is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use keelson_client::{ApiError, Client, Get};
use keelson_sim::history::{Request, Write};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::load;
use crate::members::{ELECTION_TIMEOUT, Members};
use crate::record::Recorder;

/// What a lease that is kept lives for, in seconds, and one that is left.
const KEPT_TTL: i64 = 20;
const LEFT_TTL: i64 = 3;
/// How often each is renewed or looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How often one is left.
const LEAVE_EVERY: u32 = 3;
/// A leader that was paused, and does not know of the next one yet, may still renew: the next one has
/// begun to count before. The longest pause, and what a leader needs to step down.
const SLACK: Duration = ELECTION_TIMEOUT.saturating_mul(8);
/// When all leases that were left must be gone once all is well.
const PATIENCE: Duration = Duration::from_secs(120);
/// Who has asked, in the history.
const WHO: u64 = 3_000;

/// What has come of leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Renewals that were acknowledged.
    pub renewed: u32,
    /// Leases that were to be kept, and ended as they might: nobody could renew them in time.
    pub ended: u32,
    /// Leases that were left.
    pub left: u32,
}

/// Those who keep and leave leases.
#[derive(Debug)]
pub struct Leases {
    stop: Arc<AtomicBool>,
    task: JoinHandle<anyhow::Result<Counted>>,
}

impl Leases {
    /// Begins. `jumped` is how far the members' clocks have jumped ahead in all, in milliseconds.
    ///
    /// # Errors
    /// None, unless addresses of ours cannot be understood.
    pub fn start(
        runtime: &Handle,
        recorder: &Arc<Recorder>,
        jumped: &Arc<AtomicU64>,
    ) -> anyhow::Result<Leases> {
        let stop = Arc::new(AtomicBool::new(false));
        let keeper = Keeper {
            client: load::client(&Members::endpoints(), runtime)?,
            recorder: Arc::clone(recorder),
            jumped: Arc::clone(jumped),
            kept: None,
            left: Vec::new(),
            counted: Counted::default(),
        };
        let task = runtime.spawn(keeper.work(Arc::clone(&stop)));
        Ok(Leases { stop, task })
    }

    /// Ends the leases that were kept, and waits for the end of those that were left.
    ///
    /// # Errors
    /// If one ended too early, or does not end.
    pub async fn finish(self) -> anyhow::Result<Counted> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await?
    }
}

/// A moment, by the system's clock and with what members' clocks had jumped by then.
#[derive(Clone, Copy)]
struct Moment {
    at: Instant,
    jumped: Duration,
}

struct Lease {
    id: i64,
    ttl: Duration,
    /// When the last renewal was asked for that was acknowledged.
    renewed: Moment,
}

struct Keeper {
    client: Client,
    recorder: Arc<Recorder>,
    jumped: Arc<AtomicU64>,
    kept: Option<Lease>,
    left: Vec<Lease>,
    counted: Counted,
}

impl Keeper {
    async fn work(mut self, stop: Arc<AtomicBool>) -> anyhow::Result<Counted> {
        let mut turn = 0;
        while !stop.load(Ordering::SeqCst) {
            self.keep().await?;
            if turn % LEAVE_EVERY == 0 {
                self.leave().await;
            }
            self.look_at_the_last().await?;
            turn += 1;
            sleep(EVERY).await;
        }
        timeout(PATIENCE, self.end())
            .await
            .context("leases that nobody keeps are still there")??;
        Ok(self.counted)
    }

    fn now(&self) -> Moment {
        Moment {
            at: Instant::now(),
            jumped: Duration::from_millis(self.jumped.load(Ordering::SeqCst)),
        }
    }

    /// Grants a lease with a key; none where an error leaves it open.
    async fn grant(&mut self, ttl: i64, name: &str) -> Option<Lease> {
        let renewed = self.now();
        let id = self.client.lease_grant(ttl, 0).await.ok()?.id;
        let unique = self.recorder.unique();
        let put = Write::Put {
            key: format!("lease/{name}/{id}").into_bytes(),
            value: format!("l{unique}").into_bytes(),
            lease: id,
        };
        // What an error means is recorded.
        let _put = self
            .recorder
            .call(WHO, &self.client, Request::Write(put))
            .await;
        Some(Lease {
            id,
            ttl: Duration::from_secs(ttl.unsigned_abs()),
            renewed,
        })
    }

    async fn keep(&mut self) -> anyhow::Result<()> {
        let Some(lease) = &self.kept else {
            self.kept = self.grant(KEPT_TTL, "kept").await;
            return Ok(());
        };
        let asked = self.now();
        match self.client.keep_alive_once(lease.id).await {
            Ok(_) => {
                self.counted.renewed += 1;
                if let Some(lease) = &mut self.kept {
                    lease.renewed = asked;
                }
            }
            Err(error) if error.api() == Some(ApiError::LeaseNotFound) => {
                check_end(lease, self.now(), SLACK)?;
                self.counted.ended += 1;
                self.kept = None;
            }
            Err(_) => {}
        }
        Ok(())
    }

    async fn leave(&mut self) {
        if let Some(lease) = self.grant(LEFT_TTL, "left").await {
            self.counted.left += 1;
            self.left.push(lease);
        }
    }

    /// That the lease that was left last is there, if its time is not over.
    async fn look_at_the_last(&mut self) -> anyhow::Result<()> {
        let Some(lease) = self.left.last() else {
            return Ok(());
        };
        if let Ok(left) = self.client.lease_time_to_live(lease.id, false).await
            && left.ttl < 0
        {
            check_end(lease, self.now(), ELECTION_TIMEOUT)?;
        }
        Ok(())
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        if let Some(lease) = self.kept.take() {
            while let Err(error) = self.client.lease_revoke(lease.id).await {
                if error.api() == Some(ApiError::LeaseNotFound) {
                    break;
                }
                sleep(EVERY / 10).await;
            }
        }
        for lease in &self.left {
            loop {
                let left = self.client.lease_time_to_live(lease.id, true).await;
                if left.is_ok_and(|left| left.ttl < 0) {
                    break;
                }
                sleep(EVERY / 10).await;
            }
        }
        // With the leases their keys are gone.
        let keys = loop {
            match self.client.get(Get::prefix("lease/left/")).await {
                Ok(answer) => break answer.kvs,
                Err(_) => sleep(EVERY / 10).await,
            }
        };
        let mut attached = keys.iter().filter(|kv| kv.lease != 0);
        if let Some(kv) = attached.next() {
            bail!("the lease of {:?} is gone, and the key is not", kv.key);
        }
        Ok(())
    }
}

/// That a lease that is found ended has had its time.
fn check_end(lease: &Lease, found: Moment, slack: Duration) -> anyhow::Result<()> {
    let lived = found.at.saturating_duration_since(lease.renewed.at)
        + found.jumped.saturating_sub(lease.renewed.jumped);
    ensure!(
        lived + slack >= lease.ttl,
        "a lease of {:?} has ended {lived:?} after it was renewed",
        lease.ttl
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_may_end_when_its_time_is_over_by_the_clock_that_went_fastest() {
        let start = Instant::now();
        let at = |seconds, jumped| Moment {
            at: start + Duration::from_secs(seconds),
            jumped: Duration::from_secs(jumped),
        };
        let lease = Lease {
            id: 1,
            ttl: Duration::from_secs(20),
            renewed: at(0, 5),
        };
        let slack = Duration::from_secs(2);
        check_end(&lease, at(17, 5), slack).unwrap_err();
        check_end(&lease, at(18, 5), slack).unwrap();
        check_end(&lease, at(3, 19), slack).unwrap_err();
        check_end(&lease, at(3, 20), slack).unwrap();
    }
}
