//! The frames of the two kinds of stream: encoders that append to a buffer, and decoders that take
//! bytes as they come and give whole messages.
//!
//! 1. Nothing is allocated for a length that was only announced: a decoder holds what has arrived.
//! 2. A frame past `FRAME_BYTES_MAX` is an error as soon as its length is known.
//! 3. A decoder never looks twice at what it has passed, so that many small pieces cost no more than
//!    one large one.
//!
//! # Source
//!
//! `rafthttp/{message_codec,msgappv2_codec}.go` of etcd 3.7; `spec` of the wire: a `message` frame is
//! a length (eight bytes, big-endian) and a message; a `msgapp` frame begins with its kind.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use keelson_proto::entry::Entry;
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};
use keelson_proto::rpc::raftpb;
use prost::Message as _;
use thiserror::Error;

/// The longest frame that is taken, in bytes; etcd's limit.
pub(crate) const FRAME_BYTES_MAX: u64 = 512 << 20;

/// The longest message that may stand before a snapshot's file, in bytes; etcd's limit.
pub(crate) const ENVELOPE_BYTES_MAX: u64 = 64 << 20;

const LINK_HEARTBEAT: u8 = 0;
const APPEND_ENTRIES: u8 = 1;
const WHOLE_MESSAGE: u8 = 2;
const LENGTH_BYTES: usize = 8;

/// Why the bytes of a stream cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Corrupt: a frame claims to be longer than any that is sent.
    #[error("rafthttp: error limit exceeded")]
    TooLong {
        /// What the frame claims, in bytes.
        claimed: u64,
    },
    /// Corrupt: no frame begins with this byte.
    #[error("failed to parse type {kind} in msgappv2 stream")]
    UnknownFrame {
        /// The byte.
        kind: u8,
    },
    /// Corrupt: what the frame holds cannot be decoded.
    #[error(transparent)]
    Content(#[from] keelson_proto::Error),
    /// Corrupt: the stream's positions pass the largest number.
    #[error("the stream's log position overflows")]
    Position,
}

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Every message.
    Message,
    /// Appends only, in short form where they continue one another.
    Append,
}

impl StreamKind {
    /// Its last folder in the path of the request.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            StreamKind::Message => "message",
            StreamKind::Append => "msgapp",
        }
    }

    /// Its name in logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            StreamKind::Message => "stream Message",
            StreamKind::Append => "stream MsgApp v2",
        }
    }
}

/// Whether this is the sign of life of a connection, which consensus never sees.
#[must_use]
pub fn is_link_heartbeat(message: &Message) -> bool {
    message.kind == MessageKind::Heartbeat && message.from.is_none() && message.to.is_none()
}

fn link_heartbeat() -> Message {
    Message {
        kind: MessageKind::Heartbeat,
        ..Message::default()
    }
}

/// Appends a length and what `write` writes after it.
fn with_length(buffer: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    let start = buffer.len();
    buffer.put_u64(0);
    write(buffer);
    let length = (buffer.len() - start - LENGTH_BYTES) as u64;
    buffer[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
}

/// Appends a message with its length before it: a frame of the message stream, and what goes before
/// a snapshot's file.
pub(crate) fn put_message(buffer: &mut BytesMut, message: &Message) {
    let wire: raftpb::Message = message.into();
    with_length(buffer, |buffer| {
        wire.encode(buffer)
            .expect("the buffer grows, so it does not run out of room");
    });
}

/// Writes the frames of one stream.
#[derive(Debug)]
pub struct Encoder {
    kind: StreamKind,
    position: Position,
}

/// Where an append stream stands: what the next short frame continues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    term: Term,
    index: LogIndex,
}

impl Position {
    /// After a whole message.
    fn after(message: &Message) -> Position {
        Position {
            term: message.term,
            index: message
                .entries
                .last()
                .map_or(message.index, |entry| entry.index),
        }
    }
}

impl Encoder {
    /// For a new connection.
    #[must_use]
    pub fn new(kind: StreamKind) -> Encoder {
        Encoder {
            kind,
            position: Position::default(),
        }
    }

    /// Appends the sign of life.
    pub fn heartbeat(&mut self, buffer: &mut BytesMut) {
        match self.kind {
            StreamKind::Message => put_message(buffer, &link_heartbeat()),
            StreamKind::Append => buffer.put_u8(LINK_HEARTBEAT),
        }
    }

    /// Appends one message. An append stream takes appends only.
    ///
    /// # Panics
    ///
    /// If another message is given to an append stream.
    pub fn encode(&mut self, message: &Message, buffer: &mut BytesMut) {
        if self.kind == StreamKind::Message {
            return put_message(buffer, message);
        }
        assert!(
            message.kind == MessageKind::App,
            "an append stream carries appends, not {:?}",
            message.kind
        );
        let at = self.position;
        let continues = at.index == message.index
            && at.term == message.log_term
            && message.log_term == message.term;
        if !continues {
            buffer.put_u8(WHOLE_MESSAGE);
            put_message(buffer, message);
            self.position = Position::after(message);
            return;
        }
        buffer.put_u8(APPEND_ENTRIES);
        buffer.put_u64(message.entries.len() as u64);
        for entry in &message.entries {
            with_length(buffer, |buffer| entry.encode(buffer));
        }
        buffer.put_u64(message.commit.0);
        let count = message.entries.len() as u64;
        self.position.index = LogIndex(self.position.index.0.saturating_add(count));
    }
}

