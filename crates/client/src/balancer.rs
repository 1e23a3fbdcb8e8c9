//! Several endpoints: which one the next call goes to.
//!
//! As the reference's client does it: one after the other among those that are connected, and a call
//! for which there is none waits for the first that is (api.md 8.3).

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::endpoint::Endpoint;
use crate::subchannel::{Found, Subchannel};
use crate::transport::Connection;
use crate::{Error, Options};

/// Endpoints to choose from, never none.
pub(crate) type Choice = Arc<[Arc<Subchannel>]>;

/// The endpoints of a client.
pub(crate) struct Balancer {
    all: RwLock<Choice>,
    /// Whose turn it is.
    turn: AtomicUsize,
    changed: Arc<Notify>,
    options: Options,
}

/// What a look at the endpoints gave.
enum Look {
    Up(Connection),
    /// None is connected: when to look again, without a change before.
    Wait(Option<Instant>),
}

impl Balancer {
    /// # Errors
    /// [`Error::Endpoint`] if there is none.
    pub(crate) fn new(endpoints: Vec<Endpoint>, options: Options) -> Result<Balancer, Error> {
        let balancer = Balancer {
            all: RwLock::new(Arc::new([])),
            turn: AtomicUsize::new(0),
            changed: Arc::new(Notify::new()),
            options,
        };
        balancer.replace(endpoints)?;
        Ok(balancer)
    }

    /// Every endpoint there is.
    pub(crate) fn all(&self) -> Choice {
        Arc::clone(&self.all.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Only `endpoint`, with the connection that it has if it is one of ours.
    pub(crate) fn only(&self, endpoint: Endpoint) -> Choice {
        let all = self.all();
        let known = all.iter().find(|known| *known.endpoint() == endpoint);
        Arc::new([known.cloned().unwrap_or_else(|| self.make(endpoint))])
    }

    /// Uses `endpoints` from now on. What runs on others runs on.
    ///
    /// # Errors
    /// [`Error::Endpoint`] if there is none; then nothing changes.
    pub(crate) fn replace(&self, endpoints: Vec<Endpoint>) -> Result<(), Error> {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let mut new: Vec<Arc<Subchannel>> = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            if new.iter().any(|other| *other.endpoint() == endpoint) {
                continue;
            }
            let known = all.iter().find(|known| *known.endpoint() == endpoint);
            new.push(known.cloned().unwrap_or_else(|| self.make(endpoint)));
        }
        if new.is_empty() {
            return Err(Error::Endpoint {
                endpoint: String::new(),
                reason: "there is no endpoint",
            });
        }
        *all = new.into();
        drop(all);
        self.changed.notify_waiters();
        Ok(())
    }

    fn make(&self, endpoint: Endpoint) -> Arc<Subchannel> {
        Arc::new(Subchannel::new(
            endpoint,
            self.options.clone(),
            Arc::clone(&self.changed),
        ))
    }

    /// The connection whose turn it is among `choice`, which is asked for at each look. Waits for
    /// one until `until`.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::Unreachable`] if none came.
    pub(crate) async fn pick(
        &self,
        choice: impl Fn() -> Choice,
        until: Instant,
    ) -> Result<Connection, Error> {
        loop {
            // Before the look, so that no change after it is missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let choice = choice();
            let wake = match self.look(&choice) {
                Look::Up(connection) => return Ok(connection),
                Look::Wait(wake) => wake.map_or(until, |wake| wake.min(until)),
            };
            tokio::select! {
                () = changed => {}
                () = sleep_until(wake) => {
                    if Instant::now() >= until {
                        return Err(unreachable(&choice));
                    }
                }
            }
        }
    }

    /// Waits until one of `choice` is connected, or every one was tried and failed, which of none is
    /// so.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::Unreachable`] if every one failed.
    pub(crate) async fn connect(&self, choice: &Choice) -> Result<(), Error> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Look::Up(_) = self.look(choice) {
                return Ok(());
            }
            if choice.iter().all(|one| one.failure().is_some()) {
                return Err(unreachable(choice));
            }
            changed.await;
        }
    }

    fn look(&self, choice: &Choice) -> Look {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut wake: Option<Instant> = None;
        for step in 0..choice.len() {
            match choice[first.wrapping_add(step) % choice.len()].find() {
                Found::Up(connection) => return Look::Up(connection),
                Found::Connecting => {}
                Found::Down(until) => {
                    wake = Some(wake.map_or(until, |wake| wake.min(until)));
                }
            }
        }
        Look::Wait(wake)
    }
}

/// Why none of `choice` is there.
fn unreachable(choice: &Choice) -> Error {
    let mut tried: Vec<(String, Arc<io::Error>)> = choice
        .iter()
        .map(|one| {
            let cause = one.failure().unwrap_or_else(|| {
                Arc::new(io::Error::new(io::ErrorKind::TimedOut, "no connection yet"))
            });
            (one.endpoint().to_string(), cause)
        })
        .collect();
    if tried.len() > 1 {
        return Error::Unreachable { tried };
    }
    match tried.pop() {
        Some((endpoint, cause)) => Error::Connect { endpoint, cause },
        None => Error::Unreachable { tried },
    }
}
