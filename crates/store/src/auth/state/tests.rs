//! The rules of each change, and rows that etcd wrote.

use super::*;

fn apply<T>(change: impl FnOnce(&mut Vec<RowChange>) -> T) -> (T, Vec<RowChange>) {
    let mut rows = Vec::new();
    let result = change(&mut rows);
    (result, rows)
}

/// A state that tests talk to in short words; each answers the result and the number of rows.
#[derive(Default)]
struct Short(AuthState);

/// What a change answered, and how many rows it wrote.
#[derive(Debug, PartialEq)]
struct Answer(Result<(), ApiError>, usize);

impl Short {
    fn new() -> Short {
        let mut rows = Vec::new();
        let state = AuthState::restore([], [], [], &mut rows).unwrap();
        let revision = RowChange::put("auth", *b"authRevision", 1_u64.to_be_bytes());
        assert_eq!(rows, [revision]);
        Short(state)
    }

    fn run(
        &mut self,
        change: impl FnOnce(&mut AuthState, &mut Vec<RowChange>) -> Result<(), ApiError>,
    ) -> Answer {
        let before = self.0.clone();
        let (result, rows) = apply(|rows| change(&mut self.0, rows));
        if result.is_err() {
            assert_eq!((&self.0, rows.len()), (&before, 0), "refused, yet changed");
        }
        Answer(result, rows.len())
    }

    fn user_add(&mut self, name: &str, hashed: &str) -> Answer {
        let request = AuthUserAddRequest {
            name: name.into(),
            hashed_password: hashed.into(),
            ..AuthUserAddRequest::default()
        };
        self.run(|state, rows| state.user_add(&request, rows))
    }

    fn user_add_without_password(&mut self, name: &str) -> Answer {
        let request = AuthUserAddRequest {
            name: name.into(),
            options: Some(UserAddOptions { no_password: true }),
            hashed_password: "QUJD".into(),
            ..AuthUserAddRequest::default()
        };
        self.run(|state, rows| state.user_add(&request, rows))
    }

    fn user_delete(&mut self, name: &str) -> Answer {
        let request = AuthUserDeleteRequest { name: name.into() };
        self.run(|state, rows| state.user_delete(&request, rows))
    }

    fn change_password(&mut self, name: &str, hashed: &str) -> Answer {
        let request = AuthUserChangePasswordRequest {
            name: name.into(),
            hashed_password: hashed.into(),
            ..AuthUserChangePasswordRequest::default()
        };
        self.run(|state, rows| state.user_change_password(&request, rows))
    }

    fn grant(&mut self, user: &str, role: &str) -> Answer {
        let request = AuthUserGrantRoleRequest {
            user: user.into(),
            role: role.into(),
        };
        self.run(|state, rows| state.user_grant_role(&request, rows))
    }

    fn revoke(&mut self, name: &str, role: &str) -> Answer {
        let request = AuthUserRevokeRoleRequest {
            name: name.into(),
            role: role.into(),
        };
        self.run(|state, rows| state.user_revoke_role(&request, rows))
    }

    fn role_add(&mut self, name: &str) -> Answer {
        let request = AuthRoleAddRequest { name: name.into() };
        self.run(|state, rows| state.role_add(&request, rows))
    }

    fn role_delete(&mut self, role: &str) -> Answer {
        let request = AuthRoleDeleteRequest { role: role.into() };
        self.run(|state, rows| state.role_delete(&request, rows))
    }

    fn permit(&mut self, name: &str, kind: i32, key: &str, range_end: &str) -> Answer {
        let request = AuthRoleGrantPermissionRequest {
            name: name.into(),
            perm: Some(Permission {
                perm_type: kind,
                key: key.to_owned().into(),
                range_end: range_end.to_owned().into(),
            }),
        };
        self.run(|state, rows| state.role_grant_permission(&request, rows))
    }

