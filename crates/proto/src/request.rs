//! What a normal log entry holds: [`InternalRaftRequest`], encoded and decoded with bounds.

use bytes::Bytes;
use prost::Message as _;

use crate::rpc::etcdserverpb::{InternalRaftRequest, TxnRequest};
use crate::{Error, scan};

/// How many protobuf messages may lie inside one another in a request, transactions included.
///
/// etcd accepts 128 nested transactions by default, which are some 260 levels. prost decodes (and
/// drops) nested messages by recursion, so there must be a bound; threads that decode requests have
/// stacks of [`STACK_BYTES`].
pub const DEPTH_MAX: usize = 2_000;

/// The stack that a thread needs which decodes, walks or drops requests, in bytes: enough for
/// [`DEPTH_MAX`] levels in a build without optimisation.
pub const STACK_BYTES: usize = 32 << 20;

#[derive(Clone, Copy)]
enum Kind {
    Internal,
    Txn,
    Op,
}

fn nested(kind: Kind, field: u32) -> Option<Kind> {
    match (kind, field) {
        (Kind::Internal, 6) | (Kind::Op, 4) => Some(Kind::Txn),
        (Kind::Txn, 2 | 3) => Some(Kind::Op),
        _ => None,
    }
}

/// Encodes a request as an entry's data.
#[must_use]
pub fn encode(request: &InternalRaftRequest) -> Bytes {
    request.encode_to_vec().into()
}

/// Decodes an entry's data.
///
/// # Errors
///
/// [`Error::TooDeep`] where transactions nest past [`DEPTH_MAX`] levels, [`Error::Decode`] where
/// the bytes are no request. Raw requests of the v2 API (etcd 3.5 and older wrote them) are no
/// [`InternalRaftRequest`] and fail to decode.
pub fn decode(data: Bytes) -> Result<InternalRaftRequest, Error> {
    const WHAT: &str = "InternalRaftRequest";
    if scan::deeper_than(&data, Kind::Internal, DEPTH_MAX, nested) {
        return Err(Error::TooDeep {
            what: WHAT,
            limit: DEPTH_MAX,
        });
    }
    InternalRaftRequest::decode(data).map_err(|source| Error::Decode { what: WHAT, source })
}

/// Whether the encoded [`TxnRequest`] nests deeper than [`DEPTH_MAX`] levels: such a request must
/// be refused before it is decoded.
#[must_use]
pub fn txn_is_too_deep(encoded: &[u8]) -> bool {
    scan::deeper_than(encoded, Kind::Txn, DEPTH_MAX, nested)
}

/// Decodes a transaction from a client.
///
/// # Errors
///
/// As [`decode`].
pub fn decode_txn(data: Bytes) -> Result<TxnRequest, Error> {
    const WHAT: &str = "TxnRequest";
    if txn_is_too_deep(&data) {
        return Err(Error::TooDeep {
            what: WHAT,
            limit: DEPTH_MAX,
        });
    }
    TxnRequest::decode(data).map_err(|source| Error::Decode { what: WHAT, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::etcdserverpb::{RequestHeader, RequestOp, request_op};

    fn nested_txn(levels: usize) -> Vec<u8> {
        // Built from the inside out, as bytes, so that the test itself does not recurse.
        let mut inner = Vec::new();
        for _ in 0..levels {
            let mut op = Vec::new();
            prost::encoding::encode_key(4, prost::encoding::WireType::LengthDelimited, &mut op);
            prost::encoding::encode_varint(inner.len() as u64, &mut op);
            op.extend_from_slice(&inner);
            let mut txn = Vec::new();
            prost::encoding::encode_key(2, prost::encoding::WireType::LengthDelimited, &mut txn);
            prost::encoding::encode_varint(op.len() as u64, &mut txn);
            txn.extend_from_slice(&op);
            inner = txn;
        }
        inner
    }

    #[test]
    fn a_hundred_and_twenty_eight_nested_transactions_are_decoded() {
        let bytes = nested_txn(128);
        let txn = decode_txn(bytes.into()).unwrap();
        let mut depth = 0;
        let mut at = Some(&txn);
        while let Some(txn) = at {
            depth += 1;
            at = txn.success.first().and_then(|op| match &op.request {
                Some(request_op::Request::RequestTxn(txn)) => Some(txn),
                _ => None,
            });
        }
        assert_eq!(depth, 129);
    }

    #[test]
    fn a_transaction_nested_past_the_bound_is_refused_without_recursion() {
        let bytes = nested_txn(20_000);
        assert!(matches!(
            decode_txn(bytes.into()),
            Err(Error::TooDeep { .. })
        ));
    }

    #[test]
    fn a_request_comes_back_as_it_went_in() {
        let request = InternalRaftRequest {
            header: Some(RequestHeader {
                id: 7,
                username: "root".into(),
                auth_revision: 3,
            }),
            txn: Some(TxnRequest {
                success: vec![RequestOp { request: None }],
                ..TxnRequest::default()
            }),
            ..InternalRaftRequest::default()
        };
        assert_eq!(decode(encode(&request)).unwrap(), request);
    }

    #[test]
    fn the_method_of_a_raw_v2_request_sets_nothing() {
        // {1 ID: 5, 2 Method: "PUT"}: field 2 is reserved here, so the bytes decode.
        let decoded = decode(Bytes::from_static(&[0x08, 5, 0x12, 3, b'P', b'U', b'T']));
        assert!(decoded.is_ok_and(|request| request.put.is_none()));
    }
}
