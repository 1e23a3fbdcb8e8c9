//! The log from its making to its purging, in memory and on the real disk.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::entry::{ConfState, Entry, HardState, Snapshot};
use keelson_proto::ids::{ClusterId, LogIndex, MemberId, Term};
use keelson_wal::purge::{InUse, purge};
use keelson_wal::{
    Error, Event, File, Files, Fill, MemFiles, Metadata, Options, Reader, RealFiles, SegmentName,
    SnapFiles, SnapshotMark, Wal, exists, read, read_snap, valid_snapshots,
};
use proptest::prelude::*;

fn metadata() -> Metadata {
    Metadata {
        node_id: MemberId(0x1234),
        cluster_id: ClusterId(0xfeed),
    }
}

fn options(segment_bytes: u64) -> Options {
    Options {
        segment_bytes,
        ..Options::default()
    }
}

fn entry(index: u64, length: usize) -> Entry {
    Entry {
        term: Term(1),
        index: LogIndex(index),
        data: vec![index as u8 | 1; length].into(),
        ..Entry::default()
    }
}

fn state(commit: u64) -> HardState {
    HardState {
        term: Term(1),
        vote: MemberId(0x1234),
        commit: LogIndex(commit),
    }
}

fn mark(index: u64) -> SnapshotMark {
    SnapshotMark {
        index: LogIndex(index),
        term: Term(u64::from(index > 0)),
    }
}

fn conf_state() -> ConfState {
    ConfState {
        voters: vec![MemberId(0x1234)],
        ..ConfState::default()
    }
}

fn fill(wal: &mut Wal, indexes: std::ops::RangeInclusive<u64>) {
    for index in indexes {
        wal.append(Some(state(index)), &[entry(index, 300)])
            .unwrap();
        wal.commit(true).unwrap();
    }
}

/// Create, fill several segments, snapshot, release, purge, open again at the snapshot.
fn life(files: Arc<dyn Files>, dir: &Path) {
    assert!(!exists(&*files, dir));
    let mut wal = Wal::create(files.clone(), dir, metadata(), options(4096)).unwrap();
    assert!(exists(&*files, dir));
    assert!(matches!(
        Wal::create(files.clone(), dir, metadata(), options(4096)),
        Err(Error::Exists { .. })
    ));
    fill(&mut wal, 1..=60);
    wal.save_snapshot(mark(50), &conf_state()).unwrap();
    fill(&mut wal, 61..=70);
    let segments = wal.segments();
    assert!(segments.len() > 5, "{segments:?}");
    assert_eq!(files.list(dir).unwrap().len(), segments.len());
    assert_eq!(wal.last_index(), LogIndex(70));

    // Nothing may be purged while it is locked, nor may anybody else write.
    let purged = purge(&*files, dir, "wal", 2, InUse::Keep).unwrap();
    assert!(purged.removed.is_empty());
    assert_eq!(purged.locked, Some(dir.join(segments[0].to_string())));
    assert!(matches!(
        Wal::open(files.clone(), dir, mark(0), options(4096)),
        Err(Error::Locked { .. })
    ));
    let unlocked = read(&*files, dir, mark(0)).unwrap();
    assert_eq!(unlocked.entries.len(), 70);

    wal.release_to(LogIndex(50)).unwrap();
    let kept = wal.segments();
    assert!(kept[0].index < LogIndex(50) && kept[1].index >= LogIndex(50));
    let purged = purge(&*files, dir, "wal", 1, InUse::Keep).unwrap();
    assert_eq!(purged.removed.len(), segments.len() - kept.len());
    assert_eq!(purged.locked, Some(dir.join(kept[0].to_string())));
    drop(wal);

    assert_eq!(valid_snapshots(&*files, dir).unwrap(), [mark(50)]);
    assert!(matches!(
        read(&*files, dir, mark(0)),
        Err(Error::NoSegment { index: 0, .. })
    ));
    let (mut wal, replay) = Wal::open(files.clone(), dir, mark(50), options(4096)).unwrap();
    assert_eq!(replay.metadata, Some(metadata()));
    assert_eq!(replay.hard_state, Some(state(70)));
    assert_eq!(replay.conf_state, Some(conf_state()));
    assert_eq!(replay.repaired, None);
    let expected: Vec<_> = (51..=70).map(|index| entry(index, 300)).collect();
    assert_eq!(replay.entries, expected);
    fill(&mut wal, 71..=100);
    drop(wal);
    let replay = read(&*files, dir, mark(50)).unwrap();
    assert_eq!(replay.entries.len(), 50);
    replay.require_snapshot().unwrap();
}

