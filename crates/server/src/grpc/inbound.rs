//! The messages of a request, cut out of the body that carries them.
//!
//! A gRPC message is five bytes (a flag, then the length, big-endian) and that many bytes. Where it
//! lies in one piece of the body it is not copied. Nothing is reserved before the length was held
//! against the limit.

use std::future::poll_fn;
use std::io::Read as _;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use keelson_proto::{ApiError, Code, request};
use prost::Message;
use tokio::time::timeout;

use super::status::Status;
use crate::metrics::Receiver;

/// Bytes of flag and length before a message.
const PREFIX: usize = 5;

/// How long the end of a body is waited for once its one message is there.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// What to reserve at first for a message that comes in several pieces.
const FIRST_RESERVATION: usize = 64 << 10;

/// The messages of one request.
pub(crate) struct Inbound {
    body: Incoming,
    /// What has arrived and was not given out yet: a piece as it came, or pieces put together.
    piece: Bytes,
    joined: BytesMut,
    /// Largest message that is taken, in bytes.
    limit: usize,
    gzip: bool,
    meter: Receiver,
}

impl Inbound {
    /// # Errors
    ///
    /// `Unimplemented` where the messages are compressed in a way that nobody here knows.
    pub(crate) fn new(
        body: Incoming,
        headers: &HeaderMap,
        limit: usize,
        meter: Receiver,
    ) -> Result<Inbound, Status> {
        let gzip = match headers.get("grpc-encoding").map(|value| value.as_bytes()) {
            None | Some(b"identity" | b"") => false,
            Some(b"gzip") => true,
            Some(other) => {
                let name = String::from_utf8_lossy(other);
                return Err(Status::new(
                    Code::Unimplemented,
                    format!("grpc: Decompressor is not installed for grpc-encoding {name:?}"),
                ));
            }
        };
        Ok(Inbound {
            body,
            piece: Bytes::new(),
            joined: BytesMut::new(),
            limit,
            gzip,
            meter,
        })
    }

    /// The next message, or `None` where the client has closed its side.
    pub(crate) fn poll_message(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Status>>> {
        loop {
            match self.take_message() {
                Ok(None) => {}
                Ok(Some(message)) => {
                    self.meter.received(message.len());
                    return Poll::Ready(Some(Ok(message)));
                }
                Err(status) => return Poll::Ready(Some(Err(status))),
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.push(data);
                    }
                }
                Some(Err(_)) => return Poll::Ready(Some(Err(ApiError::ContextCanceled.into()))),
                None if self.piece.is_empty() && self.joined.is_empty() => {
                    return Poll::Ready(None);
                }
                None => {
                    self.piece.clear();
                    self.joined.clear();
                    return Poll::Ready(Some(Err(Status::new(Code::Internal, "unexpected EOF"))));
                }
            }
        }
    }

    fn push(&mut self, data: Bytes) {
        if self.joined.is_empty() {
            if self.piece.is_empty() {
                self.piece = data;
                return;
            }
            self.joined
                .reserve(FIRST_RESERVATION.max(self.piece.len() + data.len()));
            self.joined.extend_from_slice(&self.piece);
            self.piece.clear();
        }
        self.joined.extend_from_slice(&data);
    }

    /// Takes a message out of what has arrived, if it is there as a whole.
    fn take_message(&mut self) -> Result<Option<Bytes>, Status> {
        let held: &[u8] = if self.joined.is_empty() {
            &self.piece
        } else {
            &self.joined
        };
        let Some(&[flag, a, b, c, d]) = held.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if len > self.limit {
            return Err(too_large(len, self.limit));
        }
        if held.len() - PREFIX < len {
            return Ok(None);
        }
        let message = if self.joined.is_empty() {
            self.piece.advance(PREFIX);
            self.piece.split_to(len)
        } else {
            self.joined.advance(PREFIX);
            let message = self.joined.split_to(len).freeze();
            if self.joined.is_empty() {
                // The memory goes with the message; a stream must not hold on to it.
                self.joined = BytesMut::new();
            }
            message
        };
        match flag {
            0 => Ok(Some(message)),
            1 if self.gzip => gunzip(&message, self.limit).map(Some),
            1 => Err(Status::new(
                Code::Internal,
                "grpc: compressed flag set with identity or empty encoding",
            )),
            other => Err(Status::new(
                Code::Internal,
                format!("grpc: received unexpected payload format {other}"),
            )),
        }
    }

    /// The message of a call that sends exactly one.
    ///
    /// # Errors
    ///
    /// What is wrong with it, or that there is none.
    pub(crate) async fn single(mut self) -> Result<Bytes, Status> {
        let message = poll_fn(|cx| self.poll_message(cx)).await;
        let message = message.unwrap_or_else(|| Err(Status::new(Code::Internal, "EOF")))?;
        self.await_end().await;
        Ok(message)
    }

    /// Keeps the body until its end, which some clients send in a frame of its own, without waiting
    /// for it. A body that is dropped before resets its stream; what comes for a stream that is
    /// reset and forgotten counts as a fault of the client, and after a thousand of them the HTTP/2
    /// library ends the connection with all its calls.
    async fn await_end(mut self) {
        if self.body.is_end_stream() || !self.piece.is_empty() || !self.joined.is_empty() {
            return;
        }
        let next = poll_fn(|cx| Poll::Ready(Pin::new(&mut self.body).poll_frame(cx))).await;
        if next.is_pending() {
            tokio::spawn(timeout(END_PATIENCE, async move {
                // Nothing more may come; where something does, the stream is reset.
                while let Some(Ok(frame)) = self.body.frame().await
                    && frame.data_ref().is_some_and(Bytes::is_empty)
                {}
            }));
        }
    }

    /// The same messages, decoded.
    pub(crate) fn decoded<Q>(self) -> Requests<Q> {
        Requests {
            inbound: self,
            message: PhantomData,
        }
    }
}

