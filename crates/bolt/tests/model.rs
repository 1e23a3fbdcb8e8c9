//! Random work on a database and on a model of ordered maps, with the same results.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use keelson_bolt::{
    Bucket, BucketMut, Db, Error, FreelistKind, MemStorage, Options, ReadTx, WriteTx, check,
};
use proptest::prelude::*;

/// A bucket of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    sequence: u64,
    entries: BTreeMap<Vec<u8>, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Value(Vec<u8>),
    Bucket(Model),
}

#[derive(Clone, Debug)]
enum Step {
    /// A run of keys from `from` on, `by` apart, with values of one length.
    Put {
        path: Vec<u8>,
        from: u16,
        by: u16,
        n: u16,
        len: u16,
        fill: u8,
    },
    Delete {
        path: Vec<u8>,
        from: u16,
        by: u16,
        n: u16,
    },
    Create {
        path: Vec<u8>,
    },
    DeleteBucket {
        path: Vec<u8>,
    },
    Sequence {
        path: Vec<u8>,
        to: u64,
    },
    /// Every `nth` entry from `from` on, by a cursor.
    DeleteUnderCursor {
        path: Vec<u8>,
        from: u16,
        nth: usize,
        n: usize,
    },
    Move {
        path: Vec<u8>,
        into: Vec<u8>,
    },
    Savepoint,
    Release,
    RollBack,
    Commit,
    Rollback,
    Reopen,
    Shrink,
    OpenReader,
    CloseReader,
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0u8..3, 1..4)
}

/// Steps over keys below `keys`, in runs of at most `run`.
fn step(keys: u16, run: u16) -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (path(), 0..keys, 1u16..7, 1..run, 0u16..150, 0u8..3).prop_map(
            |(path, from, by, n, len, fill)| Step::Put { path, from, by, n, len, fill }
        ),
        1 => (path(), 0..keys, 0u16..3000).prop_map(
            |(path, from, len)| Step::Put { path, from, by: 1, n: 1, len: len * 7, fill: 0 }
        ),
        6 => (path(), 0..keys, 1u16..5, 1..2 * run)
            .prop_map(|(path, from, by, n)| Step::Delete { path, from, by, n }),
        3 => path().prop_map(|path| Step::Create { path }),
        1 => path().prop_map(|path| Step::DeleteBucket { path }),
        1 => (path(), any::<u64>()).prop_map(|(path, to)| Step::Sequence { path, to }),
        2 => (path(), 0..keys, 1usize..4, 1..usize::from(run))
            .prop_map(|(path, from, nth, n)| Step::DeleteUnderCursor { path, from, nth, n }),
        2 => (path(), prop::collection::vec(0u8..3, 0..3))
            .prop_map(|(path, into)| Step::Move { path, into }),
        4 => Just(Step::Savepoint),
        3 => Just(Step::Release),
        3 => Just(Step::RollBack),
        5 => Just(Step::Commit),
        1 => Just(Step::Rollback),
        1 => Just(Step::Reopen),
        2 => Just(Step::Shrink),
        2 => Just(Step::OpenReader),
        2 => Just(Step::CloseReader),
    ]
}

fn name(part: u8) -> Vec<u8> {
    // Between the keys, so that buckets and values share leaves.
    format!("k{:05}+", u16::from(part) * 500).into_bytes()
}

fn key(n: u16) -> Vec<u8> {
    format!("k{n:05}").into_bytes()
}

fn value(n: u16, len: u16) -> Vec<u8> {
    (0..len).map(|i| (n.wrapping_add(i) % 251) as u8).collect()
}

impl Model {
    /// The bucket at `path`, made with all on the way to it.
    fn make(&mut self, path: &[u8]) -> &mut Model {
        let mut at = self;
        for part in path {
            let entry = at
                .entries
                .entry(name(*part))
                .or_insert_with(|| Entry::Bucket(Model::default()));
            let Entry::Bucket(bucket) = entry else {
                panic!("names are never keys")
            };
            at = bucket;
        }
        at
    }

    /// Keys and names here and in all buckets in it.
    fn keys(&self) -> u64 {
        let inner = self.entries.values().map(|entry| match entry {
            Entry::Bucket(model) => 1 + model.keys(),
            Entry::Value(_) => 1,
        });
        inner.sum()
    }

    fn has(&self, path: &[u8]) -> bool {
        let mut at = self;
        for part in path {
            let Some(Entry::Bucket(bucket)) = at.entries.get(&name(*part)) else {
                return false;
            };
            at = bucket;
        }
        true
    }
}

