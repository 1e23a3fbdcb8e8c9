//! Serving threads: connections are dealt out to them, and each serves its own alone.
//!
//! One accept thread waits on all listeners and gives each connection to the serving thread with the
//! fewest. A serving thread is a runtime of its own: what a connection needs never leaves it, but for
//! proposals and long reads.
//!
//! Stopping is in two steps, so that the member can stop what stands between them: `drain` ends the
//! accepting and tells every connection to finish, `Serving::join` waits until they have, at most for
//! a while, and drops what is left.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use keelson_transport::listener::{Acceptor, Listener, Socket};
use keelson_transport::tls::{self, Tls};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::grpc::splice::Body;
use gather::gather;

mod bare;
mod gather;

pub use bare::serve_bare;

/// Flow-control window of a stream, in bytes: how much a client may send before we have read it.
const STREAM_WINDOW: u32 = 1 << 20;

/// The same for all streams of a connection: larger, so that a stream which nobody reads does not hold
/// up the others. Half of it is what the many small messages of a
/// connection may cost until they are read, at up to 256 each: beyond that h2 ends the connection.
/// Ten thousand watches that are made at once are no attack.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Largest HTTP/2 frame that clients may send, in bytes.
const FRAME_MAX: u32 = 64 << 10;

/// Most unsent bytes that a stream of ours may hold; what is beyond waits in its handler.
const SEND_BUFFER: usize = 64 << 10;

/// Largest list of header fields that clients may send, in bytes: room for long tokens.
const HEADER_LIST_MAX: u32 = 1 << 20;

/// How long an HTTP/1 client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// Threads beside a serving thread for what takes long and is not reading: hashing passwords, of which
/// not all are in work at once, and looking after certificates.
pub(crate) const BLOCKING_THREADS: usize = 2;

/// How long to wait when the system has no more sockets for us.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What a listener is there for; handlers see it with each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// gRPC and HTTP for clients.
    Client,
    /// gRPC alone: HTTP has listeners of its own.
    ClientGrpc,
    /// HTTP alone.
    ClientHttp,
    /// Health checks and metrics alone.
    Metrics,
    /// Other members; they ask for versions and members.
    Peer,
}

/// Which connection a request came over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// The number of the serving thread.
    pub(crate) thread: u16,
    pub(crate) purpose: Purpose,
    /// Who is at its other end; nobody that has a name over a Unix socket.
    pub(crate) remote: Option<SocketAddr>,
}

/// The common name in the certificate of who is at the other end: an extension of requests that came
/// over a connection where one was asked for and shown.
#[derive(Clone, Debug)]
pub(crate) struct CommonName(pub(crate) Arc<str>);

/// A listener, and how what it gives is served.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) listener: Listener,
    pub(crate) purpose: Purpose,
    /// What its connections are secured with.
    pub(crate) tls: Option<Arc<Tls>>,
}

/// What answers requests.
pub(crate) trait Handle: Send + Sync + 'static {
    /// Answers one request.
    fn handle(
        self: &Arc<Self>,
        origin: Origin,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Body>> + Send;

    /// Runs on a serving thread as long as it serves.
    fn background(self: &Arc<Self>, thread: u16) -> impl Future<Output = ()> + Send;
}

/// Limits of connections that come from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Streams that one connection may have open; `u32::MAX` sends no limit, as etcd does.
    pub(crate) streams: u32,
    /// Time without traffic after which a connection is pinged; zero never pings.
    pub(crate) ping_interval: Duration,
    /// Time after which a ping without answer ends the connection.
    pub(crate) ping_timeout: Duration,
    /// Connections that may be open, all threads together; more wait to be accepted.
    pub(crate) connections: usize,
}

impl Limits {
    /// What a configuration says.
    pub(crate) fn of(config: &Config, connections: usize) -> Limits {
        let ping_timeout = config.grpc_keepalive_timeout;
        Limits {
            streams: config.max_concurrent_streams,
            ping_interval: if ping_timeout.is_zero() {
                Duration::ZERO
            } else {
                config.grpc_keepalive_interval
            },
            ping_timeout,
            connections,
        }
    }
}

