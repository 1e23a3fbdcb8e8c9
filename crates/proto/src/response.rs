//! Answers to transactions, decoded with a bound of their own: they nest as deep as the requests did.

use bytes::Bytes;
use prost::Message as _;

use crate::deep::{Fault, Field, SHALLOW_MAX};
use crate::rpc::etcdserverpb::response_op::Response;
use crate::rpc::etcdserverpb::{ResponseOp, TxnResponse};
use crate::{Error, scan};

/// How many protobuf messages may lie inside one another in an answer, the answers to transactions
/// included.
///
/// A server with etcd's defaults takes 128 nested transactions, whose answer has some 260 levels. What
/// decodes, walks or drops an answer recurses, on the stack of whoever asked: at this bound half of the
/// 2 MiB that threads have by default are enough, also in a build without optimisation.
pub const DEPTH_MAX: usize = 600;

#[derive(Clone, Copy)]
enum Kind {
    Txn,
    Op,
}

fn nested(kind: Kind, field: u32) -> Option<Kind> {
    match (kind, field) {
        (Kind::Op, OP_TXN) => Some(Kind::Txn),
        (Kind::Txn, TXN_RESPONSES) => Some(Kind::Op),
        _ => None,
    }
}

// The numbers of the fields that nest.
const TXN_RESPONSES: u32 = 3;
const OP_TXN: u32 = 4;

const WHAT: &str = "TxnResponse";

/// Decodes the answer to a transaction; its `bytes` fields share the buffer of `data`.
///
/// # Errors
///
/// [`Error::TooDeep`] where it nests past [`DEPTH_MAX`] levels, [`Error::Decode`] where the bytes are no
/// answer.
pub fn decode_txn(data: Bytes) -> Result<TxnResponse, Error> {
    if !scan::deeper_than(&data, Kind::Txn, SHALLOW_MAX, nested) {
        return TxnResponse::decode(data).map_err(Fault::of(WHAT));
    }
    let mut txn = TxnResponse::default();
    merge_txn(&mut txn, data, 1).map_err(|fault| fault.named(WHAT, DEPTH_MAX))?;
    Ok(txn)
}

/// Merges an encoded answer that lies `level` messages deep into `txn`, as prost would, were it not for
/// its limit: only what nests is taken apart here.
fn merge_txn(txn: &mut TxnResponse, mut data: Bytes, level: usize) -> Result<(), Fault> {
    if level > DEPTH_MAX {
        return Err(Fault::TooDeep);
    }
    while let Some(field) = Field::take(&mut data)? {
        match (field.number, field.content) {
            (TXN_RESPONSES, Some(content)) => txn.responses.push(decode_op(content, level + 1)?),
            _ => txn.merge(field.whole)?,
        }
    }
    Ok(())
}

fn decode_op(mut data: Bytes, level: usize) -> Result<ResponseOp, Fault> {
    if level > DEPTH_MAX {
        return Err(Fault::TooDeep);
    }
    let mut op = ResponseOp::default();
    while let Some(field) = Field::take(&mut data)? {
        match (field.number, field.content) {
            (OP_TXN, Some(content)) => {
                // A field that comes again is merged; one of another kind replaces what was there.
                let mut txn = match op.response.take() {
                    Some(Response::ResponseTxn(txn)) => txn,
                    _ => TxnResponse::default(),
                };
                merge_txn(&mut txn, content, level + 1)?;
                op.response = Some(Response::ResponseTxn(txn));
            }
            _ => op.merge(field.whole)?,
        }
    }
    Ok(op)
}

#[cfg(test)]
mod tests {
    use prost::encoding::{WireType, encode_key, encode_varint};

    use super::*;
    use crate::rpc::etcdserverpb::{RangeResponse, ResponseHeader};
    use crate::rpc::mvccpb::KeyValue;

    fn field(number: u32, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_key(number, WireType::LengthDelimited, &mut out);
        encode_varint(content.len() as u64, &mut out);
        out.extend_from_slice(content);
        out
    }

    /// A range's answer inside so many transactions' answers, as bytes.
    fn answer(transactions: usize) -> Bytes {
        let range = RangeResponse {
            kvs: vec![KeyValue {
                key: "key".into(),
                ..KeyValue::default()
            }],
            ..RangeResponse::default()
        };
        let mut inner = field(1, &range.encode_to_vec());
        for number in 0..transactions {
            let header = ResponseHeader {
                revision: number as i64,
                ..ResponseHeader::default()
            };
            let mut txn = field(1, &header.encode_to_vec());
            // succeeded
            txn.extend_from_slice(&[0x10, 1]);
            txn.extend(field(TXN_RESPONSES, &inner));
            inner = if number + 1 == transactions {
                txn
            } else {
                field(OP_TXN, &txn)
            };
        }
        inner.into()
    }

    /// How many transactions lie inside one another, down to the range.
    fn depth(mut txn: &TxnResponse) -> usize {
        for depth in 1.. {
            assert!(txn.succeeded);
            match txn.responses[0].response.as_ref().unwrap() {
                Response::ResponseTxn(inner) => txn = inner,
                Response::ResponseRange(range) => {
                    assert_eq!(range.kvs[0].key, "key");
                    return depth;
                }
                other => panic!("{other:?}"),
            }
        }
        unreachable!("it ends somewhere")
    }

    #[test]
    fn an_answer_is_decoded_as_deep_as_transactions_nest() {
        for transactions in [1, 2, 44, 45, 46, 49, 50, 51, 128, DEPTH_MAX / 2] {
            let bytes = answer(transactions);
            let half = std::thread::Builder::new().stack_size(1 << 20);
            let thread = half.spawn(move || {
                let txn = decode_txn(bytes).unwrap();
                assert_eq!(depth(&txn), transactions);
                assert_eq!(txn.clone(), txn);
                txn.header.unwrap().revision
            });
            let revision = thread.unwrap().join().unwrap();
            assert_eq!(revision, transactions as i64 - 1);
        }
    }

    #[test]
    fn an_answer_nested_past_the_bound_is_refused() {
        for transactions in [DEPTH_MAX / 2 + 1, 20_000] {
            let limit = DEPTH_MAX;
            let error = decode_txn(answer(transactions)).unwrap_err();
            assert!(matches!(error, Error::TooDeep { limit: found, .. } if found == limit));
        }
    }

    #[test]
    fn a_deep_answer_that_breaks_off_is_an_error() {
        let whole = answer(128);
        for end in (1..whole.len()).step_by(7) {
            assert!(decode_txn(whole.slice(..end)).is_err(), "{end} bytes");
        }
    }
}
