//! What a leader knows of one follower, and what it may send it.

use keelson_proto::ids::LogIndex;

use crate::inflights::Inflights;

/// How a leader sends to a follower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgressState {
    /// Its log is not known: one append at a time finds where it agrees.
    #[default]
    Probe,
    /// Its log agrees: appends are sent ahead of the answers, up to the window.
    Replicate,
    /// It needs entries that are gone: nothing is sent until the snapshot has arrived.
    Snapshot,
}

/// What a leader knows of one member, itself included.
///
/// Invariant: `match_index < next_index`.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Up to here its log is known to agree.
    pub(crate) match_index: LogIndex,
    /// The next entry to send; everything between is under way.
    pub(crate) next_index: LogIndex,
    /// The highest commit index that was sent and has not been taken back by a rejection.
    pub(crate) sent_commit: LogIndex,
    pub(crate) state: ProgressState,
    /// While in [`ProgressState::Snapshot`]: the index of the snapshot that was sent.
    pub(crate) pending_snapshot: LogIndex,
    /// Whether it was heard of since the last check of the quorum.
    pub(crate) recent_active: bool,
    /// Whether appends wait for a heartbeat's answer: after a probe, or with a full window.
    pub(crate) append_paused: bool,
    pub(crate) inflights: Inflights,
    pub(crate) is_learner: bool,
}

impl Progress {
    pub(crate) fn new(next_index: LogIndex, inflights: Inflights, is_learner: bool) -> Progress {
        assert!(next_index > LogIndex(0), "the first entry has index 1");
        Progress {
            match_index: LogIndex(0),
            next_index,
            sent_commit: LogIndex(0),
            state: ProgressState::Probe,
            pending_snapshot: LogIndex(0),
            recent_active: false,
            append_paused: false,
            inflights,
            is_learner,
        }
    }

    /// Up to here its log is known to agree with the leader's.
    #[must_use]
    pub fn match_index(&self) -> LogIndex {
        self.match_index
    }

    /// The next entry to send to it.
    #[must_use]
    pub fn next_index(&self) -> LogIndex {
        self.next_index
    }

    /// How it is being sent to.
    #[must_use]
    pub fn state(&self) -> ProgressState {
        self.state
    }

    /// The index of the snapshot that is under way to it, or 0.
    #[must_use]
    pub fn pending_snapshot(&self) -> LogIndex {
        self.pending_snapshot
    }

    /// Whether it was heard of since the last check of the quorum.
    #[must_use]
    pub fn recent_active(&self) -> bool {
        self.recent_active
    }

    /// Whether it does not vote.
    #[must_use]
    pub fn is_learner(&self) -> bool {
        self.is_learner
    }

    /// Append messages under way.
    #[must_use]
    pub fn inflight_count(&self) -> usize {
        self.inflights.count()
    }

    /// Whether the window of append messages is full.
    #[must_use]
    pub fn inflight_full(&self) -> bool {
        self.inflights.is_full()
    }

