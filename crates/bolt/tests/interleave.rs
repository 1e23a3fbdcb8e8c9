//! Threads in every order that a random scheduler thinks of: readers, the writer, shrinking and
//! batches over one database. Its locks are the scheduler's.
//!
//! ```text
//! RUSTFLAGS="--cfg shuttle" cargo test -p keelson-bolt --test interleave
//! ```
#![cfg(shuttle)]
#![expect(clippy::unwrap_used, reason = "tests")]

use keelson_bolt::{Db, MemStorage, Options, ReadTx, WriteTx, check};
use shuttle::thread;

/// Schedules of each test.
const SCHEDULES: usize = 300;
/// Keys that all have the value of one commit.
const KEYS: u8 = 40;

/// A database in a real file: its map shows a page that is written too early, which the views of
/// `MemStorage` would hide.
struct Opened {
    db: Db,
    _folder: tempfile::TempDir,
}

fn open() -> Opened {
    let options = Options {
        page_size: Some(1024),
        no_freelist_sync: true,
        no_sync: true,
        no_grow_sync: true,
        ..Options::default()
    };
    // Made in memory: a new file would be synced.
    let memory = MemStorage::new();
    let made = Db::open_storage(Box::new(memory.clone()), options.clone()).unwrap();
    write(&made, 0);
    drop(made);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    std::fs::write(&path, memory.contents()).unwrap();
    let db = Db::open(&path, options).unwrap();
    Opened {
        db,
        _folder: folder,
    }
}

fn set(tx: &mut WriteTx<'_>, value: u8) {
    let mut bucket = tx.create_bucket_if_not_exists(b"a").unwrap();
    for key in 0..KEYS {
        bucket.put(&[key], &[value; 60]).unwrap();
    }
}

fn write(db: &Db, value: u8) {
    let mut tx = db.begin_write().unwrap();
    set(&mut tx, value);
    tx.commit().unwrap();
}

/// The one value that all keys have.
fn read(tx: &ReadTx) -> u8 {
    let bucket = tx.bucket(b"a").unwrap().unwrap();
    let mut values: Vec<u8> = bucket
        .iter()
        .map(|entry| entry.unwrap().1.unwrap()[0])
        .collect();
    assert_eq!(values.len(), usize::from(KEYS));
    values.dedup();
    assert_eq!(values.len(), 1, "one commit, not two");
    values[0]
}

#[test]
fn no_page_that_a_reader_reaches_is_used_again() {
    shuttle::check_random(
        || {
            let Opened { db, _folder } = open();
            let mut threads = Vec::new();
            for _ in 0..2 {
                let db = db.clone();
                threads.push(thread::spawn(move || {
                    let first = db.begin_read().unwrap();
                    let seen = read(&first);
                    let second = db.begin_read().unwrap();
                    assert!(read(&second) >= seen, "never back in time");
                    thread::yield_now();
                    assert_eq!(read(&first), seen);
                    drop(first);
                    assert_eq!(check(&second), []);
                }));
            }
            for value in 1..5 {
                write(&db, value);
            }
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(read(&db.begin_read().unwrap()), 4);
            write(&db, 5);
            write(&db, 6);
            assert!(db.stats().pending_pages < 20, "what nobody reads is free");
        },
        SCHEDULES,
    );
}

#[test]
fn nothing_is_cut_from_under_a_reader() {
    shuttle::check_random(
        || {
            let Opened { db, _folder } = open();
            for value in 1..4 {
                let _held = db.begin_read().unwrap();
                write(&db, value);
            }
            let readers = db.clone();
            let reading = thread::spawn(move || {
                for _ in 0..2 {
                    let tx = readers.begin_read().unwrap();
                    assert_eq!(read(&tx), 3);
                    let mut image = Vec::new();
                    tx.write_to(&mut image).unwrap();
                    assert_eq!(image.len() as u64, tx.size());
                }
            });
            db.shrink().unwrap();
            reading.join().unwrap();
            assert_eq!(check(&db.begin_read().unwrap()), []);
        },
        SCHEDULES,
    );
}

#[test]
fn callers_of_a_batch_run_once_each_and_none_is_forgotten() {
    shuttle::check_random(
        || {
            let Opened { db, _folder } = open();
            let mut threads = Vec::new();
            for caller in 0..3u8 {
                let db = db.clone();
                threads.push(thread::spawn(move || {
                    db.batch(|tx| {
                        let mut bucket = tx.create_bucket_if_not_exists(b"sum")?;
                        let before = bucket.get(b"n")?.map_or(0, |n| n[0]);
                        bucket.put(b"n", &[before + 1])?;
                        if caller == 1 {
                            return Err(keelson_bolt::Error::KeyRequired);
                        }
                        Ok(())
                    })
                }));
            }
            for (caller, thread) in threads.into_iter().enumerate() {
                assert_eq!(thread.join().unwrap().is_err(), caller == 1);
            }
            let tx = db.begin_read().unwrap();
            let sum = tx.bucket(b"sum").unwrap().unwrap();
            assert_eq!(sum.get(b"n").unwrap(), Some(&[2][..]));
        },
        SCHEDULES,
    );
}
