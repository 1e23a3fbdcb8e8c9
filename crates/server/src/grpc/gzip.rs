//! Answers to clients that compress: as gRPC for Go does, with the request's own encoding.
//!
//! Only answers of one whole message are compressed. What is made piece by piece, lists of more than
//! 1 MiB and streams, goes out as it is stored, which a client always understands.

use std::io::Write as _;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::splice::{Answer, Framed, PREFIX};
use crate::state::State;

/// Most bytes that a serving thread compresses itself.
const AT_ONCE: usize = 16 << 10;

/// The answer, compressed where that can be done, and whether it is.
pub(super) async fn compressed(state: &Arc<State>, answer: Answer) -> (Answer, bool) {
    let Answer::Whole(message) = answer else {
        return (answer, false);
    };
    let plain = message.clone().into_message();
    let packed = match plain.len() {
        // Nothing to gain; gRPC for Go leaves it, too.
        0 => None,
        1..=AT_ONCE => Some(gzip(&plain)),
        len => state.pool.run(len as u64, move || gzip(&plain)).await.ok(),
    };
    (Answer::Whole(packed.map_or(message, Framed::packed)), true)
}

/// Compresses a message and puts the prefix of a compressed one before it.
fn gzip(message: &Bytes) -> Bytes {
    let mut out = BytesMut::with_capacity(PREFIX + message.len() / 2 + 64);
    out.put_bytes(0, PREFIX);
    let mut encoder = GzEncoder::new(out.writer(), Compression::default());
    let written = encoder
        .write_all(message)
        .and_then(|()| encoder.finish())
        .expect("a BytesMut grows as far as it must");
    let mut out = written.into_inner();
    let len = u32::try_from(out.len() - PREFIX).expect("it was whole, so it is short");
    if let Some(prefix) = out.first_chunk_mut::<PREFIX>() {
        let [a, b, c, d] = len.to_be_bytes();
        *prefix = [1, a, b, c, d];
    }
    out.freeze()
}
