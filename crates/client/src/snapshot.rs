//! A copy of a member's file, over the wire.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::rpc::etcdserverpb as pb;
use tokio::io::AsyncWriteExt as _;
use tonic::Streaming;

use crate::call::Kind;
use crate::{Client, Error};

/// The file's pages end at a multiple of this; what follows is the digest.
const PAGE_UNIT: u64 = 512;
/// SHA-256.
const DIGEST_LEN: u64 = 32;

/// A snapshot that arrives in pieces: the file, then 32 bytes of SHA-256 over it.
#[derive(Debug)]
pub struct Snapshot {
    client: Client,
    streaming: Streaming<pb::SnapshotResponse>,
    endpoint: Arc<str>,
    version: String,
}

impl Client {
    /// A copy of the member's file as it is now.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        let opened = self
            .open(
                Kind::Read,
                pb::SnapshotRequest {},
                |wire, request| async move { wire.maintenance().snapshot(request).await },
            )
            .await?;
        Ok(Snapshot {
            client: self.clone(),
            streaming: opened.message,
            endpoint: opened.endpoint,
            version: String::new(),
        })
    }
}

impl Snapshot {
    /// The next bytes; `None` after the last.
    ///
    /// # Errors
    /// [`Error::Broken`] or [`Error::Status`] if the stream broke, [`Error::TimedOut`] if no piece came in the time of a
    /// call.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let message = async { Ok(self.streaming.message().await?) };
        let until = self.client.deadline();
        let answer = self.client.within(until, &self.endpoint, message).await?;
        Ok(answer.map(|piece| {
            self.version = piece.version;
            piece.blob
        }))
    }

    /// The storage version that the server named, known after the first piece; may be empty.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Writes the rest into `path`: first beside it, with `.part` at its end, then synced and
    /// renamed, so that `path` is whole or not there. Answers with its length in bytes.
    ///
    /// # Errors
    /// As [`Snapshot::next`]; [`Error::File`]; [`Error::Answer`] if the length cannot be that of a
    /// file and its digest.
    pub async fn save(mut self, path: &Path) -> Result<u64, Error> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let failed = |cause: io::Error| Error::File {
            path: part.display().to_string(),
            cause: Arc::new(cause),
        };
        let mut file = tokio::fs::File::create(&part).await.map_err(failed)?;
        let mut len = 0;
        while let Some(bytes) = self.next().await? {
            file.write_all(&bytes).await.map_err(failed)?;
            len += bytes.len() as u64;
        }
        if len % PAGE_UNIT != DIGEST_LEN {
            return Err(Error::Answer {
                what: "a snapshot without its digest",
            });
        }
        file.sync_all().await.map_err(failed)?;
        drop(file);
        tokio::fs::rename(&part, path).await.map_err(failed)?;
        Ok(len)
    }
}
