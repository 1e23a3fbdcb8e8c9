use keelson_proto::entry::EntryKind;
use proptest::prelude::*;

use super::*;

const LOCAL: MemberId = MemberId(1);
const REMOTE: MemberId = MemberId(2);

fn entry(term: u64, index: u64, data: &'static [u8]) -> Entry {
    Entry {
        term: Term(term),
        index: LogIndex(index),
        data: Bytes::from_static(data),
        ..Entry::default()
    }
}

fn append(term: u64, log_term: u64, index: u64, entries: Vec<Entry>) -> Message {
    Message {
        kind: MessageKind::App,
        to: LOCAL,
        from: REMOTE,
        term: Term(term),
        log_term: Term(log_term),
        index: LogIndex(index),
        entries,
        commit: LogIndex(index),
        ..Message::default()
    }
}

fn encoded(kind: StreamKind, messages: &[Message]) -> BytesMut {
    let mut buffer = BytesMut::new();
    let mut encoder = Encoder::new(kind);
    for message in messages {
        encoder.encode(message, &mut buffer);
    }
    buffer
}

/// Everything that a decoder makes of `bytes`, given in pieces of `step` bytes.
fn decoded(kind: StreamKind, bytes: &[u8], step: usize) -> Result<Vec<Message>, CodecError> {
    let mut decoder = Decoder::new(kind, LOCAL, REMOTE);
    let mut messages = Vec::new();
    for piece in bytes.chunks(step) {
        decoder.push(piece);
        while let Some(message) = decoder.next_message()? {
            messages.push(message);
        }
    }
    Ok(messages)
}

#[test]
fn signs_of_life_have_the_bytes_of_etcd_3_7() {
    let mut buffer = BytesMut::new();
    Encoder::new(StreamKind::Message).heartbeat(&mut buffer);
    assert_eq!(&buffer[..], [0, 0, 0, 0, 0, 0, 0, 2, 8, 8]);
    buffer.clear();
    Encoder::new(StreamKind::Append).heartbeat(&mut buffer);
    assert_eq!(&buffer[..], [0]);
}

#[test]
fn signs_of_life_of_older_releases_are_seen_as_such() {
    // As 3.5 and 3.6 write them, with every zero.
    let older: [&[u8]; 2] = [
        b"\0\0\0\0\0\0\0\x1e\x08\x08\x10\0\x18\0\x20\0\x28\0\x30\0\x40\0\x4a\x0a\x12\x08\x0a\x02\x28\0\x10\0\x18\0\x50\0\x58\0",
        b"\0\0\0\0\0\0\0\x14\x08\x08\x10\0\x18\0\x20\0\x28\0\x30\0\x40\0\x50\0\x58\0\x68\0",
    ];
    for bytes in older {
        let messages = decoded(StreamKind::Message, bytes, 7).unwrap();
        assert!(is_link_heartbeat(&messages[0]), "{messages:?}");
    }
}

#[test]
fn an_append_that_continues_the_one_before_takes_the_short_form() {
    let messages = [
        append(3, 2, 7, vec![entry(3, 8, b"a"), entry(3, 9, b"b")]),
        append(3, 3, 9, vec![entry(3, 10, b"c")]),
        append(3, 3, 10, vec![]),
        append(3, 3, 12, vec![entry(3, 13, b"d")]),
    ];
    let kinds: Vec<u8> = (0..messages.len())
        .map(|count| {
            let before = encoded(StreamKind::Append, &messages[..count]).len();
            encoded(StreamKind::Append, &messages)[before]
        })
        .collect();
    assert_eq!(
        kinds,
        [WHOLE_MESSAGE, APPEND_ENTRIES, APPEND_ENTRIES, WHOLE_MESSAGE]
    );
    for step in [1, 9, 4096] {
        let bytes = encoded(StreamKind::Append, &messages);
        assert_eq!(decoded(StreamKind::Append, &bytes, step).unwrap(), messages);
    }
}

