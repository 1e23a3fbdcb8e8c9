//! What can go wrong: refused, failed, damaged.

use std::io;

use crate::{PageId, TxId};

/// Every error of the engine. The texts of the refusals are bbolt's (formats 1.18).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The database was closed.
    #[error("database not open")]
    NotOpen,
    /// Neither meta page has the magic number, or the file is too short to hold one.
    #[error("invalid database")]
    InvalidDatabase,
    /// The file was written by another version of the format.
    #[error("version mismatch")]
    VersionMismatch,
    /// A meta page does not match its checksum.
    #[error("checksum error")]
    Checksum,
    /// The file holds fewer bytes than two pages.
    #[error("file size too small {size}")]
    FileTooSmall {
        /// The file's length in bytes.
        size: u64,
    },
    /// Another process holds the file's lock.
    #[error("timeout")]
    Timeout,
    /// A change was asked of a database opened for reading.
    #[error("database is in read-only mode")]
    ReadOnly,
    /// No bucket has this name.
    #[error("bucket not found")]
    BucketNotFound,
    /// A bucket of this name exists.
    #[error("bucket already exists")]
    BucketExists,
    /// The name of a bucket is empty.
    #[error("bucket name required")]
    BucketNameRequired,
    /// The key is empty.
    #[error("key required")]
    KeyRequired,
    /// The key is longer than [`crate::MAX_KEY_SIZE`].
    #[error("key too large")]
    KeyTooLarge,
    /// The value is longer than [`crate::MAX_VALUE_SIZE`].
    #[error("value too large")]
    ValueTooLarge,
    /// The file would grow past [`crate::Options::max_size`].
    #[error("database reached maximum size")]
    MaxSizeReached,
    /// A bucket stands where a value is wanted, or a value where a bucket is.
    #[error("incompatible value")]
    IncompatibleValue,
    /// The bucket is to be moved to where it is.
    #[error("the source and target are the same bucket")]
    SameBucket,
    /// The bucket is to be moved into itself or into a bucket inside of it.
    #[error("a bucket cannot be moved into itself")]
    MoveIntoItself,
    /// Buckets are nested deeper than [`crate::MAX_NESTING`].
    #[error("buckets are nested deeper than {} levels", crate::MAX_NESTING)]
    TooDeep,
    /// The page size asked for is no power of two between 1 KiB and 16 MiB.
    #[error("page size {0} is not a power of two between 1024 and 16777216")]
    PageSize(u32),
    /// What was asked of a page cannot be done with it; see [`crate::surgery`].
    #[error("{0}")]
    Surgery(String),
    /// A change of this transaction failed half-way; it can only be dropped.
    #[error("tx {tx} had a failed change and cannot be committed")]
    Failed {
        /// The transaction.
        tx: TxId,
    },
    /// The write transaction that several callers of [`crate::Db::batch`] shared failed.
    #[error(transparent)]
    Batch(std::sync::Arc<Error>),
    /// The operating system refused an operation on the file.
    #[error("{action}: {source}")]
    Io {
        /// What was attempted, with the file's name where there is one.
        action: String,
        /// What the system answered.
        source: io::Error,
    },
    /// An earlier write or sync failed, so what the disk holds is unknown; nothing is done until
    /// the file is opened anew.
    #[error("database is stopped: an earlier write or sync failed")]
    Poisoned,
    /// A page does not hold what it must.
    #[error("page {page}: {damage}")]
    Corrupt {
        /// The page.
        page: PageId,
        /// What is wrong with it.
        damage: Damage,
    },
}

/// What is wrong with a page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// A reference to a page at or past the high-water mark, or to a meta page.
    #[error("out of bounds: {high_water}")]
    OutOfBounds {
        /// One past the highest page in use.
        high_water: PageId,
    },
    /// The page's header names another page.
    #[error("page expected to be: {expected}, but self identifies as {found}")]
    WrongId {
        /// The page that was read.
        expected: PageId,
        /// What its header says.
        found: PageId,
    },
    /// The page is of another type than the place it is referred to from.
    #[error("unexpected page type (flags: {flags:x})")]
    WrongType {
        /// The flags in its header.
        flags: u16,
    },
    /// The element array is longer than the page.
    #[error("{count} elements do not fit the page")]
    Count {
        /// The number of elements its header gives.
        count: u64,
    },
    /// An element's key or value reaches outside of the page, or its key is empty.
    #[error("element {index} reaches outside of the page or has no key")]
    Element {
        /// The element's place in the page.
        index: usize,
    },
    /// Elements share bytes.
    #[error("elements overlap")]
    Overlap,
    /// A branch page without children.
    #[error("branch page without elements")]
    EmptyBranch,
    /// The tree is deeper than any sound tree can be: it has a loop.
    #[error("tree too deep: it refers to itself")]
    Loop,
    /// The value of a bucket is shorter than its header, or its inline page is unsound.
    #[error("unsound bucket header")]
    BucketHeader,
    /// The page is freed though it is free.
    #[error("already freed")]
    AlreadyFreed,
    /// The page is reached by two ways.
    #[error("multiple references")]
    MultipleReferences,
    /// The list of free pages names a page that cannot be free.
    #[error("freelist names page {id}")]
    FreelistEntry {
        /// What it names.
        id: PageId,
    },
    /// The file ends before the last page in use.
    #[error("the file of {len} bytes ends before the last page in use, {needed} bytes are needed")]
    Truncated {
        /// The file's length in bytes.
        len: u64,
        /// The length that the meta page promises.
        needed: u64,
    },
}

impl Error {
    /// Whether the file is damaged (rather than a request refused or an operation failed).
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(
            self,
            Error::Corrupt { .. }
                | Error::InvalidDatabase
                | Error::VersionMismatch
                | Error::Checksum
                | Error::FileTooSmall { .. }
        ) || matches!(self, Error::Batch(error) if error.is_corrupt())
    }

    pub(crate) fn corrupt(page: PageId, damage: Damage) -> Error {
        Error::Corrupt { page, damage }
    }

    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let action = action.into();
        move |source| Error::Io { action, source }
    }
}
