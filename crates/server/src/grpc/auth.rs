//! Users, roles and logins. All of them go through the log, questions too.

use keelson_proto::ApiError;
use keelson_proto::rpc::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse,
    AuthRoleAddRequest, AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse,
    AuthRoleGetRequest, AuthRoleGetResponse, AuthRoleGrantPermissionRequest,
    AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
    AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest,
    AuthStatusResponse, AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest,
    AuthUserChangePasswordResponse, AuthUserDeleteRequest, AuthUserDeleteResponse,
    AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest, AuthUserGrantRoleResponse,
    AuthUserListRequest, AuthUserListResponse, AuthUserRevokeRoleRequest,
    AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse,
    InternalAuthenticateRequest, InternalRaftRequest,
};
use keelson_store::auth;
use keelson_store::{AuthOutcome, Outcome};

use super::call::{Call, mismatched};
use super::splice::Answer;
use super::status::Status;
use crate::tokens;

async fn propose(
    call: &Call,
    kind: &str,
    request: InternalRaftRequest,
) -> Result<AuthOutcome, Status> {
    match call.propose(kind, request).await? {
        Outcome::Auth(outcome) => Ok(outcome),
        _ => Err(mismatched()),
    }
}

/// Handlers of requests whose outcome says nothing but that it was done.
macro_rules! changes {
    ($($handler:ident($request:ident) as $kind:literal in $field:ident -> $response:ident,)*) => {
        $(pub(super) async fn $handler(call: &Call, request: $request) -> Result<Answer, Status> {
            let request = InternalRaftRequest {
                $field: Some(request),
                ..InternalRaftRequest::default()
            };
            match propose(call, $kind, request).await? {
                AuthOutcome::Done => Ok(Answer::message(&$response {
                    header: Some(call.header_now()),
                })),
                _ => Err(mismatched()),
            }
        })*
    };
}

/// Handlers of questions: the outcome holds the one thing that the response shows.
macro_rules! questions {
    ($($handler:ident($request:ident) as $kind:literal in $field:ident
        -> $response:ident { $shown:ident: $outcome:ident.$held:ident },)*) => {
        $(pub(super) async fn $handler(call: &Call, request: $request) -> Result<Answer, Status> {
            let request = InternalRaftRequest {
                $field: Some(request),
                ..InternalRaftRequest::default()
            };
            match propose(call, $kind, request).await? {
                AuthOutcome::$outcome { $held } => Ok(Answer::message(&$response {
                    header: Some(call.header_now()),
                    $shown: $held,
                })),
                _ => Err(mismatched()),
            }
        })*
    };
}

changes! {
    enable(AuthEnableRequest) as "AuthEnable" in auth_enable -> AuthEnableResponse,
    disable(AuthDisableRequest) as "AuthDisable" in auth_disable -> AuthDisableResponse,
    user_delete(AuthUserDeleteRequest) as "AuthUserDelete" in auth_user_delete
        -> AuthUserDeleteResponse,
    user_grant_role(AuthUserGrantRoleRequest) as "AuthUserGrantRole" in auth_user_grant_role
        -> AuthUserGrantRoleResponse,
    user_revoke_role(AuthUserRevokeRoleRequest) as "AuthUserRevokeRole" in auth_user_revoke_role
        -> AuthUserRevokeRoleResponse,
    role_add(AuthRoleAddRequest) as "AuthRoleAdd" in auth_role_add -> AuthRoleAddResponse,
    role_delete(AuthRoleDeleteRequest) as "AuthRoleDelete" in auth_role_delete
        -> AuthRoleDeleteResponse,
    role_grant_permission(AuthRoleGrantPermissionRequest) as "AuthRoleGrantPermission"
        in auth_role_grant_permission -> AuthRoleGrantPermissionResponse,
    role_revoke_permission(AuthRoleRevokePermissionRequest) as "AuthRoleRevokePermission"
        in auth_role_revoke_permission -> AuthRoleRevokePermissionResponse,
}

questions! {
    user_get(AuthUserGetRequest) as "AuthUserGet" in auth_user_get
        -> AuthUserGetResponse { roles: User.roles },
    user_list(AuthUserListRequest) as "AuthUserList" in auth_user_list
        -> AuthUserListResponse { users: Users.names },
    role_get(AuthRoleGetRequest) as "AuthRoleGet" in auth_role_get
        -> AuthRoleGetResponse { perm: Role.permissions },
    role_list(AuthRoleListRequest) as "AuthRoleList" in auth_role_list
        -> AuthRoleListResponse { roles: Roles.names },
}

