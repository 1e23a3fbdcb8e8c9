//! The long run: `cargo run -p keelson-sim --profile sim -- --seeds 0..10000`.
#![expect(clippy::print_stdout, reason = "this is a program of the command line")]

use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use keelson_sim::plan::Plan;
use keelson_sim::{GENERATOR, run, run_twice, shrink};

const USAGE: &str =
    "usage: keelson-sim --seeds A..B [--jobs N] [--every N] [--once] [--first] [--shown] [--shrink]

  --seeds A..B   the seeds from A on, B left out
  --jobs N       so many at once (2)
  --every N      say how far it is after so many seeds (500)
  --once         run each seed once, and not twice to compare
  --first        end at the first seed that fails
  --shown        print everything that happens
  --shrink       make the plans of failing seeds smaller, and print them";

struct Options {
    seeds: Range<u64>,
    jobs: usize,
    every: u64,
    once: bool,
    first: bool,
    shown: bool,
    shrink: bool,
}

fn options(mut words: impl Iterator<Item = String>) -> Option<Options> {
    let mut options = Options {
        seeds: 0..0,
        jobs: 2,
        every: 500,
        once: false,
        first: false,
        shown: false,
        shrink: false,
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seeds" => {
                let text = words.next()?;
                let (from, to) = text.split_once("..")?;
                options.seeds = from.parse().ok()?..to.parse().ok()?;
            }
            "--jobs" => options.jobs = words.next()?.parse().ok()?,
            "--every" => options.every = words.next()?.parse().ok()?,
            "--once" => options.once = true,
            "--first" => options.first = true,
            "--shown" => options.shown = true,
            "--shrink" => options.shrink = true,
            _ => return None,
        }
    }
    (!options.seeds.is_empty()).then_some(options)
}

fn main() -> ExitCode {
    let Some(options) = options(std::env::args().skip(1)) else {
        println!("{USAGE}");
        return ExitCode::from(2);
    };
    let failed = run_all(&options);
    println!(
        "{} seeds of generator {GENERATOR}, {} failed",
        options.seeds.end - options.seeds.start,
        failed.len()
    );
    for (seed, failure) in &failed {
        println!("seed {seed}: {failure}");
        println!(
            "  repeat: cargo run -p keelson-sim --profile sim -- --seeds {seed}..{} --shown",
            seed + 1
        );
        if options.shrink {
            let (plan, failure) = shrink::shrink(&Plan::new(*seed), failure.clone());
            println!("  smaller: {plan:#?}\n  fails by: {failure}");
        }
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_all(options: &Options) -> Vec<(u64, String)> {
    let next = AtomicU64::new(options.seeds.start);
    let done = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= options.seeds.end {
                return;
            }
            if let Some(failure) = one(seed, options) {
                let mut failed = failed.lock().expect("nobody panics here");
                failed.push((seed, failure));
                if options.first {
                    next.store(options.seeds.end, Ordering::Relaxed);
                }
            }
            let count = done.fetch_add(1, Ordering::Relaxed) + 1;
            if count.is_multiple_of(options.every.max(1)) {
                let failed = failed.lock().expect("nobody panics here").len();
                println!("{count} seeds have run, {failed} failed");
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(work);
        }
    });
    let mut failed = failed.into_inner().expect("nobody panics here");
    failed.sort();
    failed
}

fn one(seed: u64, options: &Options) -> Option<String> {
    let plan = Plan::new(seed);
    if options.shown {
        let report = run(&plan, true);
        println!("{plan:#?}");
        for line in &report.shown {
            println!("{line}");
        }
        return report.failure;
    }
    if options.once {
        run(&plan, false).failure
    } else {
        run_twice(&plan).failure
    }
}
