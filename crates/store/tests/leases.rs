//! Leases through apply, against a plain model: who hangs on which, and what a restart knows.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod rig;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keelson_proto::ApiError;
use keelson_proto::ids::LeaseId;
use keelson_proto::rpc::etcdserverpb::{
    DeleteRangeRequest, InternalRaftRequest, LeaseCheckpoint, LeaseCheckpointRequest,
    LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
};
use keelson_proto::rpc::leasepb;
use keelson_proto::rpc::membershippb::ClusterVersionSetRequest;
use keelson_store::{Outcome, watch};
use proptest::prelude::*;
use prost::Message as _;
use rig::Rig;

/// As the rig opens its stores.
const TTL_MIN: i64 = 2;

#[derive(Clone, Debug, PartialEq)]
struct Lease {
    ttl: i64,
    remaining: i64,
    /// What of it is in the file.
    stored: i64,
}

#[derive(Default)]
struct Model {
    leases: BTreeMap<i64, Lease>,
    /// Keys that are alive, with their lease; 0 for none.
    keys: BTreeMap<&'static str, i64>,
    persists: bool,
}

impl Model {
    fn keys_of(&self, lease: i64) -> Vec<&'static str> {
        let on = self.keys.iter().filter(|(_, id)| **id == lease);
        on.map(|(key, _)| *key).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Grant(i64, i64),
    Put {
        key: usize,
        lease: i64,
        keep_lease: bool,
    },
    Delete(usize, usize),
    Revoke(i64),
    Checkpoint(Vec<(i64, i64)>),
    Version(&'static str),
    Commit,
    Restart,
}

const KEYS: [&str; 6] = ["z", "a", "m", "ab", "b", "aa"];

fn step() -> impl Strategy<Value = Step> {
    let id = || 0i64..5;
    let ttl = prop_oneof![9 => -2i64..100, 1 => Just(9_000_000_001)];
    prop_oneof![
        4 => (id(), ttl).prop_map(|(id, ttl)| Step::Grant(id, ttl)),
        8 => (0..KEYS.len(), id(), prop::bool::weighted(0.2))
            .prop_map(|(key, lease, keep_lease)| Step::Put { key, lease, keep_lease }),
        2 => (0..KEYS.len(), 0..KEYS.len()).prop_map(|(key, end)| Step::Delete(key, end)),
        2 => id().prop_map(Step::Revoke),
        2 => prop::collection::vec((id(), 0i64..50), 0..3).prop_map(Step::Checkpoint),
        1 => prop::sample::select(vec!["3.6.0", "3.7.0"]).prop_map(Step::Version),
        1 => Just(Step::Commit),
        2 => Just(Step::Restart),
    ]
}

struct Run {
    rig: Rig,
    model: Model,
}

impl Run {
    fn step(&mut self, step: Step) {
        match step {
            Step::Grant(id, ttl) => self.grant(id, ttl),
            Step::Put {
                key,
                lease,
                keep_lease,
            } => self.put(KEYS[key], lease, keep_lease),
            Step::Delete(key, end) => self.delete(KEYS[key], KEYS[end]),
            Step::Revoke(id) => self.revoke(id),
            Step::Checkpoint(notes) => self.checkpoint(&notes),
            Step::Version(version) => {
                let request = InternalRaftRequest {
                    cluster_version_set: Some(ClusterVersionSetRequest {
                        ver: version.to_owned(),
                    }),
                    ..Default::default()
                };
                assert!(matches!(self.rig.outcome(&request), Outcome::Cluster));
                self.model.persists = true;
            }
            Step::Commit => drop(self.rig.commit()),
            Step::Restart => {
                self.rig = std::mem::replace(&mut self.rig, Rig::new()).restart();
                for lease in self.model.leases.values_mut() {
                    lease.remaining = lease.stored;
                }
            }
        }
        self.check();
    }

    fn grant(&mut self, id: i64, ttl: i64) {
        let request = InternalRaftRequest {
            lease_grant: Some(LeaseGrantRequest { id, ttl }),
            ..Default::default()
        };
        let expected = if id == 0 {
            Err(ApiError::LeaseNotFound)
        } else if ttl > 9_000_000_000 {
            Err(ApiError::LeaseTtlTooLarge)
        } else if self.model.leases.contains_key(&id) {
            Err(ApiError::LeaseExist)
        } else {
            Ok(ttl.max(TTL_MIN))
        };
        match (self.rig.outcome(&request), expected) {
            (
                Outcome::LeaseGrant {
                    id: granted, ttl, ..
                },
                Ok(expected),
            ) => {
                assert_eq!((granted, ttl), (LeaseId(id), expected));
                let lease = Lease {
                    ttl,
                    remaining: 0,
                    stored: 0,
                };
                self.model.leases.insert(id, lease);
            }
            (Outcome::Refused(error), Err(expected)) => assert_eq!(error, expected),
            other => panic!("{other:?}"),
        }
    }

