//! Clients that write and read, through one member or through all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keelson_client::{Client, Options};
use keelson_sim::Random;
use keelson_sim::history::{Bytes, Expected, Request, Response, Write};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::members::{MEMBERS, Members};
use crate::record::{Recorder, put};

/// How long a call may take: longer than an election, so that calls are under way while one is held.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Clients of each single member.
const OF_EACH: usize = 2;
/// Clients of all members.
const OF_ALL: usize = 2;
/// Keys that are written to.
const KEYS: u64 = 8;
/// The longest pause between two calls of a client, in milliseconds.
const PAUSE_MS_MAX: u64 = 40;

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Begins.
    ///
    /// # Errors
    /// None, unless addresses of ours cannot be understood.
    pub fn start(
        runtime: &Handle,
        recorder: &Arc<Recorder>,
        random: &mut Random,
    ) -> anyhow::Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let each = (0..MEMBERS).flat_map(|number| [number; OF_EACH]);
        let endpoints = each
            .map(Members::client_url)
            .chain([(); OF_ALL].map(|()| Members::endpoints()));
        let mut tasks = Vec::new();
        for (who, endpoints) in (0..).zip(endpoints) {
            let worker = Worker {
                who,
                client: client(&endpoints, runtime)?,
                recorder: Arc::clone(recorder),
                random: random.fork(),
                seen: None,
            };
            tasks.push(runtime.spawn(worker.work(Arc::clone(&stop))));
        }
        Ok(Load { stop, tasks })
    }

    /// Ends, when all have had their last answer.
    ///
    /// # Errors
    /// If a client has panicked.
    pub async fn finish(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await?;
        }
        Ok(())
    }
}

/// A client that connects when it is used.
///
/// # Errors
/// If the addresses cannot be understood.
pub fn client(endpoints: &str, runtime: &Handle) -> anyhow::Result<Client> {
    let _inside = runtime.enter();
    let mut options = Options::default();
    options.connect_timeout = CONNECT_TIMEOUT;
    options.call_timeout = CALL_TIMEOUT;
    Ok(Client::lazy(endpoints, options)?)
}

struct Worker {
    who: u64,
    client: Client,
    recorder: Arc<Recorder>,
    random: Random,
    /// A key, and when it was changed last, as far as this client knows.
    seen: Option<(Bytes, i64)>,
}

impl Worker {
    async fn work(mut self, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::SeqCst) {
            let request = self.draw();
            // What an error means is recorded.
            let answer = self.recorder.call(self.who, &self.client, request);
            if let Ok(response) = answer.await {
                self.learn(&response);
            }
            let pause = Duration::from_millis(self.random.below(PAUSE_MS_MAX));
            tokio::time::sleep(pause).await;
        }
    }

    fn draw(&mut self) -> Request {
        let key = format!("k{}", self.random.below(KEYS));
        let unique = self.recorder.unique();
        let value = format!("v{unique}");
        let read = |key, serializable| Request::Read { key, serializable };
        match self.random.below(100) {
            0..35 => Request::Write(put(key, value)),
            35..43 => Request::Write(Write::Delete {
                key: key.into_bytes(),
            }),
            43..63 => self.txn(key, value, unique),
            63..73 => read(Some(key.into_bytes()), false),
            73..83 => read(None, false),
            83..90 => read(Some(key.into_bytes()), true),
            _ => read(None, true),
        }
    }

    /// Mostly: writes a key again if it is as it was last seen.
    fn txn(&mut self, key: String, value: String, unique: u64) -> Request {
        let (key, expected) = match &self.seen {
            Some((seen, revision)) if self.random.chance(800) => {
                (seen.clone(), Expected::ModRevision(*revision))
            }
            _ => (key.into_bytes(), Expected::ModRevision(0)),
        };
        let mut then = vec![Write::Put {
            key: key.clone(),
            value: value.into_bytes(),
            lease: 0,
        }];
        if self.random.chance(500) {
            then.push(put("both".to_owned(), format!("b{unique}")));
        }
        let otherwise = if self.random.chance(300) {
            vec![put("else".to_owned(), format!("e{unique}"))]
        } else {
            Vec::new()
        };
        Request::Txn {
            key,
            expected,
            then,
            otherwise,
        }
    }

    fn learn(&mut self, response: &Response) {
        let rows: Vec<_> = response
            .rows
            .iter()
            .filter(|row| row.key.starts_with(b"k"))
            .collect();
        if !rows.is_empty() {
            let row = rows[self.random.index(rows.len())];
            self.seen = Some((row.key.clone(), row.mod_revision));
        }
    }
}
