//! The other members, as far as this one is concerned: where messages and snapshots go.

use std::io::{self, Read};
use std::time::Duration;

use keelson_proto::ids::{LogIndex, MemberId};
use keelson_proto::message::Message;
use keelson_store::Durable;
use semver::Version;

/// What is known of another member's release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// It was not asked yet.
    NotAsked,
    /// It was asked, and did not answer.
    Unreachable,
    /// It said so.
    Known(Version),
}

/// The way to other members. Called from the member's threads, and from whichever thread takes a turn of
/// consensus: nothing here may block, and what cannot be done is reported through [`Node`](crate::Node) or forgotten.
pub trait Peers: Send + Sync + 'static {
    /// Takes messages, in order. One that cannot be sent is lost, which consensus allows for; the
    /// sender says so by [`Node::report_unreachable`](crate::Node::report_unreachable).
    fn send(&self, messages: Vec<Message>);

    /// Takes a snapshot for the member that its message names.
    fn send_snapshot(&self, snapshot: OutgoingSnapshot);

    /// A member has come, voter or learner. At the start it is called for every member that is known,
    /// this one left out; later in the order of the entries.
    fn add(&self, member: MemberId, peer_urls: &[String]);

    /// A member has other URLs; it may be one that was never added.
    fn update(&self, member: MemberId, peer_urls: &[String]);

    /// A member has gone for ever.
    fn remove(&self, member: MemberId);

    /// These are the other members now, and nobody else: a snapshot of the leader has taken the place
    /// of the state.
    fn replace(&self, members: Vec<(MemberId, Vec<String>)>);

    /// Since when, on the member's own clock, the connection to a member has been up; `None` while it
    /// is not.
    fn active_since(&self, member: MemberId) -> Option<Duration>;

    /// The release of a member.
    fn release(&self, member: MemberId) -> Release;

    /// Asks a member for the hash of its history up to a revision (`GET /members/hashkv`); the answer
    /// comes by [`Node::report_hash`](crate::Node::report_hash) with the same round. A member that
    /// nobody asks counts as silent, and is not checked.
    fn ask_hash(&self, member: MemberId, revision: i64, round: u64) {
        let _ = (member, revision, round);
    }
}

/// There are no others.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl Peers for NoPeers {
    fn send(&self, messages: Vec<Message>) {
        for message in messages {
            tracing::debug!(to = %message.to, kind = ?message.kind, "a message has nowhere to go");
        }
    }

    fn send_snapshot(&self, snapshot: OutgoingSnapshot) {
        snapshot.finish(false);
    }

    fn add(&self, member: MemberId, _peer_urls: &[String]) {
        tracing::debug!(%member, "a member cannot be reached from here");
    }

    fn update(&self, _member: MemberId, _peer_urls: &[String]) {}

    fn remove(&self, _member: MemberId) {}

    fn replace(&self, _members: Vec<(MemberId, Vec<String>)>) {}

    fn active_since(&self, _member: MemberId) -> Option<Duration> {
        None
    }

    fn release(&self, _member: MemberId) -> Release {
        Release::Unreachable
    }
}

/// Takes the report of how a transfer ended.
type Report = Box<dyn FnOnce(bool) + Send>;

/// A snapshot that is to be sent: the message, and the database file as of the message's index.
///
/// Whoever has it says how the transfer ended, by [`OutgoingSnapshot::finish`]; one that is dropped
/// has failed. The file's pages are kept until then.
pub struct OutgoingSnapshot {
    message: Message,
    durable: Durable,
    report: Option<Report>,
}

impl OutgoingSnapshot {
    pub(crate) fn new(message: Message, durable: Durable, report: Report) -> OutgoingSnapshot {
        OutgoingSnapshot {
            message,
            durable,
            report: Some(report),
        }
    }

    /// The message that goes before the file; its `to` is who gets it.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The last entry that the file holds.
    #[must_use]
    pub fn index(&self) -> LogIndex {
        self.durable.boundary.index
    }

    /// The length of the file, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.durable.read.size()
    }

    /// Reads some bytes of the file at an offset; 0 at its end. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// A file that is damaged or cannot be read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.durable
            .read
            .image_chunk(offset, buffer)
            .map_err(io::Error::other)
    }

    /// Reads the file from its beginning.
    pub fn reader(&self) -> impl Read + '_ {
        SnapshotReader {
            snapshot: self,
            offset: 0,
        }
    }

    /// Says whether the member has taken it in.
    pub fn finish(mut self, delivered: bool) {
        self.report(delivered);
    }

    fn report(&mut self, delivered: bool) {
        if let Some(report) = self.report.take() {
            report(delivered);
        }
    }
}

impl Drop for OutgoingSnapshot {
    fn drop(&mut self) {
        self.report(false);
    }
}

impl std::fmt::Debug for OutgoingSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutgoingSnapshot")
            .field("to", &self.message.to)
            .field("index", &self.index())
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

struct SnapshotReader<'a> {
    snapshot: &'a OutgoingSnapshot,
    offset: u64,
}

impl Read for SnapshotReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.snapshot.read_at(self.offset, buffer)?;
        self.offset += read as u64;
        Ok(read)
    }
}
