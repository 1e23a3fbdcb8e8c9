//! The run: three members under load, one fault after the other.
//!
//! ```text
//! cargo test -p keelson-faulty --test faults -- [--minutes N] [--seed N] [--keep]
//! ```
//!
//! It needs namespaces, as root or by user namespaces, and fails without them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use keelson_faulty::heal::{ALWAYS, MEDIAN, median};
use keelson_faulty::run::{Report, Wanted, run};
use keelson_faulty::stage;
use tempfile::TempDir;

const MINUTE: Duration = Duration::from_mins(1);

struct Arguments {
    asked: Wanted,
    /// Whether what members wrote stays.
    keep: bool,
}

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let arguments = arguments()?;
    stage::enter()?;
    end_with_the_terminal()?;
    let seed = arguments.asked.seed;
    eprintln!("faults: seed {seed}, for {:?}", arguments.asked.long);
    let mut dir = tempfile::Builder::new()
        .prefix("keelson-faults-")
        .tempdir()?;
    let binary = Path::new(env!("CARGO_BIN_EXE_keelson-faulty"));
    let ran = run(arguments.asked, binary, dir.path(), &mut |line| {
        eprintln!("{line}")
    });
    if arguments.keep || ran.is_err() {
        eprintln!("logs and data: {}", kept(&mut dir).display());
    }
    print(&ran.with_context(|| format!("seed {seed}"))?);
    Ok(())
}

fn kept(dir: &mut TempDir) -> PathBuf {
    dir.disable_cleanup(true);
    dir.path().to_owned()
}

fn arguments() -> anyhow::Result<Arguments> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut arguments = Arguments {
        asked: Wanted {
            long: MINUTE,
            seed: u64::from(now.subsec_nanos()),
        },
        keep: false,
    };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut number = || -> anyhow::Result<u64> {
            let value = given.next().with_context(|| format!("{name} of what"))?;
            value.parse().with_context(|| format!("{name} {value}"))
        };
        match name.as_str() {
            "--minutes" => arguments.asked.long = MINUTE * u32::try_from(number()?)?,
            "--seed" => arguments.asked.seed = number()?,
            "--keep" => arguments.keep = true,
            _ => bail!("{name} is unknown; there are --minutes N, --seed N, --keep"),
        }
    }
    Ok(arguments)
}

/// The first process of a namespace is not ended by signals that it does not look for.
fn end_with_the_terminal() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            use tokio::signal::unix::{SignalKind, signal};
            runtime.block_on(async {
                let signals = (
                    signal(SignalKind::interrupt()),
                    signal(SignalKind::terminate()),
                );
                let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
                    return;
                };
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                std::process::exit(130);
            });
        })?;
    Ok(())
}

fn print(report: &Report) {
    let verdict = &report.verdict;
    eprintln!(
        "{} calls, of them {} without an answer, at most {:.2?} between two acknowledged writes; {} revisions; {} \
         events to watchers; {} snapshots to members; HashKV {:08x} on all",
        verdict.operations,
        verdict.unanswered,
        verdict.silence,
        verdict.revisions,
        verdict.events,
        report.snapshots,
        verdict.hash
    );
    let mut by_fault: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for heal in &report.heals {
        by_fault.entry(heal.fault).or_default().push(heal.all);
    }
    for (fault, times) in by_fault {
        let longest = times.iter().max().copied().unwrap_or_default();
        eprintln!(
            "{:4} x {fault}: healed after {:.2?} in the median, {longest:.2?} at most",
            times.len(),
            median(times.iter().copied())
        );
    }
    let all = report.heals.iter().map(|heal| heal.all);
    let first = report.heals.iter().map(|heal| heal.first);
    let beyond = all.clone().filter(|time| *time > ALWAYS).count();
    eprintln!(
        "{} faults, {beyond} of them over the limit by as much as the machine stood still; through each member after {:.2?} in the median (limit {MEDIAN:?}), {:.2?} at most (limit \
         {ALWAYS:?}); through one after {:.2?} and {:.2?}; of all these times the machine stood still for {:.2?}",
        report.heals.len(),
        median(all.clone()),
        all.max().unwrap_or_default(),
        median(first.clone()),
        first.max().unwrap_or_default(),
        report
            .heals
            .iter()
            .map(|heal| heal.stalled)
            .sum::<Duration>()
    );
    eprintln!(
        "{} compactions, for which watchers came too late {} times; {} renewals of leases, of which {} \
         could not be renewed in time, and {} that were left are gone",
        verdict.compactions,
        verdict.too_late,
        verdict.leases.renewed,
        verdict.leases.ended,
        verdict.leases.left
    );
    eprintln!(
        "linearizable, watches whole, nothing acknowledged lost; {} ways to spoil the records were seen through",
        verdict.doctored
    );
    eprintln!("ok, {:.0?}", report.took);
}
