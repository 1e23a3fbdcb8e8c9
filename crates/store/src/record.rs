//! The stored form of a change: the bytes of an `mvccpb.KeyValue`.
//!
//! These bytes are what the file holds under a revision, what a range answer carries, and what the hashes cover, so they
//! have to be those of etcd: fields in ascending order, zero fields left out. A tombstone has the key alone.
//!
//! Reading is tolerant, as protobuf is: any order, unknown fields skipped, the last of a repeated field wins. A record of
//! no bytes is legal; a restore with a bumped revision writes one.

use bytes::BufMut;
use thiserror::Error;

const KEY: u32 = 1;
const CREATE_REVISION: u32 = 2;
const MOD_REVISION: u32 = 3;
const VERSION: u32 = 4;
const VALUE: u32 = 5;
const LEASE: u32 = 6;

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;
const GROUP_START: u32 = 3;
const GROUP_END: u32 = 4;
const FIXED32: u32 = 5;

/// Groups inside groups that are followed in an unknown field; protobuf decoders stop at about as many.
const GROUP_DEPTH_MAX: u32 = 100;

/// Appends the stored bytes of a put to `out`.
pub fn encode(
    key: &[u8],
    create_revision: i64,
    mod_revision: i64,
    version: i64,
    value: &[u8],
    lease: i64,
    out: &mut impl BufMut,
) {
    put_bytes(KEY, key, out);
    put_int(CREATE_REVISION, create_revision, out);
    put_int(MOD_REVISION, mod_revision, out);
    put_int(VERSION, version, out);
    put_bytes(VALUE, value, out);
    put_int(LEASE, lease, out);
}

/// Length in bytes of what [`encode`] appends.
#[must_use]
pub fn encoded_len(
    key_bytes: usize,
    create_revision: i64,
    mod_revision: i64,
    version: i64,
    value_bytes: usize,
    lease: i64,
) -> usize {
    bytes_len(key_bytes)
        + int_len(create_revision)
        + int_len(mod_revision)
        + int_len(version)
        + bytes_len(value_bytes)
        + int_len(lease)
}

/// Appends the stored bytes of a delete to `out`: the key alone.
pub fn encode_tombstone(key: &[u8], out: &mut impl BufMut) {
    put_bytes(KEY, key, out);
}

/// Length in bytes of what [`encode_tombstone`] appends.
#[must_use]
pub fn tombstone_len(key_bytes: usize) -> usize {
    bytes_len(key_bytes)
}

/// The fields of a stored record, borrowed from its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peek<'a> {
    /// The user's key; empty in a tombstone of no bytes only.
    pub key: &'a [u8],
    /// Main revision of the change that created the key.
    pub create_revision: i64,
    /// Main revision of this change.
    pub mod_revision: i64,
    /// Changes since the creation, 1 for the creation itself.
    pub version: i64,
    /// The value.
    pub value: &'a [u8],
    /// The lease, 0 for none.
    pub lease: i64,
}

/// Reads the fields of a stored record without copying.
///
/// # Errors
///
/// Every variant of [`RecordError`]: the bytes are no protobuf message of this shape.
pub fn peek(bytes: &[u8]) -> Result<Peek<'_>, RecordError> {
    let mut found = Peek::default();
    let mut input = Input { bytes, at: 0 };
    while input.at < bytes.len() {
        let start = input.at;
        let (field, wire) = input.tag()?;
        let unexpected = RecordError::WireType {
            offset: start,
            field,
            found: wire,
        };
        match field {
            KEY | VALUE => {
                if wire != BYTES {
                    return Err(unexpected);
                }
                let bytes = input.bytes()?;
                if field == KEY {
                    found.key = bytes;
                } else {
                    found.value = bytes;
                }
            }
            CREATE_REVISION | MOD_REVISION | VERSION | LEASE => {
                if wire != VARINT {
                    return Err(unexpected);
                }
                let value = input.varint()?.cast_signed();
                match field {
                    CREATE_REVISION => found.create_revision = value,
                    MOD_REVISION => found.mod_revision = value,
                    VERSION => found.version = value,
                    _ => found.lease = value,
                }
            }
            _ => input.skip(field, wire, start)?,
        }
    }
    Ok(found)
}

