//! Reading of an entry only what must be known before it is applied: whose answer it is, and, for
//! warnings, what it says.

use std::fmt::Write as _;

use keelson_proto::entry::{ConfChange, Entry, EntryKind};
use keelson_proto::ids::RequestId;
use keelson_proto::request;
use keelson_proto::rpc::etcdserverpb::InternalRaftRequest;

use crate::stats::OPERATIONS;

const FIELD_ID: u64 = 1;
const FIELD_PUT: u64 = 4;
/// Key, value, and whether the value before is wanted, which is read for the answer.
const PLAIN_PUT: [u64; 3] = [1, 2, 4];
const FIELD_HEADER: u64 = 100;
const WIRE_VARINT: u64 = 0;
const WIRE_FIXED64: u64 = 1;
const WIRE_BYTES: u64 = 2;
const WIRE_FIXED32: u64 = 5;

/// How much of a key a warning shows.
const SHOWN_BYTES: usize = 128;

/// The id of the request that an entry holds: `ID`, or `header.ID` where that is 0.
///
/// Only the outermost fields are walked; bytes that are no request have no id, and apply will say so.
pub(crate) fn request_id(entry: &Entry) -> Option<RequestId> {
    if entry.data.is_empty() {
        return None;
    }
    let id = match entry.kind {
        EntryKind::Normal => {
            let header = |data| field(data, FIELD_ID).map(|(id, _)| id);
            let own = field(&entry.data, FIELD_ID)
                .map(|(id, _)| id)
                .filter(|id| *id != 0);
            own.or_else(|| header(field(&entry.data, FIELD_HEADER)?.1))?
        }
        EntryKind::ConfChange => ConfChange::decode(entry.data.clone()).ok()?.id,
        EntryKind::ConfChangeV2 => return None,
    };
    (id != 0).then_some(RequestId(id))
}

/// What a request asks for, as a place in [`OPERATIONS`]; the last one where that is not known.
///
/// Only the outermost fields are walked.
pub(crate) fn operation(entry: &Entry) -> usize {
    let unknown = OPERATIONS.len() - 1;
    let mut data: &[u8] = &entry.data;
    while let Some((number, _)) = next_field(&mut data) {
        if let Ok(place) = OPERATIONS[..unknown].binary_search_by_key(&number, |(field, _)| *field)
        {
            return place;
        }
    }
    unknown
}

/// Whether an entry puts a value to a key and nothing else: without a lease, and without keeping what was
/// there, which would have to be read.
pub(crate) fn is_plain_put(entry: &Entry) -> bool {
    let mut data: &[u8] = &entry.data;
    let mut has_put = false;
    while !data.is_empty() {
        match next_field(&mut data) {
            Some((FIELD_PUT, (_, put))) if holds_only(put, &PLAIN_PUT) => has_put = true,
            Some((FIELD_ID | FIELD_HEADER, _)) => {}
            _ => return false,
        }
    }
    has_put && entry.kind == EntryKind::Normal
}

/// Whether a message has no other fields than these.
fn holds_only(mut data: &[u8], fields: &[u64]) -> bool {
    while !data.is_empty() {
        match next_field(&mut data) {
            Some((number, _)) if fields.contains(&number) => {}
            _ => return false,
        }
    }
    true
}

/// The last field of a number: its value if it is a varint, its bytes if it has some.
fn field(mut data: &[u8], wanted: u64) -> Option<(u64, &[u8])> {
    let mut found = None;
    while !data.is_empty() {
        let (number, value) = next_field(&mut data)?;
        if number == wanted {
            found = Some(value);
        }
    }
    found
}

/// The next field, with its number; `None` at the end, and where there is none.
fn next_field<'a>(data: &mut &'a [u8]) -> Option<(u64, (u64, &'a [u8]))> {
    let key = varint(data)?;
    let value = match key & 7 {
        WIRE_VARINT => (varint(data)?, &[][..]),
        WIRE_FIXED64 => (0, split(data, 8)?),
        WIRE_BYTES => {
            let length = varint(data)?;
            (0, split(data, length)?)
        }
        WIRE_FIXED32 => (0, split(data, 4)?),
        _ => return None,
    };
    Some((key >> 3, value))
}

fn split<'a>(data: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (now, rest) = data.split_at_checked(usize::try_from(length).ok()?)?;
    *data = rest;
    Some(now)
}

fn varint(data: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = data.split_first()?;
        *data = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// What an entry asks for, for a warning: keys, and sizes in place of values, as etcd shows them.
pub(crate) fn describe(entry: &Entry) -> String {
    match entry.kind {
        EntryKind::Normal => match request::decode(entry.data.clone()) {
            Ok(request) => describe_request(&request),
            Err(error) => error.to_string(),
        },
        EntryKind::ConfChange | EntryKind::ConfChangeV2 => "configuration change".to_owned(),
    }
}

fn describe_request(request: &InternalRaftRequest) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    if let Some(header) = &request.header {
        let _ = write!(text, "header:<ID:{} ", header.id);
        if !header.username.is_empty() {
            let _ = write!(text, "username:\"{}\" ", header.username);
        }
        if header.auth_revision != 0 {
            let _ = write!(text, "auth_revision:{} ", header.auth_revision);
        }
        text.push_str("> ");
    }
    if let Some(put) = &request.put {
        let _ = write!(
            text,
            "put:<key:{} value_size:{} ",
            quoted(&put.key),
            put.value.len()
        );
        if put.lease != 0 {
            let _ = write!(text, "lease:{} ", put.lease);
        }
        text.push('>');
    } else if let Some(delete) = &request.delete_range {
        let _ = write!(
            text,
            "delete_range:<key:{} range_end:{} >",
            quoted(&delete.key),
            quoted(&delete.range_end)
        );
    } else if let Some(txn) = &request.txn {
        let _ = write!(
            text,
            "txn:<compare:{} success:{} failure:{} >",
            txn.compare.len(),
            txn.success.len(),
            txn.failure.len()
        );
    } else if let Some(compaction) = &request.compaction {
        let _ = write!(text, "compaction:<revision:{} >", compaction.revision);
    } else if let Some(grant) = &request.lease_grant {
        let _ = write!(
            text,
            "lease_grant:<ttl:{}-second id:{:016x} >",
            grant.ttl, grant.id
        );
    } else if let Some(revoke) = &request.lease_revoke {
        let _ = write!(text, "lease_revoke:<id:{:016x} >", revoke.id);
    } else {
        text.push_str(kind(request));
    }
    text
}