    fn forbid(&mut self, role: &str, key: &str, range_end: &str) -> Answer {
        let request = AuthRoleRevokePermissionRequest {
            role: role.into(),
            key: key.to_owned().into(),
            range_end: range_end.to_owned().into(),
        };
        self.run(|state, rows| state.role_revoke_permission(&request, rows))
    }

    fn enable(&mut self) -> Answer {
        self.run(AuthState::enable)
    }

    fn permissions(&self, role: &str) -> Vec<(i32, String, String)> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        self.0
            .role(role)
            .unwrap()
            .iter()
            .map(|one| (one.perm_type, text(&one.key), text(&one.range_end)))
            .collect()
    }

    fn with_root() -> Short {
        let mut auth = Short::new();
        auth.user_add("root", "QUJD");
        auth.grant("root", "root");
        auth
    }
}

/// Done, with so many rows.
fn done(rows: usize) -> Answer {
    Answer(Ok(()), rows)
}

fn refused(error: ApiError) -> Answer {
    Answer(Err(error), 0)
}

#[test]
fn enabling_wants_root_with_the_root_role() {
    let mut auth = Short::new();
    assert_eq!(auth.enable(), refused(ApiError::RootUserNotExist));
    auth.user_add("root", "QUJD");
    assert_eq!(auth.enable(), refused(ApiError::RootRoleNotExist));
    // The root role need not be added to be granted.
    assert_eq!(auth.grant("root", "root"), done(2));
    let revision = auth.0.revision();
    assert_eq!(auth.enable(), done(1));
    assert_eq!(auth.enable(), done(0));
    assert_eq!(auth.0.revision(), revision);
    assert!(auth.0.enabled());
}

#[test]
fn disabling_rises_the_revision_once() {
    let mut auth = Short::with_root();
    auth.enable();
    let revision = auth.0.revision();
    let ((), rows) = apply(|rows| auth.0.disable(rows));
    let expected = [
        RowChange::put("auth", *b"authEnabled", [0]),
        RowChange::put("auth", *b"authRevision", (revision + 1).to_be_bytes()),
    ];
    assert_eq!(rows, expected);
    let ((), rows) = apply(|rows| auth.0.disable(rows));
    assert_eq!((rows.len(), auth.0.revision()), (0, revision + 1));
}

#[test]
fn while_enabled_root_can_neither_go_nor_lose_its_role() {
    let mut auth = Short::with_root();
    auth.role_add("root");
    auth.user_add("other", "QUJD");
    auth.grant("other", "root");
    auth.enable();
    assert_eq!(auth.user_delete("root"), refused(ApiError::InvalidAuthMgmt));
    assert_eq!(
        auth.revoke("root", "root"),
        refused(ApiError::InvalidAuthMgmt)
    );
    assert_eq!(auth.role_delete("root"), refused(ApiError::InvalidAuthMgmt));
    assert_eq!(auth.revoke("other", "root"), done(2));
    apply(|rows| auth.0.disable(rows));
    assert_eq!(auth.revoke("root", "root"), done(2));
    assert_eq!(auth.role_delete("root"), done(2));
    assert_eq!(auth.user_delete("root"), done(2));
}

#[test]
fn users_are_added_once_and_with_a_name() {
    let mut auth = Short::new();
    assert_eq!(auth.user_add("", "QUJD"), refused(ApiError::UserEmpty));
    assert_eq!(auth.user_add("a", "QUJD"), done(2));
    assert_eq!(
        auth.user_add("a", "QUJD"),
        refused(ApiError::UserAlreadyExist)
    );
    assert_eq!(
        auth.user_add("b", "!"),
        refused(ApiError::PasswordForNoPasswordUser)
    );
    assert_eq!(auth.0.revision(), 2);
    assert_eq!(auth.0.user("b"), Err(ApiError::UserNotFound));
    assert_eq!(auth.user_delete("b"), refused(ApiError::UserNotFound));
    assert_eq!(
        auth.change_password("b", "QUJD"),
        refused(ApiError::UserNotFound)
    );
}

