//! gRPC statuses: the one place where an [`ApiError`] becomes what goes over the wire.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use keelson_proto::{ApiError, Code};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// How a call ended, when it did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: Code,
    pub(crate) text: Cow<'static, str>,
}

impl Status {
    pub(crate) fn new(code: Code, text: impl Into<Cow<'static, str>>) -> Status {
        Status {
            code,
            text: text.into(),
        }
    }

    /// The trailers that end a call with this status.
    pub(crate) fn trailers(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(2);
        self.write(&mut map);
        map
    }

    /// Adds the two fields of the status to `map`.
    pub(crate) fn write(&self, map: &mut HeaderMap) {
        map.insert(GRPC_STATUS, HeaderValue::from(self.code as u16));
        if !self.text.is_empty() {
            let encoded = percent_encoded(&self.text);
            let value = HeaderValue::from_maybe_shared(bytes::Bytes::from(encoded))
                .expect("percent-encoded text is printable ASCII");
            map.insert(GRPC_MESSAGE, value);
        }
    }
}

/// The trailers of a call that ended well.
pub(crate) fn ok_trailers() -> HeaderMap {
    let mut map = HeaderMap::with_capacity(1);
    map.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    map
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Status {
        Status {
            code: error.code(),
            text: Cow::Borrowed(error.text()),
        }
    }
}

/// As the gRPC protocol wants it: all but printable ASCII, and the percent sign, is encoded.
fn percent_encoded(text: &str) -> Vec<u8> {
    const HEX: [u8; 16] = *b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        if (0x20..=0x7e).contains(&byte) && byte != b'%' {
            out.push(byte);
        } else {
            let high = HEX.get(usize::from(byte >> 4)).copied().unwrap_or(b'0');
            let low = HEX.get(usize::from(byte & 15)).copied().unwrap_or(b'0');
            out.extend_from_slice(&[b'%', high, low]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_goes_out_with_its_number_and_text() {
        let trailers = Status::from(ApiError::Compacted).trailers();
        assert_eq!(trailers["grpc-status"], "11");
        assert_eq!(
            trailers["grpc-message"],
            "etcdserver: mvcc: required revision has been compacted"
        );
        assert_eq!(ok_trailers()["grpc-status"], "0");
    }

    #[test]
    fn what_is_not_printable_is_percent_encoded() {
        let status = Status::new(Code::Unknown, "50% of\n\u{e9}");
        assert_eq!(status.trailers()["grpc-message"], "50%25 of%0A%C3%A9");
    }
}