#[test]
fn a_log_lives_in_memory() {
    life(Arc::new(MemFiles::new()), Path::new("/wal"));
}

#[test]
fn a_log_lives_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    life(Arc::new(RealFiles), &dir.path().join("wal"));
}

#[test]
fn files_have_etcds_names_sizes_and_modes() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("wal");
    // What a creation that did not end leaves.
    std::fs::create_dir(root.path().join("wal.tmp")).unwrap();
    std::fs::write(root.path().join("wal.tmp/junk"), b"junk").unwrap();
    let wal = Wal::create(Arc::new(RealFiles), &dir, metadata(), options(1 << 20)).unwrap();
    assert_eq!(RealFiles.list(root.path()).unwrap(), ["wal"]);
    let name = "0000000000000000-0000000000000000.wal";
    assert_eq!(RealFiles.list(&dir).unwrap(), [name]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join(name)), 0o600);
    let bytes = std::fs::read(dir.join(name)).unwrap();
    assert_eq!(bytes.len(), 1 << 20);
    // The chain's begin, the metadata, the snapshot 0/0; a WAL of etcd 3.7.1 has the same bytes.
    assert_eq!(
        bytes[..72],
        [
            0x04, 0, 0, 0, 0, 0, 0, 0x84, 0x08, 0x04, 0x10, 0, 0, 0, 0, 0, //
            0x11, 0, 0, 0, 0, 0, 0, 0x87, 0x08, 0x01, 0x10, 0xc0, 0xd0, 0x85, 0xad, 0x03, //
            0x1a, 0x07, 0x08, 0xb4, 0x24, 0x10, 0xed, 0xfd, 0x03, 0, 0, 0, 0, 0, 0, 0, //
            0x0e, 0, 0, 0, 0, 0, 0, 0x82, 0x08, 0x05, 0x10, 0xee, 0xbe, 0xa0, 0xb6, 0x0a, //
            0x1a, 0x04, 0x08, 0, 0x10, 0, 0, 0
        ]
    );
    drop(wal);
}

#[test]
fn a_helper_makes_the_next_segment() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("wal");
    let mut wal = Wal::create(Arc::new(RealFiles), &dir, metadata(), options(8192)).unwrap();
    let preparer = wal.preparer();
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("segments".to_owned());
        builder.spawn_scoped(scope, || preparer.run()).unwrap();
        fill(&mut wal, 1..=200);
        // A batch that jumps past a whole segment.
        let entries: Vec<_> = (201..=300).map(|index| entry(index, 300)).collect();
        wal.append(None, &entries).unwrap();
        assert!(wal.commit(true).unwrap().cut);
        drop(wal);
    });
    let replay = read(&RealFiles, &dir, mark(0)).unwrap();
    assert_eq!(replay.entries.len(), 300);
}

#[test]
fn a_log_opens_again_when_a_segment_was_asked_for_and_not_used() {
    let files = Arc::new(MemFiles::new());
    let dir = Path::new("/wal");
    let mut wal = Wal::create(files.clone(), dir, metadata(), options(4096)).unwrap();
    let preparer = wal.preparer();
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new();
        builder.spawn_scoped(scope, || preparer.run()).unwrap();
        // Half a segment: the helper is asked, and not needed.
        fill(&mut wal, 1..=8);
        drop(wal);
    });
    let (mut wal, _) = Wal::open(files.clone(), dir, mark(0), options(4096)).unwrap();
    fill(&mut wal, 9..=30);
    drop(wal);
    assert_eq!(read(&*files, dir, mark(0)).unwrap().entries.len(), 30);
}

