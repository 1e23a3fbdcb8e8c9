//! Directories of etcd 3.5: where their membership is, and what of their log must be left behind.

use keelson_proto::entry::{Entry, EntryKind};
use keelson_proto::ids::LogIndex;
use keelson_proto::raw_v2;
use keelson_store::Opened;
use keelson_store::v2json::Dump;
use keelson_wal::{SnapFiles, SnapshotMark};

use crate::{Config, Env, Error};

/// The last of the entries that is a raw request of the v2 API. etcd 3.7 stops at one, so no start and
/// no member may need it once it is applied.
pub(crate) fn last_raw(entries: &[Entry]) -> Option<LogIndex> {
    let mut entries = entries.iter().rev();
    entries
        .find(|entry| entry.kind == EntryKind::Normal && raw_v2::is_raw(&entry.data))
        .map(|entry| entry.index)
}

/// Makes the membership of a directory of 3.5 anew, from the newest `.snap` file that the log has a
/// record of and the entries after it; whether that changed anything. The file's own is a mirror that
/// some patches of 3.5 did not keep true.
///
/// # Errors
///
/// A log that does not reach back to that file, or is damaged; a `.snap` file whose content is no dump.
pub(crate) fn mend_membership(
    config: &Config,
    env: &Env,
    opened: &mut Opened,
) -> Result<bool, Error> {
    if !opened.store.mirrors_membership() {
        return Ok(false);
    }
    let files = &env.files;
    let dir = config.wal_dir();
    let marks = keelson_wal::valid_snapshots(&**files, &dir)?;
    let snapshot = SnapFiles::new(files.clone(), &config.snap_dir()).load_newest(&marks)?;
    let (at, dump) = match snapshot {
        Some(snapshot) => {
            let at = SnapshotMark {
                index: snapshot.index,
                term: snapshot.term,
            };
            let dump = Dump::decode(&snapshot.data).map_err(|source| Error::SnapContent {
                index: snapshot.index,
                source,
            })?;
            (at, dump)
        }
        None => (SnapshotMark::default(), Dump::default()),
    };
    let mut entries = keelson_wal::read(&**files, &dir, at)?.entries;
    let (applied, _) = opened.store.applied();
    entries.retain(|entry| entry.index <= applied);
    let mirror = opened.store.members().clone();
    let mended = opened.store.mend_members(dump, &entries);
    for member in mirror.members() {
        if opened.store.members().member(member.id).is_none() {
            tracing::warn!(
                "removed-member-id" = %member.id,
                "the database lists a member that was removed; it is taken out"
            );
        }
    }
    Ok(mended)
}
