//! Applying entries: one arm a request.
//!
//! Everything that changes state passes here, in log order. No clock goes in: the same entries make
//! the same bytes on every member.

use keelson_proto::entry::{ConfChange, Entry, EntryKind};
use keelson_proto::ids::LeaseId;
use keelson_proto::rpc::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, InternalRaftRequest,
    LeaseCheckpointRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, TxnRequest,
};
use keelson_proto::{ApiError, raw_v2, request};
use smallvec::{SmallVec, smallvec};

use crate::auth;
use crate::change::{Change, Deleted};
use crate::compaction::CompactionJob;
use crate::outcome::{Answer, Applied, Effect, Outcome};
use crate::row::RowChange;
use crate::txn::{self, Failure};
use crate::{BucketKey, Error, Revision, Store, quota, schema};

impl Store {
    /// Applies the next entry.
    ///
    /// An entry that cannot be decoded, or that names no request this version knows, stops the
    /// member: skipping it would let the members diverge.
    ///
    /// # Errors
    ///
    /// A failing or damaged file; the process must end then.
    ///
    /// # Panics
    ///
    /// If the entry does not follow the last one.
    pub fn apply(&mut self, entry: &Entry, answer: Answer) -> Result<Applied, Error> {
        assert_eq!(
            entry.index,
            self.applied.0.next(),
            "entries are applied in order, each once"
        );
        assert!(entry.term >= self.applied.1, "terms never go back in a log");
        let applied = match entry.kind {
            EntryKind::Normal if entry.data.is_empty() => Applied {
                outcome: Outcome::Nothing,
                effects: smallvec![Effect::PromoteLessor],
            },
            EntryKind::Normal => self.apply_normal(entry, answer)?,
            EntryKind::ConfChange => match ConfChange::decode(entry.data.clone()) {
                Ok(change) => self.apply_conf_change(entry, change),
                Err(error) => stop(entry, &error.to_string()),
            },
            EntryKind::ConfChangeV2 => stop(
                entry,
                "a joint configuration change, which etcd never makes",
            ),
        };
        self.applied = (entry.index, entry.term);
        self.publish();
        Ok(applied)
    }

    fn apply_normal(&mut self, entry: &Entry, answer: Answer) -> Result<Applied, Error> {
        match raw_v2::decode(&entry.data) {
            Ok(Some(raw)) => return Ok(self.apply_raw(entry, &raw)),
            Err(error) => return Ok(stop(entry, &error.to_string())),
            Ok(None) => {}
        }
        match request::decode(entry.data.clone()) {
            Ok(request) => self.apply_request(entry, &request, answer),
            Err(error) => Ok(stop(entry, &error.to_string())),
        }
    }

    fn apply_request(
        &mut self,
        entry: &Entry,
        request: &InternalRaftRequest,
        answer: Answer,
    ) -> Result<Applied, Error> {
        if let Err(refused) = self.permit(request) {
            return Ok(refuse(refused));
        }
        match self.dispatch(entry, request, answer) {
            Ok(applied) => Ok(applied),
            Err(Failure::Refused(error)) => Ok(refuse(error)),
            Err(Failure::Store(error)) => Err(error),
        }
    }

    /// Alarms first, then auth, as etcd stacks its appliers.
    fn permit(&self, request: &InternalRaftRequest) -> Result<(), ApiError> {
        let changes_keys = request.put.is_some()
            || request.range.is_some()
            || request.delete_range.is_some()
            || request.txn.is_some()
            || request.compaction.is_some()
            || request.lease_grant.is_some()
            || request.lease_revoke.is_some();
        if changes_keys && self.alarms.is_active(AlarmType::Corrupt) {
            return Err(ApiError::Corrupt);
        }
        if quota::cost(request) > 0 && self.alarms.is_active(AlarmType::Nospace) {
            return Err(ApiError::NoSpace);
        }
        if !self.auth.enabled() {
            return Ok(());
        }
        auth::permit_entry(&self.auth, request, &*self.shared.leases())
    }

    fn dispatch(
        &mut self,
        entry: &Entry,
        request: &InternalRaftRequest,
        answer: Answer,
    ) -> Result<Applied, Failure> {
        let wanted = answer == Answer::Wanted;
        if let Some(put) = &request.put {
            return self.within_quota(request, |store| store.put(put, wanted));
        }
        if let Some(txn) = &request.txn {
            return self.within_quota(request, |store| store.txn(txn, wanted));
        }
        if let Some(delete) = &request.delete_range {
            return Ok(done(self.delete_range(delete, wanted)));
        }
        if let Some(compaction) = &request.compaction {
            return self.compact(entry, compaction);
        }
        if let Some(grant) = &request.lease_grant {
            return self.within_quota(request, |store| store.lease_grant(grant));
        }
        if let Some(revoke) = &request.lease_revoke {
            return self.lease_revoke(revoke).map(done).map_err(Failure::from);
        }
        if let Some(checkpoint) = &request.lease_checkpoint {
            return Ok(done(self.lease_checkpoint(checkpoint)));
        }
        if let Some(alarm) = &request.alarm {
            return self.alarm(alarm).map(done).map_err(Failure::from);
        }
        if request.range.is_some() {
            return Ok(done(Outcome::Nothing));
        }
        if let Some(applied) = self.apply_auth(entry, request)? {
            return Ok(applied);
        }
        if let Some(applied) = self.apply_cluster(entry, request) {
            return Ok(applied);
        }
        Ok(stop(entry, &keelson_proto::Error::NoRequest.to_string()))
    }

