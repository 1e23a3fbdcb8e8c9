//! What each request needs.

use keelson_proto::rpc::etcdserverpb::{
    AuthRoleListRequest, AuthStatusRequest, AuthUserAddRequest, CompactionRequest,
    LeaseCheckpointRequest,
};

use super::*;
use crate::lease::Table;

fn leases() -> Table {
    let mut table = Table::default();
    let mut rows = Vec::new();
    table.grant(LeaseId(7), 60, &mut rows).unwrap();
    table.grant(LeaseId(8), 60, &mut rows).unwrap();
    table.attach(b"y", LeaseId(7)).unwrap();
    table.attach(b"x", LeaseId(7)).unwrap();
    table
}

/// `r key end`, `w key end`, or `w* keys`, separated by commas.
fn text(need: &Need<'_>) -> String {
    let Need::Keys(needs) = need else {
        return format!("{need:?}");
    };
    let letter = |access: &Access| match access {
        Access::Read => "r",
        Access::Write => "w",
    };
    let list: Vec<String> = needs
        .iter()
        .map(|need| match need {
            KeyNeed::Authenticated => "user".to_owned(),
            KeyNeed::Range {
                access,
                key,
                range_end,
            } => format!(
                "{} {}-{}",
                letter(access),
                key.escape_ascii(),
                range_end.escape_ascii()
            ),
            KeyNeed::Attached { access, keys } => {
                let keys: Vec<_> = keys
                    .iter()
                    .map(|key| key.escape_ascii().to_string())
                    .collect();
                format!("{}* {}", letter(access), keys.join(" "))
            }
        })
        .collect();
    list.join(", ")
}

fn put(key: &'static str, lease: i64, prev_kv: bool) -> PutRequest {
    PutRequest {
        key: key.into(),
        lease,
        prev_kv,
        ..PutRequest::default()
    }
}

fn delete(key: &'static str, range_end: &'static str, prev_kv: bool) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        prev_kv,
    }
}

fn range(key: &'static str, range_end: &'static str) -> RangeRequest {
    RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        ..RangeRequest::default()
    }
}

fn op(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

macro_rules! entry {
    ($($field:ident: $value:expr),*) => {
        InternalRaftRequest {
            $($field: Some($value),)*
            ..InternalRaftRequest::default()
        }
    };
}

#[test]
fn single_requests_need_what_they_touch() {
    let leases = leases();
    let check = |request: InternalRaftRequest| text(&need(&request, &leases));
    assert_eq!(check(entry!(put: put("k", 0, false))), "w k-");
    assert_eq!(check(entry!(put: put("k", 0, true))), "w k-, r k-");
    assert_eq!(check(entry!(put: put("k", 7, true))), "w k-, w* x y, r k-");
    assert_eq!(
        check(entry!(put: put("k", 8, false))),
        "w k-",
        "no keys yet"
    );
    assert_eq!(check(entry!(put: put("k", 9, false))), "w k-", "no lease");
    assert_eq!(
        check(entry!(delete_range: delete("a", "b", false))),
        "w a-b"
    );
    assert_eq!(
        check(entry!(delete_range: delete("a", "\0", true))),
        "w a-\\x00, r a-\\x00"
    );
    assert_eq!(check(entry!(range: range("a", "b"))), "r a-b");
    assert_eq!(
        check(entry!(lease_revoke: LeaseRevokeRequest { id: 7 })),
        "w* x y"
    );
}

#[test]
fn a_transaction_needs_every_compare_and_both_branches() {
    let inner = TxnRequest {
        compare: vec![],
        success: vec![],
        failure: vec![op(Request::RequestPut(put("deep", 7, false)))],
    };
    let txn = TxnRequest {
        compare: vec![Compare {
            key: "c".into(),
            range_end: "d".into(),
            ..Compare::default()
        }],
        success: vec![
            op(Request::RequestRange(range("r", ""))),
            RequestOp { request: None },
            op(Request::RequestDeleteRange(delete("x", "y", true))),
        ],
        failure: vec![
            op(Request::RequestTxn(inner)),
            op(Request::RequestPut(put("last", 0, true))),
        ],
    };
    let expected = "r c-d, r r-, w x-y, r x-y, w deep-, w* x y, w last-, r last-";
    let leases = leases();
    assert_eq!(text(&need_of_txn(&txn, &leases)), expected);
    assert_eq!(text(&need(&entry!(txn: txn), &leases)), expected);
}

#[test]
fn auth_is_managed_by_admins_and_asked_by_those_concerned() {
    let leases = Table::default();
    let check = |request: InternalRaftRequest| text(&need(&request, &leases));
    assert_eq!(
        check(entry!(auth_user_add: AuthUserAddRequest::default())),
        "Admin"
    );
    assert_eq!(
        check(entry!(auth_role_list: AuthRoleListRequest {})),
        "Admin"
    );
    assert_eq!(check(entry!(auth_status: AuthStatusRequest {})), "Nothing");
    let get = AuthUserGetRequest { name: "u".into() };
    assert_eq!(check(entry!(auth_user_get: get)), "UserSelf(\"u\")");
    let get = AuthRoleGetRequest { role: "r".into() };
    assert_eq!(check(entry!(auth_role_get: get)), "RoleHeld(\"r\")");
}

#[test]
fn entries_that_members_make_by_themselves_need_nothing() {
    let leases = Table::default();
    let check = |request: InternalRaftRequest| text(&need(&request, &leases));
    let alarm = AlarmRequest {
        action: 1,
        ..AlarmRequest::default()
    };
    assert_eq!(check(entry!(alarm: alarm)), "Nothing");
    assert_eq!(
        check(entry!(lease_checkpoint: LeaseCheckpointRequest::default())),
        "Nothing"
    );
    assert_eq!(check(InternalRaftRequest::default()), "Nothing");
}

#[test]
fn a_few_requests_are_checked_before_they_are_proposed() {
    let check = |request: InternalRaftRequest| text(&before_proposal(&request));
    let alarm = |action| {
        entry!(alarm: AlarmRequest {
            action,
            ..AlarmRequest::default()
        })
    };
    assert_eq!(check(alarm(0)), "Authenticated");
    for action in [1, 2, 9] {
        assert_eq!(check(alarm(action)), "Admin");
    }
    assert_eq!(
        check(entry!(compaction: CompactionRequest::default())),
        "Admin"
    );
    assert_eq!(
        check(entry!(lease_grant: LeaseGrantRequest::default())),
        "Authenticated"
    );
    assert_eq!(
        check(entry!(lease_revoke: LeaseRevokeRequest::default())),
        "Authenticated"
    );
    assert_eq!(check(entry!(put: put("k", 0, false))), "Nothing");
}

#[test]
fn asking_after_leases_needs_a_user_and_their_keys() {
    let leases = leases();
    let of = |id| text(&Need::lease(&leases, LeaseId(id), Access::Read));
    assert_eq!(of(7), "user, r* x y");
    assert_eq!(of(8), "user");
    assert_eq!(of(9), "user");
    let all = leases.iter().map(|(_, lease)| lease.keys());
    assert_eq!(text(&Need::every_lease(all, Access::Read)), "user, r* x y");
    assert_eq!(text(&Need::read(b"a", b"b")), "r a-b");
}
