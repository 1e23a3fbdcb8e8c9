//! Apply, the index, and answers of ranges.

use bytes::{Bytes, BytesMut};
use keelson_bolt::{Db, Options};
use keelson_counts::{Table, count};
use keelson_proto::entry::{Entry, EntryKind};
use keelson_proto::ids::{LogIndex, Term};
use keelson_proto::request;
use keelson_proto::rpc::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::rpc::etcdserverpb::request_op::Request;
use keelson_proto::rpc::etcdserverpb::{
    Compare, DeleteRangeRequest, InternalRaftRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use keelson_store::index::KeyRange;
use keelson_store::range::{self, Progress, ReadAt};
use keelson_store::{
    Answer, Applied, Committer, OpenOptions, Outcome, Quota, Revision, Store, open_db,
};

use super::{key, put};

/// Keys that are there before anything is counted.
const KEYS: usize = 5_000;

/// Where new keys begin.
const NEW: usize = 1_000_000;

/// Bytes of an answer that are read at once.
const PIECE: usize = 64 << 10;

/// A store on a file, driven entry by entry.
pub(super) struct Rig {
    pub(super) store: Store,
    committer: Committer,
    _dir: tempfile::TempDir,
}

impl Rig {
    /// With so many keys, the file having them all.
    pub(super) fn new(keys: usize) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let options = OpenOptions {
            bolt: Options {
                no_sync: true,
                ..OpenOptions::bolt()
            },
            quota: Quota::new(-1),
            lease_ttl_min: 2,
            lease_checkpoints: false,
        };
        let db = Db::open(&dir.path().join("db"), options.bolt.clone()).unwrap();
        let opened = open_db(db, None, &options).unwrap();
        let mut rig = Rig {
            store: opened.store,
            committer: opened.committer,
            _dir: dir,
        };
        for place in 0..keys {
            rig.apply(request::encode(&put(place)));
        }
        rig.store.take_events();
        rig.commit();
        rig
    }

    pub(super) fn apply(&mut self, data: Bytes) -> Applied {
        let (index, _) = self.store.applied();
        let entry = Entry {
            kind: EntryKind::Normal,
            term: Term(1),
            index: LogIndex(index.0 + 1),
            data,
        };
        let applied = self.store.apply(&entry, Answer::Wanted).unwrap();
        let outcome = &applied.outcome;
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
        applied
    }

    fn commit(&mut self) {
        // Nothing of it stays in memory: ranges read the file.
        self.committer.set_window_bytes(0);
        let sealed = self.store.seal();
        self.committer.commit(&sealed).unwrap();
    }

    /// The answer's body, emitted in pieces of 64 KiB as the server does.
    fn answer(&self, request: &RangeRequest) -> u64 {
        let shared = self.store.shared();
        let plan = range::plan(shared, request, ReadAt::Current).unwrap();
        assert!(plan.rows() > 0);
        let room = usize::try_from(plan.body_len())
            .unwrap()
            .min(PIECE + (PIECE >> 2));
        let mut emitter = plan.into_emitter(shared.clone());
        let mut sent = 0;
        loop {
            let mut piece = BytesMut::with_capacity(room);
            let progress = emitter.next_chunk(PIECE, &mut piece).unwrap();
            sent += piece.len() as u64;
            if progress == Progress::Done {
                return sent;
            }
        }
    }
}

/// Makes the request of a place.
type Make = fn(usize) -> InternalRaftRequest;

/// What Kubernetes writes with: a put if the key is as it was read, and a get if not.
fn update(place: usize) -> InternalRaftRequest {
    let compare = Compare {
        result: CompareResult::Greater.into(),
        target: CompareTarget::Mod.into(),
        key: key(place),
        target_union: Some(TargetUnion::ModRevision(0)),
        ..Compare::default()
    };
    let op = |request| RequestOp {
        request: Some(request),
    };
    InternalRaftRequest {
        txn: Some(TxnRequest {
            compare: vec![compare],
            success: vec![op(Request::RequestPut(put(place).put.unwrap()))],
            failure: vec![op(Request::RequestRange(page(place, 0)))],
        }),
        ..InternalRaftRequest::default()
    }
}

fn delete(place: usize) -> InternalRaftRequest {
    InternalRaftRequest {
        delete_range: Some(DeleteRangeRequest {
            key: key(place),
            ..DeleteRangeRequest::default()
        }),
        ..InternalRaftRequest::default()
    }
}

fn grant(place: usize) -> InternalRaftRequest {
    InternalRaftRequest {
        lease_grant: Some(LeaseGrantRequest {
            id: 1 + i64::try_from(place).unwrap(),
            ttl: 60,
        }),
        ..InternalRaftRequest::default()
    }
}

fn put_on_lease(place: usize) -> InternalRaftRequest {
    let put = put(place).put.map(|put| PutRequest {
        lease: 1 + i64::try_from(place).unwrap(),
        ..put
    });
    InternalRaftRequest {
        put,
        ..InternalRaftRequest::default()
    }
}

fn revoke(place: usize) -> InternalRaftRequest {
    InternalRaftRequest {
        lease_revoke: Some(LeaseRevokeRequest {
            id: 1 + i64::try_from(place).unwrap(),
        }),
        ..InternalRaftRequest::default()
    }
}

/// A range of so many keys from a place on; of the one key for 0.
fn page(place: usize, limit: i64) -> RangeRequest {
    RangeRequest {
        key: key(place),
        range_end: if limit == 0 { Bytes::new() } else { key(NEW) },
        limit,
        ..RangeRequest::default()
    }
}

pub(super) fn add_to(table: &mut Table) {
    let mut rig = Rig::new(KEYS);
    ranges(&rig, table, "the file");
    let applies: [(&str, Make); 7] = [
        ("a put of a key that is there", put),
        ("a put of a new key", |place| put(NEW + place)),
        ("a compare-and-put transaction", update),
        ("a lease grant", grant),
        ("a put on a lease", put_on_lease),
        ("a lease revoke that deletes a key", revoke),
        ("a delete", |place| delete(1_000 + place)),
    ];
    for (name, request) in applies {
        let data = |place| request::encode(&request(place));
        table.add(
            &format!("store: apply of {name}"),
            count(data, |data| rig.apply(data)),
        );
    }
    for place in 0..KEYS {
        rig.apply(request::encode(&put(place)));
    }
    ranges(&rig, table, "memory");

    let shared = rig.store.shared().clone();
    let now = Revision::end_of(shared.revision());
    table.add(
        "store: index, get",
        count(key, |key| shared.index().get(&key, now).unwrap()),
    );
    let (start, end) = (key(0), key(KEYS));
    let most = KeyRange::new(&start, &end);
    table.add(
        "store: index, count of 5,000 keys",
        count(|_| (), |()| shared.index().count(most, now)),
    );
}

fn ranges(rig: &Rig, table: &mut Table, from: &str) {
    for (name, limit) in [("a key", 0), ("a page of 500", 500)] {
        table.add(
            &format!("store: answer of {name} out of {from}"),
            count(|place| page(place, limit), |page| rig.answer(&page)),
        );
    }
}