#[test]
fn a_log_at_the_end_of_all_numbers_fails_without_a_panic() {
    let dir = Path::new("/wal");
    let files = Arc::new(MemFiles::new());
    let wal = Wal::create(files.clone(), dir, metadata(), options(2048)).unwrap();
    let first = wal.segments()[0];
    drop(wal);
    let bytes = files.bytes(&dir.join(first.to_string())).unwrap();
    let files = Arc::new(MemFiles::new());
    let name = SegmentName {
        sequence: u64::MAX,
        index: LogIndex(0),
    };
    files.insert(&dir.join(name.to_string()), bytes).unwrap();
    let (mut wal, _) = Wal::open(files, dir, mark(0), options(2048)).unwrap();
    wal.append(None, &[entry(u64::MAX, 3000)]).unwrap();
    assert!(matches!(
        wal.commit(true),
        Err(Error::NamesExhausted { .. })
    ));
}

#[test]
fn a_stale_next_segment_is_emptied_before_use() {
    let files = Arc::new(MemFiles::new());
    let dir = Path::new("/wal");
    let mut wal = Wal::create(files.clone(), dir, metadata(), options(2048)).unwrap();
    files
        .insert(Path::new("/wal/1.tmp"), vec![0x11; 4096])
        .unwrap();
    fill(&mut wal, 1..=9);
    assert_eq!(wal.segments().len(), 2);
    drop(wal);
    assert_eq!(
        read(&*files, dir, mark(0)).unwrap().entries,
        (1..=9).map(|index| entry(index, 300)).collect::<Vec<_>>()
    );
}

/// The second of three equal frames of an unsynced batch reached the disk without the first.
#[test]
fn what_follows_the_end_of_a_torn_log_is_cleared_for_good() {
    let dir = Path::new("/wal");
    let path = dir.join("0000000000000000-0000000000000000.wal");
    let files = Arc::new(MemFiles::new());
    let mut wal = Wal::create(files.clone(), dir, metadata(), options(8192)).unwrap();
    let data = || vec![0xfe; 1000];
    let entries = [1, 2, 3].map(|index| Entry {
        data: data().into(),
        ..entry(index, 0)
    });
    wal.append(None, &entries).unwrap();
    wal.commit(true).unwrap();
    drop(wal);
    let mut reader = Reader::open_all(&*files, dir).unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = reader.next_frame().unwrap() {
        frames.push(frame);
    }
    let first = frames[3].offset as usize;
    let mut bytes = files.bytes(&path).unwrap();
    bytes[first..512].fill(0);
    files.insert(&path, bytes).unwrap();

    let at = SnapshotMark::default();
    let (mut wal, replay) = Wal::open(files.clone(), dir, at, options(8192)).unwrap();
    assert_eq!(replay.entries, []);
    // The clearing is durable when the log is open: a crash that loses all else keeps it.
    let lost = files.crash(|_| 0);
    let end = lost.bytes(&path).unwrap().split_off(first);
    assert!(end.iter().all(|byte| *byte == 0));

    let other = Entry {
        data: vec![0x77; 1000].into(),
        ..entry(1, 0)
    };
    wal.append(None, std::slice::from_ref(&other)).unwrap();
    wal.commit(true).unwrap();
    drop(wal);
    let (_, replay) = Wal::open(files, dir, at, options(8192)).unwrap();
    assert_eq!(replay.entries, [other]);
    assert_eq!(replay.repaired, None);
}

