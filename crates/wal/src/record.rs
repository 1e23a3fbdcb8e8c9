//! The five kinds of records and what they hold.

use bytes::Bytes;
use keelson_proto::entry::{ConfState, Entry, HardState};
use keelson_proto::ids::{ClusterId, LogIndex, MemberId, Term};
use keelson_proto::rpc::walpb;
use prost::Message as _;

/// What a record is, by its number on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whose log it is.
    Metadata,
    /// An entry.
    Entry,
    /// A hard state.
    State,
    /// The checksum at the end of the segment before.
    Crc,
    /// A point at which a snapshot exists.
    Snapshot,
}

impl Kind {
    /// The kind of this number, if there is one.
    #[must_use]
    pub fn of(number: i64) -> Option<Kind> {
        match number {
            1 => Some(Kind::Metadata),
            2 => Some(Kind::Entry),
            3 => Some(Kind::State),
            4 => Some(Kind::Crc),
            5 => Some(Kind::Snapshot),
            _ => None,
        }
    }

    /// The kind's number.
    #[must_use]
    pub fn number(self) -> i64 {
        match self {
            Kind::Metadata => 1,
            Kind::Entry => 2,
            Kind::State => 3,
            Kind::Crc => 4,
            Kind::Snapshot => 5,
        }
    }
}

/// Whose log it is; repeated in every segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The member that writes it.
    pub node_id: MemberId,
    /// Its cluster.
    pub cluster_id: ClusterId,
}

/// A point of the log at which a snapshot exists; 0/0 is the log's beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotMark {
    /// The last entry in the snapshot.
    pub index: LogIndex,
    /// That entry's term.
    pub term: Term,
}

/// A record's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Whose log it is.
    Metadata(Metadata),
    /// An entry.
    Entry(Entry),
    /// A hard state.
    State(HardState),
    /// The checksum at the end of the segment before.
    Crc(u32),
    /// A snapshot exists here; etcd before 3.5 wrote no configuration, nor is there one at 0.
    Snapshot(SnapshotMark, Option<ConfState>),
}

impl Metadata {
    /// Both fields are always written, so that the bytes are the same in every segment.
    pub(crate) fn encode(self) -> Bytes {
        walpb::Metadata {
            node_id: Some(self.node_id.0),
            cluster_id: Some(self.cluster_id.0),
        }
        .encode_to_vec()
        .into()
    }

    pub(crate) fn decode(data: Bytes) -> Result<Metadata, keelson_proto::Error> {
        let wire = decoded("walpb.Metadata", walpb::Metadata::decode(data))?;
        Ok(Metadata {
            node_id: MemberId(wire.node_id.unwrap_or_default()),
            cluster_id: ClusterId(wire.cluster_id.unwrap_or_default()),
        })
    }
}

impl SnapshotMark {
    pub(crate) fn encode(self, conf_state: Option<&ConfState>) -> Vec<u8> {
        walpb::Snapshot {
            index: Some(self.index.0),
            term: Some(self.term.0),
            conf_state: conf_state.map(Into::into),
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(
        data: Bytes,
    ) -> Result<(SnapshotMark, Option<ConfState>), keelson_proto::Error> {
        let wire = decoded("walpb.Snapshot", walpb::Snapshot::decode(data))?;
        let mark = SnapshotMark {
            index: LogIndex(wire.index.unwrap_or_default()),
            term: Term(wire.term.unwrap_or_default()),
        };
        Ok((mark, wire.conf_state.map(Into::into)))
    }
}

fn decoded<T>(
    what: &'static str,
    result: Result<T, prost::DecodeError>,
) -> Result<T, keelson_proto::Error> {
    result.map_err(|source| keelson_proto::Error::Decode { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_keep_etcds_numbers() {
        for number in 1..=5 {
            assert_eq!(Kind::of(number).unwrap().number(), number);
        }
        assert_eq!(Kind::of(0), None);
        assert_eq!(Kind::of(6), None);
    }

    #[test]
    fn metadata_and_marks_write_their_zeros() {
        assert_eq!(Metadata::default().encode(), [8, 0, 16, 0].as_slice());
        assert_eq!(SnapshotMark::default().encode(None), [8, 0, 16, 0]);
        let mark = SnapshotMark {
            index: LogIndex(7),
            term: Term(2),
        };
        let bytes = mark.encode(Some(&ConfState::default()));
        assert_eq!(bytes, [8, 7, 16, 2, 26, 2, 0x28, 0]);
        assert_eq!(
            SnapshotMark::decode(bytes.into()).unwrap(),
            (mark, Some(ConfState::default()))
        );
    }
}
