//! A store over an engine in memory, driven entry by entry.

use bytes::{Bytes, BytesMut};
use keelson_bolt::{Db, MemStorage, Storage};
use keelson_proto::ApiError;
use keelson_proto::entry::{Entry, EntryKind};
use keelson_proto::ids::{LogIndex, Term};
use keelson_proto::request;
use keelson_proto::rpc::etcdserverpb::{
    CompactionRequest, InternalRaftRequest, PutRequest, RangeRequest, RangeResponse,
};
use keelson_store::range::{self, PlanError, Progress, ReadAt};
use keelson_store::{
    Answer, Applied, Committer, Durable, JobProgress, OpenOptions, Outcome, Quota, Slice, Store,
    open_db, schema,
};
use prost::Message as _;

pub(crate) struct Rig {
    pub(crate) store: Store,
    pub(crate) committer: Committer,
    storage: MemStorage,
}

/// No test uses everything of the rig, so all of it counts as used here.
const _: () = {
    let _ = (Rig::new, Rig::open, Rig::open_on, Rig::restart);
    let _ = (Rig::apply, Rig::outcome, Rig::put, Rig::compact);
    let _ = (Rig::commit, Rig::finish_compactions, Rig::rows, Rig::disk);
    let _ = (Rig::range, Rig::range_at);
};

fn options() -> OpenOptions {
    OpenOptions {
        bolt: OpenOptions::bolt(),
        quota: Quota::new(-1),
        lease_ttl_min: 2,
        lease_checkpoints: false,
    }
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::open(MemStorage::default())
    }

    pub(crate) fn open(storage: MemStorage) -> Rig {
        Rig::open_on(Box::new(storage.clone()), storage)
    }

    /// Over `engine`, which writes to `storage`.
    pub(crate) fn open_on(engine: Box<dyn Storage>, storage: MemStorage) -> Rig {
        let db = Db::open_storage(engine, options().bolt).unwrap();
        let opened = open_db(db, None, &options()).unwrap();
        assert_eq!((opened.missing_leases, opened.stray_tombstones), (0, 0));
        Rig {
            store: opened.store,
            committer: opened.committer,
            storage,
        }
    }

    /// Commits everything and starts again from the file.
    pub(crate) fn restart(mut self) -> Rig {
        self.commit();
        let storage = self.storage.clone();
        drop(self);
        Rig::open(storage)
    }

    pub(crate) fn apply(&mut self, request: &InternalRaftRequest) -> Applied {
        let (index, term) = self.store.applied();
        let entry = Entry {
            kind: EntryKind::Normal,
            term: Term(term.0.max(1)),
            index: LogIndex(index.0 + 1),
            data: request::encode(request),
        };
        self.store.apply(&entry, Answer::Wanted).unwrap()
    }

    pub(crate) fn put(&mut self, key: &str, value: &[u8]) -> i64 {
        let put = PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value),
            ..Default::default()
        };
        let request = InternalRaftRequest {
            put: Some(put),
            ..Default::default()
        };
        match self.outcome(&request) {
            Outcome::Put { revision, .. } => revision,
            other => panic!("{other:?}"),
        }
    }

    /// Schedules a compaction; whether it was accepted.
    pub(crate) fn compact(&mut self, revision: i64) -> bool {
        let compaction = CompactionRequest {
            revision,
            ..Default::default()
        };
        let request = InternalRaftRequest {
            compaction: Some(compaction),
            ..Default::default()
        };
        match self.outcome(&request) {
            Outcome::Compact { .. } => true,
            Outcome::Refused(_) => false,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn outcome(&mut self, request: &InternalRaftRequest) -> Outcome {
        self.apply(request).outcome
    }

    pub(crate) fn commit(&mut self) -> Durable {
        let sealed = self.store.seal();
        self.committer.commit(&sealed).unwrap()
    }

    /// What the engine writes to.
    pub(crate) fn disk(&self) -> &MemStorage {
        &self.storage
    }

    /// Every row of the file, by bucket.
    pub(crate) fn rows(&self) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
        let read = self.committer.durable().unwrap().read;
        let mut rows = Vec::new();
        for name in schema::BUCKETS {
            let mut cursor = read.bucket(name.as_bytes()).unwrap().unwrap().cursor();
            let mut row = cursor.first().unwrap();
            while let Some((key, value)) = row {
                rows.push((name, key.to_vec(), value.unwrap().to_vec()));
                row = cursor.next().unwrap();
            }
        }
        rows
    }

    /// Carries every compaction that was asked for to its end.
    pub(crate) fn finish_compactions(&mut self) {
        if !self.store.is_compacting() {
            return;
        }
        self.commit();
        loop {
            match self.store.compact_slice() {
                Slice::Idle => return,
                Slice::More => {}
                Slice::Held => panic!("a pin holds the compaction back"),
                Slice::Pruned(job) => {
                    self.committer.begin_compaction(job);
                    while let JobProgress::More = self.committer.continue_compaction().unwrap() {}
                    self.store.compaction_finished();
                }
            }
        }
    }

    pub(crate) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ApiError> {
        self.range_at(request, ReadAt::Current)
    }

    pub(crate) fn range_at(
        &self,
        request: &RangeRequest,
        at: ReadAt,
    ) -> Result<RangeResponse, ApiError> {
        let shared = self.store.shared();
        let plan = match range::plan(shared, request, at) {
            Ok(plan) => plan,
            Err(PlanError::Refused(error)) => return Err(error),
            Err(error) => panic!("{error}"),
        };
        let (len, revision) = (plan.body_len(), plan.revision);
        let mut emitter = plan.into_emitter(shared.clone());
        let mut body = BytesMut::new();
        while emitter.next_chunk(64, &mut body).unwrap() == Progress::More {}
        assert_eq!(
            body.len() as u64,
            len,
            "the length of an answer is known beforehand"
        );
        let mut response = RangeResponse::decode(Bytes::from(body)).unwrap();
        response.header = Some(keelson_proto::rpc::etcdserverpb::ResponseHeader {
            revision,
            ..Default::default()
        });
        Ok(response)
    }
}
