//! A member with its sockets: start and stop, in the order that `INTERNALS.md` 14 fixes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use keelson_node::{Beginning, Env, Node, Removed, Watchers};
use keelson_proto::ids::MemberId;
use keelson_store::EventRange;
use keelson_store::{Quota, auth};
use keelson_transport::listener::{ListenOptions, Listener};
use keelson_transport::tls::Tls;
use keelson_transport::{PeerClient, Peers, Versions};
use semver::Version;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Error;
use crate::config::{AutoCompaction, Checked, ClusterState, Gate};
use crate::descriptors::{self, ConnectionsMax};
use crate::hashing::Hashing;
use crate::http::Early;
use crate::http::peer::PeerRoutes;
use crate::leader::LeaderLoss;
use crate::logging::{self, json};
use crate::metrics::Metrics;
use crate::peers::{self, Links, hashes, join};
use crate::pool::Pool;
use crate::serving::{Door, Limits, Purpose, Serving};
use crate::state::{Settings, State};
use crate::tickets::Tickets;
use crate::tls;
use crate::tokens::Tokens;
use crate::url::Url;
use crate::watching::Watching;

/// How long unary calls may take once the stop has begun.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// What an election timeout is added to, for how long dialling another member may take.
const DIAL_PATIENCE: Duration = Duration::from_secs(1);

/// The oldest cluster in which this member works.
const MIN_CLUSTER_VERSION: &str = "3.0.0";

/// How often a member that waits to be ready looks whether it has failed.
const READY_EVERY: Duration = Duration::from_millis(100);

/// How often it looks whether the cluster's version is known.
const CAPABLE_EVERY: Duration = Duration::from_millis(2);

/// What a time-out adds to two election timeouts.
const REQUEST_BASE: Duration = Duration::from_secs(5);

/// A running member.
///
/// Dropping it stops it as [`Member::stop`] does.
pub struct Member {
    state: Arc<State>,
    serving: Option<Serving>,
    metrics_serving: Option<Serving>,
    client_urls: Vec<Url>,
    closing: Closing,
    removed: Arc<AtomicBool>,
    is_down: bool,
}

/// What the last lines name.
struct Closing {
    name: String,
    data_dir: String,
    peer_urls: String,
    client_urls: String,
}

impl Closing {
    fn of(config: &Checked) -> Closing {
        Closing {
            name: config.name.clone(),
            data_dir: config.data_dir.display().to_string(),
            peer_urls: json(&texts(&config.advertise_peer_urls)),
            client_urls: json(&texts(&config.advertise_client_urls)),
        }
    }

    fn log(&self, message: &str) {
        info!(
            name = %self.name,
            "data-dir" = %self.data_dir,
            "advertise-peer-urls:json" = %self.peer_urls,
            "advertise-client-urls:json" = %self.client_urls,
            "{message}"
        );
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member")
            .field("id", &self.state.node.member_id())
            .field("client_urls", &self.client_urls)
            .finish_non_exhaustive()
    }
}

/// Sockets that are bound, each with what it is for.
struct Sockets {
    peers: Vec<Listener>,
    clients: Vec<(Listener, Purpose, Url)>,
    metrics: Vec<Listener>,
}

impl Member {
    /// Starts a member on the system's clocks and files. When it returns, the member serves.
    ///
    /// # Errors
    ///
    /// [`Error`]; then nothing is left running.
    pub fn start(config: Checked) -> Result<Member, Error> {
        Member::start_in(config, Env::real())
    }