/// The serving threads and the accept thread.
pub(crate) struct Serving {
    draining: CancellationToken,
    dropping: CancellationToken,
    dealer: Arc<Dealer>,
    accepting: Option<JoinHandle<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// Gives connections to threads.
struct Dealer {
    room: Arc<Semaphore>,
    threads: Vec<(Sockets, Arc<AtomicUsize>)>,
}

/// Where connections for a thread go; bounded by how many may be open.
type Sockets = mpsc::UnboundedSender<Accepted>;

/// A connection with its place among those that may be open.
struct Accepted {
    socket: Socket,
    purpose: Purpose,
    tls: Option<Arc<Tls>>,
    place: OwnedSemaphorePermit,
}

impl Dealer {
    fn deal(&self, accepted: Accepted) {
        let least = self
            .threads
            .iter()
            .min_by_key(|(_, open)| open.load(Ordering::Relaxed));
        if let Some((sender, open)) = least {
            open.fetch_add(1, Ordering::Relaxed);
            // A thread that has ended takes no more; then the socket is closed here.
            drop(sender.send(accepted));
        }
    }
}

impl Serving {
    /// Starts `threads` serving threads. Connections come with [`Serving::accept`]. `draining` is
    /// cancelled when the stop begins: endless streams end by it.
    ///
    /// # Errors
    ///
    /// Where the system gives no threads.
    pub(crate) fn start<H: Handle>(
        threads: u16,
        handler: &Arc<H>,
        limits: Limits,
        draining: CancellationToken,
    ) -> io::Result<Serving> {
        let dropping = CancellationToken::new();
        let mut dealer = Vec::new();
        let mut handles = Vec::new();
        for number in 0..threads.max(1) {
            let (sender, sockets) = mpsc::unbounded_channel();
            let open = Arc::new(AtomicUsize::new(0));
            let worker = Worker {
                number,
                handler: Arc::clone(handler),
                connections: connection_builder(limits),
                open: Arc::clone(&open),
                draining: draining.clone(),
                dropping: dropping.clone(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(BLOCKING_THREADS)
                .build()?;
            handles.push(
                std::thread::Builder::new()
                    .name(format!("serving-{number}"))
                    .stack_size(keelson_proto::request::STACK_BYTES)
                    .spawn(move || runtime.block_on(worker.run(sockets)))?,
            );
            dealer.push((sender, open));
        }
        Ok(Serving {
            draining,
            dropping,
            dealer: Arc::new(Dealer {
                room: Arc::new(Semaphore::new(limits.connections)),
                threads: dealer,
            }),
            accepting: None,
            threads: handles,
        })
    }

    /// Starts to accept connections from these listeners. Called once.
    ///
    /// # Errors
    ///
    /// Where the system gives no thread, or a listener cannot be waited on.
    pub(crate) fn accept(&mut self, doors: Vec<Door>) -> io::Result<()> {
        assert!(self.accepting.is_none(), "a member accepts once");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let inside = runtime.enter();
        let acceptors = doors
            .into_iter()
            .map(|door| Ok((door.listener.into_acceptor()?, door.purpose, door.tls)))
            .collect::<io::Result<Vec<_>>>()?;
        drop(inside);
        let dealer = Arc::clone(&self.dealer);
        let draining = self.draining.clone();
        let thread = std::thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let mut loops = JoinSet::new();
                    for (acceptor, purpose, tls) in acceptors {
                        loops.spawn(accept_from(acceptor, purpose, tls, Arc::clone(&dealer)));
                    }
                    draining.cancelled().await;
                });
            })?;
        self.accepting = Some(thread);
        Ok(())
    }

    /// Ends the accepting and asks every connection to finish what it is at.
    pub(crate) fn drain(&mut self) {
        self.draining.cancel();
        if let Some(thread) = self.accepting.take() {
            drop(thread.join());
        }
    }

    /// Waits until all connections have finished, `patience` at most, and ends the threads.
    pub(crate) fn join(mut self, patience: Duration) {
        self.drain();
        let deadline = std::time::Instant::now() + patience;
        let ended = || self.threads.iter().all(JoinHandle::is_finished);
        while !ended() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if !ended() && !patience.is_zero() {
            tracing::debug!("connections are dropped that did not end in time");
        }
        self.dropping.cancel();
        for thread in self.threads {
            // A thread that panicked has said so already.
            drop(thread.join());
        }
    }
}