#[test]
fn what_an_open_has_read_is_durable() {
    let files = MemFiles::new();
    let dir = Path::new("/wal");
    let shared: Arc<dyn Files> = Arc::new(files.clone());
    let mut wal = Wal::create(shared, dir, metadata(), options(8 << 10)).unwrap();
    wal.append(Some(state(0)), &[entry(1, 100), entry(2, 100)])
        .unwrap();
    wal.commit(false).unwrap();
    // The process is killed: the system's buffers have it, the disk does not.
    drop(wal);
    let shared: Arc<dyn Files> = Arc::new(files.clone());
    let (wal, replay) = Wal::open(shared, dir, mark(0), options(8 << 10)).unwrap();
    assert_eq!(replay.entries.len(), 2);
    drop(wal);
    let lost: Arc<dyn Files> = Arc::new(files.crash(|_| 0));
    let (_wal, replay) = Wal::open(lost, dir, mark(0), options(8 << 10)).unwrap();
    assert_eq!(replay.entries.len(), 2);
}

#[test]
fn a_last_record_with_too_little_padding_is_damage_and_no_panic() {
    let dir = Path::new("/wal");
    let mut segments = three_segments();
    hurt(&mut segments[2].1, &Damage::Flip(415, 1));
    let files = Arc::new(MemFiles::new());
    for (name, bytes) in &segments {
        files
            .insert(&dir.join(name.to_string()), bytes.clone())
            .unwrap();
    }
    let error = Wal::open(files, dir, mark(0), options(2048)).unwrap_err();
    assert_eq!(error.class(), keelson_wal::Class::Corrupt, "{error}");
}

#[test]
fn entries_behind_one_that_was_replaced_are_void_though_a_snapshot_covers_it() {
    let files: Arc<dyn Files> = Arc::new(MemFiles::default());
    let dir = Path::new("wal");
    let mut wal = Wal::create(files.clone(), dir, metadata(), options(1 << 20)).unwrap();
    let of_term = |index, term| Entry {
        term: Term(term),
        ..entry(index, 10)
    };
    let old: Vec<Entry> = (1..=9).map(|index| of_term(index, 1)).collect();
    wal.append(None, &old).unwrap();
    // Another leader replaces what was never committed, and a snapshot is taken at its last entry.
    wal.append(Some(state(5)), &[of_term(4, 2), of_term(5, 2)])
        .unwrap();
    wal.commit(true).unwrap();
    let mark = SnapshotMark {
        index: LogIndex(5),
        term: Term(2),
    };
    wal.save_snapshot(mark, &conf_state()).unwrap();
    drop(wal);
    let (mut wal, replay) = Wal::open(files.clone(), dir, mark, options(1 << 20)).unwrap();
    assert!(replay.void);
    assert!(replay.snapshot_found);
    // What is written next is not.
    wal.append(None, &[of_term(6, 3)]).unwrap();
    wal.commit(true).unwrap();
    drop(wal);
    let (_wal, replay) = Wal::open(files, dir, mark, options(1 << 20)).unwrap();
    assert!(!replay.void);
    assert_eq!(replay.entries, [of_term(6, 3)]);
}

#[test]
fn a_last_segment_without_a_head_is_given_one() {
    let dir = Path::new("/wal");
    let files = Arc::new(MemFiles::new());
    let mut wal = Wal::create(files.clone(), dir, metadata(), options(2048)).unwrap();
    fill(&mut wal, 1..=8);
    let last = *wal.segments().last().unwrap();
    drop(wal);
    let held = read(&*files, dir, mark(0)).unwrap();
    files
        .insert(&dir.join(last.to_string()), Vec::new())
        .unwrap();
    let before = read(&*files, dir, mark(0)).unwrap();
    let count = before.entries.len() as u64;
    assert!(before.entries.len() <= held.entries.len());
    let (mut wal, _) = Wal::open(files.clone(), dir, mark(0), options(2048)).unwrap();
    fill(&mut wal, count + 1..=count + 2);
    wal.save_snapshot(mark(count + 1), &conf_state()).unwrap();
    drop(wal);
    // The segment can be read without those before it.
    let (_, replay) = Wal::open(files, dir, mark(count + 1), options(2048)).unwrap();
    assert_eq!(replay.entries, [entry(count + 2, 300)]);
    assert_eq!(replay.metadata, Some(metadata()));
}

