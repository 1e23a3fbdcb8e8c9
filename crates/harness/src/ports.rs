//! Ports that nobody uses.
//!
//! A port that the kernel gives out may be given to somebody else as soon as it is closed: to the next
//! test that listens, or to a connection. A server that stops and starts again on its port needs one that
//! stays its own, so these are from below the range that the kernel gives from, and each is reserved, for
//! as long as the test runs, by a name that all tests of this machine know.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Mutex, PoisonError};

/// The lowest port that is tried.
const LOWEST: u16 = 10_000;
/// Where the kernel's own range begins, if it does not say.
const KERNELS: u16 = 32_768;

/// A port of the loopback interface that nobody listens at, and that no other test gets as long as this
/// one runs.
///
/// # Errors
/// If there is none.
pub fn free_port() -> io::Result<u16> {
    listen()?.local_addr().map(|address| address.port())
}

/// A listener at such a port.
pub(crate) fn listen() -> io::Result<TcpListener> {
    static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    let range = range();
    let count = u32::from(range.end - range.start);
    let first = std::process::id().wrapping_mul(97) % count;
    for number in 0..count {
        let port = range.start + u16::try_from((first + number) % count).unwrap_or(0);
        let Ok(reservation) = reserve(port) else {
            continue;
        };
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            reserved.push(reservation);
            return Ok(listener);
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// A name in the kernel, which goes with the process.
fn reserve(port: u16) -> io::Result<UnixListener> {
    let name = format!("keelson-test-port-{port}");
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// Below those that the kernel gives out.
fn range() -> Range<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = text.split_whitespace().next();
    let kernels = first.and_then(|first| first.parse().ok());
    let end = kernels.unwrap_or(KERNELS);
    if end > LOWEST {
        LOWEST..end
    } else {
        LOWEST..KERNELS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_though_nobody_listens_at_it() {
        let ports: Vec<u16> = (0..20).map(|_| free_port().unwrap()).collect();
        let mut sorted = ports.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), ports.len());
        assert!(ports.iter().all(|port| range().contains(port)), "{ports:?}");
        assert!(reserve(ports[0]).is_err());
    }
}
