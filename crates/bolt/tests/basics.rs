//! What every user of the engine relies on.
#![expect(clippy::unwrap_used, reason = "tests")]

use keelson_bolt::{Db, Error, FreelistKind, MAX_NESTING, MemStorage, Options, check, compact};

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
    assert_eq!(check(&db.begin_read().unwrap()), []);
}

#[test]
fn buckets_nest_up_to_the_bound_and_not_deeper() {
    let storage = MemStorage::new();
    let db = open(&storage);
    let names = vec![&b"n"[..]; MAX_NESTING];
    let mut tx = db.begin_write().unwrap();
    tx.create_bucket(b"n").unwrap();
    for depth in 1..MAX_NESTING {
        tx.bucket_path_mut(&names[..depth])
            .unwrap()
            .create_bucket(b"n")
            .unwrap();
    }
    let mut last = tx.bucket_path_mut(&names).unwrap();
    assert!(matches!(last.create_bucket(b"n"), Err(Error::TooDeep)));
    last.put(b"k", b"v").unwrap();
    tx.commit().unwrap();

    let copy = open(&MemStorage::new());
    compact(&db, &copy, 1000, 1.0).unwrap();
    for db in [&db, &copy] {
        let tx = db.begin_read().unwrap();
        assert_eq!(check(&tx), []);
        let mut bucket = tx.bucket(b"n").unwrap().unwrap();
        for _ in 1..MAX_NESTING {
            bucket = bucket.bucket(b"n").unwrap().unwrap();
        }
        assert_eq!(bucket.get(b"k").unwrap(), Some(&b"v"[..]));
    }
    let mut tx = db.begin_write().unwrap();
    tx.delete_bucket(b"n").unwrap();
    tx.commit().unwrap();
    let tx = db.begin_read().unwrap();
    assert_eq!(check(&tx), []);
    assert!(tx.cursor().first().unwrap().is_none());
}

#[test]
fn a_reader_keeps_its_state_while_the_file_grows_and_pages_are_reused() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("db"), Options::default()).unwrap();
    let mut tx = db.begin_write().unwrap();
    let mut bucket = tx.create_bucket(b"a").unwrap();
    for i in 0..500u32 {
        bucket.put(&i.to_be_bytes(), &[0; 100]).unwrap();
    }
    tx.commit().unwrap();
    let reader = db.begin_read().unwrap();
    for round in 1..60u8 {
        let mut tx = db.begin_write().unwrap();
        let mut bucket = tx.bucket_mut(b"a").unwrap();
        for i in 0..500u32 {
            bucket.put(&i.to_be_bytes(), &[round; 100]).unwrap();
        }
        bucket.put(&[round], &[round; 50_000]).unwrap();
        tx.commit().unwrap();
    }
    let read = |tx: &keelson_bolt::ReadTx, want: u8| {
        let bucket = tx.bucket(b"a").unwrap().unwrap();
        for i in 0..500u32 {
            assert_eq!(
                bucket.get(&i.to_be_bytes()).unwrap(),
                Some(&[want; 100][..])
            );
        }
    };
    read(&reader, 0);
    read(&db.begin_read().unwrap(), 59);
    assert_eq!(db.stats().open_read_txs, 1);
    drop(reader);
    assert_eq!(db.stats().open_read_txs, 0);
    assert_eq!(check(&db.begin_read().unwrap()), []);
}

#[test]
fn a_new_file_has_bbolts_lengths() {
    let dir = tempfile::tempdir().unwrap();
    let len = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
    let open = |name: &str, initial_map_size| {
        let page_size = Some(4096);
        let options = Options {
            page_size,
            initial_map_size,
            ..Options::default()
        };
        Db::open(&dir.path().join(name), options).unwrap()
    };
    let commit = |db: &Db| {
        let mut tx = db.begin_write().unwrap();
        tx.create_bucket(b"a").unwrap();
        tx.commit().unwrap();
    };
    let small = open("small", 0);
    assert_eq!(len("small"), 16384);
    commit(&small);
    assert_eq!(len("small"), 32768, "as long as its map");
    let large = open("large", 10 << 30);
    commit(&large);
    assert_eq!(
        len("large"),
        (16 << 20) + large.stats().size + 4096,
        "a step ahead of its use"
    );
}

#[test]
fn many_keys_in_no_order_in_one_transaction_make_a_sound_tree() {
    for page_size in [1024, 4096] {
        let options = Options {
            page_size: Some(page_size),
            ..Options::default()
        };
        let db = Db::open_storage(Box::new(MemStorage::new()), options).unwrap();
        let mut tx = db.begin_write().unwrap();
        let mut bucket = tx.create_bucket(b"a").unwrap();
        let keys: Vec<[u8; 8]> = (1..20_000u64)
            .map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes())
            .collect();
        for key in &keys {
            bucket.put(key, &[9; 30]).unwrap();
        }
        for key in keys.iter().step_by(3) {
            bucket.delete(key).unwrap();
        }
        tx.commit().unwrap();
        let tx = db.begin_read().unwrap();
        assert_eq!(check(&tx), []);
        let bucket = tx.bucket(b"a").unwrap().unwrap();
        for (i, key) in keys.iter().enumerate() {
            assert_eq!(bucket.get(key).unwrap().is_some(), i % 3 != 0);
        }
    }
}

#[test]
fn a_new_file_appears_whole_and_what_an_interrupted_start_left_is_no_hindrance() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    // Torn while it was made; the name was never given.
    std::fs::write(dir.path().join("db.tmp.new"), vec![7; 50_000]).unwrap();
    let db = Db::open(&path, Options::default()).unwrap();
    let tx = db.begin_read().unwrap();
    assert_eq!(check(&tx), []);
    let names = std::fs::read_dir(dir.path()).unwrap();
    let names: Vec<_> = names.map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, ["db"]);
}