pub(super) async fn status(call: &Call, request: AuthStatusRequest) -> Result<Answer, Status> {
    let request = InternalRaftRequest {
        auth_status: Some(request),
        ..InternalRaftRequest::default()
    };
    match propose(call, "AuthStatus", request).await? {
        AuthOutcome::Status { enabled, revision } => Ok(Answer::message(&AuthStatusResponse {
            header: Some(call.header_now()),
            enabled,
            auth_revision: revision,
        })),
        _ => Err(mismatched()),
    }
}

/// Checks the password here, where it may take its time, and has the token made by the entry.
pub(super) async fn authenticate(
    call: &Call,
    request: AuthenticateRequest,
) -> Result<Answer, Status> {
    call.read_barrier().await?;
    loop {
        let revision = check_password(call, &request).await.inspect_err(|status| {
            if ApiError::from_text(&status.text) != Some(ApiError::AuthNotEnabled) {
                tracing::warn!(
                    user = request.name,
                    error = status.text.replacen("etcdserver: ", "auth: ", 1),
                    "invalid authentication was requested"
                );
            }
        })?;
        // The password stays out of the log: whoever applies the entry does not look at it.
        let proposed = InternalRaftRequest {
            authenticate: Some(InternalAuthenticateRequest {
                name: request.name.clone(),
                password: String::new(),
                simple_token: tokens::random_part(),
            }),
            ..InternalRaftRequest::default()
        };
        let outcome = call.propose_as_is("Authenticate", proposed).await?;
        let Outcome::Auth(AuthOutcome::Authenticated { token }) = outcome else {
            return Err(mismatched());
        };
        if call.shared().auth().revision() != revision {
            // The user may have another password by now.
            tracing::info!("revision when password checked became stale; retrying");
            continue;
        }
        tracing::debug!(
            "user-name" = request.name,
            "token-fingerprint" = tokens::fingerprint(&token),
            "authenticated a user"
        );
        return Ok(Answer::message(&AuthenticateResponse {
            header: Some(call.header_now()),
            token,
        }));
    }
}

/// The revision of the auth state that the password was right for.
async fn check_password(call: &Call, request: &AuthenticateRequest) -> Result<u64, Status> {
    let (hash, revision) = call.shared().auth().login(&request.name)?;
    let password = request.password.clone();
    if hashing(call, move || auth::verify(&password, &hash)).await? {
        return Ok(revision);
    }
    tracing::info!("user-name" = request.name, "invalid password");
    Err(ApiError::AuthFailed.into())
}

pub(super) async fn user_add(
    call: &Call,
    mut request: AuthUserAddRequest,
) -> Result<Answer, Status> {
    let without = request
        .options
        .as_ref()
        .is_some_and(|options| options.no_password);
    if !without {
        request.hashed_password = hashed(call, std::mem::take(&mut request.password)).await?;
    }
    let request = InternalRaftRequest {
        auth_user_add: Some(request),
        ..InternalRaftRequest::default()
    };
    propose(call, "AuthUserAdd", request).await?;
    Ok(Answer::message(&AuthUserAddResponse {
        header: Some(call.header_now()),
    }))
}

pub(super) async fn user_change_password(
    call: &Call,
    mut request: AuthUserChangePasswordRequest,
) -> Result<Answer, Status> {
    if !request.password.is_empty() {
        request.hashed_password = hashed(call, std::mem::take(&mut request.password)).await?;
    }
    let request = InternalRaftRequest {
        auth_user_change_password: Some(request),
        ..InternalRaftRequest::default()
    };
    propose(call, "AuthUserChangePassword", request).await?;
    Ok(Answer::message(&AuthUserChangePasswordResponse {
        header: Some(call.header_now()),
    }))
}

async fn hashed(call: &Call, password: String) -> Result<String, Status> {
    let cost = call.state.settings.bcrypt_cost;
    Ok(hashing(call, move || auth::propose_hash(&password, cost)).await??)
}

/// Runs what takes as long as bcrypt away from the serving thread.
async fn hashing<T: Send + 'static>(
    call: &Call,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    let hashing = &call.state.hashing;
    Ok(hashing.run(call.origin.thread, work).await?)
}