    /// Whether no append may be sent now.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        match self.state {
            ProgressState::Probe | ProgressState::Replicate => self.append_paused,
            ProgressState::Snapshot => true,
        }
    }

    fn reset_to(&mut self, state: ProgressState) {
        self.state = state;
        self.append_paused = false;
        self.pending_snapshot = LogIndex(0);
        self.inflights.reset();
    }

    /// Starts over from what is known to agree, or behind the snapshot that was sent.
    pub(crate) fn become_probe(&mut self) {
        let behind_snapshot = match self.state {
            ProgressState::Snapshot => self.pending_snapshot.next(),
            ProgressState::Probe | ProgressState::Replicate => LogIndex(0),
        };
        self.reset_to(ProgressState::Probe);
        self.next_index = self.match_index.next().max(behind_snapshot);
        self.take_back_commit();
    }

    pub(crate) fn become_replicate(&mut self) {
        self.reset_to(ProgressState::Replicate);
        self.next_index = self.match_index.next();
    }

    pub(crate) fn become_snapshot(&mut self, snapshot: LogIndex) {
        self.reset_to(ProgressState::Snapshot);
        self.pending_snapshot = snapshot;
        self.next_index = snapshot.next();
        self.sent_commit = snapshot;
    }

    /// Notes an append message with so many entries from `next_index` on.
    pub(crate) fn sent_entries(&mut self, entries: u64, bytes: u64) {
        match self.state {
            ProgressState::Replicate => {
                if entries > 0 {
                    self.next_index = LogIndex(self.next_index.0 + entries);
                    self.inflights.add(self.next_index.previous(), bytes);
                }
                self.append_paused = self.inflights.is_full();
            }
            ProgressState::Probe => self.append_paused |= entries > 0,
            ProgressState::Snapshot => {
                unreachable!("nothing is sent while a snapshot is under way")
            }
        }
    }

    /// Whether telling it of `commit` could let it commit more than it was told before.
    pub(crate) fn can_bump_commit(&self, commit: LogIndex) -> bool {
        commit > self.sent_commit && self.sent_commit < self.next_index.previous()
    }

    /// Takes note of an acknowledged index; whether it was news.
    pub(crate) fn maybe_update(&mut self, index: LogIndex) -> bool {
        if index <= self.match_index {
            return false;
        }
        self.match_index = index;
        self.next_index = self.next_index.max(index.next());
        self.append_paused = false;
        true
    }

    /// Takes note of a rejected append at `rejected`, with a hint where the logs may agree; whether
    /// it was news, so that another append should be sent.
    pub(crate) fn maybe_decrease(&mut self, rejected: LogIndex, hint: LogIndex) -> bool {
        if self.state == ProgressState::Replicate {
            if rejected <= self.match_index {
                return false;
            }
            self.next_index = self.match_index.next();
        } else {
            // Probes go out one at a time, so an answer to anything else is an old one.
            if self.next_index.previous() != rejected {
                return false;
            }
            let hinted = LogIndex(hint.0.saturating_add(1));
            self.next_index = rejected.min(hinted).max(self.match_index.next());
            self.append_paused = false;
        }
        self.take_back_commit();
        true
    }

    fn take_back_commit(&mut self) {
        self.sent_commit = self.sent_commit.min(self.next_index.previous());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(match_index: u64, next_index: u64, state: ProgressState) -> Progress {
        let mut progress = Progress::new(LogIndex(next_index), Inflights::new(256, 0), false);
        progress.match_index = LogIndex(match_index);
        progress.state = state;
        progress
    }

    #[test]
    fn a_late_rejection_changes_nothing() {
        let mut replicating = progress(5, 10, ProgressState::Replicate);
        assert!(!replicating.maybe_decrease(LogIndex(5), LogIndex(3)));
        assert_eq!(replicating.next_index, LogIndex(10));
        let mut probing = progress(0, 10, ProgressState::Probe);
        assert!(!probing.maybe_decrease(LogIndex(4), LogIndex(3)));
        assert_eq!(probing.next_index, LogIndex(10));
    }

    #[test]
    fn a_rejected_probe_goes_back_to_the_hint_and_never_below_the_match() {
        let mut probing = progress(2, 10, ProgressState::Probe);
        probing.append_paused = true;
        assert!(probing.maybe_decrease(LogIndex(9), LogIndex(5)));
        assert_eq!(probing.next_index, LogIndex(6));
        assert!(!probing.is_paused());
        let mut probing = progress(2, 10, ProgressState::Probe);
        assert!(probing.maybe_decrease(LogIndex(9), LogIndex(0)));
        assert_eq!(probing.next_index, LogIndex(3));
        let mut probing = progress(0, 10, ProgressState::Probe);
        assert!(probing.maybe_decrease(LogIndex(9), LogIndex(u64::MAX)));
        assert_eq!(probing.next_index, LogIndex(9));
    }

    #[test]
    fn a_probe_after_a_snapshot_starts_behind_it() {
        let mut waiting = progress(1, 2, ProgressState::Probe);
        waiting.become_snapshot(LogIndex(10));
        assert!(waiting.is_paused());
        waiting.become_probe();
        assert_eq!(waiting.next_index, LogIndex(11));
        waiting.become_snapshot(LogIndex(20));
        waiting.pending_snapshot = LogIndex(0);
        waiting.become_probe();
        assert_eq!(waiting.next_index, LogIndex(2));
    }
}
