//! What a member is started with: plain data, the rules over it, and the proof of having passed.
//!
//! [`Config`] holds what flags, the environment, a file or a program set; [`Config::check`] applies
//! the rules of etcd 3.7.1 (api.md 5.1 and 5.5) and gives [`Checked`], from which alone a member
//! starts. A setting whose function is not there yet is refused by name, never ignored.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use crate::url::Url;

mod bootstrap;
mod check;
mod duration;
mod error;
mod gates;
mod quote;
mod tls;

pub use bootstrap::Bootstrap;
pub use duration::GoDuration;
pub use error::{ConfigError, Stage};
pub use gates::{FeatureGates, Gate, go_bool};
pub use quote::quote;
pub use tls::TlsSettings;

/// The etcd that programs may take this member for: `/version`, `Status` and peers' headers say it.
pub const ETCD_VERSION: &str = "3.7.1";
/// The etcd 3.6 that programs may take a member for that is held at it (`announce-version`).
pub const ETCD_VERSION_3_6: &str = "3.6.14";
/// The name of a member that was given none.
pub const DEFAULT_NAME: &str = "default";
/// Where clients are listened for, and what they are told, when nothing is said.
pub const DEFAULT_CLIENT_URL: &str = "http://localhost:2379";
/// Where peers are listened for, and what they are told, when nothing is said.
pub const DEFAULT_PEER_URL: &str = "http://localhost:2380";
/// The size of the database that raises the space alarm when no quota is set, in bytes.
pub const DEFAULT_QUOTA: u64 = 2 * 1024 * 1024 * 1024;
/// The value of `log-rotation-config-json` when nothing is said.
pub const DEFAULT_LOG_ROTATION: &str =
    r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#;

/// Everything a member can be told, with etcd's names and defaults. A field's doc names the flag
/// where the name differs; api.md 5.1 says what each one means.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "one field a flag")]
pub struct Config {
    /// Human-readable name of this member.
    pub name: String,
    /// Data directory; empty: `<name>.etcd` in the working directory.
    pub data_dir: PathBuf,
    /// Directory of the log; empty: `member/wal` in the data directory.
    pub wal_dir: PathBuf,
    /// Applied entries between snapshots; 0: the default.
    pub snapshot_count: u64,
    /// Entries kept in memory for slow followers after a snapshot; 0: the default.
    pub snapshot_catchup_entries: u64,
    /// Snapshot files to keep; 0: all.
    pub max_snapshots: u32,
    /// Log segments to keep; 0: all.
    pub max_wals: u32,
    /// Heartbeat interval in milliseconds: one tick.
    pub heartbeat_ms: u64,
    /// Election timeout in milliseconds.
    pub election_ms: u64,
    /// Whether ticks are skipped at start so that the first election comes sooner.
    pub initial_election_tick_advance: bool,

    /// URLs to listen on for peers.
    pub listen_peer_urls: Vec<Url>,
    /// URLs to listen on for clients: gRPC, and HTTP unless `listen_client_http_urls` is set.
    pub listen_client_urls: Vec<Url>,
    /// URLs to listen on for HTTP alone.
    pub listen_client_http_urls: Vec<Url>,
    /// Further URLs for `/metrics` and `/health`.
    pub listen_metrics_urls: Vec<Url>,
    /// `initial-advertise-peer-urls`: what other members are told.
    pub advertise_peer_urls: Vec<Url>,
    /// What clients are told. Empty is an error unless `client_listeners` are given.
    pub advertise_client_urls: Vec<Url>,
    /// Sockets that are bound already, in place of `listen_client_urls`, which then follow them
    /// (and so do `advertise_client_urls` when they are empty or at their default).
    pub client_listeners: Vec<TcpListener>,
    /// Sockets that are bound already, in place of `listen_peer_urls`, in the same way.
    pub peer_listeners: Vec<TcpListener>,
    /// Sets `SO_REUSEPORT` on listening sockets.
    pub socket_reuse_port: bool,
    /// Sets `SO_REUSEADDR` on listening sockets.
    pub socket_reuse_address: bool,