    /// Runs a request that costs space. Over quota it still runs, and is answered with an error.
    fn within_quota(
        &mut self,
        request: &InternalRaftRequest,
        run: impl FnOnce(&mut Store) -> Result<Outcome, Failure>,
    ) -> Result<Applied, Failure> {
        let room = self
            .quota
            .has_room(self.shared.sizes().total, quota::cost(request));
        let outcome = run(self)?;
        if room {
            return Ok(done(outcome));
        }
        let mut effects = SmallVec::new();
        if !self.alarms.is_active(AlarmType::Nospace) {
            effects.push(Effect::RaiseNoSpace);
        }
        Ok(Applied {
            outcome: Outcome::Refused(ApiError::NoSpace),
            effects,
        })
    }

    fn put(&mut self, put: &PutRequest, wanted: bool) -> Result<Outcome, Failure> {
        txn::check_put(self, put)?;
        let mut change = Change::begin(self);
        let prev = change.put(put)?.prev;
        let revision = change.finish();
        let pinned = |prev| (prev, self.shared.pin(revision - 1));
        let prev = prev.filter(|_| wanted && put.prev_kv).map(pinned);
        Ok(Outcome::Put { revision, prev })
    }

    fn delete_range(&mut self, delete: &DeleteRangeRequest, wanted: bool) -> Outcome {
        let mut change = Change::begin(self);
        let Deleted { count, prevs } = change.delete_range(delete);
        let revision = change.finish();
        let keep = wanted && delete.prev_kv && count > 0;
        Outcome::Delete {
            revision,
            deleted: count,
            prevs: if keep { prevs } else { Vec::new() },
            pin: keep.then(|| self.shared.pin(revision - 1)),
        }
    }

    fn txn(&mut self, txn: &TxnRequest, wanted: bool) -> Result<Outcome, Failure> {
        let before = self.revision;
        let done = txn::run(self, txn, wanted)?;
        let oldest = done.oldest_read.map_or(before, |main| main.min(before));
        Ok(Outcome::Txn {
            revision: done.revision,
            succeeded: done.succeeded,
            pin: wanted.then(|| self.shared.pin(oldest)),
            ops: done.ops,
        })
    }

    fn compact(&mut self, entry: &Entry, request: &CompactionRequest) -> Result<Applied, Failure> {
        let to = request.revision;
        if to <= self.compact_revision {
            return Err(ApiError::Compacted.into());
        }
        if to > self.revision {
            return Err(ApiError::FutureRev.into());
        }
        let previous = self.compact_revision;
        self.begin_compaction(CompactionJob {
            revision: to,
            previous,
            remember_hash: !self.is_compacting(),
            index: entry.index,
            keeps_any: self.keeps_any(to),
            dead: Vec::new(),
        });
        let mark = BucketKey::encode(Revision { main: to, sub: 0 }, false);
        let key = schema::SCHEDULED_COMPACT;
        self.tail
            .change_rows(vec![RowChange::put(schema::META, key, mark.as_bytes())]);
        self.scheduled_compact = to;
        let outcome = Outcome::Compact {
            revision: self.revision,
        };
        Ok(Applied {
            outcome,
            effects: smallvec![Effect::Commit],
        })
    }

    fn lease_grant(&mut self, grant: &LeaseGrantRequest) -> Result<Outcome, Failure> {
        let mut rows = Vec::new();
        let id = LeaseId(grant.id);
        let ttl = self.shared.leases_mut().grant(id, grant.ttl, &mut rows)?;
        self.shared.deadlines().granted(id, ttl, 0, self.now);
        self.tail.change_rows(rows);
        Ok(Outcome::LeaseGrant {
            id,
            ttl,
            revision: self.revision,
        })
    }

    /// Deletes the keys of a lease, sorted, under one revision, and the lease.
    fn lease_revoke(&mut self, revoke: &LeaseRevokeRequest) -> Result<Outcome, ApiError> {
        let id = LeaseId(revoke.id);
        let mut rows = Vec::new();
        let keys = self.shared.leases_mut().revoke(id, &mut rows)?;
        self.shared.deadlines().revoked(id);
        self.tail.change_rows(rows);
        let mut change = Change::begin(self);
        for key in &keys {
            change.store.ops.deletes += 1;
            change.delete(key, &mut Deleted::default());
        }
        Ok(Outcome::LeaseRevoke {
            revision: change.finish(),
        })
    }

    fn lease_checkpoint(&mut self, request: &LeaseCheckpointRequest) -> Outcome {
        let persist = self.persists_checkpoints();
        let mut rows = Vec::new();
        for checkpoint in &request.checkpoints {
            let id = LeaseId(checkpoint.id);
            let remaining = checkpoint.remaining_ttl;
            self.shared
                .leases_mut()
                .checkpoint(id, remaining, persist, &mut rows);
            self.shared
                .deadlines()
                .checkpointed(id, remaining, self.now);
        }
        self.tail.change_rows(rows);
        Outcome::LeaseCheckpoint
    }

    fn alarm(&mut self, request: &AlarmRequest) -> Result<Outcome, ApiError> {
        let mut rows = Vec::new();
        let alarms = self.alarms.apply(request, &mut rows)?;
        if !rows.is_empty() {
            self.tail.change_rows(rows);
            self.shared.alarms.store(self.alarms.clone().into());
        }
        Ok(Outcome::Alarm { alarms })
    }
}

pub(crate) fn done(outcome: Outcome) -> Applied {
    Applied {
        outcome,
        effects: SmallVec::new(),
    }
}

fn refuse(error: ApiError) -> Applied {
    done(Outcome::Refused(error))
}

pub(crate) fn stop(entry: &Entry, reason: &str) -> Applied {
    let reason = format!(
        "entry {} of term {} cannot be applied: {reason}; it was written by a release that this one \
         does not follow, or the log is damaged",
        entry.index, entry.term
    );
    Applied {
        outcome: Outcome::Nothing,
        effects: smallvec![Effect::Stop(reason)],
    }
}
