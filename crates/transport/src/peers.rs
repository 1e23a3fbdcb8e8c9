//! All other members: the handle by which the member above reaches them, and the thread on which
//! everything about them runs, so that no work for clients is ever in its way.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Request, header};
use keelson_proto::ids::{ClusterId, MemberId};
use keelson_proto::message::{Message, MessageKind};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::Error;
use crate::dial::Dialer;
use crate::handler::{self, Arriving};
use crate::inbound::{Inbound, Routes, SnapshotBody};
use crate::listener::Listener;
use crate::peer::{Peer, Remote};
use crate::serve::Room;
use crate::stats::Stats;
use crate::tls::Tls;
use crate::url::PeerUrl;
use crate::version::{MIN_CLUSTER_VERSION, SERVER_VERSION, Versions};

/// How long a connection may be silent, in either direction; etcd's default.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);

/// How many connections are enough for any cluster.
pub const CONNECTIONS_MAX: usize = 2048;

/// What a connection may take besides an election, before it counts as failed; etcd's rule.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// How many senders that are no members are answered.
const REMOTES_MAX: usize = 128;

/// How long the end of a member waits for threads that read or write files for its peers.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Who we are, and how we speak with others.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member.
    pub member: MemberId,
    /// Its cluster: nobody else is spoken with.
    pub cluster: ClusterId,
    /// Its release, and the oldest cluster that it works in.
    pub versions: Versions,
    /// Under which URLs others reach it; they are told with each request.
    pub advertised_urls: Vec<String>,
    /// How long followers wait for a leader: dialling may take a second longer.
    pub election_timeout: Duration,
    /// How long a connection may be silent before it is given up: [`SILENCE_MAX`], unless
    /// `--raft-read-timeout` says otherwise. Signs of life are sent three times as often.
    pub read_timeout: Duration,
    /// How long a connection may take nothing: [`SILENCE_MAX`], unless `--raft-write-timeout` says
    /// otherwise.
    pub write_timeout: Duration,
    /// How many connections others may have to this member: those of a member are a dozen for each
    /// other one. [`CONNECTIONS_MAX`], unless the process may not open so many files.
    pub connections_max: usize,
    /// For peers with `https` URLs, and for listeners that want it.
    pub tls: Option<Arc<Tls>>,
}

/// What everything about peers shares.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) inbound: Arc<dyn Inbound>,
    pub(crate) routes: Arc<dyn Routes>,
    pub(crate) runtime: Handle,
    pub(crate) dialer: Dialer,
    pub(crate) stats: Arc<Stats>,
    pub(crate) arriving: Arriving,
    pub(crate) room: Room,
    pub(crate) cluster_header: HeaderValue,
    pub(crate) server_header: HeaderValue,
    urls_header: HeaderValue,
    members: RwLock<Members>,
    stopping: AtomicBool,
}

#[derive(Default)]
struct Members {
    peers: BTreeMap<MemberId, Arc<Peer>>,
    remotes: BTreeMap<MemberId, Arc<Remote>>,
}

impl Context {
    fn members(&self) -> RwLockReadGuard<'_, Members> {
        self.members.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn members_mut(&self) -> RwLockWriteGuard<'_, Members> {
        self.members.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn peer(&self, member: MemberId) -> Option<Arc<Peer>> {
        self.members().peers.get(&member).cloned()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// A request to a peer, with who we are in its head.
    pub(crate) fn request(
        &self,
        method: Method,
        url: &PeerUrl,
        path: &str,
    ) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, url.authority())
            .header(handler::SERVER_FROM, self.config.member.to_string())
            .header(SERVER_VERSION, self.server_header.clone())
            .header(
                MIN_CLUSTER_VERSION,
                self.config.versions.min_cluster.to_string(),
            )
            .header(handler::CLUSTER_ID, self.cluster_header.clone())
            .header(handler::PEER_URLS, self.urls_header.clone())
    }

    /// Somebody of this cluster who may not be known as a member yet has spoken.
    pub(crate) fn meet(self: &Arc<Self>, member: MemberId, urls: &[&str]) {
        let known = {
            let members = self.members();
            members.peers.contains_key(&member) || members.remotes.contains_key(&member)
        };
        let ours = member == self.config.member || member.is_none();
        if known || ours || self.is_stopping() || self.inbound.is_removed(member) {
            return;
        }
        let parsed = match PeerUrl::parse_list(urls) {
            Ok(urls) => urls,
            Err(error) => {
                tracing::warn!(
                    "remote-peer-id" = %member,
                    error = %error,
                    "ignored the URLs of a remote peer"
                );
                return;
            }
        };
        let mut members = self.members_mut();
        if members.peers.contains_key(&member) || members.remotes.contains_key(&member) {
            return;
        }
        if members.remotes.len() >= REMOTES_MAX {
            tracing::warn!("remote-peer-id" = %member, "ignored a remote peer; there are too many");
            return;
        }
        let remote = Remote::start(self, member, parsed);
        members.remotes.insert(member, Arc::new(remote));
        tracing::info!(
            "local-member-id" = %self.config.member,
            "remote-peer-id" = %member,
            "remote-peer-urls" = ?urls,
            "added new remote peer"
        );
    }
}

