//! Keys.

use std::collections::VecDeque;
use std::sync::Arc;

use keelson_proto::rpc::etcdserverpb as pb;
use tonic::Streaming;

use crate::call::Kind;
use crate::{Client, Error};

impl Client {
    /// Writes a key: a [`crate::Put`] or the wire's request.
    ///
    /// # Errors
    /// [`Error::Status`] with what the server says; [`Error::Broken`] and [`Error::TimedOut`], after
    /// which it is not known whether the write took place; [`Error::Connect`] and
    /// [`Error::Unreachable`], after which it did not.
    pub async fn put(&self, request: impl Into<pb::PutRequest>) -> Result<pb::PutResponse, Error> {
        self.call(Kind::Write, request.into(), |wire, request| async move {
            wire.kv().put(request).await
        })
        .await
    }

    /// Reads keys: a [`crate::Get`] or the wire's request.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn get(
        &self,
        request: impl Into<pb::RangeRequest>,
    ) -> Result<pb::RangeResponse, Error> {
        self.call(Kind::Read, request.into(), |wire, request| async move {
            wire.kv().range(request).await
        })
        .await
    }

    /// Reads keys in pieces, all of one revision. The server refuses sort orders other than by
    /// ascending key, and filters by revision.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn range_stream(
        &self,
        request: impl Into<pb::RangeRequest>,
    ) -> Result<RangeStream, Error> {
        let opened = self
            .open(Kind::Read, request.into(), |wire, request| async move {
                wire.kv().range_stream(request).await
            })
            .await?;
        Ok(RangeStream {
            client: self.clone(),
            streaming: opened.message,
            endpoint: opened.endpoint,
        })
    }

    /// Deletes keys: a [`crate::Delete`] or the wire's request.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn delete(
        &self,
        request: impl Into<pb::DeleteRangeRequest>,
    ) -> Result<pb::DeleteRangeResponse, Error> {
        self.call(Kind::Write, request.into(), |wire, request| async move {
            wire.kv().delete_range(request).await
        })
        .await
    }

    /// Runs a transaction: a [`crate::Txn`] or the wire's request. One that only reads is repeated
    /// like a read.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn txn(&self, request: impl Into<pb::TxnRequest>) -> Result<pb::TxnResponse, Error> {
        let request = request.into();
        let kind = if writes(&request) {
            Kind::Write
        } else {
            Kind::Read
        };
        self.call(kind, request, |wire, request| async move {
            wire.txn(request).await
        })
        .await
    }

    /// Forgets the history before `revision`; with `physical` it is answered when it is gone from
    /// the file too, which may take long.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn compact(
        &self,
        revision: i64,
        physical: bool,
    ) -> Result<pb::CompactionResponse, Error> {
        let request = pb::CompactionRequest { revision, physical };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.kv().compact(request).await
        })
        .await
    }
}

/// Whether a transaction may write, in either branch and at any depth.
fn writes(txn: &pb::TxnRequest) -> bool {
    let mut open = VecDeque::from([txn]);
    while let Some(txn) = open.pop_front() {
        for op in txn.success.iter().chain(&txn.failure) {
            match &op.request {
                Some(pb::request_op::Request::RequestRange(_)) | None => {}
                Some(pb::request_op::Request::RequestTxn(inner)) => open.push_back(inner),
                Some(_) => return true,
            }
        }
    }
    false
}

/// A read that arrives in pieces.
#[derive(Debug)]
pub struct RangeStream {
    client: Client,
    streaming: Streaming<pb::RangeStreamResponse>,
    endpoint: Arc<str>,
}

impl RangeStream {
    /// The next piece; `None` after the last. Header, count and `more` are where the server put
    /// them.
    ///
    /// # Errors
    /// [`Error::Broken`] or [`Error::Status`] if the stream broke, [`Error::TimedOut`] if no piece came in the time of a
    /// call. A stream that failed cannot go on.
    pub async fn next(&mut self) -> Result<Option<pb::RangeResponse>, Error> {
        let message = async { Ok(self.streaming.message().await?) };
        let until = self.client.deadline();
        let answer = self.client.within(until, &self.endpoint, message).await?;
        Ok(answer.map(|answer| answer.range_response.unwrap_or_default()))
    }

    /// All that is still to come, as one answer.
    ///
    /// # Errors
    /// As [`RangeStream::next`].
    pub async fn collect(mut self) -> Result<pb::RangeResponse, Error> {
        let mut whole = pb::RangeResponse::default();
        while let Some(mut piece) = self.next().await? {
            whole.header = piece.header.or(whole.header);
            whole.kvs.append(&mut piece.kvs);
            whole.more |= piece.more;
            whole.count = whole.count.max(piece.count);
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Get, Put, Txn};

    #[test]
    fn only_a_transaction_without_any_write_is_a_read() {
        let reads = Txn::new()
            .then(Get::key("a"))
            .otherwise(Txn::new().then(Get::all()));
        assert!(!writes(&reads.clone().into()));
        let nested = reads.otherwise(Txn::new().otherwise(Put::new("a", "b")));
        assert!(writes(&nested.into()));
    }
}
