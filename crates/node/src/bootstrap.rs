//! The log of a member that has none yet: as one of the first of a new cluster, or as one that a running
//! cluster has added.
//!
//! # Source
//!
//! `spec/formats.md` 7.9.

use std::sync::Arc;

use keelson_proto::entry::{ConfChange, ConfChangeKind, Entry, EntryKind, HardState};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_store::member::{Member, cluster_id};
use keelson_wal::{Files, Metadata, Replay, Wal};

use crate::boot::{OpenLog, directory_error, wal_options};
use crate::config::Beginning;
use crate::{Config, Error};

/// The first members of a cluster, as the operator describes them to each of them.
struct Described {
    metadata: Metadata,
    /// Ascending by id.
    members: Vec<Member>,
}

fn bad(what: String) -> Error {
    Error::BadConfig { what }
}

/// The first members of a new cluster.
fn described(config: &Config) -> Result<Described, Error> {
    let mut members: Vec<Member> = config
        .initial_cluster
        .iter()
        .map(|(name, urls)| Member::new(name.clone(), urls.clone(), &config.token, None, false))
        .collect();
    members.sort_unstable_by_key(|member| member.id);
    let own = members.iter().find(|member| member.name == config.name);
    let own = own.ok_or_else(|| {
        bad(format!(
            "couldn't find local name {:?} in the initial cluster configuration",
            config.name
        ))
    })?;
    let mut urls: Vec<&String> = members.iter().flat_map(|it| &it.peer_urls).collect();
    urls.sort_unstable();
    if let Some(twice) = urls.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(bad(format!(
            "initial cluster configuration has duplicate urls: {}",
            twice[0]
        )));
    }
    let metadata = Metadata {
        node_id: own.id,
        cluster_id: cluster_id(members.iter().map(|member| member.id)),
    };
    Ok(Described { metadata, members })
}

/// Makes the log of a member that has none.
///
/// # Errors
///
/// [`Error::DatabaseWithoutLog`], [`Error::BadConfig`], and a failing disk.
pub(crate) fn create_log(config: &Config, files: &Arc<dyn Files>) -> Result<OpenLog, Error> {
    let (db, dir) = (config.db_path(), config.wal_dir());
    if files.exists(&db).map_err(directory_error("stat", &db))? {
        return Err(Error::DatabaseWithoutLog { db, wal: dir });
    }
    let (metadata, members) = match config.beginning {
        Beginning::New => {
            let Described { metadata, members } = described(config)?;
            (metadata, members)
        }
        Beginning::Join { cluster, member } => {
            let metadata = Metadata {
                node_id: member,
                cluster_id: cluster,
            };
            (metadata, Vec::new())
        }
    };
    tracing::info!(
        "local-member-id" = %metadata.node_id,
        "cluster-id" = %metadata.cluster_id,
        "starting local member"
    );
    let wal = Wal::create(files.clone(), &dir, metadata, wal_options(config))?;
    let mut log = OpenLog {
        wal,
        replay: Replay::default(),
        metadata,
    };
    if !members.is_empty() {
        write_first_entries(&mut log, &members)?;
    }
    Ok(log)
}

/// The entries that the logs of all first members begin with, the same on each; they count as
/// committed.
fn write_first_entries(log: &mut OpenLog, members: &[Member]) -> Result<(), Error> {
    let entries: Vec<Entry> = (1..)
        .zip(members)
        .map(|(index, member)| {
            let change = ConfChange {
                id: 0,
                kind: ConfChangeKind::AddNode,
                member: member.id,
                context: member.add_context().into(),
            };
            Entry {
                kind: EntryKind::ConfChange,
                term: Term(1),
                index: LogIndex(index),
                data: change.encode(),
            }
        })
        .collect();
    let state = HardState {
        term: Term(1),
        vote: MemberId::NONE,
        commit: LogIndex(entries.len() as u64),
    };
    log.wal.append(Some(state), &entries)?;
    log.wal.commit(true)?;
    log.replay.hard_state = Some(state);
    log.replay.entries = entries;
    Ok(())
}

