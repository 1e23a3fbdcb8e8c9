//! A server process for one recording: free ports, a folder of its own, stopped when dropped.

use std::ffi::OsString;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use keelson_harness::free_port;
use tempfile::TempDir;

use super::call;
use super::script::HttpRequest;

/// From start to the log line that tools wait for, and from there to the settled storage version.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// What a server listens on.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// For clients.
    pub client: u16,
    /// For the other members.
    pub peer: u16,
}

impl Ports {
    /// Two ports that nobody listens on.
    ///
    /// # Errors
    /// When the system has none.
    pub fn free() -> Result<Self> {
        Ok(Self {
            client: free_port()?,
            peer: free_port()?,
        })
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    folder: TempDir,
    address: SocketAddr,
    peer_address: SocketAddr,
    is_etcd: bool,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts the program with the flags of a recording and waits until it serves.
    ///
    /// Only what it listens on and its folder are replaced. The addresses that it announces stay, so
    /// that the ids of cluster and member are the recorded ones.
    ///
    /// # Errors
    /// When the program is missing, ends, or does not say that it is ready.
    pub async fn start(recorded: &[String]) -> Result<Self> {
        Self::start_at(recorded, Ports::free()?).await
    }

    /// Starts the program like [`Server::start`], on a packed data directory.
    ///
    /// # Errors
    /// When the program is missing, ends, or does not say that it is ready; when the directory cannot
    /// be unpacked.
    pub async fn start_on(recorded: &[String], archive: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let packed = File::open(archive).with_context(|| archive.display().to_string())?;
        tar::Archive::new(flate2::read::GzDecoder::new(packed))
            .unpack(folder.path().join("data"))?;
        Self::start_in(folder, recorded, Ports::free()?).await
    }

    /// Starts the program like [`Server::start`], with these ports.
    ///
    /// # Errors
    /// When the program is missing, ends, or does not say that it is ready.
    pub async fn start_at(recorded: &[String], ports: Ports) -> Result<Self> {
        Self::start_in(tempfile::tempdir()?, recorded, ports).await
    }

    async fn start_in(folder: TempDir, recorded: &[String], ports: Ports) -> Result<Self> {
        let args = arguments(recorded, folder.path(), ports)?;
        // The name is part of the interface: called as `etcd` the program takes etcd's flags.
        let link = folder.path().join("etcd");
        std::os::unix::fs::symlink(binary()?, &link)?;
        let log = File::create(folder.path().join("log"))?;
        let child = Command::new(&link)
            .args(&args)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the server")?;
        let mut server = Self {
            child,
            folder,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, ports.client)),
            peer_address: SocketAddr::from((Ipv4Addr::LOCALHOST, ports.peer)),
            is_etcd: false,
        };
        server.wait_until_ready().await?;
        Ok(server)
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where other members connect.
    #[must_use]
    pub fn peer_address(&self) -> SocketAddr {
        self.peer_address
    }

    /// Whether this is etcd itself: `/version` of ours has a field more.
    #[must_use]
    pub fn is_etcd(&self) -> bool {
        self.is_etcd
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(self.folder.path().join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Whether the process still runs.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        while !std::fs::read_to_string(self.folder.path().join("log"))?
            .contains("ready to serve client requests")
        {
            self.check_start(started, "did not say that it is ready")?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The recordings began when the storage version had been raised.
        let request = HttpRequest {
            method: "GET".to_owned(),
            path: "/version".to_owned(),
            headers: Vec::new(),
            body: None,
            status: 200,
            response_headers: Vec::new(),
            response_body: String::new(),
        };
        loop {
            let (_, _, body) = call::http(self.address, &request).await?;
            if body.contains(r#""storage":"3.7.0""#) {
                let fields: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_str(&body)?;
                self.is_etcd = fields.len() == 3;
                return Ok(());
            }
            self.check_start(started, &format!("/version stays at {body}"))?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn check_start(&mut self, started: Instant, what: &str) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the server ended with {status}:\n{}", self.log_tail());
        }
        ensure!(
            started.elapsed() < START_DEADLINE,
            "the server {what}:\n{}",
            self.log_tail()
        );
        Ok(())
    }
}

/// `KEELSON_ETCD_BINARY`, or the `keelson` that was built into the folder of this test.
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("KEELSON_ETCD_BINARY") {
        let path = PathBuf::from(path);
        return path
            .canonicalize()
            .with_context(|| format!("KEELSON_ETCD_BINARY={}", path.display()));
    }
    let test = std::env::current_exe()?;
    let profile = test
        .parent()
        .and_then(Path::parent)
        .context("the test binary lies in target/<profile>/deps")?;
    let path = profile.join("keelson");
    ensure!(
        path.exists(),
        "{} is missing: run `cargo build -p keelson-cli` first",
        path.display()
    );
    Ok(path)
}

fn arguments(recorded: &[String], folder: &Path, ports: Ports) -> Result<Vec<OsString>> {
    let mut args = Vec::new();
    let mut rest = recorded.iter().skip(1);
    while let Some(flag) = rest.next() {
        let value = rest
            .next()
            .with_context(|| format!("{flag} has no value"))?;
        args.push(OsString::from(flag));
        args.push(match flag.as_str() {
            "--data-dir" => folder.join("data").into_os_string(),
            "--listen-client-urls" => format!("http://127.0.0.1:{}", ports.client).into(),
            "--listen-peer-urls" => format!("http://127.0.0.1:{}", ports.peer).into(),
            _ => value.into(),
        });
    }
    Ok(args)
}