#[test]
fn a_length_past_the_limit_is_refused_before_its_bytes_come() {
    let long = (FRAME_BYTES_MAX + 1).to_be_bytes();
    let error = decoded(StreamKind::Message, &long, 8).unwrap_err();
    assert_eq!(error.to_string(), "rafthttp: error limit exceeded");
    for kind in [APPEND_ENTRIES, WHOLE_MESSAGE] {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&u64::MAX.to_be_bytes());
        let error = decoded(StreamKind::Append, &bytes, 9).unwrap_err();
        assert!(matches!(error, CodecError::TooLong { .. }), "{error}");
    }
}

#[test]
fn an_announced_length_allocates_nothing() {
    let mut decoder = Decoder::new(StreamKind::Message, LOCAL, REMOTE);
    decoder.push(&FRAME_BYTES_MAX.to_be_bytes());
    assert!(decoder.next_message().unwrap().is_none());
    assert!(decoder.buffer.capacity() < 4096);
    let mut decoder = Decoder::new(StreamKind::Append, LOCAL, REMOTE);
    decoder.push(&[APPEND_ENTRIES]);
    decoder.push(&(FRAME_BYTES_MAX / 8).to_be_bytes());
    assert!(decoder.next_message().unwrap().is_none());
    assert_eq!(decoder.entries.unwrap().taken.capacity(), 0);
}

#[test]
fn an_unknown_kind_of_frame_ends_the_stream() {
    let error = decoded(StreamKind::Append, &[3], 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to parse type 3 in msgappv2 stream"
    );
}

#[test]
fn a_position_that_overflows_is_an_error() {
    let mut bytes = encoded(StreamKind::Append, &[append(1, 1, u64::MAX, vec![])]);
    bytes.put_u8(APPEND_ENTRIES);
    bytes.put_u64(1);
    bytes.put_u64(0);
    bytes.put_u64(0);
    let error = decoded(StreamKind::Append, &bytes, 100).unwrap_err();
    assert!(matches!(error, CodecError::Position), "{error}");
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![Just(EntryKind::Normal), Just(EntryKind::ConfChange)];
    let data = proptest::collection::vec(any::<u8>(), 0..40);
    (kind, 0_u64..5, 0_u64..20, data).prop_map(|(kind, term, index, data)| Entry {
        kind,
        term: Term(term),
        index: LogIndex(index),
        data: data.into(),
    })
}

fn any_append() -> impl Strategy<Value = Message> {
    let entries = proptest::collection::vec(any_entry(), 0..4);
    (0_u64..4, 0_u64..4, 0_u64..6, entries, any::<u64>()).prop_map(
        |(term, log_term, index, entries, commit)| Message {
            commit: LogIndex(commit),
            ..append(term, log_term, index, entries)
        },
    )
}

proptest! {
    #[test]
    fn prop_appends_come_out_as_they_went_in(
        messages in proptest::collection::vec(any_append(), 0..12),
        step in 1_usize..64,
    ) {
        let bytes = encoded(StreamKind::Append, &messages);
        prop_assert_eq!(decoded(StreamKind::Append, &bytes, step).unwrap(), messages);
    }

    #[test]
    fn prop_messages_come_out_as_they_went_in(
        messages in proptest::collection::vec(any_append(), 0..12),
        step in 1_usize..64,
    ) {
        let bytes = encoded(StreamKind::Message, &messages);
        prop_assert_eq!(decoded(StreamKind::Message, &bytes, step).unwrap(), messages);
    }

    #[test]
    fn prop_damaged_streams_are_read_without_a_panic(
        messages in proptest::collection::vec(any_append(), 1..6),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        step in 1_usize..64,
    ) {
        for kind in [StreamKind::Append, StreamKind::Message] {
            let mut bytes = encoded(kind, &messages);
            for (at, value) in &damage {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            // Whole or in pieces, the outcome is the same.
            let whole = decoded(kind, &bytes, usize::MAX).map_err(|error| error.to_string());
            let pieces = decoded(kind, &bytes, step).map_err(|error| error.to_string());
            prop_assert_eq!(whole, pieces);
        }
    }

    #[test]
    fn prop_arbitrary_bytes_are_read_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        for kind in [StreamKind::Append, StreamKind::Message] {
            let _ = decoded(kind, &bytes, 16);
        }
    }
}
