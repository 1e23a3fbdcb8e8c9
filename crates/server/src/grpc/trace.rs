//! `trace` lines: where the time of a slow request went, step by step, in etcd's form.
//!
//! The steps are those that this server has; where etcd has the same one, it has etcd's name.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use crate::config::GoDuration;
use crate::logging;
use crate::state::State;

/// A request that takes longer is told of.
const THRESHOLD: Duration = Duration::from_millis(100);

/// Most steps that a request has.
const STEPS_MAX: usize = 4;

/// The waiting before a read.
pub(crate) const AGREEMENT: &str = "agreement among raft nodes before linearized reading";
/// Planning a range.
pub(crate) const INDEX: &str = "range keys from in-memory index tree";
/// Reading values that do not fit into one piece.
pub(crate) const FILE: &str = "range keys from bolt db";
/// Making the response.
pub(crate) const ASSEMBLE: &str = "assemble the response";
/// From the proposal to the answer of apply.
pub(crate) const PROPOSE: &str = "process raft request";

/// The time of one request, by the member's clock. Telling it costs nothing as long as it is quick.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trace {
    operation: &'static str,
    started: Duration,
    steps: [(&'static str, Duration); STEPS_MAX],
    len: usize,
}

impl Trace {
    /// Begins now.
    pub(crate) fn begin(state: &State, operation: &'static str) -> Trace {
        Trace {
            operation,
            started: now(state),
            steps: [("", Duration::ZERO); STEPS_MAX],
            len: 0,
        }
    }

    /// A step has ended; answers with the time since the begin.
    pub(crate) fn step(&mut self, state: &State, what: &'static str) -> Duration {
        let since = self.elapsed(state);
        self.step_until(what, since)
    }

    /// A step has ended so long after the begin, which is the answer.
    pub(crate) fn step_until(&mut self, what: &'static str, since: Duration) -> Duration {
        if let Some(step) = self.steps.get_mut(self.len) {
            *step = (what, since);
            self.len += 1;
        }
        since
    }

    /// The time since the begin.
    pub(crate) fn elapsed(&self, state: &State) -> Duration {
        now(state).saturating_sub(self.started)
    }

    /// Writes the line, if the request has taken so long; `detail` is asked for only then.
    pub(crate) fn tell(&self, took: Duration, detail: impl FnOnce(&mut Detail)) {
        if took <= THRESHOLD {
            return;
        }
        self.write(took, THRESHOLD / (self.steps_u32() + 1), detail);
    }

    /// As [`Trace::tell`], with every step, however short.
    pub(crate) fn tell_all_steps(&self, took: Duration, detail: impl FnOnce(&mut Detail)) {
        if took > THRESHOLD {
            self.write(took, Duration::ZERO, detail);
        }
    }

    fn steps_u32(&self) -> u32 {
        u32::try_from(self.len).unwrap_or(u32::MAX - 1)
    }

    fn write(&self, took: Duration, shortest: Duration, detail: impl FnOnce(&mut Detail)) {
        let mut fields = Detail::default();
        detail(&mut fields);
        let mut before = Duration::ZERO;
        let mut steps = Vec::new();
        for &(what, until) in self.steps.get(..self.len).unwrap_or_default() {
            let long = until.saturating_sub(before);
            if long > shortest {
                steps.push(format!("'{what}'  (duration: {})", GoDuration::from(long)));
            }
            before = until;
        }
        let end = SystemTime::now();
        tracing::info!(
            trace_id = rand::random::<u32>() >> 1,
            operation = self.operation,
            detail = fields.text(),
            duration = %GoDuration::from(took),
            start = logging::timestamp(end.checked_sub(took).unwrap_or(end)),
            end = logging::timestamp(end),
            "steps:json" = logging::json(&steps),
            step_count = steps.len(),
            "trace"
        );
    }
}

fn now(state: &State) -> Duration {
    state.node.env().clock.now()
}

/// What a line says of a request, in braces.
#[derive(Debug, Default)]
pub(crate) struct Detail(String);

impl Detail {
    /// One more fact.
    pub(crate) fn add(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Detail {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "{name}:{value}; ");
        self
    }

    /// A fact that is a key; what is no text in it is shown as a replacement character.
    pub(crate) fn key(&mut self, name: &str, key: &[u8]) -> &mut Detail {
        self.add(name, String::from_utf8_lossy(key))
    }

    fn text(self) -> String {
        if self.0.is_empty() {
            self.0
        } else {
            format!("{{{}}}", self.0)
        }
    }
}
