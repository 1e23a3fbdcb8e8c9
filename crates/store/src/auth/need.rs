//! What a request needs from the one who sent it.
//!
//! etcd checks most requests where their entry is applied, and a few before they are proposed:
//! [`need`] is the former, [`before_proposal`] the latter. They must not be mixed: an entry that
//! etcd applies (a compaction whose user lost the root role since, say) must be applied here too.
//! Both take requests apart field by field, so that a new field cannot go unnoticed.

use keelson_proto::ids::LeaseId;
use keelson_proto::rpc::authpb::Permission;
use keelson_proto::rpc::etcdserverpb::{
    AlarmRequest, AuthRoleGetRequest, AuthUserGetRequest, Compare, DeleteRangeRequest,
    InternalRaftRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest, alarm_request::AlarmAction, request_op::Request,
};
use smallvec::{SmallVec, smallvec};

use crate::lease::KeySet;

/// What is done to keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading them.
    Read,
    /// Changing or deleting them.
    Write,
}

/// One thing that a request needs; see [`Need::Keys`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyNeed<'a> {
    /// Some user, whoever it is.
    Authenticated,
    /// Access to all of `[key, range_end)`; an empty end stands for the one key, `0x00` for every
    /// key from `key` on.
    Range {
        /// To read or to write.
        access: Access,
        /// The first key.
        key: &'a [u8],
        /// The end.
        range_end: &'a [u8],
    },
    /// Access to every key that is attached to a lease; an admin needs nothing, whatever the
    /// revision of the admin's token.
    Attached {
        /// To read or to write.
        access: Access,
        /// The keys.
        keys: &'a KeySet,
    },
}