/// Why bytes are no stored record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A field reaches past the end.
    #[error("record ends inside the field at offset {offset}")]
    Truncated {
        /// Where in the record the reading stopped.
        offset: usize,
    },
    /// A number of more than 64 bits.
    #[error("record has a number of more than 64 bits at offset {offset}")]
    Overflow {
        /// Where in the record the number begins.
        offset: usize,
    },
    /// Field number 0, or one past the largest.
    #[error("record has field number {found} at offset {offset}")]
    FieldNumber {
        /// Where in the record the field begins.
        offset: usize,
        /// The number.
        found: u64,
    },
    /// A field of another wire type than its own, or a wire type that is none.
    #[error("record has wire type {found} for field {field} at offset {offset}")]
    WireType {
        /// Where in the record the field begins.
        offset: usize,
        /// Its number.
        field: u32,
        /// The wire type.
        found: u32,
    },
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn varint(&mut self) -> Result<u64, RecordError> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(RecordError::Truncated { offset: self.at });
            };
            self.at += 1;
            if shift == 63 && byte > 1 {
                return Err(RecordError::Overflow { offset: start });
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(RecordError::Overflow { offset: start })
    }

    fn tag(&mut self) -> Result<(u32, u32), RecordError> {
        let start = self.at;
        let tag = self.varint()?;
        let wire = u32::try_from(tag & 7).expect("three bits");
        match u32::try_from(tag >> 3) {
            Ok(field) if field != 0 && field < 1 << 29 => Ok((field, wire)),
            _ => Err(RecordError::FieldNumber {
                offset: start,
                found: tag >> 3,
            }),
        }
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], RecordError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = usize::try_from(count)
            .ok()
            .and_then(|count| rest.get(..count));
        let taken = taken.ok_or(RecordError::Truncated { offset: self.at })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn bytes(&mut self) -> Result<&'a [u8], RecordError> {
        let count = self.varint()?;
        self.take(count)
    }

    /// Skips a field that this reader does not know, with all that is in it when it is a group.
    fn skip(&mut self, field: u32, wire: u32, start: usize) -> Result<(), RecordError> {
        let mut open = [0u32; GROUP_DEPTH_MAX as usize];
        let mut depth = 0usize;
        let (mut field, mut wire, mut start) = (field, wire, start);
        loop {
            let unexpected = RecordError::WireType {
                offset: start,
                field,
                found: wire,
            };
            match wire {
                VARINT => {
                    self.varint()?;
                }
                FIXED64 => {
                    self.take(8)?;
                }
                BYTES => {
                    self.bytes()?;
                }
                FIXED32 => {
                    self.take(4)?;
                }
                GROUP_START => {
                    *open.get_mut(depth).ok_or(unexpected)? = field;
                    depth += 1;
                }
                GROUP_END if depth > 0 && open[depth - 1] == field => depth -= 1,
                _ => return Err(unexpected),
            }
            if depth == 0 {
                return Ok(());
            }
            start = self.at;
            (field, wire) = self.tag()?;
        }
    }
}

fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

fn int_len(value: i64) -> usize {
    if value == 0 {
        0
    } else {
        1 + varint_len(value.cast_unsigned())
    }
}

fn bytes_len(len: usize) -> usize {
    if len == 0 {
        0
    } else {
        1 + varint_len(len as u64) + len
    }
}

fn put_tag(field: u32, wire: u32, out: &mut impl BufMut) {
    put_varint(u64::from(field << 3 | wire), out);
}

fn put_varint(mut value: u64, out: &mut impl BufMut) {
    while value >= 0x80 {
        out.put_u8(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.put_u8(value.to_le_bytes()[0]);
}

fn put_int(field: u32, value: i64, out: &mut impl BufMut) {
    if value != 0 {
        put_tag(field, VARINT, out);
        put_varint(value.cast_unsigned(), out);
    }
}

fn put_bytes(field: u32, bytes: &[u8], out: &mut impl BufMut) {
    if !bytes.is_empty() {
        put_tag(field, BYTES, out);
        put_varint(bytes.len() as u64, out);
        out.put_slice(bytes);
    }
}

#[cfg(test)]
mod tests;
