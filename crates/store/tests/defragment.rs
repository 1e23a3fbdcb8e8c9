//! A file gets small again, while readers and apply go on.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use keelson_bolt::{Db, Options};
use keelson_proto::entry::{Entry, EntryKind};
use keelson_proto::ids::{LogIndex, Term};
use keelson_proto::request;
use keelson_proto::rpc::etcdserverpb::{CompactionRequest, InternalRaftRequest, PutRequest};
use keelson_store::{
    Answer, Disk, JobProgress, OpenOptions, Opened, Quota, RealDisk, Revision, Slice, hash, open,
    open_on,
};

const PUTS: i64 = 400;

fn apply(opened: &mut Opened, request: &InternalRaftRequest) {
    let (index, _) = opened.store.applied();
    let entry = Entry {
        kind: EntryKind::Normal,
        term: Term(1),
        index: LogIndex(index.0 + 1),
        data: request::encode(request),
    };
    drop(opened.store.apply(&entry, Answer::Wanted).unwrap());
}

fn put(opened: &mut Opened, place: i64) {
    let put = PutRequest {
        key: format!("key{}", place % 4).into(),
        value: Bytes::from(vec![b'v'; 4_000]),
        ..Default::default()
    };
    let request = InternalRaftRequest {
        put: Some(put),
        ..Default::default()
    };
    apply(opened, &request);
}

fn commit(opened: &mut Opened) {
    let sealed = opened.store.seal();
    drop(opened.committer.commit(&sealed).unwrap());
}

fn compact(opened: &mut Opened, revision: i64) {
    let compaction = CompactionRequest {
        revision,
        ..Default::default()
    };
    let request = InternalRaftRequest {
        compaction: Some(compaction),
        ..Default::default()
    };
    apply(opened, &request);
    commit(opened);
    let Slice::Pruned(job) = opened.store.compact_slice() else {
        panic!("a few keys are one slice")
    };
    opened.committer.begin_compaction(job);
    while opened.committer.continue_compaction().unwrap() == JobProgress::More {}
    opened.store.compaction_finished();
}

fn options() -> OpenOptions {
    OpenOptions {
        bolt: OpenOptions::bolt(),
        quota: Quota::new(-1),
        lease_ttl_min: 2,
        lease_checkpoints: false,
    }
}

#[test]
fn a_file_shrinks_under_readers_and_apply() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let options = options();
    let mut opened = open(&path, &options).unwrap();
    opened.committer.set_window_bytes(0);
    for place in 0..PUTS {
        put(&mut opened, place);
    }
    commit(&mut opened);
    let shared = opened.store.shared().clone();
    let newest = shared.revision();
    let old = Revision {
        main: newest - 4,
        sub: 0,
    };
    let view = shared.view();
    compact(&mut opened, newest);

    // What is not in the file yet stays where it is, and what was sealed before can come after.
    put(&mut opened, 1);
    let sealed = opened.store.seal();
    put(&mut opened, 2);
    let before = (shared.sizes(), std::fs::metadata(&path).unwrap().len());
    let history = hash::hash_kv(&shared, 0).unwrap();
    let durable = opened.committer.defragment().unwrap();
    let after = (shared.sizes(), std::fs::metadata(&path).unwrap().len());
    assert!(after.0.total < before.0.total / 4, "{before:?} {after:?}");
    assert!(after.1 < before.1 / 4, "{before:?} {after:?}");
    assert_eq!(durable.boundary.revision, newest);
    assert_eq!(hash::hash_kv(&shared, 0).unwrap(), history);
    assert!(view.record(old).unwrap().is_some(), "old views stay whole");
    assert!(shared.record(old).unwrap().is_none());
    drop((view, durable));

    let durable = opened.committer.commit(&sealed).unwrap();
    assert_eq!(durable.boundary.revision, newest + 1);
    commit(&mut opened);
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(files.len(), 1, "the copy has taken the file's place");
    assert_eq!(hash::hash_kv(&shared, 0).unwrap(), history);
    let applied = opened.store.applied();
    drop((opened, durable, shared));

    let again = open(&path, &options).unwrap();
    assert_eq!(again.store.applied(), applied);
    assert_eq!(hash::hash_kv(again.store.shared(), 0).unwrap(), history);
}

/// A disk whose named operation fails.
struct FailingDisk(&'static str);

impl FailingDisk {
    fn fail(&self, operation: &str) -> io::Result<()> {
        if self.0 == operation {
            return Err(io::ErrorKind::Other.into());
        }
        Ok(())
    }
}

impl Disk for FailingDisk {
    fn open(&self, path: &Path, options: Options) -> Result<Db, keelson_bolt::Error> {
        if self.0 == "open" && path.ends_with("db.tmp.defrag") {
            return Err(keelson_bolt::Error::InvalidDatabase);
        }
        RealDisk.open(path, options)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        RealDisk.exists(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.fail("rename")?;
        RealDisk.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.fail("sync")?;
        RealDisk.sync_dir(path)
    }
}

#[test]
fn a_copy_that_may_have_the_name_of_the_file_is_the_end_of_the_old_one() {
    for (failing, goes_on) in [("open", true), ("rename", false), ("sync", false)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let disk = Arc::new(FailingDisk(failing));
        let mut opened = open_on(disk, &path, &options()).unwrap();
        put(&mut opened, 1);
        commit(&mut opened);
        assert!(opened.committer.defragment().is_err(), "{failing}");
        put(&mut opened, 2);
        let sealed = opened.store.seal();
        assert_eq!(
            opened.committer.commit(&sealed).is_ok(),
            goes_on,
            "{failing}"
        );
        assert_eq!(opened.committer.durable().is_ok(), goes_on, "{failing}");
        drop(opened);
        // Whichever file has the name, it is whole, and has what was committed.
        let revision = open(&path, &options()).unwrap().store.shared().revision();
        assert_eq!(revision, if goes_on { 3 } else { 2 }, "{failing}");
    }
}
