//! The frame around a record: length word, padding, and the checksum chain.
//!
//! See `docs/format/wal.md`.

use std::io::IoSlice;
use std::ops::Range;

use bytes::{Buf as _, BufMut as _, Bytes};
use keelson_proto::entry::{Entry, EntryKind};
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_varint, encoded_len_varint,
    skip_field,
};

use crate::record::Kind;

/// Bytes of the length word.
pub(crate) const LENGTH_BYTES: u64 = 8;
/// Frames begin and end at multiples of this.
pub(crate) const ALIGNMENT: u64 = 8;
/// Bits of the length word that are the record's length.
const LENGTH_MASK: u64 = (1 << 56) - 1;
/// Set in the length word's top byte when there is padding.
const PADDED: u64 = 1 << 63;
/// How far up the padding's length is shifted.
const PADDING_SHIFT: u32 = 56;
/// What a disk writes as a whole or not at all.
const SECTOR_BYTES: u64 = 512;

/// Field 1 as a varint: the record's kind.
const KIND_KEY: u8 = 0x08;
/// Field 2 as a varint: the running checksum.
const CRC_KEY: u8 = 0x10;
/// Field 3 as bytes: the record's content.
const DATA_KEY: u8 = 0x1a;

/// An entry's data from this size on is written from where it is, not copied into the batch.
const SHARED_BYTES: usize = 4096;
/// More buffer than this is not kept from one batch to the next.
const KEPT_BYTES: usize = 1 << 20;

/// What the length word says: the record's length and the padding after it.
pub(crate) fn parse_length(word: u64) -> (u64, u8) {
    let padding = if word & PADDED != 0 {
        (word >> PADDING_SHIFT) as u8 & 0x7
    } else {
        0
    };
    (word & LENGTH_MASK, padding)
}

/// The padding after a record of this length.
fn padding_of(length: u64) -> u64 {
    (ALIGNMENT - length % ALIGNMENT) % ALIGNMENT
}

fn length_word(length: u64) -> u64 {
    assert!(length <= LENGTH_MASK, "a record's length has 56 bits");
    match padding_of(length) {
        0 => length,
        padding => length | PADDED | padding << PADDING_SHIFT,
    }
}

/// Continues the chain of CRC-32C over what records hold.
pub(crate) fn chain(crc: u32, data: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, data)
}

/// Whether a part of a bad frame lies in a sector that was never written. `payload` is record and
/// padding, `offset` where it begins in its file.
pub(crate) fn is_torn(payload: &[u8], offset: u64) -> bool {
    let mut rest = payload;
    let mut at = offset;
    while !rest.is_empty() {
        let piece = (SECTOR_BYTES - at % SECTOR_BYTES).min(rest.len() as u64);
        let (sector, after) = rest.split_at(piece as usize);
        if sector.iter().all(|byte| *byte == 0) {
            return true;
        }
        rest = after;
        at += piece;
    }
    false
}

/// A record as its frame holds it, unchecked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) kind: i64,
    pub(crate) crc: u32,
    pub(crate) data: Bytes,
}

impl Raw {
    /// Reads a record; fields that are unknown or of another wire type are passed over, as Go's
    /// decoder passes over them.
    pub(crate) fn decode(mut bytes: Bytes) -> Result<Raw, prost::DecodeError> {
        let mut raw = Raw::default();
        while bytes.has_remaining() {
            let (field, wire) = decode_key(&mut bytes)?;
            match (field, wire) {
                (1, WireType::Varint) => raw.kind = decode_varint(&mut bytes)? as i64,
                (2, WireType::Varint) => raw.crc = decode_varint(&mut bytes)? as u32,
                (3, WireType::LengthDelimited) => {
                    prost::encoding::bytes::merge(
                        wire,
                        &mut raw.data,
                        &mut bytes,
                        DecodeContext::default(),
                    )?;
                }
                _ => skip_field(wire, field, &mut bytes, DecodeContext::default())?,
            }
        }
        Ok(raw)
    }
}

