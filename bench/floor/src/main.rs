//! The least that a call, a sync and a copy cost on this machine. `bench/floor/run` runs it and makes a
//! table.

mod calls;
mod disk;
mod memory;
mod times;

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};

/// As the program that is held against it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "usage: keelson-floor calls
       keelson-floor sync FOLDER BYTES SECONDS
       keelson-floor copy BYTES SECONDS";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let found = match *arguments {
        ["calls"] => return calls::serve(),
        ["sync", folder, bytes, seconds] => {
            disk::sync(Path::new(folder), number(bytes)?, time(seconds)?)?
        }
        ["copy", bytes, seconds] => memory::copy(number(bytes)?, time(seconds)?)?,
        _ => bail!(USAGE),
    };
    writeln!(std::io::stdout(), "{}", found.json())?;
    Ok(())
}

fn number(text: &str) -> anyhow::Result<usize> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.with_context(|| format!("{text} is no number of bytes"))
}

fn time(text: &str) -> anyhow::Result<Duration> {
    let seconds: Option<f64> = text.parse().ok();
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.with_context(|| format!("{text} is no number of seconds"))
}
