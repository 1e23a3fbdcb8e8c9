//! The rules of each change, and rows that etcd wrote.

use super::*;

/// Recorded with etcd 3.7: one voter that has started, one learner that never did.
const VOTER: &str = r#"{"id":15985099378392235387,"peerURLs":["http://127.0.0.1:12380"],"name":"m1","clientURLs":["http://127.0.0.1:12379"]}"#;
const LEARNER: &str =
    r#"{"id":13514995407295571388,"peerURLs":["http://127.0.0.1:12390"],"isLearner":true}"#;
const VOTER_ID: MemberId = MemberId(15_985_099_378_392_235_387);
const LEARNER_ID: MemberId = MemberId(13_514_995_407_295_571_388);

fn recorded() -> Membership {
    Membership::restore(
        [
            (&b"bb8ee8b7a8e365bc"[..], LEARNER.as_bytes()),
            (b"ddd67b312462fd7b", VOTER.as_bytes()),
        ],
        [(&b"1f"[..], &b"removed"[..])],
        [(&b"clusterVersion"[..], &b"3.7.0"[..])],
    )
    .unwrap()
}

fn add(id: u64, url: &str, is_learner: bool) -> Change {
    Change::Add {
        member: Member {
            id: MemberId(id),
            peer_urls: vec![url.into()],
            is_learner,
            ..Member::default()
        },
        as_learner: is_learner,
    }
}

#[test]
fn ids_are_those_that_etcd_computes() {
    let urls = ["http://127.0.0.1:12380".to_owned()];
    assert_eq!(member_id(&urls, "etcd-cluster", None), VOTER_ID);
    assert_eq!(
        cluster_id([VOTER_ID]),
        ClusterId(12_101_053_776_118_486_841)
    );
    let several = ["http://b:1".to_owned(), "http://a:1".to_owned()];
    let sorted = ["http://a:1".to_owned(), "http://b:1".to_owned()];
    assert_eq!(
        member_id(&several, "t", None),
        member_id(&sorted, "t", None)
    );
    // The time of a runtime add takes the place of the token.
    assert_eq!(member_id(&urls, "", Some(17)), member_id(&urls, "17", None));
    assert_eq!(
        cluster_id([MemberId(2), MemberId(1)]),
        cluster_id([MemberId(1), MemberId(2)])
    );
    let member = Member::new("m".into(), several.to_vec(), "", Some(1), true);
    assert_eq!(member.peer_urls, sorted);
    assert_eq!(member.id, member_id(&sorted, "", Some(1)));
}

#[test]
fn recorded_members_come_back_as_they_were() {
    let membership = recorded();
    let json: Vec<String> = membership
        .members()
        .map(|member| String::from_utf8(member.to_json()).unwrap())
        .collect();
    assert_eq!(json, [LEARNER, VOTER]);
    assert!(membership.is_removed(MemberId(0x1f)));
    assert_eq!(membership.version(), Some(&Version::new(3, 7, 0)));
    assert_eq!(membership.downgrade(), Downgrade::default());
    let state = br#"{"voters":[15985099378392235387],"learners":[13514995407295571388],"auto_leave":false}"#;
    assert_eq!(conf_state_to_json(&membership.conf_state()), state);
    assert_eq!(conf_state_from_json(state), Ok(membership.conf_state()));
    assert!(conf_state_from_json(b"{").is_err());
}

#[test]
fn json_is_escaped_and_read_as_go_does() {
    let member = Member {
        id: MemberId(1),
        name: "<a&b>\u{2028}\"\\\n\u{1}ü".into(),
        ..Member::default()
    };
    let json = r#"{"id":1,"peerURLs":null,"name":"\u003ca\u0026b\u003e\u2028\"\\\n\u0001ü"}"#;
    assert_eq!(String::from_utf8(member.to_json()).unwrap(), json);
    assert_eq!(Member::from_json(json.as_bytes()), Ok(member));
    assert_eq!(
        Member::promote_context(MemberId(u64::MAX)),
        br#"{"id":18446744073709551615,"peerURLs":null,"isPromote":true}"#
    );
    for broken in ["", "[]", r#"{"id":-1}"#, r#"{"id":1.5}"#] {
        assert!(Member::from_json(broken.as_bytes()).is_err(), "{broken}");
    }
}