/// What a request needs, for [`crate::auth::permit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need<'a> {
    /// Nothing: anybody may.
    Nothing,
    /// Some user, whoever it is.
    Authenticated,
    /// A user with the root role.
    Admin,
    /// The user of this name, or an admin.
    UserSelf(&'a str),
    /// A user who holds this role, or an admin.
    RoleHeld(&'a str),
    /// All of these; the first that is missing gives the error.
    Keys(SmallVec<[KeyNeed<'a>; 2]>),
}

/// Which keys are attached to a lease.
pub trait LeaseKeys {
    /// The keys of a lease; `None` where there is no such lease.
    fn keys_of(&self, lease: LeaseId) -> Option<&KeySet>;
}

impl<'a> Need<'a> {
    /// Reading all of `[key, range_end)`: ranges and watches. (A watch with an empty key is one of
    /// the key `0x00`.)
    #[must_use]
    pub fn read(key: &'a [u8], range_end: &'a [u8]) -> Need<'a> {
        Need::Keys(smallvec![range(Access::Read, key, range_end)])
    }

    /// What keep-alive ([`Access::Write`]) and time-to-live with keys ([`Access::Read`]) of a lease
    /// need.
    #[must_use]
    pub fn lease(leases: &'a impl LeaseKeys, lease: LeaseId, access: Access) -> Need<'a> {
        Need::every_lease(leases.keys_of(lease).into_iter(), access)
    }

    /// What the list of leases needs, with [`Access::Read`]: access to every key of each.
    #[must_use]
    pub fn every_lease(leases: impl Iterator<Item = &'a KeySet>, access: Access) -> Need<'a> {
        let mut needs: SmallVec<[KeyNeed<'a>; 2]> = smallvec![KeyNeed::Authenticated];
        needs.extend(
            leases
                .filter(|keys| !keys.is_empty())
                .map(|keys| KeyNeed::Attached { access, keys }),
        );
        Need::Keys(needs)
    }
}

fn range<'a>(access: Access, key: &'a [u8], range_end: &'a [u8]) -> KeyNeed<'a> {
    KeyNeed::Range {
        access,
        key,
        range_end,
    }
}

/// What an entry's request needs when it is applied, from the user in the entry's header.
///
/// `leases` is the lease table as of the entry. A request that names several things, which nobody
/// writes, needs what the first of them needs, and an admin if any of them does.
#[must_use]
pub fn need<'a>(request: &'a InternalRaftRequest, leases: &'a impl LeaseKeys) -> Need<'a> {
    let InternalRaftRequest {
        id: _,
        header: _,
        range,
        put,
        delete_range,
        txn,
        // Checked before they are proposed, and never again.
        compaction: _,
        lease_grant: _,
        lease_revoke,
        // Members raise their own alarms, as nobody.
        alarm: _,
        lease_checkpoint: _,
        auth_enable,
        auth_disable,
        auth_status: _,
        authenticate: _,
        auth_user_add,
        auth_user_delete,
        auth_user_get,
        auth_user_change_password,
        auth_user_grant_role,
        auth_user_revoke_role,
        auth_user_list,
        auth_role_list,
        auth_role_add,
        auth_role_delete,
        auth_role_get,
        auth_role_grant_permission,
        auth_role_revoke_permission,
        cluster_version_set: _,
        cluster_member_attr_set: _,
        downgrade_info_set: _,
        downgrade_version_test: _,
    } = request;
    let admin = auth_enable.is_some()
        || auth_disable.is_some()
        || auth_user_add.is_some()
        || auth_user_delete.is_some()
        || auth_user_change_password.is_some()
        || auth_user_grant_role.is_some()
        || auth_user_revoke_role.is_some()
        || auth_user_list.is_some()
        || auth_role_list.is_some()
        || auth_role_add.is_some()
        || auth_role_delete.is_some()
        || auth_role_grant_permission.is_some()
        || auth_role_revoke_permission.is_some();
    if admin {
        return Need::Admin;
    }
    let mut needs = SmallVec::new();
    if let Some(range) = range {
        of_range(range, &mut needs);
    } else if let Some(put) = put {
        of_put(put, leases, &mut needs);
    } else if let Some(delete) = delete_range {
        of_delete(delete, &mut needs);
    } else if let Some(txn) = txn {
        of_txn(txn, leases, &mut needs);
    } else if let Some(LeaseRevokeRequest { id }) = lease_revoke {
        of_lease(LeaseId(*id), leases, &mut needs);
    } else if let Some(AuthUserGetRequest { name }) = auth_user_get {
        return Need::UserSelf(name);
    } else if let Some(AuthRoleGetRequest { role }) = auth_role_get {
        return Need::RoleHeld(role);
    }
    if needs.is_empty() {
        Need::Nothing
    } else {
        Need::Keys(needs)
    }
}

/// What a transaction needs that is answered without an entry: every compare, and every operation
/// of both branches, as with [`need`].
#[must_use]
pub fn need_of_txn<'a>(txn: &'a TxnRequest, leases: &'a impl LeaseKeys) -> Need<'a> {
    let mut needs = SmallVec::new();
    of_txn(txn, leases, &mut needs);
    Need::Keys(needs)
}

/// What a request needs from the caller before it is proposed. Everything else waits until its
/// entry is applied, where the state is the one that counts.
#[must_use]
pub fn before_proposal(request: &InternalRaftRequest) -> Need<'_> {
    let InternalRaftRequest {
        id: _,
        header: _,
        range: _,
        put: _,
        delete_range: _,
        txn: _,
        compaction,
        lease_grant,
        lease_revoke,
        alarm,
        lease_checkpoint: _,
        auth_enable: _,
        auth_disable: _,
        auth_status: _,
        authenticate: _,
        auth_user_add: _,
        auth_user_delete: _,
        auth_user_get: _,
        auth_user_change_password: _,
        auth_user_grant_role: _,
        auth_user_revoke_role: _,
        auth_user_list: _,
        auth_role_list: _,
        auth_role_add: _,
        auth_role_delete: _,
        auth_role_get: _,
        auth_role_grant_permission: _,
        auth_role_revoke_permission: _,
        cluster_version_set: _,
        cluster_member_attr_set: _,
        // Of the downgrade request, an admin's: it is checked with that request.
        downgrade_info_set: _,
        downgrade_version_test: _,
    } = request;
    if compaction.is_some() {
        return Need::Admin;
    }
    if let Some(AlarmRequest {
        action,
        member_id: _,
        alarm: _,
    }) = alarm
    {
        return match AlarmAction::try_from(*action) {
            Ok(AlarmAction::Get) => Need::Authenticated,
            Ok(AlarmAction::Activate | AlarmAction::Deactivate) | Err(_) => Need::Admin,
        };
    }
    if let Some(LeaseGrantRequest { ttl: _, id: _ }) = lease_grant {
        return Need::Authenticated;
    }
    if let Some(LeaseRevokeRequest { id: _ }) = lease_revoke {
        return Need::Authenticated;
    }
    Need::Nothing
}

type Needs<'a> = SmallVec<[KeyNeed<'a>; 2]>;

fn of_range<'a>(request: &'a RangeRequest, needs: &mut Needs<'a>) {
    let RangeRequest {
        key,
        range_end,
        limit: _,
        revision: _,
        sort_order: _,
        sort_target: _,
        serializable: _,
        keys_only: _,
        count_only: _,
        min_mod_revision: _,
        max_mod_revision: _,
        min_create_revision: _,
        max_create_revision: _,
    } = request;
    needs.push(range(Access::Read, key, range_end));
}

fn of_put<'a>(request: &'a PutRequest, leases: &'a impl LeaseKeys, needs: &mut Needs<'a>) {
    let PutRequest {
        key,
        value: _,
        lease,
        prev_kv,
        ignore_value: _,
        ignore_lease: _,
    } = request;
    needs.push(range(Access::Write, key, b""));
    // Who could not revoke the lease must not hang keys on it either.
    of_lease(LeaseId(*lease), leases, needs);
    if *prev_kv {
        needs.push(range(Access::Read, key, b""));
    }
}

fn of_delete<'a>(request: &'a DeleteRangeRequest, needs: &mut Needs<'a>) {
    let DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    } = request;
    needs.push(range(Access::Write, key, range_end));
    if *prev_kv {
        needs.push(range(Access::Read, key, range_end));
    }
}

