//! The index against a dumb model: every key's changes in a list, generations as etcd has them.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use keelson_store::index::{
    Found, IndexReader, IndexWriter, KeyRange, KeyState, Progress, PutState, Restored,
};
use keelson_store::revision::Revision;
use proptest::prelude::*;

#[derive(Clone, Debug, PartialEq)]
struct Change {
    rev: Revision,
    /// Create, version and length of a put; `None` for a tombstone.
    put: Option<(i64, i64, u32)>,
    /// Whether compaction dropped its record while the index goes on naming it.
    lost: bool,
}

/// Every change that is not compacted, by key, rising.
#[derive(Clone, Default)]
struct Model {
    keys: BTreeMap<Vec<u8>, Vec<Change>>,
}

impl Model {
    fn at(&self, key: &[u8], at: Revision) -> Option<KeyState> {
        self.alive(key, at)
            .filter(|(_, lost)| !lost)
            .map(|(state, _)| state)
    }

    /// The state of a key that is alive, and whether its record is lost.
    fn alive(&self, key: &[u8], at: Revision) -> Option<(KeyState, bool)> {
        let changes = self.keys.get(key)?;
        let last = changes.iter().rev().find(|change| change.rev <= at)?;
        let (create, version, stored_len) = last.put?;
        let state = KeyState {
            rev: last.rev,
            create,
            version,
            stored_len,
        };
        Some((state, last.lost))
    }

    fn put(&mut self, key: &[u8], rev: Revision, stored_len: u32) -> PutState {
        let prev = self.alive(key, rev);
        let create = prev.map_or(rev.main, |(prev, _)| prev.create);
        let version = prev.map_or(1, |(prev, _)| prev.version + 1);
        let change = Change {
            rev,
            put: Some((create, version, stored_len)),
            lost: false,
        };
        self.keys.entry(key.to_vec()).or_default().push(change);
        PutState {
            create,
            version,
            prev: prev.filter(|(_, lost)| !lost).map(|(prev, _)| prev.rev),
        }
    }

    fn tombstone(&mut self, key: &[u8], rev: Revision) -> Option<Revision> {
        let (prev, lost) = self.alive(key, rev)?;
        self.keys.get_mut(key).unwrap().push(Change {
            rev,
            put: None,
            lost: false,
        });
        (!lost).then_some(prev.rev)
    }

    fn count(&self, range: KeyRange<'_>, at: Revision) -> u64 {
        let keys = self.keys.keys().filter(|key| range.contains(key));
        keys.filter(|key| self.alive(key, at).is_some()).count() as u64
    }

    fn visit(&self, range: KeyRange<'_>, at: Revision) -> Vec<(Vec<u8>, KeyState)> {
        let keys = self.keys.keys().filter(|key| range.contains(key));
        keys.filter_map(|key| Some((key.clone(), self.at(key, at)?)))
            .collect()
    }

    /// The generations of a key, the empty one after a tombstone too, and the place in them that etcd's compaction finds.
    fn walk(changes: &[Change], at: i64) -> (Vec<Vec<Change>>, usize, Option<usize>) {
        let mut generations = vec![Vec::new()];
        for change in changes {
            generations.last_mut().unwrap().push(change.clone());
            if change.put.is_none() {
                generations.push(Vec::new());
            }
        }
        let last = generations.len() - 1;
        let chosen = (0..last).find(|&g| generations[g].last().unwrap().rev.main >= at);
        let chosen = chosen.unwrap_or(last);
        let place = generations[chosen]
            .iter()
            .rposition(|change| change.rev.main <= at);
        (generations, chosen, place)
    }

    fn keep(&self, at: i64, tombstones: bool) -> BTreeSet<Revision> {
        let mut keep = BTreeSet::new();
        for changes in self.keys.values() {
            let (generations, chosen, place) = Model::walk(changes, at);
            let Some(place) = place else { continue };
            let found = &generations[chosen][place];
            if tombstones || found.put.is_some() {
                keep.insert(found.rev);
            }
        }
        keep
    }