    /// As [`Member::start`], in a world of the caller's making.
    ///
    /// # Errors
    ///
    /// As [`Member::start`].
    pub fn start_in(mut config: Checked, mut env: Env) -> Result<Member, Error> {
        let removed = Arc::new(AtomicBool::new(false));
        env.removed = tells(&removed, env.removed);
        let told_removed = Arc::clone(&env.removed);
        // Sockets first: a busy port is seen before anything is written.
        let sockets = bind(&mut config)?;
        let connections_max = descriptors::connections_max(
            descriptors::limit(),
            !config.listen_metrics_urls.is_empty(),
        )?;
        let threads = serving_threads();
        let tickets = Arc::new(Tickets::new(threads));
        let pool = Pool::start(usize::from(threads)).map_err(|source| Error::Threads {
            what: "the reader pool",
            source,
        })?;
        let tokens = Arc::new(Tokens::new(Duration::from_secs(config.auth_token_ttl)));
        let changed = Arc::new(Notify::new());
        let watching = Arc::new(Watching::new(threads));
        let metrics = Arc::new(Metrics::new(
            config.announced_version(),
            config.metrics == "extensive",
        ));
        for (gate, name, stage) in Gate::all() {
            metrics.gate(name, stage, config.feature_gates.enabled(gate));
        }
        let told = Arc::new(Told {
            tokens: Arc::clone(&tokens),
            changed: Arc::clone(&changed),
            watching: Arc::clone(&watching),
        });
        log_start(&config);
        let tls = tls::of(&config)?;
        let election = Duration::from_millis(config.election_ms);
        let client = PeerClient::new(tls.peers.clone(), DIAL_PATIENCE + election);
        let peers = Links::start(client);
        let peers = Arc::new(peers.map_err(|source| Error::Threads {
            what: "the threads for other members",
            source,
        })?);
        let was_member = config.has_log();
        let node_config = node_config(&config, &peers)?;
        let replies = Arc::clone(&tickets);
        let ways = Arc::clone(&peers);
        let node = Node::start_with_peers(node_config, env, replies, told, ways)?;
        warn!("simple token is not cryptographically signed");
        let draining = CancellationToken::new();
        let state = Arc::new(State {
            tokens,
            watching,
            changed,
            settings: settings(&config),
            capable: AtomicBool::new(false),
            pool: Arc::new(pool),
            hashing: Hashing::new(threads),
            node,
            peers,
            tickets,
            metrics,
            draining,
            leader_loss: LeaderLoss::default(),
        });
        let transport = transport(
            &config,
            &state,
            connections_max.peers,
            tls.peers,
            told_removed,
        )?;
        let client_urls = sockets.clients.iter().map(|(_, _, url)| url.clone());
        let mut member = Member {
            client_urls: client_urls.collect(),
            closing: Closing::of(&config),
            removed,
            is_down: false,
            serving: None,
            metrics_serving: None,
            state,
        };
        if was_member && config.feature_gates.enabled(Gate::InitialCorruptCheck) {
            member.compare_with_others()?;
        }
        let sockets = (sockets, tls.clients);
        member.serve(&config, sockets, transport, threads, connections_max)?;
        Ok(member)
    }

    /// Refuses to go on with other data than the other members have. Nothing has been sent to them yet.
    fn compare_with_others(&self) -> Result<(), Error> {
        let State { peers, node, .. } = &*self.state;
        let compared = look(
            "a comparison with other members",
            hashes::at_start(peers, node),
        );
        compared.flatten().inspect_err(|error| {
            warn!(%error, "checkInitialHashKV failed");
        })
    }

    /// Opens the doors: metrics at once, clients when the member has joined its cluster.
    fn serve(
        &mut self,
        config: &Checked,
        (sockets, tls): (Sockets, Option<Arc<Tls>>),
        transport: Peers,
        threads: u16,
        connections_max: ConnectionsMax,
    ) -> Result<(), Error> {
        let threads_error = |source| Error::Threads {
            what: "the serving threads",
            source,
        };
        let limits = Limits::of(config, connections_max.clients);
        let Sockets {
            peers,
            clients,
            metrics,
        } = sockets;
        log_addresses(config, self.state.node.member_id());
        let start = |threads| {
            let draining = self.state.draining.clone();
            Serving::start(threads, &self.state, limits, draining).map_err(threads_error)
        };
        let mut serving = start(threads)?;
        let early_limits = Limits {
            connections: connections_max.metrics,
            ..limits
        };
        // Peers and metrics are answered before clients are, and until the end.
        let mut early = start_early(&self.state, early_limits).map_err(threads_error)?;
        let of = |url: &Url| tls.clone().filter(|_| url.is_tls());
        let urls = config.listen_metrics_urls.iter();
        let doors = metrics.into_iter().zip(urls).map(|(listener, url)| Door {
            listener,
            purpose: Purpose::Metrics,
            tls: of(url),
        });
        early.accept(doors.collect()).map_err(threads_error)?;
        for (listener, url) in peers.into_iter().zip(&config.listen_peer_urls) {
            transport.serve(listener, url.is_tls())?;
        }
        self.state.peers.attach(transport, &self.state.node);
        self.metrics_serving = Some(early);
        self.wait_until_ready()?;
        let doors = clients.into_iter().map(|(listener, purpose, url)| Door {
            listener,
            purpose,
            tls: of(&url),
        });
        let doors: Vec<Door> = doors.collect();
        doors.iter().for_each(log_ready);
        serving.accept(doors).map_err(threads_error)?;
        self.serving = Some(serving);
        logging::announce(config);
        Ok(())
    }

