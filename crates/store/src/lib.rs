//! The replicated state machine: keys, leases, auth, membership, alarms.
//!
//! [`Store::apply`] is the only way in: one entry after the other, without a clock, so that the same
//! entries make the same bytes on every member. [`Shared`] is what everybody else reads meanwhile,
//! and [`Committer`] writes to the file what apply has sealed.

mod apply;
mod apply_auth;
mod apply_cluster;
mod apply_raw;
mod change;
mod commit;
mod compaction;
mod counts;
mod disk;
mod error;
mod outcome;
mod pin;
mod restore;
mod shared;
mod store;
mod tail;
mod txn;
mod view;

pub mod alarm;
pub mod auth;
pub mod hash;
pub mod index;
pub mod lease;
pub mod member;
pub mod quota;
pub mod range;
pub mod record;
pub mod revision;
pub mod row;
pub mod schema;
pub mod v2json;
pub mod watch;

pub use commit::{Committer, JobProgress};
pub use compaction::{CompactionJob, Slice};
pub use counts::OpCounts;
pub use disk::{Disk, RealDisk};
pub use error::Error;
pub use keelson_bolt::Step as CommitStep;
pub use outcome::{Answer, Applied, AuthOutcome, Effect, OpOutcome, Outcome};
pub use pin::Pin;
pub use restore::{OpenOptions, Opened, open, open_db, open_on, position};
pub use revision::{BucketKey, Revision};
pub use shared::{Shared, Sizes};
pub use store::{Quota, Store};
pub use tail::{
    Boundary, Durable, EventRange, EventRecord, Record, SEGMENT_BYTES_MAX, Sealed, Segment,
};
pub use txn::read_txn;
pub use view::View;
