use thiserror::Error;

/// What can be wrong with bytes from the wire or the disk.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not the protobuf message that they should be.
    #[error("cannot decode {what}: {source}")]
    Decode {
        /// The message that was expected.
        what: &'static str,
        /// What the decoder found.
        #[source]
        source: prost::DecodeError,
    },
    /// A number names no known kind.
    #[error("unknown {what} {number}")]
    UnknownKind {
        /// The enumeration.
        what: &'static str,
        /// The number that was found.
        number: i64,
    },
    /// Messages are nested deeper than we follow.
    #[error("{what} is nested deeper than {limit} levels")]
    TooDeep {
        /// The message that was expected.
        what: &'static str,
        /// The deepest nesting that is accepted, in messages.
        limit: usize,
    },
    /// A log entry holds no request, or one that this version does not know.
    #[error("the entry names no request that this version knows")]
    NoRequest,
}
