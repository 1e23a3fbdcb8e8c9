//! Clients that watch, through one member or through all.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use keelson_client::etcdserverpb::WatchCreateRequest;
use keelson_client::{Batch, Client, Error, Span, Watch, Watcher};
use keelson_sim::history::Change;
use keelson_sim::watch_check;
use keelson_sim::watch_check::Sent;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::compactions::Asked;
use crate::load;
use crate::members::{MEMBERS, Members};
use crate::record::change;

/// The first revision of a new cluster that changes something.
pub const FIRST: i64 = 2;
/// How often a watcher asks how far it is.
const ASK_EVERY: Duration = Duration::from_millis(700);
/// How long the last events may take once all is well.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often it is looked whether they came.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What changed at each revision.
pub type Observed = BTreeMap<i64, Vec<Change>>;

/// What one watcher got, from where it began until it ended.
#[derive(Clone, Debug)]
pub struct Watched {
    /// What it got.
    pub watch: watch_check::Watch,
    /// Whether it ended because all was there. Else what it needed next was compacted.
    pub is_complete: bool,
}

/// Watchers at work.
#[derive(Debug)]
pub struct Watchers {
    each: Vec<Watching>,
}

#[derive(Debug)]
struct Watching {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

struct Seen {
    /// What it got until it needed what was compacted, each time.
    before: Vec<Watched>,
    watch: watch_check::Watch,
    /// It has everything before this.
    next: i64,
    /// Where it was when it asked last.
    endpoint: Option<String>,
    ended: Option<String>,
}

impl Watchers {
    /// Begins, at the first revision: one watcher of everything at each member, and two of less that go
    /// to whichever member they find, and leave one that knows no leader.
    ///
    /// # Errors
    /// If one cannot watch.
    pub fn start(runtime: &Handle, asked: &Asked) -> anyhow::Result<Watchers> {
        let mut each = Vec::new();
        for number in 0..MEMBERS {
            each.push(begin(
                runtime,
                &Members::client_url(number),
                Span::all(),
                false,
                asked,
            )?);
        }
        let all = Members::endpoints();
        each.push(begin(runtime, &all, Span::key("k0"), true, asked)?);
        each.push(begin(runtime, &all, Span::range("k2", "k6"), true, asked)?);
        Ok(Watchers { each })
    }

    /// Ends, when each has everything up to a revision; what each has got.
    ///
    /// # Errors
    /// If one does not get it in time, or has ended by itself.
    pub async fn finish(self, last: i64) -> anyhow::Result<Vec<Watched>> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut watches = Vec::new();
        for (number, watching) in self.each.into_iter().enumerate() {
            let watched = loop {
                let looked = watching.look(last);
                if let Some(watched) = looked.with_context(|| format!("watcher {number}"))? {
                    break watched;
                }
                let late = tokio::time::Instant::now() > deadline;
                ensure!(!late, "watcher {number} needs {last}: {:?}", watching.seen);
                tokio::time::sleep(LOOK_EVERY).await;
            };
            watches.extend(watched);
            watching.task.abort();
        }
        Ok(watches)
    }
}

impl Watching {
    /// What it has got, if that is everything up to a revision.
    fn look(&self, last: i64) -> anyhow::Result<Option<Vec<Watched>>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = &seen.ended {
            bail!("it has ended: {reason}");
        }
        Ok((seen.next > last).then(|| {
            let mut all = seen.before.clone();
            all.push(Watched {
                watch: seen.watch.clone(),
                is_complete: true,
            });
            all
        }))
    }
}

fn begin(
    runtime: &Handle,
    endpoints: &str,
    span: Span,
    require_leader: bool,
    asked: &Asked,
) -> anyhow::Result<Watching> {
    let client = load::client(endpoints, runtime)?.with_require_leader(require_leader);
    let watch = Watch::span(span).start_revision(FIRST).progress_notify();
    let request = WatchCreateRequest::from(watch);
    let seen = Arc::new(Mutex::new(Seen {
        before: Vec::new(),
        watch: watch_check::Watch {
            key: request.key.to_vec(),
            range_end: request.range_end.to_vec(),
            start: FIRST,
            sent: Vec::new(),
        },
        next: FIRST,
        endpoint: None,
        ended: None,
    }));
    let following = Following {
        client,
        request,
        asked: asked.clone(),
        seen: Arc::clone(&seen),
    };
    let watcher = runtime.block_on(following.client.watch(following.request.clone()))?;
    let task = runtime.spawn(following.follow(watcher));
    Ok(Watching { seen, task })
}

