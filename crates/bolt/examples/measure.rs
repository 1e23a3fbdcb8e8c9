//! The works of `bench/bolt`, which runs the same in bbolt: a line each with the operations, and
//! the nanoseconds of clock and of processor that one took.
//!
//! ```text
//! measure FOLDER [writes|reads|commits]
//! measure FOLDER make      the files that bbolt's commits are made in
//! ```
#![expect(clippy::print_stdout, reason = "a program")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use keelson_bolt::surgery::RawMeta;
use keelson_bolt::{Db, Error, Options, PageId};
use rustix::time::{ClockId, clock_gettime};

const BUCKET: &[u8] = b"bench";
const KEY: usize = 64;
const VALUE: usize = 512;
/// Keys of the database that is read.
const KEYS: u64 = 400_000;
/// Free pages beside which small commits are made.
const FREE: u64 = 1_000_000;

struct Meter {
    clock: Instant,
    processor: u64,
}

fn processor() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    (time.tv_sec * 1_000_000_000 + time.tv_nsec) as u64
}

impl Meter {
    fn start() -> Meter {
        Meter {
            clock: Instant::now(),
            processor: processor(),
        }
    }

    fn report(&self, name: &str, n: u64) {
        let clock = self.clock.elapsed().as_nanos() as u64 / n;
        let processor = (processor() - self.processor) / n;
        println!("{name}\t{n}\t{clock}\t{processor}");
    }
}

/// The key of number `n`: in order, or scattered by a bijection of the numbers.
fn key(n: u64, random: bool) -> [u8; KEY] {
    let n = if random {
        n.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    } else {
        n
    };
    let mut key = [b'k'; KEY];
    key[..8].copy_from_slice(&n.to_be_bytes());
    key
}

fn puts(db: &Db, numbers: std::ops::Range<u64>, each: u64, random: bool) -> Result<(), Error> {
    let mut from = numbers.start;
    while from < numbers.end {
        let mut tx = db.begin_write()?;
        let mut bucket = tx.create_bucket_if_not_exists(BUCKET)?;
        for n in from..from + each {
            bucket.put(&key(n, random), &[7; VALUE])?;
        }
        tx.commit()?;
        from += each;
    }
    Ok(())
}

fn fresh(folder: &Path, name: &str) -> Result<(PathBuf, Db), Error> {
    let path = folder.join(format!("{name}.db"));
    drop(std::fs::remove_file(&path));
    let db = Db::open(&path, Options::default())?;
    Ok((path, db))
}

fn writes(folder: &Path) -> Result<(), Error> {
    for (random, order) in [(false, "in order"), (true, "random")] {
        for (each, n) in [(1, 1_000), (100, 100_000), (10_000, 400_000)] {
            let (path, db) = fresh(folder, "puts")?;
            let meter = Meter::start();
            puts(&db, 0..n, each, random)?;
            meter.report(&format!("puts {order}, {each} a transaction"), n);
            drop(db);
            drop(std::fs::remove_file(path));
        }
    }
    Ok(())
}

