//! Users, roles, permissions.

use keelson_proto::rpc::{authpb, etcdserverpb as pb};

pub use keelson_proto::rpc::authpb::permission::Type as Permission;

use crate::call::Kind;
use crate::{Client, Error, Span};

impl Client {
    /// Trades a name and a password for a token, and sends it with every call from now on. Name
    /// and password are not kept: [`crate::Options::user`] renews tokens.
    ///
    /// # Errors
    /// As [`Client::put`]; [`Error::Token`] if the token cannot be metadata.
    pub async fn authenticate(
        &self,
        name: &str,
        password: &str,
    ) -> Result<pb::AuthenticateResponse, Error> {
        let request = pb::AuthenticateRequest {
            name: name.to_owned(),
            password: password.to_owned(),
        };
        let answer = self
            .call(Kind::Read, request, |wire, request| async move {
                wire.auth().authenticate(request).await
            })
            .await?;
        self.set_token(Some(&answer.token))?;
        Ok(answer)
    }

    /// Makes users and permissions count. There must be a user `root` with the role `root`.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn auth_enable(&self) -> Result<pb::AuthEnableResponse, Error> {
        let request = pb::AuthEnableRequest {};
        self.call(Kind::Write, request, |wire, request| async move {
            wire.auth().auth_enable(request).await
        })
        .await
    }

    /// Lets everybody do everything again.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn auth_disable(&self) -> Result<pb::AuthDisableResponse, Error> {
        let request = pb::AuthDisableRequest {};
        self.call(Kind::Write, request, |wire, request| async move {
            wire.auth().auth_disable(request).await
        })
        .await
    }

    /// Whether auth is enabled, and the revision of its state.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn auth_status(&self) -> Result<pb::AuthStatusResponse, Error> {
        let request = pb::AuthStatusRequest {};
        self.call(Kind::Read, request, |wire, request| async move {
            wire.auth().auth_status(request).await
        })
        .await
    }

    /// Adds a user with a password.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn user_add(
        &self,
        name: &str,
        password: &str,
    ) -> Result<pb::AuthUserAddResponse, Error> {
        let request = pb::AuthUserAddRequest {
            name: name.to_owned(),
            password: password.to_owned(),
            ..pb::AuthUserAddRequest::default()
        };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.auth().user_add(request).await
        })
        .await
    }

    /// Adds a user that no password lets in.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn user_add_without_password(
        &self,
        name: &str,
    ) -> Result<pb::AuthUserAddResponse, Error> {
        let request = pb::AuthUserAddRequest {
            name: name.to_owned(),
            options: Some(authpb::UserAddOptions { no_password: true }),
            ..pb::AuthUserAddRequest::default()
        };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.auth().user_add(request).await
        })
        .await
    }

    /// The roles of a user.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn user_get(&self, name: &str) -> Result<pb::AuthUserGetResponse, Error> {
        let request = pb::AuthUserGetRequest {
            name: name.to_owned(),
        };
        self.call(Kind::Read, request, |wire, request| async move {
            wire.auth().user_get(request).await
        })
        .await
    }

    /// The names of all users.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn user_list(&self) -> Result<pb::AuthUserListResponse, Error> {
        let request = pb::AuthUserListRequest {};
        self.call(Kind::Read, request, |wire, request| async move {
            wire.auth().user_list(request).await
        })
        .await
    }

    /// Removes a user.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn user_delete(&self, name: &str) -> Result<pb::AuthUserDeleteResponse, Error> {
        let request = pb::AuthUserDeleteRequest {
            name: name.to_owned(),
        };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.auth().user_delete(request).await
        })
        .await
    }

    /// Gives a user another password; its tokens end.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn user_change_password(
        &self,
        name: &str,
        password: &str,
    ) -> Result<pb::AuthUserChangePasswordResponse, Error> {
        let request = pb::AuthUserChangePasswordRequest {
            name: name.to_owned(),
            password: password.to_owned(),
            ..pb::AuthUserChangePasswordRequest::default()
        };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.auth().user_change_password(request).await
        })
        .await
    }

    /// Gives a user a role.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn user_grant_role(
        &self,
        name: &str,
        role: &str,
    ) -> Result<pb::AuthUserGrantRoleResponse, Error> {
        let request = pb::AuthUserGrantRoleRequest {
            user: name.to_owned(),
            role: role.to_owned(),
        };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.auth().user_grant_role(request).await
        })
        .await
    }

    /// Takes a role from a user.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn user_revoke_role(
        &self,
        name: &str,
        role: &str,
    ) -> Result<pb::AuthUserRevokeRoleResponse, Error> {
        let request = pb::AuthUserRevokeRoleRequest {
            name: name.to_owned(),
            role: role.to_owned(),
        };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.auth().user_revoke_role(request).await
        })
        .await
    }

    /// Adds a role without permissions.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn role_add(&self, role: &str) -> Result<pb::AuthRoleAddResponse, Error> {
        let request = pb::AuthRoleAddRequest {
            name: role.to_owned(),
        };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.auth().role_add(request).await
        })
        .await
    }

    /// The permissions of a role.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn role_get(&self, role: &str) -> Result<pb::AuthRoleGetResponse, Error> {
        let request = pb::AuthRoleGetRequest {
            role: role.to_owned(),
        };
        self.call(Kind::Read, request, |wire, request| async move {
            wire.auth().role_get(request).await
        })
        .await
    }

    /// The names of all roles.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn role_list(&self) -> Result<pb::AuthRoleListResponse, Error> {
        let request = pb::AuthRoleListRequest {};
        self.call(Kind::Read, request, |wire, request| async move {
            wire.auth().role_list(request).await
        })
        .await
    }

    /// Removes a role, from its users too.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn role_delete(&self, role: &str) -> Result<pb::AuthRoleDeleteResponse, Error> {
        let request = pb::AuthRoleDeleteRequest {
            role: role.to_owned(),
        };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.auth().role_delete(request).await
        })
        .await
    }

    /// Lets a role read, write or both in `span`.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn role_grant_permission(
        &self,
        role: &str,
        permission: Permission,
        span: Span,
    ) -> Result<pb::AuthRoleGrantPermissionResponse, Error> {
        let request = pb::AuthRoleGrantPermissionRequest {
            name: role.to_owned(),
            perm: Some(authpb::Permission {
                perm_type: permission.into(),
                key: span.key,
                range_end: span.range_end,
            }),
        };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.auth().role_grant_permission(request).await
        })
        .await
    }

    /// Takes the permission on exactly `span` from a role.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn role_revoke_permission(
        &self,
        role: &str,
        span: Span,
    ) -> Result<pb::AuthRoleRevokePermissionResponse, Error> {
        let request = pb::AuthRoleRevokePermissionRequest {
            role: role.to_owned(),
            key: span.key,
            range_end: span.range_end,
        };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.auth().role_revoke_permission(request).await
        })
        .await
    }
}
