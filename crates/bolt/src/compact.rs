//! Copying a database into a new file, without its free pages (formats 1.15).

use crate::bucket::Bucket;
use crate::cursor::Cursor;
use crate::db::Db;
use crate::write_tx::{BucketMut, WriteTx};
use crate::{Damage, Error, MAX_NESTING, PageId};

/// What an entry of a leaf takes at least, in bytes: its element.
const ENTRY_BYTES_MIN: u64 = 16;

/// Copies everything of `src` as of now into `dst`, which is new: buckets, sequences and values in
/// key order, pages filled to `fill_percent`. `dst` is committed whenever a transaction would take
/// more than `tx_max_bytes` of keys and values; 0 makes it one transaction.
///
/// # Errors
/// `Corrupt` if `src` is damaged; whatever `dst` refuses.
pub fn compact(src: &Db, dst: &Db, tx_max_bytes: u64, fill_percent: f64) -> Result<(), Error> {
    let tx = src.begin_read()?;
    let mut copy = Copy {
        dst,
        tx: Some(dst.begin_write()?),
        path: Vec::new(),
        bytes: 0,
        tx_max_bytes,
        fill_percent,
        entries_left: tx.size() / ENTRY_BYTES_MIN,
    };
    let mut names = tx.cursor();
    while let Some((name, _)) = names.next()? {
        copy.count_entry()?;
        if let Some(bucket) = tx.bucket(name)? {
            copy.bucket(name, bucket)?;
        }
    }
    if let Some(tx) = copy.tx.take() {
        tx.commit()?;
    }
    Ok(())
}

struct Copy<'db> {
    dst: &'db Db,
    /// Always there but for the moment between two.
    tx: Option<WriteTx<'db>>,
    /// The bucket that is being filled.
    path: Vec<Vec<u8>>,
    /// Keys and values of the transaction so far.
    bytes: u64,
    tx_max_bytes: u64,
    fill_percent: f64,
    /// How many more entries the file can hold. A damaged one, in which pages are met again and again,
    /// could otherwise be copied without end.
    entries_left: u64,
}

impl<'db> Copy<'db> {
    fn count_entry(&mut self) -> Result<(), Error> {
        let left = self.entries_left.checked_sub(1);
        self.entries_left =
            left.ok_or_else(|| Error::corrupt(PageId(0), Damage::MultipleReferences))?;
        Ok(())
    }

    /// Counts an entry; commits first if the transaction is full.
    fn room(&mut self, bytes: usize) -> Result<(), Error> {
        let bytes = bytes as u64;
        if self.tx_max_bytes > 0 && self.bytes + bytes > self.tx_max_bytes && self.bytes > 0 {
            if let Some(tx) = self.tx.take() {
                tx.commit()?;
            }
            self.tx = Some(self.dst.begin_write()?);
            self.bytes = 0;
        }
        self.bytes += bytes;
        Ok(())
    }

    fn open_tx(&mut self) -> &mut WriteTx<'db> {
        self.tx.as_mut().expect("there is one but inside of `room`")
    }

    /// The bucket at the path, in the transaction of now.
    fn target(&mut self) -> Result<BucketMut<'_>, Error> {
        let fill = self.fill_percent;
        let path: Vec<&[u8]> = self.path.iter().map(Vec::as_slice).collect();
        let tx = self.tx.as_mut().expect("there is one but inside of `room`");
        let mut bucket = tx.bucket_path_mut(&path)?;
        bucket.set_fill_percent(fill);
        Ok(bucket)
    }

    fn bucket(&mut self, name: &[u8], from: Bucket<'_>) -> Result<(), Error> {
        if self.path.len() > MAX_NESTING {
            return Err(Error::TooDeep);
        }
        self.room(name.len())?;
        let mut bucket = match self.path.is_empty() {
            true => self.open_tx().create_bucket(name)?,
            false => self.target()?.into_new_bucket(name)?,
        };
        bucket.set_sequence(from.sequence());
        self.path.push(name.to_vec());
        let mut entries: Cursor<'_> = from.cursor();
        while let Some((key, value)) = entries.next()? {
            self.count_entry()?;
            match value {
                Some(value) => {
                    self.room(key.len() + value.len())?;
                    self.target()?.put(key, value)?;
                }
                None => {
                    if let Some(inner) = from.bucket(key)? {
                        self.bucket(key, inner)?;
                    }
                }
            }
        }
        self.path.pop();
        Ok(())
    }
}
