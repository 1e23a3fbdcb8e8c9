//! The power goes at every write and every sync of a commit: what the disk can then hold is the
//! state before the commit or the one after it, and after a finished commit only that.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use keelson_bolt::{Db, FreelistKind, MemStorage, Options, ReadTx, Storage, check};

type Model = BTreeMap<(u8, Vec<u8>), Vec<u8>>;

/// SplitMix64: every run is the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Clone)]
enum Change {
    Put(u8, Vec<u8>, Vec<u8>),
    Delete(u8, Vec<u8>),
}

/// The changes of one transaction.
fn changes(random: &mut Random) -> Vec<Change> {
    let mut changes = Vec::new();
    for _ in 0..1 + random.below(60) {
        let bucket = random.below(3) as u8;
        let key = format!("{:04}", random.below(400)).into_bytes();
        if random.below(3) == 0 {
            changes.push(Change::Delete(bucket, key));
        } else {
            let len = if random.below(20) == 0 {
                random.below(9000)
            } else {
                random.below(200)
            };
            changes.push(Change::Put(
                bucket,
                key,
                vec![random.next() as u8; len as usize],
            ));
        }
    }
    changes
}

fn apply_model(model: &mut Model, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Put(bucket, key, value) => {
                model.insert((*bucket, key.clone()), value.clone());
            }
            Change::Delete(bucket, key) => {
                model.remove(&(*bucket, key.clone()));
            }
        }
    }
}

/// Applies the changes in one transaction; whether the commit was reported as done.
fn apply(db: &Db, changes: &[Change]) -> bool {
    let mut tx = db.begin_write().unwrap();
    for change in changes {
        let (Change::Put(bucket, ..) | Change::Delete(bucket, _)) = change;
        let mut bucket = tx.create_bucket_if_not_exists(&[*bucket + 1]).unwrap();
        match change {
            Change::Put(_, key, value) => bucket.put(key, value).unwrap(),
            Change::Delete(_, key) => bucket.delete(key).unwrap(),
        }
    }
    tx.commit().is_ok()
}

fn read(tx: &ReadTx) -> Model {
    let mut model = Model::new();
    for bucket in 0..3u8 {
        let Some(found) = tx.bucket(&[bucket + 1]).unwrap() else {
            continue;
        };
        let mut cursor = found.cursor();
        while let Some((key, value)) = cursor.next().unwrap() {
            model.insert((bucket, key.to_vec()), value.unwrap().to_vec());
        }
    }
    model
}

fn survive(options: &Options, seed: u64) {
    let mut random = Random(seed);
    let open = |storage: &MemStorage| {
        Db::open_storage(Box::new(storage.clone()), options.clone()).unwrap()
    };
    let mut base = MemStorage::new();
    drop(open(&base));
    let mut model = Model::new();
    for _ in 0..12 {
        let changes = changes(&mut random);
        let mut after = model.clone();
        apply_model(&mut after, &changes);
        let mut next = None;
        for cut in 0.. {
            let storage = base.copy();
            let db = open(&storage);
            storage.cut_after(Some(cut));
            let done = apply(&db, &changes);
            for _ in 0..12 {
                let crashed = storage.crash(&mut || random.next());
                let db = open(&crashed);
                let tx = db.begin_read().unwrap();
                let found = read(&tx);
                assert_eq!(check(&tx), [], "seed {seed}, cut {cut}");
                if done {
                    assert!(
                        found == after,
                        "seed {seed}, cut {cut}: a finished commit is lost"
                    );
                } else {
                    let known = found == model || found == after;
                    assert!(known, "seed {seed}, cut {cut}: neither before nor after");
                }
                // From a crashed disk on, so that damage left behind would be found later.
                next = Some((crashed.copy(), found));
            }
            if done {
                break;
            }
        }
        (base, model) = next.unwrap();
    }
    assert!(!model.is_empty());
}

#[test]
fn a_crash_leaves_one_of_the_last_two_states() {
    for seed in 0..3 {
        for freelist in [FreelistKind::Array, FreelistKind::Map] {
            for no_freelist_sync in [false, true] {
                let page_size = Some(if seed % 2 == 0 { 1024 } else { 4096 });
                survive(
                    &Options {
                        freelist,
                        no_freelist_sync,
                        page_size,
                        ..Options::default()
                    },
                    seed,
                );
            }
        }
    }
}

