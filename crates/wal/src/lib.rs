//! etcd's write-ahead log and `.snap` files, byte for byte.
//!
//! [`Wal`] is the writer, owned by one thread: [`Wal::append`] encodes, [`Wal::commit`] is one
//! vectored write and at most one sync. [`Reader`] walks the records, [`read`] and [`Wal::open`]
//! put them together into a [`Replay`]. [`SnapFiles`] keeps the `.snap` files beside the log.
//!
//! The disk is reached through [`Files`] alone: [`RealFiles`] is the operating system, [`MemFiles`]
//! a model of a disk that can crash. What an entry means is not known here.
//!
//! The formats are described in `docs/format/wal.md` and `docs/format/snap.md`.

mod error;
mod files;
mod frame;
mod mem;
pub mod purge;
mod reader;
mod record;
mod repair;
mod replay;
mod segment;
mod snap;
mod writer;

pub use error::{Class, Error};
pub use files::{Access, File, Files, RealFiles};
pub use mem::{Event, MemFiles};
pub use reader::{Frame, Reader};
pub use record::{Kind, Metadata, Record, SnapshotMark};
pub use repair::{Repair, repair};
pub use replay::{Replay, exists, read, valid_snapshots, verify};
pub use segment::{Fill, Options, Preparer, SEGMENT_BYTES, SegmentName};
pub use snap::{SnapFiles, read_snap};
pub use writer::{Synced, Wal};
