//! Databases that were damaged: an error or an answer, never a panic, never a hang.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use keelson_bolt::{Db, MemStorage};
use keelson_proto::entry::{Entry, EntryKind};
use keelson_proto::ids::Term;
use keelson_proto::request;
use keelson_proto::rpc::authpb::{Permission, UserAddOptions};
use keelson_proto::rpc::etcdserverpb::alarm_request::AlarmAction;
use keelson_proto::rpc::etcdserverpb::{
    AlarmRequest, AlarmType, AuthRoleAddRequest, AuthRoleGrantPermissionRequest,
    AuthUserAddRequest, AuthUserGrantRoleRequest, CompactionRequest, DeleteRangeRequest,
    InternalRaftRequest, LeaseGrantRequest, PutRequest, RangeRequest,
};
use keelson_store::range::{self, EmitError, PlanError, Progress, ReadAt};
use keelson_store::watch::{self, Fetched, Filters, Shard, Spec, State, StreamId};
use keelson_store::{
    Answer, BucketKey, Committer, Error, JobProgress, OpenOptions, Quota, Revision, Shared, Slice,
    Store, hash, open_db, schema,
};

/// How long one test damages databases.
const TIME_BOX: Duration = Duration::from_secs(4);

/// How many it damages at least, however slow the machine is.
const CASES_MIN: u64 = 40;

/// Seeds that have found something: revisions that do not rise, two records of one revision.
const KNOWN: [u64; 4] = [562, 1125, 5003, 8327];

/// What no case needs, but one that hangs.
const HANG: Duration = Duration::from_secs(60);

const PAGE_BYTES: usize = 4096;

fn options() -> OpenOptions {
    OpenOptions {
        bolt: OpenOptions::bolt(),
        quota: Quota::new(-1),
        lease_ttl_min: 2,
        lease_checkpoints: false,
    }
}

struct Instance {
    store: Store,
    committer: Committer,
}

impl Instance {
    fn open(storage: MemStorage) -> Result<Instance, Error> {
        let db = Db::open_storage(Box::new(storage), options().bolt)?;
        let opened = open_db(db, None, &options())?;
        Ok(Instance {
            store: opened.store,
            committer: opened.committer,
        })
    }

    fn apply(&mut self, request: &InternalRaftRequest) -> Result<(), Error> {
        let (index, term) = self.store.applied();
        let entry = Entry {
            kind: EntryKind::Normal,
            term: term.max(Term(1)),
            index: index.next(),
            data: request::encode(request),
        };
        self.store.apply(&entry, Answer::Unwanted).map(drop)
    }

    fn commit(&mut self) -> Result<(), Error> {
        let sealed = self.store.seal();
        self.committer.commit(&sealed).map(drop)
    }

    fn compact(&mut self) -> Result<(), Error> {
        self.commit()?;
        loop {
            match self.store.compact_slice() {
                Slice::Idle => return Ok(()),
                Slice::More => {}
                Slice::Held => panic!("a pin holds the compaction back"),
                Slice::Pruned(job) => {
                    self.committer.begin_compaction(job);
                    while self.committer.continue_compaction()? == JobProgress::More {}
                    self.store.compaction_finished();
                }
            }
        }
    }
}

fn put(key: String, value: Vec<u8>, lease: i64) -> InternalRaftRequest {
    InternalRaftRequest {
        put: Some(PutRequest {
            key: key.into(),
            value: value.into(),
            lease,
            ..PutRequest::default()
        }),
        ..InternalRaftRequest::default()
    }
}

fn delete(key: &str, range_end: &str) -> InternalRaftRequest {
    InternalRaftRequest {
        delete_range: Some(DeleteRangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(range_end.as_bytes()),
            ..DeleteRangeRequest::default()
        }),
        ..InternalRaftRequest::default()
    }
}

