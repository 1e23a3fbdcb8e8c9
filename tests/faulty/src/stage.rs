//! The place where members run: a network of their own, out of namespaces.
//!
//! The whole run lives in namespaces for processes, mounts and the network, whose first process it is.
//! When that process ends, however it ends, the kernel ends all others and takes the network away: nothing
//! is left behind, and nothing outside is touched. As root this needs nothing more; for other users it
//! needs user namespaces.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, ensure};

/// Set inside the namespaces.
const INSIDE: &str = "KEELSON_FAULTS_INSIDE";
/// The bridge that joins the members.
const BRIDGE: &str = "bridge0";
/// An address that no network card has.
const NOBODY: &str = "02:00:00:00:00:fe";

/// Goes on inside of namespaces: starts this program anew there, in the place of this one. Returns inside.
///
/// # Errors
/// If there is no `unshare`. If namespaces cannot be had, `unshare` says so and ends with an error.
pub fn enter() -> anyhow::Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--net", "--pid", "--mount", "--mount-proc"]);
    unshare.args(["--fork", "--kill-child"]);
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.arg("--").arg(std::env::current_exe()?);
    unshare.args(std::env::args_os().skip(1)).env(INSIDE, "1");
    Err(unshare.exec()).context("run unshare (of util-linux)")
}

/// How a link is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Packets go out and reach nobody.
    Silent,
    /// The system refuses to send.
    Refused,
}

/// A bridge with a member on each port, and this process beside it. Members cannot reach anything else.
#[derive(Debug)]
pub struct Network {
    cuts: BTreeSet<(usize, usize, bool)>,
}

impl Network {
    /// Joins so many namespaces, named by [`Network::host`].
    ///
    /// # Errors
    /// If one of the commands fails; it is named.
    pub fn new(members: usize) -> anyhow::Result<Network> {
        ensure!(std::env::var_os(INSIDE).is_some(), "outside of namespaces");
        run("mount", "-t tmpfs none /run")?;
        ip("link set lo up")?;
        ip(&format!("link add {BRIDGE} type bridge"))?;
        ip(&format!("addr add 10.77.0.1/24 dev {BRIDGE}"))?;
        ip(&format!("link set {BRIDGE} up"))?;
        for member in 0..members {
            let (name, address) = (Network::host(member), Network::address(member));
            ip(&format!("netns add {name}"))?;
            ip(&format!(
                "link add {name} type veth peer name eth0 netns {name}"
            ))?;
            ip(&format!("link set {name} master {BRIDGE} up"))?;
            ip(&format!("-n {name} addr add {address}/24 dev eth0"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        Ok(Network {
            cuts: BTreeSet::new(),
        })
    }

    /// The name of a member's namespace.
    #[must_use]
    pub fn host(member: usize) -> String {
        format!("m{member}")
    }

    /// A member's address.
    #[must_use]
    pub fn address(member: usize) -> String {
        format!("10.77.0.{}", 10 + member)
    }

    /// The arguments of `nsenter` that come before a program that is to run on a member's host.
    #[must_use]
    pub fn enter_host(member: usize) -> Vec<OsString> {
        let net = format!("--net=/run/netns/{}", Network::host(member));
        vec![net.into(), "--".into()]
    }

    /// Lets nothing more from one member to another; the other direction stays.
    ///
    /// # Errors
    /// If the command fails.
    pub fn cut(&mut self, from: usize, to: usize, how: Cut) -> anyhow::Result<()> {
        let (host, address) = (Network::host(from), Network::address(to));
        match how {
            Cut::Silent => ip(&format!(
                "-n {host} neigh replace {address} lladdr {NOBODY} dev eth0 nud permanent"
            ))?,
            Cut::Refused => ip(&format!("-n {host} route add blackhole {address}/32"))?,
        }
        self.cuts.insert((from, to, how == Cut::Silent));
        Ok(())
    }

    /// Mends everything.
    ///
    /// # Errors
    /// If a command fails.
    pub fn heal(&mut self) -> anyhow::Result<()> {
        while let Some((from, to, silent)) = self.cuts.pop_first() {
            let (host, address) = (Network::host(from), Network::address(to));
            if silent {
                ip(&format!("-n {host} neigh del {address} dev eth0"))?;
            } else {
                ip(&format!("-n {host} route del blackhole {address}/32"))?;
            }
        }
        Ok(())
    }
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &str) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments.split(' ')).output();
    let output = output.with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
