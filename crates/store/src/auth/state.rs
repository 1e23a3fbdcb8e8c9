//! The replicated state: users, roles, whether authentication is on, and its revision.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use keelson_proto::ApiError;
use keelson_proto::rpc::authpb::{Permission, Role, User, UserAddOptions};
use keelson_proto::rpc::etcdserverpb::{
    AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest, AuthUserAddRequest, AuthUserChangePasswordRequest,
    AuthUserDeleteRequest, AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest,
};
use prost::Message as _;

use super::need::root_permission;
use super::password;
use super::ranges::Ranges;
use super::sort::sort_as_go;
use crate::row::{RowChange, RowError, bucket};

/// The name of the user and of the role that may do everything.
pub const ROOT: &str = "root";

const ENABLED_KEY: &[u8] = b"authEnabled";
const REVISION_KEY: &[u8] = b"authRevision";

/// Go's standard base64: padded, but the unused bits of the last letter may be anything.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// A user, with what its roles come to.
#[derive(Debug, PartialEq)]
pub(super) struct Account {
    record: User,
    /// Whether it has the root role.
    pub(super) root: bool,
    /// What it may read and write, of all its roles.
    pub(super) read: Ranges,
    pub(super) write: Ranges,
}

impl Account {
    fn new(record: User, roles: &Roles) -> Arc<Account> {
        let permissions = record
            .roles
            .iter()
            .filter_map(|role| roles.get(role.as_str()))
            .flat_map(|role| &role.key_permission);
        let (read, write) = Ranges::merged(permissions);
        Arc::new(Account {
            root: record.roles.iter().any(|role| role == ROOT),
            read,
            write,
            record,
        })
    }
}

type Roles = BTreeMap<Box<str>, Arc<Role>>;

/// Users, roles and the switch: replicated, changed by entries alone.
///
/// A clone is cheap and never changes, so apply publishes one after each change. A change that is
/// refused leaves the state, and the rows, as they were.
///
/// Each change that rises the revision invalidates requests that carry an older one. What becomes
/// of tokens is the server's: those of a user end with [`AuthState::user_delete`] and
/// [`AuthState::user_change_password`], all of them with [`AuthState::disable`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthState {
    enabled: bool,
    revision: u64,
    users: Arc<BTreeMap<Box<str>, Arc<Account>>>,
    roles: Arc<Roles>,
}

/// A row's key and value.
type Row<'a> = (&'a [u8], &'a [u8]);

