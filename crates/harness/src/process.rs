//! A server in a process of its own.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use keelson_client::Client;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::log::{Log, LogLine, Waited};
use crate::patient;
use crate::ports::free_port;
use crate::wait::PATIENCE;

/// What a server of etcd's kind logs when clients are served.
const READY: &str = "ready to serve client requests";
/// How often an exit is looked for.
const POLL: Duration = Duration::from_millis(2);

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Launch {
    binary: PathBuf,
    called: OsString,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    bare: bool,
    name: String,
    peer_scheme: &'static str,
    /// As `--initial-cluster` takes them; alone where there are none.
    initial_cluster: Option<String>,
}

impl Launch {
    /// `binary`, called as `etcd`.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>) -> Launch {
        Launch {
            binary: binary.into(),
            called: OsString::from("etcd"),
            arguments: Vec::new(),
            variables: Vec::new(),
            bare: false,
            name: "test".to_owned(),
            peer_scheme: "http",
            initial_cluster: None,
        }
    }

    /// Called as something else.
    #[must_use]
    pub fn called(mut self, name: impl Into<OsString>) -> Launch {
        self.called = name.into();
        self
    }

    /// With one more variable of the environment.
    #[must_use]
    pub fn variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Launch {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// One more argument.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Launch {
        self.arguments.push(argument.into());
        self
    }

    /// Only the arguments that are given: no name, directory or URLs of our own.
    #[must_use]
    pub fn bare(mut self) -> Launch {
        self.bare = true;
        self
    }

    /// Another name than `test`.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Launch {
        self.name = name.into();
        self
    }

    /// Members speak TLS with one another: their URLs begin with `https`. How, other arguments say.
    #[must_use]
    pub fn peers_over_tls(mut self) -> Launch {
        self.peer_scheme = "https";
        self
    }
}

/// How a process ended.
#[derive(Debug)]
pub struct Exit {
    /// Its status.
    pub status: ExitStatus,
    /// What it logged.
    pub log: Vec<LogLine>,
}

impl Exit {
    /// The code, if it was not a signal that ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal, if one ended it.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// The log as one text.
    #[must_use]
    pub fn text(&self) -> String {
        self.log.join("\n")
    }
}

/// A server in a process of its own, with its directory and ports. Dropping it kills the process,
/// and removes the directory if it made it.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    data_dir: PathBuf,
    client_port: u16,
    peer_port: u16,
    running: Option<Running>,
    /// Removed when dropped, if the directory is ours.
    _owned: Option<TempDir>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    log: Log,
}

impl Process {
    /// Starts a server in a new directory on free ports, and waits until it serves.
    ///
    /// # Errors
    /// If it cannot be started, ends, or is not ready in time; the error holds its log.
    pub fn start(launch: Launch) -> anyhow::Result<Process> {
        let dir = tempfile::tempdir()?;
        let data_dir = dir.path().join("data");
        let mut process = Process::prepared(launch, data_dir)?;
        process._owned = Some(dir);
        process.restart()?;
        Ok(process)
    }

