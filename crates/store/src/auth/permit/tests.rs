//! Who is let through, and which error the others get.

use std::sync::Arc;

use keelson_proto::rpc::authpb::{Permission, Role, User};
use keelson_proto::rpc::etcdserverpb::DeleteRangeRequest;
use prost::Message as _;
use smallvec::smallvec;

use super::*;
use crate::lease::{KeySet, Table};

const REVISION: u64 = 5;

fn who(user: &str) -> Who<'_> {
    Who {
        user,
        auth_revision: REVISION,
    }
}

/// Users `root` (root role), `reader` ([a,c) to read, `a` to write) and `nothing`.
fn state(enabled: bool) -> AuthState {
    let user = |name: &'static str, roles: &[&str]| {
        let user = User {
            name: name.into(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            ..User::default()
        };
        (name, user.encode_to_vec())
    };
    let permission = |perm_type, key: &'static str, range_end: &'static str| Permission {
        perm_type,
        key: key.into(),
        range_end: range_end.into(),
    };
    let role = Role {
        name: "reading".into(),
        key_permission: vec![permission(2, "a", ""), permission(0, "a", "c")],
    };
    let users = [
        user("nothing", &[]),
        user("reader", &["reading"]),
        user("root", &["root"]),
    ];
    let role = role.encode_to_vec();
    AuthState::restore(
        [
            (&b"authEnabled"[..], &[u8::from(enabled)][..]),
            (b"authRevision", &REVISION.to_be_bytes()),
        ],
        users
            .iter()
            .map(|(name, value)| (name.as_bytes(), &value[..])),
        [(&b"reading"[..], &role[..])],
        &mut Vec::new(),
    )
    .unwrap()
}

fn one<'a>(access: Access, key: &'a [u8], range_end: &'a [u8]) -> Need<'a> {
    Need::Keys(smallvec![KeyNeed::Range {
        access,
        key,
        range_end
    }])
}

#[test]
fn while_authentication_is_off_everybody_may() {
    let state = state(false);
    for need in [
        Need::Admin,
        Need::Authenticated,
        one(Access::Write, b"x", b""),
    ] {
        assert_eq!(permit(&state, &Who::NOBODY, &need), Ok(()));
    }
}

#[test]
fn admin_rights_tell_nobody_unknown_users_and_others_apart() {
    let state = state(true);
    let check = |who: Who<'_>| permit(&state, &who, &Need::Admin);
    assert_eq!(check(Who::NOBODY), Err(ApiError::UserEmpty));
    assert_eq!(check(who("")), Err(ApiError::UserEmpty));
    assert_eq!(check(who("stranger")), Err(ApiError::UserNotFound));
    assert_eq!(check(who("reader")), Err(ApiError::PermissionDenied));
    assert_eq!(check(who("root")), Ok(()));
    let old = Who {
        user: "root",
        auth_revision: 1,
    };
    assert_eq!(check(old), Ok(()), "admin checks ignore the revision");
}

#[test]
fn keys_ask_for_a_user_then_the_revision_then_the_permission() {
    let state = state(true);
    let check = |user: &str, auth_revision| {
        let who = Who {
            user,
            auth_revision,
        };
        permit(&state, &who, &one(Access::Read, b"b", b""))
    };
    assert_eq!(check("root", 0), Err(ApiError::UserEmpty));
    assert_eq!(check("root", REVISION - 1), Err(ApiError::AuthOldRevision));
    assert_eq!(check("stranger", REVISION), Err(ApiError::PermissionDenied));
    assert_eq!(check("", REVISION), Err(ApiError::PermissionDenied));
    assert_eq!(check("nothing", REVISION), Err(ApiError::PermissionDenied));
    assert_eq!(check("reader", REVISION), Ok(()));
    assert_eq!(check("root", REVISION), Ok(()));
    // A token that is ahead of this member's state is as good as a current one.
    assert_eq!(check("reader", REVISION + 1), Ok(()));
}

#[test]
fn reading_and_writing_are_permitted_apart() {
    let state = state(true);
    let check =
        |access, key: &[u8], end: &[u8]| permit(&state, &who("reader"), &one(access, key, end));
    assert_eq!(check(Access::Read, b"a", b"c"), Ok(()));
    assert_eq!(check(Access::Write, b"a", b""), Ok(()));
    let denied = Err(ApiError::PermissionDenied);
    assert_eq!(check(Access::Write, b"b", b""), denied);
    assert_eq!(check(Access::Write, b"a", b"b"), denied);
    assert_eq!(check(Access::Read, b"a", b"\0"), denied);
}

