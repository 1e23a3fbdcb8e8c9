//! How long it takes after a fault until writes go on.
//!
//! The time runs from the moment at which the fault is taken back: the processes that were killed are
//! started (so their start counts), the paused go on, the links are mended, the disks are well, the clock
//! has jumped. It ends when a write through each of the three members has been acknowledged. The writes
//! are tried anew every tenth of a second, over new connections: what is measured is the cluster, not a
//! client that waits before it dials again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use keelson_client::{Client, Options};
use keelson_sim::history::Request;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use crate::members::{ELECTION_TIMEOUT, MEMBERS, Members};
use crate::record::{Recorder, put};

/// What each must keep.
pub const ALWAYS: Duration = ELECTION_TIMEOUT.saturating_mul(4);
/// What half of them must keep.
pub const MEDIAN: Duration = ELECTION_TIMEOUT.saturating_mul(2);

/// After so long it is said that nothing heals.
const PATIENCE: Duration = Duration::from_secs(60);
const TRY_EVERY: Duration = Duration::from_millis(100);
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
/// What the number of a member is added to, for the client that tries it.
const WHO: u64 = 1_000;

/// Heals.
#[derive(Clone, Debug)]
pub struct Heal {
    /// Of which fault.
    pub fault: &'static str,
    /// Until the first member took a write.
    pub first: Duration,
    /// Until each had taken one.
    pub all: Duration,
    /// How long the machine stood still meanwhile.
    pub stalled: Duration,
}

/// Waits until a write through each member was acknowledged; how long that took, for each.
///
/// # Errors
/// If it does not happen in a minute.
pub async fn measure(recorder: &Arc<Recorder>, since: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut members = JoinSet::new();
    for number in 0..MEMBERS {
        let recorder = Arc::clone(recorder);
        members.spawn(async move {
            let at = timeout(PATIENCE, first_write(number, recorder)).await;
            let at = at.with_context(|| format!("no write through member {number}"))??;
            anyhow::Ok(at.saturating_duration_since(since))
        });
    }
    let healed = members.join_all().await;
    healed.into_iter().collect()
}

/// When a write through a member was acknowledged for the first time from now on.
async fn first_write(number: usize, recorder: Arc<Recorder>) -> anyhow::Result<Instant> {
    let mut attempts = JoinSet::new();
    let mut again = interval(TRY_EVERY);
    loop {
        tokio::select! {
            _ = again.tick() => {
                attempts.spawn(attempt(number, Arc::clone(&recorder)));
            }
            Some(done) = attempts.join_next() => {
                if let Ok(at) = done? {
                    return Ok(at);
                }
            }
        }
    }
}

async fn attempt(number: usize, recorder: Arc<Recorder>) -> anyhow::Result<Instant> {
    let mut options = Options::default();
    options.connect_timeout = TRY_TIMEOUT;
    options.call_timeout = TRY_TIMEOUT;
    let client = Client::connect_with(&Members::client_url(number), options).await?;
    let value = recorder.unique().to_string();
    let request = Request::Write(put(format!("heal/{number}"), value));
    recorder.call(WHO + number as u64, &client, request).await?;
    Ok(Instant::now())
}

/// That the heals keep what is demanded. What the machine itself stood still is not counted.
///
/// # Errors
/// Which one took too long, or that half of them did.
pub fn check(heals: &[Heal]) -> anyhow::Result<()> {
    for heal in heals {
        if heal.all > ALWAYS + heal.stalled {
            bail!(
                "after {} it took {:?} until each member took a write, not {ALWAYS:?}; the machine stood \
                 still for {:?}",
                heal.fault,
                heal.all,
                heal.stalled
            );
        }
    }
    let median = median(
        heals
            .iter()
            .map(|heal| heal.all.saturating_sub(heal.stalled)),
    );
    if median > MEDIAN {
        bail!("half of the faults took {median:?} to heal, or longer, not {MEDIAN:?}");
    }
    Ok(())
}

/// The middle one, or zero of none.
pub fn median(times: impl IntoIterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.into_iter().collect();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heal(all: Duration, stalled: Duration) -> Heal {
        Heal {
            fault: "a fault",
            first: Duration::ZERO,
            all,
            stalled,
        }
    }

    #[test]
    fn one_that_takes_too_long_fails_and_so_does_a_slow_half() {
        let (zero, moment) = (Duration::ZERO, Duration::from_millis(1));
        let quick = heal(MEDIAN, zero);
        check(&[]).unwrap();
        check(&[quick.clone(), quick.clone(), heal(ALWAYS, zero)]).unwrap();
        check(&[quick.clone(), quick.clone(), heal(ALWAYS + moment, zero)]).unwrap_err();
        check(&[quick.clone(), quick.clone(), heal(ALWAYS + moment, moment)]).unwrap();
        check(&[
            quick,
            heal(MEDIAN + moment, zero),
            heal(MEDIAN + moment, zero),
        ])
        .unwrap_err();
    }
}