/// Whoever watches, from one compaction that it came too late for to the next.
struct Following {
    client: Client,
    request: WatchCreateRequest,
    asked: Asked,
    seen: Arc<Mutex<Seen>>,
}

impl Following {
    async fn follow(mut self, mut watcher: Watcher) {
        loop {
            let ended = self.until_it_ends(&mut watcher).await;
            let goes_on = match ended {
                Some(Error::WatchCompacted {
                    needed,
                    compact_revision,
                }) => self.goes_on(needed, compact_revision).await,
                Some(error) => Err(error.to_string()),
                None => return,
            };
            match goes_on {
                Ok(next) => watcher = next,
                Err(reason) => {
                    self.lock().ended = Some(reason);
                    return;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn until_it_ends(&self, watcher: &mut Watcher) -> Option<Error> {
        let mut ask = tokio::time::interval(ASK_EVERY);
        loop {
            let next = tokio::select! {
                next = watcher.next() => Some(next),
                _ = ask.tick() => None,
            };
            let Some(next) = next else {
                // A stream that has just broken forgets the question: it is asked again.
                let _asked = watcher.request_progress().await;
                self.lock().endpoint = watcher.endpoint().map(str::to_owned);
                continue;
            };
            match next {
                Ok(Some(batch)) => self.lock().take(batch),
                Ok(None) => return None,
                Err(error) => return Some(error),
            }
        }
    }

    /// Begins anew at the first revision that is there, if what it was told can be true.
    async fn goes_on(&mut self, needed: i64, first: i64) -> Result<Watcher, String> {
        let asked = self.asked.get();
        {
            let mut seen = self.lock();
            if needed >= first || first > asked || needed != seen.next {
                return Err(format!(
                    "it needed {}, and was told that {needed} is gone and {first} is not; {asked} was \
                     asked to be compacted",
                    seen.next
                ));
            }
            let anew = watch_check::Watch {
                start: first,
                sent: Vec::new(),
                ..seen.watch.clone()
            };
            let watch = std::mem::replace(&mut seen.watch, anew);
            seen.next = first;
            seen.before.push(Watched {
                watch,
                is_complete: false,
            });
        }
        self.request.start_revision = first;
        loop {
            match self.client.watch(self.request.clone()).await {
                Ok(watcher) => return Ok(watcher),
                // Whoever is away is waited for.
                Err(error @ Error::WatchCanceled { .. }) => return Err(error.to_string()),
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen")
            .field("next", &self.next)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Seen {
    fn take(&mut self, batch: Batch) {
        let events: Vec<(i64, Change)> = batch.events.iter().map(change).collect();
        match events.last() {
            Some((revision, _)) => {
                self.next = revision + 1;
                self.watch.sent.push(Sent::Events(events));
            }
            None => {
                self.next = self.next.max(batch.revision + 1);
                self.watch.sent.push(Sent::Progress(batch.revision));
            }
        }
    }
}

/// What a member says that each revision has changed, from one to another.
///
/// # Errors
/// If it cannot be watched, or does not tell all of it in time.
pub async fn history(number: usize, from: i64, last: i64) -> anyhow::Result<Observed> {
    let client = load::client(&Members::client_url(number), &Handle::current())?;
    let client = client.with_timeout(PATIENCE);
    let read = timeout(PATIENCE, read_history(&client, from, last)).await;
    let read =
        read.with_context(|| format!("member {number} does not tell its history up to {last}"))?;
    Ok(read?)
}

/// What revisions have changed, from one to another, and perhaps some more.
///
/// # Errors
/// If it cannot be watched.
pub async fn read_history(client: &Client, from: i64, last: i64) -> Result<Observed, Error> {
    let mut observed = Observed::new();
    if from > last {
        return Ok(observed);
    }
    let mut watcher = client.watch(Watch::all().start_revision(from)).await?;
    while watcher.next_revision() <= last {
        let batch = watcher.next().await?.unwrap_or_default();
        for (revision, change) in batch.events.iter().map(change) {
            observed.entry(revision).or_default().push(change);
        }
    }
    Ok(observed)
}
