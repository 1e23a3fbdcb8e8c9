//! What outlives a request holds no part of the frame that the request came in: a frame of 4 MiB
//! must not live on for one small key.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use keelson_proto::entry::{ConfChange, ConfChangeKind, Entry, EntryKind};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::request;
use keelson_proto::rpc::authpb::Permission;
use keelson_proto::rpc::etcdserverpb::{
    AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest, InternalRaftRequest,
    LeaseGrantRequest, PutRequest,
};
use keelson_proto::rpc::membershippb::{Attributes, ClusterMemberAttrSetRequest};
use keelson_store::watch::{Filters, Shard, Spec, StreamId};
use keelson_store::{Answer, Effect};
use rig::Rig;

const KEYS: usize = 100_000;
const KEYS_PER_FRAME: usize = 1_000;

/// A large buffer, as one read from a connection, that tells when it is let go.
struct Frame {
    bytes: Vec<u8>,
    alive: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Entries whose bytes lie in one frame.
fn frame(first: u64, alive: &Arc<AtomicUsize>, data: Vec<(EntryKind, Bytes)>) -> Vec<Entry> {
    alive.fetch_add(1, Ordering::Relaxed);
    let bytes = data.iter().flat_map(|(_, data)| data.to_vec()).collect();
    let owner = Frame {
        bytes,
        alive: alive.clone(),
    };
    let mut rest = Bytes::from_owner(owner);
    (first..)
        .zip(data)
        .map(|(index, (kind, data))| Entry {
            kind,
            term: Term(1),
            index: LogIndex(index),
            data: rest.split_to(data.len()),
        })
        .collect()
}

fn normal(request: InternalRaftRequest) -> (EntryKind, Bytes) {
    (EntryKind::Normal, request::encode(&request))
}

fn small_requests() -> Vec<(EntryKind, Bytes)> {
    let context = r#"{"id":1,"peerURLs":["http://10.0.0.1:2380"],"name":"m1"}"#;
    let change = ConfChange {
        id: 1,
        kind: ConfChangeKind::AddNode,
        member: MemberId(1),
        context: Bytes::from_static(context.as_bytes()),
    };
    let request = InternalRaftRequest::default;
    vec![
        (EntryKind::ConfChange, change.encode()),
        normal(InternalRaftRequest {
            cluster_member_attr_set: Some(ClusterMemberAttrSetRequest {
                member_id: 1,
                member_attributes: Some(Attributes {
                    name: "renamed".to_owned(),
                    client_urls: vec!["http://10.0.0.1:2379".to_owned()],
                }),
            }),
            ..request()
        }),
        normal(InternalRaftRequest {
            lease_grant: Some(LeaseGrantRequest { id: 7, ttl: 60 }),
            ..request()
        }),
        normal(InternalRaftRequest {
            auth_user_add: Some(AuthUserAddRequest {
                name: "user".to_owned(),
                // "password", hashed at the lowest cost that there is, in base64.
                hashed_password: "JDJhJDA0JDEyMzQ1Njc4OTAxMjM0NTY3ODkwMXU=".to_owned(),
                ..Default::default()
            }),
            ..request()
        }),
        normal(InternalRaftRequest {
            auth_role_add: Some(AuthRoleAddRequest {
                name: "role".to_owned(),
            }),
            ..request()
        }),
        normal(InternalRaftRequest {
            auth_role_grant_permission: Some(AuthRoleGrantPermissionRequest {
                name: "role".to_owned(),
                perm: Some(Permission {
                    key: Bytes::from_static(b"from"),
                    range_end: Bytes::from_static(b"to"),
                    ..Default::default()
                }),
            }),
            ..request()
        }),
    ]
}

fn puts(from: usize) -> Vec<(EntryKind, Bytes)> {
    let put = |place: usize| PutRequest {
        key: format!("key/{place:06}").into(),
        value: Bytes::from_static(b"v"),
        lease: if place.is_multiple_of(2) { 7 } else { 0 },
        prev_kv: true,
        ..Default::default()
    };
    (from..from + KEYS_PER_FRAME)
        .map(|place| {
            normal(InternalRaftRequest {
                put: Some(put(place)),
                ..Default::default()
            })
        })
        .collect()
}

#[test]
fn no_frame_outlives_its_requests() {
    let mut rig = Rig::new();
    let alive = Arc::new(AtomicUsize::new(0));
    let mut index = 1;
    let mut apply = |rig: &mut Rig, data: Vec<(EntryKind, Bytes)>| {
        for entry in frame(index, &alive, data) {
            index += 1;
            let applied = rig.store.apply(&entry, Answer::Wanted).unwrap();
            for effect in &applied.effects {
                assert!(!matches!(effect, Effect::Stop(_)), "{effect:?}");
            }
        }
    };
    apply(&mut rig, small_requests());
    for from in (0..KEYS).step_by(KEYS_PER_FRAME) {
        apply(&mut rig, puts(from));
    }
    // The index, the tail, the leases, members and auth hold all of it, and so does the batch.
    let shared = rig.store.shared().clone();
    assert_eq!(shared.index().keys(), KEYS as u64);
    let on_lease = shared
        .leases()
        .iter()
        .map(|(_, lease)| lease.keys().into_iter().count())
        .sum::<usize>();
    assert_eq!(on_lease, KEYS / 2);
    assert_eq!(shared.members().members().count(), 1);
    assert_eq!(shared.auth().role("role").unwrap().len(), 1);
    assert!(shared.auth().user("user").is_ok());
    assert_eq!(alive.load(Ordering::Relaxed), 0, "frames are let go");

    // Watchers are matched by copies of their own; events share the tail's slabs alone.
    let request = frame(1, &alive, vec![(EntryKind::Normal, "key/0key/1".into())]).remove(0);
    let mut shard = Shard::default();
    shard.open_at(1);
    let spec = Spec {
        key: request.data[..5].into(),
        range_end: request.data[5..].into(),
        filters: Filters::default(),
        start: 2,
    };
    shard.add(StreamId(0), 0, spec);
    drop(request);
    assert_eq!(alive.load(Ordering::Relaxed), 0, "frames are let go");
    let batch = rig.store.take_events().unwrap();
    let mut seen = 0;
    shard.events(&batch, &mut |_, _, events| {
        seen += events.len();
        keelson_store::watch::Flow::Taken
    });
    assert_eq!(seen, KEYS);

    // What the file is made of is let go with the window.
    rig.committer.set_window_bytes(0);
    rig.commit();
    assert_eq!(shared.view().window_start(), shared.revision() + 1);
}
