//! Giving space back while readers and a writer go on.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicBool, Ordering};

use keelson_bolt::{Db, FreelistKind, MemStorage, Options, Storage, check};

fn key(n: u32) -> [u8; 4] {
    n.to_be_bytes()
}

/// Two buckets, one of them nested, with `n` keys each and a long value now and then; then most
/// of it is deleted.
fn holey(storage: &MemStorage, options: Options, n: u32) -> Db {
    let db = Db::open_storage(Box::new(storage.clone()), options).unwrap();
    for from in (0..n).step_by(100) {
        let mut tx = db.begin_write().unwrap();
        let mut outer = tx.create_bucket_if_not_exists(b"outer").unwrap();
        for i in from..from + 100 {
            let long = if i % 90 == 0 { 9000 } else { 100 };
            outer.put(&key(i), &vec![i as u8; long]).unwrap();
        }
        let mut inner = outer.create_bucket_if_not_exists(b"inner").unwrap();
        for i in from..from + 100 {
            inner.put(&key(i), &[i as u8; 50]).unwrap();
        }
        tx.commit().unwrap();
    }
    let mut tx = db.begin_write().unwrap();
    let mut outer = tx.bucket_mut(b"outer").unwrap();
    for i in (0..n).filter(|i| i % 10 != 0) {
        outer.delete(&key(i)).unwrap();
    }
    let mut inner = outer.bucket_mut(b"inner").unwrap();
    for i in (0..n).filter(|i| i % 10 != 0) {
        inner.delete(&key(i)).unwrap();
    }
    tx.commit().unwrap();
    db
}

fn intact(db: &Db, n: u32) {
    let tx = db.begin_read().unwrap();
    assert_eq!(check(&tx), []);
    let outer = tx.bucket(b"outer").unwrap().unwrap();
    let inner = outer.bucket(b"inner").unwrap().unwrap();
    for i in (0..n).step_by(10) {
        let long = if i % 90 == 0 { 9000 } else { 100 };
        assert_eq!(outer.get(&key(i)).unwrap().unwrap(), vec![i as u8; long]);
        assert_eq!(inner.get(&key(i)).unwrap().unwrap(), [i as u8; 50]);
    }
    assert_eq!(inner.iter().count() as u32, n.div_ceil(10));
}

#[test]
fn a_file_with_holes_becomes_about_as_long_as_what_is_in_it() {
    for freelist in [FreelistKind::Array, FreelistKind::Map] {
        for no_freelist_sync in [false, true] {
            let storage = MemStorage::new();
            let options = Options {
                page_size: Some(1024),
                freelist,
                no_freelist_sync,
                ..Options::default()
            };
            let db = holey(&storage, options.clone(), 4000);
            let before = db.stats();
            let shrunk = db.shrink().unwrap();
            intact(&db, 4000);
            let used = before.size - before.free_bytes - 1024 * before.pending_pages;
            assert_eq!(storage.len().unwrap(), shrunk.len);
            assert!(
                shrunk.len <= used + used / 10 + 20 * 1024,
                "{shrunk:?}, {used} of {} in use",
                before.size
            );
            drop(db);
            let db = Db::open_storage(Box::new(storage.copy()), options).unwrap();
            intact(&db, 4000);
            // It grows again.
            let mut tx = db.begin_write().unwrap();
            let mut more = tx.create_bucket(b"more").unwrap();
            for i in 0..4000 {
                more.put(&key(i), &[1; 100]).unwrap();
            }
            tx.commit().unwrap();
            intact(&db, 4000);
        }
    }
}

#[test]
fn nothing_is_cut_from_under_a_reader() {
    let storage = MemStorage::new();
    let db = holey(&storage, Options::default(), 2000);
    let reader = db.begin_read().unwrap();
    let mut before = Vec::new();
    reader.write_to(&mut before).unwrap();
    db.shrink().unwrap();
    assert!(storage.len().unwrap() >= reader.size());
    let mut after = Vec::new();
    reader.write_to(&mut after).unwrap();
    for image in [before, after] {
        let storage = MemStorage::with_contents(&image);
        intact(
            &Db::open_storage(Box::new(storage), Options::default()).unwrap(),
            2000,
        );
    }
    let mark = reader.size();
    drop(reader);
    assert!(db.shrink().unwrap().len < mark);
    intact(&db, 2000);
}

#[test]
fn readers_and_a_writer_go_on_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let storage = MemStorage::new();
    drop(holey(
        &storage,
        Options {
            page_size: Some(1024),
            ..Options::default()
        },
        6000,
    ));
    std::fs::write(&path, storage.contents()).unwrap();
    let options = Options {
        no_sync: true,
        ..Options::default()
    };
    let db = Db::open(&path, options).unwrap();
    let done = AtomicBool::new(false);
    let mut written = 0u32;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    intact(&db, 6000);
                }
            });
        }
        let shrinking = scope.spawn(|| {
            let shrunk = db.shrink().unwrap();
            done.store(true, Ordering::Relaxed);
            shrunk
        });
        while !done.load(Ordering::Relaxed) {
            let mut tx = db.begin_write().unwrap();
            let mut own = tx.create_bucket_if_not_exists(b"own").unwrap();
            own.put(&key(written % 50), &key(written)).unwrap();
            tx.commit().unwrap();
            written += 1;
        }
        let shrunk = shrinking.join().unwrap();
        assert!(shrunk.pages_moved > 0, "{shrunk:?}");
    });
    // Without the readers the rest comes too.
    let shrunk = db.shrink().unwrap();
    assert!(shrunk.len < storage.len().unwrap() / 2, "{shrunk:?}");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), shrunk.len);
    intact(&db, 6000);
    let tx = db.begin_read().unwrap();
    let own = tx.bucket(b"own").unwrap().unwrap();
    for last in written.saturating_sub(50)..written {
        assert_eq!(own.get(&key(last % 50)).unwrap(), Some(&key(last)[..]));
    }
}