fn reads(folder: &Path) -> Result<(), Error> {
    let (path, db) = fresh(folder, "reads")?;
    puts(&db, 0..KEYS, 10_000, true)?;
    let tx = db.begin_read()?;
    let bucket = tx.bucket(BUCKET)?.ok_or(Error::BucketNotFound)?;
    let n = 1_000_000;
    // Once for the page cache.
    bucket.iter().count();
    let meter = Meter::start();
    for i in 0..n {
        let key = key(i * 7919 % KEYS, true);
        std::hint::black_box(bucket.get(&key)?.ok_or(Error::KeyRequired)?);
    }
    meter.report("random gets", n);
    let meter = Meter::start();
    for _ in 0..5 {
        let mut entries = bucket.cursor();
        while let Some(entry) = entries.next()? {
            std::hint::black_box(entry);
        }
    }
    meter.report("scan, a key", 5 * KEYS);
    drop(tx);
    let meter = Meter::start();
    for from in (0..KEYS).step_by(10_000) {
        let mut tx = db.begin_write()?;
        let mut bucket = tx.bucket_mut(BUCKET)?;
        for n in (from..from + 10_000).step_by(2) {
            bucket.delete(&key(n, true))?;
        }
        tx.commit()?;
    }
    puts(&db, KEYS..KEYS + KEYS / 2, 10_000, true)?;
    meter.report("delete half and refill, a key", KEYS);
    drop(db);
    for (stored, name) in [
        (true, "open, list stored"),
        (false, "open, list not stored"),
    ] {
        let options = Options {
            no_freelist_sync: !stored,
            ..Options::default()
        };
        // The commit leaves the file as the next open finds it.
        Db::open(&path, options.clone())?.begin_write()?.commit()?;
        let meter = Meter::start();
        let db = Db::open(&path, options)?;
        drop(db.begin_write()?);
        meter.report(name, 1);
    }
    drop(std::fs::remove_file(path));
    Ok(())
}

/// A file with a million free pages, most of them a hole in it.
fn roomy(folder: &Path, stored: bool) -> Result<PathBuf, Error> {
    let name = if stored { "free-stored" } else { "free-bare" };
    let (path, db) = fresh(folder, name)?;
    puts(&db, 0..1, 1, false)?;
    drop(db);
    let used = 64;
    let list_pages = (16 + 8 * (FREE + 1)).div_ceil(4096);
    let list = used + FREE;
    let file = OpenOptions::new().write(true).open(&path);
    let failed = |source| Error::Io {
        action: "make a file with free pages".to_owned(),
        source,
    };
    let file = file.map_err(failed)?;
    let mut page = Vec::new();
    page.extend_from_slice(&list.to_le_bytes());
    page.extend_from_slice(&0x10u16.to_le_bytes());
    page.extend_from_slice(&0xFFFFu16.to_le_bytes());
    page.extend_from_slice(&(list_pages as u32 - 1).to_le_bytes());
    page.extend_from_slice(&FREE.to_le_bytes());
    for id in used..used + FREE {
        page.extend_from_slice(&id.to_le_bytes());
    }
    file.write_all_at(&page, list * 4096).map_err(failed)?;
    file.set_len((list + list_pages + 1) * 4096)
        .map_err(failed)?;
    for at in [0, 4096] {
        let mut meta = RawMeta::read_at(&path, at)?;
        meta.high_water = PageId(list + list_pages);
        meta.freelist = PageId(if stored { list } else { u64::MAX });
        meta.mend();
        meta.write_at(&path, at)?;
    }
    Ok(path)
}

fn commits(folder: &Path) -> Result<(), Error> {
    for (stored, name) in [
        (true, "small commit, a million free pages, list stored"),
        (false, "small commit, a million free pages, list not stored"),
    ] {
        let path = roomy(folder, stored)?;
        let options = Options {
            no_freelist_sync: !stored,
            ..Options::default()
        };
        let db = Db::open(&path, options)?;
        db.wait_for_freelist()?;
        puts(&db, 0..10, 1, false)?;
        let n = 100;
        let meter = Meter::start();
        puts(&db, 0..n, 1, false)?;
        meter.report(name, n);
        drop(db);
        drop(std::fs::remove_file(path));
    }
    Ok(())
}

fn run(folder: &Path, work: &str) -> Result<(), Error> {
    if ["", "writes"].contains(&work) {
        writes(folder)?;
    }
    if ["", "reads"].contains(&work) {
        reads(folder)?;
    }
    if ["", "commits"].contains(&work) {
        commits(folder)?;
    }
    if work == "make" {
        roomy(folder, true)?;
        roomy(folder, false)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let work = arguments.get(1).map_or("", String::as_str);
    let Some(folder) = arguments.first() else {
        eprintln!("usage: measure FOLDER [writes|reads|commits|make]");
        return ExitCode::FAILURE;
    };
    match run(Path::new(folder), work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