#[test]
fn nothing_is_synced_when_told_so() {
    let files = Arc::new(MemFiles::new());
    let options = Options {
        unsafe_no_fsync: true,
        ..options(2048)
    };
    let mut wal = Wal::create(files.clone(), Path::new("/wal"), metadata(), options).unwrap();
    fill(&mut wal, 1..=20);
    assert!(wal.segments().len() > 2);
    let synced = |event: &Event| matches!(event, Event::Sync(_) | Event::SyncDir(_));
    assert!(!files.events().iter().any(synced));
}

#[test]
fn real_files_lock_write_and_grow() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let file = RealFiles.create(&path, 0o600).unwrap();
    // More slices than one call may carry, some of them empty.
    let bytes: Vec<u8> = (0..5000_u32).map(|at| at as u8).collect();
    let mut slices: Vec<_> = bytes
        .chunks(2)
        .flat_map(|chunk| [std::io::IoSlice::new(&[]), std::io::IoSlice::new(chunk)])
        .collect();
    file.write_at(3, &mut slices).unwrap();
    assert_eq!(file.size().unwrap(), 5003);
    assert_eq!(std::fs::read(&path).unwrap()[3..], bytes);
    file.allocate(10_000).unwrap();
    file.allocate(10).unwrap();
    assert_eq!(file.size().unwrap(), 10_000);
    file.truncate(5).unwrap();
    assert_eq!(file.size().unwrap(), 5);
    file.sync().unwrap();

    let other: Box<dyn File> = RealFiles.open(&path, keelson_wal::Access::Write).unwrap();
    assert!(file.try_lock().unwrap());
    assert!(file.try_lock().unwrap());
    assert!(!other.try_lock().unwrap());
    drop(file);
    assert!(other.try_lock().unwrap());
}

#[test]
fn a_crash_of_the_memory_disk_keeps_what_was_synced_and_nothing_else_for_sure() {
    let files = MemFiles::new();
    let (one, two) = (Path::new("/d/one"), Path::new("/d/two"));
    files.insert(one, b"old".to_vec()).unwrap();
    let write = |path: &Path, text: &[u8]| {
        let file = files.open(path, keelson_wal::Access::Write).unwrap();
        let mut slices = [std::io::IoSlice::new(text)];
        file.write_at(0, &mut slices).unwrap();
        file
    };
    write(one, b"new").sync().unwrap();
    write(one, b"lost");
    files.create(two, 0o600).unwrap().sync().unwrap();
    // Nothing unsynced is kept: the write, and the name.
    let crashed = files.crash(|_| 0);
    assert_eq!(crashed.bytes(one).unwrap(), b"new");
    assert!(!crashed.exists(two).unwrap());
    // All of it is kept.
    let crashed = files.crash(|bound| bound - 1 - u64::from(bound == 3));
    assert_eq!(crashed.bytes(one).unwrap(), b"lost");
    assert!(crashed.exists(two).unwrap());
    files.sync_dir(Path::new("/d")).unwrap();
    files.rename(one, two).unwrap();
    let crashed = files.crash(|_| 0);
    assert_eq!(crashed.bytes(one).unwrap(), b"new");
    assert_eq!(crashed.bytes(two).unwrap(), b"");
}

fn snapshot(index: u64, data: &'static [u8]) -> Snapshot {
    Snapshot {
        data: Bytes::from_static(data),
        conf_state: conf_state(),
        index: LogIndex(index),
        term: Term(2),
    }
}