    /// First members as `name=url,..`; `None`: this member alone, at its advertised peer URLs.
    /// Looked at only when the data directory holds no member yet.
    pub initial_cluster: Option<String>,
    /// Whether a new cluster is begun or one that exists is joined.
    pub initial_cluster_state: ClusterState,
    /// Goes into the ids of cluster and members.
    pub initial_cluster_token: String,
    /// Refuses changes of membership that would lose quorum.
    pub strict_reconfig_check: bool,
    /// Asks for votes before a term is raised.
    pub pre_vote: bool,
    /// Learners that the cluster may have.
    pub max_learners: u32,
    /// The release of etcd that this member says it is, `3.6` or `3.7`. A cluster takes the smallest
    /// of its members' as its version, and raises its files to that: at 3.6 they can still go back.
    pub announce_version: String,
    /// TLS with clients.
    pub client_tls: TlsSettings,
    /// TLS between members.
    pub peer_tls: TlsSettings,
    /// Years that a certificate is valid which the member makes for itself; 0: 1.
    pub self_signed_cert_validity: u32,
    /// Suites of TLS 1.2 by their names in Go; empty: the usual ones.
    pub cipher_suites: Vec<String>,
    /// `TLS1.2` or `TLS1.3`; empty: `TLS1.2`.
    pub tls_min_version: String,
    /// `TLS1.2` or `TLS1.3`; empty: the highest there is.
    pub tls_max_version: String,
    /// The member goes on as the only one of the cluster in its data directory.
    pub force_new_cluster: bool,

    /// Operations in one transaction.
    pub max_txn_ops: u32,
    /// Largest request of a client in bytes; gRPC adds 512 KiB for its own limit.
    pub max_request_bytes: u32,
    /// Streams that one client connection may have open.
    pub max_concurrent_streams: u32,
    /// Shortest interval at which clients may ping.
    pub grpc_keepalive_min_time: Duration,
    /// Interval at which idle clients are pinged; 0: never.
    pub grpc_keepalive_interval: Duration,
    /// How long an answer to a ping is waited for; 0: no pings.
    pub grpc_keepalive_timeout: Duration,
    /// Read timeout of connections to peers.
    pub raft_read_timeout: Duration,
    /// Write timeout of connections to peers.
    pub raft_write_timeout: Duration,

    /// Size of the database that raises the space alarm; 0: [`DEFAULT_QUOTA`], below 0: none.
    pub quota_backend_bytes: i64,
    /// `array`, or anything else for a map.
    pub backend_bbolt_freelist_type: String,
    /// Longest time that a change waits for its commit to the file; 0: 100 ms.
    pub backend_batch_interval: Duration,
    /// Most changes that wait for a commit; 0: 10000.
    pub backend_batch_limit: u32,
    /// `periodic` or `revision`.
    pub auto_compaction_mode: String,
    /// Hours, a duration, or a number of revisions; `0`: no automatic compaction.
    pub auto_compaction_retention: String,
    /// Revisions that one slice of a compaction deletes; 0: 1000.
    pub compaction_batch_limit: u32,
    /// Rest between the slices of a compaction; 0: 10 ms.
    pub compaction_sleep_interval: Duration,
    /// Interval of progress notifications on watches that asked for them; 0: 10 minutes.
    pub watch_progress_notify_interval: Duration,
    /// Interval of comparing this member with others; 0: never.
    pub corrupt_check_time: Duration,
    /// Interval of comparing hashes of compactions with others.
    pub compact_hash_check_time: Duration,
    /// Interval of looking whether a downgrade is complete.
    pub downgrade_check_time: Duration,

    /// An apply that takes longer is warned of.
    pub warning_apply_duration: Duration,
    /// A unary call that takes longer is warned of; 0: 300 ms.
    pub warning_unary_request_duration: Duration,
    /// `basic`, or `extensive` with histograms of calls.
    pub metrics: String,

    /// Whether profiles were asked for; there are none, which a warning says.
    pub enable_pprof: bool,

    /// Kind of token and its options; `simple` is what there is.
    pub auth_token: String,
    /// Life of a token in seconds; 0: 300.
    pub auth_token_ttl: u64,
    /// Cost of hashing a password, 4 to 31.
    pub bcrypt_cost: u32,
    /// Whether the JSON gateway is served; it does not exist yet.
    pub enable_grpc_gateway: bool,

