//! The lines that tell which versions cluster and file have come to.

use semver::Version;

use crate::links::Links;

/// The versions of the cluster and of the file's schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Versions {
    cluster: Option<Version>,
    storage: Option<Version>,
}

fn short(version: &Version) -> String {
    format!("{}.{}", version.major, version.minor)
}

/// Tells how the versions differ from those `before`; at a start there are none.
pub(crate) fn tell(links: &Links, before: Option<Versions>) -> Option<Versions> {
    let now = Versions {
        cluster: links.shared.members().version().cloned(),
        storage: links.shared.storage_version(),
    };
    let identity = &links.identity;
    let is_start = before.is_none();
    let (cluster_before, storage_before) = before
        .map(|before| (before.cluster, before.storage))
        .unwrap_or_default();
    if let Some(version) = now.cluster.as_ref()
        && cluster_before.as_ref() != Some(version)
    {
        match cluster_before {
            None if is_start => tracing::info!(
                "cluster-version" = short(version),
                "set cluster version from store"
            ),
            None => tracing::info!(
                "cluster-id" = %identity.cluster,
                "local-member-id" = %identity.member,
                "cluster-version" = short(version),
                "set initial cluster version"
            ),
            Some(from) => tracing::info!(
                "cluster-id" = %identity.cluster,
                "local-member-id" = %identity.member,
                from = short(&from),
                to = short(version),
                "updated cluster version"
            ),
        }
        tracing::info!(
            "cluster-version" = short(version),
            "enabled capabilities for version"
        );
        if !is_start {
            tracing::info!(
                "cluster-version" = short(version),
                "cluster version is updated"
            );
        }
    }
    if let Some(version) = now.storage.as_ref()
        && !is_start
        && storage_before.as_ref() != Some(version)
    {
        tracing::info!(
            "new-storage-version" = %version,
            "updated storage version"
        );
    }
    Some(now)
}