/// Runs `work` on the bucket at `path`, made with all on the way to it.
fn with_bucket(tx: &mut WriteTx<'_>, path: &[u8], work: impl FnOnce(&mut BucketMut<'_>)) {
    for end in 1..=path.len() {
        let names: Vec<Vec<u8>> = path[..end].iter().map(|part| name(*part)).collect();
        let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        if end == 1 {
            tx.create_bucket_if_not_exists(names[0]).unwrap();
        } else {
            let mut parent = tx.bucket_path_mut(&names[..end - 1]).unwrap();
            parent.create_bucket_if_not_exists(names[end - 1]).unwrap();
        }
    }
    let names: Vec<Vec<u8>> = path.iter().map(|part| name(*part)).collect();
    let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    work(&mut tx.bucket_path_mut(&names).unwrap());
}

fn apply(tx: &mut WriteTx<'_>, model: &mut Model, step: &Step) {
    match step {
        Step::Put {
            path,
            from,
            by,
            n,
            len,
            fill,
        } => {
            let target = model.make(path);
            with_bucket(tx, path, |bucket| {
                bucket.set_fill_percent([0.5, 0.9, 0.1][usize::from(*fill)]);
                for i in (0..*n).map(|i| from + i * by) {
                    bucket.put(&key(i), &value(i, *len)).unwrap();
                    target.entries.insert(key(i), Entry::Value(value(i, *len)));
                }
            });
        }
        Step::Delete { path, from, by, n } => {
            let target = model.make(path);
            with_bucket(tx, path, |bucket| {
                for i in (0..*n).map(|i| from + i * by) {
                    bucket.delete(&key(i)).unwrap();
                    target.entries.remove(&key(i));
                }
            });
        }
        Step::Create { path } => {
            model.make(path);
            with_bucket(tx, path, |_| {});
        }
        Step::DeleteBucket { path } if model.has(path) => {
            let (last, parents) = path.split_last().unwrap();
            let target = model.make(parents);
            target.entries.remove(&name(*last));
            if parents.is_empty() {
                tx.delete_bucket(&name(*last)).unwrap();
            } else {
                with_bucket(tx, parents, |bucket| {
                    bucket.delete_bucket(&name(*last)).unwrap()
                });
            }
        }
        Step::Sequence { path, to } => {
            model.make(path).sequence = *to;
            with_bucket(tx, path, |bucket| bucket.set_sequence(*to));
        }
        Step::DeleteUnderCursor { path, from, nth, n } => {
            let target = model.make(path);
            with_bucket(tx, path, |bucket| {
                let mut cursor = bucket.cursor_mut();
                let mut at = cursor
                    .seek(&key(*from))
                    .unwrap()
                    .map(|(key, _)| key.to_vec());
                for i in 0..*n {
                    let Some(key) = at else { break };
                    let is_key = matches!(target.entries.get(&key), Some(Entry::Value(_)));
                    if i % nth == 0 && is_key {
                        cursor.delete().unwrap();
                        target.entries.remove(&key);
                    }
                    at = cursor.next().unwrap().map(|(key, _)| key.to_vec());
                }
            });
        }
        Step::Move { path, into } => move_bucket(tx, model, path, into),
        _ => {}
    }
}

fn move_bucket(tx: &mut WriteTx<'_>, model: &mut Model, path: &[u8], into: &[u8]) {
    let names = |path: &[u8]| -> Vec<Vec<u8>> { path.iter().map(|part| name(*part)).collect() };
    let (from, to) = (names(path), names(into));
    let from: Vec<&[u8]> = from.iter().map(Vec::as_slice).collect();
    let to: Vec<&[u8]> = to.iter().map(Vec::as_slice).collect();
    let result = tx.move_bucket(&from, &to);
    let (last, parents) = path.split_last().unwrap();
    let target: Vec<u8> = into.iter().copied().chain([*last]).collect();
    if into.starts_with(path) {
        assert!(matches!(result, Err(Error::MoveIntoItself)), "{result:?}");
    } else if !model.has(path) || !model.has(into) {
        assert!(matches!(result, Err(Error::BucketNotFound)), "{result:?}");
    } else if parents == into {
        assert!(matches!(result, Err(Error::SameBucket)), "{result:?}");
    } else if model.has(&target) {
        assert!(matches!(result, Err(Error::BucketExists)), "{result:?}");
    } else {
        result.unwrap();
        let moved = model.make(parents).entries.remove(&name(*last)).unwrap();
        model.make(into).entries.insert(name(*last), moved);
    }
}