    fn compact(&mut self, at: i64) -> BTreeSet<(Revision, bool)> {
        let mut dead = BTreeSet::new();
        for changes in self.keys.values_mut() {
            let (generations, chosen, place) = Model::walk(changes, at);
            let kept: Vec<Change> = generations[chosen]
                .iter()
                .skip(place.unwrap_or(0))
                .cloned()
                .collect();
            let mut later: Vec<Change> = generations[chosen + 1..].concat();
            let ends = generations[chosen]
                .last()
                .is_some_and(|change| change.rev.main == at);
            for change in later
                .iter_mut()
                .filter(|change| ends && change.rev.main == at)
            {
                dead.insert((change.rev, change.put.is_none()));
                change.lost = true;
            }
            let named = kept.iter().chain(&later).map(|change| change.rev);
            let named: BTreeSet<Revision> = named.collect();
            for gone in changes.iter().filter(|change| !named.contains(&change.rev)) {
                assert!(gone.rev.main <= at);
                dead.insert((gone.rev, gone.put.is_none()));
            }
            *changes = kept.into_iter().chain(later).collect();
        }
        self.keys.retain(|_, changes| !changes.is_empty());
        dead
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(u16),
    Delete(u16),
    /// The next change belongs to a new transaction.
    Next,
    Get(u16, prop::sample::Index, u32),
    Scan(Vec<u8>, Vec<u8>, prop::sample::Index, u32, u16),
    Since(u16, prop::sample::Index, prop::sample::Index),
    Compact(prop::sample::Index, usize),
    Keep(prop::sample::Index),
    Restart,
}

/// Keys that share prefixes of several lengths; one of them is empty, and one is a prefix of the others.
fn key(number: u16) -> Vec<u8> {
    match number {
        0 => Vec::new(),
        1 => b"/r".to_vec(),
        _ => {
            let long = "x".repeat(usize::from(number % 7) * 3);
            format!("/r/{}/{long}{:03}", number % 3, number).into_bytes()
        }
    }
}

fn bound() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => (0u16..400).prop_map(key),
        1 => Just(vec![]),
        1 => Just(vec![0]),
        1 => (0u8..4).prop_map(|n| format!("/r/{n}").into_bytes()),
    ]
}

fn op(keys: u16) -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        10 => (0..keys).prop_map(Op::Put),
        6 => (0..keys).prop_map(Op::Delete),
        8 => Just(Op::Next),
        2 => (0..keys, index(), 0u32..4).prop_map(|(k, at, sub)| Op::Get(k, at, sub)),
        2 => (bound(), bound(), index(), 0u32..4, 0..keys)
            .prop_map(|(a, b, at, sub, k)| Op::Scan(a, b, at, sub, k)),
        1 => (0..keys, index(), index()).prop_map(|(k, a, b)| Op::Since(k, a, b)),
        1 => (index(), 1usize..40).prop_map(|(at, n)| Op::Compact(at, n)),
        1 => index().prop_map(Op::Keep),
        1 => Just(Op::Restart),
    ]
}

struct World {
    writer: IndexWriter,
    model: Model,
    next: Revision,
    compacted: i64,
}

impl World {
    fn new() -> World {
        let (writer, model) = (IndexWriter::new(), Model::default());
        World {
            writer,
            model,
            next: Revision::new(2, 0),
            compacted: 1,
        }
    }

    fn reader(&self) -> IndexReader {
        self.writer.reader()
    }

    /// A main revision that may be read: from the compact revision up to the one under way.
    fn main(&self, at: &prop::sample::Index) -> i64 {
        let span = usize::try_from(self.next.main - self.compacted).unwrap() + 1;
        self.compacted + i64::try_from(at.index(span)).unwrap()
    }

