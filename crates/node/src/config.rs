//! What a member is told at start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keelson_proto::ids::{ClusterId, MemberId};
use keelson_store::Quota;
use semver::Version;

use crate::{Error, budget};

/// When old revisions are compacted by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Never.
    #[default]
    Off,
    /// Keeps this much time.
    Periodic(Duration),
    /// Keeps so many revisions.
    Revision(i64),
}

/// How a member without a log begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Beginning {
    /// As one of the first members of a new cluster (`--initial-cluster-state new`).
    #[default]
    New,
    /// As a member that a running cluster has added (`--initial-cluster-state existing`): what the
    /// other members said of it.
    Join {
        /// The cluster.
        cluster: ClusterId,
        /// The id under which it was added.
        member: MemberId,
    },
}

/// A member, as its operator describes it.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--name`.
    pub name: String,
    /// `--data-dir`.
    pub data_dir: PathBuf,
    /// `--wal-dir`, if it was given.
    pub wal_dir: Option<PathBuf>,
    /// Members of the new cluster, with their peer URLs as they are announced
    /// (`--initial-cluster`). This one is among them, by its name.
    pub initial_cluster: Vec<(String, Vec<String>)>,
    /// `--initial-cluster-token`.
    pub token: String,
    /// How it begins, if it has no log yet.
    pub beginning: Beginning,
    /// `--max-learners`; must be the same on all members.
    pub max_learners: usize,
    /// `--strict-reconfig-check`.
    pub strict_reconfig: bool,
    /// `--advertise-client-urls`.
    pub client_urls: Vec<String>,
    /// `--heartbeat-interval`.
    pub heartbeat: Duration,
    /// `--election-timeout`.
    pub election: Duration,
    /// `--pre-vote`.
    pub pre_vote: bool,
    /// `--initial-election-tick-advance`: without it a lone voter, too, waits for its election.
    pub election_at_once: bool,
    /// `--snapshot-count`, if it was given.
    pub snapshot_count: Option<u64>,
    /// `--snapshot-catchup-entries`: so many applied entries are kept in memory for members that lag, in
    /// 16 MiB at most. One that lags behind them gets a snapshot.
    pub catchup_entries: u64,
    /// `--max-snapshots`; 0 keeps all.
    pub max_snapshots: usize,
    /// `--max-wals`; 0 keeps all.
    pub max_wals: usize,
    /// `--quota-backend-bytes`.
    pub quota: Quota,
    /// The gate `LeaseCheckpoint`.
    pub lease_checkpoints: bool,
    /// `--max-request-bytes`.
    pub max_request_bytes: usize,
    /// `--auto-compaction-mode` and `--auto-compaction-retention`.
    pub auto_compaction: AutoCompaction,
    /// `--corrupt-check-time`: how often a leader compares all members; `None` for never.
    pub corrupt_check: Option<Duration>,
    /// `--compact-hash-check-time`, with the gate `CompactHashCheck`: how often a leader compares the
    /// hashes of compactions; `None` for never.
    pub compact_hash_check: Option<Duration>,
    /// `--warning-apply-duration`.
    pub slow_apply: Duration,
    /// How long a compaction waits for somebody who reads what it removes; past it, the answer of
    /// that reader is cut off.
    pub reader_patience: Duration,
    /// `--force-new-cluster`: the member goes on as the only one of the cluster in its directory, with
    /// what it knows to be committed. It counts for a directory that has a log; the other members must
    /// be wiped before they join again.
    pub force_new_cluster: bool,
    /// `--unsafe-no-fsync`.
    pub unsafe_no_fsync: bool,
    /// The size of a segment of the log, in bytes; etcd's is 64,000,000.
    pub wal_segment_bytes: u64,
    /// The release that this member announces; major and minor count. It becomes the cluster's version,
    /// and that of the database's schema follows. A member that is to leave the way back to etcd 3.6
    /// open is held at 3.6. A directory whose cluster or schema is of a later release is refused, as
    /// etcd of this release does.
    pub version: Version,
}

impl Config {
    /// etcd's defaults, for one member of a name in a directory, reached at a peer URL.
    #[must_use]
    pub fn new(name: &str, data_dir: &Path, peer_url: &str) -> Config {
        Config {
            name: name.to_owned(),
            data_dir: data_dir.to_owned(),
            wal_dir: None,
            initial_cluster: vec![(name.to_owned(), vec![peer_url.to_owned()])],
            token: "etcd-cluster".to_owned(),
            beginning: Beginning::New,
            max_learners: 1,
            strict_reconfig: true,
            client_urls: Vec::new(),
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(1_000),
            pre_vote: true,
            election_at_once: true,
            snapshot_count: None,
            catchup_entries: budget::RAFT_LOG_ENTRIES,
            max_snapshots: 5,
            max_wals: 5,
            quota: Quota::new(0),
            lease_checkpoints: false,
            max_request_bytes: 1_572_864,
            auto_compaction: AutoCompaction::Off,
            corrupt_check: None,
            compact_hash_check: None,
            slow_apply: Duration::from_millis(100),
            reader_patience: Duration::from_secs(30),
            force_new_cluster: false,
            unsafe_no_fsync: false,
            wal_segment_bytes: keelson_wal::SEGMENT_BYTES,
            version: Version::new(3, 7, 0),
        }
    }

    /// The election timeout in ticks.
    #[must_use]
    pub fn election_ticks(&self) -> u32 {
        let heartbeat = self.heartbeat.as_millis().max(1);
        u32::try_from(self.election.as_millis() / heartbeat).unwrap_or(u32::MAX / 4)
    }

    /// How long anybody waits for a request: etcd's 5 s and two election timeouts.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election
    }

    /// How long a request is remembered that was passed on to the leader: longer than anybody waits
    /// for it. It may have been lost on the way.
    pub(crate) fn waiter_patience(&self) -> Duration {
        2 * self.request_timeout()
    }

    /// The directory of database and `.snap` files.
    #[must_use]
    pub fn snap_dir(&self) -> PathBuf {
        self.data_dir.join("member").join("snap")
    }

    /// The directory of the log.
    #[must_use]
    pub fn wal_dir(&self) -> PathBuf {
        self.wal_dir
            .clone()
            .unwrap_or_else(|| self.data_dir.join("member").join("wal"))
    }

    /// The database.
    #[must_use]
    pub fn db_path(&self) -> PathBuf {
        self.snap_dir().join("db")
    }

    /// Checks what the parts lean on.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let bad = |what: &str| {
            Err(Error::BadConfig {
                what: what.to_owned(),
            })
        };
        if self.heartbeat.is_zero() {
            return bad("--heartbeat-interval must be >0");
        }
        if self.election < 5 * self.heartbeat {
            return bad("--election-timeout should be at least as 5 times as --heartbeat-interval");
        }
        if self.election > Duration::from_secs(50) {
            return bad("--election-timeout is too long, and should be set less than 50000ms");
        }
        Ok(())
    }
}