/// A crash in the middle of making the log of a new cluster leaves one without its first entries, or
/// with some of them, or without the hard state that says that they are committed. A log without
/// entries may also be that of a member that was added to a running cluster and has heard nothing yet.
///
/// # Errors
///
/// [`Error::BadConfig`] where the options are those of another member, and a failing disk.
pub(crate) fn begin_again(config: &Config, log: &mut OpenLog) -> Result<(), Error> {
    let commit = log.replay.hard_state.unwrap_or_default().commit;
    if log.replay.at.index > LogIndex(0) || commit > LogIndex(0) {
        return Ok(());
    }
    let first = |entry: &&Entry| entry.kind == EntryKind::ConfChange && entry.term == Term(1);
    let begun = log.replay.entries.iter().take_while(first).count();
    let alone = cluster_id([log.metadata.node_id]) == log.metadata.cluster_id;
    let whole = match described(config) {
        Ok(described) if described.metadata == log.metadata => {
            if begun < described.members.len() {
                return write_first_entries(log, &described.members);
            }
            described.members.len()
        }
        Ok(described) if alone && begun == 0 => {
            return Err(bad(format!(
                "the log in {} was made for member {}, which never started; this is member {}",
                log.wal.dir().display(),
                log.metadata.node_id,
                described.metadata.node_id
            )));
        }
        Err(error) if alone && begun == 0 => return Err(error),
        _ if alone => 1,
        // The log of a member that was added to a running cluster, or of one whose operator no longer
        // says with whom it began. A part of the first entries must not pass for the whole cluster.
        _ => 0,
    };
    if let Some(last) = whole.checked_sub(1).map(|last| &log.replay.entries[last]) {
        let state = log.replay.hard_state.get_or_insert_default();
        state.term = state.term.max(last.term);
        state.commit = last.index;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use keelson_wal::MemFiles;

    use super::*;

    fn three() -> Config {
        let mut config = Config::new("b", Path::new("data"), "");
        config.initial_cluster = [("a", 1), ("b", 2), ("c", 3)]
            .map(|(name, port)| (name.to_owned(), vec![format!("http://127.0.0.1:{port}")]))
            .to_vec();
        config.wal_dir = Some("wal".into());
        config
    }

    fn files() -> Arc<dyn Files> {
        Arc::new(MemFiles::default())
    }

    #[test]
    fn the_first_entries_add_each_member_by_id_and_count_as_committed() {
        let log = create_log(&three(), &files()).unwrap();
        let added: Vec<MemberId> = log
            .replay
            .entries
            .iter()
            .map(|entry| ConfChange::decode(entry.data.clone()).unwrap().member)
            .collect();
        assert_eq!(added.len(), 3);
        assert!(added.is_sorted());
        assert!(added.contains(&log.metadata.node_id));
        assert_eq!(log.metadata.cluster_id, cluster_id(added));
        assert_eq!(log.replay.hard_state.unwrap().commit, LogIndex(3));
    }

    #[test]
    fn a_log_that_was_cut_off_in_its_first_entries_is_made_whole_and_a_part_never_counts() {
        let whole = create_log(&three(), &files()).unwrap();
        for kept in 0..=3 {
            let cut = || {
                let mut log = create_log(&three(), &files()).unwrap();
                log.replay.hard_state = None;
                log.replay.entries.truncate(kept);
                log
            };
            let mut log = cut();
            begin_again(&three(), &mut log).unwrap();
            assert_eq!(log.replay.entries, whole.replay.entries);
            assert_eq!(log.replay.hard_state.unwrap().commit, LogIndex(3));
            // With other options nobody knows how many there were.
            let mut other = three();
            other.initial_cluster.pop();
            let mut log = cut();
            begin_again(&other, &mut log).unwrap();
            assert_eq!(log.replay.entries.len(), kept);
            assert_eq!(log.replay.hard_state, None);
        }
    }

    #[test]
    fn a_member_that_joins_has_an_empty_log_under_the_ids_that_it_was_given() {
        let mut config = three();
        config.beginning = Beginning::Join {
            cluster: keelson_proto::ids::ClusterId(5),
            member: MemberId(7),
        };
        let mut log = create_log(&config, &files()).unwrap();
        assert_eq!(log.metadata.node_id, MemberId(7));
        assert!(log.replay.entries.is_empty());
        begin_again(&config, &mut log).unwrap();
        assert!(log.replay.entries.is_empty());
        assert_eq!(log.replay.hard_state, None);
    }

    #[test]
    fn members_that_share_an_address_are_refused() {
        let mut config = three();
        config.initial_cluster[2].1 = config.initial_cluster[0].1.clone();
        let error = create_log(&config, &files()).err().unwrap();
        assert!(error.to_string().contains("duplicate urls"), "{error}");
    }
}