    /// As [`Process::start`], in a directory of the caller's.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn start_in(launch: Launch, data_dir: &Path) -> anyhow::Result<Process> {
        let mut process = Process::prepared(launch, data_dir.to_owned())?;
        process.restart()?;
        Ok(process)
    }

    /// A server that was not started yet, with its directory and ports.
    ///
    /// # Errors
    /// If there is no free port.
    pub fn prepared(launch: Launch, data_dir: PathBuf) -> anyhow::Result<Process> {
        Ok(Process {
            launch,
            data_dir,
            client_port: free_port()?,
            peer_port: free_port()?,
            running: None,
            _owned: None,
        })
    }

    /// Starts it again, or for the first time, in the same directory on the same ports.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        self.wait_until_ready()
    }

    /// Waits until a server that was spawned serves.
    ///
    /// # Errors
    /// If it ends, or is not ready in time and was killed; the error holds its log.
    pub fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let log = &self.running.as_ref().context("not running")?.log;
        match log.wait_for(READY, PATIENCE) {
            Waited::Found => Ok(()),
            Waited::Closed => {
                let exit = self.wait()?;
                bail!("it ended with {} and logged:\n{}", exit.status, exit.text())
            }
            Waited::TimedOut => {
                let exit = self.kill()?;
                bail!(
                    "it was not ready in {PATIENCE:?} and logged:\n{}",
                    exit.text()
                )
            }
        }
    }

    /// Starts it and waits until it ends by itself.
    ///
    /// # Errors
    /// If it cannot be started, or is still there after long: then it is killed.
    pub fn run_to_end(&mut self) -> anyhow::Result<Exit> {
        self.spawn()?;
        self.wait()
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it is not running, or is still there after long: then it is killed.
    pub fn wait_for_end(&mut self) -> anyhow::Result<Exit> {
        self.wait()
    }

    /// Starts it, and does not wait: a member of a cluster serves only with others.
    ///
    /// # Errors
    /// If it cannot be started, or is running.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        if self.running.is_some() {
            bail!("it is running already");
        }
        let mut command = Command::new(&self.launch.binary);
        command
            .arg0(&self.launch.called)
            .args(&self.launch.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD") {
                command.env_remove(name);
            }
        }
        for (name, value) in &self.launch.variables {
            command.env(name, value);
        }
        if !self.launch.bare {
            command.args(self.own_arguments());
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("start {}", self.launch.binary.display()))?;
        let source = child.stderr.take().context("its log is piped")?;
        self.running = Some(Running {
            child,
            log: Log::follow(source),
        });
        Ok(())
    }

    fn own_arguments(&self) -> Vec<OsString> {
        let client = self.client_url();
        let peer = self.peer_url();
        let name = &self.launch.name;
        let alone = || format!("{name}={peer}");
        let cluster = self.launch.initial_cluster.clone();
        let mut arguments: Vec<OsString> = [
            format!("--name={name}"),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}", cluster.unwrap_or_else(alone)),
        ]
        .into_iter()
        .map(OsString::from)
        .collect();
        let mut directory = OsString::from("--data-dir=");
        directory.push(&self.data_dir);
        arguments.push(directory);
        arguments
    }

    /// `SIGKILL`, and waits for the end.
    ///
    /// # Errors
    /// If it is not running, or does not end.
    pub fn kill(&mut self) -> anyhow::Result<Exit> {
        self.signal(Signal::KILL)?;
        self.wait()
    }

    /// `SIGTERM`, and waits for the end.
    ///
    /// # Errors
    /// If it is not running, or is still there after long: then it is killed.
    pub fn stop(&mut self) -> anyhow::Result<Exit> {
        self.signal(Signal::TERM)?;
        self.wait()
    }

    /// `SIGSTOP`: it does nothing until [`Process::go_on`].
    ///
    /// # Errors
    /// If it is not running.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// `SIGCONT`.
    ///
    /// # Errors
    /// If it is not running.
    pub fn go_on(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Whether it runs: it was started, and has not ended.
    ///
    /// # Errors
    /// What the system says.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        match &mut self.running {
            Some(running) => Ok(running.child.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().context("it is not running")?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("a process id is not 0")?;
        Ok(kill_process(pid, signal)?)
    }

    fn wait(&mut self) -> anyhow::Result<Exit> {
        let mut running = self.running.take().context("it is not running")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = running.child.try_wait()? {
                // The log closes with the process.
                running.log.wait_for("\0", PATIENCE);
                return Ok(Exit {
                    status,
                    log: running.log.lines(),
                });
            }
            if Instant::now() > deadline {
                running.child.kill()?;
                running.child.wait()?;
                let log = running.log.lines().join("\n");
                bail!("it did not end in {PATIENCE:?} and logged:\n{log}");
            }
            thread::sleep(POLL);
        }
    }

    /// Its process id, if it was not stopped or killed.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    /// Where clients connect to.
    #[must_use]
    pub fn client_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// The port for clients.
    #[must_use]
    pub fn client_port(&self) -> u16 {
        self.client_port
    }

    /// The port for peers.
    #[must_use]
    pub fn peer_port(&self) -> u16 {
        self.peer_port
    }

    /// Where other members find it.
    #[must_use]
    pub fn peer_url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.launch.peer_scheme, self.peer_port)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// The members that it begins with, as `--initial-cluster` takes them.
    pub(crate) fn set_initial_cluster(&mut self, members: &str) {
        self.launch.initial_cluster = Some(members.to_owned());
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// What it has logged in this run.
    #[must_use]
    pub fn log(&self) -> Vec<LogLine> {
        self.running
            .as_ref()
            .map_or_else(Vec::new, |running| running.log.lines())
    }

    /// Waits for a line that holds `text`, from the beginning of this run on.
    ///
    /// # Errors
    /// If it is not running, ends, or does not log such a line in time.
    pub fn wait_for_log(&self, text: &str) -> anyhow::Result<()> {
        let log = &self.running.as_ref().context("it is not running")?.log;
        match log.wait_for(text, PATIENCE) {
            Waited::Found => Ok(()),
            Waited::Closed | Waited::TimedOut => {
                bail!("no line with {text:?} in:\n{}", log.lines().join("\n"))
            }
        }
    }

    /// How much memory it has in use, in bytes.
    ///
    /// # Errors
    /// If it is not running, or the system does not tell.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let pid = self.pid().context("it is not running")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        let kib: u64 = kib.context("there is no VmRSS")?.parse()?;
        Ok(kib << 10)
    }

    /// A client of it.
    ///
    /// # Errors
    /// If it cannot be connected to.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect_with(&self.client_url(), patient()).await?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            // It may have ended by itself; there is nothing else to do about it here.
            let _ended = running.child.kill();
            let _reaped = running.child.wait();
        }
    }
}
