//! The end of a run: when a cluster serves again, and what clients must have seen until then.

use crate::faults::SERVES_WITHIN;
use crate::history::History;
use crate::linear::{self, Verdict};
use crate::place::Place;
use crate::search::Limits;
use crate::watch_check;
use crate::world::{Failed, World};

/// A write and a read, through each member.
const SERVED_ENOUGH: u64 = 4;

impl World {
    /// Whether every member serves, all have applied the same, and all watchers have everything.
    ///
    /// # Errors
    ///
    /// It takes too long.
    pub(crate) fn is_settled(&mut self) -> Result<bool, Failed> {
        self.end_removed();
        let mut applied = Vec::new();
        let mut revision = 0;
        let mut waits = None;
        for (number, place) in self.places.iter().enumerate() {
            if place.gone {
                continue;
            }
            match &place.running {
                None => waits = Some(format!("member {number} does not run")),
                Some(running) => {
                    let node = running.stepped.node();
                    applied.push(node.shared().applied().0);
                    revision = node.shared().revision();
                    let served = self.served.get(&number).copied().unwrap_or(0);
                    // Members that came late have no client of their own.
                    let has_client = number + self.plan.clients < self.clients.len();
                    if has_client && served < SERVED_ENOUGH {
                        waits = Some(format!("member {number} has served {served} requests"));
                    }
                }
            }
        }
        if applied.windows(2).any(|pair| pair[0] != pair[1]) {
            waits = waits.or(Some(format!("members have applied {applied:?}")));
        }
        if !self.watchers_are_synced(revision) {
            waits = waits.or(Some("watchers lag".to_owned()));
        }
        match waits {
            None => Ok(true),
            Some(reason) if self.now > self.plan.heal_at + SERVES_WITHIN => Err(format!(
                "liveness: {SERVES_WITHIN} us after the faults have stopped {reason}"
            )),
            Some(_) => Ok(false),
        }
    }

    /// What must hold at the end.
    ///
    /// # Errors
    ///
    /// What does not.
    pub(crate) fn conclude(&mut self) -> Result<(), Failed> {
        let running: Vec<&Place> = self.places.iter().filter(|it| !it.gone).collect();
        let revision = running
            .iter()
            .filter_map(|place| place.running.as_ref())
            .map(|running| running.stepped.node().shared().revision())
            .max()
            .unwrap_or(1);
        for place in running {
            if let Some(running) = &place.running {
                self.safety.hash(&running.stepped, 0)?;
            }
        }
        let observed = self.safety.observed();
        if let Some(missing) = (2..=revision).find(|it| !observed.contains_key(it)) {
            return Err(format!("nobody has told of revision {missing}"));
        }
        for watching in &self.watchers {
            for ended in &watching.ended {
                watch_check::check(ended, observed, None)?;
            }
            watch_check::check(&watching.watch, observed, Some(revision))?;
        }
        let history = History {
            operations: self.operations.iter().flatten().cloned().collect(),
            observed: observed.clone(),
        };
        self.trace.line(format_args!(
            "{} requests, revision {revision}",
            history.operations.len()
        ));
        match linear::check(&history, Limits::default()) {
            Verdict::Linearizable => Ok(()),
            Verdict::Violation(reason) => Err(format!("not linearizable: {reason}")),
            Verdict::Unknown => Err("the linearizability search gave up".to_owned()),
        }
    }
}