/// Rows for each of the small buckets.
fn small_rows() -> Vec<InternalRaftRequest> {
    let empty = InternalRaftRequest::default;
    vec![
        InternalRaftRequest {
            lease_grant: Some(LeaseGrantRequest { id: 7, ttl: 100 }),
            ..empty()
        },
        InternalRaftRequest {
            alarm: Some(AlarmRequest {
                action: AlarmAction::Activate.into(),
                member_id: 3,
                alarm: AlarmType::Nospace.into(),
            }),
            ..empty()
        },
        InternalRaftRequest {
            alarm: Some(AlarmRequest {
                action: AlarmAction::Deactivate.into(),
                member_id: 3,
                alarm: AlarmType::Nospace.into(),
            }),
            ..empty()
        },
        InternalRaftRequest {
            auth_user_add: Some(AuthUserAddRequest {
                name: "alice".to_owned(),
                options: Some(UserAddOptions { no_password: true }),
                ..AuthUserAddRequest::default()
            }),
            ..empty()
        },
        InternalRaftRequest {
            auth_role_add: Some(AuthRoleAddRequest {
                name: "reader".to_owned(),
            }),
            ..empty()
        },
        InternalRaftRequest {
            auth_role_grant_permission: Some(AuthRoleGrantPermissionRequest {
                name: "reader".to_owned(),
                perm: Some(Permission {
                    perm_type: 0,
                    key: Bytes::from_static(b"a"),
                    range_end: Bytes::from_static(b"b"),
                }),
            }),
            ..empty()
        },
        InternalRaftRequest {
            auth_user_grant_role: Some(AuthUserGrantRoleRequest {
                user: "alice".to_owned(),
                role: "reader".to_owned(),
            }),
            ..empty()
        },
    ]
}

/// A file of some forty pages, with branches, large values, tombstones, and a compaction that was
/// asked for and not carried out.
fn database() -> Vec<u8> {
    let storage = MemStorage::default();
    let mut instance = Instance::open(storage.clone()).unwrap();
    for request in small_rows() {
        instance.apply(&request).unwrap();
    }
    for round in 0..4 {
        for key in 0..150 {
            let value = vec![b'v'; 10 + key * 2];
            let lease = if key % 10 == 0 { 7 } else { 0 };
            instance
                .apply(&put(format!("a/{key:03}"), value, lease))
                .unwrap();
        }
        instance
            .apply(&put(format!("large/{round}"), vec![b'l'; 20_000], 0))
            .unwrap();
        instance.apply(&delete("a/020", "a/040")).unwrap();
        instance.commit().unwrap();
    }
    for revision in [100, 400] {
        let compaction = CompactionRequest {
            revision,
            physical: false,
        };
        instance
            .apply(&InternalRaftRequest {
                compaction: Some(compaction),
                ..InternalRaftRequest::default()
            })
            .unwrap();
        if revision == 100 {
            instance.compact().unwrap();
        } else {
            instance.commit().unwrap();
        }
    }
    storage.contents()
}

/// Uses everything that was read. Errors are fine: that they come is what this is about.
fn use_it(storage: MemStorage) -> Result<(), Error> {
    let mut instance = Instance::open(storage)?;
    let shared = instance.store.shared().clone();
    let current = shared.revision();
    for revision in [0, 1, 101, 400, current / 2, current] {
        drop(read_all(&shared, revision));
        drop(hash::hash_kv(&shared, revision));
    }
    drop(watch_all(&shared));
    drop(hash::hash(&instance.committer.durable()?));
    for name in shared.auth().users() {
        assert!(shared.auth().user(name).is_ok(), "{name} is listed");
    }
    drop(shared.members().conf_state());
    drop(shared.alarms().get(0));
    instance.apply(&put("a/077".to_owned(), b"new".to_vec(), 0))?;
    instance.apply(&delete("a/078", ""))?;
    instance.compact()?;
    drop(read_all(&shared, 0));
    Ok(())
}