#[test]
fn a_crash_while_the_file_shrinks_loses_nothing() {
    for (seed, no_freelist_sync) in [(1, false), (2, true)] {
        let mut random = Random(seed);
        let options = Options {
            page_size: Some(1024),
            no_freelist_sync,
            ..Options::default()
        };
        let open = |storage: &MemStorage| {
            Db::open_storage(Box::new(storage.clone()), options.clone()).unwrap()
        };
        let base = MemStorage::new();
        let db = open(&base);
        let mut model = Model::new();
        for _ in 0..12 {
            let changes = changes(&mut random);
            apply_model(&mut model, &changes);
            assert!(apply(&db, &changes));
        }
        // Half of it goes, so that there is something to move.
        let gone: Vec<Change> = model
            .keys()
            .filter(|(_, key)| key[3] % 2 == 0)
            .map(|(bucket, key)| Change::Delete(*bucket, key.clone()))
            .collect();
        apply_model(&mut model, &gone);
        assert!(apply(&db, &gone));
        let before = base.len().unwrap();
        for cut in 0.. {
            let storage = base.copy();
            let db = open(&storage);
            storage.cut_after(Some(cut));
            let done = db.shrink();
            for _ in 0..8 {
                let crashed = storage.crash(&mut || random.next());
                let db = open(&crashed);
                let tx = db.begin_read().unwrap();
                assert_eq!(check(&tx), [], "seed {seed}, cut {cut}");
                assert!(read(&tx) == model, "seed {seed}, cut {cut}");
                drop(tx);
                // And it goes on from there.
                let changes = changes(&mut random);
                let mut after = model.clone();
                apply_model(&mut after, &changes);
                assert!(apply(&db, &changes));
                let tx = db.begin_read().unwrap();
                assert_eq!(check(&tx), [], "seed {seed}, cut {cut}");
                assert!(read(&tx) == after, "seed {seed}, cut {cut}");
            }
            if let Ok(shrunk) = done {
                assert!(shrunk.len < before, "{shrunk:?} of {before}");
                break;
            }
        }
    }
}

#[test]
fn without_syncs_a_crash_can_destroy_so_the_test_above_can_fail() {
    let options = Options {
        no_sync: true,
        page_size: Some(1024),
        ..Options::default()
    };
    let mut random = Random(7);
    let mut harmed = 0;
    for _ in 0..200 {
        let storage = MemStorage::new();
        let db = Db::open_storage(Box::new(storage.clone()), options.clone()).unwrap();
        let first = changes(&mut random);
        let mut before = Model::new();
        apply_model(&mut before, &first);
        assert!(apply(&db, &first));
        let second = changes(&mut random);
        let mut after = before.clone();
        apply_model(&mut after, &second);
        assert!(apply(&db, &second));
        let crashed = storage.crash(&mut || random.next());
        let Ok(db) = Db::open_storage(Box::new(crashed), options.clone()) else {
            harmed += 1;
            continue;
        };
        let tx = db.begin_read().unwrap();
        if !check(&tx).is_empty() {
            harmed += 1;
        } else {
            let found = read(&tx);
            harmed += usize::from(found != before && found != after);
        }
    }
    assert!(harmed > 0);
}

#[test]
fn what_was_read_after_a_kill_survives_a_power_cut() {
    let mut random = Random(11);
    for no_freelist_sync in [false, true] {
        let options = Options {
            no_freelist_sync,
            ..Options::default()
        };
        let open = |storage: &MemStorage| {
            Db::open_storage(Box::new(storage.clone()), options.clone()).unwrap()
        };
        let base = MemStorage::new();
        let mut before = Model::new();
        let first = changes(&mut random);
        apply_model(&mut before, &first);
        assert!(apply(&open(&base), &first));
        let second = changes(&mut random);
        let mut unsynced = 0;
        for cut in 0.. {
            let storage = base.copy();
            storage.cut_after(None);
            let db = open(&storage);
            storage.cut_after(Some(cut));
            let done = apply(&db, &second);
            drop(db);
            // The process is gone; what it had written is in the system's buffers.
            storage.cut_after(None);
            let seen = read(&open(&storage).begin_read().unwrap());
            unsynced += usize::from(!done && seen != before);
            for _ in 0..8 {
                let crashed = storage.crash(&mut || random.next());
                let found = read(&open(&crashed).begin_read().unwrap());
                assert!(found == seen, "cut {cut}: what was read has gone");
            }
            if done {
                break;
            }
        }
        assert!(unsynced > 0, "a commit that was never synced was seen");
    }
}
