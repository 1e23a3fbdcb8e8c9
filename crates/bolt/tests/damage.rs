//! Files with flipped bits and overwritten bytes: typed errors, no panic, no endless loop.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use exercise::exercise;
use keelson_bolt::{Db, Error, MemStorage, Options, check, compact};

mod exercise;

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

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// How long the usual run takes at most.
const TIME_BOX: Duration = Duration::from_secs(8);

fn sample(no_freelist_sync: bool) -> Vec<u8> {
    let storage = MemStorage::new();
    let options = Options {
        page_size: Some(1024),
        no_freelist_sync,
        ..Options::default()
    };
    let db = Db::open_storage(Box::new(storage.clone()), options).unwrap();
    let mut tx = db.begin_write().unwrap();
    for name in [b"a", b"b"] {
        let mut bucket = tx.create_bucket(name).unwrap();
        for i in 0..300u32 {
            bucket
                .put(format!("key{i:05}").as_bytes(), &[5; 40])
                .unwrap();
        }
        bucket.put(b"long", &[6; 5000]).unwrap();
        let mut inner = bucket.create_bucket(b"inner").unwrap();
        inner.put(b"k", b"v").unwrap();
        inner
            .create_bucket(b"deeper")
            .unwrap()
            .put(b"k", b"v")
            .unwrap();
    }
    tx.commit().unwrap();
    let mut tx = db.begin_write().unwrap();
    let mut bucket = tx.bucket_mut(b"a").unwrap();
    for i in 100..200u32 {
        bucket.delete(format!("key{i:05}").as_bytes()).unwrap();
    }
    tx.commit().unwrap();
    let size = usize::try_from(db.stats().size).unwrap();
    let mut contents = storage.contents();
    contents.truncate(size);
    contents
}

#[test]
fn damaged_files_give_errors_and_nothing_worse() {
    // `PROPTEST_CASES` asks for a longer run, of files of its own.
    let asked = std::env::var("PROPTEST_CASES").ok();
    let asked: Option<usize> = asked.and_then(|cases| cases.parse().ok());
    let cases = asked.unwrap_or(20_000);
    let mut random = Random(asked.map_or(11, |cases| cases as u64));
    let begun = Instant::now();
    let samples = [sample(false), sample(true)];
    let (mut refused, mut passed) = (0, 0);
    let mut round = 0usize;
    while round < cases && (asked.is_some() || begun.elapsed() < TIME_BOX) {
        let mut contents = samples[round % 2].clone();
        round += 1;
        for _ in 0..1 + random.below(4) {
            // Headers and element arrays matter most.
            let page = random.below(contents.len() / 1024) * 1024;
            let at = match random.below(4) {
                0 => random.below(contents.len()),
                1 => page + random.below(16),
                _ => page + random.below(128),
            };
            match random.below(4) {
                0 => contents[at] ^= 1 << random.below(8),
                1 => contents[at] = random.next() as u8,
                2 => contents[at] = [0, 1, 0x7F, 0xFF][random.below(4)],
                _ => {
                    // A number of another page, where one could stand.
                    let at = at & !7;
                    let id = random.below(contents.len() / 1024) as u64;
                    contents[at..at + 8].copy_from_slice(&id.to_le_bytes());
                }
            }
        }
        if random.below(20) == 0 {
            contents.truncate(random.below(contents.len()));
        }
        let read_only = random.below(2) == 0;
        let no_freelist_sync = random.below(2) == 0;
        let options = Options {
            read_only,
            no_freelist_sync,
            ..Options::default()
        };
        match exercise(&contents, &options) {
            Ok(()) => passed += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(
        refused > 10 && passed > 10,
        "{refused} refused, {passed} passed"
    );
    println!("{refused} refused, {passed} passed");
}

/// A file with two buckets that lie in themselves and in one another.
fn in_themselves() -> Vec<u8> {
    let names = [b"inner1", b"inner2"];
    let storage = MemStorage::new();
    let options = Options {
        page_size: Some(1024),
        ..Options::default()
    };
    let db = Db::open_storage(Box::new(storage.clone()), options).unwrap();
    let mut tx = db.begin_write().unwrap();
    let mut bucket = tx.create_bucket(b"a").unwrap();
    for name in names {
        let mut inner = bucket.create_bucket(name).unwrap();
        for i in 0..100u32 {
            inner
                .put(format!("key{i:05}").as_bytes(), &[5; 60])
                .unwrap();
        }
    }
    tx.commit().unwrap();
    let mut contents = storage.contents();
    for name in names {
        let at = contents
            .windows(6)
            .rposition(|bytes| bytes == name)
            .unwrap();
        // The value behind the name begins with the root.
        let page = (at / 1024) as u64;
        contents[at + 6..at + 14].copy_from_slice(&page.to_le_bytes());
    }
    contents
}

#[test]
fn buckets_that_lie_in_themselves_are_found_out_by_whatever_reads_all_of_them() {
    let open = || {
        let storage = MemStorage::with_contents(&in_themselves());
        Db::open_storage(Box::new(storage), Options::default()).unwrap()
    };
    let db = open();
    let tx = db.begin_read().unwrap();
    assert!(!check(&tx).is_empty());
    let stats = tx.bucket(b"a").unwrap().unwrap().stats();
    assert!(matches!(stats, Err(Error::Corrupt { .. })), "{stats:?}");
    drop(tx);
    let dst = Db::open_storage(Box::new(MemStorage::new()), Options::default()).unwrap();
    let copied = compact(&db, &dst, 65_536, 1.0);
    assert!(copied.is_err());
    let shrunk = open().shrink();
    assert!(matches!(shrunk, Err(Error::Corrupt { .. })), "{shrunk:?}");
}
