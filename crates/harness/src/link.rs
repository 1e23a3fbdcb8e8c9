//! Links to members that can be cut: each is a port that passes connections on to a member's own.
//!
//! Who is at the other end is told by the header `X-Server-From` of a connection's first request, which
//! members send with everything that they say to each other. A connection without it passes always.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// The head of a request is no longer than this, in bytes.
const HEAD_MAX: usize = 64 << 10;

const FROM: &str = "x-server-from:";

/// The links to all members of a cluster.
#[derive(Debug)]
pub(crate) struct Links {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Who cannot reach whose port.
    cut: BTreeSet<(String, u16)>,
    open: Vec<Open>,
    ports: Vec<u16>,
}

/// A connection that is passed on.
#[derive(Debug)]
struct Open {
    from: String,
    to: u16,
    ends: [TcpStream; 2],
}

impl Open {
    fn close(&self) {
        for end in &self.ends {
            // One that is closed already is closed.
            let _closed = end.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Links {
    pub(crate) fn start() -> io::Result<Links> {
        Ok(Links {
            shared: Arc::default(),
        })
    }

    /// A port from which connections go on to `to`.
    pub(crate) fn open(&self, to: u16) -> io::Result<u16> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        self.shared.lock().ports.push(port);
        let shared = Arc::clone(&self.shared);
        thread::Builder::new()
            .name("link".to_owned())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    if shared.stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || {
                        // A connection that cannot be passed on ends, which its sender sees.
                        let _ended = pass(&shared, stream, to);
                    });
                }
            })?;
        Ok(port)
    }

    /// Cuts what `from` has to `to`, and lets nothing more through.
    pub(crate) fn cut(&self, from: &str, to: u16) {
        let mut state = self.shared.lock();
        state.cut.insert((from.to_owned(), to));
        state.open.retain(|open| {
            let hit = open.from == from && open.to == to;
            if hit {
                open.close();
            }
            !hit
        });
    }

    pub(crate) fn heal(&self) {
        self.shared.lock().cut.clear();
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let state = self.shared.lock();
        state.open.iter().for_each(Open::close);
        for port in &state.ports {
            // Wakes the thread that accepts.
            let _woken = TcpStream::connect((Ipv4Addr::LOCALHOST, *port));
        }
    }
}

fn pass(shared: &Arc<Shared>, mut near: TcpStream, to: u16) -> io::Result<()> {
    let head = read_head(&mut near)?;
    let from = sender(&head);
    let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, to))?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    {
        let mut state = shared.lock();
        if state.cut.contains(&(from.clone(), to)) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        state.open.push(Open {
            from,
            to,
            ends: [near.try_clone()?, far.try_clone()?],
        });
    }
    far.write_all(&head)?;
    let (mut back_from, mut back_to) = (far.try_clone()?, near.try_clone()?);
    let back = thread::spawn(move || {
        // Its end is the end of the connection, whatever ended it.
        let _ended = io::copy(&mut back_from, &mut back_to);
        let _closed = back_to.shutdown(Shutdown::Both);
    });
    let copied = io::copy(&mut near, &mut far);
    let _closed = far.shutdown(Shutdown::Both);
    let _joined = back.join();
    copied.map(drop)
}

fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut chunk = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_MAX {
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => head.extend_from_slice(&chunk[..read]),
        }
    }
    Ok(head)
}

/// Who sends a request, as its head says; empty if it does not.
fn sender(head: &[u8]) -> String {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let line = text.lines().find_map(|line| line.strip_prefix(FROM));
    line.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_is_told_by_its_header() {
        let head = b"POST /raft HTTP/1.1\r\nHost: a\r\nX-Server-From: 8e9e05c52164694d\r\n\r\n";
        assert_eq!(sender(head), "8e9e05c52164694d");
        assert_eq!(sender(b"GET /version HTTP/1.1\r\n\r\n"), "");
    }
}
