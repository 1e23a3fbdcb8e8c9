//! The snapshot: the file as of a commit that holds everything applied before the call, then its
//! SHA-256.
//!
//! Each piece, of some messages, is read on the reader pool when HTTP/2 has room for it, so a slow client
//! holds a read transaction and one piece of memory, and nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, BytesMut};
use futures_util::stream;
use keelson_node::HumanBytes;
use keelson_proto::rpc::etcdserverpb::SnapshotResponse;
use keelson_proto::{ApiError, Code};
use keelson_store::Durable;
use keelson_store::auth::Need;
use sha2::{Digest as _, Sha256};
use tokio_util::task::AbortOnDropHandle;

use super::call::Call;
use super::maintenance;
use super::splice::{self, Answer, Chunk, Ending, Framed};
use super::status::Status;

/// Bytes of the file in one message.
const BLOB: usize = 32 << 10;

/// Messages that are read at once.
const PIECE_BLOBS: usize = 8;

/// Room for what a message holds beside its blob, in bytes.
const BLOB_OVERHEAD: usize = 64;

/// Length of the checksum behind the database.
const DIGEST_BYTES: usize = 32;

/// What is still to be sent.
struct Rest {
    durable: Durable,
    version: String,
    offset: u64,
    digest: Sha256,
    started: Instant,
}

/// What a client may take, in bytes a second, before it is called slow.
const SLOW_RATE: u64 = 100 << 20;

/// The shortest time after which it is.
const SLOW_MIN: Duration = Duration::from_secs(30);

/// After how long, and how often, a client is called slow that takes so many bytes.
fn patience(bytes: u64) -> Duration {
    SLOW_MIN.max(Duration::from_secs(bytes / SLOW_RATE))
}

/// Calls `tell` every so often until what is returned is dropped.
fn while_slow(
    every: Duration,
    mut tell: impl FnMut(Duration) + Send + 'static,
) -> AbortOnDropHandle<()> {
    let started = tokio::time::Instant::now();
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            tell(started.elapsed());
        }
    }))
}

pub(super) async fn snapshot(call: Call) -> Result<Answer, Status> {
    call.permit(&Need::Admin)?;
    let started = Instant::now();
    let durable = maintenance::durable(&call).await?;
    let version = call
        .shared()
        .schema_version()
        .map_or_else(String::new, |version| version.to_string());
    tracing::info!(
        "total-bytes" = durable.read.size(),
        size = %HumanBytes(durable.read.size()),
        "storage-version" = %version,
        "sending database snapshot to client"
    );
    let bytes = durable.read.size();
    let slow = while_slow(patience(bytes), move |taking| {
        tracing::warn!(
            taking = ?taking,
            bytes,
            size = %HumanBytes(bytes),
            "snapshotting taking too long to transfer"
        );
    });
    let rest = Rest {
        durable,
        version,
        offset: 0,
        digest: Sha256::new(),
        started,
    };
    Ok(Answer::Pieces(Box::pin(stream::try_unfold(
        Some((Arc::clone(&call.state), Box::new(rest), slow)),
        |state| async move {
            let Some((state, rest, slow)) = state else {
                return Ok(None);
            };
            if state.draining.is_cancelled() {
                return Err(ApiError::Stopped.into());
            }
            let cost = (PIECE_BLOBS * BLOB) as u64;
            let (chunk, rest) = state.pool.run(cost, move || rest.next()).await??;
            let next = match rest {
                Next::Blob(rest) => Some((state, rest, slow)),
                Next::End {
                    started,
                    total,
                    version,
                } => {
                    let took = started.elapsed();
                    state.metrics.snapshot_seconds.observe(took.as_secs_f64());
                    tracing::info!(
                        "total-bytes" = total,
                        "checksum-size" = DIGEST_BYTES,
                        "sending database sha256 checksum to client"
                    );
                    tracing::info!(
                        "total-bytes" = total,
                        size = %HumanBytes(total),
                        took = ?took,
                        "storage-version" = %version,
                        "successfully sent database snapshot to client"
                    );
                    None
                }
            };
            Ok::<_, Ending>(Some((chunk, next)))
        },
    ))))
}

enum Next {
    Blob(Box<Rest>),
    End {
        started: Instant,
        total: u64,
        version: String,
    },
}

impl Rest {
    /// Reads the next messages, or makes the last one: blocking.
    fn next(mut self: Box<Self>) -> Result<(Chunk, Next), Status> {
        let size = self.durable.read.size();
        if self.offset >= size {
            let last = Framed::message(&SnapshotResponse {
                header: None,
                remaining_bytes: 0,
                blob: self.digest.finalize().to_vec().into(),
                version: self.version.clone(),
            });
            let end = Next::End {
                started: self.started,
                total: self.offset,
                version: self.version,
            };
            return Ok((Chunk::from(last), end));
        }
        let mut out = BytesMut::with_capacity(PIECE_BLOBS * (BLOB + BLOB_OVERHEAD));
        let mut messages = 0;
        while messages < PIECE_BLOBS && self.offset < size {
            self.put_blob(size, &mut out)?;
            messages += 1;
        }
        let chunk = Chunk::packed(out.freeze(), messages as u64);
        Ok((chunk, Next::Blob(self)))
    }

    /// Adds the message of the next blob, which is read where it is to stand.
    fn put_blob(&mut self, size: u64, out: &mut BytesMut) -> Result<(), Status> {
        let left = size - self.offset;
        let len = left.min(BLOB as u64);
        let remaining = (left - len).cast_signed();
        let version = self.version.as_bytes();
        let version_len = match version.len() as u64 {
            0 => 0,
            len => splice::bytes_len(4, len),
        };
        let message_len = splice::int_len(2, remaining) + splice::bytes_len(3, len) + version_len;
        splice::put_prefix(message_len, out);
        splice::put_int(2, remaining, out);
        splice::put_len(3, len, out);
        let begin = out.len();
        out.put_bytes(0, usize::try_from(len).unwrap_or(BLOB));
        let blob = &mut out[begin..];
        let read = self.durable.read.image_chunk(self.offset, blob);
        let read = read.map_err(|error| Status::new(Code::Unknown, error.to_string()))?;
        assert_eq!(read, blob.len(), "an image has the length that it says");
        self.digest.update(&*blob);
        self.offset += len;
        if version_len > 0 {
            splice::put_len(4, version.len() as u64, out);
            out.put_slice(version);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_is_told_of_again_and_again_until_it_is_through() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = Arc::clone(&told);
        let slow = while_slow(patience(1), move |taking| {
            telling.lock().unwrap().push(taking.as_secs());
        });
        tokio::time::sleep(Duration::from_secs(100)).await;
        drop(slow);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(*told.lock().unwrap(), [30, 60, 90]);
    }

    #[test]
    fn large_files_may_take_longer() {
        assert_eq!(patience(3 << 30), SLOW_MIN.max(Duration::from_secs(30)));
        assert_eq!(patience(100 << 30), Duration::from_secs(1024));
    }
}