async fn accept_from(
    acceptor: Acceptor,
    purpose: Purpose,
    tls: Option<Arc<Tls>>,
    dealer: Arc<Dealer>,
) {
    loop {
        let Ok(place) = Arc::clone(&dealer.room).acquire_owned().await else {
            return;
        };
        match acceptor.accept().await {
            Ok(socket) => dealer.deal(Accepted {
                socket,
                purpose,
                tls: tls.clone(),
                place,
            }),
            Err(error) => {
                tracing::warn!(%error, "accept error");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn connection_builder(limits: Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let streams = (limits.streams != u32::MAX).then_some(limits.streams);
    let interval = (!limits.ping_interval.is_zero()).then_some(limits.ping_interval);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .adaptive_window(false)
        .max_frame_size(FRAME_MAX)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST_MAX)
        .keep_alive_interval(interval)
        .keep_alive_timeout(limits.ping_timeout)
        // gRPC answers carry no date.
        .auto_date_header(false);
    builder
        .http1()
        .timer(TokioTimer::new())
        // As Go writes them; some scripts compare.
        .title_case_headers(true)
        .header_read_timeout(HEAD_TIMEOUT);
    builder
}

/// One serving thread.
struct Worker<H> {
    number: u16,
    handler: Arc<H>,
    connections: auto::Builder<TokioExecutor>,
    open: Arc<AtomicUsize>,
    draining: CancellationToken,
    dropping: CancellationToken,
}

impl<H: Handle> Worker<H> {
    async fn run(self, mut sockets: mpsc::UnboundedReceiver<Accepted>) {
        let mut background = pin!(self.handler.background(self.number));
        let mut background_ended = false;
        let mut connections = JoinSet::new();
        let mut closed = false;
        loop {
            tokio::select! {
                biased;
                () = self.dropping.cancelled() => return,
                () = &mut background, if !background_ended => background_ended = true,
                () = self.draining.cancelled(), if !closed => {
                    closed = true;
                    sockets.close();
                }
                socket = sockets.recv(), if !closed => match socket {
                    Some(accepted) => self.serve(accepted, &mut connections),
                    None => closed = true,
                },
                Some(_) = connections.join_next() => {}
                else => {}
            }
            if closed && connections.is_empty() {
                return;
            }
        }
    }

    fn serve(&self, accepted: Accepted, connections: &mut JoinSet<()>) {
        let Accepted {
            socket,
            purpose,
            tls,
            place,
        } = accepted;
        let open = OpenGuard {
            open: Arc::clone(&self.open),
            _place: place,
        };
        let remote = socket.remote_address();
        let stream = match socket.into_stream() {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "connection ended before it was served");
                return;
            }
        };
        let service = Service {
            origin: Origin {
                thread: self.number,
                purpose,
                remote,
            },
            handler: Arc::clone(&self.handler),
            builder: self.connections.clone(),
            draining: self.draining.clone(),
            _open: open,
        };
        match tls {
            None => connections.spawn(service.serve(stream, None)),
            Some(tls) => connections.spawn(service.secure(stream, tls)),
        };
    }
}

/// Counts a connection of a thread, and keeps its place, for as long as it lives.
struct OpenGuard {
    open: Arc<AtomicUsize>,
    _place: OwnedSemaphorePermit,
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one connection is served with.
struct Service<H> {
    origin: Origin,
    handler: Arc<H>,
    builder: auto::Builder<TokioExecutor>,
    draining: CancellationToken,
    _open: OpenGuard,
}

impl<H: Handle> Service<H> {
    /// Finds out by TLS who is at the other end, then serves it.
    async fn secure<S>(self, stream: S, tls: Arc<Tls>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let remote = self.origin.remote;
        let accepted = tokio::select! {
            accepted = tls.accept(stream, remote) => accepted,
            () = self.draining.cancelled() => return,
        };
        match accepted {
            Ok(stream) => {
                let name = tls::common_name(&stream).map(|name| CommonName(name.into()));
                self.serve(stream, name).await;
            }
            Err(error) => tracing::warn!(
                "remote-addr" = remote.map(|address| address.to_string()),
                error = tls::describe(&error),
                "rejected connection on client endpoint"
            ),
        }
    }

    async fn serve<S>(self, stream: S, name: Option<CommonName>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (handler, origin) = (self.handler, self.origin);
        let service = service_fn(move |mut request: Request<Incoming>| {
            let handler = Arc::clone(&handler);
            if let Some(name) = &name {
                request.extensions_mut().insert(name.clone());
            }
            async move { Ok::<_, Infallible>(handler.handle(origin, request).await) }
        });
        let (stream, outlet) = gather(stream);
        let stream = TokioIo::new(stream);
        let mut connection = pin!(self.builder.serve_connection(stream, service));
        let ended = tokio::select! {
            ended = outlet.drive(connection.as_mut()) => ended,
            () = self.draining.cancelled() => {
                connection.as_mut().graceful_shutdown();
                outlet.drive(connection).await
            }
        };
        let finished = match ended {
            Ok(()) => outlet.finish().await,
            Err(error) => Err(error),
        };
        if let Err(error) = finished {
            // A client that goes away in the middle is nobody's fault.
            tracing::debug!(error = %error, "connection ended");
        }
    }
}

#[cfg(test)]
mod tests;
