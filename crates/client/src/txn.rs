//! Transactions: an answer may nest deeper than the generated stub follows.

use http::uri::PathAndQuery;
use keelson_proto::response;
use keelson_proto::rpc::etcdserverpb::{TxnRequest, TxnResponse};
use prost::Message as _;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Response, Status};

use crate::call::{ANSWER_MAX, Wire};

impl Wire {
    /// As the stub's call, but for the bound of nesting: that of [`response::decode_txn`].
    pub(crate) async fn txn(
        self,
        request: Request<TxnRequest>,
    ) -> Result<Response<TxnResponse>, Status> {
        let origin = self.0.origin().clone();
        let mut grpc = Grpc::with_origin(self.0, origin).max_decoding_message_size(ANSWER_MAX);
        grpc.ready().await?;
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Txn");
        grpc.unary(request, path, TxnCodec).await
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct TxnCodec;

impl Codec for TxnCodec {
    type Encode = TxnRequest;
    type Decode = TxnResponse;
    type Encoder = TxnCodec;
    type Decoder = TxnCodec;

    fn encoder(&mut self) -> TxnCodec {
        TxnCodec
    }

    fn decoder(&mut self) -> TxnCodec {
        TxnCodec
    }
}

impl Encoder for TxnCodec {
    type Item = TxnRequest;
    type Error = Status;

    fn encode(&mut self, request: TxnRequest, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        request
            .encode(out)
            .map_err(|error| Status::new(Code::Internal, error.to_string()))
    }
}

impl Decoder for TxnCodec {
    type Item = TxnResponse;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<TxnResponse>, Status> {
        use bytes::Buf as _;
        let bytes = message.copy_to_bytes(message.remaining());
        let answer = response::decode_txn(bytes);
        answer
            .map(Some)
            .map_err(|error| Status::new(Code::Internal, error.to_string()))
    }
}
