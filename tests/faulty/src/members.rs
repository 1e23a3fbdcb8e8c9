//! The members: processes of the faulty program, each on its own host, started, paused and killed by
//! number.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use keelson_harness::{Exit, Launch, Process, wait};

use crate::stage::{Cut, Network};

/// How many there are.
pub const MEMBERS: usize = 3;
/// What limits are counted in: the default of `--election-timeout`.
pub const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// What is wrong with a member, in the words of its steering file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ills {
    /// Lines on the disks.
    pub disk: String,
    /// How far the time of day is off, in milliseconds.
    pub wall_ms: i64,
    /// How far the monotonic clock is ahead, in milliseconds.
    pub ahead_ms: u64,
}

/// Three members. Dropping them ends them.
#[derive(Debug)]
pub struct Members {
    /// The links between them.
    pub network: Network,
    seats: Vec<Seat>,
    dir: PathBuf,
    /// How far monotonic clocks have jumped ahead in all, in milliseconds.
    jumped: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Seat {
    process: Process,
    steering: PathBuf,
    ills: Ills,
    paused: bool,
}

impl Members {
    /// Starts three members of `binary` with everything that they write in `dir`. They serve when this
    /// returns.
    ///
    /// # Errors
    /// If there is no network, or one of them does not start.
    pub fn start(binary: &Path, dir: &Path) -> anyhow::Result<Members> {
        let network = Network::new(MEMBERS)?;
        let mut seats = Vec::new();
        for number in 0..MEMBERS {
            let steering = dir.join(format!("{}.faults", Network::host(number)));
            let launch = launch(binary, dir, number, &steering);
            seats.push(Seat {
                process: Process::prepared(launch, data_dir(dir, number))?,
                steering,
                ills: Ills::default(),
                paused: false,
            });
        }
        let mut members = Members {
            network,
            seats,
            dir: dir.to_owned(),
            jumped: Arc::default(),
        };
        for number in 0..MEMBERS {
            members.spawn(number)?;
        }
        members.wait_until_ready()?;
        Ok(members)
    }

    /// Where clients find a member.
    #[must_use]
    pub fn client_url(number: usize) -> String {
        format!("http://{}:{CLIENT_PORT}", Network::address(number))
    }

    /// Where clients find all of them, with commas between.
    #[must_use]
    pub fn endpoints() -> String {
        let urls: Vec<String> = (0..MEMBERS).map(Members::client_url).collect();
        urls.join(",")
    }

    /// How far the members' monotonic clocks have jumped ahead in all, in milliseconds: told before they do.
    #[must_use]
    pub fn jumped(&self) -> &Arc<AtomicU64> {
        &self.jumped
    }

    /// The ids of those that run.
    pub fn processes(&self) -> impl Iterator<Item = u32> {
        self.seats.iter().filter_map(|seat| seat.process.pid())
    }

    /// Starts a member that does not run.
    ///
    /// # Errors
    /// As [`Process::spawn`].
    pub fn spawn(&mut self, number: usize) -> anyhow::Result<()> {
        self.seats[number].process.spawn()
    }

    /// Waits until all serve.
    ///
    /// # Errors
    /// If one has ended or does not serve in time.
    pub fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        for (number, seat) in self.seats.iter_mut().enumerate() {
            let ready = seat.process.wait_until_ready();
            ready.with_context(|| format!("member {number}"))?;
        }
        Ok(())
    }

    /// Waits until a member that was started either serves or has ended; which of the two it was.
    ///
    /// # Errors
    /// If neither happens in time.
    pub fn wait_until_ready_or_ended(&mut self, number: usize) -> anyhow::Result<bool> {
        let process = &mut self.seats[number].process;
        wait::until(|| {
            if !process.is_running().unwrap_or(false) {
                return Some(false);
            }
            let serves = |line: &String| line.contains("ready to serve client requests");
            process.log().iter().any(serves).then_some(true)
        })
    }

