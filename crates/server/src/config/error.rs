//! Why a configuration cannot start a member, in etcd's texts where etcd refuses it too.

use super::duration::GoDuration;
use super::quote::quote;

/// A configuration that cannot start a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A listen URL with a name instead of an IP.
    #[error("expected IP in URL for binding ({0})")]
    BindHost(String),
    /// A listen URL whose port is above 65535.
    #[error("listen tcp: address {0}: invalid port")]
    BindPort(String),
    /// A list of listen URLs without any.
    #[error("--{0} must name at least one URL")]
    NoUrls(&'static str),
    /// A peer URL for others without a host; all of them and the one.
    #[error("--initial-advertise-peer-urls {urls} must be \"host:port\" (unexpected empty host ({url}))", urls = quote(urls))]
    AdvertisePeerHost {
        /// All URLs of the flag.
        urls: String,
        /// The one without a host.
        url: String,
    },
    /// A client URL for others without a host.
    #[error("--advertise-client-urls {urls} must be in the format \"host:port\", \"unix:/path/to/socket\" or \"unixs:/path/to/socket\" (unexpected empty host ({url}))", urls = quote(urls))]
    AdvertiseClientHost {
        /// All URLs of the flag.
        urls: String,
        /// The one without a host.
        url: String,
    },
    /// More than one way to find the first members.
    #[error(
        "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery-endpoints\" or \"discovery-srv\""
    )]
    ConflictingBootstrap,
    /// A discovery token without endpoints or the reverse.
    #[error("both --discovery-token and --discovery-endpoints must be set")]
    HalfDiscovery,
    /// An empty discovery endpoint.
    #[error("--discovery-endpoints must not contain empty endpoints")]
    EmptyDiscoveryEndpoint,
    /// A fallback that was removed from etcd.
    #[error("v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"")]
    DiscoveryFallback,
    /// An initial cluster state that is neither `new` nor `existing`.
    #[error("unexpected clusterState {}", quote(.0))]
    ClusterState(String),
    /// A heartbeat interval of zero.
    #[error("--heartbeat-interval must be >0 (set to 0ms)")]
    NoHeartbeat,
    /// An election timeout of zero.
    #[error("--election-timeout must be >0 (set to 0ms)")]
    NoElection,
    /// Too few heartbeats in an election timeout.
    #[error(
        "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
    )]
    ElectionShort {
        /// Milliseconds.
        election: u64,
        /// Milliseconds.
        heartbeat: u64,
    },
    /// An election timeout above 50 s.
    #[error("--election-timeout[{0}ms] is too long, and should be set less than 50000ms")]
    ElectionLong(u64),
    /// Listen URLs were chosen, but not what to tell others.
    #[error("--advertise-client-urls is required when --listen-client-urls is set explicitly")]
    AdvertiseClientUnset,
    /// An empty compaction mode.
    #[error("undefined auto-compaction-mode")]
    NoCompactionMode,
    /// A compaction mode that does not exist.
    #[error("unknown auto-compaction-mode {}", quote(.0))]
    CompactionMode(String),
    /// A compaction retention that is neither a number nor a duration.
    #[error("error parsing CompactionRetention: {0}")]
    CompactionRetention(String),
    /// A sampling rate of tracing outside of 0 to 1000000.
    #[error(
        "distributed tracing configurition is not valid: (distributed tracing sampling rate must be between 0 and 1000000, got {0})"
    )]
    TracingRate(String),
    /// A gate that needs another.
    #[error(
        "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint"
    )]
    CheckpointGate,
    /// A check of compaction hashes that would never rest.
    #[error("--compact-hash-check-time must be >0 (set to {0})")]
    CompactHashCheckTime(GoDuration),
    /// A TLS version that does not exist.
    #[error("unexpected TLS version {} (must be one of: TLS1.2, TLS1.3)", quote(.0))]
    TlsVersion(String),
    /// A smallest TLS version above the largest.
    #[error("min version ({min}) is greater than max version ({max})")]
    TlsOrder {
        /// The smallest.
        min: String,
        /// The largest.
        max: String,
    },
    /// Cipher suites where only TLS 1.3 is allowed, which has none to choose.
    #[error("cipher suites cannot be configured when only TLS1.3 is enabled")]
    CipherSuites,
    /// Clients are to speak TLS, and there is no certificate.
    #[error(
        "TLS key/cert (--cert-file, --key-file) must be provided for client url {0} with HTTPS scheme"
    )]
    NoClientCertificate(String),
    /// The same of those that read metrics.
    #[error(
        "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url"
    )]
    NoMetricsCertificate,
    /// A certificate without its key or the reverse.
    #[error("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]")]
    HalfKeyPair {
        /// The certificate's file, or nothing.
        cert: String,
        /// The key's file, or nothing.
        key: String,
    },
    /// The same of the certificate to dial with.
    #[error(
        "ClientKeyFile and ClientCertFile must both be present or both absent: key: {key}, cert: {cert}]"
    )]
    HalfClientKeyPair {
        /// The certificate's file, or nothing.
        cert: String,
        /// The key's file, or nothing.
        key: String,
    },
    /// Common names and host names that certificates may carry, where only one of the two can be.
    #[error(
        "AllowedCNs and AllowedHostnames are mutually exclusive (cns={cns}, hostnames={hostnames})"
    )]
    TwoAllowed {
        /// As Go prints a list.
        cns: String,
        /// As Go prints a list.
        hostnames: String,
    },
    /// A release that a member cannot say it is.
    #[error("--announce-version={0} must be one of 3.6, 3.7")]
    AnnounceVersion(String),
    /// The removed logger.
    #[error("--logger=capnslog is removed in v3.5")]
    LoggerRemoved,
    /// A logger that does not exist.
    #[error("unknown logger option {}", quote(.0))]
    Logger(String),
    /// `default` beside other outputs.
    #[error("multi logoutput for \"default\" is not supported yet")]
    LogOutputs,
    /// A log format that does not exist.
    #[error("unknown log format: {0}, supported values json, console")]
    LogFormat(String),
    /// A log level that does not exist; etcd ends by a panic with this text.
    #[error("unrecognized level: {}", quote(.0))]
    LogLevel(String),
    /// A log output that cannot be opened.
    #[error("open {path}: {cause}")]
    LogOpen {
        /// The file.
        path: String,
        /// Why.
        cause: String,
    },
    /// Rotation without exactly one file to rotate.
    #[error("--log-outputs requires a single file path when --log-rotate-config-json is defined")]
    LogRotation,
    /// A kind of authentication token that does not exist, or a bad option of one.
    #[error("auth: invalid auth options")]
    AuthToken,
    /// A duration below zero.
    #[error("--{flag} must not be negative (set to {value})")]
    Negative {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: GoDuration,
    },
    /// What etcd has and this release does not have yet.
    #[error("{setting} is not supported yet by this release of Keelson")]
    NotYet {
        /// The flag with its value, or what it asks for.
        setting: String,
    },
    /// A list of first members that cannot be read.
    #[error("error setting up initial cluster: {0}")]
    InitialCluster(String),
    /// The own name is not in the list of first members.
    #[error("couldn't find local name {} in the initial cluster configuration", quote(.0))]
    NotInInitialCluster(String),
    /// The list of first members and the advertised peer URLs differ.
    #[error("{0}")]
    InitialClusterUrls(String),
}

/// When etcd would find the error; its log line and exit differ by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// While the flags are verified: `failed to verify flags`, exit 1.
    Verify,
    /// While the member starts: a fatal `discovery failed` (for whatever reason), exit 1.
    Start,
    /// By a panic while logging is set up: a plain line, exit 2.
    Panic,
}

impl ConfigError {
    /// When etcd would find the error.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self {
            ConfigError::LogLevel(_) => Stage::Panic,
            ConfigError::CompactionRetention(_)
            | ConfigError::AuthToken
            | ConfigError::BindPort(_)
            | ConfigError::HalfKeyPair { .. }
            | ConfigError::HalfClientKeyPair { .. }
            | ConfigError::TwoAllowed { .. }
            | ConfigError::InitialCluster(_)
            | ConfigError::NotInInitialCluster(_)
            | ConfigError::InitialClusterUrls(_) => Stage::Start,
            _ => Stage::Verify,
        }
    }
}
