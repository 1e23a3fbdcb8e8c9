//! An embedded key-value engine over the bbolt file format.
//!
//! One file, one writer, any number of readers; a commit is durable and all or nothing. The file
//! is readable by bbolt and the other way round. See the crate's README for how it is put together
//! and `docs/format/bolt.md` for the format.
//!
//! ```
//! use keelson_bolt::{Db, MemStorage, Options};
//!
//! # fn main() -> Result<(), keelson_bolt::Error> {
//! // `Db::open` does the same with a file.
//! let db = Db::open_storage(Box::new(MemStorage::new()), Options::default())?;
//! let mut tx = db.begin_write()?;
//! let mut fruit = tx.create_bucket_if_not_exists(b"fruit")?;
//! fruit.put(b"apple", b"red")?;
//! tx.commit()?;
//!
//! let tx = db.begin_read()?;
//! let fruit = tx.bucket(b"fruit")?.expect("it was committed");
//! assert_eq!(fruit.get(b"apple")?, Some(&b"red"[..]));
//! # Ok(())
//! # }
//! ```
//!
//! # What the compiler keeps from happening
//!
//! A key or a value is a borrow from its transaction, so it cannot outlive it:
//!
//! ```compile_fail,E0505
//! # use keelson_bolt::{Db, Error};
//! # fn f(db: &Db) -> Result<(), Error> {
//! let tx = db.begin_read()?;
//! let value = tx.bucket(b"fruit")?.unwrap().get(b"apple")?;
//! drop(tx);
//! println!("{value:?}");
//! # Ok(())
//! # }
//! ```
//!
//! Neither can a cursor or an iterator:
//!
//! ```compile_fail,E0597
//! # use keelson_bolt::{Cursor, Db, Error};
//! # fn f(db: &Db) -> Result<(), Error> {
//! let mut cursor: Cursor<'_>;
//! {
//!     let tx = db.begin_read()?;
//!     cursor = tx.bucket(b"fruit")?.unwrap().cursor();
//! }
//! cursor.first()?;
//! # Ok(())
//! # }
//! ```
//!
//! Nor can it be held across a change:
//!
//! ```compile_fail,E0502
//! # use keelson_bolt::{Db, Error};
//! # fn f(db: &Db) -> Result<(), Error> {
//! let mut tx = db.begin_write()?;
//! let mut fruit = tx.bucket_mut(b"fruit")?;
//! let value = fruit.get(b"apple")?;
//! fruit.put(b"apple", b"green")?;
//! println!("{value:?}");
//! # Ok(())
//! # }
//! ```
//!
//! A transaction is gone when it is committed:
//!
//! ```compile_fail,E0382
//! # use keelson_bolt::{Db, Error};
//! # fn f(db: &Db) -> Result<(), Error> {
//! let mut tx = db.begin_write()?;
//! tx.commit()?;
//! tx.create_bucket(b"late")?;
//! # Ok(())
//! # }
//! ```
//!
//! While a savepoint is open the outer transaction is out of reach:
//!
//! ```compile_fail,E0499
//! # use keelson_bolt::{Db, Error};
//! # fn f(db: &Db) -> Result<(), Error> {
//! let mut tx = db.begin_write()?;
//! let part = tx.savepoint();
//! tx.create_bucket(b"outer")?;
//! part.release();
//! # Ok(())
//! # }
//! ```

mod arena;
mod batch;
mod bucket;
mod check;
mod commit;
mod compact;
mod cursor;
mod cursor_mut;
mod db;
mod dirty;
mod error;
mod freelist;
mod id;
mod key;
mod map;
mod mem;
mod meta;
mod node;
mod open;
mod options;
mod page;
mod range;
mod read_tx;
mod savepoint;
mod shrink;
mod source;
mod stats;
mod storage;
pub mod surgery;
mod sync;
mod tree;
mod work;
mod write_tx;

pub use bucket::Bucket;
pub use check::{CheckOptions, Problem, Repair, check, check_with};
pub use commit::{Committed, Step};
pub use compact::compact;
pub use cursor::{Cursor, Entry};
pub use cursor_mut::CursorMut;
pub use db::Db;
pub use error::{Damage, Error};
pub use freelist::FreelistKind;
pub use id::{PageId, TxId};
pub use mem::MemStorage;
pub use options::Options;
pub use range::Range;
pub use read_tx::{PageInfo, ReadTx};
pub use savepoint::Savepoint;
pub use shrink::Shrunk;
pub use stats::{BucketStats, Stats};
pub use storage::{FileStorage, Storage, View};
pub use write_tx::{BucketMut, WriteTx};

/// Longest key in bytes.
pub const MAX_KEY_SIZE: usize = 32768;
/// Longest value in bytes.
pub const MAX_VALUE_SIZE: usize = (1 << 31) - 2;
/// Deepest nesting of buckets; deeper files are taken for damaged.
pub const MAX_NESTING: usize = 512;
/// How full pages are left by a split unless set.
pub const DEFAULT_FILL: f64 = 0.5;
/// Deepest tree of pages: a sound one has at least two children a branch, so it has fewer levels
/// than a page number has bits.
pub(crate) const MAX_DEPTH: usize = 64;
