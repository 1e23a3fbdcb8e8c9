//! Users, roles and the one check, against what a real etcd stored and answered.
//!
//! `KEELSON_DATA` names the folder of recorded data.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use keelson_proto::ApiError;
use keelson_proto::ids::LeaseId;
use keelson_proto::rpc::authpb::{Permission, UserAddOptions};
use keelson_proto::rpc::etcdserverpb::*;
use keelson_store::auth::{
    Access, AuthState, Need, Who, before_proposal, need, need_of_txn, permit, propose_hash, verify,
};
use keelson_store::lease::Table;
use keelson_store::row::RowChange;
use prost::Message;
use serde_json::Value;

fn data(path: &str) -> String {
    let folder = PathBuf::from(std::env::var_os("KEELSON_DATA").expect("KEELSON_DATA is set"));
    std::fs::read_to_string(folder.join(path)).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn hex(value: &Value, field: &str) -> Vec<u8> {
    unhex(value[field].as_str().unwrap())
}

/// Buckets as maps.
type Rows = BTreeMap<(String, Vec<u8>), Vec<u8>>;

/// What applies entries: the auth state, leases, and the rows that they wrote.
#[derive(Default)]
struct Store {
    auth: AuthState,
    leases: Table,
    rows: Rows,
}

impl Store {
    fn new() -> Store {
        let mut store = Store::default();
        let mut rows = Vec::new();
        store.auth = AuthState::restore([], [], [], &mut rows).unwrap();
        store.leases = Table::restore(2, []).unwrap();
        store.write(rows);
        store
    }

    fn write(&mut self, changes: Vec<RowChange>) {
        for RowChange { bucket, key, value } in changes {
            let place = (bucket.to_owned(), key);
            match value {
                Some(value) => self.rows.insert(place, value),
                None => self.rows.remove(&place),
            };
        }
    }

    fn apply(&mut self, request: &InternalRaftRequest, who: &Who<'_>) -> Result<(), ApiError> {
        permit(&self.auth, who, &need(request, &self.leases))?;
        let mut rows = Vec::new();
        let (auth, leases) = (&mut self.auth, &mut self.leases);
        let result = if let Some(put) = &request.put {
            leases.attach(&put.key, LeaseId(put.lease))
        } else if let Some(delete) = &request.delete_range {
            leases.detach(&delete.key);
            Ok(())
        } else if let Some(grant) = &request.lease_grant {
            leases
                .grant(LeaseId(grant.id), grant.ttl, &mut rows)
                .map(|_| ())
        } else if let Some(revoke) = &request.lease_revoke {
            leases.revoke(LeaseId(revoke.id), &mut rows).map(|_| ())
        } else if request.auth_enable.is_some() {
            auth.enable(&mut rows)
        } else if request.auth_disable.is_some() {
            auth.disable(&mut rows);
            Ok(())
        } else if let Some(authenticate) = &request.authenticate {
            auth.authenticate(&authenticate.name)
        } else if let Some(request) = &request.auth_user_add {
            auth.user_add(request, &mut rows)
        } else if let Some(request) = &request.auth_user_delete {
            auth.user_delete(request, &mut rows)
        } else if let Some(request) = &request.auth_user_change_password {
            auth.user_change_password(request, &mut rows)
        } else if let Some(request) = &request.auth_user_grant_role {
            auth.user_grant_role(request, &mut rows)
        } else if let Some(request) = &request.auth_user_revoke_role {
            auth.user_revoke_role(request, &mut rows)
        } else if let Some(request) = &request.auth_role_add {
            auth.role_add(request, &mut rows)
        } else if let Some(request) = &request.auth_role_delete {
            auth.role_delete(request, &mut rows)
        } else if let Some(request) = &request.auth_role_grant_permission {
            auth.role_grant_permission(request, &mut rows)
        } else if let Some(request) = &request.auth_role_revoke_permission {
            auth.role_revoke_permission(request, &mut rows)
        } else if let Some(request) = &request.auth_user_get {
            auth.user(&request.name).map(|_| ())
        } else if let Some(request) = &request.auth_role_get {
            auth.role(&request.role).map(|_| ())
        } else {
            Ok(())
        };
        self.write(rows);
        result
    }
}

/// An entry's request from its JSON; the kinds that change what is looked at here.
fn request_of(json: &Value) -> InternalRaftRequest {
    fn text(value: &Value, field: &str) -> String {
        value[field].as_str().unwrap_or_default().to_owned()
    }
    fn bytes(value: &Value, field: &str) -> Bytes {
        STANDARD.decode(text(value, field)).unwrap().into()
    }
    fn number(value: &Value, field: &str) -> i64 {
        text(value, field).parse().unwrap_or_default()
    }
    let get = |field: &str| json.get(field);
    let options = |value: &Value| {
        value.get("options").map(|options| UserAddOptions {
            no_password: options["no_password"] == true,
        })
    };
    let permission = |value: &Value| Permission {
        perm_type: match value["permType"].as_str() {
            Some("WRITE") => 1,
            Some("READWRITE") => 2,
            _ => 0,
        },
        key: bytes(value, "key"),
        range_end: bytes(value, "range_end"),
    };
    InternalRaftRequest {
        put: get("put").map(|json| PutRequest {
            key: bytes(json, "key"),
            lease: number(json, "lease"),
            ..PutRequest::default()
        }),
        lease_grant: get("lease_grant").map(|json| LeaseGrantRequest {
            ttl: number(json, "TTL"),
            id: number(json, "ID"),
        }),
        auth_enable: get("auth_enable").map(|_| AuthEnableRequest {}),
        auth_user_add: get("auth_user_add").map(|json| AuthUserAddRequest {
            name: text(json, "name"),
            password: text(json, "password"),
            options: options(json),
            hashed_password: text(json, "hashedPassword"),
        }),
        auth_user_delete: get("auth_user_delete").map(|json| AuthUserDeleteRequest {
            name: text(json, "name"),
        }),
        auth_user_change_password: get("auth_user_change_password").map(|json| {
            AuthUserChangePasswordRequest {
                name: text(json, "name"),
                password: text(json, "password"),
                hashed_password: text(json, "hashedPassword"),
            }
        }),
        auth_user_grant_role: get("auth_user_grant_role").map(|json| AuthUserGrantRoleRequest {
            user: text(json, "user"),
            role: text(json, "role"),
        }),
        auth_user_revoke_role: get("auth_user_revoke_role").map(|json| AuthUserRevokeRoleRequest {
            name: text(json, "name"),
            role: text(json, "role"),
        }),
        auth_role_add: get("auth_role_add").map(|json| AuthRoleAddRequest {
            name: text(json, "name"),
        }),
        auth_role_delete: get("auth_role_delete").map(|json| AuthRoleDeleteRequest {
            role: text(json, "role"),
        }),
        auth_role_grant_permission: get("auth_role_grant_permission").map(|json| {
            AuthRoleGrantPermissionRequest {
                name: text(json, "name"),
                perm: json.get("perm").map(permission),
            }
        }),
        auth_role_revoke_permission: get("auth_role_revoke_permission").map(|json| {
            AuthRoleRevokePermissionRequest {
                role: text(json, "role"),
                key: bytes(json, "key"),
                range_end: bytes(json, "range_end"),
            }
        }),
        ..InternalRaftRequest::default()
    }
}

/// The store after all entries of a recorded log.
fn replayed(folder: &str) -> Store {
    let wal: Value = serde_json::from_str(&data(&format!("{folder}/wal.json"))).unwrap();
    let mut store = Store::new();
    let mut count = 0;
    for file in wal["files"].as_array().unwrap() {
        for record in file["records"].as_array().unwrap() {
            let Some(json) = record.get("request") else {
                continue;
            };
            let header = &json["header"];
            let who = Who {
                user: header["username"].as_str().unwrap_or_default(),
                auth_revision: header["auth_revision"]
                    .as_str()
                    .map_or(0, |revision| revision.parse().unwrap()),
            };
            // Refusals are part of the log: their calls were answered with an error.
            count += usize::from(store.apply(&request_of(json), &who).is_ok());
        }
    }
    assert!(count > 50, "the log was read");
    store
}

#[test]
fn the_recorded_log_gives_the_recorded_rows() {
    for version in ["3.5", "3.6", "3.7"] {
        let folder = format!("etcd/{version}/auth");
        let store = replayed(&folder);
        let buckets: Value =
            serde_json::from_str(&data(&format!("{folder}/buckets.json"))).unwrap();
        let mut recorded = Rows::new();
        for bucket in ["auth", "authRoles", "authUsers", "lease"] {
            for row in buckets[bucket].as_array().unwrap() {
                let place = (bucket.to_owned(), hex(row, "key_hex"));
                recorded.insert(place, hex(row, "value_hex"));
            }
        }
        assert_eq!(store.rows, recorded, "{version}");
    }
}

fn answer(result: Result<(), ApiError>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("{}: {}", error.code().go_name(), error.text()),
    }
}

