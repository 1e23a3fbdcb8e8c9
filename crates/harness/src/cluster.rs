//! Several members of ours inside the test's own process, with the links between them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, bail};
use keelson_client::{Client, Options};
use keelson_server::Member;
use keelson_server::config::{ClusterState, Config};
use keelson_server::url::Url;
use tempfile::TempDir;

use crate::Faults;
use crate::link::Links;
use crate::member::{apart, bind};
use crate::patient;
use crate::ports::listen;

/// Changes what each member is started with.
type Adjust = Box<dyn Fn(&mut Config) + Send + Sync>;

/// A cluster in this process. Dropping it stops its members.
///
/// Members are numbered from 0 in the order in which they came. Each one's peer URL is that of a
/// link, through which all others go to it, so that links can be cut.
pub struct TestCluster {
    dir: TempDir,
    adjust: Adjust,
    seats: Vec<Seat>,
    links: Links,
}

/// A member's place.
struct Seat {
    name: String,
    data_dir: PathBuf,
    client_port: u16,
    peer_port: u16,
    /// Where others find it: its link.
    peer_url: String,
    initial_cluster: String,
    state: ClusterState,
    faults: Faults,
    member: Option<Member>,
}

impl TestCluster {
    /// Starts a cluster of so many members. When this returns, all of them serve.
    ///
    /// # Errors
    /// Why one of them does not start.
    pub fn start(members: usize) -> anyhow::Result<TestCluster> {
        TestCluster::start_with(members, |_| {})
    }

    /// As [`TestCluster::start`], with configurations that `adjust` changes, at each start anew.
    ///
    /// # Errors
    /// As [`TestCluster::start`].
    pub fn start_with(
        members: usize,
        adjust: impl Fn(&mut Config) + Send + Sync + 'static,
    ) -> anyhow::Result<TestCluster> {
        let mut cluster = TestCluster {
            dir: tempfile::tempdir()?,
            adjust: Box::new(adjust),
            seats: Vec::new(),
            links: Links::start()?,
        };
        let mut sockets = Vec::new();
        for _ in 0..members {
            sockets.push(cluster.sit_down(ClusterState::New)?);
        }
        let all = cluster.listed();
        for seat in &mut cluster.seats {
            seat.initial_cluster.clone_from(&all);
        }
        cluster.start_all(sockets)?;
        Ok(cluster)
    }

    /// A place for one more member, with its sockets.
    fn sit_down(&mut self, state: ClusterState) -> anyhow::Result<Sockets> {
        let sockets = Sockets {
            clients: listen()?,
            peers: listen()?,
        };
        let name = format!("m{}", self.seats.len());
        let peer_port = sockets.peers.local_addr()?.port();
        let link = self.links.open(peer_port)?;
        self.seats.push(Seat {
            data_dir: self.dir.path().join(&name),
            name,
            client_port: sockets.clients.local_addr()?.port(),
            peer_port,
            peer_url: format!("http://127.0.0.1:{link}"),
            initial_cluster: String::new(),
            state,
            faults: Faults::default(),
            member: None,
        });
        Ok(sockets)
    }

    /// The members as `--initial-cluster` takes them.
    fn listed(&self) -> String {
        let each: Vec<String> = self
            .seats
            .iter()
            .map(|seat| format!("{}={}", seat.name, seat.peer_url))
            .collect();
        each.join(",")
    }

    /// Starts the last places, all at once: none of them serves without a quorum.
    fn start_all(&mut self, sockets: Vec<Sockets>) -> anyhow::Result<()> {
        let adjust = &self.adjust;
        let first = self.seats.len() - sockets.len();
        let seats = &mut self.seats[first..];
        thread::scope(|scope| {
            let starts: Vec<_> = seats
                .iter_mut()
                .zip(sockets)
                .map(|(seat, sockets)| scope.spawn(|| seat.start(sockets, adjust)))
                .collect();
            for start in starts {
                match start.join() {
                    Ok(started) => started?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(())
        })
    }

    /// How many members there are, running or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// A member, if it runs.
    #[must_use]
    pub fn member(&self, number: usize) -> Option<&Member> {
        self.seats[number].member.as_ref()
    }

    /// What is wrong with a member's disks and clock, to be changed.
    #[must_use]
    pub fn faults(&self, number: usize) -> &Faults {
        &self.seats[number].faults
    }

    /// Where clients find a member.
    #[must_use]
    pub fn client_url(&self, number: usize) -> String {
        format!("http://127.0.0.1:{}", self.seats[number].client_port)
    }

    /// Where a member has its files.
    #[must_use]
    pub fn data_dir(&self, number: usize) -> &Path {
        &self.seats[number].data_dir
    }

    /// Where other members find a member.
    #[must_use]
    pub fn peer_url(&self, number: usize) -> &str {
        &self.seats[number].peer_url
    }

    /// All client URLs, with commas between.
    #[must_use]
    pub fn endpoints(&self) -> String {
        let urls: Vec<String> = (0..self.len()).map(|it| self.client_url(it)).collect();
        urls.join(",")
    }

    /// A client of all members.
    ///
    /// # Errors
    /// If none of them can be reached.
    pub async fn client(&self) -> anyhow::Result<Client> {
        self.client_with(patient()).await
    }

    /// A client of all members, with options.
    ///
    /// # Errors
    /// If none of them can be reached.
    pub async fn client_with(&self, options: Options) -> anyhow::Result<Client> {
        Ok(Client::connect_with(&self.endpoints(), options).await?)
    }

    /// A client of one member alone.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub async fn client_of(&self, number: usize) -> anyhow::Result<Client> {
        Ok(Client::connect_with(&self.client_url(number), patient()).await?)
    }

    /// The member that leads, as one that runs knows it.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        let leads = |seat: &Seat| seat.member.as_ref().is_some_and(|it| it.node().is_leader());
        self.seats.iter().position(leads)
    }

