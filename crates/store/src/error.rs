use thiserror::Error;

use crate::{BucketKey, Revision, schema};

/// What can go wrong under the store; what a client did wrong is an `ApiError` in an outcome.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine failed, or its file is damaged.
    #[error("database file: {0}")]
    Bolt(#[from] keelson_bolt::Error),
    /// A row of the file is not what its bucket holds.
    #[error("database file: bucket {bucket}, key {}: {reason}", hex(.key))]
    CorruptRow {
        /// The bucket.
        bucket: &'static str,
        /// The row's key.
        key: Vec<u8>,
        /// What was expected and what was found.
        reason: String,
    },
    /// A row of the small buckets is not what its bucket holds.
    #[error("database file: {0}")]
    Row(#[from] crate::row::RowError),
    /// The file lacks something that every state of it has.
    #[error("database file: {what} is missing")]
    Missing {
        /// What was looked for.
        what: &'static str,
    },
    /// The file was written by a release that this one does not follow.
    #[error("version {found:?} is not supported")]
    UnsupportedVersion {
        /// The storage version in the file.
        found: String,
    },
    /// The engine is not over a file that could be replaced.
    #[error("the database is not a file that can be defragmented")]
    NoFile,
    /// A file operation beside the engine's own failed.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// The file lacks a record that the index names and that no compaction has taken.
    pub(crate) fn missing_record(revision: Revision) -> Error {
        Error::CorruptRow {
            bucket: schema::KEY,
            key: BucketKey::encode(revision, false).as_bytes().to_vec(),
            reason: "the record of a revision that is not compacted is missing".to_owned(),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