#[test]
fn the_recorded_permissions_are_given() {
    let folder = "etcd/3.7/auth";
    let store = replayed(folder);
    let expected: Value = serde_json::from_str(&data(&format!("{folder}/expected.json"))).unwrap();
    let (mut ranges, mut logins) = (0, 0);
    for line in expected["permissions"].as_array().unwrap() {
        if let Some(login) = line.get("authenticate") {
            let [name, password] = [0, 1].map(|at| login[at].as_str().unwrap());
            let result = match store.auth.login(name) {
                Ok((hashed, _)) if verify(password, &hashed) => Ok(()),
                Ok(_) => Err(ApiError::AuthFailed),
                Err(error) => Err(error),
            };
            let code = line["code"].as_str().unwrap();
            let message = line["message"].as_str().unwrap();
            assert_eq!(answer(result), format!("{code}: {message}"), "{line}");
            logins += 1;
            continue;
        }
        let who = match line["user"].as_str().unwrap() {
            "" => Who::NOBODY,
            user => Who {
                user,
                auth_revision: store.auth.revision(),
            },
        };
        let (key, range_end) = (hex(line, "key"), hex(line, "range_end"));
        let read = permit(&store.auth, &who, &Need::read(&key, &range_end));
        assert_eq!(line["range"], answer(read), "{line}");
        let delete = DeleteRangeRequest {
            key: key.into(),
            range_end: range_end.into(),
            prev_kv: false,
        };
        let txn = TxnRequest {
            success: vec![RequestOp {
                request: Some(request_op::Request::RequestDeleteRange(delete)),
            }],
            ..TxnRequest::default()
        };
        let delete = permit(&store.auth, &who, &need_of_txn(&txn, &store.leases));
        assert_eq!(line["delete_in_txn"], answer(delete), "{line}");
        ranges += 1;
    }
    assert!(ranges >= 60 && logins >= 6);
    for (name, password) in [
        ("root", "rootpw"),
        ("alice", "alicepw"),
        ("carol", "carol2"),
    ] {
        let (hashed, revision) = store.auth.login(name).unwrap();
        assert!(verify(password, &hashed));
        assert_eq!(revision, 34);
    }
}

