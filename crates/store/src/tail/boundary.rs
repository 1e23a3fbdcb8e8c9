//! The moment that a segment ends at.

use std::sync::Arc;

use keelson_bolt::ReadTx;
use keelson_proto::entry::ConfState;
use keelson_proto::ids::{LogIndex, Term};

use super::Segment;
use crate::member::Membership;
use crate::row::RowChange;

/// The moment between two entries at which a segment was sealed.
///
/// Everything that stands on the file (disk snapshots, peer snapshots, hashes) takes its index,
/// term, configuration and membership from here: they are as of one entry.
#[derive(Clone, Debug)]
pub struct Boundary {
    /// The last applied entry.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// The main revision after it.
    pub revision: i64,
    /// The configuration after it.
    pub conf_state: ConfState,
    /// The membership after it, with removed members and versions.
    pub members: Arc<Membership>,
}

/// A segment that will not grow any more, with everything that goes into the file with it.
#[derive(Debug)]
pub struct Sealed {
    /// The records.
    pub segment: Arc<Segment>,
    /// Rows of every bucket but `key`, the last change of each.
    pub rows: Vec<RowChange>,
    /// Where it ends.
    pub boundary: Boundary,
    /// The memory that is held until it is committed.
    pub(crate) bytes: u64,
}

impl Sealed {
    /// The memory that is held until it is committed, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What the file holds for good, and a view of it: the answer to every commit.
#[derive(Clone)]
pub struct Durable {
    /// The moment that the file is at.
    pub boundary: Boundary,
    /// The file as of that moment.
    pub read: Arc<ReadTx>,
}
