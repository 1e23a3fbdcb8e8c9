//! Random work on a database file, and a listing of what is in one: `tests/compat` compares the
//! listing with what bbolt reads, and lets bbolt write in between.
//!
//! ```text
//! exchange write FILE SEED    some transactions of random work
//! exchange list FILE          every bucket and key, a line each
//! ```
#![expect(clippy::print_stdout, reason = "a program")]

use std::path::Path;
use std::process::ExitCode;

use keelson_bolt::{Bucket, BucketMut, Db, Error, FreelistKind, Options, WriteTx, check};

/// SplitMix64: a seed is a workload.
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

fn name(random: &mut Random) -> Vec<u8> {
    format!("bucket{}", random.below(4)).into_bytes()
}

fn fill(random: &mut Random, bucket: &mut BucketMut<'_>) -> Result<(), Error> {
    bucket.set_fill_percent([0.5, 0.9, 1.0, 0.1][random.below(4) as usize]);
    let from = random.below(3000);
    for i in 0..random.below(300) {
        let key = format!("key{:06}", from + i * (1 + random.below(3))).into_bytes();
        match random.below(10) {
            0..4 => bucket.delete(&key)?,
            _ => {
                let long = random.below(60) == 0;
                let len = random.below(if long { 20_000 } else { 200 });
                bucket.put(&key, &vec![random.next() as u8; len as usize])?;
            }
        }
    }
    if random.below(3) == 0 {
        bucket.next_sequence();
    }
    Ok(())
}

/// One change somewhere in the top two levels.
fn change(random: &mut Random, tx: &mut WriteTx<'_>) -> Result<(), Error> {
    let (outer, inner) = (name(random), name(random));
    match random.below(12) {
        0 if tx.bucket(&outer)?.is_some() => tx.delete_bucket(&outer)?,
        1 => {
            let moved = tx.move_bucket(&[&outer, &inner], &[]);
            if let Err(error) = moved
                && !matches!(error, Error::BucketNotFound | Error::BucketExists)
            {
                return Err(error);
            }
        }
        2..6 => {
            let mut bucket = tx.create_bucket_if_not_exists(&outer)?;
            fill(random, &mut bucket.create_bucket_if_not_exists(&inner)?)?;
        }
        _ => fill(random, &mut tx.create_bucket_if_not_exists(&outer)?)?,
    }
    Ok(())
}

fn write(path: &Path, seed: u64) -> Result<(), Error> {
    let mut random = Random(seed);
    let options = Options {
        page_size: Some([1024, 4096, 16384][random.below(3) as usize]),
        freelist: [FreelistKind::Array, FreelistKind::Map][random.below(2) as usize],
        no_freelist_sync: random.below(2) == 0,
        no_sync: true,
        ..Options::default()
    };
    let db = Db::open(path, options)?;
    for _ in 0..1 + random.below(8) {
        let mut tx = db.begin_write()?;
        for _ in 0..random.below(6) {
            let mut part = tx.savepoint();
            change(&mut random, &mut part)?;
            if random.below(4) > 0 {
                part.release();
            }
        }
        if random.below(5) > 0 {
            tx.commit()?;
        }
    }
    if random.below(3) == 0 {
        db.shrink()?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn list(bucket: &Bucket<'_>, path: &str) -> Result<(), Error> {
    for entry in bucket.iter() {
        let (key, value) = entry?;
        let path = format!("{path}/{}", hex(key));
        match value {
            Some(value) => println!("{path} {}", hex(value)),
            None => {
                if let Some(inner) = bucket.bucket(key)? {
                    println!("{path} bucket {}", inner.sequence());
                    list(&inner, &path)?;
                }
            }
        }
    }
    Ok(())
}

fn run(arguments: &[String]) -> Result<(), String> {
    let told = |error: Error| error.to_string();
    match arguments {
        [work, file, seed] if work == "write" => {
            let seed = seed.parse().map_err(|_| format!("no seed: {seed}"))?;
            write(Path::new(file), seed).map_err(told)
        }
        [work, file] if work == "list" => {
            let options = Options {
                read_only: true,
                ..Options::default()
            };
            let db = Db::open(Path::new(file), options).map_err(told)?;
            let tx = db.begin_read().map_err(told)?;
            if let Some(problem) = check(&tx).first() {
                return Err(problem.to_string());
            }
            let top = tx.bucket_path(&[]).map_err(told)?;
            top.map_or(Ok(()), |top| list(&top, "")).map_err(told)
        }
        _ => Err("usage: exchange write FILE SEED | exchange list FILE".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
