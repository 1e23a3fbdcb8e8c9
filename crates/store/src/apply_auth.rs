//! Applying requests of the auth service.

use keelson_proto::ApiError;
use keelson_proto::entry::Entry;
use keelson_proto::rpc::etcdserverpb::{InternalAuthenticateRequest, InternalRaftRequest};
use smallvec::{SmallVec, smallvec};

use crate::Store;
use crate::apply::done;
use crate::auth::told;
use crate::outcome::{Applied, AuthOutcome, Effect, Outcome};
use crate::row::RowChange;

type Change<'a> = &'a mut Vec<RowChange>;

impl Store {
    /// Applies the request if it is one of auth.
    pub(crate) fn apply_auth(
        &mut self,
        entry: &Entry,
        request: &InternalRaftRequest,
    ) -> Result<Option<Applied>, ApiError> {
        if let Some(answer) = self.ask_auth(request)? {
            return Ok(Some(done(Outcome::Auth(answer))));
        }
        if let Some(login) = &request.authenticate {
            return self.authenticate(entry, login).map(Some);
        }
        let before = self.auth.clone();
        let changed = self.change_auth(request);
        match &changed {
            Ok(Some(_)) => told::change(&before, &self.auth, request),
            Ok(None) => {}
            Err(refused) => told::refusal(request, refused),
        }
        changed
    }

    fn ask_auth(&self, request: &InternalRaftRequest) -> Result<Option<AuthOutcome>, ApiError> {
        let auth = &self.auth;
        let owned = |names: &mut dyn Iterator<Item = &str>| names.map(str::to_owned).collect();
        let answer = if request.auth_status.is_some() {
            AuthOutcome::Status {
                enabled: auth.enabled(),
                revision: auth.revision(),
            }
        } else if let Some(user) = &request.auth_user_get {
            AuthOutcome::User {
                roles: auth.user(&user.name)?.to_vec(),
            }
        } else if request.auth_user_list.is_some() {
            AuthOutcome::Users {
                names: owned(&mut auth.users()),
            }
        } else if let Some(role) = &request.auth_role_get {
            AuthOutcome::Role {
                permissions: auth.role(&role.role)?,
            }
        } else if request.auth_role_list.is_some() {
            AuthOutcome::Roles {
                names: owned(&mut auth.roles()),
            }
        } else {
            return Ok(None);
        };
        Ok(Some(answer))
    }

    fn authenticate(
        &self,
        entry: &Entry,
        login: &InternalAuthenticateRequest,
    ) -> Result<Applied, ApiError> {
        self.auth.authenticate(&login.name)?;
        let token = format!("{}.{}", login.simple_token, entry.index);
        let assigned = Effect::AssignToken {
            user: login.name.clone(),
            token: token.clone(),
        };
        Ok(Applied {
            outcome: Outcome::Auth(AuthOutcome::Authenticated { token }),
            effects: smallvec![assigned],
        })
    }

    fn change_auth(&mut self, request: &InternalRaftRequest) -> Result<Option<Applied>, ApiError> {
        let mut rows = Vec::new();
        let rows: Change<'_> = &mut rows;
        let auth = &mut self.auth;
        let mut revoked: SmallVec<[Effect; 1]> = SmallVec::new();
        if request.auth_enable.is_some() {
            auth.enable(rows)?;
        } else if request.auth_disable.is_some() {
            auth.disable(rows);
            revoked = smallvec![Effect::RevokeTokens { user: None }];
        } else if let Some(user) = &request.auth_user_add {
            auth.user_add(user, rows)?;
        } else if let Some(user) = &request.auth_user_delete {
            auth.user_delete(user, rows)?;
            revoked = smallvec![Effect::RevokeTokens {
                user: Some(user.name.clone())
            }];
        } else if let Some(user) = &request.auth_user_change_password {
            auth.user_change_password(user, rows)?;
            revoked = smallvec![Effect::RevokeTokens {
                user: Some(user.name.clone())
            }];
        } else if let Some(grant) = &request.auth_user_grant_role {
            auth.user_grant_role(grant, rows)?;
        } else if let Some(revoke) = &request.auth_user_revoke_role {
            auth.user_revoke_role(revoke, rows)?;
        } else if let Some(role) = &request.auth_role_add {
            auth.role_add(role, rows)?;
        } else if let Some(role) = &request.auth_role_delete {
            auth.role_delete(role, rows)?;
        } else if let Some(grant) = &request.auth_role_grant_permission {
            auth.role_grant_permission(grant, rows)?;
        } else if let Some(revoke) = &request.auth_role_revoke_permission {
            auth.role_revoke_permission(revoke, rows)?;
        } else {
            return Ok(None);
        }
        if !rows.is_empty() {
            self.tail.change_rows(std::mem::take(rows));
            self.shared.auth.store(self.auth.clone().into());
        }
        Ok(Some(Applied {
            outcome: Outcome::Auth(AuthOutcome::Done),
            effects: revoked,
        }))
    }
}