fn read_all(shared: &std::sync::Arc<Shared>, revision: i64) -> Result<usize, Error> {
    let request = RangeRequest {
        key: Bytes::from_static(&[0]),
        range_end: Bytes::from_static(&[0]),
        revision,
        ..RangeRequest::default()
    };
    let plan = match range::plan(shared, &request, ReadAt::Current) {
        Ok(plan) => plan,
        Err(PlanError::Store(error)) => return Err(error),
        Err(_) => return Ok(0),
    };
    let mut body = BytesMut::new();
    let mut emitter = plan.into_emitter(shared.clone());
    loop {
        match emitter.next_chunk(4096, &mut body) {
            Ok(Progress::More) => {}
            Ok(Progress::Done) => return Ok(body.len()),
            Err(EmitError::Store(error)) => return Err(error),
            Err(_) => return Ok(0),
        }
    }
}

fn watch_all(shared: &std::sync::Arc<Shared>) -> Result<usize, Error> {
    let mut shard = Shard::default();
    shard.open_at(shared.revision());
    let mut count = 0;
    for (id, (key, range_end)) in [(&[0][..], &[0][..]), (b"a/100", b"")].iter().enumerate() {
        let spec = Spec {
            key: (*key).into(),
            range_end: (*range_end).into(),
            filters: Filters::default(),
            start: shared.compact_revision().max(1),
        };
        let handle = shard.add(StreamId(1), i64::try_from(id).unwrap(), spec);
        while shard.state(handle) == Some(State::Lagging) {
            for chunk in watch::fetch(shared, shard.jobs(1), watch::FETCH_BYTES)? {
                let Fetched::Events { events, upto, .. } = chunk.fetched else {
                    return Ok(count);
                };
                for event in &events {
                    drop(watch::previous(shared, event));
                }
                count += events.len();
                shard.fetched(handle, upto, !events.is_empty());
            }
        }
    }
    Ok(count)
}

/// A sequence that looks random (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }
}

/// Damages the bytes of a file, and says how.
fn damage_bytes(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    let pages = bytes.len() / PAGE_BYTES;
    let range = |page: usize| page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
    match random.below(7) {
        0 => {
            let len = random.below(bytes.len());
            bytes.truncate(len);
            format!("cut at {len}")
        }
        1 => {
            let (one, other) = (random.below(pages), random.below(pages));
            let copy = bytes[range(one)].to_vec();
            bytes.copy_within(range(other), one * PAGE_BYTES);
            bytes[range(other)].copy_from_slice(&copy);
            format!("pages {one} and {other} swapped")
        }
        2 => {
            let (from, to) = (random.below(pages), random.below(pages));
            bytes.copy_within(range(from), to * PAGE_BYTES);
            format!("page {from} over page {to}")
        }
        3 => {
            let page = random.below(pages);
            bytes[range(page)].fill(if random.below(2) == 0 { 0 } else { 0xff });
            format!("page {page} wiped")
        }
        kind => {
            let mut flipped = Vec::new();
            for _ in 0..=random.below(6) {
                // Page headers and element tables are where it hurts most.
                let reach = if kind == 4 { PAGE_BYTES } else { 160 };
                let at = random.below(pages) * PAGE_BYTES + random.below(reach);
                let bit = random.below(8);
                bytes[at] ^= 1 << bit;
                flipped.push((at, bit));
            }
            format!("bits flipped: {flipped:?}")
        }
    }
}

