//! What operators are told of changes of users and roles: etcd's lines with etcd's fields.

use keelson_proto::ApiError;
use keelson_proto::rpc::authpb::permission::Type;
use keelson_proto::rpc::etcdserverpb::InternalRaftRequest;
use tracing::{error, info, warn};

use super::state::{AuthState, ROOT};

/// Tells of a request that was applied to `before` and made `after` of it.
///
/// # Source
///
/// `server/auth/store.go` of etcd 3.7.
pub(crate) fn change(before: &AuthState, after: &AuthState, request: &InternalRaftRequest) {
    if request.auth_enable.is_some() {
        if before.enabled() {
            info!("authentication is already enabled; ignored auth enable request");
        } else {
            info!("enabled authentication");
        }
    } else if request.auth_disable.is_some() {
        if before.enabled() {
            info!("disabled authentication");
        }
    } else if let Some(role) = &request.auth_role_add {
        info!("role-name" = role.name, "created a role");
    } else if let Some(role) = &request.auth_role_delete {
        info!("role-name" = role.role, "deleted a role");
    } else if let Some(grant) = &request.auth_role_grant_permission {
        let given = grant.perm.clone().unwrap_or_default();
        let name = Type::try_from(given.perm_type).map_or("", |kind| kind.as_str_name());
        info!(
            // etcd's name for it, though it is a role.
            "user-name" = grant.name,
            "permission-name" = name,
            key = text(&given.key),
            "range-end" = text(&given.range_end),
            "granted/updated a permission to a user"
        );
    } else if let Some(revoke) = &request.auth_role_revoke_permission {
        info!(
            "role-name" = revoke.role,
            key = text(&revoke.key),
            "range-end" = text(&revoke.range_end),
            "revoked a permission on range"
        );
    } else {
        user_change(before, after, request);
    }
}

fn user_change(before: &AuthState, after: &AuthState, request: &InternalRaftRequest) {
    if let Some(user) = &request.auth_user_add {
        info!("user-name" = user.name, "added a user");
    } else if let Some(user) = &request.auth_user_delete {
        info!(
            "user-name" = user.name,
            "user-roles:json" = roles(before, &user.name),
            "deleted a user"
        );
    } else if let Some(user) = &request.auth_user_change_password {
        info!(
            "user-name" = user.name,
            "user-roles:json" = roles(after, &user.name),
            "changed a password of a user"
        );
    } else if let Some(grant) = &request.auth_user_grant_role {
        if before.holds(&grant.user, &grant.role) {
            warn!(
                "user-name" = grant.user,
                "user-roles:json" = roles(after, &grant.user),
                "duplicate-role-name" = grant.role,
                "ignored grant role request to a user"
            );
            return;
        }
        info!(
            "user-name" = grant.user,
            "user-roles:json" = roles(after, &grant.user),
            "added-role-name" = grant.role,
            "granted a role to a user"
        );
    } else if let Some(revoke) = &request.auth_user_revoke_role {
        info!(
            "user-name" = revoke.name,
            "old-user-roles:json" = roles(before, &revoke.name),
            "new-user-roles:json" = roles(after, &revoke.name),
            "revoked-role-name" = revoke.role,
            "revoked a role from a user"
        );
    }
}

/// Tells of a request that would have taken the root user's rights away while they count.
pub(crate) fn refusal(request: &InternalRaftRequest, refused: &ApiError) {
    if *refused != ApiError::InvalidAuthMgmt {
        return;
    }
    if let Some(user) = &request.auth_user_delete {
        error!("user-name" = user.name, "cannot delete 'root' user");
    } else if let Some(role) = &request.auth_role_delete {
        error!("role-name" = role.role, "cannot delete 'root' role");
    } else if request.auth_user_revoke_role.is_some() {
        error!(
            "user-name" = ROOT,
            "role-name" = ROOT,
            "'root' user cannot revoke 'root' role"
        );
    }
}

fn roles(state: &AuthState, user: &str) -> String {
    serde_json::to_string(state.user(user).unwrap_or_default()).unwrap_or_default()
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}