#[derive(Debug)]
enum Piece {
    /// A part of the batch's own buffer.
    Own(Range<usize>),
    /// An entry's data where it lies.
    Shared(Bytes),
}

/// Frames that wait to be written, and the checksum at their end.
#[derive(Debug)]
pub(crate) struct Batch {
    crc: u32,
    own: Vec<u8>,
    /// Where the part of `own` begins that is in no piece yet.
    open: usize,
    pieces: Vec<Piece>,
    bytes: u64,
}

impl Batch {
    pub(crate) fn new(crc: u32) -> Batch {
        Batch {
            crc,
            own: Vec::new(),
            open: 0,
            pieces: Vec::new(),
            bytes: 0,
        }
    }

    /// The length of all frames.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds the record that begins a segment; it carries the checksum so far.
    pub(crate) fn push_crc(&mut self) {
        self.head(Kind::Crc, None);
        self.end(record_bytes(self.crc, None));
    }

    /// Adds a record.
    pub(crate) fn push(&mut self, kind: Kind, data: &[u8]) {
        self.crc = chain(self.crc, data);
        self.head(kind, Some(data.len()));
        self.own.extend_from_slice(data);
        self.end(record_bytes(self.crc, Some(data.len())));
    }

    /// Adds an entry: what [`Batch::push`] would do with its encoding, without the copy.
    pub(crate) fn push_entry(&mut self, entry: &Entry) {
        let mut fields = [0; ENTRY_FIELDS_BYTES];
        let fields = entry_fields(entry, &mut fields);
        let length = fields.len() + entry.data.len();
        self.crc = chain(chain(self.crc, fields), &entry.data);
        self.head(Kind::Entry, Some(length));
        self.own.extend_from_slice(fields);
        if entry.data.len() < SHARED_BYTES {
            self.own.extend_from_slice(&entry.data);
        } else {
            self.close();
            self.pieces.push(Piece::Shared(entry.data.clone()));
        }
        self.end(record_bytes(self.crc, Some(length)));
    }

    fn head(&mut self, kind: Kind, data: Option<usize>) {
        self.own
            .put_u64_le(length_word(record_bytes(self.crc, data)));
        self.own.put_u8(KIND_KEY);
        encode_varint(kind.number() as u64, &mut self.own);
        self.own.put_u8(CRC_KEY);
        encode_varint(self.crc.into(), &mut self.own);
        if let Some(length) = data {
            self.own.put_u8(DATA_KEY);
            encode_varint(length as u64, &mut self.own);
        }
    }

    fn end(&mut self, length: u64) {
        let padding = padding_of(length);
        self.own.put_bytes(0, padding as usize);
        self.bytes += LENGTH_BYTES + length + padding;
    }

    fn close(&mut self) {
        if self.open < self.own.len() {
            self.pieces.push(Piece::Own(self.open..self.own.len()));
            self.open = self.own.len();
        }
    }

    /// The frames, in order, for one write.
    pub(crate) fn slices(&mut self) -> Vec<IoSlice<'_>> {
        self.close();
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Own(range) => IoSlice::new(&self.own[range.clone()]),
                Piece::Shared(data) => IoSlice::new(data),
            })
            .collect()
    }

    /// Forgets the frames; the checksum goes on.
    pub(crate) fn clear(&mut self) {
        self.own.clear();
        if self.own.capacity() > KEPT_BYTES {
            self.own.shrink_to(KEPT_BYTES);
        }
        self.open = 0;
        self.pieces.clear();
        self.bytes = 0;
    }
}

/// The length of a record; every kind's number is one byte.
fn record_bytes(crc: u32, data: Option<usize>) -> u64 {
    let data = match data {
        Some(length) => 1 + encoded_len_varint(length as u64) as u64 + length as u64,
        None => 0,
    };
    2 + 1 + encoded_len_varint(crc.into()) as u64 + data
}

/// Room for an entry's fields but for the data itself: four keys, a kind, three varints.
const ENTRY_FIELDS_BYTES: usize = 4 + 1 + 3 * 10;

