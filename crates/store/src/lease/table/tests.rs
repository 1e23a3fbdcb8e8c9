//! The rules of each change, rows that etcd wrote, and a model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MIN: i64 = 2;

fn table() -> Table {
    Table::restore(MIN, []).unwrap()
}

fn keys(set: &KeySet) -> Vec<&str> {
    set.iter()
        .map(|key| std::str::from_utf8(key).unwrap())
        .collect()
}

#[test]
fn the_shortest_lease_lasts_one_and_a_half_elections() {
    assert_eq!(ttl_seconds_min(10, 100), 2);
    assert_eq!(ttl_seconds_min(10, 200), 3);
    assert_eq!(ttl_seconds_min(5, 100), 1);
    assert_eq!(ttl_seconds_min(u64::MAX, u64::MAX), 18_446_744_073_709_552);
}

#[test]
fn leases_are_granted_once_and_within_bounds() {
    let mut table = table();
    let mut rows = Vec::new();
    let mut grant = |id, ttl| table.grant(LeaseId(id), ttl, &mut rows);
    assert_eq!(grant(0, 60), Err(ApiError::LeaseNotFound));
    assert_eq!(grant(1, 9_000_000_001), Err(ApiError::LeaseTtlTooLarge));
    assert_eq!(grant(1, 9_000_000_000), Ok(9_000_000_000));
    assert_eq!(grant(1, 60), Err(ApiError::LeaseExist));
    assert_eq!(grant(2, 0), Ok(2));
    assert_eq!(grant(3, i64::MIN), Ok(2));
    assert_eq!(grant(-1, 60), Ok(60));
    assert_eq!(rows.len(), 4);
}

#[test]
fn recorded_rows_come_back_as_they_were() {
    // Recorded with etcd 3.7.
    let recorded: [(LeaseId, i64, &[u8]); 3] = [
        (
            LeaseId(0x1001),
            3_600_000,
            b"\x08\x81\x20\x10\x80\xdd\xdb\x01",
        ),
        (
            LeaseId(0x1004),
            9_000_000_000,
            b"\x08\x84\x20\x10\x80\xb4\xc4\xc3\x21",
        ),
        (
            LeaseId(i64::MAX),
            600_000_000,
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x10\x80\x8c\x8d\x9e\x02",
        ),
    ];
    let mut table = table();
    for (id, ttl, row) in recorded {
        let mut rows = Vec::new();
        table.grant(id, ttl, &mut rows).unwrap();
        let key = id.0.to_be_bytes();
        assert_eq!(rows, [RowChange::put("lease", key, row)]);
        let restored = Table::restore(MIN, [(&key[..], row)]).unwrap();
        assert_eq!(restored.get(id), table.get(id));
    }
    assert!(Table::restore(MIN, [(&[0][..], recorded[0].2)]).is_err());
    assert!(Table::restore(MIN, [(&[0; 8][..], &[8][..])]).is_err());
    let key = 0x1001_i64.to_be_bytes();
    let raised = Table::restore(4_000_000, [(&key[..], recorded[0].2)]).unwrap();
    assert_eq!(raised.get(LeaseId(0x1001)).unwrap().ttl(), 4_000_000);
}

#[test]
fn a_key_hangs_on_the_lease_of_its_last_put() {
    let mut table = table();
    let mut rows = Vec::new();
    for id in [1, 2] {
        table.grant(LeaseId(id), 60, &mut rows).unwrap();
    }
    for key in ["b", "c", "a"] {
        table.attach(key.as_bytes(), LeaseId(1)).unwrap();
    }
    table.attach(b"b", LeaseId(2)).unwrap();
    assert_eq!(table.attach(b"b", LeaseId(3)), Err(ApiError::LeaseNotFound));
    assert_eq!(keys(table.get(LeaseId(1)).unwrap().keys()), ["a", "c"]);
    assert_eq!(keys(table.get(LeaseId(2)).unwrap().keys()), ["b"]);
    assert_eq!(table.lease_of(b"b"), LeaseId(2));
    table.attach(b"b", LeaseId::NONE).unwrap();
    table.detach(b"unknown");
    assert!(table.get(LeaseId(2)).unwrap().keys().is_empty());
    assert_eq!(table.lease_of(b"b"), LeaseId::NONE);
}

#[test]
fn a_revoke_gives_the_keys_in_the_order_of_their_deletion() {
    let mut table = table();
    let mut rows = Vec::new();
    table.grant(LeaseId(1), 60, &mut rows).unwrap();
    for key in ["b", "a\0", "c", "a"] {
        table.attach(key.as_bytes(), LeaseId(1)).unwrap();
    }
    rows.clear();
    let revoked = table.revoke(LeaseId(1), &mut rows).unwrap();
    assert_eq!(keys(&revoked), ["a", "a\0", "b", "c"]);
    assert_eq!(rows, [RowChange::delete("lease", 1_i64.to_be_bytes())]);
    assert_eq!(table.lease_of(b"a"), LeaseId::NONE);
    let unknown = Err(ApiError::LeaseNotFound);
    assert_eq!(table.revoke(LeaseId(1), &mut rows), unknown);
}

