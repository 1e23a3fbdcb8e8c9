//! Heartbeats that go out late, and the ticks that a start may skip. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use keelson_proto::ids::MemberId;

/// How long after its start a member may still skip ticks.
///
/// # Source
///
/// `spec/formats.md` 6.5.
const SKIP_WITHIN: Duration = Duration::from_secs(5);

/// When a leader last sent each member a heartbeat.
#[derive(Debug, Default)]
pub(crate) struct Heartbeats {
    last: BTreeMap<MemberId, Duration>,
}

impl Heartbeats {
    /// Notes that one goes out; by how much it is late, past twice the interval.
    pub(crate) fn sent(
        &mut self,
        to: MemberId,
        now: Duration,
        interval: Duration,
    ) -> Option<Duration> {
        let before = self.last.insert(to, now)?;
        let late = now.saturating_sub(before).checked_sub(2 * interval)?;
        (!late.is_zero()).then_some(late)
    }

    /// Begins again: this member leads, or does no longer.
    pub(crate) fn clear(&mut self) {
        self.last.clear();
    }
}

/// Lets a member that starts among others elect without waiting for a whole election timeout: nobody
/// can have been heard before. It waits until others are connected, and leaves two ticks in which a
/// leader may be heard of.
#[derive(Debug)]
pub(crate) struct Start {
    until: Option<Duration>,
    ticks: u32,
}

impl Start {
    /// At `now`, with an election timeout of so many ticks; `skip` says whether ticks may be skipped.
    pub(crate) fn new(now: Duration, election_ticks: u32, skip: bool) -> Start {
        Start {
            until: skip.then_some(now + SKIP_WITHIN),
            ticks: election_ticks.saturating_sub(2),
        }
    }

    /// How many ticks to skip, at a tick: once, when two others are connected and nobody leads.
    pub(crate) fn skip(
        &mut self,
        now: Duration,
        has_leader: bool,
        connected: impl FnOnce() -> usize,
    ) -> u32 {
        let Some(until) = self.until else { return 0 };
        if has_leader || now >= until {
            self.until = None;
            return 0;
        }
        if connected() < 2 {
            return 0;
        }
        self.until = None;
        self.ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_heartbeat_is_late_past_two_intervals() {
        let (mut beats, to) = (Heartbeats::default(), MemberId(1));
        assert_eq!(beats.sent(to, at(0), at(100)), None, "the first");
        assert_eq!(beats.sent(to, at(200), at(100)), None);
        assert_eq!(beats.sent(to, at(450), at(100)), Some(at(50)));
        beats.clear();
        assert_eq!(beats.sent(to, at(9_000), at(100)), None);
    }

    #[test]
    fn a_start_skips_ticks_once_and_only_while_nobody_leads() {
        let start = || Start::new(at(0), 10, true);
        let mut waits = start();
        assert_eq!(waits.skip(at(100), false, || 1), 0);
        assert_eq!(waits.skip(at(200), false, || 2), 8);
        assert_eq!(waits.skip(at(300), false, || 2), 0);
        assert_eq!(start().skip(at(100), true, || 2), 0);
        assert_eq!(start().skip(at(5_000), false, || 2), 0);
        assert_eq!(Start::new(at(0), 10, false).skip(at(100), false, || 2), 0);
    }
}
