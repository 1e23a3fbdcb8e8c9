//! What the member above gives to its peers: where messages go, and who answers the rest.

use std::future::Future;
use std::io::Read;
use std::pin::Pin;

use bytes::Bytes;
use http::{Request, Response};
use keelson_proto::ids::MemberId;
use keelson_proto::message::Message;
use thiserror::Error;

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StepRefused {
    /// Refused: it is for another member.
    #[error("cannot process message to mismatch member")]
    OtherMember,
    /// Refused: who sent it was removed from the cluster.
    #[error("cannot process message from removed member")]
    Removed,
    /// Refused: it brings a snapshot, and has not come with the file.
    #[error("cannot process a snapshot without its database")]
    NoDatabase,
    /// Refused: more messages wait than may.
    #[error("too many messages are waiting")]
    Busy,
    /// Failed: the member stops.
    #[error("raft: stopped")]
    Stopped,
}

/// Why a snapshot was not taken in.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SnapshotRefused {
    /// Refused: its message would not be taken either.
    #[error(transparent)]
    Message(#[from] StepRefused),
    /// Failed: its file could not be stored, or is not usable; in words.
    #[error("{0}")]
    Save(String),
}

/// The member, as its peers see it. Called from the thread that serves peers: nothing but
/// [`Inbound::receive_snapshot`] may block.
pub trait Inbound: Send + Sync + 'static {
    /// Takes a message, to be handled by [`Inbound::stepped`] at the latest. The implementation refuses,
    /// and says so in the log, what is for another member and what comes from a removed one.
    ///
    /// # Errors
    ///
    /// [`StepRefused`]; the sender is told, or over a stream the log is.
    fn step(&self, message: Message) -> Result<(), StepRefused>;

    /// No more messages are there for now: those that were taken are to be handled.
    fn stepped(&self);

    /// Takes a snapshot: its database comes from `body`, and the message is stepped once that is
    /// durable and has been looked at. Called on a thread of its own, and may block.
    ///
    /// `body` ends with an error where the sender broke off, and, from a sender that announces length
    /// and checksum, where they do not match.
    ///
    /// # Errors
    ///
    /// [`SnapshotRefused`]; the sender is told.
    fn receive_snapshot(
        &self,
        message: Message,
        body: &mut dyn Read,
    ) -> Result<(), SnapshotRefused>;

    /// Whether a member was removed from the cluster. Such a one is told so when it dials, and stops.
    fn is_removed(&self, member: MemberId) -> bool;

    /// A message to a member may not have arrived.
    fn report_unreachable(&self, member: MemberId);

    /// Another member says that this one was removed from the cluster: it has to stop.
    fn removed_from_cluster(&self);
}

/// A snapshot on its way out: the reader gives the database, a part at a time, and may block.
pub trait SnapshotBody: Read + Send + 'static {
    /// How many bytes the reader will give.
    fn size(&self) -> u64;

    /// Called once when the transfer is over; one that is dropped without has failed.
    fn finish(self: Box<Self>, delivered: bool);
}

/// What a route answers with, when it is ready.
pub type RouteAnswer = Pin<Box<dyn Future<Output = Response<Bytes>> + Send>>;

/// Answers what peers ask for besides messages: `/members`, `/members/promote/`, `/members/hashkv`,
/// `/leases`, `/leases/internal`, `/downgrade/enabled`, `/version`, and 404 for the rest.
///
/// Runs on the thread that serves peers, so whatever blocks or computes goes elsewhere. Bodies are
/// bounded before they get here ([`ROUTE_BODY_BYTES_MAX`](crate::ROUTE_BODY_BYTES_MAX)).
pub trait Routes: Send + Sync + 'static {
    /// Answers one request.
    fn route(&self, request: Request<Bytes>) -> RouteAnswer;
}
