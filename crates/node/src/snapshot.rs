//! Disk snapshots: a `.snap` file and a mark in the log, so that the log need not reach back further.
//!
//! They are taken at the *durable* index, never at the applied one: first the file holds everything up
//! to there, then the `.snap` file is written, then the log is marked and lets go of what lies before.
//! The content is a dump of the membership, which etcd 3.5 and 3.6 need at start.

use std::sync::Arc;
use std::time::Duration;

use keelson_proto::entry::Snapshot;
use keelson_proto::ids::LogIndex;
use keelson_proto::message::Message;
use keelson_store::v2json::{self, Dump};
use keelson_store::{Boundary, Durable};
use keelson_wal::purge::{InUse, purge};
use keelson_wal::{Files, SnapFiles, SnapshotMark};

use crate::core::Input;
use crate::human::HumanBytes;
use crate::links::Links;
use crate::log::LogRequest;
use crate::{Config, Error, OutgoingSnapshot};

/// Entries between two snapshots, unless the operator says otherwise.
///
/// # Source
///
/// etcd's `--snapshot-count` (`spec/formats.md` 4.2).
pub const SNAPSHOT_COUNT: u64 = 10_000;

/// How often old files are purged.
pub(crate) const PURGE_EVERY: Duration = Duration::from_secs(30);

/// Takes snapshots; owned by the commit thread.
#[derive(Debug)]
pub(crate) struct Snapshots {
    files: SnapFiles,
    /// The last one.
    last: LogIndex,
    /// Entries after which a commit is followed by a snapshot; `None` where apply asks for them.
    every: Option<u64>,
}

impl Snapshots {
    pub(crate) fn new(config: &Config, files: Arc<dyn Files>, last: LogIndex) -> Snapshots {
        Snapshots {
            files: SnapFiles::new(files, &config.snap_dir()),
            last,
            every: config.snapshot_count.is_none().then_some(SNAPSHOT_COUNT),
        }
    }

    /// Takes a snapshot of what the file holds, if it is asked for or due.
    pub(crate) fn after_commit(
        &mut self,
        links: &Links,
        durable: &Durable,
        asked: bool,
    ) -> Result<(), Error> {
        let index = durable.boundary.index;
        let passed = index.0.saturating_sub(self.last.0);
        let due = self.every.is_some_and(|every| passed > every);
        if passed == 0 || !(asked || due) {
            return Ok(());
        }
        self.take(links, &durable.boundary)
    }

    /// A snapshot of the leader has taken the file's place; its `.snap` file and its mark are there.
    pub(crate) fn installed(&mut self, index: LogIndex) -> Result<(), Error> {
        self.last = self.last.max(index);
        self.files.release_databases(index)?;
        Ok(())
    }

    fn take(&mut self, links: &Links, boundary: &Boundary) -> Result<(), Error> {
        tracing::info!(
            "local-member-id" = %links.identity.member,
            "local-member-applied-index" = boundary.index.0,
            "local-member-snapshot-index" = self.last.0,
            "local-member-snapshot-count" = links.config.snapshot_count.unwrap_or(SNAPSHOT_COUNT),
            "triggering snapshot"
        );
        let now = || links.env.clock.now();
        let begun = now();
        let data = dump(boundary).encode().into();
        let encoded = now();
        self.files.save(&Snapshot {
            data,
            conf_state: boundary.conf_state.clone(),
            index: boundary.index,
            term: boundary.term,
        })?;
        let saved = now();
        let stats = &links.stats;
        stats.snap_encode.observe(encoded.saturating_sub(begun));
        stats.snap_sync.observe(saved.saturating_sub(encoded));
        stats.snap_save.observe(saved.saturating_sub(begun));
        let mark = SnapshotMark {
            index: boundary.index,
            term: boundary.term,
        };
        let conf_state = boundary.conf_state.clone();
        drop(
            links
                .log
                .push_always(LogRequest::Mark { mark, conf_state }, 1),
        );
        self.files.release_databases(boundary.index)?;
        self.last = boundary.index;
        tracing::info!(
            "snapshot-index" = boundary.index.0,
            "saved snapshot to disk"
        );
        Ok(())
    }
}

/// What consensus keeps of a boundary.
fn snapshot_of(boundary: &Boundary) -> Snapshot {
    Snapshot {
        data: dump(boundary).encode().into(),
        conf_state: boundary.conf_state.clone(),
        index: boundary.index,
        term: boundary.term,
    }
}

/// Writes the `.snap` file of a boundary that the database holds; the log is yet to be told.
pub(crate) fn save(
    files: &Arc<dyn Files>,
    config: &Config,
    boundary: &Boundary,
) -> Result<(), Error> {
    let files = SnapFiles::new(files.clone(), &config.snap_dir());
    files.save(&snapshot_of(boundary))?;
    Ok(())
}

/// Sends the file to a member: `message` with what the file holds, which is never behind what raft has
/// counted on.
pub(crate) fn send(links: &Arc<Links>, mut message: Message, durable: &Durable) {
    let boundary = &durable.boundary;
    message.snapshot = Some(Box::new(snapshot_of(boundary)));
    let to = message.to;
    let size = durable.read.size();
    tracing::info!(
        from = %links.identity.member,
        to = %to,
        bytes = size,
        size = %HumanBytes(size),
        "snapshot-index" = boundary.index.0,
        "sending merged snapshot"
    );
    let of = links.clone();
    let report = move |delivered: bool| {
        if !delivered {
            tracing::warn!(to = %to, "failed to send merged snapshot");
        }
        let input = Input::SnapshotSent { to, delivered };
        drop(of.consensus.push_always(input, 0));
    };
    links.peers.send_snapshot(OutgoingSnapshot::new(
        message,
        durable.clone(),
        Box::new(report),
    ));
}

/// The membership as of a boundary, as etcd 3.5 and 3.6 read it.
fn dump(boundary: &Boundary) -> Dump {
    let members = boundary.members.members().map(|member| v2json::Member {
        id: member.id,
        name: member.name.clone(),
        peer_urls: member.peer_urls.clone(),
        client_urls: member.client_urls.clone(),
        is_learner: member.is_learner,
    });
    Dump {
        members: members.collect(),
        removed: boundary.members.removed().collect(),
        cluster_version: boundary.members.version().map(ToString::to_string),
        index: boundary.index.0,
    }
}

/// Removes segments and `.snap` files beyond the number that the operator keeps.
pub(crate) fn purge_old(config: &Config, files: &Arc<dyn Files>) {
    let snaps = SnapFiles::new(files.clone(), &config.snap_dir());
    if let Err(error) = snaps.purge(config.max_snapshots) {
        tracing::warn!(%error, "failed to purge snap files");
    }
    if let Err(error) = purge(
        &**files,
        &config.wal_dir(),
        "wal",
        config.max_wals,
        InUse::Keep,
    ) {
        tracing::warn!(%error, "failed to purge wal files");
    }
}
