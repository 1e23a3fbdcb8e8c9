//! Deadlines against plain arithmetic.

use std::collections::{BTreeMap, BTreeSet};

use keelson_proto::rpc::etcdserverpb::LeaseCheckpoint;
use proptest::prelude::*;

use super::super::checkpoint::{CHECKPOINT_EVERY, CHECKPOINTS_PER_REQUEST};
use super::*;

const SECOND: u64 = 1_000;

fn id(number: i64) -> LeaseId {
    LeaseId(number)
}

fn leading(checkpointing: bool) -> Deadlines {
    let mut deadlines = Deadlines::new(checkpointing);
    deadlines.promote(Ticks(0), 0);
    deadlines
}

#[test]
fn a_lease_runs_out_after_its_time_and_not_before() {
    let mut deadlines = leading(false);
    deadlines.granted(id(1), 5, 0, Ticks(17));
    assert_eq!(deadlines.expired(Ticks(5_016), 500), []);
    assert_eq!(deadlines.expired(Ticks(5_017), 500), [id(1)]);
    let left = deadlines.remaining(id(1), Ticks(5_018)).unwrap();
    assert_eq!(left, Remaining::Millis(-1));
    assert_eq!(left.seconds(), Some(0));
    assert_eq!(deadlines.renew(id(1), Ticks(5_018)), Renewal::Expired);
}

#[test]
fn an_expired_lease_that_stays_is_given_out_again() {
    let mut deadlines = leading(false);
    deadlines.granted(id(1), 5, 0, Ticks(0));
    assert_eq!(deadlines.expired(Ticks(5_000), 500), [id(1)]);
    assert_eq!(deadlines.expired(Ticks(7_999), 500), []);
    assert_eq!(deadlines.expired(Ticks(8_000), 500), [id(1)]);
    deadlines.revoked(id(1));
    assert_eq!(deadlines.expired(Ticks(20_000), 500), []);
    assert_eq!(deadlines.remaining(id(1), Ticks(0)), None);
}

#[test]
fn a_keep_alive_gives_the_whole_time_again() {
    let mut deadlines = leading(false);
    deadlines.granted(id(1), 5, 0, Ticks(0));
    let renewed = Renewal::Renewed { ttl: 5 };
    for second in 1..100 {
        assert_eq!(deadlines.renew(id(1), Ticks(4 * second * SECOND)), renewed);
        assert_eq!(deadlines.expired(Ticks(4 * second * SECOND), 500), []);
    }
    assert_eq!(deadlines.expired(Ticks(396 * SECOND + 4_999), 500), []);
    assert_eq!(deadlines.expired(Ticks(396 * SECOND + 5_000), 500), [id(1)]);
    assert_eq!(deadlines.renew(id(2), Ticks(0)), Renewal::Unknown);
}

#[test]
fn a_look_finds_no_more_than_it_may_and_loses_none() {
    let mut deadlines = leading(false);
    for number in 1..=1_200 {
        deadlines.granted(id(number), 5, 0, Ticks(0));
    }
    let mut found = BTreeSet::new();
    for (look, count) in [(0, 500), (1, 500), (2, 200), (3, 0)] {
        let now = Ticks(5_000 + look * EXPIRY_CHECK_EVERY);
        let some = deadlines.expired(now, EXPIRED_PER_CHECK);
        assert_eq!(some.len(), count);
        found.extend(some);
    }
    assert_eq!(found.len(), 1_200);
}

#[test]
fn only_the_leader_keeps_times() {
    let mut deadlines = Deadlines::new(false);
    deadlines.granted(id(2), 5, 0, Ticks(0));
    deadlines.granted(id(1), 9, 0, Ticks(0));
    assert_eq!(deadlines.renew(id(1), Ticks(0)), Renewal::NotPrimary);
    let forever = Some(Remaining::Forever);
    assert_eq!(deadlines.remaining(id(1), Ticks(0)), forever);
    assert_eq!(deadlines.by_remaining(), [id(1), id(2)]);
    assert_eq!(deadlines.expired(Ticks(100 * SECOND), 500), []);
    deadlines.promote(Ticks(200 * SECOND), 1_500);
    assert_eq!(deadlines.by_remaining(), [id(2), id(1)]);
    let left = deadlines.remaining(id(2), Ticks(200 * SECOND)).unwrap();
    assert_eq!(left, Remaining::Millis(6_500));
    deadlines.demote();
    assert_eq!(deadlines.remaining(id(2), Ticks(0)), forever);
    assert_eq!(deadlines.expired(Ticks(300 * SECOND), 500), []);
    assert!(!deadlines.is_primary());
}