#[test]
fn the_first_thing_that_is_missing_gives_the_error() {
    let state = state(true);
    let need = Need::Keys(smallvec![
        KeyNeed::Range {
            access: Access::Read,
            key: b"a",
            range_end: b"",
        },
        KeyNeed::Range {
            access: Access::Write,
            key: b"b",
            range_end: b"",
        },
    ]);
    assert_eq!(
        permit(&state, &who("reader"), &need),
        Err(ApiError::PermissionDenied)
    );
    assert_eq!(
        permit(&state, &Who::NOBODY, &need),
        Err(ApiError::UserEmpty)
    );
    assert_eq!(permit(&state, &who("root"), &need), Ok(()));
}

fn attached(keys: &KeySet) -> Need<'_> {
    let access = Access::Write;
    Need::Keys(smallvec![KeyNeed::Attached { access, keys }])
}

#[test]
fn of_a_leases_keys_an_admin_needs_none() {
    let state = state(true);
    let mut keys = KeySet::default();
    keys.insert(Arc::from(&b"a"[..]));
    let old_root = Who {
        user: "root",
        auth_revision: 1,
    };
    assert_eq!(permit(&state, &who("reader"), &attached(&keys)), Ok(()));
    assert_eq!(permit(&state, &old_root, &attached(&keys)), Ok(()));
    keys.insert(Arc::from(&b"z"[..]));
    let denied = Err(ApiError::PermissionDenied);
    assert_eq!(permit(&state, &who("reader"), &attached(&keys)), denied);
    assert_eq!(permit(&state, &who("stranger"), &attached(&keys)), denied);
    assert_eq!(permit(&state, &old_root, &attached(&keys)), Ok(()));
}

#[test]
fn users_may_ask_about_themselves_and_their_roles() {
    let state = state(true);
    let check = |user: &str, need: Need<'_>| permit(&state, &who(user), &need);
    let denied = Err(ApiError::PermissionDenied);
    assert_eq!(check("reader", Need::UserSelf("reader")), Ok(()));
    assert_eq!(check("reader", Need::UserSelf("root")), denied);
    assert_eq!(check("root", Need::UserSelf("reader")), Ok(()));
    assert_eq!(check("reader", Need::RoleHeld("reading")), Ok(()));
    assert_eq!(check("nothing", Need::RoleHeld("reading")), denied);
    assert_eq!(check("root", Need::RoleHeld("reading")), Ok(()));
    assert_eq!(
        check("stranger", Need::RoleHeld("reading")),
        Err(ApiError::UserNotFound)
    );
    assert_eq!(
        permit(&state, &Who::NOBODY, &Need::UserSelf("reader")),
        Err(ApiError::UserEmpty)
    );
}

#[test]
fn any_user_is_some_user() {
    let state = state(true);
    let check = |who: Who<'_>| permit(&state, &who, &Need::Authenticated);
    assert_eq!(check(Who::NOBODY), Err(ApiError::UserEmpty));
    assert_eq!(check(who("stranger")), Ok(()));
    assert_eq!(permit(&state, &Who::NOBODY, &Need::Nothing), Ok(()));
}

#[test]
fn what_was_read_under_another_revision_is_not_current() {
    let state = state(true);
    assert_eq!(is_current(&state, &who("reader")), Ok(()));
    assert_eq!(is_current(&state, &Who::NOBODY), Ok(()));
    let old = Who {
        user: "reader",
        auth_revision: REVISION - 1,
    };
    assert_eq!(is_current(&state, &old), Err(ApiError::AuthOldRevision));
}

#[test]
fn an_entry_is_applied_for_the_user_in_its_header() {
    let table = Table::default();
    let entry = |username: &str| InternalRaftRequest {
        header: Some(RequestHeader {
            id: 1,
            username: username.into(),
            auth_revision: REVISION,
        }),
        delete_range: Some(DeleteRangeRequest {
            key: "a".into(),
            ..DeleteRangeRequest::default()
        }),
        ..InternalRaftRequest::default()
    };
    let check =
        |request: &InternalRaftRequest, enabled| permit_entry(&state(enabled), request, &table);
    assert_eq!(check(&entry("reader"), true), Ok(()));
    let denied = Err(ApiError::PermissionDenied);
    assert_eq!(check(&entry("nothing"), true), denied);
    let mut nobody = entry("");
    nobody.header = None;
    assert_eq!(check(&nobody, true), Err(ApiError::UserEmpty));
    assert_eq!(check(&nobody, false), Ok(()));
}
