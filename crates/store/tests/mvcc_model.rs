//! Keys, transactions and compaction against a plain model, through apply, tail, file and restart.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod rig;

use std::collections::BTreeMap;

use bytes::Bytes;
use keelson_proto::ApiError;
use keelson_proto::rpc::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::rpc::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_proto::rpc::etcdserverpb::request_op::Request;
use keelson_proto::rpc::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, InternalRaftRequest, PutRequest, RangeRequest,
    RangeResponse, RequestOp, ResponseHeader, TxnRequest,
};
use keelson_proto::rpc::mvccpb::KeyValue;
use keelson_store::range::ReadAt;
use keelson_store::{OpOutcome, Outcome, Slice, hash};
use proptest::prelude::*;
use rig::Rig;

/// A put or a deletion.
#[derive(Clone)]
struct Change {
    main: i64,
    kv: Option<KeyValue>,
    /// Whether compaction dropped the record of a key that is alive.
    lost: bool,
}

/// Every change of every key that is not compacted, as a list.
#[derive(Clone, Default)]
struct Model {
    revision: i64,
    compacted: i64,
    keys: BTreeMap<Vec<u8>, Vec<Change>>,
}

impl Model {
    fn new() -> Model {
        Model {
            revision: 1,
            compacted: -1,
            keys: BTreeMap::new(),
        }
    }

    fn alive(&self, key: &[u8], at: i64) -> Option<&Change> {
        let changes = self.keys.get(key)?;
        let last = changes.iter().rev().find(|change| change.main <= at)?;
        last.kv.is_some().then_some(last)
    }

    fn get(&self, key: &[u8], at: i64) -> Option<&KeyValue> {
        let change = self.alive(key, at).filter(|change| !change.lost)?;
        change.kv.as_ref()
    }

    fn count(&self, start: &[u8], end: &[u8], at: i64) -> i64 {
        let keys = self.keys.keys();
        keys.filter(|key| Model::in_range(key, start, end))
            .filter(|key| self.alive(key, at).is_some())
            .count() as i64
    }

    fn in_range(key: &[u8], start: &[u8], end: &[u8]) -> bool {
        match end {
            [] => key == start,
            [0] => key >= start,
            end => key >= start && key < end,
        }
    }

    fn live(&self, start: &[u8], end: &[u8], at: i64) -> Vec<KeyValue> {
        self.keys
            .keys()
            .filter(|key| Model::in_range(key, start, end))
            .filter_map(|key| self.get(key, at).cloned())
            .collect()
    }

    fn put(&mut self, main: i64, request: &PutRequest) -> Option<KeyValue> {
        let prev = self.get(&request.key, main).cloned();
        let alive = self.alive(&request.key, main);
        let alive = alive.and_then(|change| change.kv.as_ref());
        let kv = KeyValue {
            key: request.key.clone(),
            create_revision: alive.map_or(main, |kv| kv.create_revision),
            mod_revision: main,
            version: alive.map_or(1, |kv| kv.version + 1),
            value: match &prev {
                Some(prev) if request.ignore_value => prev.value.clone(),
                _ => request.value.clone(),
            },
            lease: 0,
        };
        let change = Change {
            main,
            kv: Some(kv),
            lost: false,
        };
        let changes = self.keys.entry(request.key.to_vec()).or_default();
        changes.push(change);
        prev
    }

    /// How many keys were deleted, and what could be read of them.
    fn delete(&mut self, main: i64, request: &DeleteRangeRequest) -> (i64, Vec<KeyValue>) {
        let gone = self.live(&request.key, &request.range_end, main);
        let count = self.count(&request.key, &request.range_end, main);
        for (key, changes) in &mut self.keys {
            let alive = changes.last().is_some_and(|change| change.kv.is_some());
            if alive && Model::in_range(key, &request.key, &request.range_end) {
                changes.push(Change {
                    main,
                    kv: None,
                    lost: false,
                });
            }
        }
        (count, gone)
    }