/// The decoded messages of a request that sends many.
pub(crate) struct Requests<Q> {
    inbound: Inbound,
    message: PhantomData<fn() -> Q>,
}

impl<Q: Message + Default> Requests<Q> {
    /// The next message, or `None` where the client has closed its side.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Q, Status>>> {
        let message = ready!(self.inbound.poll_message(cx));
        Poll::Ready(message.map(|message| message.and_then(decode)))
    }

    /// As [`Requests::poll_next`]; may be dropped and called again without losing a message.
    pub(crate) async fn next(&mut self) -> Option<Result<Q, Status>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }
}

/// Decodes a message; its `bytes` fields share the buffer that it came in.
///
/// # Errors
///
/// `Internal`, in the words of Go's gRPC.
pub(crate) fn decode<Q: Message + Default>(message: Bytes) -> Result<Q, Status> {
    Q::decode(message).map_err(|error| {
        let text = error.to_string();
        undecodable(if text.contains("UTF-8") {
            "string field contains invalid UTF-8"
        } else {
            "cannot parse invalid wire-format data"
        })
    })
}

/// As [`decode`], for the one message that can be nested: past a depth it is refused.
///
/// # Errors
///
/// As [`decode`].
pub(crate) fn decode_txn(
    message: Bytes,
) -> Result<keelson_proto::rpc::etcdserverpb::TxnRequest, Status> {
    request::decode_txn(message).map_err(|error| match error {
        keelson_proto::Error::TooDeep { .. } => undecodable("exceeded maximum recursion depth"),
        _ => undecodable("cannot parse invalid wire-format data"),
    })
}

fn undecodable(what: &str) -> Status {
    Status::new(
        Code::Internal,
        format!("grpc: error unmarshalling request: proto: {what}"),
    )
}

fn too_large(len: usize, limit: usize) -> Status {
    Status::new(
        Code::ResourceExhausted,
        format!("grpc: received message larger than max ({len} vs. {limit})"),
    )
}

/// Unpacks a message, and no more of it than the limit allows.
fn gunzip(packed: &[u8], limit: usize) -> Result<Bytes, Status> {
    let mut out = Vec::with_capacity(packed.len().min(limit));
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    flate2::read::GzDecoder::new(packed)
        .take(most)
        .read_to_end(&mut out)
        .map_err(|error| {
            Status::new(
                Code::Internal,
                format!("grpc: failed to decompress the received message: {error}"),
            )
        })?;
    if out.len() > limit {
        return Err(Status::new(
            Code::ResourceExhausted,
            format!("grpc: received message after decompression larger than max {limit}"),
        ));
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use keelson_proto::rpc::etcdserverpb::PutRequest;

    use super::*;

    #[test]
    fn bytes_that_are_no_message_are_refused_in_gos_words() {
        let error = decode::<PutRequest>(Bytes::from_static(&[0xff, 0xff, 0xff])).unwrap_err();
        assert_eq!(error.code, Code::Internal);
        assert_eq!(
            error.text,
            "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data"
        );
    }

    #[test]
    fn a_packed_message_is_unpacked_up_to_the_limit() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&[7; 100_000]).unwrap();
        let packed = encoder.finish().unwrap();
        assert_eq!(gunzip(&packed, 100_000).unwrap().len(), 100_000);
        let error = gunzip(&packed, 99_999).unwrap_err();
        assert_eq!(error.code, Code::ResourceExhausted);
    }
}