    /// Waits until one of the members that run leads.
    ///
    /// # Errors
    /// If none does in time.
    pub fn wait_for_leader(&self) -> anyhow::Result<usize> {
        crate::wait::until(|| self.leader()).context("no member leads")
    }

    /// Stops a member as a `SIGTERM` would. Nothing happens if it does not run.
    pub fn stop(&mut self, number: usize) {
        if let Some(member) = self.seats[number].member.take() {
            apart(|| member.stop());
        }
    }

    /// Ends a member without a word. Nothing happens if it does not run.
    pub fn kill(&mut self, number: usize) {
        if let Some(member) = self.seats[number].member.take() {
            apart(|| member.kill());
        }
    }

    /// Starts a member again in the same directory on the same ports.
    ///
    /// # Errors
    /// If it runs; why it does not start.
    pub fn restart(&mut self, number: usize) -> anyhow::Result<()> {
        let seat = &mut self.seats[number];
        if seat.member.is_some() {
            bail!("it is running already");
        }
        let sockets = Sockets {
            clients: bind(seat.client_port)?,
            peers: bind(seat.peer_port)?,
        };
        let adjust = &self.adjust;
        apart(|| seat.start(sockets, adjust))
    }

    /// A place for one more member, which is to be added to the cluster at the URL that is answered,
    /// and then started by [`TestCluster::join`].
    ///
    /// # Errors
    /// If there are no sockets.
    pub fn make_room(&mut self) -> anyhow::Result<Room> {
        let sockets = self.sit_down(ClusterState::Existing)?;
        let number = self.seats.len() - 1;
        let peer_url = self.seats[number].peer_url.clone();
        Ok(Room {
            number,
            peer_url,
            sockets,
        })
    }

    /// Starts a member that was added, beside those of `others` that are members now.
    ///
    /// # Errors
    /// Why it does not start.
    pub fn join(&mut self, room: Room, others: &[usize]) -> anyhow::Result<()> {
        let listed: Vec<String> = others
            .iter()
            .chain([&room.number])
            .map(|number| &self.seats[*number])
            .map(|seat| format!("{}={}", seat.name, seat.peer_url))
            .collect();
        let adjust = &self.adjust;
        let seat = &mut self.seats[room.number];
        seat.initial_cluster = listed.join(",");
        apart(|| seat.start(room.sockets, adjust))
    }

    /// Cuts the link between two members, in both directions.
    pub fn cut(&self, one: usize, other: usize) {
        for (from, to) in [(one, other), (other, one)] {
            let from = self.seats[from].member.as_ref();
            if let Some(from) = from.map(|member| member.node().member_id()) {
                self.links.cut(&from.to_string(), self.seats[to].peer_port);
            }
        }
    }

    /// Cuts all links of a member.
    pub fn isolate(&self, number: usize) {
        for other in (0..self.len()).filter(|other| *other != number) {
            self.cut(number, other);
        }
    }

    /// Mends all links.
    pub fn heal(&self) {
        self.links.heal();
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        // All at once: the last one has no quorum to hand leadership to.
        let members: Vec<Member> = self
            .seats
            .iter_mut()
            .filter_map(|seat| seat.member.take())
            .collect();
        thread::scope(|scope| {
            for member in members {
                scope.spawn(|| member.kill());
            }
        });
    }
}

impl std::fmt::Debug for TestCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestCluster")
            .field("endpoints", &self.endpoints())
            .finish_non_exhaustive()
    }
}

/// A place that [`TestCluster::make_room`] made.
#[derive(Debug)]
pub struct Room {
    number: usize,
    peer_url: String,
    sockets: Sockets,
}

impl Room {
    /// The member's number.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// The URL to add the member at.
    #[must_use]
    pub fn peer_url(&self) -> &str {
        &self.peer_url
    }
}

/// Sockets that are bound.
#[derive(Debug)]
struct Sockets {
    clients: TcpListener,
    peers: TcpListener,
}

impl Seat {
    fn start(&mut self, sockets: Sockets, adjust: &Adjust) -> anyhow::Result<()> {
        let url = |port: u16| Url::parse(&format!("http://127.0.0.1:{port}"));
        let mut config = Config {
            name: self.name.clone(),
            data_dir: self.data_dir.clone(),
            listen_client_urls: vec![url(self.client_port)?],
            advertise_client_urls: vec![url(self.client_port)?],
            listen_peer_urls: vec![url(self.peer_port)?],
            advertise_peer_urls: vec![Url::parse(&self.peer_url)?],
            client_listeners: vec![sockets.clients],
            peer_listeners: vec![sockets.peers],
            initial_cluster: Some(self.initial_cluster.clone()),
            initial_cluster_state: self.state,
            ..Config::default()
        };
        adjust(&mut config);
        let member = Member::start_in(config.check()?, self.faults.env());
        self.member = Some(member.with_context(|| format!("start {}", self.name))?);
        Ok(())
    }
}
