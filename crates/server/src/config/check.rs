//! The rules over a configuration, in the order in which etcd applies them.

use std::time::Duration;

use keelson_node::HumanBytes;
use tracing::{info, warn};

use super::duration::GoDuration;
use super::gates::Gate;
use super::{AutoCompaction, Checked, Config, ConfigError, DEFAULT_CLIENT_URL, DEFAULT_NAME};
use super::{DEFAULT_PEER_URL, DEFAULT_QUOTA};
use crate::url::Url;

/// Default and smallest timeout of connections to peers.
pub(super) const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// Default of `warning-unary-request-duration`.
pub(super) const UNARY_WARNING: Duration = Duration::from_millis(300);
/// Default life of a simple token in seconds.
pub(super) const TOKEN_TTL_SECONDS: u64 = 300;
/// Default cost of hashing a password.
pub(super) const BCRYPT_COST: u32 = 10;

const MAX_ELECTION_MS: u64 = 50_000;
const MIN_PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
const RECOMMENDED_REQUEST_BYTES: u32 = 10 * 1024 * 1024;
const RECOMMENDED_QUOTA: i64 = 8 * 1024 * 1024 * 1024;

/// Applies the rules, then fills in what was left to the program.
pub(super) fn check(mut config: Config) -> Result<Checked, ConfigError> {
    crate::logging::check(&config)?;
    follow_listeners(&mut config);
    check_urls(&config)?;
    check_discovery(&config)?;
    check_intervals(&config)?;
    // Compared with what was set, since the default stands for what is told to clients.
    if config.advertise_client_urls.is_empty() {
        return Err(ConfigError::AdvertiseClientUnset);
    }
    match config.auto_compaction_mode.as_str() {
        "periodic" | "revision" => {}
        "" => return Err(ConfigError::NoCompactionMode),
        mode => return Err(ConfigError::CompactionMode(mode.to_owned())),
    }
    check_tracing(&config)?;
    check_gates(&config)?;
    if config.compact_hash_check_time.is_zero() {
        return Err(ConfigError::CompactHashCheckTime(GoDuration(0)));
    }
    if config.name == DEFAULT_NAME {
        warn!(
            name = DEFAULT_NAME,
            "it isn't recommended to use default name, please set a value for --name. Note that \
             etcd might run into issue when multiple members have the same default name"
        );
    }
    super::tls::check_versions(&config)?;
    if !["3.6", "3.7"].contains(&config.announce_version.as_str()) {
        return Err(ConfigError::AnnounceVersion(config.announce_version));
    }
    check_supported(&config)?;
    let auto_compaction = auto_compaction(&config)?;
    check_auth_token(&config.auth_token)?;
    warn_of(&config);
    fill_in(&mut config);
    Ok(Checked {
        config,
        auto_compaction,
    })
}

/// Makes the URLs those of sockets that are bound already, with TLS where the first URL had it.
fn follow_listeners(config: &mut Config) {
    let addresses = |listeners: &[std::net::TcpListener], urls: &[Url]| -> Vec<Url> {
        let is_tls = urls.first().is_some_and(Url::is_tls);
        let bound = listeners.iter().filter_map(|l| l.local_addr().ok());
        bound.map(|a| Url::of_address(a, is_tls)).collect()
    };
    let follows = |urls: &[Url], default: &str| {
        urls.is_empty() || (urls.len() == 1 && urls[0].as_str() == default)
    };
    if !config.client_listeners.is_empty() {
        config.listen_client_urls = addresses(&config.client_listeners, &config.listen_client_urls);
        if follows(&config.advertise_client_urls, DEFAULT_CLIENT_URL) {
            config.advertise_client_urls = config.listen_client_urls.clone();
        }
    }
    if !config.peer_listeners.is_empty() {
        config.listen_peer_urls = addresses(&config.peer_listeners, &config.listen_peer_urls);
        if follows(&config.advertise_peer_urls, DEFAULT_PEER_URL) {
            config.advertise_peer_urls = config.listen_peer_urls.clone();
        }
    }
}

