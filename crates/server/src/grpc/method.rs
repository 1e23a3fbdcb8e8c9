//! The methods that are served: their names on the wire, and what kind of call each is.

use keelson_proto::Code;

use super::status::Status;

/// What a call sends and gets, in the words of the metrics' label `grpc_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Unary,
    ServerStream,
    BidiStream,
}

impl Kind {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Kind::Unary => "unary",
            Kind::ServerStream => "server_stream",
            Kind::BidiStream => "bidi_stream",
        }
    }

    pub(crate) fn is_unary(self) -> bool {
        self == Kind::Unary
    }
}

macro_rules! methods {
    ($($service:literal { $($variant:ident = $name:literal $kind:ident,)* })*) => {
        /// A method.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Method { $($($variant,)*)* }

        impl Method {
            /// Every method, in the order of their numbers.
            pub(crate) const ALL: &'static [Method] = &[$($(Method::$variant,)*)*];

            pub(crate) fn service(self) -> &'static str {
                match self { $($(Method::$variant => $service,)*)* }
            }

            pub(crate) fn name(self) -> &'static str {
                match self { $($(Method::$variant => $name,)*)* }
            }

            pub(crate) fn kind(self) -> Kind {
                match self { $($(Method::$variant => Kind::$kind,)*)* }
            }

            fn by_path(path: &str) -> Option<Method> {
                match path {
                    $($(concat!("/", $service, "/", $name) => Some(Method::$variant),)*)*
                    _ => None,
                }
            }

            fn is_service(name: &str) -> bool {
                matches!(name, $($service)|*)
            }
        }
    };
}

methods! {
    "etcdserverpb.KV" {
        Range = "Range" Unary,
        RangeStream = "RangeStream" ServerStream,
        Put = "Put" Unary,
        DeleteRange = "DeleteRange" Unary,
        Txn = "Txn" Unary,
        Compact = "Compact" Unary,
    }
    "etcdserverpb.Watch" {
        Watch = "Watch" BidiStream,
    }
    "etcdserverpb.Lease" {
        LeaseGrant = "LeaseGrant" Unary,
        LeaseRevoke = "LeaseRevoke" Unary,
        LeaseKeepAlive = "LeaseKeepAlive" BidiStream,
        LeaseTimeToLive = "LeaseTimeToLive" Unary,
        LeaseLeases = "LeaseLeases" Unary,
    }
    "etcdserverpb.Cluster" {
        MemberAdd = "MemberAdd" Unary,
        MemberRemove = "MemberRemove" Unary,
        MemberUpdate = "MemberUpdate" Unary,
        MemberList = "MemberList" Unary,
        MemberPromote = "MemberPromote" Unary,
    }
    "etcdserverpb.Auth" {
        AuthEnable = "AuthEnable" Unary,
        AuthDisable = "AuthDisable" Unary,
        AuthStatus = "AuthStatus" Unary,
        Authenticate = "Authenticate" Unary,
        UserAdd = "UserAdd" Unary,
        UserGet = "UserGet" Unary,
        UserList = "UserList" Unary,
        UserDelete = "UserDelete" Unary,
        UserChangePassword = "UserChangePassword" Unary,
        UserGrantRole = "UserGrantRole" Unary,
        UserRevokeRole = "UserRevokeRole" Unary,
        RoleAdd = "RoleAdd" Unary,
        RoleGet = "RoleGet" Unary,
        RoleList = "RoleList" Unary,
        RoleDelete = "RoleDelete" Unary,
        RoleGrantPermission = "RoleGrantPermission" Unary,
        RoleRevokePermission = "RoleRevokePermission" Unary,
    }
    "grpc.health.v1.Health" {
        HealthCheck = "Check" Unary,
        HealthList = "List" Unary,
        HealthWatch = "Watch" ServerStream,
    }
    "etcdserverpb.Maintenance" {
        Alarm = "Alarm" Unary,
        Status = "Status" Unary,
        Defragment = "Defragment" Unary,
        Hash = "Hash" Unary,
        HashKv = "HashKV" Unary,
        Snapshot = "Snapshot" ServerStream,
        MoveLeader = "MoveLeader" Unary,
        Downgrade = "Downgrade" Unary,
    }
    "v3electionpb.Election" {
        Campaign = "Campaign" Unary,
        Proclaim = "Proclaim" Unary,
        Leader = "Leader" Unary,
        Observe = "Observe" ServerStream,
        Resign = "Resign" Unary,
    }
    "v3lockpb.Lock" {
        Lock = "Lock" Unary,
        Unlock = "Unlock" Unary,
    }
}

impl Method {
    /// The method that a path names.
    ///
    /// # Errors
    ///
    /// `Unimplemented`, in the words of Go's gRPC (api.md 1).
    pub(crate) fn find(path: &str) -> Result<Method, Status> {
        if let Some(method) = Method::by_path(path) {
            return Ok(method);
        }
        let unimplemented = |text: String| Err(Status::new(Code::Unimplemented, text));
        let trimmed = path.strip_prefix('/').unwrap_or(path);
        match trimmed.rsplit_once('/') {
            None => unimplemented(format!("malformed method name: {path:?}")),
            Some((service, method)) if Method::is_service(service) => {
                unimplemented(format!("unknown method {method} for service {service}"))
            }
            Some((service, _)) => unimplemented(format!("unknown service {service}")),
        }
    }

    /// The number of the method: its place in [`Method::ALL`].
    pub(crate) fn number(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_by_its_path_and_has_its_number() {
        for (number, method) in Method::ALL.iter().enumerate() {
            let path = format!("/{}/{}", method.service(), method.name());
            assert_eq!(Method::find(&path), Ok(*method));
            assert_eq!(method.number(), number);
        }
        assert_eq!(Method::ALL.len(), 52);
    }

    #[test]
    fn unknown_names_are_answered_in_gos_words() {
        let text = |path: &str| Method::find(path).unwrap_err().text.into_owned();
        assert_eq!(
            text("/etcdserverpb.KV/NoSuch"),
            "unknown method NoSuch for service etcdserverpb.KV"
        );
        assert_eq!(
            text("/etcdserverpb.NoSuch/Range"),
            "unknown service etcdserverpb.NoSuch"
        );
        assert_eq!(text("/garbage"), "malformed method name: \"/garbage\"");
    }
}
