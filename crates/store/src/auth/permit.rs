//! The one check.

use keelson_proto::ApiError;
use keelson_proto::rpc::etcdserverpb::{InternalRaftRequest, RequestHeader};

use super::need::{Access, KeyNeed, LeaseKeys, Need, need};
use super::state::AuthState;

/// Who sends a request: what a token, a certificate or an entry's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who<'a> {
    /// The user's name; a certificate's may be empty.
    pub user: &'a str,
    /// The revision of the auth state when the user was made out; 0 only for nobody.
    pub auth_revision: u64,
}

impl Who<'_> {
    /// No user was given.
    pub const NOBODY: Who<'static> = Who {
        user: "",
        auth_revision: 0,
    };
}

impl<'a> Who<'a> {
    /// The user that an entry's header names; nobody where there is no header.
    #[must_use]
    pub fn of_header(header: Option<&'a RequestHeader>) -> Who<'a> {
        let Some(RequestHeader {
            id: _,
            username,
            auth_revision,
        }) = header
        else {
            return Who::NOBODY;
        };
        Who {
            user: username,
            auth_revision: *auth_revision,
        }
    }
}

/// Whether an entry's request may be applied: [`permit`] of what it [`need`]s, by the user in its
/// header. While authentication is off the request is not looked at.
///
/// # Errors
///
/// As [`permit`].
pub fn permit_entry(
    state: &AuthState,
    request: &InternalRaftRequest,
    leases: &impl LeaseKeys,
) -> Result<(), ApiError> {
    if !state.enabled() {
        return Ok(());
    }
    let who = Who::of_header(request.header.as_ref());
    permit(state, &who, &need(request, leases))
}

/// Whether `who` has what a request needs. While authentication is off, everybody has.
///
/// The order of the checks, and so which error a caller sees, is etcd's (`server/auth/store.go`
/// and `server/etcdserver/apply/auth.go`): access to keys asks for a user, then for a current
/// revision, then for the permission; admin rights do not ask for a current revision, and tell
/// unknown users from others.
///
/// # Errors
///
/// [`ApiError::UserEmpty`], [`ApiError::AuthOldRevision`], [`ApiError::UserNotFound`] (of admin
/// rights alone) or [`ApiError::PermissionDenied`].
pub fn permit(state: &AuthState, who: &Who<'_>, need: &Need<'_>) -> Result<(), ApiError> {
    if !state.enabled() {
        return Ok(());
    }
    match need {
        Need::Nothing => Ok(()),
        Need::Authenticated => some_user(who),
        Need::Admin => admin(state, who),
        Need::UserSelf(name) => admin(state, who).or_else(|error| {
            if *name == who.user {
                Ok(())
            } else {
                Err(error)
            }
        }),
        Need::RoleHeld(role) => admin(state, who).or_else(|error| {
            if state.holds(who.user, role) {
                Ok(())
            } else {
                Err(error)
            }
        }),
        Need::Keys(needs) => needs.iter().try_for_each(|need| keys(state, who, need)),
    }
}

/// Whether the auth state is still the one that `who` was made out by: what etcd asks once more
/// after it has read for somebody.
///
/// # Errors
///
/// [`ApiError::AuthOldRevision`].
pub fn is_current(state: &AuthState, who: &Who<'_>) -> Result<(), ApiError> {
    if who.auth_revision != 0 && who.auth_revision != state.revision() {
        return Err(ApiError::AuthOldRevision);
    }
    Ok(())
}

fn some_user(who: &Who<'_>) -> Result<(), ApiError> {
    if who.auth_revision == 0 {
        return Err(ApiError::UserEmpty);
    }
    Ok(())
}

fn admin(state: &AuthState, who: &Who<'_>) -> Result<(), ApiError> {
    if who.user.is_empty() {
        return Err(ApiError::UserEmpty);
    }
    let account = state.account(who.user).ok_or(ApiError::UserNotFound)?;
    if account.root {
        Ok(())
    } else {
        Err(ApiError::PermissionDenied)
    }
}

fn keys(state: &AuthState, who: &Who<'_>, need: &KeyNeed<'_>) -> Result<(), ApiError> {
    match need {
        KeyNeed::Authenticated => some_user(who),
        KeyNeed::Range {
            access,
            key,
            range_end,
        } => range(state, who, *access, key, range_end),
        KeyNeed::Attached { access, keys } => {
            if admin(state, who).is_ok() {
                return Ok(());
            }
            keys.iter()
                .try_for_each(|key| range(state, who, *access, key, b""))
        }
    }
}

fn range(
    state: &AuthState,
    who: &Who<'_>,
    access: Access,
    key: &[u8],
    range_end: &[u8],
) -> Result<(), ApiError> {
    some_user(who)?;
    if who.auth_revision < state.revision() {
        tracing::warn!(
            "current node auth revision" = state.revision(),
            "request auth revision" = who.auth_revision,
            "request key" = String::from_utf8_lossy(key).as_ref(),
            error = "auth: revision in header is old",
            "request auth revision is less than current node auth revision"
        );
        return Err(ApiError::AuthOldRevision);
    }
    let Some(account) = state.account(who.user) else {
        tracing::error!(
            "user-name" = who.user,
            "cannot find a user for permission check"
        );
        return Err(ApiError::PermissionDenied);
    };
    let ranges = match access {
        Access::Read => &account.read,
        Access::Write => &account.write,
    };
    if account.root || ranges.contain(key, range_end) {
        Ok(())
    } else {
        Err(ApiError::PermissionDenied)
    }
}

#[cfg(test)]
mod tests;
