//! One HTTP/2 connection: how it is made, and how calls go over it.
//!
//! tonic's own channel sends every request through a queue to a task of its own; a client that is
//! also the load generator cannot afford that. Here a call takes a handle of the connection and
//! writes to it.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Uri;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpStream, UnixStream};
use tonic::Status;
use tonic::body::Body;

use crate::endpoint::{Endpoint, Security, Target};
use crate::{Options, Tls};

/// What one stream may have in flight towards us, in bytes.
const STREAM_WINDOW: u32 = 1 << 20;
/// What all streams together may: the most there is, so that a watch nobody reads cannot hold up
/// the others. Memory is bounded by the number of streams.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// How long the answer to a ping is waited for.
const KEEP_ALIVE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(6);

/// Says that a request certainly did not leave this process; travels as the source of a `Status`.
#[derive(Debug)]
pub(crate) struct NotSent {
    pub(crate) endpoint: Arc<str>,
    pub(crate) cause: Arc<io::Error>,
}

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connect to {}: {}", self.endpoint, self.cause)
    }
}

impl std::error::Error for NotSent {}

/// Says that a connection broke under a call; travels as the source of a `Status`.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) endpoint: Arc<str>,
    pub(crate) cause: String,
    pub(crate) unprocessed: bool,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transport: {}: {}", self.endpoint, self.cause)
    }
}

impl std::error::Error for Broken {}

/// A connection that stands, or stood. Clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: SendRequest<Body>,
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Arc<str>,
    origin: Uri,
    /// Whether anything was ever answered on it.
    answered: AtomicBool,
    /// Set by a call that found it broken, before the connection's own task has noticed.
    broken: AtomicBool,
}

impl Connection {
    /// Connects, without a limit of time. Errors of calls say `name`.
    ///
    /// # Errors
    /// Why not, as the operating system, TLS or HTTP/2 say it.
    pub(crate) async fn open(
        endpoint: &Endpoint,
        name: Arc<str>,
        options: &Options,
    ) -> io::Result<Connection> {
        let tls = match (endpoint.security, &options.tls) {
            (Security::Never, _) | (Security::Optional, None) => None,
            (Security::Optional | Security::Always, tls) => Some(tls.clone().unwrap_or_default()),
        };
        let encrypted = tls.is_some();
        let origin = endpoint.origin(encrypted).map_err(io::Error::other)?;
        let host = endpoint.host();
        let sender = match &endpoint.target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address.as_str()).await?;
                stream.set_nodelay(true)?;
                secure(stream, tls, host, options).await?
            }
            Target::Unix(path) => {
                secure(UnixStream::connect(path).await?, tls, host, options).await?
            }
        };
        Ok(Connection {
            sender,
            shared: Arc::new(Shared {
                endpoint: name,
                origin,
                answered: AtomicBool::new(false),
                broken: AtomicBool::new(false),
            }),
        })
    }

    /// Where it goes to, as errors name it.
    pub(crate) fn endpoint(&self) -> &Arc<str> {
        &self.shared.endpoint
    }

    /// Scheme and authority of requests on it.
    pub(crate) fn origin(&self) -> &Uri {
        &self.shared.origin
    }

    /// Whether no more requests can go over it.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.broken.load(Ordering::Relaxed) || self.sender.is_closed()
    }

    /// Whether anything was ever answered on it: the other side is a server that works.
    pub(crate) fn has_answered(&self) -> bool {
        self.shared.answered.load(Ordering::Relaxed)
    }

    async fn send(
        mut self,
        request: http::Request<Body>,
    ) -> Result<http::Response<ResponseBody>, Status> {
        match self.sender.try_send_request(request).await {
            Ok(response) => {
                if !self.has_answered() {
                    self.shared.answered.store(true, Ordering::Relaxed);
                }
                let endpoint = Arc::clone(&self.shared.endpoint);
                Ok(response.map(|incoming| ResponseBody { incoming, endpoint }))
            }
            Err(mut error) => {
                let unsent = error.take_message().is_some();
                let error = error.into_error();
                if unsent {
                    self.shared.broken.store(true, Ordering::Relaxed);
                    return Err(self.not_sent(&error));
                }
                if !is_reset(&error) {
                    self.shared.broken.store(true, Ordering::Relaxed);
                }
                Err(lost(&self.shared.endpoint, &error))
            }
        }
    }

    fn not_sent(&self, error: &hyper::Error) -> Status {
        let not_sent = NotSent {
            endpoint: Arc::clone(&self.shared.endpoint),
            cause: Arc::new(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                whole_text(error),
            )),
        };
        let mut status = Status::unavailable(not_sent.to_string());
        status.set_source(Arc::new(not_sent));
        status
    }
}

/// Speaks HTTP/2 over `stream`, within TLS if there is to be any.
async fn secure<T>(
    stream: T,
    tls: Option<Tls>,
    host: &str,
    options: &Options,
) -> io::Result<SendRequest<Body>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    match tls {
        None => start(stream, options).await,
        Some(tls) => start(tls.wrap(stream, host).await?, options).await,
    }
}

async fn start<T>(stream: T, options: &Options) -> io::Result<SendRequest<Body>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(options.keep_alive)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(false);
    let (sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // Ends when the connection breaks, or when the last sender is dropped and all streams are done.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended");
        }
    });
    Ok(sender)
}

/// Whether only the stream ended, and others on the connection go on.
fn is_reset(error: &hyper::Error) -> bool {
    h2_cause(error).is_some_and(h2::Error::is_reset)
}

fn h2_cause(error: &hyper::Error) -> Option<&h2::Error> {
    error.source().and_then(|source| source.downcast_ref())
}

/// Whether the server said that it did not begin with the request (RFC 9113, 8.7): it refused the
/// stream, or it goes away and named an earlier stream as its last.
fn is_unprocessed(error: &hyper::Error) -> bool {
    h2_cause(error).is_some_and(|cause| {
        let reason = cause.reason();
        cause.is_remote()
            && (cause.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM)
                || cause.is_go_away() && reason == Some(h2::Reason::NO_ERROR))
    })
}

fn whole_text(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

/// A connection that broke, or a stream that was reset: gRPC says `Unavailable`.
fn lost(endpoint: &Arc<str>, error: &hyper::Error) -> Status {
    let broken = Broken {
        endpoint: Arc::clone(endpoint),
        cause: whole_text(error),
        unprocessed: is_unprocessed(error),
    };
    let mut status = Status::unavailable(broken.to_string());
    status.set_source(Arc::new(broken));
    status
}

/// An answer's body, whose errors name the endpoint.
pub(crate) struct ResponseBody {
    incoming: Incoming,
    endpoint: Arc<str>,
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map_err(|error| lost(&self.endpoint, &error))))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl tower_service::Service<http::Request<Body>> for Connection {
    type Response = http::Response<ResponseBody>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}