#[test]
fn conf_changes_say_what_they_do() {
    let decode = |kind, member, context: &[u8]| {
        Change::decode(&ConfChange {
            id: 1,
            kind,
            member,
            context: context.to_vec().into(),
        })
    };
    let learner = Member::from_json(LEARNER.as_bytes()).unwrap();
    assert_eq!(
        decode(
            ConfChangeKind::AddLearnerNode,
            LEARNER_ID,
            LEARNER.as_bytes()
        ),
        Ok(Change::Add {
            member: learner.clone(),
            as_learner: true
        })
    );
    assert_eq!(
        decode(
            ConfChangeKind::AddNode,
            LEARNER_ID,
            &Member::promote_context(LEARNER_ID)
        ),
        Ok(Change::Promote(LEARNER_ID))
    );
    assert_eq!(
        decode(ConfChangeKind::RemoveNode, LEARNER_ID, b""),
        Ok(Change::Remove(LEARNER_ID))
    );
    assert_eq!(
        decode(ConfChangeKind::UpdateNode, LEARNER_ID, LEARNER.as_bytes()),
        Ok(Change::Update {
            id: LEARNER_ID,
            peer_urls: learner.peer_urls
        })
    );
    assert!(decode(ConfChangeKind::AddNode, VOTER_ID, LEARNER.as_bytes()).is_err());
    assert!(decode(ConfChangeKind::AddNode, VOTER_ID, b"").is_err());
}

#[test]
fn changes_are_refused_with_etcds_texts() {
    let membership = recorded();
    let update = |id, url: &str| Change::Update {
        id,
        peer_urls: vec![url.into()],
    };
    let other = "http://127.0.0.1:12380";
    for (change, error, text) in [
        (
            add(0x1f, "http://new", false),
            ApiError::MemberNotFound,
            "membership: ID removed",
        ),
        (
            Change::Remove(MemberId(0x1f)),
            ApiError::MemberNotFound,
            "membership: ID removed",
        ),
        (
            add(VOTER_ID.0, "http://new", false),
            ApiError::MemberExist,
            "membership: ID exists",
        ),
        (
            add(1, other, false),
            ApiError::PeerUrlExist,
            "membership: peerURL exists",
        ),
        (
            add(1, "http://new", true),
            ApiError::TooManyLearners,
            "membership: too many learner members in cluster",
        ),
        (
            Change::Promote(MemberId(1)),
            ApiError::MemberNotFound,
            "membership: ID not found",
        ),
        (
            Change::Promote(VOTER_ID),
            ApiError::MemberNotLearner,
            "membership: can only promote a learner member",
        ),
        (
            Change::Remove(MemberId(1)),
            ApiError::MemberNotFound,
            "membership: ID not found",
        ),
        (
            update(MemberId(1), "http://new"),
            ApiError::MemberNotFound,
            "membership: ID not found",
        ),
        (
            update(LEARNER_ID, other),
            ApiError::PeerUrlExist,
            "membership: peerURL exists",
        ),
    ] {
        let refused = membership.check(&change, 1).unwrap_err();
        assert_eq!(refused.to_string(), text, "{change:?}");
        assert_eq!(ApiError::from(refused), error, "{change:?}");
    }
    for change in [
        add(1, "http://new", false),
        Change::Promote(LEARNER_ID),
        Change::Remove(VOTER_ID),
        update(VOTER_ID, other),
    ] {
        assert_eq!(membership.check(&change, 1), Ok(()), "{change:?}");
    }
    assert_eq!(membership.check(&add(1, "http://new", true), 2), Ok(()));
}

