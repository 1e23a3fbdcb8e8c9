//! One HTTP/2 connection to one endpoint, made again when it breaks.
//!
//! tonic's own channel sends every request through a queue to a task of its own; a client that is
//! also the load generator cannot afford that. Here a call takes a handle of the connection and
//! writes to it.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt as _;
use http_body_util::combinators::MapErr;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;

use crate::endpoint::{Endpoint, Target};

/// What one stream may have in flight towards us, in bytes.
const STREAM_WINDOW: u32 = 1 << 20;
/// What all streams together may: the most there is, so that a watch nobody reads cannot hold up
/// the others. Memory is bounded by the number of streams.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// How long the answer to a ping is waited for.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(6);

pub(crate) type ResponseBody = MapErr<Incoming, fn(hyper::Error) -> Status>;
type Connection = SendRequest<Body>;

/// Says that a request certainly did not leave this process; travels as the source of a `Status`.
#[derive(Debug)]
pub(crate) struct NotSent {
    pub(crate) endpoint: String,
    pub(crate) cause: Arc<io::Error>,
}

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connect to {}: {}", self.endpoint, self.cause)
    }
}

impl std::error::Error for NotSent {}

/// The connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Transport {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Endpoint,
    connect_timeout: Duration,
    keep_alive: Option<Duration>,
    current: Mutex<Option<Connection>>,
    /// Held while a connection is made, so that many calls make one.
    connecting: tokio::sync::Mutex<()>,
}

impl Transport {
    pub(crate) fn new(
        endpoint: Endpoint,
        connect_timeout: Duration,
        keep_alive: Option<Duration>,
    ) -> Transport {
        Transport {
            shared: Arc::new(Shared {
                endpoint,
                connect_timeout,
                keep_alive,
                current: Mutex::new(None),
                connecting: tokio::sync::Mutex::new(()),
            }),
        }
    }

    /// The connection that stands, or a new one.
    pub(crate) async fn connect(&self) -> Result<(), Status> {
        self.connection().await.map(drop)
    }

    async fn connection(&self) -> Result<Connection, Status> {
        if let Some(connection) = self.standing() {
            return Ok(connection);
        }
        let _one_at_a_time = self.shared.connecting.lock().await;
        if let Some(connection) = self.standing() {
            return Ok(connection);
        }
        let made = timeout(self.shared.connect_timeout, self.handshake()).await;
        let connection = made
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "timed out")))
            .map_err(|cause| self.not_sent(cause))?;
        *self.lock() = Some(connection.clone());
        Ok(connection)
    }

    fn standing(&self) -> Option<Connection> {
        self.lock()
            .as_ref()
            .filter(|connection| !connection.is_closed())
            .cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Connection>> {
        // The slot is replaced whole, so it is sound whatever its holder did.
        self.shared
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn handshake(&self) -> io::Result<Connection> {
        match &self.shared.endpoint.target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address.as_str()).await?;
                stream.set_nodelay(true)?;
                self.start(TokioIo::new(stream)).await
            }
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).await?;
                self.start(TokioIo::new(stream)).await
            }
        }
    }

    async fn start<T>(&self, io: T) -> io::Result<Connection>
    where
        T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(self.shared.keep_alive)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(false);
        let (sender, connection) = builder.handshake(io).await.map_err(io::Error::other)?;
        // Ends when the connection breaks, or when the last sender is dropped and all streams are done.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
        Ok(sender)
    }

    fn not_sent(&self, cause: io::Error) -> Status {
        let not_sent = NotSent {
            endpoint: self.shared.endpoint.to_string(),
            cause: Arc::new(cause),
        };
        let mut status = Status::unavailable(not_sent.to_string());
        status.set_source(Arc::new(not_sent));
        status
    }

    async fn send(
        self,
        request: http::Request<Body>,
    ) -> Result<http::Response<ResponseBody>, Status> {
        let mut connection = self.connection().await?;
        let sent = match connection.try_send_request(request).await {
            Ok(response) => Ok(response),
            Err(mut error) => match error.take_message() {
                // The connection was closed before anything of this request went out.
                Some(request) => {
                    self.lock().take_if(|connection| connection.is_closed());
                    let mut connection = self.connection().await?;
                    connection.send_request(request).await
                }
                None => Err(error.into_error()),
            },
        };
        match sent {
            Ok(response) => {
                Ok(response.map(|body| body.map_err(lost as fn(hyper::Error) -> Status)))
            }
            Err(error) => Err(lost(error)),
        }
    }
}

/// A connection that broke, or a stream that was reset: gRPC says `Unavailable`.
#[expect(clippy::needless_pass_by_value, reason = "the shape `map_err` wants")]
fn lost(error: hyper::Error) -> Status {
    let mut text = format!("transport: {error}");
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    Status::unavailable(text)
}

impl tower_service::Service<http::Request<Body>> for Transport {
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
