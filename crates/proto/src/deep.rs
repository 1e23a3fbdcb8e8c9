//! Messages that nest deeper than prost follows are taken apart field by field.

use bytes::Bytes;
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::Error;

/// Levels up to which a message is left to prost, which follows 100 of them, groups included, and
/// refuses more.
pub(crate) const SHALLOW_MAX: usize = 90;

/// What ends the decoding of a deep message.
pub(crate) enum Fault {
    Decode(DecodeError),
    TooDeep,
}

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Fault {
        Fault::Decode(error)
    }
}

impl Fault {
    pub(crate) fn of(what: &'static str) -> impl Fn(DecodeError) -> Error {
        move |source| Error::Decode { what, source }
    }

    pub(crate) fn named(self, what: &'static str, limit: usize) -> Error {
        match self {
            Fault::Decode(source) => Error::Decode { what, source },
            Fault::TooDeep => Error::TooDeep { what, limit },
        }
    }
}

/// A field as it stands in encoded bytes.
pub(crate) struct Field {
    pub(crate) number: u32,
    /// What it holds, if that has a length.
    pub(crate) content: Option<Bytes>,
    /// Its bytes with number and length: a message of that one field.
    pub(crate) whole: Bytes,
}

impl Field {
    /// Takes the next field off the front; `None` at the end.
    pub(crate) fn take(data: &mut Bytes) -> Result<Option<Field>, DecodeError> {
        if data.is_empty() {
            return Ok(None);
        }
        let all = data.clone();
        let (number, wire_type) = decode_key(data)?;
        let after_key = data.clone();
        skip_field(wire_type, number, data, DecodeContext::default())?;
        let whole = all.slice(..all.len() - data.len());
        let content = (wire_type == WireType::LengthDelimited).then(|| {
            let mut content = after_key.slice(..after_key.len() - data.len());
            // It was skipped, so it is there.
            let length = decode_varint(&mut content).map_or(0, |length| length as usize);
            content.slice(content.len() - length..)
        });
        Ok(Some(Field {
            number,
            content,
            whole,
        }))
    }
}
