//! The peer port: connections accepted, secured, and served until they end or the member stops.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::dial::{Io, Limits, READ_BUFFER_BYTES, Timed};
use crate::handler::{self, Origin};
use crate::listener::{Acceptor, Socket};
use crate::peers::Context;

/// How many connections are served at once; those of a member are a dozen for each other one.
const CONNECTIONS_MAX: usize = 2048;

/// Serves one listener until the task is ended; its connections end with it.
pub(crate) async fn serve(context: Arc<Context>, acceptor: Acceptor, secured: bool) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
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
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

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
            Err(error) => {
                tracing::warn!(
                    "remote-addr" = remote.map(|address| address.to_string()),
                    %error,
                    "rejected connection on peer endpoint"
                );
                return;
            }
        },
        _ => Box::new(stream),
    };
    http(context, stream, remote).await;
}

async fn http(context: Arc<Context>, stream: Box<dyn Io>, remote: Option<std::net::SocketAddr>) {
    let limits = Limits {
        read: Some(context.config.read_timeout),
        write: Some(context.config.write_timeout),
    };
    let stream = Timed::new(stream, limits);
    let origin = Origin {
        remote,
        patience: stream.patience(),
    };
    let service = service_fn(|request| {
        let (context, origin) = (&context, &origin);
        async move { Ok::<_, Infallible>(handler::handle(context, origin, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(context.config.read_timeout)
        .max_buf_size(READ_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(
            "remote-addr" = remote.map(|address| address.to_string()),
            error = crate::dial::root_cause(&error),
            "a connection of a peer has ended"
        );
    }
}