fn check_urls(config: &Config) -> Result<(), ConfigError> {
    let needed = [
        ("listen-peer-urls", &config.listen_peer_urls),
        ("listen-client-urls", &config.listen_client_urls),
        ("initial-advertise-peer-urls", &config.advertise_peer_urls),
    ];
    for (flag, urls) in needed {
        if urls.is_empty() {
            return Err(ConfigError::NoUrls(flag));
        }
    }
    check_bind(&config.listen_peer_urls)?;
    check_bind(&config.listen_client_urls)?;
    check_bind(&config.listen_client_http_urls)?;
    if config.listen_client_http_urls.is_empty() {
        warn!(
            "Running http and grpc server on single port. This is not recommended for production."
        );
    }
    check_bind(&config.listen_metrics_urls)?;
    if let Some(url) = without_host(&config.advertise_peer_urls) {
        let urls = join(&config.advertise_peer_urls);
        return Err(ConfigError::AdvertisePeerHost { urls, url });
    }
    if let Some(url) = without_host(&config.advertise_client_urls) {
        let urls = join(&config.advertise_client_urls);
        return Err(ConfigError::AdvertiseClientHost { urls, url });
    }
    Ok(())
}

/// A TCP URL to listen on has an IP or `localhost`.
fn check_bind(urls: &[Url]) -> Result<(), ConfigError> {
    for url in urls {
        let Some(host) = url.host() else { continue };
        if host != "localhost" && host.parse::<std::net::IpAddr>().is_err() {
            return Err(ConfigError::BindHost(url.to_string()));
        }
        if url.port().is_none() {
            return Err(ConfigError::BindPort(url.authority().to_owned()));
        }
    }
    Ok(())
}

fn without_host(urls: &[Url]) -> Option<String> {
    urls.iter()
        .find(|url| url.host() == Some(""))
        .map(Url::to_string)
}

/// The URLs as a flag takes them.
pub(super) fn join(urls: &[Url]) -> String {
    urls.iter().map(Url::as_str).collect::<Vec<_>>().join(",")
}

/// Discovery is not there yet; what etcd says about wrong uses of it comes first.
fn check_discovery(config: &Config) -> Result<(), ConfigError> {
    let value = |flag: &str| config.not_yet.get(flag).map_or("", String::as_str);
    if value("discovery-fallback") == "proxy" {
        return Err(ConfigError::DiscoveryFallback);
    }
    let (srv, endpoints) = (value("discovery-srv"), value("discovery-endpoints"));
    let ways = [
        config
            .initial_cluster
            .as_deref()
            .is_some_and(|members| !members.is_empty()),
        !srv.is_empty(),
        !endpoints.is_empty(),
    ];
    if ways.into_iter().filter(|set| *set).count() > 1 {
        return Err(ConfigError::ConflictingBootstrap);
    }
    if value("discovery-token").is_empty() != endpoints.is_empty() {
        return Err(ConfigError::HalfDiscovery);
    }
    if !endpoints.is_empty() && endpoints.split(',').any(|one| one.trim().is_empty()) {
        return Err(ConfigError::EmptyDiscoveryEndpoint);
    }
    Ok(())
}

fn check_intervals(config: &Config) -> Result<(), ConfigError> {
    let (heartbeat, election) = (config.heartbeat_ms, config.election_ms);
    if heartbeat == 0 {
        return Err(ConfigError::NoHeartbeat);
    }
    if election == 0 {
        return Err(ConfigError::NoElection);
    }
    if heartbeat.saturating_mul(5) > election {
        return Err(ConfigError::ElectionShort {
            election,
            heartbeat,
        });
    }
    if election > MAX_ELECTION_MS {
        return Err(ConfigError::ElectionLong(election));
    }
    Ok(())
}

fn check_tracing(config: &Config) -> Result<(), ConfigError> {
    if config.not_yet.contains_key("enable-distributed-tracing")
        && let Some(rate) = config.not_yet.get("distributed-tracing-sampling-rate")
        && !rate.parse::<u32>().is_ok_and(|rate| rate <= 1_000_000)
    {
        return Err(ConfigError::TracingRate(rate.clone()));
    }
    Ok(())
}