    /// What etcd's compaction leaves, and what it leaves in the index alone.
    fn compact(&mut self, to: i64) {
        self.compacted = to;
        for changes in self.keys.values_mut() {
            let mut generations = vec![Vec::new()];
            for change in std::mem::take(changes) {
                let ends = change.kv.is_none();
                generations.last_mut().unwrap().push(change);
                if ends {
                    generations.push(Vec::new());
                }
            }
            let last = generations.len() - 1;
            let ends_at = |chosen: &[Change]| chosen.last().unwrap().main;
            let chosen = (0..last).find(|&chosen| ends_at(&generations[chosen]) >= to);
            for (place, generation) in generations.into_iter().enumerate() {
                let seen = generation
                    .iter()
                    .rposition(|change: &Change| change.main <= to);
                let skipped = match place.cmp(&chosen.unwrap_or(last)) {
                    std::cmp::Ordering::Less => generation.len(),
                    std::cmp::Ordering::Equal => seen.unwrap_or(0),
                    std::cmp::Ordering::Greater => 0,
                };
                let lost = chosen.is_some_and(|chosen| place > chosen);
                changes.extend(generation.into_iter().skip(skipped).map(|mut change| {
                    change.lost |= lost && change.main == to;
                    change
                }));
            }
        }
        self.keys.retain(|_, changes| !changes.is_empty());
    }

    /// Whether a record was lost that others follow: a restart then counts versions anew, as in etcd.
    fn counts_anew(&self) -> bool {
        let lost = |change: &Change| change.lost;
        let mut keys = self.keys.values();
        keys.any(|changes| changes.iter().rev().skip_while(|it| lost(it)).any(lost))
    }

    /// Forgets what the file does not hold.
    fn restart(&mut self) {
        for changes in self.keys.values_mut() {
            changes.retain(|change| !change.lost);
        }
        self.keys.retain(|_, changes| !changes.is_empty());
    }

    fn range(&self, request: &RangeRequest, header: i64) -> Result<RangeResponse, ApiError> {
        let at = match request.revision {
            revision if revision > self.revision => return Err(ApiError::FutureRev),
            revision if revision > 0 && revision < self.compacted => {
                return Err(ApiError::Compacted);
            }
            revision if revision > 0 => revision,
            _ => i64::MAX,
        };
        let mut kvs = self.live(&request.key, &request.range_end, at);
        let mut response = RangeResponse {
            header: Some(ResponseHeader {
                revision: header,
                ..Default::default()
            }),
            count: self.count(&request.key, &request.range_end, at),
            ..Default::default()
        };
        if request.count_only {
            return Ok(response);
        }
        let limit = request.limit as usize;
        let order = request.sort_order();
        let target = request.sort_target();
        if order == SortOrder::None && target != SortTarget::Key && limit > 0 {
            response.more = kvs.len() > limit;
            kvs.truncate(limit + 1);
        }
        let within = |value: i64, min: i64, max: i64| {
            (min == 0 || value >= min) && (max == 0 || value <= max)
        };
        kvs.retain(|kv| {
            within(
                kv.mod_revision,
                request.min_mod_revision,
                request.max_mod_revision,
            ) && within(kv.create_revision, request.min_create_revision, 0)
        });
        // Rows that compare equal stay in key order, whichever way the sort goes.
        let ascending = |a: &KeyValue, b: &KeyValue| match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        match order {
            SortOrder::Descend => kvs.sort_by(|a, b| ascending(b, a)),
            SortOrder::None | SortOrder::Ascend => kvs.sort_by(ascending),
        }
        if limit > 0 && kvs.len() > limit {
            kvs.truncate(limit);
            response.more = true;
        }
        if request.keys_only {
            for kv in &mut kvs {
                kv.value = Bytes::new();
            }
        }
        response.kvs = kvs;
        Ok(response)
    }

    fn holds(&self, compare: &Compare) -> bool {
        let found = self.live(&compare.key, &compare.range_end, i64::MAX);
        if found.is_empty() {
            return compare.target() != CompareTarget::Value
                && Model::compare(compare, &KeyValue::default());
        }
        found.iter().all(|kv| Model::compare(compare, kv))
    }