/// Runs the steps of one transaction or of a savepoint of it, up to the one that ends it, and
/// gives what is left of them.
fn work<'s>(tx: &mut WriteTx<'_>, model: &mut Model, steps: &'s [Step]) -> &'s [Step] {
    let mut rest = steps;
    while let Some((step, after)) = rest.split_first() {
        match step {
            Step::Savepoint => {
                let mut part = tx.savepoint();
                let mut inner = model.clone();
                rest = work(&mut part, &mut inner, after);
                compare_write(&part, &inner);
                if matches!(rest.first(), Some(Step::Release)) {
                    part.release();
                    *model = inner;
                } else {
                    drop(part);
                    compare_write(tx, model);
                }
                if matches!(rest.first(), Some(Step::Release | Step::RollBack)) {
                    rest = &rest[1..];
                }
            }
            Step::Release
            | Step::RollBack
            | Step::Commit
            | Step::Rollback
            | Step::Reopen
            | Step::Shrink
            | Step::OpenReader
            | Step::CloseReader => return rest,
            step => {
                apply(tx, model, step);
                rest = after;
            }
        }
    }
    rest
}

fn compare_bucket(bucket: Bucket<'_>, model: &Model) {
    assert_eq!(bucket.sequence(), model.sequence);
    compare_ranges(&bucket, model);
    let stats = bucket.stats().unwrap();
    assert_eq!(stats.keys, model.keys());
    compare_entries(bucket.cursor(), model, &|name| {
        bucket.bucket(name).unwrap().unwrap()
    });
    for (key, entry) in model.entries.iter().step_by(37) {
        match entry {
            Entry::Value(value) => assert_eq!(bucket.get(key).unwrap(), Some(&value[..])),
            Entry::Bucket(_) => assert_eq!(bucket.get(key).unwrap(), None),
        }
    }
}

/// Ranges from both ends, with every kind of bound.
fn compare_ranges(bucket: &Bucket<'_>, model: &Model) {
    let probes = [key(7), name(1), key(777)];
    let keys = |range: keelson_bolt::Range<'_>| -> Vec<Vec<u8>> {
        range.map(|entry| entry.unwrap().0.to_vec()).collect()
    };
    for (i, from) in probes.iter().enumerate() {
        for to in &probes[i..] {
            for kind in 0..4 {
                let start = match kind % 2 {
                    0 => Bound::Included(from),
                    _ if from == to => Bound::Included(from),
                    _ => Bound::Excluded(from),
                };
                let end = if kind < 2 {
                    Bound::Included(to)
                } else {
                    Bound::Excluded(to)
                };
                let range = model.entries.range::<Vec<u8>, _>((start, end));
                let expected: Vec<Vec<u8>> = range.map(|(key, _)| key.clone()).collect();
                assert_eq!(keys(bucket.range::<Vec<u8>>((start, end))), expected);
                let mut backwards: Vec<Vec<u8>> = bucket
                    .range::<Vec<u8>>((start, end))
                    .rev()
                    .map(|entry| entry.unwrap().0.to_vec())
                    .collect();
                backwards.reverse();
                assert_eq!(backwards, expected);
            }
        }
    }
    // From both ends in turn, every entry once.
    let mut both = bucket.iter();
    let (mut front, mut back) = (Vec::new(), Vec::new());
    while let Some(entry) = both.next() {
        front.push(entry.unwrap().0.to_vec());
        back.extend(both.next_back().map(|entry| entry.unwrap().0.to_vec()));
    }
    assert!(both.next_back().is_none());
    back.reverse();
    front.append(&mut back);
    assert!(front.iter().eq(model.entries.keys()));
    let prefixed = model.entries.keys().filter(|key| key.starts_with(b"k01"));
    assert!(keys(bucket.prefix(b"k01")).iter().eq(prefixed));
}

fn compare_entries<'tx>(
    mut cursor: keelson_bolt::Cursor<'tx>,
    model: &Model,
    bucket: &dyn Fn(&[u8]) -> Bucket<'tx>,
) {
    let mut expected = model.entries.iter();
    while let Some((key, value)) = cursor.next().unwrap() {
        let (name, entry) = expected.next().expect("no more than the model has");
        assert_eq!(key, &name[..]);
        match entry {
            Entry::Value(expected) => assert_eq!(value, Some(&expected[..])),
            Entry::Bucket(model) => {
                assert_eq!(value, None);
                compare_bucket(bucket(key), model);
            }
        }
    }
    assert!(expected.next().is_none(), "no less than the model has");
    let mut backwards = model.entries.keys().rev();
    let mut at = cursor.last().unwrap();
    while let Some((key, _)) = at {
        assert_eq!(Some(key), backwards.next().map(Vec::as_slice));
        at = cursor.prev().unwrap();
    }
    assert!(backwards.next().is_none());
    for probe in [0u16, 499, 777, 1999] {
        let mut probe = key(probe);
        probe.push(b'!');
        let expected = model
            .entries
            .range(probe.clone()..)
            .next()
            .map(|(key, _)| &key[..]);
        assert_eq!(cursor.seek(&probe).unwrap().map(|(key, _)| key), expected);
    }
}

