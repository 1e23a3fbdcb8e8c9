//! The engine: changes and their commit, and what readers do.

use bytes::Bytes;
use keelson_bolt::{Db, Options, WriteTx};
use keelson_counts::{Table, count};

use super::{VALUE, key};

const BUCKET: &[u8] = b"key";

/// Pairs in the file before anything is counted: a tree of three levels.
const PAIRS: usize = 5_000;

fn open(dir: &std::path::Path) -> Db {
    let options = Options {
        no_sync: true,
        ..Options::default()
    };
    let db = Db::open(&dir.join("db"), options).unwrap();
    let mut tx = db.begin_write().unwrap();
    tx.create_bucket(BUCKET).unwrap();
    for place in 0..PAIRS {
        put(&mut tx, &key(place));
    }
    tx.commit().unwrap();
    db
}

fn put(tx: &mut WriteTx<'_>, key: &[u8]) {
    tx.bucket_mut(BUCKET)
        .unwrap()
        .put(key, &[b'v'; VALUE])
        .unwrap();
}

/// Keys all over the tree.
fn scattered(place: usize) -> Bytes {
    key(place * 7_919 % PAIRS)
}

pub(super) fn add_to(table: &mut Table) {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let transaction = |keys: Vec<Bytes>| {
        let mut tx = db.begin_write().unwrap();
        for key in keys {
            put(&mut tx, &key);
        }
        tx.commit().unwrap();
    };
    table.add(
        "bolt: a transaction that puts 1 key",
        count(|place| vec![scattered(place)], transaction),
    );
    table.add(
        "bolt: a transaction that puts 100 new keys in order",
        count(
            |place| {
                (0..100)
                    .map(|each| key(PAIRS + place * 100 + each))
                    .collect()
            },
            transaction,
        ),
    );
    let mut tx = db.begin_write().unwrap();
    table.add(
        "bolt: put inside a transaction",
        count(scattered, |key| put(&mut tx, &key)),
    );
    tx.commit().unwrap();

    let read = || db.begin_read().unwrap();
    table.add("bolt: begin to read", count(|_| (), |()| read()));
    let tx = read();
    let bucket = tx.bucket(BUCKET).unwrap().unwrap();
    table.add(
        "bolt: get",
        count(scattered, |key| bucket.get(&key).unwrap().unwrap().len()),
    );
    table.add(
        "bolt: scan of 500 pairs",
        count(scattered, |from| {
            let pairs = bucket.range(&from[..]..);
            pairs
                .take(500)
                .map(|pair| pair.unwrap().1.map_or(0, <[u8]>::len))
                .sum::<usize>()
        }),
    );
}
