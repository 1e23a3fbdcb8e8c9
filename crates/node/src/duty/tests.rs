use super::*;
use keelson_store::member::{Change, Member};

const RETRY: Duration = Duration::from_secs(7);

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn duties() -> Duties {
    Duties::new(Version::new(3, 7, 0), RETRY, AutoCompaction::Off, at(0), 1)
}

fn membership(version: Option<&str>, downgrade: Option<&str>) -> Membership {
    let mut membership = Membership::default();
    let mut rows = Vec::new();
    let member = Member::new(
        "m1".to_owned(),
        vec!["http://a:1".to_owned()],
        "t",
        None,
        false,
    );
    membership.apply(
        Change::Add {
            member,
            as_learner: false,
        },
        &mut rows,
    );
    if let Some(version) = version {
        let request = ClusterVersionSetRequest {
            ver: version.to_owned(),
        };
        membership.set_version(&request, &mut rows).unwrap();
    }
    if let Some(target) = downgrade {
        let request = keelson_proto::rpc::membershippb::DowngradeInfoSetRequest {
            enabled: true,
            ver: target.to_owned(),
        };
        membership.set_downgrade(&request, &mut rows);
    }
    membership
}

fn due(duties: &mut Duties, now: Duration, membership: &Membership) -> Vec<Action> {
    duties.due(&Facts {
        now,
        revision: 1,
        membership,
        own: membership.members().next().unwrap().id,
        release: &|_| Release::Unreachable,
    })
}

#[test]
fn attributes_are_told_at_once_and_again_until_that_is_applied() {
    let mut duties = duties();
    let members = membership(Some("3.7.0"), None);
    assert_eq!(due(&mut duties, at(0), &members), [Action::Publish]);
    // What is told before anybody is connected is lost: not for as long as a request may take.
    for again in [1_000, 3_000, 7_000, 14_000, 21_000] {
        assert!(!due(&mut duties, at(again - 1), &members).contains(&Action::Publish));
        assert!(due(&mut duties, at(again), &members).contains(&Action::Publish));
    }
    duties.take(
        &DutyEvent::Done(Duty::Publish, Err(ApiError::ProposalDropped)),
        at(21_100),
    );
    assert!(
        due(&mut duties, at(21_199), &members).is_empty(),
        "what fails at once is not asked for in a loop"
    );
    assert_eq!(duties.next(), at(21_200));
    assert_eq!(due(&mut duties, at(21_200), &members), [Action::Publish]);
    assert!(duties.take(&DutyEvent::Done(Duty::Publish, Ok(())), at(21_200)));
    assert!(
        !duties.take(&DutyEvent::Done(Duty::Publish, Ok(())), at(21_300)),
        "ready once"
    );
    assert!(!due(&mut duties, at(40_000), &members).contains(&Action::Publish));
}

#[test]
fn a_leader_sets_the_version_after_its_first_entry_and_not_before() {
    let mut duties = duties();
    let none = membership(None, None);
    duties.take(&DutyEvent::Leads(true), at(0));
    assert_eq!(due(&mut duties, at(0), &none), [Action::Publish]);
    duties.take(&DutyEvent::FirstCommit, at(10));
    let set = Action::SetVersion(Version::new(3, 7, 0));
    assert_eq!(due(&mut duties, at(10), &none), [set]);
    duties.take(&DutyEvent::Done(Duty::Publish, Ok(())), at(20));
    let known = membership(Some("3.7.0"), None);
    assert!(
        due(&mut duties, at(4_010), &known)
            .iter()
            .all(|action| *action == Action::Leases)
    );
}

#[test]
fn a_leader_asks_soon_again_for_releases_that_it_has_not_heard() {
    let mut duties = duties();
    let none = membership(None, None);
    duties.take(&DutyEvent::Leads(true), at(0));
    duties.take(&DutyEvent::FirstCommit, at(0));
    let facts = |now| Facts {
        now,
        revision: 1,
        membership: &none,
        own: MemberId(1),
        release: &|_| Release::NotAsked,
    };
    let versions = |actions: Vec<Action>| {
        actions
            .iter()
            .filter(|action| matches!(action, Action::SetVersion(_)))
            .count()
    };
    assert_eq!(versions(duties.due(&facts(at(0)))), 0);
    assert!(duties.next() <= at(500));
    assert_eq!(versions(due(&mut duties, at(500), &none)), 1);
}

#[test]
fn a_removed_member_ends_a_moment_later_and_once() {
    let mut duties = duties();
    let members = membership(Some("3.7.0"), None);
    duties.take(&DutyEvent::Removed, at(100));
    assert!(!due(&mut duties, at(1_099), &members).contains(&Action::End));
    let last = due(&mut duties, at(1_100), &members);
    assert!(last.contains(&Action::End) && !last.contains(&Action::Publish));
    assert!(!due(&mut duties, at(9_000), &members).contains(&Action::End));
}

#[test]
fn only_a_settled_leader_looks_at_leases() {
    let mut duties = duties();
    let members = membership(Some("3.7.0"), None);
    due(&mut duties, at(0), &members);
    assert!(due(&mut duties, at(500), &members).is_empty());
    duties.take(&DutyEvent::Leads(true), at(600));
    duties.take(&DutyEvent::FirstCommit, at(600));
    assert!(due(&mut duties, at(1_000), &members).contains(&Action::Leases));
    assert!(due(&mut duties, at(1_100), &members).is_empty());
    duties.take(&DutyEvent::Leads(false), at(1_200));
    assert!(due(&mut duties, at(1_500), &members).is_empty());
}

#[test]
fn the_next_look_is_never_later_than_what_is_due() {
    let mut duties = duties();
    let members = membership(Some("3.7.0"), None);
    assert_eq!(duties.next(), at(0));
    due(&mut duties, at(0), &members);
    assert_eq!(duties.next(), at(500));
}

#[test]
fn a_lone_member_of_the_version_downgraded_to_ends_the_downgrade() {
    let held = Version::new(3, 6, 0);
    let mut held = Duties::new(held, RETRY, AutoCompaction::Off, at(0), 1);
    let mut newer = duties();
    for duties in [&mut held, &mut newer] {
        duties.take(&DutyEvent::Leads(true), at(0));
        duties.take(&DutyEvent::FirstCommit, at(0));
    }
    let mut members = membership(Some("3.6.0"), Some("3.6.0"));
    let end = Action::EndDowngrade;
    assert!(!due(&mut newer, at(0), &members).contains(&end));
    assert!(due(&mut held, at(0), &members).contains(&end));
    let member = Member::new(
        "m2".to_owned(),
        vec!["http://b:1".to_owned()],
        "t",
        None,
        false,
    );
    let change = Change::Add {
        member,
        as_learner: false,
    };
    members.apply(change, &mut Vec::new());
    assert!(!due(&mut held, at(10_000), &members).contains(&end));
}

#[test]
fn attributes_that_a_snapshot_has_are_not_told_again() {
    let mut duties = duties();
    let members = membership(Some("3.7.0"), None);
    assert_eq!(due(&mut duties, at(0), &members), [Action::Publish]);
    assert!(duties.found_attributes());
    assert!(!duties.found_attributes(), "ready once");
    assert!(!due(&mut duties, at(20_000), &members).contains(&Action::Publish));
}