#[test]
fn changes_write_their_rows() {
    let mut membership = recorded();
    let mut rows = Vec::new();
    membership.apply(add(0xa, "http://new", true), &mut rows);
    membership.apply(Change::Promote(MemberId(0xa)), &mut rows);
    let urls = vec!["http://z".to_owned(), "http://y".to_owned()];
    let update = Change::Update {
        id: MemberId(0xa),
        peer_urls: urls,
    };
    membership.apply(update, &mut rows);
    membership.apply(Change::Remove(MemberId(0xa)), &mut rows);
    let expected = [
        RowChange::put(
            "members",
            *b"a",
            r#"{"id":10,"peerURLs":["http://new"],"isLearner":true}"#,
        ),
        RowChange::put("members", *b"a", r#"{"id":10,"peerURLs":["http://new"]}"#),
        RowChange::put(
            "members",
            *b"a",
            r#"{"id":10,"peerURLs":["http://z","http://y"]}"#,
        ),
        RowChange::delete("members", *b"a"),
        RowChange::put("members_removed", *b"a", *b"removed"),
    ];
    assert_eq!(rows, expected);
    assert!(membership.is_removed(MemberId(0xa)));
    assert_eq!(membership.members().len(), 2);
}

#[test]
fn attributes_are_of_members_that_are_or_were() {
    let mut membership = recorded();
    let mut set = |member_id, rows: &mut Vec<RowChange>| {
        let request = ClusterMemberAttrSetRequest {
            member_id,
            member_attributes: Some(Attributes {
                name: "l".into(),
                client_urls: vec!["http://c".into()],
            }),
        };
        membership.set_attributes(&request, rows)
    };
    let mut rows = Vec::new();
    assert_eq!(set(0x1f, &mut rows), Ok(AttributesSet::Removed));
    assert!(set(0x2f, &mut rows).is_err());
    assert!(rows.is_empty());
    assert_eq!(set(LEARNER_ID.0, &mut rows), Ok(AttributesSet::Stored));
    let json = r#"{"id":13514995407295571388,"peerURLs":["http://127.0.0.1:12390"],"isLearner":true,"name":"l","clientURLs":["http://c"]}"#;
    assert_eq!(
        rows,
        [RowChange::put("members", *b"bb8ee8b7a8e365bc", json)]
    );
}

#[test]
fn a_lower_cluster_version_is_told_apart() {
    let mut membership = Membership::default();
    let mut set = |ver: &str, rows: &mut Vec<RowChange>| {
        let request = ClusterVersionSetRequest { ver: ver.into() };
        membership.set_version(&request, rows)
    };
    let mut rows = Vec::new();
    assert_eq!(set("3.0.0", &mut rows), Ok(VersionSet::Kept));
    assert_eq!(set("3.7.0", &mut rows), Ok(VersionSet::Kept));
    assert_eq!(set("3.6.0", &mut rows), Ok(VersionSet::Lowered));
    assert!(set("3.6", &mut rows).is_err());
    let last = RowChange::put("cluster", *b"clusterVersion", *b"3.6.0");
    assert_eq!((rows.len(), rows.last()), (3, Some(&last)));
}

#[test]
fn downgrades_go_one_minor_down_and_one_at_a_time() {
    let mut membership = Membership::default();
    let unavailable = Err(ApiError::ClusterVersionUnavailable);
    assert_eq!(membership.check_downgrade("3.6"), unavailable);
    let mut rows = Vec::new();
    let request = ClusterVersionSetRequest {
        ver: "3.7.0".into(),
    };
    membership.set_version(&request, &mut rows).unwrap();
    for wrong in ["", "3", "x.y", "3.6.0.0", "3.6."] {
        let error = Err(ApiError::WrongDowngradeVersionFormat);
        assert_eq!(membership.check_downgrade(wrong), error, "{wrong}");
    }
    for invalid in ["3.5", "3.7", "2.6", "3.8.0"] {
        let error = Err(ApiError::InvalidDowngradeTargetVersion);
        assert_eq!(membership.check_downgrade(invalid), error, "{invalid}");
    }
    assert_eq!(membership.check_downgrade("3.6"), Ok(Version::new(3, 6, 0)));
    assert_eq!(
        membership.check_downgrade("3.6.9"),
        Ok(Version::new(3, 6, 0))
    );
    rows.clear();
    let mut info = DowngradeInfoSetRequest {
        enabled: true,
        ver: "3.6.0".into(),
    };
    membership.set_downgrade(&info, &mut rows);
    let running = Err(ApiError::DowngradeInProcess);
    assert_eq!(membership.check_downgrade("3.6"), running);
    info.enabled = false;
    membership.set_downgrade(&info, &mut rows);
    let on = br#"{"target-version":"3.6.0","enabled":true}"#;
    let off = br#"{"target-version":"","enabled":false}"#;
    let expected = [
        RowChange::put("cluster", *b"downgrade", *on),
        RowChange::put("cluster", *b"downgrade", *off),
    ];
    assert_eq!(rows, expected);
    let restored = Membership::restore([], [], [(&b"downgrade"[..], &on[..])]).unwrap();
    assert!(restored.downgrade().enabled);
    assert_eq!(restored.downgrade().target_version, "3.6.0");
}

#[test]
fn rows_that_are_not_etcds_are_errors() {
    let member = |key: &'static str| {
        Membership::restore([(key.as_bytes(), VOTER.as_bytes())], [], []).is_ok()
    };
    assert!(member("ddd67b312462fd7b"));
    assert!(!member("ddd67b312462fd7c"));
    assert!(!member("members"));
    let version = |value: &'static str| {
        let row = (&b"clusterVersion"[..], value.as_bytes());
        Membership::restore([], [], [row]).is_ok()
    };
    assert!(version("3.7.0"));
    assert!(!version("3.7"));
}

#[test]
fn changes_of_voters_leave_enough_that_have_started() {
    // (started, not started): may add, may promote.
    for (started, silent, may_add, may_promote) in [
        (1, 0, true, true),
        (1, 1, false, true),
        (2, 0, true, true),
        (2, 1, false, true),
        (3, 0, true, true),
        (1, 2, false, false),
        (0, 1, false, false),
    ] {
        let mut membership = Membership::default();
        for id in 1..=started + silent {
            let member = Member {
                id: MemberId(id),
                name: if id <= started {
                    "m".into()
                } else {
                    String::new()
                },
                ..Member::default()
            };
            membership.members.insert(member.id, member);
        }
        let case = (started, silent);
        assert_eq!(membership.may_add_voter(), may_add, "{case:?}");
        assert_eq!(membership.may_promote(), may_promote, "{case:?}");
        if case == (2, 1) {
            assert!(!membership.may_remove_voter(MemberId(1)));
            assert!(membership.may_remove_voter(MemberId(3)));
        }
    }
}