fn check_gates(config: &Config) -> Result<(), ConfigError> {
    let on = |gate| config.feature_gates.enabled(gate);
    if on(Gate::LeaseCheckpoint) && !on(Gate::LeaseCheckpointPersist) {
        warn!(
            "Detected that checkpointing is enabled without persistence. Consider enabling feature \
             gate LeaseCheckpointPersist"
        );
    }
    if on(Gate::LeaseCheckpointPersist) && !on(Gate::LeaseCheckpoint) {
        return Err(ConfigError::CheckpointGate);
    }
    Ok(())
}

/// Refuses what etcd has and this release has not.
fn check_supported(config: &Config) -> Result<(), ConfigError> {
    let refuse = |setting: String| Err(ConfigError::NotYet { setting });
    let asked = config
        .not_yet
        .iter()
        .find(|(flag, _)| !means_nothing_alone(flag));
    if let Some((flag, value)) = asked {
        return refuse(format!("--{flag}={value}"));
    }
    for gate in [Gate::PriorityRequest, Gate::StopGRPCServiceOnDefrag] {
        if config.feature_gates.enabled(gate) {
            return refuse(format!("--feature-gates={}=true", gate.name()));
        }
    }
    Ok(())
}

/// Details of discovery, tracing and rotation. Without the flag that turns those on, which is
/// refused itself, they change nothing in etcd either; its sample file sets some of them.
fn means_nothing_alone(flag: &str) -> bool {
    let of_discovery = flag.starts_with("discovery-")
        && !["discovery-token", "discovery-endpoints", "discovery-srv"].contains(&flag);
    of_discovery || flag.starts_with("distributed-tracing-") || flag == "log-rotation-config-json"
}

/// etcd's reading of mode and retention: a bare number is hours, or revisions; else a duration.
fn auto_compaction(config: &Config) -> Result<Option<AutoCompaction>, ConfigError> {
    let text = config.auto_compaction_retention.as_str();
    let by_revision = config.auto_compaction_mode == "revision";
    let nanos = match text.parse::<i64>() {
        Ok(count) if count >= 0 && by_revision => count,
        Ok(hours) if hours >= 0 => {
            let cause = || ConfigError::CompactionRetention(format!("{hours} hours is too long"));
            hours.checked_mul(3_600_000_000_000).ok_or_else(cause)?
        }
        _ => {
            GoDuration::parse(text)
                .map_err(ConfigError::CompactionRetention)?
                .0
        }
    };
    match u64::try_from(nanos) {
        Ok(0) => Ok(None),
        Ok(_) if by_revision => Ok(Some(AutoCompaction::Revision(nanos))),
        Ok(nanos) => Ok(Some(AutoCompaction::Periodic(Duration::from_nanos(nanos)))),
        Err(_) => Err(ConfigError::CompactionRetention(format!(
            "{text} is below zero"
        ))),
    }
}

/// The kind of token, then `key=value` options.
fn check_auth_token(text: &str) -> Result<(), ConfigError> {
    let mut parts = text.split(',');
    let kind = parts.next().unwrap_or_default();
    if parts.any(|option| option.split('=').count() != 2) {
        return Err(ConfigError::AuthToken);
    }
    match kind {
        "simple" => Ok(()),
        "jwt" | "" => Err(ConfigError::NotYet {
            setting: format!("--auth-token={text}"),
        }),
        _ => Err(ConfigError::AuthToken),
    }
}

/// The warnings that etcd gives of settings that work, but should not be.
fn warn_of(config: &Config) {
    if config.is_set("max-snapshots") {
        warn!("--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.");
    }
    if config.is_set("v2-deprecation") {
        warn!(
            "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value \
             is enforced, ignoring user input."
        );
    }
    if config.enable_pprof {
        warn!("--enable-pprof has no effect: this release serves no profiles");
    }
    if config.max_request_bytes > RECOMMENDED_REQUEST_BYTES {
        warn!(
            "max-request-bytes" = config.max_request_bytes,
            "max-request-size" = %HumanBytes(config.max_request_bytes.into()),
            "recommended-request-bytes" = RECOMMENDED_REQUEST_BYTES,
            "recommended-request-size" = %HumanBytes(RECOMMENDED_REQUEST_BYTES.into()),
            "exceeded recommended request limit"
        );
    }
    warn_of_quota(config.quota_backend_bytes);
}

