//! What a process writes to its standard error, line by line.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Lines kept; earlier ones are dropped.
const LINES_MAX: usize = 20_000;

/// One line.
pub type LogLine = String;

/// The lines of one run, which grow while it runs.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<LogLine>,
    dropped: usize,
    closed: bool,
}

/// How waiting for a line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// It came.
    Found,
    /// The process closed its log without it.
    Closed,
    /// It did not come in time.
    TimedOut,
}

impl Log {
    /// Reads `source` to its end on a thread of its own.
    pub(crate) fn follow(source: impl Read + Send + 'static) -> Log {
        let log = Log {
            shared: Arc::default(),
        };
        let writer = log.clone();
        thread::spawn(move || {
            for line in BufReader::new(source).split(b'\n') {
                let Ok(line) = line else { break };
                writer.push(String::from_utf8_lossy(&line).into_owned());
            }
            writer.lock().closed = true;
            writer.shared.grown.notify_all();
        });
        log
    }

    fn push(&self, line: LogLine) {
        let mut lines = self.lock();
        if lines.lines.len() == LINES_MAX {
            lines.lines.drain(..LINES_MAX / 2);
            lines.dropped += LINES_MAX / 2;
        }
        lines.lines.push(line);
        drop(lines);
        self.shared.grown.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.shared
            .lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lines(&self) -> Vec<LogLine> {
        self.lock().lines.clone()
    }

    /// Waits for a line that holds `text`.
    pub(crate) fn wait_for(&self, text: &str, patience: Duration) -> Waited {
        let deadline = Instant::now() + patience;
        let mut seen = 0;
        let mut lines = self.lock();
        loop {
            let from = seen.max(lines.dropped) - lines.dropped;
            if lines.lines[from..].iter().any(|line| line.contains(text)) {
                return Waited::Found;
            }
            seen = lines.dropped + lines.lines.len();
            if lines.closed {
                return Waited::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Waited::TimedOut;
            }
            lines = self
                .shared
                .grown
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_and_the_end_ends_the_waiting() {
        let log = Log::follow(&b"one\ntwo\nthree"[..]);
        let patience = Duration::from_secs(20);
        assert_eq!(log.wait_for("three", patience), Waited::Found);
        assert_eq!(log.wait_for("four", patience), Waited::Closed);
        assert_eq!(log.lines(), ["one", "two", "three"]);
    }

    #[test]
    fn a_line_that_does_not_come_is_not_waited_for_longer_than_asked() {
        let (end, _open) = std::io::pipe().unwrap();
        let log = Log::follow(end);
        assert_eq!(
            log.wait_for("x", Duration::from_millis(20)),
            Waited::TimedOut
        );
    }
}
