//! Everything that can be done with a file, sound or not; `fuzz/` uses it too.

use keelson_bolt::{Bucket, Cursor, Db, Error, MemStorage, Options, check, compact};

/// Opens a bucket by its name.
type Find<'a, 'tx> = dyn Fn(&[u8]) -> Result<Option<Bucket<'tx>>, Error> + 'a;

/// Goes through all of a bucket, both ways, bounded in steps: a loop of pages may repeat what it
/// holds before it is found out.
fn walk<'tx>(mut cursor: Cursor<'tx>, bucket: &Find<'_, 'tx>, left: &mut u32) -> Result<(), Error> {
    while let Some((key, value)) = cursor.next()? {
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        if value.is_none()
            && let Some(found) = bucket(key)?
        {
            walk(found.cursor(), &|name| found.bucket(name), left)?;
        }
    }
    cursor.last()?;
    for _ in 0..2000 {
        cursor.prev()?;
    }
    cursor.seek(b"key00150")?;
    Ok(())
}

/// Does everything that can be done with a file.
pub(crate) fn exercise(contents: &[u8], options: &Options) -> Result<(), Error> {
    let storage = MemStorage::with_contents(contents);
    let db = Db::open_storage(Box::new(storage.clone()), options.clone())?;
    let tx = db.begin_read()?;
    let problems = check(&tx);
    let walked = walk(tx.cursor(), &|name| tx.bucket(name), &mut 100_000);
    if options.read_only {
        walked?;
        let dst = Db::open_storage(Box::new(MemStorage::new()), Options::default())?;
        // A copy of a sound file must work; of a damaged one it ends in any way.
        let copied = compact(&db, &dst, 65_536, 1.0);
        assert!(copied.is_ok() || !problems.is_empty(), "{copied:?}");
        return Ok(());
    }
    drop(walked);
    let mut write = db.begin_write()?;
    if let Ok(mut bucket) = write.bucket_mut(b"a") {
        for i in 0..300u32 {
            let key = format!("key{i:05}");
            let result = if i % 3 == 0 {
                bucket.put(key.as_bytes(), &[1; 60])
            } else {
                bucket.delete(key.as_bytes())
            };
            if result.is_err() {
                break;
            }
        }
        drop(bucket.delete_bucket(b"inner"));
    }
    drop(write.delete_bucket(b"b"));
    write.commit()?;
    drop(tx);
    let mut write = db.begin_write()?;
    let mut part = write.savepoint();
    drop(part.delete_bucket(b"a"));
    drop(part);
    write
        .create_bucket_if_not_exists(b"c")?
        .put(b"k", &[1; 3000])?;
    drop(write.move_bucket(&[b"a"], &[b"c"]));
    write.commit()?;
    db.shrink()?;
    Ok(())
}