    fn put(&mut self, key: &'static str, lease: i64, keep_lease: bool) {
        let lease = if keep_lease { 0 } else { lease };
        let put = PutRequest {
            key: Bytes::from_static(key.as_bytes()),
            lease,
            ignore_lease: keep_lease,
            ..Default::default()
        };
        let request = InternalRaftRequest {
            put: Some(put),
            ..Default::default()
        };
        let before = self.model.keys.get(key).copied();
        let expected = match before {
            None if keep_lease => Err(ApiError::KeyNotFound),
            _ if lease != 0 && !self.model.leases.contains_key(&lease) => {
                Err(ApiError::LeaseNotFound)
            }
            before => Ok(before.filter(|_| keep_lease).unwrap_or(lease)),
        };
        match (self.rig.outcome(&request), expected) {
            (Outcome::Put { .. }, Ok(lease)) => drop(self.model.keys.insert(key, lease)),
            (Outcome::Refused(error), Err(expected)) => assert_eq!(error, expected),
            other => panic!("{other:?}"),
        }
    }

    fn delete(&mut self, key: &'static str, end: &'static str) {
        let gone: Vec<&str> = self.model.keys.keys().copied().collect();
        let delete = DeleteRangeRequest {
            key: Bytes::from_static(key.as_bytes()),
            range_end: Bytes::from_static(if key < end { end.as_bytes() } else { b"" }),
            ..Default::default()
        };
        for found in gone {
            if found == key || (key < end && found >= key && found < end) {
                self.model.keys.remove(found);
            }
        }
        self.rig.apply(&InternalRaftRequest {
            delete_range: Some(delete),
            ..Default::default()
        });
    }

    /// All keys go under one revision, in their order, with the lease.
    fn revoke(&mut self, id: i64) {
        self.rig.store.take_events();
        let before = self.rig.store.shared().revision();
        let request = InternalRaftRequest {
            lease_revoke: Some(LeaseRevokeRequest { id }),
            ..Default::default()
        };
        let outcome = self.rig.outcome(&request);
        if self.model.leases.remove(&id).is_none() {
            assert!(matches!(outcome, Outcome::Refused(ApiError::LeaseNotFound)));
            assert!(self.rig.store.take_events().is_none());
            return;
        }
        let keys = self.model.keys_of(id);
        let Outcome::LeaseRevoke { revision } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(revision, before + i64::from(!keys.is_empty()));
        let events = self.rig.store.take_events();
        let events = events.as_ref().map_or(&[][..], |batch| &*batch.records);
        assert_eq!(events.len(), keys.len());
        for ((sub, key), event) in (0..).zip(&keys).zip(events) {
            assert!(event.record.tombstone);
            assert_eq!((event.revision.main, event.revision.sub), (revision, sub));
            assert_eq!(watch::key(event).unwrap(), key.as_bytes());
        }
        for key in keys {
            self.model.keys.remove(key);
        }
    }

    fn checkpoint(&mut self, notes: &[(i64, i64)]) {
        let note = |&(id, remaining_ttl): &(i64, i64)| LeaseCheckpoint { id, remaining_ttl };
        let request = InternalRaftRequest {
            lease_checkpoint: Some(LeaseCheckpointRequest {
                checkpoints: notes.iter().map(note).collect(),
            }),
            ..Default::default()
        };
        assert!(matches!(
            self.rig.outcome(&request),
            Outcome::LeaseCheckpoint
        ));
        for (id, remaining) in notes {
            if let Some(lease) = self.model.leases.get_mut(id) {
                lease.remaining = *remaining;
                if self.model.persists {
                    lease.stored = *remaining;
                }
            }
        }
    }

    fn check(&mut self) {
        let shared = self.rig.store.shared();
        let table = shared.leases();
        let ids: BTreeSet<i64> = table.iter().map(|(id, _)| id.0).collect();
        assert!(ids.iter().eq(self.model.leases.keys()));
        for (id, lease) in table.iter() {
            let expected = &self.model.leases[&id.0];
            assert_eq!(lease.ttl(), expected.ttl);
            assert_eq!(lease.remaining_ttl(), expected.remaining);
            let keys: Vec<&[u8]> = lease.keys().into_iter().collect();
            let expected = self.model.keys_of(id.0);
            let expected: Vec<&[u8]> = expected.iter().map(|key| key.as_bytes()).collect();
            assert_eq!(keys, expected);
        }
        for key in KEYS {
            let lease = self.model.keys.get(key).copied().unwrap_or_default();
            assert_eq!(table.lease_of(key.as_bytes()), LeaseId(lease));
        }
    }

    /// The rows of the file are the leases, without their keys.
    fn check_rows(&mut self) {
        self.rig.commit();
        let rows = self.rig.rows();
        let rows = rows.iter().filter(|row| row.0 == "lease");
        let found: Vec<leasepb::Lease> = rows
            .map(|(_, key, value)| {
                let lease = leasepb::Lease::decode(&value[..]).unwrap();
                assert_eq!(*key, lease.id.to_be_bytes());
                lease
            })
            .collect();
        let expected: Vec<leasepb::Lease> = self
            .model
            .leases
            .iter()
            .map(|(id, lease)| leasepb::Lease {
                id: *id,
                ttl: lease.ttl,
                remaining_ttl: lease.stored,
            })
            .collect();
        assert_eq!(found, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn keys_hang_where_they_were_hung_through_any_restart(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut run = Run { rig: Rig::new(), model: Model::default() };
        for step in steps {
            run.step(step);
        }
        run.check_rows();
    }
}