/// The way to all other members. Cheap to clone; none of its methods waits for a peer. They may be called
/// from any thread, but [`Peers::stop`] not from the one that serves peers.
#[derive(Clone)]
pub struct Peers {
    context: Arc<Context>,
    thread: Arc<Mutex<Option<Running>>>,
}

/// The thread, and what ends it.
struct Running {
    thread: std::thread::JoinHandle<()>,
    _end: oneshot::Sender<()>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers")
            .field("member", &self.context.config.member)
            .finish_non_exhaustive()
    }
}

impl Peers {
    /// Starts the thread. Nobody is dialled, and nobody served, yet.
    ///
    /// # Errors
    ///
    /// [`Error::Url`] where an advertised URL cannot be sent, [`Error::Start`] where the system gives
    /// no thread.
    pub fn start(
        config: Config,
        inbound: Arc<dyn Inbound>,
        routes: Arc<dyn Routes>,
    ) -> Result<Peers, Error> {
        let header = |text: String| {
            HeaderValue::from_str(&text).map_err(|_| Error::Url {
                text: format!("{text:?} cannot be sent in a header"),
            })
        };
        let (cluster_header, server_header, urls_header) = (
            header(config.cluster.to_string())?,
            header(config.versions.server.to_string())?,
            header(config.advertised_urls.join(","))?,
        );
        let failed = |source| Error::Start { source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let dialer = Dialer {
            tls: config.tls.clone(),
            timeout: DIAL_TIMEOUT + config.election_timeout,
        };
        let context = Arc::new(Context {
            room: Room::new(config.connections_max),
            config,
            inbound,
            routes,
            runtime: runtime.handle().clone(),
            dialer,
            stats: Arc::default(),
            arriving: Arriving::default(),
            cluster_header,
            server_header,
            urls_header,
            members: RwLock::default(),
            stopping: AtomicBool::new(false),
        });
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("peers".to_owned())
            .spawn(move || {
                // The end is that the other side of the channel is dropped.
                drop(runtime.block_on(ended));
                runtime.shutdown_timeout(STOP_TIMEOUT);
            })
            .map_err(failed)?;
        let running = Running { thread, _end: end };
        Ok(Peers {
            context,
            thread: Arc::new(Mutex::new(Some(running))),
        })
    }

    /// Serves a listener from now on; with TLS where `secured`.
    ///
    /// # Errors
    ///
    /// [`Error::Tls`] where TLS is wanted and not set up, [`Error::Start`] where the system does not
    /// let the thread wait on the socket.
    pub fn serve(&self, listener: Listener, secured: bool) -> Result<(), Error> {
        if secured && self.context.config.tls.is_none() {
            let address = listener.local_address();
            let text = format!(
                "cannot listen on TLS for {address}: KeyFile and CertFile are not presented"
            );
            return Err(Error::Tls { text });
        }
        let _reactor = self.context.runtime.enter();
        let acceptor = listener
            .into_acceptor()
            .map_err(|source| Error::Start { source })?;
        let serve = crate::serve::serve(Arc::clone(&self.context), acceptor, secured);
        self.context.runtime.spawn(serve);
        Ok(())
    }

    /// A member has come: it is dialled, probed, and sent to. One that is known is left as it is.
    ///
    /// # Errors
    ///
    /// [`Error::Url`]
    pub fn add_peer(&self, member: MemberId, urls: &[String]) -> Result<(), Error> {
        let parsed = PeerUrl::parse_list(urls)?;
        let mut members = self.context.members_mut();
        let known = members.peers.contains_key(&member);
        if known || member == self.context.config.member || self.context.is_stopping() {
            return Ok(());
        }
        let peer = Peer::start(&self.context, member, parsed);
        members.peers.insert(member, Arc::new(peer));
        if let Some(remote) = members.remotes.remove(&member) {
            remote.stop();
        }
        tracing::info!(
            "local-member-id" = %self.context.config.member,
            "remote-peer-id" = %member,
            "remote-peer-urls" = ?urls,
            "added remote peer"
        );
        Ok(())
    }

    /// Somebody of the cluster that is being joined: sent to by requests, until it is added as a
    /// peer.
    ///
    /// # Errors
    ///
    /// [`Error::Url`]
    pub fn add_remote(&self, member: MemberId, urls: &[String]) -> Result<(), Error> {
        PeerUrl::parse_list(urls)?;
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        self.context.meet(member, &urls);
        Ok(())
    }

    /// A member is reached under other URLs. One that is not known is left so.
    ///
    /// # Errors
    ///
    /// [`Error::Url`]
    pub fn update_peer(&self, member: MemberId, urls: &[String]) -> Result<(), Error> {
        let parsed = PeerUrl::parse_list(urls)?;
        let Some(peer) = self.context.peer(member) else {
            return Ok(());
        };
        peer.update(parsed);
        tracing::info!(
            "local-member-id" = %self.context.config.member,
            "updated-remote-peer-id" = %member,
            "updated-remote-peer-urls" = ?urls,
            "updated remote peer"
        );
        Ok(())
    }

    /// A member has gone for ever: its connections end.
    pub fn remove_peer(&self, member: MemberId) {
        let removed = {
            let mut members = self.context.members_mut();
            if let Some(remote) = members.remotes.remove(&member) {
                remote.stop();
            }
            members.peers.remove(&member)
        };
        let local = self.context.config.member;
        match removed {
            Some(peer) => {
                peer.stop();
                tracing::info!(
                    "local-member-id" = %local,
                    "removed-remote-peer-id" = %member,
                    "removed remote peer"
                );
            }
            None => tracing::warn!(
                "local-member-id" = %local,
                "removed-remote-peer-id" = %member,
                "skipped removing already removed peer"
            ),
        }
    }

    /// Forgets every member: a snapshot is about to say who they are.
    pub fn remove_all(&self) {
        let known: Vec<MemberId> = self.context.members().peers.keys().copied().collect();
        for member in known {
            self.remove_peer(member);
        }
    }

    /// Sends messages, in order. Never blocks: what finds its queue full is dropped, and reported
    /// through [`Inbound::report_unreachable`]; what is for nobody, or for somebody unknown, is
    /// dropped. Snapshots go by [`Peers::send_snapshot`].
    pub fn send(&self, messages: Vec<Message>) {
        for message in messages {
            if message.to.is_none() {
                continue;
            }
            // The lock is not held while others are called: a report may take locks of its own.
            let (peer, remote) = {
                let members = self.context.members();
                let peer = members.peers.get(&message.to).cloned();
                (peer, members.remotes.get(&message.to).cloned())
            };
            if message.kind == MessageKind::Snap {
                tracing::warn!("remote-peer-id" = %message.to, "a snapshot without its file");
                self.context.inbound.report_unreachable(message.to);
            } else if let Some(peer) = peer {
                peer.send(message);
            } else if let Some(remote) = remote {
                remote.send(message);
            } else {
                tracing::debug!(
                    kind = ?message.kind,
                    "unknown-target-peer-id" = %message.to,
                    "ignored message send request; unknown remote peer target"
                );
            }
        }
    }

    /// Sends a snapshot to the member that its message names. The body hears how it ends, and one
    /// for an unknown member has failed.
    pub fn send_snapshot(&self, message: Message, body: Box<dyn SnapshotBody>) {
        match self.context.peer(message.to) {
            Some(peer) => peer.send_snapshot(message, body),
            None => body.finish(false),
        }
    }

    /// Since when a member has been in reach; `None` while it is not.
    #[must_use]
    pub fn active_since(&self, member: MemberId) -> Option<Instant> {
        self.context.peer(member)?.link().status.since()
    }

    /// How many members are in reach.
    #[must_use]
    pub fn active_count(&self) -> usize {
        let members = self.context.members();
        let peers = members.peers.values();
        peers
            .filter(|peer| peer.link().status.since().is_some())
            .count()
    }

    /// Numbers for metrics.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.context.stats)
    }

    /// Ends everything: listeners, connections, tasks, and the thread. Waits for them, so it is not
    /// to be called from the thread that serves peers. Nothing is sent or received afterwards.
    pub fn stop(&self) {
        self.context.stopping.store(true, Ordering::Relaxed);
        let members = std::mem::take(&mut *self.context.members_mut());
        for remote in members.remotes.values() {
            remote.stop();
        }
        for peer in members.peers.values() {
            peer.stop();
        }
        let running = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Running { thread, _end: end }) = running {
            drop(end);
            if thread.join().is_err() {
                tracing::error!("the thread that serves peers has panicked");
            }
        }
    }
}