    /// A revision to read at. One inside a transaction can't be told from its end at the compact revision.
    fn at(&self, at: &prop::sample::Index, sub: u32) -> Revision {
        let main = self.main(at);
        if sub == 3 || main == self.compacted {
            return Revision::end_of(main);
        }
        Revision::new(main, sub)
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Put(number) => {
                let (key, rev) = (key(*number), self.next);
                let length = u32::from(*number) + rev.sub;
                let planned = self.writer.next_state(&key, rev.main);
                let state = self.writer.put_with(&key, rev, |create, version| {
                    assert_eq!((create, version), (planned.create, planned.version));
                    length
                });
                assert_eq!(state, planned);
                assert_eq!(state, self.model.put(&key, rev, length));
                self.next.sub += 1;
            }
            Op::Delete(number) => {
                let (key, rev) = (key(*number), self.next);
                let alive = self.reader().is_alive(&key, rev);
                assert_eq!(alive, self.model.alive(&key, rev).is_some());
                let prev = self.writer.tombstone(&key, rev);
                assert_eq!(prev, self.model.tombstone(&key, rev));
                self.next.sub += u32::from(alive);
            }
            Op::Next => self.next = Revision::new(self.next.main + i64::from(self.next.sub > 0), 0),
            Op::Get(number, at, sub) => {
                let (key, at) = (key(*number), self.at(at, *sub));
                assert_eq!(
                    self.reader().get(&key, at),
                    self.model.at(&key, at),
                    "{key:?} at {at}"
                );
            }
            Op::Scan(low, high, at, sub, resume) => {
                let (range, at) = (KeyRange::new(low, high), self.at(at, *sub));
                self.scan(range, at, &key(*resume));
                self.scan(KeyRange::all(), at, &key(*resume));
            }
            Op::Since(number, from, upto) => {
                let (key, from) = (key(*number), self.main(from));
                let upto = self.at(upto, 1);
                let mut found = Vec::new();
                self.reader()
                    .since(&key, from, upto, &mut |rev, dead| found.push((rev, dead)));
                let changes = self.model.keys.get(&key).map_or(&[][..], |changes| changes);
                let changes = changes
                    .iter()
                    .filter(|c| c.rev.main >= from && c.rev <= upto);
                let expected: Vec<_> = changes.map(|c| (c.rev, c.put.is_none())).collect();
                assert_eq!(found, expected);
            }
            Op::Compact(at, slice) => self.compact(self.main(at), *slice),
            Op::Keep(at) => self.keep(self.main(at)),
            Op::Restart => self.restart(),
        }
        self.writer.check();
    }

    fn scan(&self, range: KeyRange<'_>, at: Revision, resume: &[u8]) {
        let expected = self.model.visit(range, at);
        assert_eq!(
            self.reader().count(range, at),
            self.model.count(range, at),
            "{range:?} at {at}"
        );
        let now = Revision::end_of(i64::MAX);
        let alive = self.model.keys.keys().filter(|key| range.contains(key));
        let alive = alive.filter(|key| self.model.alive(key, now).is_some());
        assert!(self.reader().alive(range).iter().eq(alive), "{range:?}");
        assert_eq!(visit(&self.reader(), range, at, None, usize::MAX), expected);
        let rest: Vec<_> = expected
            .iter()
            .filter(|(key, _)| key.as_slice() > resume)
            .collect();
        let found = visit(&self.reader(), range, at, Some(resume), 5);
        assert!(
            found.iter().eq(rest.into_iter().take(5)),
            "{range:?} after {resume:?}"
        );
    }

    fn keep(&self, at: i64) {
        let expected = self.model.keep(at, false);
        let keep = self.reader().keep(at);
        assert!(keep.as_slice().iter().eq(&expected), "keep of {at}");
        assert_eq!(keep.is_empty(), expected.is_empty());
        assert!(expected.iter().all(|&rev| keep.contains(rev)));
        let expected = self.model.keep(at, true);
        assert!(
            self.reader()
                .keep_of_compaction(at)
                .as_slice()
                .iter()
                .eq(&expected)
        );
    }

    fn compact(&mut self, at: i64, slice: usize) {
        let mut pruner = self.writer.compact(at);
        let mut dead = Vec::new();
        assert_eq!(
            pruner.step(&mut self.writer, slice, at - 1, &mut dead),
            Progress::Pinned
        );
        assert_eq!(dead, []);
        let held = usize::try_from(self.reader().keys_held()).unwrap();
        let mut steps = 0;
        while pruner.step(&mut self.writer, slice, at, &mut dead) == Progress::More {
            self.writer.check();
            steps += 1;
            assert!(
                steps <= held / slice + 1,
                "each step looks at as many keys as it may"
            );
        }
        let count = dead.len();
        let dead: BTreeSet<_> = dead.into_iter().collect();
        assert_eq!(dead.len(), count, "nothing dies twice");
        assert_eq!(dead, self.model.compact(at), "compaction to {at}");
        self.compacted = at;
    }

    /// Builds the index again from the records that are left, in revision order.
    fn restart(&mut self) {
        let mut records = BTreeMap::new();
        for (key, changes) in &mut self.model.keys {
            changes.retain(|change| !change.lost);
            let mut alive = None;
            changes.retain_mut(|change| {
                let first = records
                    .insert(change.rev, (key.clone(), change.put))
                    .is_none();
                assert!(first, "a revision belongs to one key");
                let stray = change.put.is_none() && alive == Some(false);
                alive = Some(change.put.is_some());
                !stray
            });
            renumber(changes);
        }
        self.model.keys.retain(|_, changes| !changes.is_empty());
        let mut writer = IndexWriter::new();
        let mut indexed = 0;
        for (rev, (key, put)) in records {
            let (create, version, length) = put.unwrap_or_default();
            let restored = writer.restore(&key, rev, create, version, put.is_none(), length);
            assert_ne!(restored, Restored::OutOfOrder);
            indexed += usize::from(restored == Restored::Indexed);
        }
        let left: usize = self.model.keys.values().map(Vec::len).sum();
        assert_eq!(indexed, left, "stray tombstones are left out");
        self.writer = writer;
    }
}