    /// `SIGKILL`.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        let exit = self.seats[number].process.kill()?;
        self.keep_log(number, &exit)
    }

    /// `SIGTERM`.
    ///
    /// # Errors
    /// If it does not run, or does not end.
    pub fn stop(&mut self, number: usize) -> anyhow::Result<()> {
        let exit = self.seats[number].process.stop()?;
        self.keep_log(number, &exit)
    }

    /// Waits until a member ends by itself.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn wait_for_end(&mut self, number: usize) -> anyhow::Result<Exit> {
        let exit = self.seats[number].process.wait_for_end()?;
        self.keep_log(number, &exit)?;
        Ok(exit)
    }

    /// `SIGSTOP`.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&mut self, number: usize) -> anyhow::Result<()> {
        self.seats[number].paused = true;
        self.seats[number].process.pause()
    }

    /// `SIGCONT`.
    ///
    /// # Errors
    /// If it does not run.
    pub fn go_on(&mut self, number: usize) -> anyhow::Result<()> {
        self.seats[number].paused = false;
        self.seats[number].process.go_on()
    }

    /// Cuts all links of a member, in both directions or in one.
    ///
    /// # Errors
    /// If a command fails.
    pub fn cut_off(
        &mut self,
        number: usize,
        (sends, hears): (bool, bool),
        how: Cut,
    ) -> anyhow::Result<()> {
        for other in (0..MEMBERS).filter(|other| *other != number) {
            if !sends {
                self.network.cut(number, other, how)?;
            }
            if !hears {
                self.network.cut(other, number, how)?;
            }
        }
        Ok(())
    }

    /// What is wrong with a member.
    #[must_use]
    pub fn ills(&self, number: usize) -> &Ills {
        &self.seats[number].ills
    }

    /// Steers a member. If it runs, this holds when it returns.
    ///
    /// # Errors
    /// If the file cannot be written, or the member does not take it.
    pub fn steer(&mut self, number: usize, ills: Ills) -> anyhow::Result<()> {
        let seat = &mut self.seats[number];
        let mut text = ills.disk.clone();
        text.push_str(&format!(
            "clock.wall {}\nclock.ahead {}\n",
            ills.wall_ms, ills.ahead_ms
        ));
        let jump = ills.ahead_ms.saturating_sub(seat.ills.ahead_ms);
        self.jumped.fetch_add(jump, Ordering::SeqCst);
        seat.ills = ills;
        let making = seat.steering.with_added_extension("new");
        fs::write(&making, &text)?;
        fs::rename(making, &seat.steering)?;
        let taken = seat.steering.with_added_extension("taken");
        if !seat.process.is_running()? || seat.paused {
            return Ok(());
        }
        wait::until(|| {
            let is_taken = fs::read_to_string(&taken).is_ok_and(|taken| taken == text);
            let runs = seat.process.is_running().unwrap_or(false);
            (is_taken || !runs).then_some(())
        })
        .with_context(|| format!("member {number} takes no faults"))
    }

    /// That all run, as they should between two faults.
    ///
    /// # Errors
    /// Which one does not, with its last lines.
    pub fn check_running(&mut self) -> anyhow::Result<()> {
        for (number, seat) in self.seats.iter_mut().enumerate() {
            let runs = seat.process.is_running()?;
            ensure!(runs, "member {number} has ended: {}", tail(&seat.process));
        }
        Ok(())
    }

    /// Adds what a member has logged in a run to its file in the directory.
    fn keep_log(&self, number: usize, exit: &Exit) -> anyhow::Result<()> {
        self.write_log(number, &exit.log, &exit.status.to_string())
    }

    /// Ends all of them, so that their logs are whole.
    ///
    /// # Errors
    /// If a log cannot be written, or one does not end.
    pub fn end(&mut self) -> anyhow::Result<()> {
        for number in 0..MEMBERS {
            if self.seats[number].process.is_running()? {
                self.kill(number)?;
            } else if self.seats[number].process.pid().is_some() {
                self.wait_for_end(number)?;
            }
        }
        Ok(())
    }

    /// How many lines with a text all members have logged, once they have ended.
    ///
    /// # Errors
    /// If a log cannot be read.
    pub fn logged(&self, text: &str) -> anyhow::Result<usize> {
        let mut lines = 0;
        for number in 0..MEMBERS {
            let log = fs::read_to_string(self.log_file(number))?;
            lines += log.lines().filter(|line| line.contains(text)).count();
        }
        Ok(lines)
    }

    fn log_file(&self, number: usize) -> PathBuf {
        self.dir.join(format!("{}.log", Network::host(number)))
    }

    fn write_log(&self, number: usize, lines: &[String], status: &str) -> anyhow::Result<()> {
        let mut options = fs::File::options();
        let mut file = options
            .create(true)
            .append(true)
            .open(self.log_file(number))?;
        for line in lines {
            writeln!(file, "{line}")?;
        }
        writeln!(file, "-- {status}")?;
        Ok(())
    }
}

fn tail(process: &Process) -> String {
    let lines = process.log();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

fn data_dir(dir: &Path, number: usize) -> PathBuf {
    dir.join(Network::host(number))
}

fn launch(binary: &Path, dir: &Path, number: usize, steering: &Path) -> Launch {
    let name = Network::host(number);
    let client = Members::client_url(number);
    let peer = |number: usize| format!("http://{}:{PEER_PORT}", Network::address(number));
    let listed: Vec<String> = (0..MEMBERS)
        .map(|number| format!("{}={}", Network::host(number), peer(number)))
        .collect();
    let mut launch = Launch::new("nsenter").called("nsenter").bare();
    for argument in Network::enter_host(number) {
        launch = launch.argument(argument);
    }
    let mut arguments = vec![
        "serve".to_owned(),
        format!("--name={name}"),
        format!("--data-dir={}", data_dir(dir, number).display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={}", peer(number)),
        format!("--initial-advertise-peer-urls={}", peer(number)),
        format!("--initial-cluster={}", listed.join(",")),
        format!("--election-timeout={}", ELECTION_TIMEOUT.as_millis()),
        "--heartbeat-interval=100".to_owned(),
        // What a member missed for a few seconds it gets as a snapshot.
        "--snapshot-count=150".to_owned(),
        "--snapshot-catchup-entries=50".to_owned(),
        "--watch-progress-notify-interval=2s".to_owned(),
    ];
    launch = launch.argument(binary);
    for argument in arguments.drain(..) {
        launch = launch.argument(argument);
    }
    launch.variable("KEELSON_FAULTS", steering)
}