fn warn_of_quota(quota: i64) {
    let name = "v3-applier";
    let Ok(bytes) = u64::try_from(quota) else {
        info!(
            "quota-name" = name,
            "quota-size-bytes" = quota,
            "disabled backend quota"
        );
        return;
    };
    let shown = HumanBytes(if bytes == 0 { DEFAULT_QUOTA } else { bytes });
    if quota > RECOMMENDED_QUOTA {
        warn!(
            "quota-name" = name,
            "quota-size-bytes" = bytes,
            "quota-size" = %shown,
            "quota-maximum-size-bytes" = RECOMMENDED_QUOTA,
            "quota-maximum-size" = %HumanBytes(RECOMMENDED_QUOTA.unsigned_abs()),
            "quota exceeds the maximum value"
        );
    }
    if bytes == 0 {
        info!(
            "quota-name" = name,
            "quota-size-bytes" = DEFAULT_QUOTA,
            "quota-size" = %shown,
            "enabled backend quota with default value"
        );
    } else {
        info!(
            "quota-name" = name,
            "quota-size-bytes" = bytes,
            "quota-size" = %shown,
            "enabled backend quota"
        );
    }
}

/// Puts the value behind what was left to the program.
fn fill_in(config: &mut Config) {
    if config.data_dir.as_os_str().is_empty() {
        config.data_dir = format!("{}.etcd", config.name).into();
        warn!("data-dir" = %config.data_dir.display(), "'data-dir' was empty; using default");
    }
    let default = Config::default();
    if config.snapshot_count == 0 {
        config.snapshot_count = default.snapshot_count;
        info!(
            "updated-snapshot-count" = default.snapshot_count,
            "updating snapshot-count to default"
        );
    }
    if config.snapshot_catchup_entries == 0 {
        config.snapshot_catchup_entries = default.snapshot_catchup_entries;
        info!(
            "updated-snapshot-catchup-entries" = default.snapshot_catchup_entries,
            "updating snapshot catch-up entries to default"
        );
    }
    for (flag, timeout) in [
        ("raft-read-timeout", &mut config.raft_read_timeout),
        ("raft-write-timeout", &mut config.raft_write_timeout),
    ] {
        if *timeout < PEER_TIMEOUT {
            *timeout = PEER_TIMEOUT;
            info!(
                "{flag} increased to minimum value: {}",
                GoDuration::from(PEER_TIMEOUT)
            );
        }
    }
    if !(4..=31).contains(&config.bcrypt_cost) {
        let (cost, given) = (BCRYPT_COST, config.bcrypt_cost);
        warn!(
            "min-cost" = 4,
            "max-cost" = 31,
            "default-cost" = cost,
            "given-cost" = given,
            "use default bcrypt cost instead of the invalid given cost"
        );
        config.bcrypt_cost = BCRYPT_COST;
    }
    if config.auth_token_ttl == 0 {
        config.auth_token_ttl = TOKEN_TTL_SECONDS;
    }
    fill_in_intervals(config);
}

/// Intervals and limits of which zero stands for another value.
fn fill_in_intervals(config: &mut Config) {
    let or = |value: &mut Duration, fallback: Duration| {
        if value.is_zero() {
            *value = fallback;
        }
    };
    or(
        &mut config.backend_batch_interval,
        Duration::from_millis(100),
    );
    or(
        &mut config.compaction_sleep_interval,
        Duration::from_millis(10),
    );
    or(
        &mut config.watch_progress_notify_interval,
        Duration::from_secs(600),
    );
    or(&mut config.warning_unary_request_duration, UNARY_WARNING);
    if config.watch_progress_notify_interval < MIN_PROGRESS_INTERVAL {
        config.watch_progress_notify_interval = MIN_PROGRESS_INTERVAL;
    }
    if config.self_signed_cert_validity == 0 {
        config.self_signed_cert_validity = 1;
    }
    if config.backend_batch_limit == 0 {
        config.backend_batch_limit = 10_000;
    }
    if config.compaction_batch_limit == 0 {
        config.compaction_batch_limit = 1_000;
    }
}