/// Numbers as they are counted from a key's first record on; they differ from what was written only behind a record that
/// was lost.
fn renumber(changes: &mut [Change]) {
    let mut before = None;
    for (i, change) in changes.iter_mut().enumerate() {
        let main = change.rev.main;
        if let Some((create, version, _)) = &mut change.put {
            (*create, *version) = match before {
                Some((create, version)) => (create, version + 1),
                None if i == 0 => (*create, *version),
                None => (main, 1),
            };
            before = Some((*create, *version));
        } else {
            before = None;
        }
    }
}

fn visit(
    reader: &IndexReader,
    range: KeyRange<'_>,
    at: Revision,
    resume_after: Option<&[u8]>,
    limit: usize,
) -> Vec<(Vec<u8>, KeyState)> {
    let mut found = Vec::new();
    reader.visit(range, at, resume_after, &mut |row: Found<'_>| {
        let Found {
            key,
            rev,
            create,
            version,
            stored_len,
        } = row;
        found.push((
            key.to_vec(),
            KeyState {
                rev,
                create,
                version,
                stored_len,
            },
        ));
        if found.len() == limit {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn prop_few_keys_with_long_histories_agree_with_the_model(
        ops in prop::collection::vec(op(6), 1..120),
    ) {
        let mut world = World::new();
        ops.iter().for_each(|op| world.step(op));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn prop_many_keys_agree_with_the_model(ops in prop::collection::vec(op(400), 400..1200)) {
        let mut world = World::new();
        ops.iter().for_each(|op| world.step(op));
    }
}

/// A generator of numbers that spread; the same ones each time.
fn spread(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// A tree of three levels, filled in several orders, emptied again by deletes and a compaction.
#[test]
fn a_tree_of_many_leaves_grows_and_shrinks_without_harm() {
    for order in ["rising", "falling", "spread"] {
        let (mut writer, reader) = {
            let writer = IndexWriter::new();
            let reader = writer.reader();
            (writer, reader)
        };
        let count = 12_000u64;
        let mut state = 7;
        let mut keys = BTreeSet::new();
        let mut main = 1;
        for i in 0..count {
            let number = match order {
                "rising" => i,
                "falling" => count - i,
                _ => i * 7919 % 12_007,
            };
            let key = format!("/registry/pods/{number:08}").into_bytes();
            main += 1;
            writer.put(&key, Revision::new(main, 0), 100);
            keys.insert(key);
        }
        writer.check();
        let full = main;
        let at = Revision::end_of(main);
        assert_eq!(reader.count(KeyRange::all(), at), keys.len() as u64);
        let bytes = reader.bytes();
        let sorted: Vec<_> = keys.iter().cloned().collect();
        for (low, high) in [
            (0, 1),
            (5, 70),
            (100, sorted.len() - 100),
            (0, sorted.len() - 1),
        ] {
            let range = KeyRange::new(&sorted[low], &sorted[high]);
            assert_eq!(reader.count(range, at), (high - low) as u64);
        }
        let mut kept = 0;
        for key in &keys {
            if spread(&mut state).is_multiple_of(50) {
                kept += 1;
                continue;
            }
            main += 1;
            assert!(writer.tombstone(key, Revision::new(main, 0)).is_some());
        }
        writer.check();
        assert_eq!(reader.count(KeyRange::all(), Revision::end_of(main)), kept);
        assert_eq!(
            reader.count(KeyRange::all(), at),
            keys.len() as u64,
            "at {full}"
        );
        assert_eq!(reader.keys_held(), keys.len() as u64);
        let mut pruner = writer.compact(main + 1);
        let mut dead = Vec::new();
        while pruner.step(&mut writer, 1000, i64::MAX, &mut dead) == Progress::More {}
        writer.check();
        assert_eq!(dead.len() as u64, 2 * (keys.len() as u64 - kept));
        assert_eq!((reader.keys_held(), reader.keys()), (kept, kept));
        assert!(
            reader.bytes() < bytes / 10,
            "{} of {bytes} bytes left",
            reader.bytes()
        );
    }
}

#[test]
fn keys_of_any_length_fit() {
    let mut writer = IndexWriter::new();
    let mut keys = BTreeSet::new();
    let mut state = 3;
    for main in 2..200 {
        let len =
            [0, 1, 100, 5_000, 70_000, 300_000][usize::try_from(spread(&mut state) % 6).unwrap()];
        let mut key = vec![b'k'; len];
        key.extend(spread(&mut state).to_be_bytes());
        writer.put(&key, Revision::new(main, 0), 1);
        keys.insert(key);
        writer.check();
    }
    let mut found = BTreeSet::new();
    let at = Revision::end_of(200);
    writer
        .reader()
        .visit(KeyRange::all(), at, None, &mut |row| {
            found.insert(row.key.to_vec());
            ControlFlow::Continue(())
        });
    assert!(found == keys);
}

#[test]
fn numbers_that_do_not_fit_inline_are_kept() {
    let mut writer = IndexWriter::new();
    let far = Revision::new(1 << 40, 0);
    let first = Revision::new(far.main, 0);
    assert_eq!(
        writer.restore(b"old", first, 2, 3, false, 10),
        Restored::Indexed
    );
    assert_eq!(
        writer.restore(b"busy", first, far.main, 1 << 33, false, 10),
        Restored::Indexed
    );
    assert_eq!(
        writer.restore(b"odd", first, i64::MIN, -1, false, 10),
        Restored::Indexed
    );
    let read = |writer: &IndexWriter, key: &[u8], at: i64| {
        let state = writer.reader().get(key, Revision::end_of(at)).unwrap();
        (state.create, state.version)
    };
    assert_eq!(read(&writer, b"old", far.main), (2, 3));
    assert_eq!(read(&writer, b"busy", far.main), (far.main, 1 << 33));
    assert_eq!(read(&writer, b"odd", far.main), (i64::MIN, -1));
    let put = writer.put(b"busy", Revision::new(far.main + 1, 0), 1);
    assert_eq!((put.create, put.version), (far.main, (1 << 33) + 1));
    assert!(
        writer
            .tombstone(b"busy", Revision::new(far.main + 2, 0))
            .is_some()
    );
    let put = writer.put(b"busy", Revision::new(far.main + 3, 0), 1);
    assert_eq!((put.create, put.version), (far.main + 3, 1));
    writer.check();
    assert_eq!(read(&writer, b"busy", far.main), (far.main, 1 << 33));
    assert_eq!(
        read(&writer, b"busy", far.main + 1),
        (far.main, (1 << 33) + 1)
    );
    let put = writer.put(b"old", Revision::new((1 << 40) + 5, 0), 1);
    assert_eq!((put.create, put.version), (2, 4));
    writer.check();
}

#[test]
fn records_out_of_order_and_stray_tombstones_are_reported() {
    let mut writer = IndexWriter::new();
    assert_eq!(
        writer.restore(b"a", Revision::new(5, 0), 0, 0, true, 3),
        Restored::Indexed
    );
    assert_eq!(
        writer.restore(b"a", Revision::new(6, 0), 0, 0, true, 3),
        Restored::StrayTombstone
    );
    assert_eq!(
        writer.restore(b"a", Revision::new(5, 0), 5, 1, false, 3),
        Restored::OutOfOrder
    );
    assert_eq!(
        writer.restore(b"a", Revision::new(8, 0), 8, 1, false, 3),
        Restored::Indexed
    );
    writer.check();
    let state = writer.reader().get(b"a", Revision::end_of(8)).unwrap();
    assert_eq!((state.create, state.version), (8, 1));
    assert_eq!(
        writer.reader().newest(b"a"),
        Some((Revision::new(8, 0), false))
    );
}
