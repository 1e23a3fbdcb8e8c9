//! What can go wrong with a call, by what the caller can do about it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use keelson_proto::{ApiError, Code};

use crate::transport::{Broken, NotSent};

/// An error of the client.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Refused: the endpoint cannot be used as it is written.
    #[error("endpoint {endpoint:?}: {reason}")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Refused: a name, password or token that cannot be sent as metadata.
    #[error("the auth token cannot be sent: it holds bytes that are not visible ASCII")]
    Token,
    /// Failed: no connection could be made. The request was not sent.
    #[error("connect to {endpoint}: {cause}")]
    Connect {
        /// Where to.
        endpoint: String,
        /// Why not.
        cause: Arc<io::Error>,
    },
    /// Failed: none of several endpoints could be connected to. The request was not sent.
    #[error("no endpoint can be reached: {}", listed(.tried))]
    Unreachable {
        /// Each endpoint, and why not.
        tried: Vec<(String, Arc<io::Error>)>,
    },
    /// Failed: the connection broke under the call, or the server reset its stream.
    #[error("the connection to {endpoint} broke: {cause}")]
    Broken {
        /// Where to.
        endpoint: String,
        /// How.
        cause: String,
        /// Whether the server said that it did not begin with the request. Otherwise it is not
        /// known whether a write took place.
        unprocessed: bool,
    },
    /// Failed: the files of [`crate::Tls`] cannot be used.
    #[error("TLS: {cause}")]
    Tls {
        /// Which file, and why.
        cause: Arc<io::Error>,
    },
    /// Refused or failed: the server's answer.
    #[error("{message}")]
    Status {
        /// The gRPC code.
        code: Code,
        /// The text as the server sent it.
        message: String,
    },
    /// Failed: no answer in time. Whether a write took place is not known.
    #[error("no answer from {endpoint} within {after:?}")]
    TimedOut {
        /// Who was asked last.
        endpoint: String,
        /// How long was waited.
        after: Duration,
    },
    /// Refused: the revision that a watch needs next has been compacted.
    #[error("the watch needs revision {needed}, compacted at {compact_revision}")]
    WatchCompacted {
        /// The revision from which the watch would have gone on.
        needed: i64,
        /// The oldest revision that can still be watched.
        compact_revision: i64,
    },
    /// Refused: the server ended the watch.
    #[error("watch canceled: {reason}")]
    WatchCanceled {
        /// The reason as the server sent it; may be empty.
        reason: String,
    },
    /// Refused: the lease does not exist, or not any more.
    #[error("lease {id:x} has expired or was revoked")]
    LeaseGone {
        /// The lease.
        id: i64,
    },
    /// Corrupt: an answer that the API does not allow.
    #[error("unexpected answer: {what}")]
    Answer {
        /// What was wrong with it.
        what: &'static str,
    },
    /// Failed: a local file could not be written.
    #[error("{path}: {cause}")]
    File {
        /// Which file.
        path: String,
        /// Why.
        cause: Arc<io::Error>,
    },
}

impl Error {
    /// The error of the API that this is, told by its text, as all clients of etcd tell them.
    #[must_use]
    pub fn api(&self) -> Option<ApiError> {
        match self {
            Error::Status { message, .. } => ApiError::from_text(message),
            // A watch carries a status as Go prints it.
            Error::WatchCanceled { reason } => {
                let text = reason
                    .split_once(" desc = ")
                    .map_or(reason.as_str(), |(_, text)| text);
                ApiError::from_text(text)
            }
            Error::WatchCompacted { .. } => Some(ApiError::Compacted),
            Error::LeaseGone { .. } => Some(ApiError::LeaseNotFound),
            _ => None,
        }
    }

    /// The gRPC code that this is, or comes nearest to.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Error::Endpoint { .. } | Error::Token | Error::Tls { .. } => Code::InvalidArgument,
            Error::Connect { .. } | Error::Unreachable { .. } | Error::Broken { .. } => {
                Code::Unavailable
            }
            Error::Status { code, .. } => *code,
            Error::TimedOut { .. } => Code::DeadlineExceeded,
            Error::WatchCanceled { .. } => self.api().map_or(Code::Canceled, ApiError::code),
            Error::WatchCompacted { .. } => Code::OutOfRange,
            Error::LeaseGone { .. } => Code::NotFound,
            Error::Answer { .. } => Code::DataLoss,
            Error::File { .. } => Code::Unknown,
        }
    }

    /// Whether the request certainly did not reach a server, or the server said that it did not
    /// begin with it.
    #[must_use]
    pub fn is_not_sent(&self) -> bool {
        matches!(
            self,
            Error::Connect { .. }
                | Error::Unreachable { .. }
                | Error::Endpoint { .. }
                | Error::Token
                | Error::Tls { .. }
                | Error::Broken {
                    unprocessed: true,
                    ..
                }
        )
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Error {
        let source = std::error::Error::source(&status);
        if let Some(not_sent) = source.and_then(|source| source.downcast_ref::<NotSent>()) {
            return Error::Connect {
                endpoint: not_sent.endpoint.to_string(),
                cause: Arc::clone(&not_sent.cause),
            };
        }
        if let Some(broken) = source.and_then(|source| source.downcast_ref::<Broken>()) {
            return Error::Broken {
                endpoint: broken.endpoint.to_string(),
                cause: broken.cause.clone(),
                unprocessed: broken.unprocessed,
            };
        }
        Error::Status {
            code: code_of(status.code()),
            message: status.message().to_owned(),
        }
    }
}

fn listed(tried: &[(String, Arc<io::Error>)]) -> String {
    let each: Vec<String> = tried
        .iter()
        .map(|(endpoint, cause)| format!("{endpoint}: {cause}"))
        .collect();
    each.join("; ")
}

fn code_of(code: tonic::Code) -> Code {
    match code {
        tonic::Code::Ok => Code::Ok,
        tonic::Code::Cancelled => Code::Canceled,
        tonic::Code::Unknown => Code::Unknown,
        tonic::Code::InvalidArgument => Code::InvalidArgument,
        tonic::Code::DeadlineExceeded => Code::DeadlineExceeded,
        tonic::Code::NotFound => Code::NotFound,
        tonic::Code::AlreadyExists => Code::AlreadyExists,
        tonic::Code::PermissionDenied => Code::PermissionDenied,
        tonic::Code::ResourceExhausted => Code::ResourceExhausted,
        tonic::Code::FailedPrecondition => Code::FailedPrecondition,
        tonic::Code::Aborted => Code::Aborted,
        tonic::Code::OutOfRange => Code::OutOfRange,
        tonic::Code::Unimplemented => Code::Unimplemented,
        tonic::Code::Internal => Code::Internal,
        tonic::Code::Unavailable => Code::Unavailable,
        tonic::Code::DataLoss => Code::DataLoss,
        tonic::Code::Unauthenticated => Code::Unauthenticated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_api_are_told_by_their_text() {
        let status = tonic::Status::new(
            tonic::Code::Unknown,
            "etcdserver: mvcc: required revision has been compacted",
        );
        let error = Error::from(status);
        assert_eq!(error.api(), Some(ApiError::Compacted));
        assert_eq!(error.code(), Code::Unknown);
    }

    #[test]
    fn a_canceled_watch_gives_the_status_that_go_printed_into_it() {
        let error = Error::WatchCanceled {
            reason: ApiError::PermissionDenied.go_status_text(),
        };
        assert_eq!(error.api(), Some(ApiError::PermissionDenied));
        assert_eq!(error.code(), Code::PermissionDenied);
    }
}
