//! Which releases speak with one another: the gate that each request between members passes.

use std::cmp::Ordering;

use http::HeaderMap;
use semver::Version;

/// Header: the release of whoever sends it.
pub(crate) const SERVER_VERSION: &str = "x-server-version";
/// Header: the lowest cluster version with which the sender works.
pub(crate) const MIN_CLUSTER_VERSION: &str = "x-min-cluster-version";

/// The release and the lowest cluster version of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The release of etcd that the member is as good as.
    pub server: Version,
    /// The lowest cluster version with which it works.
    pub min_cluster: Version,
}

/// Compares major and minor only.
pub(crate) fn compare(a: &Version, b: &Version) -> Ordering {
    (a.major, a.minor).cmp(&(b.major, b.minor))
}

/// The release that a header names; etcd 2.0 sent none. `None` where it cannot be read.
pub(crate) fn of_header(headers: &HeaderMap, name: &str) -> Option<Version> {
    match headers.get(name).map(|value| value.to_str()) {
        None => Some(Version::new(2, 0, 0)),
        Some(Ok("")) => Some(Version::new(2, 0, 0)),
        Some(text) => Version::parse(text.ok()?.trim_start_matches('v')).ok(),
    }
}

/// Whether the sender of `headers` may speak with a member of `local`.
///
/// # Errors
///
/// Why not, for the log.
///
/// # Source
///
/// `checkVersionCompatibility` of etcd 3.7. A version that cannot be read ends etcd's request in a
/// panic; here it is as good as incompatible.
pub(crate) fn check(local: &Versions, name: &str, headers: &HeaderMap) -> Result<(), String> {
    let of = |header| of_header(headers, header).ok_or(header);
    let (server, min_cluster) = match (of(SERVER_VERSION), of(MIN_CLUSTER_VERSION)) {
        (Ok(server), Ok(min_cluster)) => (server, min_cluster),
        (Err(header), _) | (_, Err(header)) => {
            return Err(format!(
                "the version in {header} cannot be read: remote[{name}]"
            ));
        }
    };
    let ours = &local.server;
    if compare(&server, &local.min_cluster) == Ordering::Less {
        return Err(format!(
            "remote version is too low: remote[{name}]={server}, local={ours}"
        ));
    }
    if compare(&min_cluster, ours) == Ordering::Greater {
        return Err(format!(
            "local version is too low: remote[{name}]={server}, local={ours}"
        ));
    }
    Ok(())
}

/// Whether a member of this release has streams at all: all do since 2.1.
pub(crate) fn has_streams(remote: &Version) -> bool {
    (remote.major, remote.minor) >= (2, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> Versions {
        Versions {
            server: Version::new(3, 7, 1),
            min_cluster: Version::new(3, 0, 0),
        }
    }

    fn headers(server: &str, min_cluster: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(SERVER_VERSION, server.parse().unwrap());
        headers.insert(MIN_CLUSTER_VERSION, min_cluster.parse().unwrap());
        headers
    }

    #[test]
    fn releases_back_to_three_zero_are_let_in_whatever_their_patch() {
        for version in ["3.0.0", "3.5.33", "3.6.14", "3.7.0-rc.1", "3.9.0"] {
            check(&local(), "m", &headers(version, "3.0.0")).unwrap();
        }
        check(&local(), "m", &headers("3.7.1", "3.7.9")).unwrap();
    }

    #[test]
    fn what_is_too_old_or_wants_a_newer_member_is_refused() {
        let refused = |headers| check(&local(), "m", &headers).unwrap_err();
        let text = refused(headers("2.3.0", "3.0.0"));
        assert_eq!(
            text,
            "remote version is too low: remote[m]=2.3.0, local=3.7.1"
        );
        assert!(refused(headers("3.9.0", "3.9.0")).starts_with("local version is too low"));
        assert!(refused(HeaderMap::new()).starts_with("remote version is too low"));
        assert!(refused(headers("garbage", "3.0.0")).contains("cannot be read"));
    }
}
