//! A member as a process: it runs until a signal, or a failure of its own, ends it.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use keelson_node::Env;
use nix::sys::signal::{SigSet, Signal, raise};
use tracing::{info, warn};

use crate::config::Checked;
use crate::{Error, Member};

/// How often to look whether the member has failed.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs a member until SIGINT or SIGTERM, then stops it and raises the signal again, so that the
/// process ends by it (api.md 5.6). Returns only where that does not end the process: as pid 1.
///
/// To be called before other threads are started: they inherit that the two signals wait for us.
///
/// # Errors
///
/// Why the member did not start, or stopped by itself.
pub fn serve(config: Checked) -> Result<(), Error> {
    serve_in(config, Env::real())
}

/// As [`serve`], in a world of the caller's making.
///
/// # Errors
///
/// As [`serve`].
pub fn serve_in(config: Checked, env: Env) -> Result<(), Error> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    if let Err(errno) = signals.thread_block() {
        warn!(error = %errno, "signals end this process at once");
    }
    let (sender, received) = mpsc::channel();
    let started = Arc::new(AtomicBool::new(false));
    let has_started = Arc::clone(&started);
    let watcher = thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            // Without end: the thread goes with the process.
            while let Ok(signal) = signals.wait() {
                if !has_started.load(Ordering::SeqCst) {
                    // A start may take long, and nothing of it has to be ended in order.
                    end_by(signal);
                }
                if sender.send(signal).is_err() {
                    return;
                }
            }
        });
    watcher.map_err(|source| Error::Threads {
        what: "the signal thread",
        source,
    })?;
    let member = match Member::start_in(config, env) {
        // As with etcd, that is an end in order.
        Err(Error::Removed) => return Ok(()),
        started => started?,
    };
    started.store(true, Ordering::SeqCst);
    notify_init_daemon();
    let signal = loop {
        match received.recv_timeout(LOOK_EVERY) {
            Ok(signal) => break signal,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK_EVERY),
        }
        if let Some(failure) = member.failure() {
            member.stop();
            return Err(Error::Stopped(failure));
        }
        if member.is_removed() {
            member.stop();
            return Ok(());
        }
    };
    info!(signal = go_name(signal), "received signal; shutting down");
    member.stop();
    end_by(signal);
    if std::process::id() != 1 {
        // Whoever started us had told us to ignore the signal; the code is that of an end by it.
        std::process::exit(128 + signal as i32);
    }
    Ok(())
}

/// Ends the process by a signal, as if it had not been waited for. Returns where the process
/// outlives it: as pid 1, or where it is ignored.
fn end_by(signal: Signal) {
    let mut one = SigSet::empty();
    one.add(signal);
    let raised = one.thread_unblock().and_then(|()| raise(signal));
    if let Err(errno) = raised {
        warn!(error = %errno, "failed to raise the signal again");
    }
}

/// A signal as Go prints it.
fn go_name(signal: Signal) -> &'static str {
    match signal {
        Signal::SIGINT => "interrupt",
        Signal::SIGTERM => "terminated",
        other => other.as_str(),
    }
}

/// Tells systemd, where it waits for it, that the member serves.
fn notify_init_daemon() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let sent = UnixDatagram::unbound().and_then(|socket| {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::ffi::OsStrExt as _;
        use std::os::unix::net::SocketAddr;
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        socket.send_to_addr(b"READY=1", &address)
    });
    match sent {
        Ok(_) => info!("successfully notified init daemon"),
        Err(error) => warn!(%error, "failed to notify init daemon"),
    }
}
