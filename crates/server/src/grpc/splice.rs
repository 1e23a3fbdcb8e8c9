//! What goes back to the client: messages, as bytes that are ready to be sent.
//!
//! Stored bytes are response bytes (`DESIGN.md` 5): the answers of KV and Watch are put together from
//! what the store holds, without decoding it. So an answer is bytes, whatever made them; ordinary
//! responses are encoded by prost into the same shape.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_core::Stream;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use keelson_proto::Code;
use keelson_proto::rpc::etcdserverpb::ResponseHeader;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use thiserror::Error;

use super::status::{Status, ok_trailers};
use crate::metrics::CallMeter;

/// Bytes of flag and length before a message.
pub(crate) const PREFIX: usize = 5;

/// The largest message that is ever sent, in bytes: Go's clients read no more.
pub(crate) const MESSAGE_MAX: u64 = i32::MAX as u64;

/// One whole message with its prefix.
#[derive(Clone, Debug)]
pub(crate) struct Framed(Bytes);

impl Framed {
    /// The message without its prefix.
    pub(crate) fn into_message(self) -> Bytes {
        self.0.slice(PREFIX..)
    }

    /// Encodes a message behind its prefix.
    pub(crate) fn message(message: &impl Message) -> Framed {
        let len = message.encoded_len();
        let mut out = begin(len as u64, len);
        message
            .encode(&mut out)
            .expect("a BytesMut grows as far as it must");
        Framed(out.freeze())
    }

    /// A compressed message behind its prefix.
    pub(crate) fn packed(bytes: Bytes) -> Framed {
        Framed(bytes)
    }

    /// The bytes, prefix and all.
    pub(crate) fn into_bytes(self) -> Bytes {
        self.0
    }

    /// A message that lies behind its prefix already, as [`begin`] starts it.
    pub(crate) fn finished(out: BytesMut) -> Framed {
        debug_assert_eq!(
            out.get(1..PREFIX).map(|len| len.to_vec()),
            u32::try_from(out.len() - PREFIX)
                .ok()
                .map(|len| len.to_be_bytes().to_vec()),
            "the prefix names the length of the message"
        );
        Framed(out.freeze())
    }
}

/// A buffer with the prefix of a message of `len` bytes, and room for `room` bytes of it.
pub(crate) fn begin(len: u64, room: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(PREFIX + room);
    put_prefix(len, &mut out);
    out
}

/// Writes the prefix of a message of `len` bytes.
pub(crate) fn put_prefix(len: u64, out: &mut BytesMut) {
    let len = u32::try_from(len).expect("callers refuse messages past MESSAGE_MAX");
    out.put_u8(0);
    out.put_u32(len);
}

/// Writes a length-delimited field that holds a message.
pub(crate) fn put_message(field: u32, message: &impl Message, out: &mut BytesMut) {
    put_len(field, message.encoded_len() as u64, out);
    message
        .encode(out)
        .expect("a BytesMut grows as far as it must");
}

/// Writes the key and length of a length-delimited field.
pub(crate) fn put_len(field: u32, len: u64, out: &mut BytesMut) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(len, out);
}

/// Writes an integer field; zero is not written, as proto3 has it.
pub(crate) fn put_int(field: u32, value: i64, out: &mut BytesMut) {
    if value != 0 {
        encode_key(field, WireType::Varint, out);
        // Negative numbers are ten bytes, as two's complement.
        encode_varint(value.cast_unsigned(), out);
    }
}

/// How long [`put_int`] is.
pub(crate) fn int_len(field: u32, value: i64) -> u64 {
    if value == 0 {
        return 0;
    }
    (key_len(field) + encoded_len_varint(value.cast_unsigned())) as u64
}

/// How long a length-delimited field of so many bytes is, with its key.
pub(crate) fn bytes_len(field: u32, len: u64) -> u64 {
    (key_len(field) + encoded_len_varint(len)) as u64 + len
}

/// How long the header field of a response is.
pub(crate) fn header_len(header: &ResponseHeader) -> u64 {
    bytes_len(1, header.encoded_len() as u64)
}

/// A piece of an answer: some bytes of a message, all of one, or several whole ones.
#[derive(Debug)]
pub(crate) struct Chunk {
    bytes: Bytes,
    /// How many messages begin here; what is counted as sent.
    messages: u64,
}

impl Chunk {
    /// The first bytes of a message, with its prefix.
    pub(crate) fn first(bytes: Bytes) -> Chunk {
        Chunk { bytes, messages: 1 }
    }

    /// So many whole messages, each with its prefix, one behind the other.
    pub(crate) fn packed(bytes: Bytes, messages: u64) -> Chunk {
        Chunk { bytes, messages }
    }

    /// The bytes, with the prefix where a message begins.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many messages begin here.
    pub(crate) fn messages(&self) -> u64 {
        self.messages
    }

    /// Further bytes of the same message.
    pub(crate) fn further(bytes: Bytes) -> Chunk {
        Chunk { bytes, messages: 0 }
    }
}

impl From<Framed> for Chunk {
    fn from(message: Framed) -> Chunk {
        Chunk::first(message.0)
    }
}