    /// `zap` is what there is.
    pub logger: String,
    /// `default`, `stderr`, `stdout`, `systemd/journal` or files.
    pub log_outputs: Vec<String>,
    /// `debug`, `info`, `warn`, `error`, `dpanic`, `panic` or `fatal`.
    pub log_level: String,
    /// `json` or `console`.
    pub log_format: String,
    /// Logs for people instead of `log_format`, and says at the end of the start what to do next.
    pub for_people: bool,

    /// Switches for what is not settled.
    pub feature_gates: FeatureGates,
    /// Settings of etcd that are read, but have no function yet: flag and value, only where it
    /// differs from the default. [`Config::check`] refuses each of them.
    pub not_yet: BTreeMap<&'static str, String>,
    /// Flags that were set by hand; some defaults and warnings depend on that.
    pub set_flags: Vec<&'static str>,
}

/// `initial-cluster-state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterState {
    /// A new cluster is begun.
    #[default]
    New,
    /// A cluster that exists is joined.
    Existing,
}

/// Compaction that the leader asks for by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Revisions older than this are dropped.
    Periodic(Duration),
    /// The newest so many revisions are kept.
    Revision(i64),
}

impl Default for Config {
    fn default() -> Config {
        let url = |text| vec![Url::parse(text).expect("the default URLs are valid")];
        Config {
            name: DEFAULT_NAME.to_owned(),
            data_dir: PathBuf::new(),
            wal_dir: PathBuf::new(),
            snapshot_count: 10_000,
            snapshot_catchup_entries: 5_000,
            max_snapshots: 5,
            max_wals: 5,
            heartbeat_ms: 100,
            election_ms: 1_000,
            initial_election_tick_advance: true,
            listen_peer_urls: url(DEFAULT_PEER_URL),
            listen_client_urls: url(DEFAULT_CLIENT_URL),
            listen_client_http_urls: Vec::new(),
            listen_metrics_urls: Vec::new(),
            advertise_peer_urls: url(DEFAULT_PEER_URL),
            advertise_client_urls: url(DEFAULT_CLIENT_URL),
            client_listeners: Vec::new(),
            peer_listeners: Vec::new(),
            socket_reuse_port: false,
            socket_reuse_address: false,
            initial_cluster: None,
            initial_cluster_state: ClusterState::New,
            initial_cluster_token: "etcd-cluster".to_owned(),
            strict_reconfig_check: true,
            pre_vote: true,
            max_learners: 1,
            announce_version: "3.7".to_owned(),
            client_tls: TlsSettings::default(),
            peer_tls: TlsSettings::default(),
            self_signed_cert_validity: 1,
            cipher_suites: Vec::new(),
            tls_min_version: "TLS1.2".to_owned(),
            tls_max_version: String::new(),
            force_new_cluster: false,
            max_txn_ops: 128,
            max_request_bytes: 1_572_864,
            max_concurrent_streams: u32::MAX,
            grpc_keepalive_min_time: Duration::from_secs(5),
            grpc_keepalive_interval: Duration::from_secs(2 * 3600),
            grpc_keepalive_timeout: Duration::from_secs(20),
            raft_read_timeout: check::PEER_TIMEOUT,
            raft_write_timeout: check::PEER_TIMEOUT,
            quota_backend_bytes: 0,
            backend_bbolt_freelist_type: String::new(),
            backend_batch_interval: Duration::ZERO,
            backend_batch_limit: 0,
            auto_compaction_mode: "periodic".to_owned(),
            auto_compaction_retention: "0".to_owned(),
            compaction_batch_limit: 0,
            compaction_sleep_interval: Duration::ZERO,
            watch_progress_notify_interval: Duration::ZERO,
            corrupt_check_time: Duration::ZERO,
            compact_hash_check_time: Duration::from_secs(60),
            downgrade_check_time: Duration::from_secs(5),
            warning_apply_duration: Duration::from_millis(100),
            warning_unary_request_duration: check::UNARY_WARNING,
            metrics: "basic".to_owned(),
            enable_pprof: false,
            auth_token: "simple".to_owned(),
            auth_token_ttl: check::TOKEN_TTL_SECONDS,
            bcrypt_cost: check::BCRYPT_COST,
            enable_grpc_gateway: true,
            logger: "zap".to_owned(),
            log_outputs: vec!["default".to_owned()],
            log_level: "info".to_owned(),
            log_format: "json".to_owned(),
            for_people: false,
            feature_gates: FeatureGates::default(),
            not_yet: BTreeMap::new(),
            set_flags: Vec::new(),
        }
    }
}