#[test]
fn a_checkpoint_is_written_where_it_may_be() {
    let mut table = table();
    let mut rows = Vec::new();
    table.grant(LeaseId(1), 600, &mut rows).unwrap();
    rows.clear();
    table.checkpoint(LeaseId(9), 5, true, &mut rows);
    table.checkpoint(LeaseId(1), 300, false, &mut rows);
    assert!(rows.is_empty());
    assert_eq!(table.get(LeaseId(1)).unwrap().remaining_ttl(), 300);
    table.checkpoint(LeaseId(1), 299, true, &mut rows);
    let row = b"\x08\x01\x10\xd8\x04\x18\xab\x02";
    let key = 1_i64.to_be_bytes();
    assert_eq!(rows, [RowChange::put("lease", key, *row)]);
    let restored = Table::restore(MIN, [(&key[..], &row[..])]).unwrap();
    assert_eq!(restored.get(LeaseId(1)), table.get(LeaseId(1)));
}

#[derive(Clone, Debug)]
enum Step {
    Grant(i64, i64),
    Revoke(i64),
    Attach(u8, i64),
    Detach(u8),
    Checkpoint(i64, i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..5_i64, -1..9_i64).prop_map(|(id, ttl)| Step::Grant(id, ttl)),
        (0..5_i64).prop_map(Step::Revoke),
        (0..8_u8, 0..5_i64).prop_map(|(key, id)| Step::Attach(key, id)),
        (0..8_u8).prop_map(Step::Detach),
        (0..5_i64, 0..9_i64).prop_map(|(id, left)| Step::Checkpoint(id, left)),
    ]
}

/// The dumb one: leases as (ttl, remaining), keys with their lease.
#[derive(Default)]
struct Model {
    leases: BTreeMap<i64, (i64, i64)>,
    keys: BTreeMap<u8, i64>,
}

impl Model {
    fn keys_of(&self, id: i64) -> Vec<Vec<u8>> {
        let of = |(key, lease): (&u8, &i64)| (*lease == id).then(|| vec![*key]);
        self.keys.iter().filter_map(of).collect()
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Grant(id, ttl) if id != 0 => {
                self.leases.entry(id).or_insert((ttl.max(MIN), 0));
            }
            Step::Revoke(id) => {
                self.leases.remove(&id);
                self.keys.retain(|_, lease| *lease != id);
            }
            Step::Attach(key, 0) | Step::Detach(key) => {
                self.keys.remove(&key);
            }
            Step::Attach(key, id) if self.leases.contains_key(&id) => {
                self.keys.insert(key, id);
            }
            Step::Checkpoint(id, left) => {
                if let Some(lease) = self.leases.get_mut(&id) {
                    lease.1 = left;
                }
            }
            Step::Grant(..) | Step::Attach(..) => {}
        }
    }
}

proptest! {
    #[test]
    fn the_table_is_its_model_and_its_rows_are_the_table(
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        let mut table = table();
        let mut model = Model::default();
        let mut stored: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for step in &steps {
            let mut rows = Vec::new();
            match *step {
                Step::Grant(id, ttl) => {
                    let known = model.leases.contains_key(&id);
                    let granted = table.grant(LeaseId(id), ttl, &mut rows);
                    prop_assert_eq!(granted.is_ok(), id != 0 && !known);
                }
                Step::Revoke(id) => {
                    let revoked = table.revoke(LeaseId(id), &mut rows).ok();
                    let expected = model.leases.contains_key(&id).then(|| model.keys_of(id));
                    let revoked = revoked.map(|set| set.iter().map(<[u8]>::to_vec).collect());
                    prop_assert_eq!(revoked, expected);
                }
                Step::Attach(key, id) => {
                    let known = id == 0 || model.leases.contains_key(&id);
                    prop_assert_eq!(table.attach(&[key], LeaseId(id)).is_ok(), known);
                }
                Step::Detach(key) => table.detach(&[key]),
                Step::Checkpoint(id, left) => {
                    table.checkpoint(LeaseId(id), left, true, &mut rows);
                }
            }
            model.run(step);
            for change in rows {
                match change.value {
                    Some(value) => stored.insert(change.key, value),
                    None => stored.remove(&change.key),
                };
            }
            for key in 0..8 {
                let expected = model.keys.get(&key).copied().unwrap_or(0);
                prop_assert_eq!(table.lease_of(&[key]), LeaseId(expected));
            }
            for (id, (ttl, left)) in &model.leases {
                let lease = table.get(LeaseId(*id)).unwrap();
                prop_assert_eq!((lease.ttl(), lease.remaining_ttl()), (*ttl, *left));
                let keys: Vec<_> = lease.keys().iter().map(<[u8]>::to_vec).collect();
                prop_assert_eq!(lease.keys().len(), keys.len());
                prop_assert_eq!(keys, model.keys_of(*id));
            }
            prop_assert_eq!(table.len(), model.leases.len());
        }
        let rows = stored.iter().map(|(key, value)| (&key[..], &value[..]));
        let mut restored = Table::restore(MIN, rows).unwrap();
        for (key, id) in &model.keys {
            restored.attach(&[*key], LeaseId(*id)).unwrap();
        }
        prop_assert!(restored.iter().eq(table.iter()));
    }
}