#[test]
fn hashes_are_read_as_gos_base64_reads_them() {
    let mut auth = Short::with_root();
    auth.enable();
    // Line ends are skipped, and the unused bits of the last letter may be anything.
    for (name, hashed, password) in [
        ("lines", "QU\r\nJD\n", "ABC"),
        ("bits", "QUJ=", "AB"),
        ("empty", "", ""),
    ] {
        assert_eq!(auth.user_add(name, hashed), done(2), "{name}");
        assert_eq!(auth.0.login(name).unwrap().0, password.as_bytes());
    }
    for hashed in ["QUI", "QUI==", "QU I=", "QUJD*"] {
        let refusal = refused(ApiError::PasswordForNoPasswordUser);
        assert_eq!(auth.user_add("bad", hashed), refusal, "{hashed}");
    }
}

#[test]
fn a_user_without_password_stays_so_and_cannot_log_in() {
    let mut auth = Short::with_root();
    assert_eq!(auth.0.login("root"), Err(ApiError::AuthNotEnabled));
    assert_eq!(auth.0.authenticate("root"), Err(ApiError::AuthNotEnabled));
    auth.enable();
    assert_eq!(auth.user_add_without_password("bob"), done(2));
    assert_eq!(auth.change_password("bob", "QUJD"), done(2));
    let refusal = ApiError::PasswordForNoPasswordUser;
    assert_eq!(auth.0.login("bob"), Err(refusal));
    assert_eq!(auth.0.authenticate("bob"), Err(ApiError::AuthFailed));
    assert_eq!(auth.0.login("nobody"), Err(ApiError::AuthFailed));
    assert_eq!(auth.0.authenticate("nobody"), Err(ApiError::AuthFailed));
    assert_eq!(auth.0.authenticate("root"), Ok(()));
    assert_eq!(
        auth.0.login("root"),
        Ok((Bytes::from_static(b"ABC"), auth.0.revision()))
    );
}

#[test]
fn an_entry_of_an_old_version_brings_the_password_itself() {
    let mut auth = Short::with_root();
    auth.enable();
    let request = AuthUserAddRequest {
        name: "old".into(),
        password: "secret".into(),
        ..AuthUserAddRequest::default()
    };
    let (result, _) = apply(|rows| auth.0.user_add(&request, rows));
    assert_eq!(result, Ok(()));
    let (hashed, _) = auth.0.login("old").unwrap();
    assert!(password::verify("secret", &hashed));
}

#[test]
fn roles_of_a_user_are_sorted_and_granted_once() {
    let mut auth = Short::new();
    auth.user_add("u", "QUJD");
    assert_eq!(auth.grant("nobody", "x"), refused(ApiError::UserNotFound));
    assert_eq!(auth.grant("u", "x"), refused(ApiError::RoleNotFound));
    for role in ["b", "a", "c"] {
        assert_eq!(auth.role_add(role), done(2));
        assert_eq!(auth.grant("u", role), done(2));
    }
    let revision = auth.0.revision();
    assert_eq!(auth.grant("u", "b"), done(0));
    assert_eq!(auth.0.revision(), revision);
    assert_eq!(auth.0.user("u").unwrap(), ["a", "b", "c"]);
    assert_eq!(auth.revoke("u", "b"), done(2));
    assert_eq!(auth.revoke("u", "b"), refused(ApiError::RoleNotGranted));
    assert_eq!(auth.revoke("nobody", "b"), refused(ApiError::UserNotFound));
    assert_eq!(auth.0.user("u").unwrap(), ["a", "c"]);
    assert!(auth.0.holds("u", "a") && !auth.0.holds("u", "b"));
}