#[test]
fn snap_files_are_chosen_set_aside_and_purged() {
    let files = Arc::new(MemFiles::new());
    let dir = Path::new("/snap");
    for name in [
        "db",
        "db.tmp.123",
        "tmp77",
        "0000000000000010.snap.db",
        "0000000000000030.snap.db",
    ] {
        files.insert(&dir.join(name), b"x".to_vec()).unwrap();
    }
    let snaps = SnapFiles::new(files.clone(), dir);
    for index in [1, 2, 3, 4] {
        let path = snaps.save(&snapshot(index, b"{}")).unwrap();
        let read = read_snap(&*files, &path).unwrap();
        assert_eq!(read, snapshot(index, b"{}"));
    }
    let at = |index| SnapshotMark {
        index: LogIndex(index),
        term: Term(2),
    };
    let name = |index: u64| format!("0000000000000002-{index:016x}.snap");
    assert_eq!(snaps.list().unwrap(), [4, 3, 2, 1].map(name));

    // 4 is broken, 3 is not in the log: 2 it is.
    let path = dir.join(name(4));
    let mut bytes = files.bytes(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    files.insert(&path, bytes).unwrap();
    assert!(matches!(
        read_snap(&*files, &path),
        Err(Error::SnapCrcMismatch { .. })
    ));
    let newest = snaps.load_newest(&[at(1), at(2), at(4)]).unwrap();
    assert_eq!(newest, Some(snapshot(2, b"{}")));
    assert_eq!(snaps.load_newest(&[at(9)]).unwrap(), None);
    assert!(
        files
            .exists(&dir.join(format!("{}.broken", name(4))))
            .unwrap()
    );

    snaps.clean().unwrap();
    snaps.release_databases(LogIndex(0x20)).unwrap();
    let purged = snaps.purge(2).unwrap();
    assert_eq!(purged.removed, [dir.join(name(1))]);
    let left = [
        snaps.database_path(LogIndex(0x30)),
        dir.join(name(2)),
        dir.join(name(3)),
        dir.join(format!("{}.broken", name(4))),
        dir.join("db"),
    ];
    let left: Vec<_> = left
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap())
        .collect();
    let mut names = files.list(dir).unwrap();
    names.sort_by_key(|name| left.iter().position(|other| other == name));
    assert_eq!(names, left);
}

#[test]
fn an_empty_snap_file_is_named_so() {
    let files = MemFiles::new();
    let path = Path::new("/snap/x.snap");
    for bytes in [&[][..], &[0x08, 5], &[0x12, 1, 0], &[0x08, 0, 0x12, 1, 0]] {
        files.insert(path, bytes.to_vec()).unwrap();
        let error = read_snap(&files, path).unwrap_err();
        assert_eq!(error.to_string(), "snap: empty snapshot");
    }
}

/// A log of three segments, as files.
fn three_segments() -> Vec<(SegmentName, Vec<u8>)> {
    let files = Arc::new(MemFiles::new());
    let dir = Path::new("/wal");
    let mut wal = Wal::create(files.clone(), dir, metadata(), options(2048)).unwrap();
    fill(&mut wal, 1..=14);
    wal.save_snapshot(mark(5), &conf_state()).unwrap();
    let segments = wal.segments();
    assert_eq!(segments.len(), 3);
    drop(wal);
    segments
        .into_iter()
        .map(|name| (name, files.bytes(&dir.join(name.to_string())).unwrap()))
        .collect()
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(usize, u8),
    Zero(usize, usize),
    Random(usize, Vec<u8>),
    Cut(usize),
    Double(usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = 0..3000_usize;
    prop_oneof![
        (at.clone(), 1..=255_u8).prop_map(|(at, mask)| Damage::Flip(at, mask)),
        (at.clone(), 1..1500_usize).prop_map(|(at, count)| Damage::Zero(at, count)),
        (at.clone(), prop::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, bytes)| Damage::Random(at / 8 * 8, bytes)),
        at.clone().prop_map(Damage::Cut),
        (at, 1..600_usize).prop_map(|(at, count)| Damage::Double(at / 8 * 8, count)),
    ]
}

