//! The peer port: connections accepted, secured, and served until they end or the member stops.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::dial::{Io, Limits, READ_BUFFER_BYTES, Timed};
use crate::handler::{self, Origin};
use crate::listener::{Acceptor, Socket};
use crate::peers::Context;

/// How often it is said that there are too many connections.
const FULL_EVERY: Duration = Duration::from_secs(30);

/// Room for connections, of all listeners together.
pub(crate) struct Room {
    free: Arc<Semaphore>,
    most: usize,
    /// When it was last said that there is none.
    said: std::sync::Mutex<Option<Instant>>,
}

impl Room {
    pub(crate) fn new(most: usize) -> Room {
        Room {
            free: Arc::new(Semaphore::new(most)),
            most,
            said: std::sync::Mutex::default(),
        }
    }

    /// Waits for room for one more.
    async fn take(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            return Some(permit);
        }
        self.say_full();
        Arc::clone(&self.free).acquire_owned().await.ok()
    }

    fn say_full(&self) {
        let now = Instant::now();
        let mut said = self.said.lock().unwrap_or_else(|it| it.into_inner());
        if said.is_none_or(|before| now >= before + FULL_EVERY) {
            *said = Some(now);
            tracing::warn!(
                connections = self.most,
                "too many connections on the peer endpoint; further ones wait until some end"
            );
        }
    }
}

/// Serves one listener until the task is ended; its connections end with it.
pub(crate) async fn serve(context: Arc<Context>, acceptor: Acceptor, secured: bool) {
    let mut connections = JoinSet::new();
    loop {
        let Some(permit) = context.room.take().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = acceptor.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok(socket) => {
                let context = Arc::clone(&context);
                connections.spawn(async move {
                    connection(context, socket, secured).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(error = %error, "failed to accept a connection of a peer");
                // Out of file descriptors, as a rule: a moment for some to be closed.
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

async fn connection(context: Arc<Context>, socket: Socket, secured: bool) {
    let remote = socket.remote_address();
    let stream = match socket.into_stream() {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(error = %error, "a connection of a peer went away at once");
            return;
        }
    };
    if let crate::listener::Stream::Tcp(stream) = &stream
        && let Err(error) = crate::dial::tune(stream)
    {
        tracing::debug!(error = %error, "could not set the options of a connection");
    }
    let stream: Box<dyn Io> = match &context.dialer.tls {
        Some(tls) if secured => match tls.accept(stream, remote).await {
            Ok(stream) => Box::new(stream),
            Err(error) => return rejected(remote, &crate::dial::root_cause(&error)),
        },
        _ => Box::new(stream),
    };
    http(context, stream, remote).await;
}

fn rejected(remote: Option<SocketAddr>, error: &str) {
    tracing::warn!(
        "remote-addr" = remote.map(|address| address.to_string()),
        error,
        "rejected connection on peer endpoint"
    );
}

async fn http(context: Arc<Context>, stream: Box<dyn Io>, remote: Option<SocketAddr>) {
    let limits = Limits {
        read: Some(context.config.read_timeout),
        write: Some(context.config.write_timeout),
    };
    let stream = Timed::new(stream, limits);
    let origin = Origin {
        remote,
        patience: stream.patience(),
    };
    let asked = AtomicBool::new(false);
    let service = service_fn(|request| {
        asked.store(true, Ordering::Relaxed);
        let (context, origin) = (&context, &origin);
        async move { Ok::<_, Infallible>(handler::handle(context, origin, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(context.config.read_timeout)
        .max_buf_size(READ_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    let Err(error) = served else {
        return;
    };
    let cause = crate::dial::root_cause(&error);
    let silent = !asked.load(Ordering::Relaxed) && timed_out(&error);
    if error.is_parse() || silent {
        // Nobody who keeps to the protocol does that.
        return rejected(remote, &cause);
    }
    tracing::debug!(
        "remote-addr" = remote.map(|address| address.to_string()),
        error = cause,
        "a connection of a peer has ended"
    );
}

/// Whether a connection was given up because nothing came: its own bound, or that of a head.
fn timed_out(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|it| it.downcast_ref::<std::io::Error>());
    error.is_timeout() || cause.is_some_and(|it| it.kind() == std::io::ErrorKind::TimedOut)
}