impl Config {
    /// Whether `flag` was set by hand.
    #[must_use]
    pub fn is_set(&self, flag: &str) -> bool {
        self.set_flags.contains(&flag)
    }

    /// Applies every rule, fills in what was left to the program and logs etcd's warnings.
    ///
    /// # Errors
    /// The first rule that is broken, in etcd's order and with its text.
    pub fn check(self) -> Result<Checked, ConfigError> {
        check::check(self)
    }
}

/// A configuration that passed every rule: directories, batch limits and intervals are filled in.
#[derive(Debug)]
pub struct Checked {
    config: Config,
    auto_compaction: Option<AutoCompaction>,
}

impl Deref for Checked {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.config
    }
}

impl Checked {
    /// `member` in the data directory.
    #[must_use]
    pub fn member_dir(&self) -> PathBuf {
        self.config.data_dir.join("member")
    }

    /// The directory of the log.
    #[must_use]
    pub fn wal_path(&self) -> PathBuf {
        if self.config.wal_dir.as_os_str().is_empty() {
            self.member_dir().join("wal")
        } else {
            self.config.wal_dir.clone()
        }
    }

    /// Whether there is a log: then the member has been started before. A directory alone says
    /// nothing, since a crash may have come before the log.
    #[must_use]
    pub fn has_log(&self) -> bool {
        std::fs::read_dir(self.wal_path()).is_ok_and(|entries| {
            let mut names = entries.flatten().map(|entry| entry.path());
            names.any(|path| path.extension().is_some_and(|it| it == "wal"))
        })
    }

    /// The release of etcd that this member says it is, in full.
    #[must_use]
    pub fn announced_version(&self) -> &'static str {
        if self.config.announce_version == "3.6" {
            ETCD_VERSION_3_6
        } else {
            ETCD_VERSION
        }
    }

    /// The directory of snapshots and of the database.
    #[must_use]
    pub fn snap_path(&self) -> PathBuf {
        self.member_dir().join("snap")
    }

    /// One tick of the consensus clock: the heartbeat interval.
    #[must_use]
    pub fn tick(&self) -> Duration {
        Duration::from_millis(self.config.heartbeat_ms)
    }

    /// Ticks in an election timeout; at least 5.
    #[must_use]
    pub fn election_ticks(&self) -> u32 {
        let ticks = self.config.election_ms / self.config.heartbeat_ms;
        u32::try_from(ticks).expect("an election timeout is at most 50000 ms")
    }

    /// The size in bytes that raises the space alarm; `None`: no quota.
    #[must_use]
    pub fn quota(&self) -> Option<u64> {
        match self.config.quota_backend_bytes {
            0 => Some(DEFAULT_QUOTA),
            quota => u64::try_from(quota).ok(),
        }
    }

    /// Whether free pages are kept in an array instead of a map.
    #[must_use]
    pub fn freelist_is_array(&self) -> bool {
        self.config.backend_bbolt_freelist_type == "array"
    }

    /// What the leader compacts by itself.
    #[must_use]
    pub fn auto_compaction(&self) -> Option<AutoCompaction> {
        self.auto_compaction
    }

    /// The sockets for clients that were bound before, if any; they can be taken once.
    #[must_use]
    pub fn take_client_listeners(&mut self) -> Vec<TcpListener> {
        std::mem::take(&mut self.config.client_listeners)
    }

    /// The sockets for peers that were bound before, if any; they can be taken once.
    #[must_use]
    pub fn take_peer_listeners(&mut self) -> Vec<TcpListener> {
        std::mem::take(&mut self.config.peer_listeners)
    }
}

#[cfg(test)]
mod tests;
