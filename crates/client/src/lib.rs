//! A client of the etcd v3 API: keys, transactions, watches that resume, leases that are kept
//! alive, users and roles, maintenance.
//!
//! [`Client`] is the door: one or several endpoints, cheap to clone, with a time-out on every call.
//! It knows the wire types of `keelson-proto` and nothing of the server.
//!
//! ```no_run
//! # async fn example() -> Result<(), keelson_client::Error> {
//! use keelson_client::{Client, Get, Put, Watch};
//!
//! let client = Client::connect("http://127.0.0.1:2379,http://127.0.0.1:22379").await?;
//! let mut watcher = client.watch(Watch::prefix("color/")).await?;
//! client.put(Put::new("color/sky", "blue")).await?;
//! let answer = client.get(Get::prefix("color/")).await?;
//! assert_eq!(answer.count, 1);
//! while let Some(batch) = watcher.next().await? {
//!     for event in batch.events {
//!         println!("{event:?}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod auth;
mod balancer;
mod call;
mod client;
mod cluster;
mod endpoint;
mod error;
mod keepalive;
mod kv;
mod lease;
mod maintenance;
mod request;
mod snapshot;
mod subchannel;
mod sync;
mod tls;
mod transport;
mod txn;
mod watch;

pub use auth::Permission;
pub use client::{Client, Options};
pub use cluster::DowngradeAction;
pub use endpoint::Endpoint;
pub use error::Error;
pub use keelson_proto::rpc::{authpb, etcdserverpb, mvccpb};
pub use keelson_proto::{ApiError, Code};
pub use keepalive::{KeepAlive, LeaseState, Renewal};
pub use kv::RangeStream;
pub use request::{Compare, Delete, Get, Op, Order, Put, Relation, SortBy, Span, Txn};
pub use snapshot::Snapshot;
pub use tls::Tls;
pub use watch::{Batch, RawWatch, Watch, Watcher};
