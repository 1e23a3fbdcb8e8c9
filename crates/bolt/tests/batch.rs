//! Callers that share a commit: each function runs once and each caller has its own result.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};

use keelson_bolt::{Db, Error, MemStorage, Options, WriteTx, check};

const CALLERS: u32 = 24;
const ROUNDS: u32 = 20;

fn count(tx: &mut WriteTx<'_>, key: u32) -> Result<u32, Error> {
    let mut bucket = tx.create_bucket_if_not_exists(b"counts")?;
    let key = key.to_be_bytes();
    let before = bucket
        .get(&key)?
        .map_or(0, |v| u32::from_be_bytes(v.try_into().unwrap()));
    bucket.put(&key, &(before + 1).to_be_bytes())?;
    Ok(before + 1)
}

#[test]
fn every_function_runs_once_and_failures_stay_with_their_caller() {
    let db = Db::open_storage(Box::new(MemStorage::new()), Options::default()).unwrap();
    let runs = AtomicU32::new(0);
    let together = Barrier::new(CALLERS as usize);
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (db, runs, together) = (&db, &runs, &together);
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    together.wait();
                    let work = |tx: &mut WriteTx<'_>| {
                        runs.fetch_add(1, Ordering::Relaxed);
                        let now = count(tx, caller)?;
                        match caller % 3 {
                            1 => Err(Error::KeyRequired),
                            2 if round % 2 == 0 => panic!("a caller's own"),
                            _ => Ok(now),
                        }
                    };
                    let result = catch_unwind(AssertUnwindSafe(|| db.batch(work)));
                    match (caller % 3, result) {
                        (0, Ok(Ok(now))) => assert_eq!(now, round),
                        (1, Ok(Err(Error::KeyRequired))) => {}
                        (2, Ok(Ok(now))) => assert_eq!((now, round % 2), (round.div_ceil(2), 1)),
                        (2, Err(_)) => assert_eq!(round % 2, 0),
                        (kind, other) => panic!("{kind}: {other:?}"),
                    }
                }
            });
        }
    });
    assert_eq!(runs.load(Ordering::Relaxed), CALLERS * ROUNDS);
    let tx = db.begin_read().unwrap();
    assert_eq!(check(&tx), []);
    let counts = tx.bucket(b"counts").unwrap().unwrap();
    for caller in 0..CALLERS {
        let found = counts.get(&caller.to_be_bytes()).unwrap();
        let expected = match caller % 3 {
            0 => Some(ROUNDS),
            1 => None,
            _ => Some(ROUNDS / 2),
        };
        assert_eq!(
            found,
            expected.map(u32::to_be_bytes).as_ref().map(|b| &b[..])
        );
    }
}

#[test]
fn callers_that_come_during_a_commit_share_the_next_one() {
    let db = Db::open_storage(Box::new(MemStorage::new()), Options::default()).unwrap();
    let held = db.begin_write().unwrap();
    let commits = db.stats().commits;
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                scope.spawn({
                    let db = &db;
                    move || db.batch(|tx| count(tx, caller))
                })
            })
            .collect();
        // The first of them waits for the writer's place, the others for the first.
        while db.waiting_in_batch() < CALLERS as usize - 1 {
            std::thread::yield_now();
        }
        drop(held);
        for caller in callers {
            assert_eq!(caller.join().unwrap().unwrap(), 1);
        }
    });
    assert_eq!(db.stats().commits, commits + 1);
}

#[test]
fn all_callers_learn_of_a_commit_that_failed() {
    let storage = MemStorage::new();
    let db = Db::open_storage(Box::new(storage.clone()), Options::default()).unwrap();
    let held = db.begin_write().unwrap();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                scope.spawn({
                    let db = &db;
                    move || db.batch(|tx| count(tx, caller))
                })
            })
            .collect();
        while db.waiting_in_batch() < CALLERS as usize - 1 {
            std::thread::yield_now();
        }
        storage.cut_after(Some(1));
        drop(held);
        for caller in callers {
            let error = caller.join().unwrap().unwrap_err();
            assert!(error.to_string().contains("power"), "{error}");
        }
    });
    assert!(matches!(db.batch(|tx| count(tx, 0)), Err(Error::Poisoned)));
}
