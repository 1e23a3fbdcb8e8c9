//! Readers on threads of their own, while a writer reuses what they no longer need.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicBool, Ordering};

use keelson_bolt::{Db, FreelistKind, MemStorage, Options, ReadTx, check};

const KEYS: u32 = 400;

/// All keys have the value of one commit.
fn generation(tx: &ReadTx) -> u32 {
    let bucket = tx.bucket(b"a").unwrap().unwrap();
    let mut cursor = bucket.cursor();
    let mut generation = None;
    let mut n = 0u32;
    while let Some((key, value)) = cursor.next().unwrap() {
        assert_eq!(key, n.to_be_bytes());
        let value = u32::from_be_bytes(value.unwrap()[..4].try_into().unwrap());
        assert_eq!(
            *generation.get_or_insert(value),
            value,
            "one commit, not two"
        );
        n += 1;
    }
    assert_eq!(n, KEYS);
    generation.unwrap()
}

fn write(db: &Db, generation: u32) {
    let mut tx = db.begin_write().unwrap();
    let mut bucket = tx.create_bucket_if_not_exists(b"a").unwrap();
    let mut value = [0; 120];
    value[..4].copy_from_slice(&generation.to_be_bytes());
    for key in 0..KEYS {
        bucket.put(&key.to_be_bytes(), &value).unwrap();
    }
    tx.commit().unwrap();
}

#[test]
fn every_reader_sees_exactly_one_commit() {
    for freelist in [FreelistKind::Array, FreelistKind::Map] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            freelist,
            no_sync: true,
            no_freelist_sync: true,
            ..Options::default()
        };
        let db = Db::open(&dir.path().join("db"), options).unwrap();
        write(&db, 0);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for reader in 0..3 {
                let (db, done) = (&db, &done);
                scope.spawn(move || {
                    let mut held = Vec::new();
                    let mut last = 0;
                    while !done.load(Ordering::Relaxed) {
                        let tx = db.begin_read().unwrap();
                        let now = generation(&tx);
                        assert!(now >= last, "never back in time");
                        last = now;
                        held.push((tx, now));
                        if held.len() > reader * 3 {
                            let (tx, then) = held.remove(held.len() / 2);
                            assert_eq!(generation(&tx), then);
                        }
                    }
                    for (tx, then) in held {
                        assert_eq!(generation(&tx), then);
                    }
                });
            }
            for generation in 1..250 {
                write(&db, generation);
            }
            done.store(true, Ordering::Relaxed);
        });
        let tx = db.begin_read().unwrap();
        assert_eq!(generation(&tx), 249);
        assert_eq!(check(&tx), []);
        // Some 20 pages a commit, and not one commit's readers for long: space is reused.
        assert!(tx.size() < 16 << 20, "{}", tx.size());
    }
}

#[test]
fn a_reader_of_hours_does_not_keep_what_came_after_it() {
    for freelist in [FreelistKind::Array, FreelistKind::Map] {
        let options = Options {
            freelist,
            no_freelist_sync: true,
            ..Options::default()
        };
        let db = Db::open_storage(Box::new(MemStorage::new()), options).unwrap();
        write(&db, 0);
        let old = db.begin_read().unwrap();
        let mut size = 0;
        for round in 1..=200 {
            write(&db, round);
            // Short ones come and go beside it.
            let _short = db.begin_read().unwrap();
            if round == 10 {
                size = db.stats().size;
            }
        }
        assert_eq!(
            db.stats().size,
            size,
            "pages made and freed after it are used again"
        );
        assert_eq!(generation(&old), 0);
        drop(old);
        write(&db, 201);
        assert_eq!(check(&db.begin_read().unwrap()), []);
    }
}
