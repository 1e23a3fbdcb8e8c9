//! The log: entries and a hard state, written as batches.

use std::path::Path;
use std::sync::Arc;

use keelson_counts::{Table, count};
use keelson_proto::entry::{Entry, HardState};
use keelson_proto::ids::{ClusterId, LogIndex, MemberId, Term};
use keelson_wal::{Metadata, Options, RealFiles, Wal};

use super::messages::entry;

fn create(dir: &Path) -> Wal {
    let metadata = Metadata {
        node_id: MemberId(7),
        cluster_id: ClusterId(9),
    };
    let options = Options {
        segment_bytes: 16 << 20,
        unsafe_no_fsync: true,
        ..Options::default()
    };
    Wal::create(Arc::new(RealFiles), dir, metadata, options).unwrap()
}

pub(super) fn add_to(table: &mut Table) {
    for size in [1, 64] {
        let dir = tempfile::tempdir().unwrap();
        let mut wal = create(&dir.path().join("wal"));
        let batch = |place| {
            let first = 1 + place as u64 * size;
            (first..first + size).map(entry).collect()
        };
        let write = |entries: Vec<Entry>| {
            let state = HardState {
                term: Term(1),
                vote: MemberId(7),
                commit: LogIndex(entries[0].index.0 - 1),
            };
            wal.append(Some(state), &entries).unwrap();
            assert!(wal.commit(true).unwrap().synced);
        };
        table.add(
            &format!("wal: append and commit, {size} at once"),
            count(batch, write),
        );
    }
}
