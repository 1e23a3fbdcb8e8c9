//! What is known of one endpoint: a connection, or when to try again.
//!
//! A connection is made by a task of its own, so no call waits for an endpoint while another one is
//! there. An endpoint that cannot be reached, or whose connections break before anything was
//! answered on them, is left alone for a while, longer each time.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::Options;
use crate::endpoint::Endpoint;
use crate::transport::Connection;

/// How long an endpoint is left alone after its first failure; doubled each time up to the maximum.
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(3);

/// One endpoint.
pub(crate) struct Subchannel {
    endpoint: Endpoint,
    /// As errors name it.
    name: Arc<str>,
    options: Options,
    state: Mutex<State>,
    /// Told of every change of any state.
    changed: Arc<Notify>,
}

struct State {
    link: Link,
    /// Failures since something was answered.
    failures: u32,
    /// The last of them, until a connection is made.
    cause: Option<Arc<io::Error>>,
}

enum Link {
    Idle,
    Connecting,
    Up(Connection),
    /// Until then.
    Down(Instant),
}

/// What a call finds.
pub(crate) enum Found {
    /// Use this.
    Up(Connection),
    /// A connection is being made.
    Connecting,
    /// Nothing to be had before this moment.
    Down(Instant),
}

impl Subchannel {
    pub(crate) fn new(endpoint: Endpoint, options: Options, changed: Arc<Notify>) -> Subchannel {
        Subchannel {
            name: endpoint.to_string().into(),
            endpoint,
            options,
            state: Mutex::new(State {
                link: Link::Idle,
                failures: 0,
                cause: None,
            }),
            changed,
        }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Why there is no connection, if one was tried.
    pub(crate) fn failure(&self) -> Option<Arc<io::Error>> {
        self.lock().cause.clone()
    }

    /// The connection that stands; without one, one is begun if it is time to.
    pub(crate) fn find(self: &Arc<Self>) -> Found {
        let mut state = self.lock();
        if let Link::Up(connection) = &state.link {
            if !connection.is_closed() {
                return Found::Up(connection.clone());
            }
            if connection.has_answered() {
                state.failures = 0;
                state.link = Link::Idle;
            } else {
                let cause = io::Error::new(
                    io::ErrorKind::ConnectionReset,
                    "closed before anything was answered",
                );
                state.fail(cause);
            }
        }
        match &state.link {
            Link::Connecting => Found::Connecting,
            Link::Down(until) if Instant::now() < *until => Found::Down(*until),
            Link::Idle | Link::Down(_) | Link::Up(_) => {
                state.link = Link::Connecting;
                drop(state);
                tokio::spawn(Attempt(Arc::clone(self)).run());
                Found::Connecting
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Its parts are replaced whole, so it is sound whatever its holder did.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fail(&mut self, cause: io::Error) {
        self.failures = self.failures.saturating_add(1);
        self.link = Link::Down(Instant::now() + back_off(self.failures));
        self.cause = Some(Arc::new(cause));
    }
}

/// A connection that is being made. Dropped before its end (the runtime went away), it leaves the
/// endpoint to the next call.
struct Attempt(Arc<Subchannel>);

impl Attempt {
    async fn run(self) {
        let Subchannel {
            endpoint,
            name,
            options,
            ..
        } = &*self.0;
        let opened = timeout(
            options.connect_timeout,
            Connection::open(endpoint, Arc::clone(name), options),
        )
        .await
        .unwrap_or_else(|_| {
            let text = format!("timed out after {:?}", options.connect_timeout);
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        });
        let mut state = self.0.lock();
        match opened {
            Ok(connection) => {
                state.link = Link::Up(connection);
                state.cause = None;
            }
            Err(error) => {
                tracing::debug!(endpoint = &**name, %error, "endpoint cannot be reached");
                state.fail(error);
            }
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if matches!(state.link, Link::Connecting) {
            state.link = Link::Idle;
        }
        drop(state);
        self.0.changed.notify_waiters();
    }
}

/// The pause after so many failures, spread by a fifth so that clients of one server that comes
/// back do not come all at once.
fn back_off(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let whole = BACK_OFF_MIN
        .saturating_mul(1 << doublings)
        .min(BACK_OFF_MAX);
    // The standard library's only source of random bits.
    let percent = RandomState::new().build_hasher().finish() % 41;
    whole * 80 / 100 + whole * u32::try_from(percent).unwrap_or(0) / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_up_to_its_maximum() {
        let spread = |of: Duration| of * 80 / 100..=of * 120 / 100;
        assert!(spread(BACK_OFF_MIN).contains(&back_off(1)));
        assert!(spread(BACK_OFF_MIN * 2).contains(&back_off(2)));
        assert!(spread(BACK_OFF_MAX).contains(&back_off(u32::MAX)));
    }
}
