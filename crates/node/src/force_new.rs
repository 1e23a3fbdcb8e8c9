//! `--force-new-cluster`: a member of a cluster goes on as its only member, with all that it knows to be
//! committed.

use keelson_proto::entry::{ConfChange, ConfChangeKind, Entry, EntryKind};
use keelson_proto::ids::{LogIndex, MemberId};
use keelson_store::member::{Member, Membership};
use keelson_wal::Wal;

use crate::links::Identity;
use crate::replayed::Replayed;
use crate::{Config, Error};

/// Drops what is not committed, and appends the changes that leave this member alone; they count as
/// committed and are applied like all others. `members` is the membership at the commit index. The ids
/// of member and cluster stay; the members that are removed must be wiped before they join again.
///
/// # Source
///
/// `spec/formats.md` 4.3. etcd leaves a learner a learner, which then never leads; here it is promoted.
///
/// # Errors
///
/// A failing log.
pub(crate) fn force(
    config: &Config,
    identity: Identity,
    members: &Membership,
    wal: &mut Wal,
    log: &mut Replayed,
) -> Result<(), Error> {
    let Replayed {
        entries,
        hard_state,
        ..
    } = log;
    let commit = hard_state.commit;
    let keep = entries.partition_point(|entry| entry.index <= commit);
    if let Some(entry) = entries.get(keep) {
        tracing::info!(
            "entry-index" = entry.index.0,
            "commit-index-from-wal" = commit.0,
            "number-of-discarded-entries" = entries.len() - keep,
            "discarding uncommitted WAL entries"
        );
        entries.truncate(keep);
    }
    let changes = changes(config, identity.member, members);
    let forced: Vec<Entry> = (commit.0 + 1..)
        .zip(changes)
        .map(|(index, change)| Entry {
            kind: EntryKind::ConfChange,
            term: hard_state.term,
            index: LogIndex(index),
            data: change.encode(),
        })
        .collect();
    if let Some(last) = forced.last() {
        hard_state.commit = last.index;
        wal.append(Some(*hard_state), &forced)?;
        wal.commit(true)?;
        entries.extend(forced);
    }
    tracing::info!(
        "cluster-id" = %identity.cluster,
        "local-member-id" = %identity.member,
        "wal-commit-index" = commit.0,
        "commit-index" = hard_state.commit.0,
        "forcing restart member"
    );
    Ok(())
}

/// The changes after which this member is the only one, and votes.
fn changes(config: &Config, own: MemberId, members: &Membership) -> Vec<ConfChange> {
    let change = |kind, member, context: Vec<u8>| ConfChange {
        id: 0,
        kind,
        member,
        context: context.into(),
    };
    let mut changes = Vec::new();
    match members.member(own) {
        Some(member) if member.is_learner => {
            let context = Member::promote_context(own);
            changes.push(change(ConfChangeKind::AddNode, own, context));
        }
        Some(_) => {}
        None => {
            let urls = config.initial_cluster.iter();
            let urls = urls.filter(|(name, _)| *name == config.name);
            let member = Member {
                id: own,
                peer_urls: urls.flat_map(|(_, urls)| urls.clone()).collect(),
                ..Member::default()
            };
            changes.push(change(ConfChangeKind::AddNode, own, member.add_context()));
        }
    }
    let others = members.members().filter(|member| member.id != own);
    changes.extend(others.map(|other| change(ConfChangeKind::RemoveNode, other.id, Vec::new())));
    changes
}
