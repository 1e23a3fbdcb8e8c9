//! What must hold at the end: the members are equal, nothing that was acknowledged is lost, revisions are
//! dense, the calls of all clients are linearizable, and watchers got what they are promised.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use keelson_sim::history::{History, Operation, Request};
use keelson_sim::search::Limits;
use keelson_sim::watch_check::Watch;
use keelson_sim::{linear, watch_check};
use tokio::runtime::Handle;

use crate::doctor;
use crate::load::{self, Load};
use crate::members::{MEMBERS, Members};
use crate::record::Recorder;
use crate::watchers::{self, FIRST, Observed, Watchers};

/// What was recorded in a run.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// What clients did, and what each revision has changed by the members' own account.
    pub history: History,
    /// What watchers got.
    pub watches: Vec<Watch>,
    /// The last revision.
    pub last: i64,
}

/// What came of it, for the report.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// Calls that are in the history.
    pub operations: usize,
    /// Those without an answer.
    pub unanswered: usize,
    /// The longest time in which nobody was acknowledged a write.
    pub silence: Duration,
    /// Revisions.
    pub revisions: i64,
    /// Events that all watchers together got.
    pub events: usize,
    /// The members' hash.
    pub hash: u32,
    /// Ways in which the records were spoilt, each of which was found.
    pub doctored: usize,
}

/// The client of the last reads.
const WHO: u64 = 2_000;

/// Ends load and watchers, and judges.
///
/// # Errors
/// What does not hold.
pub async fn conclude(
    recorder: &Arc<Recorder>,
    load: Load,
    watchers: Watchers,
) -> anyhow::Result<Verdict> {
    load.finish().await?;
    let mut last = FIRST - 1;
    for number in 0..MEMBERS {
        let client = load::client(&Members::client_url(number), &Handle::current())?;
        let read = Request::Read {
            key: None,
            serializable: false,
        };
        let answer = recorder.call(WHO, &client, read).await;
        let answer = answer.with_context(|| format!("the last read through member {number}"))?;
        last = last.max(answer.revision);
    }
    let observed = equal_histories(last).await?;
    let watches = watchers.finish(last).await?;
    let hash = equal_hashes(last).await?;
    let recorded = Recorded {
        history: History {
            operations: recorder.operations(),
            observed,
        },
        watches,
        last,
    };
    judge(&recorded)?;
    let doctored = doctor::check(&recorded)?;
    let operations = &recorded.history.operations;
    Ok(Verdict {
        operations: operations.len(),
        unanswered: operations.iter().filter(|it| it.answer.is_none()).count(),
        silence: silence(operations),
        revisions: last,
        events: recorded.watches.iter().map(events).sum(),
        hash,
        doctored,
    })
}

fn silence(operations: &[Operation]) -> Duration {
    let writes = operations
        .iter()
        .filter(|it| !matches!(it.request, Request::Read { .. }));
    let mut answered: Vec<u64> = writes
        .filter_map(|it| Some(it.answer.as_ref()?.0))
        .collect();
    answered.sort_unstable();
    let longest = answered.windows(2).map(|pair| pair[1] - pair[0]).max();
    Duration::from_nanos(longest.unwrap_or_default())
}

fn events(watch: &Watch) -> usize {
    let of = |sent: &watch_check::Sent| match sent {
        watch_check::Sent::Events(events) => events.len(),
        _ => 0,
    };
    watch.sent.iter().map(of).sum()
}

/// Judges what was recorded, as plain data.
///
/// # Errors
/// What does not hold.
pub fn judge(recorded: &Recorded) -> anyhow::Result<()> {
    let observed = &recorded.history.observed;
    if let Some(missing) = (FIRST..=recorded.last).find(|it| !observed.contains_key(it)) {
        bail!("nothing has changed at revision {missing}");
    }
    for (number, watch) in recorded.watches.iter().enumerate() {
        let checked = watch_check::check(watch, observed, Some(recorded.last));
        checked.map_err(|reason| anyhow::anyhow!("watcher {number}: {reason}"))?;
    }
    match linear::check(&recorded.history, Limits::default()) {
        linear::Verdict::Linearizable => Ok(()),
        linear::Verdict::Violation(reason) => bail!("not linearizable: {reason}"),
        linear::Verdict::Unknown => bail!("the linearizability search gave up"),
    }
}

/// What each revision has changed, of which all members tell the same.
async fn equal_histories(last: i64) -> anyhow::Result<Observed> {
    let observed = watchers::history(0, last).await?;
    for number in 1..MEMBERS {
        let other = watchers::history(number, last).await?;
        let differs = (FIRST..=last).find(|it| observed.get(it) != other.get(it));
        if let Some(revision) = differs {
            bail!(
                "revision {revision} is {:?} on member 0 and {:?} on member {number}",
                observed.get(&revision),
                other.get(&revision)
            );
        }
    }
    Ok(observed)
}

async fn equal_hashes(last: i64) -> anyhow::Result<u32> {
    let mut hashes = Vec::new();
    for number in 0..MEMBERS {
        let client = load::client(&Members::client_url(number), &Handle::current())?;
        hashes.push(client.hash_kv(last).await?.hash);
    }
    ensure!(
        hashes.iter().all(|hash| *hash == hashes[0]),
        "HashKV at {last} is not equal: {hashes:x?}"
    );
    Ok(hashes[0])
}
