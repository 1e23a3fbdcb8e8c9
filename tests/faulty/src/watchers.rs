//! Clients that watch, through one member or through all.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use keelson_client::etcdserverpb::WatchCreateRequest;
use keelson_client::{Batch, Error, Span, Watch, Watcher};
use keelson_sim::history::Change;
use keelson_sim::watch_check;
use keelson_sim::watch_check::Sent;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::load;
use crate::members::{MEMBERS, Members};
use crate::record::change;

/// The first revision of a new cluster that changes something.
pub const FIRST: i64 = 2;
/// How often a watcher asks how far it is.
const ASK_EVERY: Duration = Duration::from_millis(700);
/// How long the last events may take once all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked whether they came.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What changed at each revision.
pub type Observed = BTreeMap<i64, Vec<Change>>;

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
    pub fn start(runtime: &Handle) -> anyhow::Result<Watchers> {
        let mut each = Vec::new();
        for number in 0..MEMBERS {
            each.push(begin(
                runtime,
                &Members::client_url(number),
                Span::all(),
                false,
            )?);
        }
        let all = Members::endpoints();
        each.push(begin(runtime, &all, Span::key("k0"), true)?);
        each.push(begin(runtime, &all, Span::range("k2", "k6"), true)?);
        Ok(Watchers { each })
    }

    /// Ends, when each has everything up to a revision; what each has got.
    ///
    /// # Errors
    /// If one does not get it in half a minute, or has ended by itself.
    pub async fn finish(self, last: i64) -> anyhow::Result<Vec<watch_check::Watch>> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut watches = Vec::new();
        for (number, watching) in self.each.into_iter().enumerate() {
            let watch = loop {
                let looked = watching.look(last);
                if let Some(watch) = looked.with_context(|| format!("watcher {number}"))? {
                    break watch;
                }
                let late = tokio::time::Instant::now() > deadline;
                ensure!(!late, "watcher {number} needs {last}: {:?}", watching.seen);
                tokio::time::sleep(LOOK_EVERY).await;
            };
            watches.push(watch);
            watching.task.abort();
        }
        Ok(watches)
    }
}

impl Watching {
    /// What it has got, if that is everything up to a revision.
    fn look(&self, last: i64) -> anyhow::Result<Option<watch_check::Watch>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = &seen.ended {
            bail!("it has ended: {reason}");
        }
        Ok((seen.next > last).then(|| seen.watch.clone()))
    }
}

fn begin(
    runtime: &Handle,
    endpoints: &str,
    span: Span,
    require_leader: bool,
) -> anyhow::Result<Watching> {
    let client = load::client(endpoints, runtime)?.with_require_leader(require_leader);
    let watch = Watch::span(span).start_revision(FIRST).progress_notify();
    let request = WatchCreateRequest::from(watch);
    let seen = Arc::new(Mutex::new(Seen {
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
    let watcher = runtime.block_on(client.watch(request))?;
    let task = runtime.spawn(follow(watcher, Arc::clone(&seen)));
    Ok(Watching { seen, task })
}

async fn follow(mut watcher: Watcher, seen: Arc<Mutex<Seen>>) {
    let mut ask = tokio::time::interval(ASK_EVERY);
    loop {
        let next = tokio::select! {
            next = watcher.next() => Some(next),
            _ = ask.tick() => None,
        };
        let Some(next) = next else {
            // A stream that has just broken forgets the question: it is asked again.
            let _asked = watcher.request_progress().await;
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.endpoint = watcher.endpoint().map(str::to_owned);
            continue;
        };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match next {
            Ok(Some(batch)) => seen.take(batch),
            Ok(None) => return,
            Err(error) => {
                seen.ended = Some(error.to_string());
                return;
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

/// What a member says that each revision up to `last` has changed.
///
/// # Errors
/// If it cannot be watched, or does not tell all of it in half a minute.
pub async fn history(number: usize, last: i64) -> anyhow::Result<Observed> {
    let client = load::client(&Members::client_url(number), &Handle::current())?;
    let watch = Watch::all().start_revision(FIRST);
    let mut watcher = client.watch(watch).await?;
    let mut observed = Observed::new();
    let reading = async {
        while watcher.next_revision() <= last {
            let batch = watcher.next().await?.unwrap_or_default();
            for (revision, change) in batch.events.iter().map(change) {
                observed.entry(revision).or_default().push(change);
            }
        }
        Ok::<(), Error>(())
    };
    let read = timeout(PATIENCE, reading).await;
    read.with_context(|| format!("member {number} does not tell its history up to {last}"))??;
    Ok(observed)
}
