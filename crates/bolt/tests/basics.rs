//! What every user of the engine relies on.
#![expect(clippy::unwrap_used, reason = "tests")]

use keelson_bolt::{Db, Error, FreelistKind, MemStorage, Options};

fn open(storage: &MemStorage) -> Db {
    Db::open_storage(Box::new(storage.clone()), Options::default()).unwrap()
}

#[test]
fn what_is_committed_is_read_by_later_transactions_and_after_an_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    {
        let db = Db::open(&path, Options::default()).unwrap();
        let before = db.begin_read().unwrap();
        let mut tx = db.begin_write().unwrap();
        let mut bucket = tx.create_bucket(b"a").unwrap();
        for i in 0..10_000 {
            bucket
                .put(format!("key{i:06}").as_bytes(), &[7; 100])
                .unwrap();
        }
        assert_eq!(
            tx.bucket(b"a").unwrap().unwrap().get(b"key000077").unwrap(),
            Some(&[7; 100][..])
        );
        tx.commit().unwrap();
        assert!(before.bucket(b"a").unwrap().is_none());
        let after = db.begin_read().unwrap();
        assert!(
            after
                .bucket(b"a")
                .unwrap()
                .unwrap()
                .get(b"key009999")
                .unwrap()
                .is_some()
        );
    }
    let db = Db::open(
        &path,
        Options {
            read_only: true,
            ..Options::default()
        },
    )
    .unwrap();
    let tx = db.begin_read().unwrap();
    let mut cursor = tx.bucket(b"a").unwrap().unwrap().cursor();
    let mut n = 0;
    while let Some((key, value)) = cursor.next().unwrap() {
        assert_eq!(key, format!("key{n:06}").as_bytes());
        assert_eq!(value, Some(&[7; 100][..]));
        n += 1;
    }
    assert_eq!(n, 10_000);
    assert!(matches!(db.begin_write(), Err(Error::ReadOnly)));
}

#[test]
fn a_dropped_transaction_leaves_nothing() {
    let storage = MemStorage::new();
    let db = open(&storage);
    let mut tx = db.begin_write().unwrap();
    tx.create_bucket(b"a").unwrap().put(b"k", b"v").unwrap();
    tx.commit().unwrap();
    let stats = db.stats();
    let mut tx = db.begin_write().unwrap();
    tx.delete_bucket(b"a").unwrap();
    drop(tx);
    let tx = db.begin_read().unwrap();
    assert_eq!(
        tx.bucket(b"a").unwrap().unwrap().get(b"k").unwrap(),
        Some(&b"v"[..])
    );
    assert_eq!(db.stats().size, stats.size);
    assert_eq!(
        db.stats().pending_pages,
        0,
        "what waited is free, what was freed is not"
    );
}

#[test]
fn emptied_trees_shrink_to_their_root() {
    for kind in [FreelistKind::Array, FreelistKind::Map] {
        let storage = MemStorage::new();
        let options = Options {
            freelist: kind,
            no_freelist_sync: true,
            ..Options::default()
        };
        let db = Db::open_storage(Box::new(storage.clone()), options).unwrap();
        let mut tx = db.begin_write().unwrap();
        let mut bucket = tx.create_bucket(b"a").unwrap();
        for i in 0..5_000u32 {
            bucket.put(&i.to_be_bytes(), &[1; 64]).unwrap();
        }
        tx.commit().unwrap();
        let mut tx = db.begin_write().unwrap();
        let mut bucket = tx.bucket_mut(b"a").unwrap();
        for i in 0..5_000u32 {
            bucket.delete(&i.to_be_bytes()).unwrap();
        }
        tx.commit().unwrap();
        db.begin_write().unwrap().commit().unwrap();
        let stats = db.stats();
        let pages = stats.size / u64::from(db.page_size());
        // Two metas, the root with the emptied bucket inside of it.
        assert!(
            stats.free_pages + stats.pending_pages + 4 >= pages,
            "{stats:?}"
        );
    }
}

