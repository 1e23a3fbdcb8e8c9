//! What goes over the wire and into the log, encoded and decoded.

use bytes::Bytes;
use keelson_counts::{Table, count};
use keelson_proto::entry::{Entry, EntryKind, HardState};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};
use keelson_proto::request;

use super::put;

/// Entries in a message, as under load.
const ENTRIES: u64 = 64;

pub(super) fn entry(index: u64) -> Entry {
    Entry {
        kind: EntryKind::Normal,
        term: Term(1),
        index: LogIndex(index),
        data: request::encode(&put(usize::try_from(index).unwrap())),
    }
}

fn append() -> Message {
    Message {
        kind: MessageKind::App,
        to: MemberId(2),
        from: MemberId(1),
        term: Term(1),
        log_term: Term(1),
        index: LogIndex(7),
        entries: (8..8 + ENTRIES).map(entry).collect(),
        commit: LogIndex(7),
        ..Message::default()
    }
}

pub(super) fn add_to(table: &mut Table) {
    table.add(
        "proto: encode a put as an entry's data",
        count(put, |put| request::encode(&put)),
    );
    table.add(
        "proto: decode an entry's data to a put",
        count(
            |place| request::encode(&put(place)),
            |data| request::decode(data).unwrap(),
        ),
    );
    table.add(
        "proto: encode a message of 64 entries",
        count(|_| append(), |message| message.encode()),
    );
    table.add(
        "proto: decode a message of 64 entries",
        count(
            |_| append().encode(),
            |bytes: Bytes| Message::decode(bytes).unwrap(),
        ),
    );
    let state = HardState {
        term: Term(1),
        vote: MemberId(1),
        commit: LogIndex(300),
    };
    table.add(
        "proto: encode a hard state",
        count(
            |_| Vec::with_capacity(64),
            |mut out| {
                state.encode(&mut out);
                out
            },
        ),
    );
}
