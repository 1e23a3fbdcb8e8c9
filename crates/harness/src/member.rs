//! A member of ours inside the test's own process.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use keelson_client::{Client, Options};
use keelson_server::Member;
use keelson_server::config::Config;
use keelson_server::url::Url;
use tempfile::TempDir;

use crate::ports::listen;
use crate::wait::PATIENCE;
use crate::{Faults, patient};

/// How often it is tried.
const POLL: Duration = Duration::from_millis(10);

/// Changes what a member is started with.
type Adjust = Box<dyn Fn(&mut Config) + Send>;

/// A member in this process, with its directory and ports. Dropping it stops the member, and
/// removes the directory if it made it.
pub struct TestMember {
    data_dir: PathBuf,
    client_port: u16,
    peer_port: u16,
    adjust: Adjust,
    faults: Faults,
    member: Option<Member>,
    /// Removed when dropped, if the directory is ours.
    _owned: Option<TempDir>,
}

impl TestMember {
    /// Starts a member in a new directory on free ports. When this returns, it serves.
    ///
    /// # Errors
    /// Why it does not start.
    pub fn start() -> anyhow::Result<TestMember> {
        TestMember::start_with(|_| {})
    }

    /// As [`TestMember::start`], with a configuration that `adjust` changes, at each start anew.
    ///
    /// # Errors
    /// As [`TestMember::start`].
    pub fn start_with(adjust: impl Fn(&mut Config) + Send + 'static) -> anyhow::Result<TestMember> {
        let dir = tempfile::tempdir()?;
        let data_dir = dir.path().join("data");
        let mut member = TestMember::start_in(&data_dir, adjust)?;
        member._owned = Some(dir);
        Ok(member)
    }

    /// As [`TestMember::start_with`], in a directory of the caller's.
    ///
    /// # Errors
    /// As [`TestMember::start`].
    pub fn start_in(
        data_dir: &Path,
        adjust: impl Fn(&mut Config) + Send + 'static,
    ) -> anyhow::Result<TestMember> {
        TestMember::start_on_free_ports(data_dir, &Faults::default(), adjust)
    }

    fn start_on_free_ports(
        data_dir: &Path,
        faults: &Faults,
        adjust: impl Fn(&mut Config) + Send + 'static,
    ) -> anyhow::Result<TestMember> {
        let clients = listen()?;
        let peers = listen()?;
        let mut member = TestMember {
            data_dir: data_dir.to_owned(),
            client_port: clients.local_addr()?.port(),
            peer_port: peers.local_addr()?.port(),
            adjust: Box::new(adjust),
            faults: faults.clone(),
            member: None,
            _owned: None,
        };
        member.start_on(clients, peers)?;
        Ok(member)
    }

    /// As [`TestMember::start_with`], in a world that `faults` changes.
    ///
    /// # Errors
    /// As [`TestMember::start`].
    pub fn start_faulty(
        faults: &Faults,
        adjust: impl Fn(&mut Config) + Send + 'static,
    ) -> anyhow::Result<TestMember> {
        let dir = tempfile::tempdir()?;
        let data_dir = dir.path().join("data");
        let mut member = TestMember::start_on_free_ports(&data_dir, faults, adjust)?;
        member._owned = Some(dir);
        Ok(member)
    }

    /// Starts it again in the same directory on the same ports.
    ///
    /// # Errors
    /// If it is running; why it does not start.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        if self.member.is_some() {
            bail!("it is running already");
        }
        let clients = bind(self.client_port)?;
        let peers = bind(self.peer_port)?;
        self.start_on(clients, peers)
    }

    fn start_on(&mut self, clients: TcpListener, peers: TcpListener) -> anyhow::Result<()> {
        let url = |port: u16| Url::parse(&format!("http://127.0.0.1:{port}"));
        let mut config = Config {
            name: "test".to_owned(),
            data_dir: self.data_dir.clone(),
            listen_client_urls: vec![url(self.client_port)?],
            advertise_client_urls: vec![url(self.client_port)?],
            listen_peer_urls: vec![url(self.peer_port)?],
            advertise_peer_urls: vec![url(self.peer_port)?],
            client_listeners: vec![clients],
            peer_listeners: vec![peers],
            ..Config::default()
        };
        (self.adjust)(&mut config);
        let checked = config.check()?;
        let member =
            apart(|| Member::start_in(checked, self.faults.env())).context("start the member")?;
        self.member = Some(member);
        Ok(())
    }

    /// Stops it as a `SIGTERM` would: what was acknowledged is in its file. Nothing happens if it is
    /// not running.
    pub fn stop(&mut self) {
        if let Some(member) = self.member.take() {
            apart(|| member.stop());
        }
    }

    /// Ends it without a last commit and with no word to its clients. Nothing happens if it is not
    /// running.
    pub fn kill(&mut self) {
        if let Some(member) = self.member.take() {
            apart(|| member.kill());
        }
    }

    /// The member, if it was not stopped or killed.
    #[must_use]
    pub fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    /// Where clients connect to.
    #[must_use]
    pub fn client_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A client of it.
    ///
    /// # Errors
    /// If it cannot be connected to.
    pub async fn client(&self) -> anyhow::Result<Client> {
        self.client_with(patient()).await
    }

    /// A client of it with options.
    ///
    /// # Errors
    /// If it cannot be connected to, or refuses the user.
    pub async fn client_with(&self, options: Options) -> anyhow::Result<Client> {
        Ok(Client::connect_with(&self.client_url(), options).await?)
    }
}

impl Drop for TestMember {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for TestMember {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestMember")
            .field("data_dir", &self.data_dir)
            .field("client_port", &self.client_port)
            .field("running", &self.member.is_some())
            .finish_non_exhaustive()
    }
}

pub(crate) fn bind(port: u16) -> anyhow::Result<TcpListener> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(POLL);
            }
            Err(error) => return Err(error).with_context(|| format!("bind port {port}")),
        }
    }
}

/// Runs `work` on a thread of its own: a member blocks and has runtimes, which a test's own runtime
/// does not bear.
pub(crate) fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
