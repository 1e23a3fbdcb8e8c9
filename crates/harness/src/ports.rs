//! Ports that nobody uses.

use std::io;
use std::net::{Ipv4Addr, TcpListener};

/// A port of the loopback interface that was free a moment ago.
///
/// # Errors
/// If no socket can be bound at all.
pub fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}
