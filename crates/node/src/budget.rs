//! Every limit on memory and queues, in one place, checked against one another.

/// Records in one segment of the tail, in bytes: it is sealed when it holds this much.
pub const TAIL_SEGMENT_BYTES: u64 = 16 << 20;

/// Sealed segments that wait for the file; with this many, apply waits.
pub const SEALED_WAITING_MAX: u64 = 2;

/// The age at which a segment is sealed, in milliseconds.
pub const TAIL_SEGMENT_AGE_MILLIS: u64 = 30_000;

/// Committed segments that stay in memory for watchers that lag, in bytes.
pub const WINDOW_BYTES: u64 = 16 << 20;

/// Applied entries that consensus keeps in memory for other members, in bytes.
pub const RAFT_LOG_BYTES: u64 = 16 << 20;

/// Applied entries that consensus keeps in memory for other members, unless the operator says otherwise.
///
/// # Source
///
/// The default of etcd's `--snapshot-catchup-entries` (`spec/formats.md` 4.2).
pub const RAFT_LOG_ENTRIES: u64 = 5_000;

/// The same while a member is getting a snapshot, in bytes: it will need what came meanwhile.
pub const RAFT_LOG_HELD_BYTES: u64 = 64 << 20;

/// The same while a member is getting a snapshot.
pub const RAFT_LOG_HELD_ENTRIES: u64 = 200_000;

/// Entries of other members that this one holds in memory, in bytes: not synced, not applied, or kept
/// for others. With more, appends are dropped, and their sender sends them again.
pub const INBOUND_BYTES: u64 = 48 << 20;

/// Messages of other members that wait for consensus.
pub const INBOUND_MAX: usize = 10_000;

/// What a leader takes without having it committed, in bytes: more is refused.
pub const UNCOMMITTED_BYTES: u64 = PROPOSALS_BYTES;

/// Append messages that are on their way to one member, in bytes.
pub const INFLIGHT_BYTES: u64 = 16 << 20;

/// The file of a snapshot that another member sends, in bytes: a larger one is refused.
pub const SNAPSHOT_BYTES_MAX: u64 = 64 << 30;

/// Proposals that are on their way to the own log, in bytes: more are refused.
pub const PROPOSALS_BYTES: u64 = 64 << 20;

/// Proposals that are on their way to the own log.
pub const PROPOSALS_MAX: usize = 100_000;

/// Entries that are committed and not applied: with more, proposals are refused.
///
/// # Source
///
/// `spec/api.md` 2.1, "Proposal path".
pub const BACKLOG_ENTRIES: u64 = 5_000;

/// The backlog up to which a revoke of a lease is still let in.
pub const BACKLOG_ENTRIES_PRIORITY: u64 = 10_000;

/// Committed entries that are handed to apply and not acknowledged, in bytes.
pub const APPLYING_BYTES: u64 = 4 << 20;

/// Read barriers that wait.
pub const BARRIERS_MAX: usize = 100_000;

/// What a member may hold in memory for the sake of writes, in bytes: the open segment, the one that is
/// being committed, those that wait, and the rest.
pub const WRITE_BYTES: u64 = TAIL_SEGMENT_BYTES * (SEALED_WAITING_MAX + 2)
    + WINDOW_BYTES
    + RAFT_LOG_HELD_BYTES
    + PROPOSALS_BYTES
    + APPLYING_BYTES;

const _: () = assert!(
    TAIL_SEGMENT_BYTES == keelson_store::SEGMENT_BYTES_MAX,
    "the store and the node seal at the same size"
);
const _: () = assert!(
    APPLYING_BYTES < TAIL_SEGMENT_BYTES,
    "what is handed to apply at once fits into a segment"
);
const _: () = assert!(
    RAFT_LOG_ENTRIES >= BACKLOG_ENTRIES,
    "the log in memory holds what is not applied"
);
const _: () = assert!(
    WRITE_BYTES < 256 << 20,
    "a member fits into a small machine"
);