    fn compare(compare: &Compare, kv: &KeyValue) -> bool {
        let ordering = match &compare.target_union {
            Some(TargetUnion::Version(v)) => kv.version.cmp(v),
            Some(TargetUnion::CreateRevision(v)) => kv.create_revision.cmp(v),
            Some(TargetUnion::ModRevision(v)) => kv.mod_revision.cmp(v),
            Some(TargetUnion::Value(v)) => kv.value.cmp(v),
            Some(TargetUnion::Lease(v)) => kv.lease.cmp(v),
            None => panic!("the generator always gives an operand"),
        };
        match compare.result() {
            CompareResult::Equal => ordering.is_eq(),
            CompareResult::Greater => ordering.is_gt(),
            CompareResult::Less => ordering.is_lt(),
            CompareResult::NotEqual => ordering.is_ne(),
        }
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["a", "b", "c", "ca", "cb", "d"]).prop_map(Bytes::from)
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => Just(Bytes::new()),
        1 => Just(Bytes::from_static(&[0])),
        2 => key(),
    ]
}

fn put() -> impl Strategy<Value = PutRequest> {
    (key(), 0u8..9, any::<bool>()).prop_map(|(key, value, prev_kv)| PutRequest {
        key,
        value: Bytes::from(vec![b'v'; value as usize * 7]),
        prev_kv,
        ..Default::default()
    })
}

fn delete() -> impl Strategy<Value = DeleteRangeRequest> {
    (key(), range_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    })
}

fn range() -> impl Strategy<Value = RangeRequest> {
    let options = (0i64..4, 0i32..3, 0i32..4, any::<bool>(), any::<bool>());
    let filters = (0i64..12, 0i64..12, 0i64..12);
    (key(), range_end(), -1i64..40, options, filters, 0u8..4).prop_map(
        |(key, range_end, revision, options, filters, which)| {
            let (limit, sort_order, sort_target, keys_only, count_only) = options;
            // A target without an order is defined only without filters in this model.
            let filtered = which == 0 && sort_order != 0;
            RangeRequest {
                key,
                range_end,
                revision: if which == 1 { revision } else { 0 },
                limit,
                sort_order,
                sort_target,
                keys_only,
                count_only,
                min_mod_revision: if filtered { filters.0 } else { 0 },
                max_mod_revision: if filtered { filters.1 } else { 0 },
                min_create_revision: if filtered { filters.2 } else { 0 },
                ..Default::default()
            }
        },
    )
}

fn compare() -> impl Strategy<Value = Compare> {
    (key(), range_end(), 0i32..4, 0i32..5, 0i64..12).prop_map(
        |(key, range_end, result, target, operand)| Compare {
            key,
            range_end,
            result,
            target,
            target_union: Some(match target {
                0 => TargetUnion::Version(operand % 4),
                1 => TargetUnion::CreateRevision(operand),
                2 => TargetUnion::ModRevision(operand),
                3 => TargetUnion::Value(Bytes::from(vec![b'v'; operand as usize * 7])),
                _ => TargetUnion::Lease(operand % 2),
            }),
        },
    )
}

fn op() -> impl Strategy<Value = RequestOp> {
    let leaf = prop_oneof![
        3 => put().prop_map(Request::RequestPut),
        2 => delete().prop_map(Request::RequestDeleteRange),
        2 => (key(), range_end()).prop_map(|(key, range_end)| {
            Request::RequestRange(RangeRequest { key, range_end, ..Default::default() })
        }),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        let ops = || prop::collection::vec(op_of(inner.clone()), 0..3);
        (prop::collection::vec(compare(), 0..2), ops(), ops()).prop_map(
            |(compare, success, failure)| {
                Request::RequestTxn(TxnRequest {
                    compare,
                    success,
                    failure,
                })
            },
        )
    })
    .prop_map(|request| RequestOp {
        request: Some(request),
    })
}

fn op_of(inner: impl Strategy<Value = Request> + Clone) -> impl Strategy<Value = RequestOp> {
    inner.prop_map(|request| RequestOp {
        request: Some(request),
    })
}

fn txn() -> impl Strategy<Value = TxnRequest> {
    let ops = || prop::collection::vec(op(), 0..4);
    (prop::collection::vec(compare(), 0..3), ops(), ops()).prop_map(
        |(compare, success, failure)| TxnRequest {
            compare,
            success,
            failure,
        },
    )
}