/// Why an answer ends early.
#[derive(Debug)]
pub(crate) enum Ending {
    /// Between two messages: the client gets this status.
    Status(Status),
    /// Inside a message: nothing can be said any more but that the stream is broken.
    Reset,
}

impl<S: Into<Status>> From<S> for Ending {
    fn from(status: S) -> Ending {
        Ending::Status(status.into())
    }
}

/// An answer that is made while it is sent: the next piece is asked for when HTTP/2 has room for it.
pub(crate) type Chunks = Pin<Box<dyn Stream<Item = Result<Chunk, Ending>> + Send>>;

/// What a handler gives back.
pub(crate) enum Answer {
    /// One message.
    Whole(Framed),
    /// A message too large to be made at once, or many messages.
    Pieces(Chunks),
}

impl Answer {
    /// An ordinary response.
    pub(crate) fn message(message: &impl Message) -> Answer {
        Answer::Whole(Framed::message(message))
    }
}

/// The stream of an HTTP/2 answer was broken on purpose: the client sees a reset.
#[derive(Debug, Error)]
#[error("the answer cannot be finished")]
pub(crate) struct Broken;

/// The body of a response, gRPC or not.
pub(crate) struct Body(Inner);

enum Inner {
    Plain(Option<Bytes>),
    Whole {
        message: Option<Bytes>,
        trailers: Option<HeaderMap>,
    },
    Pieces {
        chunks: Chunks,
        meter: CallMeter,
        ended: bool,
    },
}

impl Body {
    /// Nothing at all; for a call that ends with its headers.
    pub(crate) fn empty() -> Body {
        Body(Inner::Plain(None))
    }

    /// The body of an ordinary HTTP response.
    pub(crate) fn plain(bytes: impl Into<Bytes>) -> Body {
        let bytes = bytes.into();
        Body(Inner::Plain((!bytes.is_empty()).then_some(bytes)))
    }

    /// The body of a gRPC response. The meter is told how the call ended.
    pub(crate) fn answer(answer: Answer, mut meter: CallMeter) -> Body {
        match answer {
            Answer::Whole(Framed(message)) => {
                meter.sent(message.len());
                meter.ended(Code::Ok);
                Body(Inner::Whole {
                    message: Some(message),
                    trailers: Some(ok_trailers()),
                })
            }
            Answer::Pieces(chunks) => Body(Inner::Pieces {
                chunks,
                meter,
                ended: false,
            }),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut self.get_mut().0 {
            Inner::Plain(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Inner::Whole { message, trailers } => Poll::Ready(match message.take() {
                Some(message) => Some(Ok(Frame::data(message))),
                None => trailers.take().map(|map| Ok(Frame::trailers(map))),
            }),
            Inner::Pieces { ended: true, .. } => Poll::Ready(None),
            Inner::Pieces {
                chunks,
                meter,
                ended,
            } => match std::task::ready!(chunks.as_mut().poll_next(cx)) {
                Some(Ok(chunk)) => {
                    meter.sent_bytes(chunk.bytes.len());
                    meter.sent_messages(chunk.messages());
                    Poll::Ready(Some(Ok(Frame::data(chunk.bytes))))
                }
                None => {
                    *ended = true;
                    meter.ended(Code::Ok);
                    Poll::Ready(Some(Ok(Frame::trailers(ok_trailers()))))
                }
                Some(Err(Ending::Status(status))) => {
                    *ended = true;
                    meter.ended(status.code);
                    Poll::Ready(Some(Ok(Frame::trailers(status.trailers()))))
                }
                Some(Err(Ending::Reset)) => {
                    *ended = true;
                    meter.ended(Code::Internal);
                    Poll::Ready(Some(Err(Broken)))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Plain(bytes) => bytes.is_none(),
            Inner::Whole { message, trailers } => message.is_none() && trailers.is_none(),
            Inner::Pieces { ended, .. } => *ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Plain(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            // No exact size: an HTTP/1 connection would otherwise leave the trailers out.
            Inner::Whole { .. } | Inner::Pieces { .. } => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_lies_behind_a_flag_and_its_length() {
        let header = ResponseHeader {
            revision: 300,
            ..ResponseHeader::default()
        };
        let Framed(bytes) = Framed::message(&header);
        assert_eq!(&bytes[..], [0, 0, 0, 0, 3, 0x18, 0xac, 0x02]);
    }

    #[test]
    fn lengths_say_what_is_written() {
        for value in [0, 1, 127, 128, -1, i64::MIN, i64::MAX] {
            let mut out = BytesMut::new();
            put_int(4, value, &mut out);
            assert_eq!(out.len() as u64, int_len(4, value));
        }
        for len in [0, 1, 127, 128, 20_000] {
            let mut out = BytesMut::new();
            put_len(2, len as u64, &mut out);
            assert_eq!((out.len() + len) as u64, bytes_len(2, len as u64));
        }
        let header = ResponseHeader {
            cluster_id: u64::MAX,
            member_id: 1,
            revision: 7,
            raft_term: 2,
        };
        let mut out = BytesMut::new();
        put_message(1, &header, &mut out);
        assert_eq!(out.len() as u64, header_len(&header));
    }
}