impl AuthState {
    /// The state from the rows of the buckets `auth`, `authUsers` and `authRoles`. Where there is
    /// no revision yet (a new file), it becomes 1 and is written.
    ///
    /// # Errors
    ///
    /// [`RowError`] where a row is not what etcd writes.
    pub fn restore<'a>(
        auth: impl IntoIterator<Item = Row<'a>>,
        users: impl IntoIterator<Item = Row<'a>>,
        roles: impl IntoIterator<Item = Row<'a>>,
        rows: &mut Vec<RowChange>,
    ) -> Result<AuthState, RowError> {
        let mut state = AuthState::default();
        for (key, value) in auth {
            match key {
                ENABLED_KEY => state.enabled = value == [1],
                REVISION_KEY => {
                    state.revision = value.try_into().map(u64::from_be_bytes).map_err(|_| {
                        RowError::value(bucket::AUTH, key, "8 bytes, big-endian", value)
                    })?;
                }
                // Rows of versions to come are left alone.
                _ => {}
            }
        }
        let mut known = Roles::new();
        for (key, value) in roles {
            let role = Role::decode(value)
                .map_err(|error| RowError::new(bucket::AUTH_ROLES, key, "an authpb.Role", error))?;
            known.insert(name(bucket::AUTH_ROLES, key, &role.name)?, Arc::new(role));
        }
        let mut accounts = BTreeMap::new();
        for (key, value) in users {
            let user = User::decode(value)
                .map_err(|error| RowError::new(bucket::AUTH_USERS, key, "an authpb.User", error))?;
            let name = name(bucket::AUTH_USERS, key, &user.name)?;
            accounts.insert(name, Account::new(user, &known));
        }
        state.users = Arc::new(accounts);
        state.roles = Arc::new(known);
        if state.revision == 0 {
            state.rise(rows);
        }
        Ok(state)
    }

    /// Whether authentication is on.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Rises by 1 with every change of users, roles and permissions, and when authentication is
    /// switched off.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn account(&self, user: &str) -> Option<&Account> {
        self.users.get(user).map(|account| &**account)
    }

    /// Whether there is such a user, and it holds this role.
    #[must_use]
    pub fn holds(&self, user: &str, role: &str) -> bool {
        self.account(user)
            .is_some_and(|account| account.record.roles.iter().any(|held| held == role))
    }

    /// A user's roles, sorted.
    ///
    /// # Errors
    ///
    /// [`ApiError::UserNotFound`].
    pub fn user(&self, name: &str) -> Result<&[String], ApiError> {
        let account = self.account(name).ok_or(ApiError::UserNotFound)?;
        Ok(&account.record.roles)
    }

    /// All users' names, sorted by their bytes.
    pub fn users(&self) -> impl ExactSizeIterator<Item = &str> {
        self.users.keys().map(|name| &**name)
    }

    /// A role's permissions as listed. The root role has always one: everything.
    ///
    /// # Errors
    ///
    /// [`ApiError::RoleNotFound`], also for a root role that nobody added.
    pub fn role(&self, name: &str) -> Result<Vec<Permission>, ApiError> {
        let role = self.roles.get(name).ok_or(ApiError::RoleNotFound)?;
        if name == ROOT {
            return Ok(vec![root_permission()]);
        }
        Ok(role.key_permission.clone())
    }

    /// All roles' names, sorted by their bytes.
    pub fn roles(&self) -> impl ExactSizeIterator<Item = &str> {
        self.roles.keys().map(|name| &**name)
    }

    /// The first half of a login: the bcrypt text to [`super::verify`] the password by (off every
    /// lock, since that takes long), and the revision, which must not have moved when the login's
    /// entry is applied.
    ///
    /// # Errors
    ///
    /// [`ApiError::AuthNotEnabled`], [`ApiError::AuthFailed`] for an unknown user,
    /// [`ApiError::PasswordForNoPasswordUser`].
    pub fn login(&self, user: &str) -> Result<(Bytes, u64), ApiError> {
        if !self.enabled {
            return Err(ApiError::AuthNotEnabled);
        }
        let account = self.account(user).ok_or(ApiError::AuthFailed)?;
        if has_no_password(&account.record) {
            return Err(ApiError::PasswordForNoPasswordUser);
        }
        Ok((account.record.password.clone(), self.revision))
    }

    /// The second half of a login, when its entry is applied: whether the user may have a token.
    /// The password is not looked at.
    ///
    /// # Errors
    ///
    /// [`ApiError::AuthNotEnabled`], [`ApiError::AuthFailed`].
    pub fn authenticate(&self, user: &str) -> Result<(), ApiError> {
        if !self.enabled {
            return Err(ApiError::AuthNotEnabled);
        }
        match self.account(user) {
            Some(account) if !has_no_password(&account.record) => Ok(()),
            Some(_) | None => Err(ApiError::AuthFailed),
        }
    }

    /// Switches authentication on; nothing where it is on. The revision stays.
    ///
    /// # Errors
    ///
    /// [`ApiError::RootUserNotExist`], [`ApiError::RootRoleNotExist`].
    pub fn enable(&mut self, rows: &mut Vec<RowChange>) -> Result<(), ApiError> {
        if self.enabled {
            return Ok(());
        }
        let root = self.account(ROOT).ok_or(ApiError::RootUserNotExist)?;
        if !root.root {
            return Err(ApiError::RootRoleNotExist);
        }
        self.enabled = true;
        rows.push(RowChange::put(bucket::AUTH, ENABLED_KEY, [1]));
        Ok(())
    }

    /// Switches authentication off; nothing where it is off.
    pub fn disable(&mut self, rows: &mut Vec<RowChange>) {
        if !self.enabled {
            return;
        }
        self.enabled = false;
        rows.push(RowChange::put(bucket::AUTH, ENABLED_KEY, [0]));
        self.rise(rows);
    }

    /// Adds a user without roles.
    ///
    /// # Errors
    ///
    /// [`ApiError::UserEmpty`], [`ApiError::UserAlreadyExist`], and
    /// [`ApiError::PasswordForNoPasswordUser`] where the hash is not base64.
    pub fn user_add(
        &mut self,
        request: &AuthUserAddRequest,
        rows: &mut Vec<RowChange>,
    ) -> Result<(), ApiError> {
        if request.name.is_empty() {
            return Err(ApiError::UserEmpty);
        }
        if self.users.contains_key(request.name.as_str()) {
            return Err(ApiError::UserAlreadyExist);
        }
        let options = request.options.unwrap_or_default();
        let password = if options.no_password {
            Bytes::new()
        } else {
            self.select_password(&request.name, &request.password, &request.hashed_password)?
        };
        let user = User {
            name: Bytes::copy_from_slice(request.name.as_bytes()),
            password,
            roles: Vec::new(),
            options: Some(options),
        };
        self.put_user(user, rows);
        self.rise(rows);
        Ok(())
    }

    /// Deletes a user.
    ///
    /// # Errors
    ///
    /// [`ApiError::InvalidAuthMgmt`] for the root user while authentication is on,
    /// [`ApiError::UserNotFound`].
    pub fn user_delete(
        &mut self,
        request: &AuthUserDeleteRequest,
        rows: &mut Vec<RowChange>,
    ) -> Result<(), ApiError> {
        let AuthUserDeleteRequest { name } = request;
        if self.enabled && name == ROOT {
            return Err(ApiError::InvalidAuthMgmt);
        }
        if !self.users.contains_key(name.as_str()) {
            return Err(ApiError::UserNotFound);
        }
        Arc::make_mut(&mut self.users).remove(name.as_str());
        rows.push(RowChange::delete(bucket::AUTH_USERS, name.as_bytes()));
        self.rise(rows);
        Ok(())
    }

    /// Changes a user's password. One without password stays without.
    ///
    /// # Errors
    ///
    /// [`ApiError::UserNotFound`], and [`ApiError::PasswordForNoPasswordUser`] where the hash is not
    /// base64.
    pub fn user_change_password(
        &mut self,
        request: &AuthUserChangePasswordRequest,
        rows: &mut Vec<RowChange>,
    ) -> Result<(), ApiError> {
        let account = self.account(&request.name).ok_or(ApiError::UserNotFound)?;
        let mut user = account.record.clone();
        user.password = if has_no_password(&user) {
            Bytes::new()
        } else {
            self.select_password(&request.name, &request.password, &request.hashed_password)?
        };
        self.put_user(user, rows);
        self.rise(rows);
        Ok(())
    }

    /// Gives a role to a user; nothing where the user holds it.
    ///
    /// # Errors
    ///
    /// [`ApiError::UserNotFound`], [`ApiError::RoleNotFound`] (the root role need not exist).
    pub fn user_grant_role(
        &mut self,
        request: &AuthUserGrantRoleRequest,
        rows: &mut Vec<RowChange>,
    ) -> Result<(), ApiError> {
        let AuthUserGrantRoleRequest { user, role } = request;
        let account = self.account(user).ok_or(ApiError::UserNotFound)?;
        if role != ROOT && !self.roles.contains_key(role.as_str()) {
            return Err(ApiError::RoleNotFound);
        }
        let mut user = account.record.clone();
        match user.roles.binary_search(role) {
            Ok(_) => return Ok(()),
            Err(at) => user.roles.insert(at, role.clone()),
        }
        self.put_user(user, rows);
        self.rise(rows);
        Ok(())
    }

    /// Takes a role from a user.
    ///
    /// # Errors
    ///
    /// [`ApiError::InvalidAuthMgmt`] for root's root role while authentication is on,
    /// [`ApiError::UserNotFound`], [`ApiError::RoleNotGranted`].
    pub fn user_revoke_role(
        &mut self,
        request: &AuthUserRevokeRoleRequest,
        rows: &mut Vec<RowChange>,
    ) -> Result<(), ApiError> {
        let AuthUserRevokeRoleRequest { name, role } = request;
        if self.enabled && name == ROOT && role == ROOT {
            return Err(ApiError::InvalidAuthMgmt);
        }
        let account = self.account(name).ok_or(ApiError::UserNotFound)?;
        if !self.holds(name, role) {
            return Err(ApiError::RoleNotGranted);
        }
        let mut user = account.record.clone();
        user.roles.retain(|held| held != role);
        self.put_user(user, rows);
        self.rise(rows);
        Ok(())
    }

    /// Adds a role without permissions.
    ///
    /// # Errors
    ///
    /// [`ApiError::RoleEmpty`], [`ApiError::RoleAlreadyExist`].
    pub fn role_add(
        &mut self,
        request: &AuthRoleAddRequest,
        rows: &mut Vec<RowChange>,
    ) -> Result<(), ApiError> {
        let AuthRoleAddRequest { name } = request;
        if name.is_empty() {
            return Err(ApiError::RoleEmpty);
        }
        if self.roles.contains_key(name.as_str()) {
            return Err(ApiError::RoleAlreadyExist);
        }
        let role = Role {
            name: Bytes::copy_from_slice(name.as_bytes()),
            key_permission: Vec::new(),
        };
        self.put_role(name, role, rows);
        self.rise(rows);
        Ok(())
    }

    /// Deletes a role, and takes it from everybody.
    ///
    /// # Errors
    ///
    /// [`ApiError::InvalidAuthMgmt`] for the root role while authentication is on,
    /// [`ApiError::RoleNotFound`].
    pub fn role_delete(
        &mut self,
        request: &AuthRoleDeleteRequest,
        rows: &mut Vec<RowChange>,
    ) -> Result<(), ApiError> {
        let AuthRoleDeleteRequest { role } = request;
        if self.enabled && role == ROOT {
            return Err(ApiError::InvalidAuthMgmt);
        }
        if !self.roles.contains_key(role.as_str()) {
            return Err(ApiError::RoleNotFound);
        }
        Arc::make_mut(&mut self.roles).remove(role.as_str());
        rows.push(RowChange::delete(bucket::AUTH_ROLES, role.as_bytes()));
        for mut user in self.holders(role) {
            user.roles.retain(|held| held != role);
            self.put_user(user, rows);
        }
        self.rise(rows);
        Ok(())
    }

    /// Gives a permission to a role, or changes its type.
    ///
    /// The list is sorted by key. As in etcd, only the first entry with the key is looked at: an
    /// equal range behind it is not found, and is added once more.
    ///
    /// # Errors
    ///
    /// [`ApiError::PermissionNotGiven`], [`ApiError::InvalidAuthMgmt`] for an empty key or an end
    /// that is not behind the key, [`ApiError::RoleNotFound`].
    pub fn role_grant_permission(
        &mut self,
        request: &AuthRoleGrantPermissionRequest,
        rows: &mut Vec<RowChange>,
    ) -> Result<(), ApiError> {
        let AuthRoleGrantPermissionRequest { name, perm } = request;
        let given = perm.as_ref().ok_or(ApiError::PermissionNotGiven)?;
        let valid = !given.key.is_empty()
            && (given.range_end.is_empty()
                || given.range_end == [0][..]
                || given.key < given.range_end);
        if !valid {
            return Err(ApiError::InvalidAuthMgmt);
        }
        let role = self
            .roles
            .get(name.as_str())
            .ok_or(ApiError::RoleNotFound)?;
        let mut role = Role::clone(role);
        let permissions = &mut role.key_permission;
        let first = permissions.partition_point(|permission| permission.key < given.key);
        match permissions.get_mut(first) {
            Some(found) if found.key == given.key && found.range_end == given.range_end => {
                found.perm_type = given.perm_type;
            }
            Some(_) | None => {
                // The bytes may be a slice of a whole entry, which must not be kept for them.
                permissions.push(Permission {
                    perm_type: given.perm_type,
                    key: Bytes::copy_from_slice(&given.key),
                    range_end: Bytes::copy_from_slice(&given.range_end),
                });
                sort_as_go(permissions, |permission| &permission.key);
            }
        }
        self.put_role(name, role, rows);
        self.rise(rows);
        Ok(())
    }

    /// Takes a permission from a role: every entry with exactly this range.
    ///
    /// # Errors
    ///
    /// [`ApiError::RoleNotFound`], [`ApiError::PermissionNotGranted`].
    pub fn role_revoke_permission(
        &mut self,
        request: &AuthRoleRevokePermissionRequest,
        rows: &mut Vec<RowChange>,
    ) -> Result<(), ApiError> {
        let AuthRoleRevokePermissionRequest {
            role: name,
            key,
            range_end,
        } = request;
        let role = self
            .roles
            .get(name.as_str())
            .ok_or(ApiError::RoleNotFound)?;
        let mut role = Role::clone(role);
        let before = role.key_permission.len();
        role.key_permission
            .retain(|permission| permission.key != key || permission.range_end != range_end);
        if role.key_permission.len() == before {
            return Err(ApiError::PermissionNotGranted);
        }
        self.put_role(name, role, rows);
        self.rise(rows);
        Ok(())
    }

    fn rise(&mut self, rows: &mut Vec<RowChange>) {
        self.revision = self.revision.wrapping_add(1);
        rows.push(RowChange::put(
            bucket::AUTH,
            REVISION_KEY,
            self.revision.to_be_bytes(),
        ));
    }

    /// Stores a user, and what its roles come to.
    fn put_user(&mut self, user: User, rows: &mut Vec<RowChange>) {
        rows.push(RowChange::put(
            bucket::AUTH_USERS,
            &user.name[..],
            user.encode_to_vec(),
        ));
        let name = String::from_utf8_lossy(&user.name).into();
        let account = Account::new(user, &self.roles);
        Arc::make_mut(&mut self.users).insert(name, account);
    }

    /// Stores a role, and what it changes for those who hold it.
    fn put_role(&mut self, name: &str, role: Role, rows: &mut Vec<RowChange>) {
        rows.push(RowChange::put(
            bucket::AUTH_ROLES,
            name.as_bytes(),
            role.encode_to_vec(),
        ));
        Arc::make_mut(&mut self.roles).insert(name.into(), Arc::new(role));
        for user in self.holders(name) {
            let holder = String::from_utf8_lossy(&user.name).into();
            let account = Account::new(user, &self.roles);
            Arc::make_mut(&mut self.users).insert(holder, account);
        }
    }

    /// Copies of the users who hold a role, by name.
    fn holders(&self, role: &str) -> Vec<User> {
        self.users
            .values()
            .filter(|account| account.record.roles.iter().any(|held| held == role))
            .map(|account| account.record.clone())
            .collect()
    }

    /// The bcrypt text that a request brings. Only entries of etcd 3.4 and older bring the password
    /// itself.
    fn select_password(&self, name: &str, password: &str, hashed: &str) -> Result<Bytes, ApiError> {
        if !password.is_empty() && hashed.is_empty() {
            return password::hash_of_old_entry(name, password, self.revision)
                .map(Bytes::from)
                .ok_or(ApiError::PasswordForNoPasswordUser);
        }
        // Go's decoder skips line ends.
        let letters: Vec<u8> = hashed
            .bytes()
            .filter(|byte| !matches!(byte, b'\r' | b'\n'))
            .collect();
        BASE64
            .decode(letters)
            .map(Bytes::from)
            .map_err(|_| ApiError::PasswordForNoPasswordUser)
    }
}

fn has_no_password(user: &User) -> bool {
    user.options
        .is_some_and(|UserAddOptions { no_password }| no_password)
}

/// The name of a row, which must stand in its value too.
fn name(place: &'static str, key: &[u8], stored: &[u8]) -> Result<Box<str>, RowError> {
    if key != stored {
        return Err(RowError::value(place, key, "the key as name", stored));
    }
    std::str::from_utf8(key)
        .map(Into::into)
        .map_err(|error| RowError::new(place, key, "a name in UTF-8", error))
}

#[cfg(test)]
mod tests;