/// A server with simple tokens, as far as it takes to answer errors.
struct Server {
    store: Store,
    tokens: BTreeMap<String, String>,
}

impl Server {
    fn call(
        &mut self,
        rpc: &str,
        body: &[u8],
        token: Option<&str>,
        response: &[u8],
    ) -> Result<(), ApiError> {
        let user = match token {
            Some(token) if self.store.auth.enabled() => {
                let user = self.tokens.get(token);
                Some(user.ok_or(ApiError::InvalidAuthToken)?.clone())
            }
            Some(_) | None => None,
        };
        let who = match &user {
            Some(user) => Who {
                user,
                auth_revision: self.store.auth.revision(),
            },
            None => Who::NOBODY,
        };
        match rpc {
            "Auth/Authenticate" => self.authenticate(body, response),
            "KV/Range" => {
                let RangeRequest { key, range_end, .. } = message(body);
                permit(&self.store.auth, &who, &Need::read(&key, &range_end))
            }
            "KV/Txn" => {
                let txn: TxnRequest = message(body);
                permit(
                    &self.store.auth,
                    &who,
                    &need_of_txn(&txn, &self.store.leases),
                )
            }
            "Lease/LeaseTimeToLive" => {
                let LeaseTimeToLiveRequest { id, keys } = message(body);
                let need = if keys {
                    Need::lease(&self.store.leases, LeaseId(id), Access::Read)
                } else {
                    Need::Authenticated
                };
                permit(&self.store.auth, &who, &need)
            }
            "Lease/LeaseLeases" => {
                let keys = self.store.leases.iter().map(|(_, lease)| lease.keys());
                let need = Need::every_lease(keys, Access::Read);
                permit(&self.store.auth, &who, &need)
            }
            "Cluster/MemberList" | "Maintenance/Status" => {
                permit(&self.store.auth, &who, &Need::Authenticated)
            }
            "Cluster/MemberAdd"
            | "Maintenance/Hash"
            | "Maintenance/HashKV"
            | "Maintenance/Defragment" => permit(&self.store.auth, &who, &Need::Admin),
            _ => {
                let request = self.proposal(rpc, body)?;
                permit(&self.store.auth, &who, &before_proposal(&request))?;
                self.store.apply(&request, &who)?;
                self.drop_tokens(&request);
                self.compare(rpc, body, response);
                Ok(())
            }
        }
    }