fn compare_read(tx: &ReadTx, model: &Model) {
    compare_entries(tx.cursor(), model, &|name| {
        tx.bucket(name).unwrap().unwrap()
    });
}

fn compare_write(tx: &WriteTx<'_>, model: &Model) {
    compare_entries(tx.cursor(), model, &|name| {
        tx.bucket(name).unwrap().unwrap()
    });
}

fn run(steps: &[Step], options: &Options) {
    let storage = MemStorage::new();
    run_on(steps, || {
        Db::open_storage(Box::new(storage.clone()), options.clone()).unwrap()
    });
}

/// In a real file, whose map shows a page that is used again too early; the views of `MemStorage`
/// would hide that.
fn run_in_file(steps: &[Step], options: &Options) {
    // Made in memory: a new file would be synced.
    let memory = MemStorage::new();
    drop(Db::open_storage(Box::new(memory.clone()), options.clone()).unwrap());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("db"), memory.contents()).unwrap();
    let options = Options {
        no_sync: true,
        no_grow_sync: true,
        ..options.clone()
    };
    run_on(steps, || {
        Db::open(&folder.path().join("db"), options.clone()).unwrap()
    });
}

fn run_on(steps: &[Step], open: impl Fn() -> Db) {
    let mut db = open();
    let mut committed = Model::default();
    let mut readers: Vec<(Arc<ReadTx>, Model)> = Vec::new();
    let mut rest = steps;
    while !rest.is_empty() {
        let mut model = committed.clone();
        let mut tx = db.begin_write().unwrap();
        rest = work(&mut tx, &mut model, rest);
        compare_write(&tx, &model);
        let last = rest.first();
        if matches!(last, Some(Step::Rollback)) {
            drop(tx);
        } else {
            tx.commit().unwrap();
            committed = model;
        }
        rest = &rest[1.min(rest.len())..];
        match last {
            Some(Step::Reopen) => {
                readers.clear();
                drop(db);
                db = open();
            }
            Some(Step::Shrink) => {
                let shrunk = db.shrink().unwrap();
                assert!(shrunk.len >= db.stats().size, "{shrunk:?}");
            }
            Some(Step::OpenReader) => {
                readers.push((db.begin_read().unwrap(), committed.clone()));
            }
            Some(Step::CloseReader) if !readers.is_empty() => {
                readers.remove(readers.len() / 2);
            }
            _ => {}
        }
        let tx = db.begin_read().unwrap();
        compare_read(&tx, &committed);
        assert_eq!(check(&tx), []);
        for (reader, model) in &readers {
            compare_read(reader, model);
        }
    }
    drop(readers);
    db.begin_write().unwrap().commit().unwrap();
    db.begin_write().unwrap().commit().unwrap();
    let few = db.stats().pending_pages;
    assert!(
        few <= 4,
        "without readers only the last commit's pages wait: {few}"
    );
}

/// How many cases, unless `PROPTEST_CASES` asks for a longer run.
fn cases(usual: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    ProptestConfig::with_cases(asked.unwrap_or(usual))
}

fn options() -> impl Strategy<Value = Options> {
    let page_sizes = prop::sample::select(vec![1024u32, 4096, 16384]);
    (page_sizes, any::<bool>(), any::<bool>()).prop_map(|(page_size, map, no_freelist_sync)| {
        Options {
            page_size: Some(page_size),
            freelist: if map {
                FreelistKind::Map
            } else {
                FreelistKind::Array
            },
            no_freelist_sync,
            ..Options::default()
        }
    })
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn prop_the_database_is_a_map_of_maps(
        steps in prop::collection::vec(step(80, 12), 1..25),
        options in options(),
    ) {
        run(&steps, &options);
    }
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn prop_a_file_with_readers_is_a_map_of_maps(
        steps in prop::collection::vec(step(80, 12), 10..40),
        options in options(),
    ) {
        run_in_file(&steps, &options);
    }
}

proptest! {
    #![proptest_config(cases(25))]

    #[test]
    fn prop_large_trees_are_maps_too(
        steps in prop::collection::vec(step(2000, 200), 1..50),
        options in options(),
    ) {
        run(&steps, &options);
    }
}
