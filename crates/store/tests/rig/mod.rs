//! A store over an engine in memory, driven entry by entry.

use bytes::{Bytes, BytesMut};
use keelson_bolt::{Db, MemStorage};
use keelson_proto::ApiError;
use keelson_proto::entry::{Entry, EntryKind};
use keelson_proto::ids::{LogIndex, Term};
use keelson_proto::request;
use keelson_proto::rpc::etcdserverpb::{InternalRaftRequest, RangeRequest, RangeResponse};
use keelson_store::range::{self, PlanError, Progress, ReadAt};
use keelson_store::{
    Answer, Applied, Committer, Durable, JobProgress, OpenOptions, Outcome, Quota, Slice, Store,
    open_db,
};
use prost::Message as _;

pub(crate) struct Rig {
    pub(crate) store: Store,
    pub(crate) committer: Committer,
    storage: MemStorage,
}

fn options() -> OpenOptions {
    OpenOptions {
        bolt: OpenOptions::bolt(),
        quota: Quota::new(-1),
        lease_ttl_min: 2,
    }
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::open(MemStorage::default())
    }

    pub(crate) fn open(storage: MemStorage) -> Rig {
        let db = Db::open_storage(Box::new(storage.clone()), options().bolt).unwrap();
        let opened = open_db(db, None, &options()).unwrap();
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

    pub(crate) fn outcome(&mut self, request: &InternalRaftRequest) -> Outcome {
        self.apply(request).outcome
    }

    pub(crate) fn commit(&mut self) -> Durable {
        let sealed = self.store.seal();
        self.committer.commit(&sealed).unwrap()
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
