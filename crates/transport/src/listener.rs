//! Listening sockets, TCP and Unix, and the connections that they give.
//!
//! A listener is bound by whoever starts a member, before anything is written to the disk, so that
//! a busy port is seen first. It is handed to the accept thread as it is; accepted sockets are plain
//! ones again until the thread that serves them takes them into its own reactor.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::Error;

/// How many connections may wait for the accept thread; the kernel cuts it to `somaxconn`.
const BACKLOG: i32 = 4096;

/// Options of a TCP listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenOptions {
    /// `SO_REUSEPORT`: other sockets may listen on the same port.
    pub reuse_port: bool,
}

/// A bound socket that waits for connections.
#[derive(Debug)]
pub enum Listener {
    /// A TCP socket.
    Tcp(TcpListener),
    /// A Unix socket and its file, which goes with the last handle on it.
    Unix(UnixListener, Arc<SocketFile>),
}

impl Listener {
    /// Binds `host:port`. Where a name has several addresses, IPv4 is taken first, as Go does:
    /// `localhost` is 127.0.0.1.
    ///
    /// # Errors
    ///
    /// [`Error::Lookup`] where the name has no address, [`Error::Bind`] where none can be bound.
    pub fn bind_tcp(address: &str, options: ListenOptions) -> Result<Listener, Error> {
        let lookup = |source| Error::Lookup {
            address: address.to_owned(),
            source,
        };
        let mut addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(lookup)?.collect();
        addresses.sort_by_key(SocketAddr::is_ipv6);
        let first = addresses.first().copied().ok_or_else(|| {
            lookup(io::Error::new(
                io::ErrorKind::NotFound,
                "no such host has an address",
            ))
        })?;
        bind_socket(first, options)
            .map(Listener::Tcp)
            .map_err(|source| Error::Bind {
                network: "tcp",
                address: first.to_string(),
                source,
            })
    }

    /// Binds a Unix socket. One that an earlier run has left there is removed first; one that somebody
    /// serves is not, nor is a file of another kind (etcd takes the path from both).
    ///
    /// # Errors
    ///
    /// [`Error::Bind`] where the path is in use, or cannot be removed or bound.
    pub fn bind_unix(path: &Path) -> Result<Listener, Error> {
        let bind = || {
            remove_stale(path)?;
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            Ok(Listener::Unix(listener, Arc::new(SocketFile::of(path)?)))
        };
        bind().map_err(|source| Error::Bind {
            network: "unix",
            address: path.display().to_string(),
            source,
        })
    }

    /// `address:port` as bound (so with the port that the system chose for 0), or the path.
    #[must_use]
    pub fn local_address(&self) -> String {
        match self {
            Listener::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|_| String::new(), |address| address.to_string()),
            Listener::Unix(_, file) => file.path.display().to_string(),
        }
    }

    /// The port as bound; `None` for a Unix socket.
    #[must_use]
    pub fn local_port(&self) -> Option<u16> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
            Listener::Unix(..) => None,
        }
    }

    /// A second handle on the same socket: what lets a member be stopped and started again without
    /// giving its port away.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn try_clone(&self) -> io::Result<Listener> {
        Ok(match self {
            Listener::Tcp(listener) => Listener::Tcp(listener.try_clone()?),
            Listener::Unix(listener, file) => Listener::Unix(listener.try_clone()?, file.clone()),
        })
    }

    /// Takes the socket into the reactor of the runtime that this is called in.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn into_acceptor(self) -> io::Result<Acceptor> {
        Ok(match self {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Acceptor::Tcp(tokio::net::TcpListener::from_std(listener)?)
            }
            Listener::Unix(listener, file) => {
                listener.set_nonblocking(true)?;
                Acceptor::Unix(tokio::net::UnixListener::from_std(listener)?, file)
            }
        })
    }
}

