//! Raw requests of etcd's v2 API, as 3.5 and older put them into the log.
//!
//! 3.5 tells members' attributes and the cluster's version in this form. It has no marker: it is told
//! from an [`crate::rpc::etcdserverpb::InternalRaftRequest`] by its content. See section 6.4 of the
//! formats.

use bytes::Bytes;
use prost::Message as _;

use crate::Error;
use crate::deep::Field;

const FIELD_METHOD: u32 = 2;
const FIELD_PATH: u32 = 3;

/// Keys of fields 1 and 2: the request begins with one of them, whoever wrote it.
const FIRST_BYTES: [u8; 2] = [0x08, 0x12];

const METHODS: [&[u8]; 6] = [b"PUT", b"POST", b"GET", b"DELETE", b"QGET", b"SYNC"];

/// What v3 can need of a raw request; the rest concerns the v2 store alone.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RawRequest {
    /// The request's id.
    #[prost(uint64, optional, tag = "1")]
    pub id: Option<u64>,
    /// `PUT` and the like.
    #[prost(string, optional, tag = "2")]
    pub method: Option<String>,
    /// The place in the v2 store.
    #[prost(string, optional, tag = "3")]
    pub path: Option<String>,
    /// The value.
    #[prost(string, optional, tag = "4")]
    pub value: Option<String>,
}

/// Reads the data of a normal entry if it is a raw request, and answers `None` if it is not.
///
/// # Errors
///
/// [`Error::Decode`] for one whose texts are none.
pub fn decode(data: &Bytes) -> Result<Option<RawRequest>, Error> {
    if !is_raw(data) {
        return Ok(None);
    }
    RawRequest::decode(data.clone())
        .map(Some)
        .map_err(|source| Error::Decode {
            what: "etcdserverpb.Request",
            source,
        })
}

/// Whether the data of a normal entry is a raw request. The method stands where a v3 request may have
/// a message, and none of the methods reads as one; nor does a path.
#[must_use]
pub fn is_raw(data: &Bytes) -> bool {
    if !data.first().is_some_and(|byte| FIRST_BYTES.contains(byte)) {
        return false;
    }
    let (mut method, mut path) = (None, None);
    let mut rest = data.clone();
    while let Ok(Some(field)) = Field::take(&mut rest) {
        match field.number {
            FIELD_METHOD => method = field.content,
            FIELD_PATH => path = field.content,
            _ => {}
        }
    }
    method.is_some_and(|method| {
        METHODS.contains(&&*method)
            || method.is_empty() && path.is_some_and(|path| path.starts_with(b"/"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request;
    use crate::rpc::etcdserverpb::{InternalRaftRequest, RangeRequest, RequestHeader};

    /// As 3.5 writes it: fields of zeros, too.
    fn raw(method: &str, path: &str, value: &str) -> Bytes {
        let request = RawRequest {
            id: Some(5),
            method: Some(method.to_owned()),
            path: Some(path.to_owned()),
            value: Some(value.to_owned()),
        };
        let mut bytes = request.encode_to_vec();
        // Dir: false, PrevValue: "", PrevIndex: 0.
        bytes.extend_from_slice(&[0x28, 0, 0x32, 0, 0x38, 0]);
        bytes.into()
    }

    #[test]
    fn raw_requests_are_read() {
        let data = raw("PUT", "/0/version", "3.5.0");
        let request = decode(&data).unwrap().unwrap();
        assert_eq!(request.id(), 5);
        assert_eq!(
            (request.method(), request.path(), request.value()),
            ("PUT", "/0/version", "3.5.0")
        );
        for method in ["SYNC", "GET", "QGET", "POST", "DELETE"] {
            assert!(decode(&raw(method, "", "")).unwrap().is_some(), "{method}");
        }
        assert!(decode(&raw("", "/1/a", "")).unwrap().is_some());
    }

    #[test]
    fn requests_of_v3_are_no_raw_ones() {
        let mut request = InternalRaftRequest {
            id: 5,
            range: Some(RangeRequest {
                key: Bytes::from_static(b"/0/version"),
                ..RangeRequest::default()
            }),
            ..InternalRaftRequest::default()
        };
        assert!(decode(&request::encode(&request)).unwrap().is_none());
        request.header = Some(RequestHeader {
            id: 5,
            ..RequestHeader::default()
        });
        request.id = 0;
        assert!(decode(&request::encode(&request)).unwrap().is_none());
        assert!(decode(&Bytes::new()).unwrap().is_none());
        // Field 2 with a message in it, and one that ends too early.
        assert!(!is_raw(&Bytes::from_static(&[8, 5, 0x12, 2, 8, 5])));
        assert!(!is_raw(&Bytes::from_static(&[8, 5, 0x12, 9, b'P'])));
    }

    #[test]
    fn a_raw_request_whose_texts_are_none_is_an_error() {
        let data = Bytes::from_static(&[8, 5, 0x12, 3, b'P', b'U', b'T', 0x1a, 1, 0xff]);
        assert!(matches!(decode(&data), Err(Error::Decode { .. })));
    }
}
