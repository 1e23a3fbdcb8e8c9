//! When old revisions are compacted by themselves. Pure: time and revision are passed in.
//!
//! # Source
//!
//! `spec/api.md` 2.7; etcd's `server/etcdserver/api/v3compactor`.

use std::collections::VecDeque;
use std::time::Duration;

use crate::AutoCompaction;

/// The longest time between two compactions of the periodic mode.
const INTERVAL_MAX: Duration = Duration::from_secs(3_600);
/// Looks between two compactions of the periodic mode.
const LOOKS_PER_INTERVAL: u32 = 10;
/// The time between two looks of the revision mode.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);

/// Says to which revision to compact, and when.
#[derive(Debug)]
pub(crate) struct Compactor {
    mode: AutoCompaction,
    /// When the next look is due.
    next: Duration,
    /// Revisions as they were at the last looks, oldest first (periodic mode).
    seen: VecDeque<i64>,
    last_revision: i64,
    last_success: Duration,
    /// Whether a whole period has passed since the start.
    warmed_up: bool,
    /// What is on its way.
    asked: Option<i64>,
}

impl Compactor {
    /// Begins at a moment, with the revision as it is then.
    pub(crate) fn new(mode: AutoCompaction, now: Duration, revision: i64) -> Compactor {
        let mut compactor = Compactor {
            mode,
            next: now,
            seen: VecDeque::new(),
            last_revision: 0,
            last_success: now,
            warmed_up: false,
            asked: None,
        };
        compactor.sample(revision);
        compactor.next = now + compactor.interval().unwrap_or_default();
        compactor
    }

    /// When to look next; `None` for never.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.interval().map(|_| self.next)
    }

    /// The time between two looks.
    fn interval(&self) -> Option<Duration> {
        match self.mode {
            AutoCompaction::Periodic(period) if !period.is_zero() => {
                Some(period.min(INTERVAL_MAX) / LOOKS_PER_INTERVAL)
            }
            AutoCompaction::Revision(retention) if retention > 0 => Some(REVISION_INTERVAL),
            AutoCompaction::Off | AutoCompaction::Periodic(_) | AutoCompaction::Revision(_) => None,
        }
    }

    fn sample(&mut self, revision: i64) {
        let (AutoCompaction::Periodic(period), Some(interval)) = (self.mode, self.interval())
        else {
            return;
        };
        let looks = period.as_nanos() / interval.as_nanos().max(1);
        self.seen.push_back(revision);
        while self.seen.len() as u128 > looks + 1 {
            self.seen.pop_front();
        }
    }

    /// The revision to compact to, if it is time; `paused` on members that do not lead.
    pub(crate) fn look(&mut self, now: Duration, revision: i64, paused: bool) -> Option<i64> {
        let interval = self.interval()?;
        if now < self.next {
            return None;
        }
        self.next = now + interval;
        let to = if paused {
            None
        } else {
            self.wanted(now, revision)
        };
        self.sample(revision);
        let to = to.filter(|_| self.asked.is_none())?;
        self.asked = Some(to);
        Some(to)
    }

    fn wanted(&mut self, now: Duration, revision: i64) -> Option<i64> {
        match self.mode {
            AutoCompaction::Off => None,
            AutoCompaction::Revision(retention) => {
                let to = revision - retention;
                (to > 0 && to != self.last_revision).then_some(to)
            }
            AutoCompaction::Periodic(period) => {
                let to = *self.seen.front()?;
                let wait = if self.warmed_up {
                    period.min(INTERVAL_MAX)
                } else {
                    period
                };
                if to == self.last_revision || now - self.last_success < wait {
                    return None;
                }
                self.warmed_up = true;
                Some(to)
            }
        }
    }

    /// How the compaction that was asked for went; "compacted" counts as success.
    pub(crate) fn done(&mut self, now: Duration, success: bool) {
        if let Some(to) = self.asked.take()
            && success
        {
            self.last_revision = to;
            self.last_success = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(count: u64) -> Duration {
        Duration::from_secs(60 * count)
    }

    /// Looks every minute, lets every compaction succeed, and gives (minute, revision) of each.
    fn run(mode: AutoCompaction, until: u64, revision: impl Fn(u64) -> i64) -> Vec<(u64, i64)> {
        let mut compactor = Compactor::new(mode, minutes(0), revision(0));
        let mut done = Vec::new();
        for minute in 1..=until {
            if let Some(to) = compactor.look(minutes(minute), revision(minute), false) {
                compactor.done(minutes(minute), true);
                done.push((minute, to));
            }
        }
        done
    }

    #[test]
    fn the_periodic_mode_compacts_to_the_oldest_sample_of_a_period() {
        // etcd keeps a period's samples and one more, and looks before it takes the next one.
        let mode = AutoCompaction::Periodic(minutes(10));
        let done = run(mode, 31, |minute| 1 + 10 * minute.cast_signed());
        assert_eq!(done, [(10, 1), (20, 91), (30, 191)]);
    }

    #[test]
    fn a_long_period_is_waited_for_once_and_then_every_hour_counts() {
        let mode = AutoCompaction::Periodic(minutes(120));
        let done = run(mode, 250, |minute| 1 + minute.cast_signed());
        assert_eq!(done, [(120, 1), (180, 55), (240, 115)]);
    }

    #[test]
    fn an_unchanged_revision_is_not_compacted_again() {
        let mode = AutoCompaction::Periodic(minutes(10));
        assert_eq!(run(mode, 100, |_| 7), [(10, 7)]);
        let mode = AutoCompaction::Revision(100);
        assert_eq!(run(mode, 100, |_| 150), [(5, 50)]);
    }

    #[test]
    fn the_revision_mode_keeps_so_many() {
        let mode = AutoCompaction::Revision(100);
        assert_eq!(
            run(mode, 16, |minute| 50 * minute.cast_signed()),
            [(5, 150), (10, 400), (15, 650)]
        );
    }

    #[test]
    fn a_failed_compaction_is_tried_again_at_the_next_look_and_a_paused_one_only_samples() {
        let mode = AutoCompaction::Periodic(minutes(10));
        let mut compactor = Compactor::new(mode, minutes(0), 1);
        for minute in 1..10 {
            assert_eq!(
                compactor.look(minutes(minute), 1 + minute.cast_signed(), true),
                None
            );
        }
        assert_eq!(compactor.look(minutes(10), 11, false), Some(1));
        compactor.done(minutes(10), false);
        assert_eq!(compactor.look(minutes(11), 12, false), Some(1));
    }

    #[test]
    fn without_retention_nothing_happens() {
        assert_eq!(
            Compactor::new(AutoCompaction::Off, minutes(0), 1).next(),
            None
        );
        let mode = AutoCompaction::Periodic(Duration::ZERO);
        assert!(run(mode, 100, |minute| minute.cast_signed()).is_empty());
    }
}
