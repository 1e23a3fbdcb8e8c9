//! History is compacted again and again, and what goes is written down before.
//!
//! At the end nobody can tell any more what early revisions have changed. So whoever compacts reads them
//! first, from whichever member it finds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use keelson_client::{Client, Get};
use keelson_sim::Random;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::load;
use crate::members::Members;
use crate::watchers::{FIRST, Observed, read_history};

/// The pauses between two compactions, in milliseconds.
const PAUSE_MS: (u64, u64) = (700, 2_500);
/// So many revisions are kept, at most.
const KEPT_MAX: u64 = 60;
/// How long reading may take, before it is tried again later.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The highest revision that was asked to be compacted: nobody may be told of a higher one.
#[derive(Clone, Debug, Default)]
pub struct Asked(Arc<AtomicI64>);

impl Asked {
    /// It, or 0.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Whoever compacts.
#[derive(Debug)]
pub struct Compactions {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Archive>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Archive {
    /// What revisions have changed, from the first on, as a member has told it before they were compacted.
    pub observed: Observed,
    /// Compactions that were acknowledged.
    pub count: u32,
}

impl Archive {
    fn next(&self) -> i64 {
        self.observed.keys().last().map_or(FIRST, |last| last + 1)
    }
}

impl Compactions {
    /// Begins; `asked` is told before the members are.
    ///
    /// # Errors
    /// None, unless addresses of ours cannot be understood.
    pub fn start(runtime: &Handle, asked: Asked, random: Random) -> anyhow::Result<Compactions> {
        let stop = Arc::new(AtomicBool::new(false));
        let client = load::client(&Members::endpoints(), runtime)?;
        let task = runtime.spawn(compact(client, asked, random, Arc::clone(&stop)));
        Ok(Compactions { stop, task })
    }

    /// Ends.
    ///
    /// # Errors
    /// If it has panicked.
    pub async fn finish(self) -> anyhow::Result<Archive> {
        self.stop.store(true, Ordering::SeqCst);
        Ok(self.task.await?)
    }
}

async fn compact(
    client: Client,
    asked: Asked,
    mut random: Random,
    stop: Arc<AtomicBool>,
) -> Archive {
    let mut archive = Archive::default();
    while !stop.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(
            random.between(PAUSE_MS.0, PAUSE_MS.1),
        ))
        .await;
        let Ok(answer) = client.get(Get::key("none")).await else {
            continue;
        };
        let revision = answer.header.map_or(0, |header| header.revision);
        let kept = i64::try_from(random.below(KEPT_MAX)).unwrap_or(0);
        let to = revision - kept;
        if to <= asked.get() {
            continue;
        }
        let read = read_history(&client, archive.next(), to);
        let Ok(Ok(read)) = timeout(READ_TIMEOUT, read).await else {
            continue;
        };
        archive.observed.extend(read);
        asked.0.fetch_max(to, Ordering::SeqCst);
        // Where this fails, it may happen all the same.
        if client.compact(to, false).await.is_ok() {
            archive.count += 1;
        }
    }
    archive
}
