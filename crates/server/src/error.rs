use std::io;

use thiserror::Error;

use crate::config::ConfigError;

/// Why a member does not start, or ends.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Refused: what it is configured with does not fit the directory.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Refused: a listener cannot have its address.
    #[error(transparent)]
    Listen(#[from] keelson_transport::Error),
    /// The member itself does not start, or has failed; the inner error says which class.
    #[error(transparent)]
    Node(#[from] keelson_node::Error),
    /// Refused: the cluster that was to be begun or joined does not take this member so.
    #[error("{0}")]
    Join(String),
    /// Refused: the data of this member is not that of the others, or cannot be compared with it.
    #[error("{0}")]
    Corrupt(String),
    /// Refused: the process may open too few files to serve anybody.
    #[error(
        "file descriptor limit {limit} of etcd process is too low; please set higher than {reserved}"
    )]
    TooFewFiles {
        /// What the process may open.
        limit: usize,
        /// What it needs for itself.
        reserved: usize,
    },
    /// Failed: the system gives no threads or reactors.
    #[error("cannot start {what}: {source}")]
    Threads {
        /// What they were for.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Refused: the cluster has removed this member for good.
    #[error("the member has been permanently removed from the cluster")]
    Removed,
    /// Failed: the member has stopped by itself, for the reason that it logged.
    #[error("{0}")]
    Stopped(String),
}