/// An entry's encoding up to its data, which is the last field; the same bytes as
/// [`Entry::encode`] gives.
fn entry_fields<'a>(entry: &Entry, buffer: &'a mut [u8; ENTRY_FIELDS_BYTES]) -> &'a [u8] {
    let mut rest = &mut buffer[..];
    match entry.kind {
        EntryKind::Normal => {}
        EntryKind::ConfChange => rest.put_slice(&[0x08, 1]),
        EntryKind::ConfChangeV2 => rest.put_slice(&[0x08, 2]),
    }
    rest.put_u8(0x10);
    encode_varint(entry.term.0, &mut rest);
    rest.put_u8(0x18);
    encode_varint(entry.index.0, &mut rest);
    if !entry.data.is_empty() {
        rest.put_u8(0x22);
        encode_varint(entry.data.len() as u64, &mut rest);
    }
    let left = rest.len();
    &buffer[..ENTRY_FIELDS_BYTES - left]
}

#[cfg(test)]
mod tests {
    use keelson_proto::ids::{LogIndex, Term};

    use super::*;

    fn written(batch: &mut Batch) -> Vec<u8> {
        let bytes: Vec<u8> = batch
            .slices()
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect();
        assert_eq!(bytes.len() as u64, batch.bytes());
        bytes
    }

    #[test]
    fn a_log_begins_with_the_sixteen_bytes_of_an_empty_chain() {
        let mut batch = Batch::new(0);
        batch.push_crc();
        assert_eq!(
            written(&mut batch),
            [4, 0, 0, 0, 0, 0, 0, 0x84, 8, 4, 16, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn an_entry_is_framed_as_its_encoding_would_be() {
        for (kind, term, index, length) in [
            (EntryKind::Normal, 0, 0, 0),
            (EntryKind::Normal, 1, 2, 3),
            (EntryKind::ConfChange, 300, 70_000, 127),
            (
                EntryKind::ConfChangeV2,
                u64::MAX,
                u64::MAX,
                SHARED_BYTES - 1,
            ),
            (EntryKind::Normal, 5, 6, SHARED_BYTES),
            (EntryKind::Normal, 5, 7, 3 * SHARED_BYTES + 5),
        ] {
            let entry = Entry {
                kind,
                term: Term(term),
                index: LogIndex(index),
                data: (0..length).map(|at| at as u8).collect(),
            };
            let mut encoded = Vec::new();
            entry.encode(&mut encoded);
            let (mut short, mut long) = (Batch::new(77), Batch::new(77));
            short.push_entry(&entry);
            short.push_entry(&entry);
            long.push(Kind::Entry, &encoded);
            long.push(Kind::Entry, &encoded);
            assert_eq!(written(&mut short), written(&mut long));
            assert_eq!(short.crc, long.crc);
        }
    }

    #[test]
    fn a_length_word_says_the_padding_that_was_written() {
        for length in 1..40 {
            let (back, padding) = parse_length(length_word(length));
            assert_eq!(back, length);
            assert_eq!((length + u64::from(padding)) % ALIGNMENT, 0);
        }
    }

    #[test]
    fn a_record_is_torn_when_one_of_its_sectors_is_zero() {
        let mut payload = vec![7; 1500];
        assert!(!is_torn(&payload, 8));
        payload[504..1016].fill(0);
        assert!(is_torn(&payload, 8));
        assert!(!is_torn(&payload, 9));
        assert!(!is_torn(&[], 0));
    }

    #[test]
    fn unknown_fields_of_a_record_are_passed_over() {
        let raw = Raw::decode(Bytes::from_static(&[
            0x08, 2, 0x22, 1, 9, 0x12, 1, 5, 0x10, 7, 0x1a, 2, 1, 2,
        ]));
        assert_eq!(
            raw.unwrap(),
            Raw {
                kind: 2,
                crc: 7,
                data: Bytes::from_static(&[1, 2])
            }
        );
        assert!(Raw::decode(Bytes::from_static(&[0x1a, 5, 1])).is_err());
    }
}