/// Reads the frames of one stream.
#[derive(Debug)]
pub struct Decoder {
    kind: StreamKind,
    local: MemberId,
    remote: MemberId,
    position: Position,
    buffer: BytesMut,
    entries: Option<Entries>,
}

/// A frame of entries of which a part has arrived: the buffer begins with its next entry.
#[derive(Debug, Default)]
struct Entries {
    left: u64,
    bytes: u64,
    taken: Vec<Entry>,
}

impl Decoder {
    /// For a new connection from `remote`, which sends to `local`: short frames name neither.
    #[must_use]
    pub fn new(kind: StreamKind, local: MemberId, remote: MemberId) -> Decoder {
        Decoder {
            kind,
            local,
            remote,
            position: Position::default(),
            buffer: BytesMut::new(),
            entries: None,
        }
    }

    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether bytes of an unfinished frame are waiting for more.
    #[must_use]
    pub fn is_inside_frame(&self) -> bool {
        !self.buffer.is_empty() || self.entries.is_some()
    }

    /// The next whole message; `None` where more bytes are needed. A sign of life is given too.
    ///
    /// # Errors
    ///
    /// [`CodecError`]; the connection is of no more use.
    pub fn next_message(&mut self) -> Result<Option<Message>, CodecError> {
        if self.kind == StreamKind::Message {
            return self.whole(0);
        }
        if self.entries.is_some() {
            return self.append();
        }
        let Some(&kind) = self.buffer.first() else {
            return Ok(None);
        };
        match kind {
            LINK_HEARTBEAT => {
                self.buffer.advance(1);
                Ok(Some(link_heartbeat()))
            }
            APPEND_ENTRIES => {
                let Some(left) = self.number(1) else {
                    return Ok(None);
                };
                // Each entry has a length before it.
                within(left.saturating_mul(LENGTH_BYTES as u64), FRAME_BYTES_MAX)?;
                self.buffer.advance(1 + LENGTH_BYTES);
                self.entries = Some(Entries {
                    left,
                    ..Entries::default()
                });
                self.append()
            }
            WHOLE_MESSAGE => {
                let message = self.whole(1)?;
                if let Some(message) = &message {
                    self.position = Position::after(message);
                }
                Ok(message)
            }
            kind => Err(CodecError::UnknownFrame { kind }),
        }
    }

    /// A message after `skip` bytes.
    fn whole(&mut self, skip: usize) -> Result<Option<Message>, CodecError> {
        match self.number(skip) {
            None => Ok(None),
            Some(length) => {
                let length = within(length, FRAME_BYTES_MAX)?;
                match self.take(skip + LENGTH_BYTES, length) {
                    None => Ok(None),
                    Some(bytes) => Ok(Some(Message::decode(bytes)?)),
                }
            }
        }
    }

    /// Goes on with a frame of entries.
    fn append(&mut self) -> Result<Option<Message>, CodecError> {
        let mut frame = self.entries.take().unwrap_or_default();
        while frame.left > 0 {
            let Some(length) = self.number(0) else {
                self.entries = Some(frame);
                return Ok(None);
            };
            let size = within(length, FRAME_BYTES_MAX)?;
            let bytes = frame.bytes.saturating_add(length + LENGTH_BYTES as u64);
            within(bytes, FRAME_BYTES_MAX)?;
            let Some(entry) = self.take(LENGTH_BYTES, size) else {
                self.entries = Some(frame);
                return Ok(None);
            };
            frame.taken.push(Entry::decode(entry)?);
            frame.left -= 1;
            frame.bytes = bytes;
        }
        let Some(commit) = self.number(0) else {
            self.entries = Some(frame);
            return Ok(None);
        };
        self.buffer.advance(LENGTH_BYTES);
        let Position { term, index } = self.position;
        let count = frame.taken.len() as u64;
        let next = index.0.checked_add(count).ok_or(CodecError::Position)?;
        self.position.index = LogIndex(next);
        Ok(Some(Message {
            kind: MessageKind::App,
            to: self.local,
            from: self.remote,
            term,
            log_term: term,
            index,
            entries: frame.taken,
            commit: LogIndex(commit),
            ..Message::default()
        }))
    }

    /// The number `at` bytes from here, once it has arrived.
    fn number(&self, at: usize) -> Option<u64> {
        let bytes = self.buffer.get(at..at + LENGTH_BYTES)?;
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    }

    /// `length` bytes after `skip`, once they have arrived; both are gone from the buffer then.
    fn take(&mut self, skip: usize, length: usize) -> Option<Bytes> {
        if self.buffer.len() - skip < length {
            return None;
        }
        self.buffer.advance(skip);
        Some(self.buffer.split_to(length).freeze())
    }
}

/// Checks a length from the wire against its limit.
pub(crate) fn within(claimed: u64, limit: u64) -> Result<usize, CodecError> {
    if claimed > limit {
        return Err(CodecError::TooLong { claimed });
    }
    usize::try_from(claimed).map_err(|_| CodecError::TooLong { claimed })
}

#[cfg(test)]
mod tests;
