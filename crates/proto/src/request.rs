//! What a normal log entry holds: [`InternalRaftRequest`], encoded and decoded with bounds.

use bytes::Bytes;
use prost::Message as _;

use crate::deep::{Fault, Field, SHALLOW_MAX};
use crate::rpc::etcdserverpb::request_op::Request;
use crate::rpc::etcdserverpb::{InternalRaftRequest, RequestOp, TxnRequest};
use crate::{Error, scan};

/// How many protobuf messages may lie inside one another in a request, transactions included.
///
/// etcd accepts 128 nested transactions by default, which are some 260 levels. What decodes, walks
/// or drops them recurses, so there must be a bound; threads that do so have stacks of
/// [`STACK_BYTES`].
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
        (Kind::Internal, INTERNAL_TXN) | (Kind::Op, OP_TXN) => Some(Kind::Txn),
        (Kind::Txn, TXN_SUCCESS | TXN_FAILURE) => Some(Kind::Op),
        _ => None,
    }
}

// The numbers of the fields that nest.
const INTERNAL_TXN: u32 = 6;
const TXN_SUCCESS: u32 = 2;
const TXN_FAILURE: u32 = 3;
const OP_TXN: u32 = 4;

/// Encodes a request as an entry's data.
#[must_use]
pub fn encode(request: &InternalRaftRequest) -> Bytes {
    request.encode_to_vec().into()
}

/// Decodes an entry's data; its `bytes` fields share the buffer of `data`.
///
/// # Errors
///
/// [`Error::TooDeep`] where transactions nest past [`DEPTH_MAX`] levels, [`Error::Decode`] where
/// the bytes are no request. Raw requests of the v2 API (etcd 3.5 and older wrote them) are for
/// [`crate::raw_v2`], which is to be asked first: some of them would decode here.
pub fn decode(data: Bytes) -> Result<InternalRaftRequest, Error> {
    const WHAT: &str = "InternalRaftRequest";
    if !scan::deeper_than(&data, Kind::Internal, SHALLOW_MAX, nested) {
        return InternalRaftRequest::decode(data).map_err(Fault::of(WHAT));
    }
    refuse_deeper(WHAT, &data, Kind::Internal)?;
    let mut request = InternalRaftRequest::default();
    let mut rest = data;
    while let Some(field) = Field::take(&mut rest).map_err(Fault::of(WHAT))? {
        match (field.number, field.content) {
            (INTERNAL_TXN, Some(content)) => {
                let txn = request.txn.get_or_insert_default();
                merge_txn(txn, content, 2).map_err(|fault| fault.named(WHAT, DEPTH_MAX))?;
            }
            _ => request.merge(field.whole).map_err(Fault::of(WHAT))?,
        }
    }
    Ok(request)
}

/// Decodes a transaction from a client; its `bytes` fields share the buffer of `data`.
///
/// # Errors
///
/// As [`decode`].
pub fn decode_txn(data: Bytes) -> Result<TxnRequest, Error> {
    const WHAT: &str = "TxnRequest";
    if !scan::deeper_than(&data, Kind::Txn, SHALLOW_MAX, nested) {
        return TxnRequest::decode(data).map_err(Fault::of(WHAT));
    }
    refuse_deeper(WHAT, &data, Kind::Txn)?;
    let mut txn = TxnRequest::default();
    merge_txn(&mut txn, data, 1).map_err(|fault| fault.named(WHAT, DEPTH_MAX))?;
    Ok(txn)
}

/// Refuses what nests too deep before anything is made of it. What the scan does not see is refused
/// on the way down.
fn refuse_deeper(what: &'static str, data: &[u8], root: Kind) -> Result<(), Error> {
    if scan::deeper_than(data, root, DEPTH_MAX, nested) {
        return Err(Error::TooDeep {
            what,
            limit: DEPTH_MAX,
        });
    }
    Ok(())
}

/// Merges an encoded transaction that lies `level` messages deep into `txn`, as prost would, were
/// it not for its limit: only what nests is taken apart here.
fn merge_txn(txn: &mut TxnRequest, mut data: Bytes, level: usize) -> Result<(), Fault> {
    if level > DEPTH_MAX {
        return Err(Fault::TooDeep);
    }
    while let Some(field) = Field::take(&mut data)? {
        match (field.number, field.content) {
            (TXN_SUCCESS, Some(content)) => txn.success.push(decode_op(content, level + 1)?),
            (TXN_FAILURE, Some(content)) => txn.failure.push(decode_op(content, level + 1)?),
            _ => txn.merge(field.whole)?,
        }
    }
    Ok(())
}

fn decode_op(mut data: Bytes, level: usize) -> Result<RequestOp, Fault> {
    if level > DEPTH_MAX {
        return Err(Fault::TooDeep);
    }
    let mut op = RequestOp::default();
    while let Some(field) = Field::take(&mut data)? {
        match (field.number, field.content) {
            (OP_TXN, Some(content)) => {
                // A field that comes again is merged; one of another kind replaces what was there.
                let mut txn = match op.request.take() {
                    Some(Request::RequestTxn(txn)) => txn,
                    _ => TxnRequest::default(),
                };
                merge_txn(&mut txn, content, level + 1)?;
                op.request = Some(Request::RequestTxn(txn));
            }
            _ => op.merge(field.whole)?,
        }
    }
    Ok(op)
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