fn of_lease<'a>(lease: LeaseId, leases: &'a impl LeaseKeys, needs: &mut Needs<'a>) {
    if lease.is_none() {
        return;
    }
    if let Some(keys) = leases.keys_of(lease).filter(|keys| !keys.is_empty()) {
        needs.push(KeyNeed::Attached {
            access: Access::Write,
            keys,
        });
    }
}

/// Recurses as deep as transactions nest, which decoding has bounded.
fn of_txn<'a>(request: &'a TxnRequest, leases: &'a impl LeaseKeys, needs: &mut Needs<'a>) {
    let TxnRequest {
        compare,
        success,
        failure,
    } = request;
    for compare in compare {
        let Compare {
            result: _,
            target: _,
            key,
            range_end,
            target_union: _,
        } = compare;
        needs.push(range(Access::Read, key, range_end));
    }
    for operation in success.iter().chain(failure) {
        let RequestOp { request } = operation;
        match request {
            Some(Request::RequestRange(request)) => of_range(request, needs),
            Some(Request::RequestPut(request)) => of_put(request, leases, needs),
            Some(Request::RequestDeleteRange(request)) => of_delete(request, needs),
            Some(Request::RequestTxn(request)) => of_txn(request, leases, needs),
            None => {}
        }
    }
}

/// The one permission that the root role shows: everything.
pub(super) fn root_permission() -> Permission {
    Permission {
        perm_type: keelson_proto::rpc::authpb::permission::Type::Readwrite.into(),
        key: bytes::Bytes::new(),
        range_end: bytes::Bytes::from_static(&[0]),
    }
}

#[cfg(test)]
mod tests;
