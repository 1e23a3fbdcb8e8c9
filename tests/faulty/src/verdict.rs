//! What must hold at the end: the members are equal, nothing that was acknowledged is lost, revisions are
//! dense, the calls of all clients are linearizable, and watchers got what they are promised.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use keelson_client::Client;
use keelson_sim::history::{History, Operation, Request};
use keelson_sim::search::Limits;
use keelson_sim::watch_check::Watch;
use keelson_sim::{linear, watch_check};
use tokio::runtime::Handle;

use crate::compactions::{Asked, Compactions};
use crate::doctor;
use crate::leases::{Counted, Leases};
use crate::load::{self, Load};
use crate::members::{MEMBERS, Members};
use crate::record::Recorder;
use crate::watchers::{self, FIRST, Observed, Watched, Watchers};

/// What was recorded in a run.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// What clients did, and what each revision has changed by the members' own account.
    pub history: History,
    /// What watchers got.
    pub watches: Vec<Watched>,
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
    /// How often one of them came too late for what was compacted.
    pub too_late: usize,
    /// Compactions that were acknowledged.
    pub compactions: u32,
    /// What came of leases.
    pub leases: Counted,
    /// The members' hash.
    pub hash: u32,
    /// Ways in which the records were spoilt, each of which was found.
    pub doctored: usize,
}

/// Those who are at work until the end.
#[derive(Debug)]
pub struct Work {
    /// Clients that write and read.
    pub load: Load,
    /// Clients that watch.
    pub watchers: Watchers,
    /// Clients with leases.
    pub leases: Leases,
    /// Whoever compacts.
    pub compactions: Compactions,
    /// What was asked to be compacted.
    pub asked: Asked,
}

/// How long a member may take for what is asked at the end, on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(60);

fn patient(number: usize) -> anyhow::Result<Client> {
    let client = load::client(&Members::client_url(number), &Handle::current())?;
    Ok(client.with_timeout(PATIENCE))
}

/// The client of the last reads.
const WHO: u64 = 2_000;

/// Ends load and watchers, and judges.
///
/// # Errors
/// What does not hold.
pub async fn conclude(recorder: &Arc<Recorder>, work: Work) -> anyhow::Result<Verdict> {
    let Work {
        load,
        watchers,
        leases,
        compactions,
        asked,
    } = work;
    load.finish().await?;
    let archive = compactions.finish().await?;
    let leases = leases.finish().await?;
    let mut last = FIRST - 1;
    for number in 0..MEMBERS {
        let client = patient(number)?;
        let read = Request::Read {
            key: None,
            serializable: false,
        };
        let answer = recorder.call(WHO, &client, read).await;
        let answer = answer.with_context(|| format!("the last read through member {number}"))?;
        last = last.max(answer.revision);
    }
    let observed = equal_histories(archive.observed, asked.get(), last).await?;
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
        events: recorded.watches.iter().map(|it| events(&it.watch)).sum(),
        too_late: recorded.watches.iter().filter(|it| !it.is_complete).count(),
        compactions: archive.count,
        leases,
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
    for (number, watched) in recorded.watches.iter().enumerate() {
        let to = watched.is_complete.then_some(recorded.last);
        let checked = watch_check::check(&watched.watch, observed, to);
        checked.map_err(|reason| anyhow::anyhow!("watcher {number}: {reason}"))?;
    }
    match linear::check(&recorded.history, Limits::default()) {
        linear::Verdict::Linearizable => Ok(()),
        linear::Verdict::Violation(reason) => bail!("not linearizable: {reason}"),
        linear::Verdict::Unknown => bail!("the linearizability search gave up"),
    }
}

/// What each revision has changed: as it was written down before it was compacted, and of the rest, after
/// `compacted`, all members tell the same.
async fn equal_histories(
    archived: Observed,
    compacted: i64,
    last: i64,
) -> anyhow::Result<Observed> {
    let from = FIRST.max(compacted + 1);
    let mut observed = archived;
    for number in 0..MEMBERS {
        let told = watchers::history(number, from, last).await?;
        for revision in from..=last {
            let (known, told) = (observed.get(&revision), told.get(&revision));
            if known.is_some() && known != told {
                bail!("revision {revision} was {known:?}, and is {told:?} on member {number}");
            }
        }
        observed.extend(told);
    }
    Ok(observed)
}

async fn equal_hashes(last: i64) -> anyhow::Result<u32> {
    let mut hashes = Vec::new();
    for number in 0..MEMBERS {
        let client = patient(number)?;
        hashes.push(client.hash_kv(last).await?.hash);
    }
    ensure!(
        hashes.iter().all(|hash| *hash == hashes[0]),
        "HashKV at {last} is not equal: {hashes:x?}"
    );
    Ok(hashes[0])
}
