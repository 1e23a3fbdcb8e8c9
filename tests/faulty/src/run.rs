//! A run: a cluster under load, one fault after the other, and the verdict.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use keelson_client::Client;
use keelson_harness::wait;
use keelson_sim::Random;
use tokio::runtime::Runtime;

use crate::compactions::{Asked, Compactions};
use crate::faults::{Fault, Inflicted, in_fault};
use crate::heal::{self, Heal};
use crate::leases::Leases;
use crate::load::{self, Load};
use crate::members::{MEMBERS, Members};
use crate::record::Recorder;
use crate::stalls::Stalls;
use crate::verdict::{self, Verdict, Work};
use crate::watchers::Watchers;

/// How long a member may take to say who leads.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// A stall that reports tell of.
const WORTH_TELLING: Duration = Duration::from_millis(100);

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// How long faults go on. Each kind comes at least once.
    pub long: Duration,
    /// What decides what comes when.
    pub seed: u64,
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// Faults by kind.
    pub faults: BTreeMap<Fault, u32>,
    /// How long each took to heal.
    pub heals: Vec<Heal>,
    /// What clients and watchers saw.
    pub verdict: Verdict,
    /// Snapshots that members got from others.
    pub snapshots: usize,
    /// How long it all took.
    pub took: Duration,
}

/// Runs members of `binary` in `dir`. To be called inside of namespaces ([`crate::stage::enter`]), and
/// `say` is told what happens.
///
/// # Errors
/// What a member did not do as it must, or what was not as it must be at the end.
pub fn run(
    wanted: Wanted,
    binary: &Path,
    dir: &Path,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Report> {
    let began = Instant::now();
    let stalls = Stalls::watch(dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut random = Random::new(wanted.seed);
    let mut members = Members::start(binary, dir)?;
    let recorder = Arc::new(Recorder::default());
    let asked = Asked::default();
    let work = Work {
        watchers: Watchers::start(runtime.handle(), &asked)?,
        load: Load::start(runtime.handle(), &recorder, &mut random)?,
        leases: Leases::start(runtime.handle(), &recorder, members.jumped())?,
        compactions: Compactions::start(runtime.handle(), asked.clone(), random.fork())?,
        asked,
    };
    let mut rig = Rig {
        members: &mut members,
        recorder: &recorder,
        runtime: &runtime,
        random,
        stalls: &stalls,
        faults: BTreeMap::new(),
        heals: Vec::new(),
    };
    let ended = rig.faults(wanted.long, say);
    let (faults, heals) = (rig.faults, rig.heals);
    let concluded = ended.and_then(|()| {
        let concluded = verdict::conclude(&recorder, work);
        runtime.block_on(concluded)
    });
    // Whatever happened, the logs are to be whole.
    members.end()?;
    let report = Report {
        faults,
        heals,
        verdict: concluded?,
        snapshots: members.logged("\"msg\":\"applying snapshot\"")?,
        took: began.elapsed(),
    };
    heal::check(&report.heals)?;
    ensure!(
        report.verdict.compactions > 0 && report.verdict.leases.renewed > 0,
        "nothing was compacted, or no lease renewed: {:?}",
        report.verdict
    );
    let behind = report.faults.get(&Fault::LeftBehind).copied().unwrap_or(0);
    ensure!(
        report.snapshots >= behind as usize,
        "members were left behind {behind} times, and got {} snapshots",
        report.snapshots
    );
    Ok(report)
}

struct Rig<'a> {
    members: &'a mut Members,
    recorder: &'a Arc<Recorder>,
    runtime: &'a Runtime,
    random: Random,
    stalls: &'a Stalls,
    faults: BTreeMap<Fault, u32>,
    heals: Vec<Heal>,
}

impl Rig<'_> {
    /// Faults, until the time is over and each kind was there.
    fn faults(&mut self, long: Duration, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        let began = Instant::now();
        while began.elapsed() < long {
            for fault in Fault::shuffled(&mut self.random) {
                if began.elapsed() >= long && self.faults.len() == Fault::ALL.len() {
                    break;
                }
                in_fault(fault, self.fault(fault, began, say))?;
            }
        }
        Ok(())
    }

    fn fault(
        &mut self,
        fault: Fault,
        began: Instant,
        say: &mut dyn FnMut(&str),
    ) -> anyhow::Result<()> {
        let leader = self.leader()?;
        let at = began.elapsed();
        let clients = self.clients()?;
        let last_entry = |number: usize| {
            let status = self.runtime.block_on(clients[number].status());
            status.ok().map(|status| status.raft_index)
        };
        let mut inflicted = Inflicted {
            members: self.members,
            random: &mut self.random,
            leader,
            last_entry: &last_entry,
        };
        let (what, since) = inflicted.inflict(fault)?;
        let span = self.stalls.begin(self.members.processes());
        let healed = self.runtime.block_on(heal::measure(self.recorder, since));
        let healed = healed.with_context(|| format!("after {what}"))?;
        let heal = Heal {
            fault: fault.name(),
            first: healed.iter().min().copied().unwrap_or_default(),
            all: healed.iter().max().copied().unwrap_or_default(),
            stalled: self.stalls.end(&span, self.members.processes()),
        };
        say(&format!(
            "{:6.1} s  {}: {what}; writes go on after {:.2?}, through each member after {:.2?}{}",
            at.as_secs_f64(),
            fault.name(),
            heal.first,
            heal.all,
            stall(heal.stalled)
        ));
        self.heals.push(heal);
        *self.faults.entry(fault).or_default() += 1;
        self.members.check_running()?;
        self.members.wait_until_ready()?;
        let pause = Duration::from_millis(self.random.between(100, 600));
        thread::sleep(pause);
        Ok(())
    }

    /// Clients that ask each member of itself.
    fn clients(&self) -> anyhow::Result<Vec<Client>> {
        let of = |number: usize| {
            let client = load::client(&Members::client_url(number), self.runtime.handle())?;
            anyhow::Ok(client.with_timeout(STATUS_TIMEOUT))
        };
        (0..MEMBERS).map(of).collect()
    }

    /// Who leads, as a member says it.
    fn leader(&self) -> anyhow::Result<usize> {
        let clients = self.clients()?;
        let look = || self.runtime.block_on(look_for_leader(&clients));
        wait::until(look).context("nobody leads")
    }
}

async fn look_for_leader(clients: &[Client]) -> Option<usize> {
    for (number, client) in clients.iter().enumerate() {
        let status = client.status().await.ok()?;
        let leads = status.leader != 0 && status.header?.member_id == status.leader;
        if leads {
            return Some(number);
        }
    }
    None
}

fn stall(stalled: Duration) -> String {
    if stalled < WORTH_TELLING {
        return String::new();
    }
    format!(" (the machine stood still for {stalled:.2?}, which is allowed on top)")
}
