//! The membership of a directory of etcd 3.5.
//!
//! 3.5 takes its membership from the v2 store and only mirrors it in the file, not always well: removed
//! members stay there, and promoted learners stay learners. So it is made anew, as 3.5 makes it at a
//! start: from the `.snap` file, and the entries after it.

use keelson_proto::entry::{Entry, EntryKind};
use keelson_proto::{raw_v2, request};

use super::{Member, Membership};
use crate::apply_raw::convert;
use crate::row::RowChange;
use crate::v2json::Dump;

impl From<crate::v2json::Member> for Member {
    fn from(member: crate::v2json::Member) -> Member {
        let crate::v2json::Member {
            id,
            name,
            peer_urls,
            client_urls,
            is_learner,
        } = member;
        Member {
            id,
            peer_urls,
            is_learner,
            name,
            client_urls,
        }
    }
}

impl Membership {
    /// The membership by a dump of the v2 store and the entries after it; versions are those of the
    /// file, which are as `mirror` has them. Ids that are removed by the file stay so, unless a member
    /// has one.
    pub(crate) fn from_v2(
        dump: Dump,
        entries: &[Entry],
        mirror: &Membership,
        learners_max: usize,
    ) -> Membership {
        let members = dump.members.into_iter().map(Member::from);
        let mut membership = Membership {
            members: members.map(|member| (member.id, member)).collect(),
            removed: dump.removed.into_iter().collect(),
            version: mirror.version.clone(),
            downgrade: mirror.downgrade.clone(),
        };
        for entry in entries {
            match entry.kind {
                EntryKind::Normal => membership.take_attributes(entry),
                EntryKind::ConfChange => membership = membership.after([entry], learners_max),
                EntryKind::ConfChangeV2 => {}
            }
        }
        let members = &membership.members;
        let removed = mirror.removed.iter();
        let gone: Vec<_> = removed.filter(|id| !members.contains_key(id)).collect();
        membership.removed.extend(gone);
        membership
    }

    /// Takes in what a member tells of itself, in either form. What does not decode was passed by the
    /// release that applied it.
    fn take_attributes(&mut self, entry: &Entry) {
        let request = match raw_v2::decode(&entry.data) {
            Ok(Some(raw)) => convert(&raw).ok().flatten(),
            Ok(None) => request::decode(entry.data.clone()).ok(),
            Err(_) => None,
        };
        let attributes = request.and_then(|request| request.cluster_member_attr_set);
        if let Some(attributes) = attributes
            && let Err(error) = self.set_attributes(&attributes, &mut Vec::new())
        {
            tracing::warn!(index = entry.index.0, %error, "passed over attributes");
        }
    }

    /// The rows that make a file that holds `before` hold this membership.
    pub(crate) fn rows_after(&self, before: &Membership) -> Vec<RowChange> {
        use super::{REMOVED, bucket};
        let mut rows = Vec::new();
        for id in before.members.keys() {
            if !self.members.contains_key(id) {
                rows.push(RowChange::delete(bucket::MEMBERS, id.to_string()));
            }
        }
        for member in self.members.values() {
            if before.members.get(&member.id) != Some(member) {
                rows.push(member.row());
            }
        }
        for id in before.removed.difference(&self.removed) {
            rows.push(RowChange::delete(bucket::MEMBERS_REMOVED, id.to_string()));
        }
        for id in self.removed.difference(&before.removed) {
            rows.push(RowChange::put(
                bucket::MEMBERS_REMOVED,
                id.to_string(),
                REMOVED,
            ));
        }
        rows
    }
}