/// The name of what is asked for, where nothing of it is shown: it may be secret.
fn kind(request: &InternalRaftRequest) -> &'static str {
    let kinds = [
        (request.lease_checkpoint.is_some(), "lease_checkpoint:<>"),
        (request.alarm.is_some(), "alarm:<>"),
        (
            request.cluster_version_set.is_some(),
            "cluster_version_set:<>",
        ),
        (
            request.cluster_member_attr_set.is_some(),
            "cluster_member_attr_set:<>",
        ),
        (
            request.downgrade_info_set.is_some(),
            "downgrade_info_set:<>",
        ),
    ];
    kinds
        .iter()
        .find(|(is, _)| *is)
        .map_or("auth:<>", |(_, name)| name)
}

fn quoted(bytes: &[u8]) -> String {
    let shown = bytes.get(..SHOWN_BYTES).unwrap_or(bytes);
    format!("\"{}\"", shown.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use keelson_proto::rpc::etcdserverpb::{PutRequest, RequestHeader};

    fn entry(data: impl Into<Bytes>) -> Entry {
        Entry {
            data: data.into(),
            ..Entry::default()
        }
    }

    fn put(id: u64, header: u64) -> Entry {
        entry(request::encode(&InternalRaftRequest {
            id,
            header: Some(RequestHeader {
                id: header,
                username: "root".into(),
                auth_revision: 3,
            }),
            put: Some(PutRequest {
                key: "k".into(),
                value: "v".into(),
                ..PutRequest::default()
            }),
            ..InternalRaftRequest::default()
        }))
    }

    #[test]
    fn the_id_is_the_own_field_and_else_the_headers() {
        assert_eq!(request_id(&put(0, 7)), Some(RequestId(7)));
        assert_eq!(request_id(&put(9, 7)), Some(RequestId(9)));
        assert_eq!(request_id(&put(0, 0)), None);
        assert_eq!(request_id(&entry(Bytes::new())), None);
    }

    #[test]
    fn the_operation_is_the_field_that_is_set() {
        let name = |entry: &Entry| OPERATIONS[operation(entry)].1;
        assert_eq!(name(&put(0, 7)), "Put");
        let status = InternalRaftRequest {
            auth_status: Some(keelson_proto::rpc::etcdserverpb::AuthStatusRequest::default()),
            ..InternalRaftRequest::default()
        };
        assert_eq!(name(&entry(request::encode(&status))), "unknown");
        assert_eq!(name(&entry(vec![0xff; 12])), "unknown");
        let sorted = OPERATIONS[..OPERATIONS.len() - 1].is_sorted_by_key(|(field, _)| *field);
        assert!(sorted, "the fields are searched for");
    }

    #[test]
    fn a_put_is_plain_only_where_there_is_nothing_else_to_it() {
        let put_of = |put: PutRequest| {
            entry(request::encode(&InternalRaftRequest {
                id: 9,
                put: Some(put),
                ..InternalRaftRequest::default()
            }))
        };
        assert!(is_plain_put(&put(9, 7)));
        assert!(is_plain_put(&put_of(PutRequest {
            key: "k".into(),
            prev_kv: true,
            ..PutRequest::default()
        })));
        for put in [
            PutRequest {
                lease: 1,
                ..PutRequest::default()
            },
            PutRequest {
                ignore_value: true,
                ..PutRequest::default()
            },
            PutRequest {
                ignore_lease: true,
                ..PutRequest::default()
            },
        ] {
            assert!(!is_plain_put(&put_of(put)));
        }
        let mut both = put(9, 7).data.to_vec();
        both.extend_from_slice(&[0x32, 0]);
        let cut = put(9, 7).data[..6].to_vec();
        let none = request::encode(&InternalRaftRequest::default()).to_vec();
        for data in [both, cut, none, vec![0xff; 9]] {
            assert!(!is_plain_put(&entry(data)));
        }
        let kind = EntryKind::ConfChange;
        assert!(!is_plain_put(&Entry { kind, ..put(9, 7) }));
    }

    #[test]
    fn a_configuration_change_has_its_id() {
        let change = ConfChange {
            id: 5,
            ..ConfChange::default()
        };
        let kind = EntryKind::ConfChange;
        assert_eq!(
            request_id(&Entry {
                kind,
                ..entry(change.encode())
            }),
            Some(RequestId(5))
        );
    }

    #[test]
    fn bytes_that_are_no_request_have_no_id() {
        for bytes in [
            &[0x08][..],
            &[0x0a, 5, 1],
            &[0xff; 12],
            &[0x0f, 1],
            &[0xa2, 0x06, 1, 0x08],
        ] {
            assert_eq!(request_id(&entry(bytes.to_vec())), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_description_shows_sizes_in_place_of_values() {
        let text = describe(&put(0, 7));
        assert_eq!(
            text,
            "header:<ID:7 username:\"root\" auth_revision:3 > put:<key:\"k\" value_size:1 >"
        );
    }
}
