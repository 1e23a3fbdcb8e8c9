use super::*;

/// The same message as prost knows it.
#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(int64, tag = "2")]
    create_revision: i64,
    #[prost(int64, tag = "3")]
    mod_revision: i64,
    #[prost(int64, tag = "4")]
    version: i64,
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
    #[prost(int64, tag = "6")]
    lease: i64,
}

#[test]
fn a_record_has_the_bytes_written_out_by_hand() {
    let mut out = Vec::new();
    encode(b"foo", 2, 300, 1, b"bar", -1, &mut out);
    let expected = b"\x0a\x03foo\x10\x02\x18\xac\x02\x20\x01\x2a\x03bar\x30\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
    assert_eq!(out, expected);
    out.clear();
    encode_tombstone(b"foo", &mut out);
    assert_eq!(out, b"\x0a\x03foo");
    assert_eq!(tombstone_len(3), 5);
}

#[test]
fn zero_fields_are_left_out() {
    let mut out = Vec::new();
    encode(b"", 0, 0, 0, b"", 0, &mut out);
    assert_eq!(out, b"");
    encode(b"k", 5, 5, 1, b"", 0, &mut out);
    assert_eq!(out, b"\x0a\x01k\x10\x05\x18\x05\x20\x01");
}

#[test]
fn a_record_of_no_bytes_has_an_empty_key() {
    assert_eq!(peek(b""), Ok(Peek::default()));
}

#[test]
fn unknown_fields_are_skipped_and_the_last_of_a_repeated_one_wins() {
    let bytes = b"\x3a\x02hi\x40\x80\x01\x49abcdefgh\x55abcd\x5b\x63\x08\x01\x64\x5c\x20\x07\x0a\x01a\x0a\x01b";
    let found = peek(bytes).unwrap();
    assert_eq!(
        found,
        Peek {
            key: b"b",
            version: 7,
            ..Peek::default()
        }
    );
}

#[test]
fn broken_records_are_refused_with_their_place() {
    let cases: [(&[u8], RecordError); 10] = [
        (b"\x0a\x05abc", RecordError::Truncated { offset: 2 }),
        (b"\x0a", RecordError::Truncated { offset: 1 }),
        (b"\x20\x80", RecordError::Truncated { offset: 2 }),
        (
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            RecordError::Truncated { offset: 11 },
        ),
        (
            b"\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
            RecordError::Overflow { offset: 1 },
        ),
        (
            b"\x02\x00",
            RecordError::FieldNumber {
                offset: 0,
                found: 0,
            },
        ),
        (
            b"\x08\x01",
            RecordError::WireType {
                offset: 0,
                field: 1,
                found: 0,
            },
        ),
        (
            b"\x22\x00",
            RecordError::WireType {
                offset: 0,
                field: 4,
                found: 2,
            },
        ),
        (
            b"\x3f",
            RecordError::WireType {
                offset: 0,
                field: 7,
                found: 7,
            },
        ),
        (
            b"\x3b\x44",
            RecordError::WireType {
                offset: 1,
                field: 8,
                found: 4,
            },
        ),
    ];
    for (bytes, expected) in cases {
        assert_eq!(peek(bytes), Err(expected), "{bytes:x?}");
    }
    assert!(peek(&[0x3b; 4096]).is_err(), "groups nested without end");
}

proptest::proptest! {
    #[test]
    fn prop_a_record_is_what_prost_writes_and_reads(
        key: Vec<u8>, value: Vec<u8>, create_revision: i64, mod_revision: i64, version in 0i64..300, lease: i64,
    ) {
        use prost::Message as _;
        let mut out = b"before".to_vec();
        encode(&key, create_revision, mod_revision, version, &value, lease, &mut out);
        let out = &out[6..];
        let message = KeyValue { key: key.clone(), create_revision, mod_revision, version, value: value.clone(), lease };
        proptest::prop_assert_eq!(out, message.encode_to_vec());
        proptest::prop_assert_eq!(
            out.len(),
            encoded_len(key.len(), create_revision, mod_revision, version, value.len(), lease)
        );
        let found = peek(out).unwrap();
        proptest::prop_assert_eq!(
            found,
            Peek { key: &key, create_revision, mod_revision, version, value: &value, lease }
        );
    }

    #[test]
    fn prop_any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        use prost::Message as _;
        let ours = peek(&bytes);
        if let Ok(theirs) = KeyValue::decode(bytes.as_slice()) {
            proptest::prop_assert_eq!(ours.unwrap().key, theirs.key);
        }
    }
}