#[test]
fn a_promotion_gives_what_was_written_down() {
    let mut deadlines = Deadlines::new(true);
    deadlines.granted(id(1), 600, 40, Ticks(0));
    deadlines.granted(id(2), 600, 0, Ticks(0));
    deadlines.checkpointed(id(2), 50, Ticks(0));
    deadlines.promote(Ticks(0), 0);
    let left = |deadlines: &Deadlines, number| deadlines.remaining(id(number), Ticks(0));
    assert_eq!(left(&deadlines, 1), Some(Remaining::Millis(40_000)));
    assert_eq!(left(&deadlines, 2), Some(Remaining::Millis(50_000)));
    // The note must go before the lease can have its whole time again.
    assert_eq!(deadlines.renew(id(1), Ticks(0)), Renewal::ClearCheckpoint);
    deadlines.checkpointed(id(1), 0, Ticks(0));
    let renewed = Renewal::Renewed { ttl: 600 };
    assert_eq!(deadlines.renew(id(1), Ticks(0)), renewed);
    assert_eq!(left(&deadlines, 1), Some(Remaining::Millis(600_000)));
}

#[test]
fn many_leases_that_would_end_together_are_spread_after_a_promotion() {
    let mut deadlines = Deadlines::new(false);
    for number in 1..=10_000 {
        deadlines.granted(id(number), 10, 0, Ticks(0));
    }
    deadlines.promote(Ticks(0), 0);
    let mut in_second: BTreeMap<i64, usize> = BTreeMap::new();
    for number in 1..=10_000 {
        let left = deadlines.remaining(id(number), Ticks(0)).unwrap();
        *in_second.entry(left.seconds().unwrap()).or_default() += 1;
    }
    assert!(in_second.keys().all(|second| *second >= 10));
    assert!(in_second.len() >= 10, "{in_second:?}");
    assert!(
        in_second.values().all(|count| *count <= REVOKES_PER_SECOND),
        "{in_second:?}"
    );
}

#[test]
fn few_leases_are_not_spread() {
    let mut deadlines = Deadlines::new(false);
    for number in 1..1_000 {
        deadlines.granted(id(number), 10, 0, Ticks(0));
    }
    deadlines.promote(Ticks(0), 0);
    for number in 1..1_000 {
        let left = deadlines.remaining(id(number), Ticks(0));
        assert_eq!(left, Some(Remaining::Millis(10_000)));
    }
}

#[test]
fn long_leases_are_written_down_every_five_minutes() {
    let mut deadlines = leading(true);
    deadlines.granted(id(1), 1_000, 0, Ticks(0));
    deadlines.granted(id(2), 300, 0, Ticks(0));
    let due = |deadlines: &mut Deadlines, now| {
        deadlines.due_checkpoints(Ticks(now), CHECKPOINTS_PER_REQUEST)
    };
    assert_eq!(due(&mut deadlines, CHECKPOINT_EVERY - 1), []);
    let checkpoint = |remaining_ttl| LeaseCheckpoint {
        id: 1,
        remaining_ttl,
    };
    assert_eq!(due(&mut deadlines, CHECKPOINT_EVERY + 1), [checkpoint(700)]);
    deadlines.checkpointed(id(1), 700, Ticks(CHECKPOINT_EVERY + 1));
    assert_eq!(due(&mut deadlines, CHECKPOINT_EVERY + 2), []);
    assert_eq!(
        due(&mut deadlines, 2 * CHECKPOINT_EVERY + 500),
        [checkpoint(400)]
    );
    assert_eq!(due(&mut deadlines, 1_000 * SECOND), [], "expired");
    assert_eq!(due(&mut leading(false), u64::MAX), []);
}

#[test]
fn a_lease_with_all_its_time_is_not_written_down_yet() {
    let mut deadlines = leading(true);
    deadlines.granted(id(1), 1_000, 0, Ticks(0));
    deadlines.renew(id(1), Ticks(CHECKPOINT_EVERY));
    assert_eq!(deadlines.due_checkpoints(Ticks(CHECKPOINT_EVERY), 9), []);
    let later = deadlines.due_checkpoints(Ticks(2 * CHECKPOINT_EVERY), 9);
    assert_eq!(later.len(), 1);
}

#[test]
fn checkpoints_come_in_batches() {
    let mut deadlines = leading(true);
    for number in 1..=2_500 {
        deadlines.granted(id(number), 1_000, 0, Ticks(0));
    }
    let mut seen = BTreeSet::new();
    for count in [1_000, 1_000, 500, 0] {
        let batch = deadlines.due_checkpoints(Ticks(CHECKPOINT_EVERY), CHECKPOINTS_PER_REQUEST);
        assert_eq!(batch.len(), count);
        seen.extend(batch.iter().map(|one| one.id));
    }
    assert_eq!(seen.len(), 2_500);
}

#[test]
fn the_longest_lease_does_not_overflow() {
    let mut deadlines = leading(true);
    deadlines.granted(id(1), i64::MAX, 0, Ticks(u64::MAX - 1));
    deadlines.granted(id(2), 9_000_000_000, 0, Ticks(0));
    let left = deadlines.remaining(id(2), Ticks(0)).unwrap();
    assert_eq!(left.seconds(), Some(9_000_000_000));
    assert_eq!(deadlines.expired(Ticks(9_000_000_000_000), 9), [id(2)]);
}