#[test]
fn a_role_that_is_deleted_leaves_every_user() {
    let mut auth = Short::new();
    assert_eq!(auth.role_add(""), refused(ApiError::RoleEmpty));
    assert_eq!(auth.role_add("r"), done(2));
    assert_eq!(auth.role_add("r"), refused(ApiError::RoleAlreadyExist));
    auth.role_add("s");
    for user in ["a", "b", "c"] {
        auth.user_add(user, "QUJD");
    }
    auth.grant("a", "r");
    auth.grant("b", "r");
    auth.grant("c", "s");
    assert_eq!(auth.role_delete("x"), refused(ApiError::RoleNotFound));
    // The role, two users and the revision.
    assert_eq!(auth.role_delete("r"), done(4));
    assert!(auth.0.user("a").unwrap().is_empty());
    assert_eq!(auth.0.user("c").unwrap(), ["s"]);
    assert_eq!(auth.0.role("r"), Err(ApiError::RoleNotFound));
    assert_eq!(auth.0.roles().collect::<Vec<_>>(), ["s"]);
    assert_eq!(auth.0.users().collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[test]
fn a_permission_needs_a_key_and_an_end_behind_it() {
    let mut auth = Short::new();
    auth.role_add("r");
    let request = AuthRoleGrantPermissionRequest {
        name: "nobody".into(),
        perm: None,
    };
    let answer = auth.run(|state, rows| state.role_grant_permission(&request, rows));
    assert_eq!(answer, refused(ApiError::PermissionNotGiven));
    for (key, range_end) in [("", ""), ("", "\0"), ("b", "a"), ("b", "b")] {
        let answer = auth.permit("nobody", 0, key, range_end);
        assert_eq!(answer, refused(ApiError::InvalidAuthMgmt), "{key}");
    }
    assert_eq!(
        auth.permit("nobody", 0, "a", ""),
        refused(ApiError::RoleNotFound)
    );
    for (key, range_end) in [("a", ""), ("b", "\0"), ("\0", "\0"), ("c", "d")] {
        assert_eq!(auth.permit("r", 0, key, range_end), done(2), "{key}");
    }
}

#[test]
fn only_the_first_permission_with_the_key_is_changed_in_place() {
    let mut auth = Short::new();
    auth.role_add("r");
    auth.permit("r", 0, "k", "m");
    auth.permit("r", 0, "a", "");
    auth.permit("r", 0, "k", "l");
    let entry = |kind, key: &str, end: &str| (kind, key.to_owned(), end.to_owned());
    assert_eq!(
        auth.permissions("r"),
        [entry(0, "a", ""), entry(0, "k", "m"), entry(0, "k", "l")]
    );
    auth.permit("r", 2, "k", "m");
    auth.permit("r", 1, "k", "l");
    assert_eq!(
        auth.permissions("r"),
        [
            entry(0, "a", ""),
            entry(2, "k", "m"),
            entry(0, "k", "l"),
            entry(1, "k", "l"),
        ]
    );
    assert_eq!(auth.forbid("x", "k", "l"), refused(ApiError::RoleNotFound));
    assert_eq!(
        auth.forbid("r", "k", ""),
        refused(ApiError::PermissionNotGranted)
    );
    assert_eq!(auth.forbid("r", "k", "l"), done(2));
    assert_eq!(
        auth.permissions("r"),
        [entry(0, "a", ""), entry(2, "k", "m")]
    );
}

#[test]
fn the_root_role_shows_everything_once_it_is_added() {
    let mut auth = Short::new();
    assert_eq!(auth.0.role("root"), Err(ApiError::RoleNotFound));
    auth.role_add("root");
    auth.permit("root", 0, "a", "");
    let everything = (2, String::new(), "\0".to_owned());
    assert_eq!(auth.permissions("root"), [everything]);
}

#[test]
fn a_snapshot_of_the_state_does_not_change() {
    let mut auth = Short::new();
    auth.user_add("a", "QUJD");
    let before = auth.0.clone();
    auth.user_add("b", "QUJD");
    auth.role_add("r");
    assert_eq!(before.users().collect::<Vec<_>>(), ["a"]);
    assert_eq!((before.roles().len(), before.revision()), (0, 2));
}

#[test]
fn rows_that_are_not_etcds_are_errors() {
    let mut rows = Vec::new();
    let user = User {
        name: Bytes::from_static(b"a"),
        ..User::default()
    };
    let user = user.encode_to_vec();
    let mut restore = |auth: Row<'_>, user: Row<'_>| {
        AuthState::restore([auth], [user], [], &mut rows).map(|state| state.revision())
    };
    let revision: Row<'_> = (b"authRevision", &[0, 0, 0, 0, 0, 0, 0, 9]);
    assert_eq!(restore(revision, (b"a", &user)), Ok(9));
    assert!(restore((b"authRevision", &[9]), (b"a", &user)).is_err());
    assert!(restore(revision, (b"b", &user)).is_err());
    assert!(restore(revision, (b"a", &[0x0a])).is_err());
}

/// Recorded with etcd 3.7.
const WRITER: &[u8] =
    b"\x0a\x06writer\x12\x0a\x08\x02\x12\x02p/\x1a\x02p0\x12\x05\x08\x01\x12\x01w";
const BOB: &[u8] = b"\x0a\x03bob\"\x02\x08\x01";
const ALICE: &[u8] = b"\x0a\x05alice\x12\x3c$2a$04$\
    9uB/ksRBAffAb3BJqrimoeP0WkF/s1Hoo3ytsFRWIbxAyg/D1smSW\
    \x1a\x06reader\x1a\x06writer\"\x00";

#[test]
fn recorded_rows_come_back_as_they_were() {
    let reader = b"\x0a\x06reader\x12\x07\x12\x02a/\x1a\x01b\
        \x12\x0e\x08\x01\x12\x04a/05\x1a\x04a/08\x12\x03\x12\x01w";
    let mut rows = Vec::new();
    let mut state = AuthState::restore(
        [
            (&b"authEnabled"[..], &[1][..]),
            (b"authRevision", &34_u64.to_be_bytes()),
        ],
        [(&b"alice"[..], ALICE), (b"bob", BOB)],
        [(&b"reader"[..], &reader[..]), (b"writer", WRITER)],
        &mut rows,
    )
    .unwrap();
    assert!(rows.is_empty());
    assert!(state.enabled());
    assert_eq!(state.revision(), 34);
    let (hashed, _) = state.login("alice").unwrap();
    assert!(password::verify("alicepw", &hashed));
    // What is changed and changed back is written as it was.
    let mut granted = |user: &str, role: &str| {
        let request = AuthUserGrantRoleRequest {
            user: user.into(),
            role: role.into(),
        };
        state.user_grant_role(&request, &mut rows).unwrap();
        let request = AuthUserRevokeRoleRequest {
            name: user.into(),
            role: role.into(),
        };
        state.user_revoke_role(&request, &mut rows).unwrap();
    };
    granted("bob", "reader");
    granted("alice", "root");
    for (name, row) in [("bob", BOB), ("alice", ALICE)] {
        let last = rows.iter().rfind(|change| change.key == name.as_bytes());
        assert_eq!(last, Some(&RowChange::put("authUsers", name, row)));
    }
    rows.clear();
    let extra = Bytes::from_static(b"extra");
    let request = AuthRoleGrantPermissionRequest {
        name: "writer".into(),
        perm: Some(Permission {
            perm_type: 1,
            key: extra.clone(),
            range_end: Bytes::new(),
        }),
    };
    state.role_grant_permission(&request, &mut rows).unwrap();
    let request = AuthRoleRevokePermissionRequest {
        role: "writer".into(),
        key: extra,
        range_end: Bytes::new(),
    };
    state.role_revoke_permission(&request, &mut rows).unwrap();
    assert_eq!(rows[2], RowChange::put("authRoles", *b"writer", WRITER));
    let revision = 40_u64.to_be_bytes();
    assert_eq!(rows[3], RowChange::put("auth", *b"authRevision", revision));
}
