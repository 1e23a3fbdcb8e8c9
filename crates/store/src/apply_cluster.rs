//! Applying what concerns the cluster: configuration changes, versions, members' attributes.

use keelson_proto::entry::{ConfChange, Entry};
use keelson_proto::ids::MemberId;
use keelson_proto::rpc::etcdserverpb::InternalRaftRequest;
use smallvec::{SmallVec, smallvec};

use crate::Store;
use crate::apply::stop;
use crate::member::{Change, VersionSet};
use crate::outcome::{Applied, Effect, Outcome};
use crate::row::RowError;
use std::sync::Arc;

impl Store {
    /// Carries out a configuration change. One that is refused goes to consensus as a change of
    /// nobody, so that every member sees the same configurations.
    pub(crate) fn apply_conf_change(&mut self, entry: &Entry, mut change: ConfChange) -> Applied {
        let decoded = match Change::decode(&change) {
            Ok(decoded) => decoded,
            Err(error) => return stop(entry, &error.to_string()),
        };
        let outcome = match self.members.check(&decoded, self.learners_max) {
            Ok(()) => {
                let mut rows = Vec::new();
                Arc::make_mut(&mut self.members).apply(decoded, &mut rows);
                self.tail.change_rows(rows);
                self.conf_state = self.members.conf_state();
                self.shared.members.store(self.members.clone());
                Outcome::ConfChange
            }
            Err(refused) => {
                change.member = MemberId::NONE;
                Outcome::Refused(refused.into())
            }
        };
        let conf_state = self.conf_state.clone();
        Applied {
            outcome,
            effects: smallvec![Effect::ConfChange { change, conf_state }],
        }
    }

    /// Applies the request if it is one about the cluster.
    pub(crate) fn apply_cluster(
        &mut self,
        entry: &Entry,
        request: &InternalRaftRequest,
    ) -> Option<Applied> {
        Some(match self.change_cluster(request)? {
            Ok(effects) => Applied {
                outcome: Outcome::Cluster,
                effects,
            },
            Err(error) => stop(entry, &error.to_string()),
        })
    }

    fn change_cluster(
        &mut self,
        request: &InternalRaftRequest,
    ) -> Option<Result<SmallVec<[Effect; 1]>, RowError>> {
        let mut rows = Vec::new();
        let mut effects = SmallVec::new();
        let members = Arc::make_mut(&mut self.members);
        if let Some(version) = &request.cluster_version_set {
            match members.set_version(version, &mut rows) {
                Ok(VersionSet::Kept) => {}
                Ok(VersionSet::Lowered) => effects.push(Effect::ForceSnapshot),
                Err(error) => return Some(Err(error)),
            }
        } else if let Some(attributes) = &request.cluster_member_attr_set {
            if let Err(error) = members.set_attributes(attributes, &mut rows) {
                return Some(Err(error));
            }
        } else if let Some(downgrade) = &request.downgrade_info_set {
            members.set_downgrade(downgrade, &mut rows);
        } else if request.downgrade_version_test.is_none() {
            return None;
        }
        self.tail.change_rows(rows);
        self.shared.members.store(self.members.clone());
        self.migrate_storage_version();
        Some(Ok(effects))
    }
}
