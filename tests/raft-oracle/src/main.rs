//! Compares the consensus crate with an independent implementation; see the README beside it.

mod configuration;
mod log;
mod random;

use anyhow::{Context as _, bail};
use random::Random;

struct Options {
    seed: u64,
    rounds: u64,
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options {
        seed: 1,
        rounds: 20_000,
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args
            .next()
            .with_context(|| format!("{name} wants a number"))?;
        let number = value.parse().with_context(|| format!("{name} {value}"))?;
        match name.as_str() {
            "--seed" => options.seed = number,
            "--rounds" => options.rounds = number,
            _ => bail!("unknown option {name}; there are --seed and --rounds"),
        }
    }
    Ok(options)
}

fn main() -> anyhow::Result<()> {
    let Options { seed, rounds } = options()?;
    let mut counts = Counts::default();
    for round in 0..rounds {
        let seed = seed.wrapping_add(round);
        let again = || format!("repeat it with --seed {seed} --rounds 1");
        configuration::round(&mut Random::new(seed), &mut counts).with_context(again)?;
        log::round(&mut Random::new(!seed), &mut counts).with_context(again)?;
    }
    counts.check(rounds)?;
    println!(
        "{rounds} rounds from seed {seed}: {} changes taken, {} refused; {} appends taken, {} refused; no difference",
        counts.changes_taken, counts.changes_refused, counts.appends_taken, counts.appends_refused
    );
    Ok(())
}

/// What was seen; a comparison that never sees one side of a decision shows nothing.
#[derive(Debug, Default)]
pub struct Counts {
    /// Changes of the configuration that both took.
    pub changes_taken: u64,
    /// Changes of the configuration that both refused.
    pub changes_refused: u64,
    /// Appends that both took.
    pub appends_taken: u64,
    /// Appends that both refused.
    pub appends_refused: u64,
}

impl Counts {
    fn check(&self, rounds: u64) -> anyhow::Result<()> {
        let all = [
            self.changes_taken,
            self.changes_refused,
            self.appends_taken,
            self.appends_refused,
        ];
        if rounds >= 100 && all.contains(&0) {
            bail!("a kind of decision was never reached: {self:?}");
        }
        Ok(())
    }
}
