use std::io;

use thiserror::Error;

/// What can go wrong between sockets.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A listener cannot have its address. The text is the one that Go prints.
    #[error("listen {network} {address}: bind: {}", errno_text(.source))]
    Bind {
        /// `tcp` or `unix`.
        network: &'static str,
        /// Host and port, or the path of the socket.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A host name has no address.
    #[error("listen tcp {address}: lookup: {source}")]
    Lookup {
        /// Host and port.
        address: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// Refused: a URL under which a member cannot be reached.
    #[error("{text}")]
    Url {
        /// What is wrong with it, and the URL.
        text: String,
    },
    /// Refused: TLS is set up so that it cannot work.
    #[error("{text}")]
    Tls {
        /// What is wrong, with the file where there is one.
        text: String,
    },
    /// Failed: the thread that peers are served by cannot be started.
    #[error("cannot start serving peers: {source}")]
    Start {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The system's error in Go's words where ours differ: lower case, and without the number.
fn errno_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "address already in use".to_owned(),
        io::ErrorKind::AddrNotAvailable => "cannot assign requested address".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        _ => error.to_string(),
    }
}
