//! What an applied entry asks of the rest of the member.

use keelson_proto::entry::{ConfChange, ConfChangeKind, Entry};
use keelson_proto::ids::{LogIndex, Term};
use keelson_raft::AnyConfChange;
use keelson_store::Effect;

use super::Applier;
use crate::Error;
use crate::core::Input;
use crate::duty::DutyEvent;

impl Applier {
    pub(super) fn carry_out_effect(&mut self, effect: Effect, entry: &Entry) -> Result<(), Error> {
        match effect {
            Effect::ConfChange { change, .. } => self.conf_change(entry.index, change),
            Effect::RaiseNoSpace if entry.index > self.replay_to => self.answers.raise_no_space(),
            Effect::RaiseNoSpace => {}
            Effect::Commit => self.seal_now = true,
            Effect::ForceSnapshot => {
                tracing::info!("Cluster version downgrade detected, forcing snapshot");
                self.seal_now = true;
                self.snapshot_now = true;
            }
            Effect::LeaveOldLog => {
                self.seal_now = true;
                self.snapshot_now = true;
            }
            Effect::PromoteLessor => self.promote(entry.term),
            Effect::AssignToken { user, token } => {
                self.links.watchers.token_assigned(&user, &token);
            }
            Effect::RevokeTokens { user } => self.links.watchers.tokens_revoked(user.as_deref()),
            Effect::Stop(reason) => return Err(Error::Entry(reason)),
            // The store may learn to ask for more; what is not understood must not pass unseen.
            other => return Err(Error::Entry(format!("unknown effect {other:?}"))),
        }
        Ok(())
    }

    /// Tells consensus and the way to other members of a change, and the member itself if it has gone.
    fn conf_change(&self, index: LogIndex, change: ConfChange) {
        let links = &self.links;
        let id = change.member;
        let own = links.identity.member;
        let member = self.store.members().member(id);
        match (change.kind, member) {
            _ if id.is_none() => {}
            (ConfChangeKind::RemoveNode, _) => {
                tracing::info!(
                    "cluster-id" = %links.identity.cluster,
                    "local-member-id" = %own,
                    "removed-remote-peer-id" = %id,
                    "removed member"
                );
                if id == own {
                    drop(links.duty.push_always(DutyEvent::Removed, 1));
                } else {
                    links.peers.remove(id);
                }
            }
            (ConfChangeKind::UpdateNode, Some(member)) if id != own => {
                links.peers.update(id, &member.peer_urls);
            }
            (ConfChangeKind::AddNode | ConfChangeKind::AddLearnerNode, Some(member)) => {
                tracing::info!(
                    "cluster-id" = %links.identity.cluster,
                    "local-member-id" = %own,
                    "added-peer-id" = %member.id,
                    "added-peer-peer-urls:json" = format!("{:?}", member.peer_urls),
                    "added-peer-is-learner" = member.is_learner,
                    "added member"
                );
                if id != own {
                    links.peers.add(id, &member.peer_urls);
                }
            }
            _ => {}
        }
        let change = AnyConfChange::V1(change);
        let input = Input::ConfChange { index, change };
        drop(links.consensus.push_always(input, 0));
    }

    /// This member's lease deadlines run from now on, if it leads: this is the first entry of a term.
    fn promote(&self, term: Term) {
        let now = self.links.env.ticks();
        let extend = crate::env::millis(self.links.config.election);
        let mut deadlines = self.links.shared.deadlines();
        if self.links.gate.leads() == Some(term) {
            deadlines.promote(now, extend);
            drop(deadlines);
            drop(self.links.duty.push_always(DutyEvent::FirstCommit, 1));
        }
    }
}