    fn authenticate(&mut self, body: &[u8], response: &[u8]) -> Result<(), ApiError> {
        let AuthenticateRequest { name, password } = message(body);
        let (hashed, _) = self.store.auth.login(&name)?;
        if !verify(&password, &hashed) {
            return Err(ApiError::AuthFailed);
        }
        self.store.auth.authenticate(&name)?;
        let AuthenticateResponse { token, .. } = message(response);
        self.tokens.insert(token, name);
        Ok(())
    }

    /// What the server makes of a call: passwords are hashed.
    fn proposal(&self, rpc: &str, body: &[u8]) -> Result<InternalRaftRequest, ApiError> {
        const COST: u32 = 4;
        let mut entry = InternalRaftRequest::default();
        match rpc {
            "KV/Put" => entry.put = Some(message(body)),
            "KV/DeleteRange" => entry.delete_range = Some(message(body)),
            "KV/Compact" => entry.compaction = Some(message(body)),
            "Lease/LeaseGrant" => entry.lease_grant = Some(message(body)),
            "Lease/LeaseRevoke" => entry.lease_revoke = Some(message(body)),
            "Maintenance/Alarm" => entry.alarm = Some(message(body)),
            "Auth/AuthEnable" => entry.auth_enable = Some(message(body)),
            "Auth/AuthDisable" => entry.auth_disable = Some(message(body)),
            "Auth/AuthStatus" => entry.auth_status = Some(message(body)),
            "Auth/UserAdd" => {
                let mut request: AuthUserAddRequest = message(body);
                if !request.options.unwrap_or_default().no_password {
                    request.hashed_password = propose_hash(&request.password, COST)?;
                }
                request.password.clear();
                entry.auth_user_add = Some(request);
            }
            "Auth/UserChangePassword" => {
                let mut request: AuthUserChangePasswordRequest = message(body);
                if !request.password.is_empty() {
                    request.hashed_password = propose_hash(&request.password, COST)?;
                    request.password.clear();
                }
                entry.auth_user_change_password = Some(request);
            }
            "Auth/UserGet" => entry.auth_user_get = Some(message(body)),
            "Auth/UserList" => entry.auth_user_list = Some(message(body)),
            "Auth/UserDelete" => entry.auth_user_delete = Some(message(body)),
            "Auth/UserGrantRole" => entry.auth_user_grant_role = Some(message(body)),
            "Auth/UserRevokeRole" => entry.auth_user_revoke_role = Some(message(body)),
            "Auth/RoleAdd" => entry.auth_role_add = Some(message(body)),
            "Auth/RoleGet" => entry.auth_role_get = Some(message(body)),
            "Auth/RoleList" => entry.auth_role_list = Some(message(body)),
            "Auth/RoleDelete" => entry.auth_role_delete = Some(message(body)),
            "Auth/RoleGrantPermission" => entry.auth_role_grant_permission = Some(message(body)),
            "Auth/RoleRevokePermission" => entry.auth_role_revoke_permission = Some(message(body)),
            other => unreachable!("the recording has no {other}"),
        }
        Ok(entry)
    }

