//! Connections to peers, with bounds on how long they may be silent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::body::Body;
use crate::tls::{Tls, words};
use crate::url::PeerUrl;

/// How long a TCP connection is idle before the kernel asks whether the other end is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// How long one operation on a connection may wait; none for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) read: Option<Duration>,
    pub(crate) write: Option<Duration>,
}

/// Anything that bytes go over.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A timer that is set when an operation begins to wait and checked while it does.
#[derive(Debug, Default)]
struct Timer {
    limit: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl Timer {
    fn new(limit: Option<Duration>) -> Timer {
        Timer {
            limit,
            ..Timer::default()
        }
    }

    /// Called while the operation waits: whether it has waited too long. `since` may be later than
    /// the beginning of the wait.
    fn is_over(&mut self, cx: &mut Context<'_>, since: Instant) -> bool {
        let Some(limit) = self.limit else {
            return false;
        };
        let start = if self.armed { since } else { Instant::now() };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(start + limit)));
        if !self.armed {
            sleep.as_mut().reset(start + limit);
            self.armed = true;
        }
        loop {
            if sleep.as_mut().poll(cx).is_pending() {
                return false;
            }
            if start + limit <= Instant::now() {
                return true;
            }
            sleep.as_mut().reset(start + limit);
        }
    }
}

/// A connection that fails once one operation has waited for too long: a read during which nothing
/// was written either, or a write.
pub(crate) struct Timed<S> {
    inner: S,
    read: Timer,
    write: Timer,
    /// Reads do not count while this is set: the other end waits for us.
    patient: Arc<AtomicBool>,
    last_progress: Instant,
}

impl<S> Timed<S> {
    pub(crate) fn new(inner: S, limits: Limits) -> Timed<S> {
        Timed {
            inner,
            read: Timer::new(limits.read),
            write: Timer::new(limits.write),
            patient: Arc::default(),
            last_progress: Instant::now(),
        }
    }

    /// A handle by which whoever serves the connection says that it is not the other end's turn.
    pub(crate) fn patience(&self) -> Patience {
        Patience(Arc::clone(&self.patient))
    }
}

/// Holds off the limit on reads of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Patience(Arc<AtomicBool>);

impl Patience {
    pub(crate) fn hold(&self) -> Held {
        self.0.store(true, Ordering::Relaxed);
        Held(Arc::clone(&self.0))
    }
}

/// While it lives, reads may wait.
#[derive(Debug)]
pub(crate) struct Held(Arc<AtomicBool>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_read(cx, buf) {
            Poll::Ready(result) => {
                this.read.armed = false;
                this.last_progress = Instant::now();
                Poll::Ready(result)
            }
            Poll::Pending => {
                if this.patient.load(Ordering::Relaxed) {
                    this.last_progress = Instant::now();
                }
                if this.read.is_over(cx, this.last_progress) {
                    return Poll::Ready(Err(timeout("read")));
                }
                Poll::Pending
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Timed<S> {
    fn watch<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.write.armed = false;
            self.last_progress = Instant::now();
        } else if self.write.is_over(cx, self.last_progress) {
            return Poll::Ready(Err(timeout("write")));
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.watch(cx, poll)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Flushing what was never written is no sign of life.
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_flush(cx) {
            Poll::Ready(result) => {
                this.write.armed = false;
                Poll::Ready(result)
            }
            Poll::Pending => this.watch(cx, Poll::Pending),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.watch(cx, poll)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.watch(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

fn timeout(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what}: i/o timeout"))
}

/// Sets what a TCP connection between members has: no delay, and the kernel's keep-alive.
pub(crate) fn tune(socket: &tokio::net::TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(socket, KEEP_ALIVE)?;
    Ok(())
}

/// Makes connections to peers.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) timeout: Duration,
}

impl Dialer {
    /// Connects, with TLS where the URL says so.
    async fn connect(&self, url: &PeerUrl, limits: Limits) -> io::Result<Timed<Box<dyn Io>>> {
        let dial = async {
            Ok::<Box<dyn Io>, io::Error>(match url.socket_path() {
                Some(path) => Box::new(tokio::net::UnixStream::connect(path).await?),
                None => {
                    let socket = tokio::net::TcpStream::connect(url.authority()).await?;
                    tune(&socket)?;
                    Box::new(socket)
                }
            })
        };
        let address = url.authority();
        let socket = tokio::time::timeout(self.timeout, dial)
            .await
            .unwrap_or_else(|_| Err(timeout("dial")))
            .map_err(|error| io::Error::new(error.kind(), format!("dial {address}: {error}")))?;
        if !url.is_tls() {
            return Ok(Timed::new(socket, limits));
        }
        let missing = || io::Error::other("the URL wants TLS, and none is set up between members");
        let tls = self.tls.as_ref().ok_or_else(missing)?;
        let socket = tls.connect(socket, url.host()).await?;
        Ok(Timed::new(Box::new(socket), limits))
    }

    /// Connects, and is ready to send requests.
    pub(crate) async fn open(&self, url: &PeerUrl, limits: Limits) -> io::Result<Link> {
        let socket = self.connect(url, limits).await?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(READ_BUFFER_BYTES)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(io::Error::other)?;
        let driver = tokio::spawn(async move {
            // Whoever waits for an answer gets the error; nobody else wants it.
            let _ = connection.await;
        });
        Ok(Link {
            sender,
            _driver: Driver(driver),
        })
    }
}

/// What a connection reads at once at most: heads are bounded by it too.
pub(crate) const READ_BUFFER_BYTES: usize = 64 << 10;

/// A connection that requests are sent over, one after another.
pub(crate) struct Link {
    pub(crate) sender: SendRequest<Body>,
    _driver: Driver,
}

/// Ends a task when it is dropped.
#[derive(Debug)]
pub(crate) struct Driver(pub(crate) tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads a whole answer, which is an error past `limit` bytes.
pub(crate) async fn read_answer(
    mut body: hyper::body::Incoming,
    limit: usize,
) -> io::Result<bytes::Bytes> {
    use http_body_util::BodyExt as _;
    let mut read = bytes::BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(io::Error::other)?;
        if let Some(data) = frame.data_ref() {
            if read.len() + data.len() > limit {
                return Err(io::Error::other("the answer is too long"));
            }
            read.extend_from_slice(data);
        }
    }
    Ok(read.freeze())
}

/// The error that says most: the one at the bottom, without what each layer says of the next. One of
/// TLS is told as Go does.
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    loop {
        if let Some(text) = words::of(cause) {
            return text;
        }
        match inner(cause) {
            Some(source) => cause = source,
            None => return cause.to_string(),
        }
    }
}

/// What an error is about.
fn inner<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a (dyn std::error::Error + 'static)> {
    // An error of IO passes over what it holds.
    let held = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    match held {
        Some(held) => Some(held),
        None => error.source(),
    }
}

/// Waits until a connection can take a request.
pub(crate) async fn ready(link: &mut Link) -> io::Result<()> {
    std::future::poll_fn(|cx| {
        let result = ready!(link.sender.poll_ready(cx));
        Poll::Ready(result.map_err(io::Error::other))
    })
    .await
}