fn hurt(bytes: &mut Vec<u8>, damage: &Damage) {
    let size = bytes.len();
    match damage {
        Damage::Flip(at, mask) => {
            if let Some(byte) = bytes.get_mut(*at) {
                *byte ^= mask;
            }
        }
        Damage::Zero(at, count) => bytes[(*at).min(size)..(at + count).min(size)].fill(0),
        Damage::Random(at, new) => {
            let at = (*at).min(size);
            let count = new.len().min(size - at);
            bytes[at..at + count].copy_from_slice(&new[..count]);
        }
        Damage::Cut(at) => bytes.truncate(*at),
        Damage::Double(at, count) => {
            let part = bytes[(*at).min(size)..(at + count).min(size)].to_vec();
            bytes.splice((*at).min(size)..(*at).min(size), part);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever the bytes are: no panic, no hang, and what opens is a beginning of what was
    /// written and can be written on.
    #[test]
    fn damaged_segments_give_errors_or_a_beginning(
        hurts in prop::collection::vec((0..3_usize, damage()), 1..4)
    ) {
        let dir = Path::new("/wal");
        let mut segments = three_segments();
        for (which, damage) in &hurts {
            hurt(&mut segments[*which].1, damage);
        }
        let files = Arc::new(MemFiles::new());
        for (name, bytes) in &segments {
            files.insert(&dir.join(name.to_string()), bytes.clone()).unwrap();
        }
        let whole: Vec<_> = (1..=14).map(|index| entry(index, 300)).collect();
        if let Ok(replay) = read(&*files, dir, mark(0)) {
            prop_assert!(whole.starts_with(&replay.entries));
        }
        drop(valid_snapshots(&*files, dir));
        let options = Options { fill: Fill::Reserve, ..options(2048) };
        match Wal::open(files.clone(), dir, mark(0), options) {
            Ok((mut wal, replay)) => {
                prop_assert!(whole.starts_with(&replay.entries));
                let next = entry(replay.entries.len() as u64 + 1, 99);
                wal.append(None, std::slice::from_ref(&next)).unwrap();
                wal.commit(true).unwrap();
                drop(wal);
                let (_, again) = Wal::open(files, dir, mark(0), options).unwrap();
                prop_assert_eq!(again.entries.last(), Some(&next));
                prop_assert_eq!(again.entries.len(), replay.entries.len() + 1);
            }
            Err(error) => {
                prop_assert_eq!(error.class(), keelson_wal::Class::Corrupt, "{}", error);
            }
        }
    }

    /// A segment of any bytes at all.
    #[test]
    fn random_segments_give_errors(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let dir = Path::new("/wal");
        let files = Arc::new(MemFiles::new());
        let name = dir.join("0000000000000000-0000000000000000.wal");
        files.insert(&name, bytes).unwrap();
        drop(read(&*files, dir, mark(0)));
        prop_assert!(Wal::open(files, dir, mark(0), options(2048)).is_err());
    }

    /// A `.snap` file that was damaged is an error, or what was written; one of any bytes at all is
    /// no panic.
    #[test]
    fn damaged_snap_files_give_errors_or_what_was_written(
        hurts in prop::collection::vec(damage(), 1..4),
        any in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let dir = Path::new("/snap");
        let files = Arc::new(MemFiles::new());
        files.create_dir(dir).unwrap();
        let whole = snapshot(7, &[0x5a; 3000]);
        let path = SnapFiles::new(files.clone(), dir).save(&whole).unwrap();
        let mut bytes = files.bytes(&path).unwrap();
        for damage in &hurts {
            hurt(&mut bytes, damage);
        }
        let damaged = dir.join("damaged.snap");
        files.insert(&damaged, bytes).unwrap();
        if let Ok(read) = read_snap(&*files, &damaged) {
            prop_assert_eq!(read, whole);
        }
        let random = dir.join("random.snap");
        files.insert(&random, any).unwrap();
        drop(read_snap(&*files, &random));
    }
}