/// Damages rows of a file that is sound as such, and says how.
fn damage_rows(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    let storage = MemStorage::with_contents(bytes);
    let db = Db::open_storage(Box::new(storage.clone()), options().bolt).unwrap();
    let mut told = String::new();
    for _ in 0..=random.below(3) {
        let name = schema::BUCKETS[random.below(schema::BUCKETS.len())];
        let mut rows = Vec::new();
        {
            let read = db.begin_read().unwrap();
            let bucket = read.bucket(name.as_bytes()).unwrap().unwrap();
            let mut cursor = bucket.cursor();
            let mut row = cursor.first().unwrap();
            while let Some((key, value)) = row {
                rows.push((key.to_vec(), value.unwrap_or_default().to_vec()));
                row = cursor.next().unwrap();
            }
        }
        let (mut key, mut value) = match random.below(rows.len() + 1) {
            0 => (vec![b'x'; 1 + random.below(20)], Vec::new()),
            nth => rows[nth - 1].clone(),
        };
        let before = key.clone();
        match random.below(8) {
            0 => value.clear(),
            1 => value.truncate(random.below(value.len() + 1)),
            2 => value = (0..random.below(40)).map(|_| random.next() as u8).collect(),
            3 => value.extend_from_slice(&[0xff; 9]),
            4 => key.fill(0xff),
            5 => key = i64::MAX.to_be_bytes().to_vec(),
            6 => {
                // The last revision that there is.
                key = [&i64::MAX.to_be_bytes()[..], b"_", &[0; 8]].concat();
            }
            _ => {
                let bytes = if random.below(2) == 0 {
                    &mut key
                } else {
                    &mut value
                };
                let at = random.below(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
        told += &format!(
            "{name}: {} is now {key:02x?}, {value:02x?}; ",
            before.escape_ascii()
        );
        let mut tx = db.begin_write().unwrap();
        let mut bucket = tx.bucket_mut(name.as_bytes()).unwrap();
        if before != key && random.below(2) == 0 {
            bucket.delete(&before).unwrap();
        }
        bucket.put(&key, &value).unwrap();
        tx.commit().unwrap();
    }
    drop(db);
    *bytes = storage.contents();
    told
}

/// Runs one case; says what happened if that is more than an error.
fn run(bytes: Vec<u8>) -> Option<String> {
    let (told, tell) = mpsc::channel();
    let worker = std::thread::spawn(move || {
        let storage = MemStorage::with_contents(&bytes);
        let result = catch_unwind(AssertUnwindSafe(|| use_it(storage)));
        // Nobody listens any more only if this took too long.
        told.send(result.is_err()).unwrap_or_default();
    });
    match tell.recv_timeout(HANG) {
        Ok(panicked) => {
            worker.join().unwrap();
            panicked.then(|| "it panicked (see above)".to_owned())
        }
        Err(error) => Some(format!("it hangs: {error}")),
    }
}

fn damage_for_a_while(damage: impl Fn(&mut Vec<u8>, &mut Random) -> String) {
    let whole = database();
    use_it(MemStorage::with_contents(&whole)).unwrap();
    let start = Instant::now();
    let mut failed = Vec::new();
    let mut seed = 0;
    for known in KNOWN {
        let mut bytes = whole.clone();
        let how = damage(&mut bytes, &mut Random(known));
        if let Some(what) = run(bytes) {
            failed.push(format!("seed {known}: {how}: {what}"));
        }
    }
    while seed < CASES_MIN || start.elapsed() < TIME_BOX {
        let mut bytes = whole.clone();
        let how = damage(&mut bytes, &mut Random(seed));
        if let Some(what) = run(bytes) {
            failed.push(format!("seed {seed}: {how}: {what}"));
        }
        seed += 1;
    }
    assert!(
        failed.is_empty(),
        "{} of {seed} cases:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[test]
fn damaged_pages_are_errors_or_answers() {
    damage_for_a_while(damage_bytes);
}

#[test]
fn damaged_rows_are_errors_or_answers() {
    damage_for_a_while(damage_rows);
}

#[test]
fn a_revision_that_leaves_no_room_is_damage() {
    let storage = MemStorage::with_contents(&database());
    let db = Db::open_storage(Box::new(storage.clone()), options().bolt).unwrap();
    let mut tx = db.begin_write().unwrap();
    let last = Revision {
        main: i64::MAX,
        sub: 0,
    };
    let key = BucketKey::encode(last, true);
    let mut keys = tx.bucket_mut(schema::KEY.as_bytes()).unwrap();
    keys.put(key.as_bytes(), b"\x0a\x01k").unwrap();
    tx.commit().unwrap();
    drop(db);
    match Instance::open(storage) {
        Err(Error::CorruptRow { bucket, key, .. }) => {
            assert_eq!(bucket, schema::KEY);
            assert_eq!(key[..8], i64::MAX.to_be_bytes());
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it is opened"),
    }
}