#[test]
fn leases_that_are_revoked_early_leave_nothing_behind() {
    let mut deadlines = leading(true);
    for number in 1..=100_000 {
        deadlines.granted(id(number), 3_600, 0, Ticks(0));
        deadlines.revoked(id(number));
    }
    assert!(deadlines.is_empty());
    assert!(!deadlines.wheel.is_stale(0) && !deadlines.checkpoints.is_stale(0));
}

#[derive(Clone, Debug)]
enum Step {
    Grant(i64, i64),
    Revoke(i64),
    Renew(i64),
    Promote(u64),
    Demote,
    Expired(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..6_i64, 1..9_i64).prop_map(|(id, ttl)| Step::Grant(id, ttl)),
        1 => (1..6_i64).prop_map(Step::Revoke),
        3 => (1..6_i64).prop_map(Step::Renew),
        1 => (0..3_000_u64).prop_map(Step::Promote),
        1 => Just(Step::Demote),
        4 => (1..4_usize).prop_map(Step::Expired),
        4 => (0..4_000_u64).prop_map(Step::Wait),
    ]
}

/// The dumb one: (ttl, expiry, not given out before).
#[derive(Default)]
struct Model {
    primary: bool,
    leases: BTreeMap<i64, (i64, Option<u64>, u64)>,
}

proptest! {
    #[test]
    fn the_wheel_finds_what_a_plain_list_finds(
        steps in proptest::collection::vec(step(), 0..80),
    ) {
        let mut deadlines = Deadlines::new(false);
        let mut model = Model::default();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Grant(number, ttl) => {
                    // The table lets nobody grant a lease that is there.
                    if !model.leases.contains_key(&number) {
                        deadlines.granted(id(number), ttl, 0, Ticks(now));
                        let expiry = model.primary.then_some(now + ttl as u64 * SECOND);
                        model.leases.insert(number, (ttl, expiry, 0));
                    }
                }
                Step::Revoke(number) => {
                    deadlines.revoked(id(number));
                    model.leases.remove(&number);
                }
                Step::Renew(number) => {
                    let primary = model.primary;
                    let expected = match model.leases.get_mut(&number) {
                        _ if !primary => Renewal::NotPrimary,
                        None => Renewal::Unknown,
                        Some((_, Some(expiry), _)) if *expiry <= now => Renewal::Expired,
                        Some((ttl, expiry, _)) => {
                            *expiry = Some(now + *ttl as u64 * SECOND);
                            Renewal::Renewed { ttl: *ttl }
                        }
                    };
                    prop_assert_eq!(deadlines.renew(id(number), Ticks(now)), expected);
                }
                Step::Promote(extend) => {
                    // Nobody is promoted twice without being demoted.
                    if !model.primary {
                        deadlines.promote(Ticks(now), extend);
                        model.primary = true;
                        for (ttl, expiry, _) in model.leases.values_mut() {
                            *expiry = Some(now + extend + *ttl as u64 * SECOND);
                        }
                    }
                }
                Step::Demote => {
                    deadlines.demote();
                    model.primary = false;
                    for (_, expiry, wait) in model.leases.values_mut() {
                        (*expiry, *wait) = (None, 0);
                    }
                }
                Step::Expired(max) => {
                    let found = deadlines.expired(Ticks(now), max);
                    let due: BTreeSet<i64> = model
                        .leases
                        .iter()
                        .filter(|(_, (_, expiry, wait))| {
                            expiry.is_some_and(|expiry| expiry <= now) && *wait <= now
                        })
                        .map(|(number, _)| *number)
                        .collect();
                    prop_assert_eq!(found.len(), max.min(due.len()));
                    for one in found {
                        prop_assert!(due.contains(&one.0));
                        if let Some((_, _, wait)) = model.leases.get_mut(&one.0) {
                            prop_assert!(*wait <= now, "given out twice");
                            *wait = now + REVOKE_RETRY_EVERY;
                        }
                    }
                }
                Step::Wait(millis) => now += millis,
            }
            for (number, (_, expiry, _)) in &model.leases {
                let expected = match expiry {
                    Some(expiry) => Remaining::Millis(*expiry as i64 - now as i64),
                    None => Remaining::Forever,
                };
                prop_assert_eq!(deadlines.remaining(id(*number), Ticks(now)), Some(expected));
            }
            let mut order: Vec<_> = model
                .leases
                .iter()
                .map(|(number, (_, expiry, _))| (*expiry, id(*number)))
                .collect();
            order.sort();
            let order: Vec<_> = order.into_iter().map(|(_, id)| id).collect();
            prop_assert_eq!(deadlines.by_remaining(), order);
        }
    }
}