    fn drop_tokens(&mut self, entry: &InternalRaftRequest) {
        let mut drop = |name: &str| self.tokens.retain(|_, user| user != name);
        if let Some(request) = &entry.auth_user_delete {
            drop(&request.name);
        }
        if let Some(request) = &entry.auth_user_change_password {
            drop(&request.name);
        }
    }

    /// What reading calls answer.
    fn compare(&self, rpc: &str, body: &[u8], response: &[u8]) {
        let auth = &self.store.auth;
        match rpc {
            "Auth/AuthStatus" => {
                let answer: AuthStatusResponse = message(response);
                let state = (auth.enabled(), auth.revision());
                assert_eq!(state, (answer.enabled, answer.auth_revision));
            }
            "Auth/UserGet" => {
                let AuthUserGetRequest { name } = message(body);
                let answer: AuthUserGetResponse = message(response);
                assert_eq!(auth.user(&name).unwrap(), answer.roles);
            }
            "Auth/UserList" => {
                let answer: AuthUserListResponse = message(response);
                assert_eq!(auth.users().collect::<Vec<_>>(), answer.users);
            }
            "Auth/RoleGet" => {
                let AuthRoleGetRequest { role } = message(body);
                let answer: AuthRoleGetResponse = message(response);
                assert_eq!(auth.role(&role).unwrap(), answer.perm);
            }
            "Auth/RoleList" => {
                let answer: AuthRoleListResponse = message(response);
                assert_eq!(auth.roles().collect::<Vec<_>>(), answer.roles);
            }
            _ => {}
        }
    }
}

fn message<M: Message + Default>(body: &[u8]) -> M {
    M::decode(body).unwrap()
}

#[test]
fn the_recorded_calls_are_permitted_and_refused_alike() {
    let mut server = Server {
        store: Store::new(),
        tokens: BTreeMap::new(),
    };
    let mut calls = 0;
    for line in data("wire/auth.jsonl").lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let Some(body) = line["request_hex"]
            .as_str()
            .filter(|_| line.get("stream").is_none())
        else {
            continue;
        };
        let rpc = line["rpc"].as_str().unwrap();
        let rpc = rpc.trim_start_matches("/etcdserverpb.");
        let token = line["metadata"]["token"][0].as_str();
        let response = unhex(line["response_hex"].as_str().unwrap_or_default());
        let result = server.call(rpc, &unhex(body), token, &response);
        let recorded = match line.get("error") {
            Some(error) => format!(
                "{}: {}",
                error["name"].as_str().unwrap(),
                error["message"].as_str().unwrap()
            ),
            None => "ok".to_owned(),
        };
        assert_eq!(answer(result), recorded, "{line}");
        calls += 1;
    }
    assert!(calls > 140, "{calls}");
}