#[test]
fn refusals_have_their_names() {
    let storage = MemStorage::new();
    let db = open(&storage);
    let mut tx = db.begin_write().unwrap();
    assert!(matches!(tx.bucket_mut(b"x"), Err(Error::BucketNotFound)));
    assert!(matches!(
        tx.create_bucket(b""),
        Err(Error::BucketNameRequired)
    ));
    let mut a = tx.create_bucket(b"a").unwrap();
    assert!(matches!(a.put(b"", b"v"), Err(Error::KeyRequired)));
    assert!(matches!(a.put(&[1; 32769], b"v"), Err(Error::KeyTooLarge)));
    a.create_bucket(b"inner").unwrap();
    assert!(matches!(
        a.put(b"inner", b"v"),
        Err(Error::IncompatibleValue)
    ));
    assert!(matches!(a.delete(b"inner"), Err(Error::IncompatibleValue)));
    a.put(b"k", b"v").unwrap();
    assert!(matches!(
        a.create_bucket(b"k"),
        Err(Error::IncompatibleValue)
    ));
    assert!(matches!(
        a.delete_bucket(b"k"),
        Err(Error::IncompatibleValue)
    ));
    assert!(matches!(tx.create_bucket(b"a"), Err(Error::BucketExists)));
    drop(tx);
    let other = db.clone();
    db.close().unwrap();
    assert!(matches!(other.begin_read(), Err(Error::NotOpen)));
}

#[test]
fn a_cursor_deletes_under_itself_and_goes_on() {
    let storage = MemStorage::new();
    let db = open(&storage);
    let mut tx = db.begin_write().unwrap();
    let mut bucket = tx.create_bucket(b"a").unwrap();
    for i in 0..100u8 {
        bucket.put(&[i], b"v").unwrap();
    }
    let mut cursor = bucket.cursor_mut();
    let mut seen = Vec::new();
    while let Some((key, _)) = cursor.next().unwrap() {
        let key = key[0];
        seen.push(key);
        if key % 2 == 0 {
            cursor.delete().unwrap();
        }
    }
    assert_eq!(seen, (0..100).collect::<Vec<u8>>());
    assert_eq!(cursor.prev().unwrap().unwrap().0, &[97]);
    assert_eq!(cursor.first().unwrap().unwrap().0, &[1]);
    assert!(cursor.prev().unwrap().is_none());
    assert_eq!(cursor.next().unwrap().unwrap().0, &[3]);
}

#[test]
fn after_a_failed_sync_nothing_is_done_any_more() {
    let storage = MemStorage::new();
    let db = open(&storage);
    storage.cut_after(Some(2));
    let mut tx = db.begin_write().unwrap();
    tx.create_bucket(b"a").unwrap();
    assert!(matches!(tx.commit(), Err(Error::Io { .. })));
    storage.cut_after(None);
    assert!(matches!(db.begin_read(), Err(Error::Poisoned)));
    assert!(matches!(db.begin_write(), Err(Error::Poisoned)));
}

#[test]
fn an_image_is_a_database_of_its_own() {
    let storage = MemStorage::new();
    let db = open(&storage);
    let mut tx = db.begin_write().unwrap();
    tx.create_bucket(b"a")
        .unwrap()
        .put(b"k", &[3; 9000])
        .unwrap();
    tx.commit().unwrap();
    let tx = db.begin_read().unwrap();
    let mut image = Vec::new();
    assert_eq!(tx.write_to(&mut image).unwrap(), tx.size());
    assert_eq!(image.len() as u64, tx.size());
    let mut piecewise = Vec::new();
    let mut buf = [0; 1000];
    loop {
        let n = tx.image_chunk(piecewise.len() as u64, &mut buf).unwrap();
        if n == 0 {
            break;
        }
        piecewise.extend_from_slice(&buf[..n]);
    }
    assert!(piecewise == image);
    let copy = open(&MemStorage::with_contents(&image));
    let read = copy.begin_read().unwrap();
    assert_eq!(read.tx_id(), tx.tx_id());
    assert_eq!(
        read.bucket(b"a").unwrap().unwrap().get(b"k").unwrap(),
        Some(&[3; 9000][..])
    );
}

#[test]
fn growth_past_the_limit_is_refused_and_harms_nothing() {
    let storage = MemStorage::new();
    let options = Options {
        max_size: Some(64 << 10),
        ..Options::default()
    };
    let db = Db::open_storage(Box::new(storage.clone()), options).unwrap();
    let mut tx = db.begin_write().unwrap();
    tx.create_bucket(b"a")
        .unwrap()
        .put(b"k", &[1; 100_000])
        .unwrap();
    assert!(matches!(tx.commit(), Err(Error::MaxSizeReached)));
    let mut tx = db.begin_write().unwrap();
    tx.create_bucket(b"a")
        .unwrap()
        .put(b"k", &[1; 10_000])
        .unwrap();
    tx.commit().unwrap();
}