fn bind_socket(address: SocketAddr, options: ListenOptions) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if options.reuse_port {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// A listener in a reactor.
#[derive(Debug)]
pub enum Acceptor {
    /// A TCP socket.
    Tcp(tokio::net::TcpListener),
    /// A Unix socket and its file.
    Unix(tokio::net::UnixListener, Arc<SocketFile>),
}

impl Acceptor {
    /// Waits for the next connection and takes it out of this reactor again.
    ///
    /// # Errors
    ///
    /// What the system says; most errors concern the one connection, so callers go on.
    pub async fn accept(&self) -> io::Result<Socket> {
        Ok(match self {
            Acceptor::Tcp(listener) => Socket::Tcp(listener.accept().await?.0.into_std()?),
            Acceptor::Unix(listener, _) => Socket::Unix(listener.accept().await?.0.into_std()?),
        })
    }
}

/// An accepted connection outside of any reactor.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl Socket {
    /// Who is at the other end; nobody that has an address over a Unix socket.
    #[must_use]
    pub fn remote_address(&self) -> Option<std::net::SocketAddr> {
        match self {
            Socket::Tcp(socket) => socket.peer_addr().ok(),
            Socket::Unix(_) => None,
        }
    }

    /// Takes the connection into the reactor of the runtime that this is called in.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn into_stream(self) -> io::Result<Stream> {
        Ok(match self {
            Socket::Tcp(socket) => {
                socket.set_nodelay(true)?;
                Stream::Tcp(tokio::net::TcpStream::from_std(socket)?)
            }
            Socket::Unix(socket) => Stream::Unix(tokio::net::UnixStream::from_std(socket)?),
        })
    }
}

/// A connection that is being served.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(tokio::net::TcpStream),
    /// Over a Unix socket.
    Unix(tokio::net::UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
        }
    }
}

/// The file by which clients find a Unix socket. Removed when it is dropped, unless another socket has
/// taken the path meanwhile.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile {
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !identity(&self.path).is_ok_and(|found| found == self.identity) {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "could not remove a socket's file");
        }
    }
}

/// Removes a socket that nobody serves any more.
fn remove_stale(path: &Path) -> io::Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is no socket; remove it, or choose another path",
        ));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_bound_on_ipv4() {
        let listener = Listener::bind_tcp("localhost:0", ListenOptions::default()).unwrap();
        assert!(listener.local_address().starts_with("127.0.0.1:"));
        assert_ne!(listener.local_port(), Some(0));
    }

    #[test]
    fn a_busy_port_is_reported_in_gos_words() {
        let first = Listener::bind_tcp("127.0.0.1:0", ListenOptions::default()).unwrap();
        let address = first.local_address();
        let error = Listener::bind_tcp(&address, ListenOptions::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("listen tcp {address}: bind: address already in use")
        );
    }

    #[test]
    fn a_socket_file_of_an_earlier_run_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("localhost:2379");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind_unix(&path).unwrap();
        assert_eq!(listener.local_address(), path.display().to_string());
    }

    #[test]
    fn a_socket_file_goes_with_the_last_handle_and_no_other_is_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = Listener::bind_unix(&path).unwrap();
        let second = first.try_clone().unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());

        let early = Listener::bind_unix(&path).unwrap();
        std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        let _late = Listener::bind_unix(&path).unwrap();
        drop(early);
        assert!(path.exists());
    }

    #[test]
    fn a_socket_that_is_served_is_not_taken_and_neither_is_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _served = Listener::bind_unix(&path).unwrap();
        let error = Listener::bind_unix(&path).unwrap_err();
        let text = format!(
            "listen unix {}: bind: address already in use",
            path.display()
        );
        assert_eq!(error.to_string(), text);
        assert!(UnixStream::connect(&path).is_ok(), "it is served as before");

        let file = dir.path().join("file");
        std::fs::write(&file, "somebody's").unwrap();
        let error = Listener::bind_unix(&file).unwrap_err().to_string();
        assert!(error.contains("no socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "somebody's");
    }
}
