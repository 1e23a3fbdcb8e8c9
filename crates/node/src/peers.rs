//! The other members, as far as consensus is concerned.

use keelson_proto::message::Message;

/// Sends messages to other members; what cannot be sent is lost, which consensus allows for.
pub trait Peers: Send + Sync + 'static {
    /// Takes messages, in order. Must not block.
    fn send(&self, messages: Vec<Message>);
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
}
