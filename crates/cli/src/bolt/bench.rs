//! bench: writes, then reads, and the time an operation takes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use keelson_bolt::{Bucket, Db, Error, Options};

use super::args::Call;
use super::{Output, text};

/// The bucket that everything is in.
const BUCKET: &[u8] = b"bench";
/// Reads are repeated for so long.
const READ_TIME: Duration = Duration::from_secs(1);

struct Bench {
    path: PathBuf,
    count: u64,
    batch_size: u64,
    key_size: usize,
    value_size: usize,
    random_writes: bool,
    nested: bool,
    fill_percent: f64,
    options: Options,
    random: u64,
}

/// A key with the bucket that it is in, if that is a nested one.
type Key = (Option<[u8; 8]>, Vec<u8>);

#[derive(Default)]
struct Measured {
    operations: u64,
    time: Duration,
}

impl Measured {
    /// Nanoseconds an operation took.
    fn each(&self) -> u128 {
        match self.operations {
            0 => 0,
            n => self.time.as_nanos() / u128::from(n),
        }
    }

    fn line(&self, name: &str) -> String {
        let each = self.each();
        let rate = 1_000_000_000u128.checked_div(each).unwrap_or(0);
        format!(
            "# {name}\t{}(ops)\t{}\t({}/op)\t({rate} op/sec)\n",
            self.operations,
            text::duration(self.time.as_nanos()),
            text::duration(each),
        )
    }

    fn go_line(&self, name: &str) -> String {
        format!(
            "{name:<14}\t{:>8}\t{:>10} ns/op\n",
            self.operations,
            self.each()
        )
    }
}

pub(super) fn bench(call: &Call, output: &mut Output<'_>) -> Result<()> {
    let mut bench = Bench::new(call)?;
    for flag in ["cpuprofile", "memprofile", "blockprofile"] {
        ensure!(
            call.text(flag).is_empty(),
            "--{flag} is of Go's run time; a profiler of the system does it for any program"
        );
    }
    let keep = call.is_set("work");
    if keep {
        writeln!(output.err, "work: {}", bench.path.display())?;
    }
    let result = bench.run(call, output);
    if !keep {
        std::fs::remove_file(&bench.path).context("remove the database")?;
    }
    let (writes, reads) = result?;
    if call.is_set("gobench-output") {
        write!(output.out, "{}", writes.go_line("BenchmarkWrite"))?;
        write!(output.out, "{}", reads.go_line("BenchmarkRead"))?;
    } else {
        write!(output.out, "{}{}", writes.line("Write"), reads.line("Read"))?;
    }
    writeln!(output.out)?;
    Ok(())
}

impl Bench {
    fn new(call: &Call) -> Result<Bench> {
        let count = call.number::<u64>("count");
        let batch_size = match call.number::<u64>("batch-size") {
            0 => count,
            size => size,
        };
        ensure!(
            batch_size > 0 && count.is_multiple_of(batch_size),
            "the number of iterations must be divisible by the batch size"
        );
        let (random_writes, nested) = match call.text("write-mode") {
            "seq" => (false, false),
            "rnd" => (true, false),
            "seq-nest" => (false, true),
            "rnd-nest" => (true, true),
            _ => bail!("the write mode should be one of seq, rnd, seq-nest, or rnd-nest"),
        };
        ensure!(
            ["seq", "rnd"].contains(&call.text("read-mode")),
            "invalid read mode: {}",
            call.text("read-mode")
        );
        let key_size = call.number::<usize>("key-size");
        ensure!(
            key_size >= 4,
            "the key size must be at least 4, but got {key_size}"
        );
        let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let random = u64::try_from(started.as_nanos() & u128::from(u64::MAX))?;
        let path = match call.text("path") {
            "" => std::env::temp_dir().join(format!("bolt-bench-{random:x}")),
            path => PathBuf::from(path),
        };
        let options = Options {
            page_size: Some(call.number("page-size")),
            initial_map_size: call.number("initial-mmap-size"),
            no_sync: call.is_set("no-sync"),
            ..Options::default()
        };
        Ok(Bench {
            path,
            count,
            batch_size,
            key_size,
            value_size: call.number("value-size"),
            random_writes,
            nested,
            fill_percent: call.text("fill-percent").parse()?,
            options,
            random,
        })
    }

    fn run(&mut self, call: &Call, output: &mut Output<'_>) -> Result<(Measured, Measured)> {
        let db = Db::open(&self.path, self.options.clone())?;
        writeln!(output.err, "starting write benchmark.")?;
        let started = Instant::now();
        let mut keys = Vec::new();
        for batch in 0..self.count / self.batch_size {
            self.write(&db, batch, &mut keys).context("write")?;
        }
        let writes = Measured {
            operations: self.count,
            time: started.elapsed(),
        };
        for at in (1..keys.len()).rev() {
            let other = usize::try_from(self.next() % (at as u64 + 1))?;
            keys.swap(at, other);
        }
        writeln!(output.err, "starting read benchmark.")?;
        let in_order = call.text("read-mode") == "seq";
        let reads = self.read(&db, &keys, in_order).context("bench: read")?;
        Ok((writes, reads))
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn write(&mut self, db: &Db, batch: u64, keys: &mut Vec<Key>) -> Result<()> {
        let mut tx = db.begin_write()?;
        let mut top = tx.create_bucket_if_not_exists(BUCKET)?;
        top.set_fill_percent(self.fill_percent);
        let name = self.nested.then(|| batch.to_be_bytes());
        let mut inner;
        let bucket = match &name {
            Some(name) => {
                inner = top.create_bucket_if_not_exists(name)?;
                inner.set_fill_percent(self.fill_percent);
                &mut inner
            }
            None => &mut top,
        };
        let value = vec![0; self.value_size];
        for i in 0..self.batch_size {
            let number = match self.random_writes {
                true => self.next() >> 32,
                false => batch * self.batch_size + i + 1,
            };
            let mut key = vec![0; self.key_size];
            let number = (number & u64::from(u32::MAX)) as u32;
            key[..4].copy_from_slice(&number.to_be_bytes());
            bucket.put(&key, &value)?;
            keys.push((name, key));
        }
        tx.commit()?;
        Ok(())
    }

    fn read(&self, db: &Db, keys: &[Key], in_order: bool) -> Result<Measured, Error> {
        let tx = db.begin_read()?;
        let top = tx.bucket(BUCKET)?.ok_or(Error::BucketNotFound)?;
        let started = Instant::now();
        let mut operations = 0;
        while operations == 0 || started.elapsed() < READ_TIME {
            operations += if in_order {
                scan(&top)?
            } else {
                get(&top, keys)?
            };
            if keys.is_empty() {
                break;
            }
        }
        Ok(Measured {
            operations,
            time: started.elapsed(),
        })
    }
}

fn scan(bucket: &Bucket<'_>) -> Result<u64, Error> {
    let mut seen = 0;
    let mut entries = bucket.cursor();
    while let Some((key, value)) = entries.next()? {
        seen += match value {
            Some(value) => u64::from(std::hint::black_box(value).as_ptr() as usize != 0),
            None => match bucket.bucket(key)? {
                Some(inner) => scan(&inner)?,
                None => 0,
            },
        };
    }
    Ok(seen)
}

fn get(top: &Bucket<'_>, keys: &[Key]) -> Result<u64, Error> {
    for (name, key) in keys {
        let bucket = match name {
            Some(name) => top.bucket(name)?.ok_or(Error::BucketNotFound)?,
            None => *top,
        };
        std::hint::black_box(bucket.get(key)?.ok_or(Error::KeyRequired)?);
    }
    Ok(keys.len() as u64)
}