    /// Waits until the member has published itself and knows the cluster's version. As with etcd,
    /// that has no time-out: without a quorum it takes as long as that does.
    fn wait_until_ready(&self) -> Result<(), Error> {
        loop {
            if let Some(failure) = self.failure() {
                return Err(Error::Stopped(failure));
            }
            if self.is_removed() {
                return Err(Error::Removed);
            }
            match self.state.node.wait_ready(READY_EVERY) {
                Ok(()) if self.state.is_capable() => return Ok(()),
                Ok(()) => thread::sleep(CAPABLE_EVERY),
                Err(keelson_node::Error::NotReady) => {}
                // That it has stopped says less than why.
                Err(error) => {
                    return Err(self.failure().map_or_else(|| error.into(), Error::Stopped));
                }
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The URLs that clients are listened for on, with the ports that are really bound.
    #[must_use]
    pub fn client_urls(&self) -> &[Url] {
        &self.client_urls
    }

    /// The member beneath: what tests and tools look at.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.state.node
    }

    /// Why the member has stopped by itself, if it has.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.state.node.failure().map(|failure| failure.to_string())
    }

    /// Whether the cluster has removed this member: it is to be stopped, and its directory is of no
    /// more use.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    /// Stops the member: what clients wait for is given a second, everything that was acknowledged
    /// is in the file when this returns, and directory and ports are free.
    pub fn stop(mut self) {
        self.shut_down(true);
    }

    /// Ends the member as a crash would: without a last commit, and with no word to its clients.
    pub fn kill(mut self) {
        self.shut_down(false);
    }

    fn shut_down(&mut self, in_order: bool) {
        if std::mem::replace(&mut self.is_down, true) {
            return;
        }
        if let Some(mut serving) = self.serving.take() {
            if in_order {
                self.closing.log("closing etcd server");
                serving.drain();
                // While clients finish: the others are to have a leader at once.
                self.state.node.hand_over();
            }
            let patience = if in_order {
                DRAIN_PATIENCE
            } else {
                Duration::ZERO
            };
            serving.join(patience);
        }
        if in_order {
            let node = &self.state.node;
            if node.shared().members().voters().count() < 2 {
                info!(
                    "local-member-id" = %node.member_id(),
                    "current-leader-member-id" = %node.status().leader,
                    "skipped leadership transfer for single voting member cluster"
                );
            }
            node.stop();
        } else {
            self.state.node.kill();
        }
        self.state.peers.stop();
        self.state.pool.stop();
        if let Some(serving) = self.metrics_serving.take() {
            serving.join(Duration::ZERO);
            if in_order {
                self.closing.log("closed etcd server");
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.shut_down(true);
    }
}

/// The way to other members, which begins when it is attached.
fn transport(
    config: &Checked,
    state: &Arc<State>,
    connections_max: usize,
    tls: Option<Arc<Tls>>,
    removed: Removed,
) -> Result<Peers, Error> {
    let version = |text| Version::parse(text).expect("the versions here are versions");
    let transport = keelson_transport::Config {
        member: state.node.member_id(),
        cluster: state.node.cluster_id(),
        versions: Versions {
            server: version(config.announced_version()),
            min_cluster: version(MIN_CLUSTER_VERSION),
        },
        advertised_urls: peers::texts(&config.advertise_peer_urls),
        election_timeout: Duration::from_millis(config.election_ms),
        read_timeout: config.raft_read_timeout,
        write_timeout: config.raft_write_timeout,
        connections_max,
        tls,
    };
    let incoming = Arc::new(peers::Incoming {
        node: state.node.clone(),
        removed,
    });
    let routes = Arc::new(PeerRoutes(Arc::clone(state)));
    Ok(Peers::start(transport, incoming, routes)?)
}

/// Notes that the member was removed, then tells `further`.
fn tells(removed: &Arc<AtomicBool>, further: Removed) -> Removed {
    let removed = Arc::clone(removed);
    Arc::new(move || {
        if !removed.swap(true, Ordering::SeqCst) {
            further();
        }
    })
}

/// What the node tells beside its answers.
struct Told {
    tokens: Arc<Tokens>,
    watching: Arc<Watching>,
    changed: Arc<Notify>,
}

impl Watchers for Told {
    fn events(&self, batch: EventRange) {
        self.changed.notify_waiters();
        self.watching.events(batch);
    }

    fn token_assigned(&self, user: &str, token: &str) {
        self.tokens.add(token.into(), user.into(), Instant::now());
    }

    fn restored(&self, revision: i64) {
        self.changed.notify_waiters();
        self.watching.restored(revision);
    }

    fn tokens_revoked(&self, user: Option<&str>) {
        match user {
            Some(user) => self.tokens.forget_user(user),
            None => self.tokens.forget_all(),
        }
    }
}

/// The configuration as the node reads it. What a new member is born with must fit only where there
/// is no log yet: an older one knows its cluster, but for the crash that left its log without an entry.
fn node_config(config: &Checked, peers: &Links) -> Result<keelson_node::Config, Error> {
    let version = minor_of(config.announced_version());
    let learners_max = config.max_learners as usize;
    let mut beginning = Beginning::New;
    let (initial_cluster, token) = match config.bootstrap() {
        Ok(born) => {
            if !config.has_log() {
                let asked = join::beginning(&peers.client, &born, &version, learners_max);
                let found = look("a look at the other members", asked)??;
                peers.joins(found.others);
                beginning = found.beginning;
            }
            let members = born.members.into_iter().map(|(name, urls)| {
                let urls = urls.iter().map(Url::to_string).collect();
                (name, urls)
            });
            (members.collect(), born.token)
        }
        Err(_) if config.has_log() => (Vec::new(), config.initial_cluster_token.clone()),
        Err(error) => return Err(error.into()),
    };
    Ok(keelson_node::Config {
        initial_cluster,
        token,
        wal_dir: (!config.wal_dir.as_os_str().is_empty()).then(|| config.wal_dir.clone()),
        client_urls: config
            .advertise_client_urls
            .iter()
            .map(Url::to_string)
            .collect(),
        heartbeat: config.tick(),
        election: Duration::from_millis(config.election_ms),
        pre_vote: config.pre_vote,
        force_new_cluster: config.force_new_cluster,
        election_at_once: config.initial_election_tick_advance,
        snapshot_count: config
            .is_set("snapshot-count")
            .then_some(config.snapshot_count),
        catchup_entries: config.snapshot_catchup_entries,
        max_snapshots: config.max_snapshots as usize,
        max_wals: config.max_wals as usize,
        quota: Quota::new(config.quota_backend_bytes),
        lease_checkpoints: config.feature_gates.enabled(Gate::LeaseCheckpoint),
        max_request_bytes: config.max_request_bytes as usize,
        auto_compaction: match config.auto_compaction() {
            None => keelson_node::AutoCompaction::Off,
            Some(AutoCompaction::Periodic(time)) => keelson_node::AutoCompaction::Periodic(time),
            Some(AutoCompaction::Revision(keep)) => keelson_node::AutoCompaction::Revision(keep),
        },
        corrupt_check: (!config.corrupt_check_time.is_zero()).then_some(config.corrupt_check_time),
        compact_hash_check: config
            .feature_gates
            .enabled(Gate::CompactHashCheck)
            .then_some(config.compact_hash_check_time),
        slow_apply: config.warning_apply_duration,
        beginning,
        max_learners: learners_max,
        strict_reconfig: config.strict_reconfig_check,
        version,
        ..keelson_node::Config::new(&config.name, &config.data_dir, "")
    })
}

/// Waits for what other members are asked before the member takes part.
fn look<T>(what: &'static str, asked: impl Future<Output = T>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|source| Error::Threads { what, source })?;
    Ok(runtime.block_on(asked))
}

/// The release to which a version belongs: 3.7.0 of 3.7.1.
fn minor_of(version: &str) -> Version {
    let mut version = Version::parse(version).expect("the announced versions are versions");
    version.patch = 0;
    version
}

fn serving_threads() -> u16 {
    thread::available_parallelism()
        .ok()
        .and_then(|cores| u16::try_from(cores.get()).ok())
        .unwrap_or(1)
}

fn settings(config: &Checked) -> Settings {
    Settings {
        version: config.announced_version(),
        watch_progress_interval: config.watch_progress_notify_interval,
        max_request_bytes: config.max_request_bytes as usize,
        max_txn_ops: config.max_txn_ops as usize,
        quota_backend_bytes: config.quota_backend_bytes,
        names_clients: tls::names_clients(&config.client_tls),
        bcrypt_cost: bcrypt_cost(config.bcrypt_cost),
        request_timeout: REQUEST_BASE + Duration::from_millis(2 * config.election_ms),
        election_timeout: Duration::from_millis(config.election_ms),
        slow_apply: config.warning_apply_duration,
        slow_call: config.warning_unary_request_duration,
    }
}

fn bcrypt_cost(configured: u32) -> u32 {
    if (4..=31).contains(&configured) {
        return configured;
    }
    warn!(
        "min-cost" = 4,
        "max-cost" = 31,
        "default-cost" = auth::COST_DEFAULT,
        "given-cost" = configured,
        "use default bcrypt cost instead of the invalid given cost"
    );
    auth::COST_DEFAULT
}

fn bind(config: &mut Checked) -> Result<Sockets, Error> {
    let options = ListenOptions {
        reuse_port: config.socket_reuse_port,
    };
    let one = |url: &Url| match url.socket_path() {
        Some(path) => Listener::bind_unix(&path),
        None => Listener::bind_tcp(url.authority(), options),
    };
    let all = |urls: &[Url]| urls.iter().map(one).collect::<Result<Vec<_>, _>>();
    info!(
        "listen-peer-urls:json" = json(&texts(&config.listen_peer_urls)),
        "configuring peer listeners"
    );
    let bound = config.take_peer_listeners();
    let peers = if bound.is_empty() {
        all(&config.listen_peer_urls)?
    } else {
        bound.into_iter().map(Listener::Tcp).collect()
    };
    info!(
        "listen-client-urls:json" = json(&texts(&config.listen_client_urls)),
        "configuring client listeners"
    );
    let bound = config.take_client_listeners();
    let clients = if bound.is_empty() {
        all(&config.listen_client_urls)?
    } else {
        bound.into_iter().map(Listener::Tcp).collect()
    };
    let purpose = if config.listen_client_http_urls.is_empty() {
        Purpose::Client
    } else {
        Purpose::ClientGrpc
    };
    let mut doors: Vec<_> = clients
        .into_iter()
        .zip(&config.listen_client_urls)
        .map(|(listener, url)| (listener, purpose, url.clone()))
        .collect();
    for url in &config.listen_client_http_urls {
        doors.push((one(url)?, Purpose::ClientHttp, url.clone()));
    }
    Ok(Sockets {
        peers,
        clients: doors,
        metrics: all(&config.listen_metrics_urls)?,
    })
}

/// One thread for everything that is no client: it must answer also when those for clients do not.
fn start_early(state: &Arc<State>, limits: Limits) -> std::io::Result<Serving> {
    let early = Arc::new(Early(Arc::clone(state)));
    Serving::start(1, &early, limits, CancellationToken::new())
}

fn texts(urls: &[Url]) -> Vec<&str> {
    urls.iter().map(Url::as_str).collect()
}

/// The line by which etcd tells what it was started with.
fn log_start(config: &Checked) {
    info!(
        "etcd-version" = config.announced_version(),
        "keelson-version" = env!("CARGO_PKG_VERSION"),
        "max-cpu-set" = serving_threads(),
        "max-cpu-available" = serving_threads(),
        "member-initialized" = config.has_log(),
        name = %config.name,
        "data-dir" = %config.data_dir.display(),
        "wal-dir" = %config.wal_dir.display(),
        "wal-dir-dedicated" = %config.wal_dir.display(),
        "member-dir" = %config.member_dir().display(),
        "force-new-cluster" = config.force_new_cluster,
        "heartbeat-interval" = ?config.tick(),
        "election-timeout" = ?Duration::from_millis(config.election_ms),
        "initial-election-tick-advance" = config.initial_election_tick_advance,
        "snapshot-count" = config.snapshot_count,
        "max-wals" = config.max_wals,
        "max-snapshots" = config.max_snapshots,
        "snapshot-catchup-entries" = config.snapshot_catchup_entries,
        "initial-advertise-peer-urls:json" = json(&texts(&config.advertise_peer_urls)),
        "listen-peer-urls:json" = json(&texts(&config.listen_peer_urls)),
        "advertise-client-urls:json" = json(&texts(&config.advertise_client_urls)),
        "listen-client-urls:json" = json(&texts(&config.listen_client_urls)),
        "listen-metrics-urls:json" = json(&texts(&config.listen_metrics_urls)),
        "local-address" = "",
        "cors:json" = json(&["*"]),
        "host-whitelist:json" = json(&["*"]),
        "initial-cluster" = %config.initial_cluster(),
        "initial-cluster-state" = if config.initial_cluster_state == ClusterState::New {
            "new"
        } else {
            "existing"
        },
        "initial-cluster-token" = %config.initial_cluster_token,
        "quota-backend-bytes" = config.quota().map_or(config.quota_backend_bytes, |quota| {
            i64::try_from(quota).unwrap_or(i64::MAX)
        }),
        "max-request-bytes" = config.max_request_bytes,
        "max-concurrent-streams" = config.max_concurrent_streams,
        "pre-vote" = config.pre_vote,
        "feature-gates" = %config.feature_gates,
        "auto-compaction-mode" = %config.auto_compaction_mode,
        "auto-compaction-retention" = %config.auto_compaction_retention,
        "max-learners" = config.max_learners,
        "v2-deprecation" = "write-only",
        "starting an etcd server"
    );
}

fn log_addresses(config: &Checked, member: MemberId) {
    info!(
        "local-member-id" = %member,
        "initial-advertise-peer-urls:json" = json(&texts(&config.advertise_peer_urls)),
        "listen-peer-urls:json" = json(&texts(&config.listen_peer_urls)),
        "advertise-client-urls:json" = json(&texts(&config.advertise_client_urls)),
        "listen-client-urls:json" = json(&texts(&config.listen_client_urls)),
        "listen-metrics-urls:json" = json(&texts(&config.listen_metrics_urls)),
        "now serving peer/client/metrics"
    );
}

fn log_ready(door: &Door) {
    info!("ready to serve client requests");
    let traffic = match door.purpose {
        Purpose::Client => {
            warn!(
                "Running http and grpc server on single port. This is not recommended for production."
            );
            "grpc+http"
        }
        Purpose::ClientGrpc => "grpc",
        Purpose::ClientHttp | Purpose::Metrics | Purpose::Peer => "http",
    };
    let address = door.listener.local_address();
    if door.tls.is_some() {
        info!(traffic, address, "serving client traffic securely");
    } else {
        info!(
            traffic,
            address, "serving client traffic insecurely; this is strongly discouraged!"
        );
    }
}
