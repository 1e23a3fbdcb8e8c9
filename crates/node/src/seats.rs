//! Whose turn it is in a member that has threads: consensus', and after it apply's.
//!
//! A serving thread takes a turn of consensus for the requests that it has read, the peers' thread for
//! their messages, the log's thread for a write that is on the disk. What such a turn has committed is
//! apply's; where that is as little as one client's put, it is cheaper to apply it at once than to wake
//! apply's thread for it, and the answer is earlier. All else is left to that thread.

use crate::apply::Applier;
use crate::consensus::Consensus;
use crate::turns::Turns;

/// The two that others take turns of.
pub(crate) struct Seats {
    pub(crate) consensus: Turns<Consensus>,
    pub(crate) apply: Turns<Applier>,
}

impl Seats {
    /// Sees to it that what waits for consensus gets its turn, and what that has committed is applied.
    /// Never waits for a disk, nor for work of another thread.
    pub(crate) fn take(&self) {
        self.take_unless(|| false);
    }

    /// As [`Seats::take`], by somebody who may have better things to do, and then leaves them to the own
    /// threads.
    pub(crate) fn take_unless(&self, is_busy: impl Fn() -> bool) {
        self.consensus.take_unless(&is_busy);
        self.apply
            .help(|applier| applier.is_short_now() && !is_busy());
    }
}