#[derive(Clone, Debug)]
enum Step {
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(i64),
    Range(RangeRequest),
    Commit,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => put().prop_map(Step::Put),
        2 => delete().prop_map(Step::Delete),
        4 => txn().prop_map(Step::Txn),
        1 => (0i64..4).prop_map(Step::Compact),
        6 => range().prop_map(Step::Range),
        1 => Just(Step::Commit),
        1 => Just(Step::Restart),
    ]
}

struct Run {
    rig: Rig,
    model: Model,
}

impl Run {
    fn value(&self, revision: Option<keelson_store::Revision>) -> Option<KeyValue> {
        let bytes = self.rig.store.shared().record(revision?).unwrap().unwrap();
        Some(prost::Message::decode(bytes).unwrap())
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Put(put) => self.put(put),
            Step::Delete(delete) => self.delete(delete),
            Step::Txn(txn) => self.txn(txn),
            Step::Compact(back) => self.compact(self.model.revision - back),
            Step::Range(range) => {
                assert_eq!(
                    self.rig.range(&range),
                    self.model.range(&range, self.model.revision)
                );
            }
            Step::Commit => {
                self.rig.commit();
            }
            Step::Restart if self.model.counts_anew() => {}
            Step::Restart => {
                self.model.restart();
                self.rig = std::mem::replace(&mut self.rig, Rig::new()).restart();
                self.rig.finish_compactions();
            }
        }
        assert_eq!(self.rig.store.shared().revision(), self.model.revision);
        assert_eq!(
            self.rig.store.shared().compact_revision(),
            self.model.compacted
        );
    }

    fn put(&mut self, put: PutRequest) {
        let main = self.model.revision + 1;
        let expected = self.model.put(main, &put).filter(|_| put.prev_kv);
        self.model.revision = main;
        let request = InternalRaftRequest {
            put: Some(put),
            ..Default::default()
        };
        let Outcome::Put { revision, prev } = self.rig.outcome(&request) else {
            panic!()
        };
        assert_eq!(revision, main);
        assert_eq!(self.value(prev.map(|(prev, _)| prev)), expected);
    }

    fn delete(&mut self, delete: DeleteRangeRequest) {
        let (count, gone) = self.model.delete(self.model.revision + 1, &delete);
        self.model.revision += i64::from(count > 0);
        let wanted = delete.prev_kv;
        let request = InternalRaftRequest {
            delete_range: Some(delete),
            ..Default::default()
        };
        let Outcome::Delete {
            revision,
            deleted,
            prevs,
            pin: _pin,
        } = self.rig.outcome(&request)
        else {
            panic!()
        };
        assert_eq!(revision, self.model.revision);
        assert_eq!(deleted, count);
        let values: Vec<_> = prevs
            .iter()
            .map(|prev| self.value(Some(*prev)).unwrap())
            .collect();
        assert_eq!(values, if wanted { gone } else { Vec::new() });
    }

    fn txn(&mut self, txn: TxnRequest) {
        // Two puts of one key in one transaction are refused before they come here.
        let before = self.model.clone();
        let main = before.revision + 1;
        let request = InternalRaftRequest {
            txn: Some(txn.clone()),
            ..Default::default()
        };
        let Outcome::Txn {
            revision,
            succeeded,
            ops,
            pin: _pin,
        } = self.rig.outcome(&request)
        else {
            panic!()
        };
        let mut changed = 0;
        self.txn_model(&before, &txn, succeeded, &ops, main, &mut changed);
        self.model.revision += i64::from(changed > 0);
        assert_eq!(revision, self.model.revision);
    }

    /// Walks a transaction beside its outcome; the model changes as it goes.
    fn txn_model(
        &mut self,
        before: &Model,
        txn: &TxnRequest,
        succeeded: bool,
        ops: &[OpOutcome],
        main: i64,
        changed: &mut usize,
    ) {
        assert_eq!(
            succeeded,
            txn.compare.iter().all(|compare| before.holds(compare))
        );
        let branch = if succeeded {
            &txn.success
        } else {
            &txn.failure
        };
        assert_eq!(branch.len(), ops.len());
        for (op, outcome) in branch.iter().zip(ops) {
            match (op.request.as_ref().unwrap(), outcome) {
                (Request::RequestRange(range), OpOutcome::Range { at, header }) => {
                    let at = ReadAt::InTxn {
                        at: *at,
                        header: *header,
                    };
                    let current = main - i64::from(*changed == 0);
                    assert_eq!(
                        self.rig.range_at(range, at),
                        self.model.range(range, current)
                    );
                }
                (Request::RequestPut(put), OpOutcome::Put { revision, prev }) => {
                    let expected = self.model.put(main, put).filter(|_| put.prev_kv);
                    *changed += 1;
                    assert_eq!(*revision, main);
                    assert_eq!(self.value(*prev), expected);
                }
                (
                    Request::RequestDeleteRange(delete),
                    OpOutcome::Delete {
                        revision,
                        deleted,
                        prevs,
                    },
                ) => {
                    let (count, gone) = self.model.delete(main, delete);
                    *changed += count as usize;
                    assert_eq!(*revision, main - i64::from(*changed == 0));
                    assert_eq!(*deleted, count);
                    let values: Vec<_> = prevs
                        .iter()
                        .map(|prev| self.value(Some(*prev)).unwrap())
                        .collect();
                    assert_eq!(values, if delete.prev_kv { gone } else { Vec::new() });
                }
                (Request::RequestTxn(txn), OpOutcome::Txn { succeeded, ops }) => {
                    self.txn_model(before, txn, *succeeded, ops, main, changed);
                }
                (request, outcome) => panic!("{request:?} was answered by {outcome:?}"),
            }
        }
    }

    fn compact(&mut self, to: i64) {
        let request = InternalRaftRequest {
            compaction: Some(CompactionRequest {
                revision: to,
                physical: true,
            }),
            ..Default::default()
        };
        let outcome = self.rig.outcome(&request);
        if to <= self.model.compacted {
            assert!(matches!(outcome, Outcome::Refused(ApiError::Compacted)));
            return;
        }
        assert!(matches!(outcome, Outcome::Compact { .. }), "{outcome:?}");
        self.model.compact(to);
        let before = hash::hash_kv(self.rig.store.shared(), 0).unwrap();
        self.rig.finish_compactions();
        let after = hash::hash_kv(self.rig.store.shared(), 0).unwrap();
        // Where nothing is alive, etcd's hash looks at whatever rows there are; a key that the last
        // transaction deleted and put again counts as dead there.
        let last = self.model.revision;
        let mut keys = self.model.keys.values();
        let alive = keys.any(|changes| {
            let dies = |change: &Change| change.kv.is_none() && change.main == last;
            changes.last().is_some_and(|change| change.kv.is_some()) && !changes.iter().any(dies)
        });
        let lost = |changes: &Vec<Change>| changes.iter().any(|change| change.lost);
        if self.model.revision != to && alive && !self.model.keys.values().any(lost) {
            assert_eq!(before, after, "removing dead rows does not change the hash");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_is_the_models(steps in prop::collection::vec(step(), 1..60)) {
        let mut run = Run { rig: Rig::new(), model: Model::new() };
        for step in steps {
            run.step(step);
        }
    }
}

#[test]
fn a_range_at_an_old_revision_in_a_transaction_holds_compaction_back() {
    let mut rig = Rig::new();
    let old = rig.put("a", b"old");
    rig.put("a", b"new");
    let range = RangeRequest {
        key: Bytes::from_static(b"a"),
        revision: old,
        ..Default::default()
    };
    let inner = TxnRequest {
        success: vec![RequestOp {
            request: Some(Request::RequestRange(range.clone())),
        }],
        ..Default::default()
    };
    let request = InternalRaftRequest {
        txn: Some(TxnRequest {
            success: vec![RequestOp {
                request: Some(Request::RequestTxn(inner)),
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    let Outcome::Txn { ops, pin, .. } = rig.outcome(&request) else {
        panic!()
    };
    assert!(rig.compact(old + 1));
    assert!(matches!(rig.store.compact_slice(), Slice::Held));
    let OpOutcome::Txn { ops, .. } = &ops[0] else {
        panic!()
    };
    let OpOutcome::Range { at, header } = ops[0] else {
        panic!()
    };
    let answer = rig.range_at(&range, ReadAt::InTxn { at, header }).unwrap();
    assert_eq!(answer.kvs[0].value, Bytes::from_static(b"old"));
    drop(pin);
    rig.finish_compactions();
}
