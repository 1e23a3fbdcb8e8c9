//! A snapshot of the leader in place of the state.

use keelson_proto::entry::Snapshot;
use keelson_store::Store;

use super::{Applier, SliceState};
use crate::commit::CommitRequest;
use crate::duty::DutyEvent;
use crate::{Error, versions};

impl Applier {
    /// Gives up the state for a snapshot of the leader, whose file the commit thread opens; what comes
    /// meanwhile waits.
    pub(super) fn install(&mut self, snapshot: &Snapshot) {
        let (applied, _) = self.store.applied();
        if snapshot.index <= applied {
            // The log has it, and the state has got there by entries since.
            return;
        }
        tracing::info!(
            "current-snapshot-index" = self.snapshot.0,
            "current-applied-index" = applied.0,
            "incoming-leader-snapshot-index" = snapshot.index.0,
            "incoming-leader-snapshot-term" = snapshot.term.0,
            "applying snapshot"
        );
        self.finish_batch();
        self.links.stats.installing.set(1);
        self.installing = Some(snapshot.index);
        self.seal_at = None;
        self.seal_now = false;
        self.snapshot_now = false;
        self.slice = SliceState::Idle;
        let request = CommitRequest::Install(snapshot.index);
        drop(self.links.commit.push_always(request, 0));
    }

    /// Goes on with the state of a snapshot.
    pub(super) fn opened(&mut self, fresh: Store) -> Result<(), Error> {
        let Some(index) = self.installing.take() else {
            return Ok(());
        };
        self.links.stats.installing.set(0);
        self.store.take_over(fresh);
        let (applied, term) = self.store.applied();
        self.links.gate.set_applied_term(term);
        self.sealed = applied;
        self.snapshot = applied;
        self.held_since = None;
        let compacting = self.store.is_compacting();
        self.answers.compactions_replaced(compacting);
        if compacting {
            self.slice = SliceState::More;
        }
        let links = self.links.clone();
        self.versions = versions::tell(&links, self.versions.take());
        links
            .peers
            .replace(links.other_members(self.store.members()));
        links.watchers.restored(self.store.shared().revision());
        self.finish_batch();
        drop(links.duty.push_always(DutyEvent::Restored, 1));
        tracing::info!(
            "current-snapshot-index" = applied.0,
            "current-applied-index" = applied.0,
            "incoming-leader-snapshot-index" = index.0,
            "applied snapshot"
        );
        for request in std::mem::take(&mut self.deferred) {
            self.carry_out(request)?;
        }
        Ok(())
    }
}
