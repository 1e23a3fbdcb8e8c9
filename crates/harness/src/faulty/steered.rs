//! Faults of a process that are steered from outside, by a file.
//!
//! The file says how things are, one thing a line; what is not said is well. A file that is not there says
//! nothing. It is to be replaced as a whole, by a rename. What it said is written to the file of the
//! same name with `.taken` behind it, as soon as it holds.
//!
//! ```text
//! log.sync-takes 300         syncs of the log take so many milliseconds longer
//! log.full                   what is written to the log is refused: no space left on device
//! log.syncs-fail             syncs of the log are refused: input/output error
//! database.sync-takes 300    the same of the database
//! database.full
//! database.syncs-fail
//! clock.wall -3600000        the time of day is off by so many milliseconds
//! clock.ahead 5000           the monotonic clock is ahead by so many, at least; it never goes back
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::{DiskState, Faults, Part};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The exit code of a process whose file cannot be understood.
const NOT_UNDERSTOOD: i32 = 3;

/// What a file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    log: DiskState,
    database: DiskState,
    wall_off_ms: i64,
    ahead: Duration,
}

impl Faults {
    /// The faults that the file at `path` steers: what it says now holds when this returns, and what it
    /// says later a moment later, until its folder is removed. A later state that cannot be understood
    /// ends the process with code 3.
    ///
    /// # Errors
    /// If it cannot be read or understood now, or no thread can be had.
    pub fn steered_by(path: impl Into<PathBuf>) -> anyhow::Result<Faults> {
        let path = path.into();
        let faults = Faults::default();
        let mut last = faults.take(&path, None)?;
        let steered = faults.clone();
        let follow = move || loop {
            thread::sleep(LOOK_EVERY);
            match steered.take(&path, last.as_deref()) {
                Ok(text) => last = text,
                // The folder went, at the end of a test: nobody steers any more.
                Err(_) if !path.parent().is_some_and(Path::exists) => return,
                Err(error) => {
                    eprintln!("faults: {error:#}");
                    std::process::exit(NOT_UNDERSTOOD);
                }
            }
        };
        thread::Builder::new()
            .name("faults".to_owned())
            .spawn(follow)?;
        Ok(faults)
    }

    /// Takes what the file says, if that is not what it said last.
    fn take(&self, path: &Path, last: Option<&str>) -> anyhow::Result<Option<String>> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.with_context(|| format!("read {}", path.display()))?,
        };
        if last != Some(text.as_str()) {
            let said = understand(&text).with_context(|| format!("in {}", path.display()))?;
            self.set_disk(Part::Log, said.log);
            self.set_disk(Part::Database, said.database);
            self.set_wall_off(said.wall_off_ms);
            self.set_ahead(said.ahead);
            let taken = path.with_added_extension("taken");
            let making = path.with_added_extension("taking");
            fs::write(&making, &text)?;
            fs::rename(making, taken)?;
        }
        Ok(Some(text))
    }
}

fn understand(text: &str) -> anyhow::Result<Said> {
    let mut said = Said::default();
    for line in text.lines() {
        let understood = understand_line(line, &mut said);
        understood.with_context(|| format!("cannot understand {line:?}"))?;
    }
    Ok(said)
}

fn understand_line(line: &str, said: &mut Said) -> anyhow::Result<()> {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap_or_default();
    let number = words.next().map(str::parse::<i64>).transpose()?;
    let (part, what) = name.split_once('.').context("no part")?;
    let disk = match part {
        "log" => Some(&mut said.log),
        "database" => Some(&mut said.database),
        _ => None,
    };
    match (disk, part, what, number) {
        (Some(disk), _, "sync-takes", Some(number)) => disk.sync_takes = millis(number)?,
        (Some(disk), _, "full", None) => disk.full = true,
        (Some(disk), _, "syncs-fail", None) => disk.syncs_fail = true,
        (None, "clock", "wall", Some(number)) => said.wall_off_ms = number,
        (None, "clock", "ahead", Some(number)) => said.ahead = millis(number)?,
        _ => bail!("nothing is called so"),
    }
    Ok(())
}

fn millis(number: i64) -> anyhow::Result<Duration> {
    Ok(Duration::from_millis(u64::try_from(number)?))
}

#[cfg(test)]
mod tests {
    use keelson_node::Clock as _;

    use super::*;

    #[test]
    fn each_line_is_understood_and_no_other_one() {
        let text =
            "log.sync-takes 300\nlog.full\ndatabase.syncs-fail\nclock.wall -5\nclock.ahead 7\n";
        let said = understand(text).unwrap();
        assert_eq!(said.log.sync_takes, Duration::from_millis(300));
        assert!(said.log.full && !said.log.syncs_fail);
        assert!(said.database.syncs_fail && !said.database.full);
        assert_eq!((said.wall_off_ms, said.ahead.as_millis()), (-5, 7));
        assert_eq!(understand("").unwrap(), Said::default());
        for wrong in [
            "disk.full",
            "log.full 3",
            "log.sync-takes",
            "clock.ahead -1",
            "clock.wall x",
        ] {
            assert!(understand(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_folder_that_goes_ends_the_steering_and_nothing_else() {
        // Often, and for longer than it takes until the file is looked at again.
        for _ in 0..200 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("faults");
            fs::write(&path, "log.full\n").unwrap();
            Faults::steered_by(&path).unwrap();
        }
    }

    #[test]
    fn what_the_file_says_holds_at_the_start_and_later() {
        let dir = tempfile::tempdir().unwrap();
        let (path, next) = (dir.path().join("faults"), dir.path().join("next"));
        fs::write(&path, "log.full\n").unwrap();
        let faults = Faults::steered_by(&path).unwrap();
        assert!(faults.shared.disks.write(Part::Log).is_err());
        fs::write(&next, "clock.wall -3600000\nclock.ahead 3600000\n").unwrap();
        fs::rename(&next, &path).unwrap();
        let taken = path.with_added_extension("taken");
        let said = || fs::read_to_string(&taken).is_ok_and(|text| text.contains("wall"));
        crate::wait::until(|| said().then_some(())).unwrap();
        assert!(faults.shared.disks.write(Part::Log).is_ok());
        assert!(faults.now() >= Duration::from_hours(1));
        let system = keelson_node::SystemClock::new();
        assert!(faults.wall() < system.wall());
    }
}
