//! What a leader makes of the releases of all members: the cluster's version, and the end of a
//! downgrade. Pure.
//!
//! # Source
//!
//! `spec/formats.md` 2.6.

use keelson_proto::ids::MemberId;
use keelson_store::member::Membership;
use semver::Version;

use crate::Release;

/// The version of a cluster whose members do not all answer.
const UNKNOWN: Version = Version::new(3, 0, 0);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Nothing.
    Nothing,
    /// Ask again soon: some members were not asked for their release yet.
    Patience,
    /// Set the cluster's version.
    Version(Version),
    /// End the downgrade: all members are at its target.
    EndDowngrade,
}

/// Decides by the releases that all members have said, `own` that of this one.
pub(crate) fn look(
    own: (MemberId, &Version),
    membership: &Membership,
    release: &dyn Fn(MemberId) -> Release,
) -> Wanted {
    let mut all = Vec::new();
    let mut silent = false;
    for member in membership.members() {
        if member.id == own.0 {
            all.push(minor(own.1));
            continue;
        }
        match release(member.id) {
            Release::NotAsked => return Wanted::Patience,
            Release::Unreachable => silent = true,
            Release::Known(version) => all.push(minor(&version)),
        }
    }
    let lowest = all.iter().min().filter(|_| !silent);
    let downgrade = membership.downgrade();
    let target = Version::parse(&downgrade.target_version).ok();
    let target = target.filter(|_| downgrade.enabled);
    let (Some(version), Some(lowest)) = (membership.version(), lowest) else {
        return match membership.version() {
            None => Wanted::Version(lowest.cloned().unwrap_or(UNKNOWN)),
            Some(_) => Wanted::Nothing,
        };
    };
    let Some(target) = target else {
        let rises = *lowest > *version && lowest.major == version.major;
        return if rises {
            Wanted::Version(lowest.clone())
        } else {
            Wanted::Nothing
        };
    };
    if all.iter().all(|version| *version == target) {
        return Wanted::EndDowngrade;
    }
    if *version == target {
        return Wanted::Nothing;
    }
    if is_one_below(&target, version) && is_one_below(&target, lowest) {
        return Wanted::Version(target);
    }
    tracing::warn!(
        "cluster-version" = %version,
        "minimal-server-version" = %lowest,
        "target-version" = %target,
        "Cannot downgrade: cluster or members are not one minor version above the target"
    );
    Wanted::Nothing
}

/// Without the patch level.
fn minor(version: &Version) -> Version {
    Version::new(version.major, version.minor, 0)
}

fn is_one_below(target: &Version, version: &Version) -> bool {
    target.major == version.major && target.minor + 1 == version.minor
}

#[cfg(test)]
mod tests {
    use keelson_proto::rpc::membershippb::{ClusterVersionSetRequest, DowngradeInfoSetRequest};
    use keelson_store::member::{Change, Member};

    use super::*;

    fn membership(version: Option<&str>, downgrade: Option<&str>) -> Membership {
        let (mut membership, mut rows) = (Membership::default(), Vec::new());
        for id in 1..=3 {
            let member = Member {
                id: MemberId(id),
                ..Member::default()
            };
            let as_learner = false;
            membership.apply(Change::Add { member, as_learner }, &mut rows);
        }
        if let Some(ver) = version {
            let ver = ver.to_owned();
            let request = ClusterVersionSetRequest { ver };
            membership.set_version(&request, &mut rows).unwrap();
        }
        if let Some(ver) = downgrade {
            let request = DowngradeInfoSetRequest {
                enabled: true,
                ver: ver.to_owned(),
            };
            membership.set_downgrade(&request, &mut rows);
        }
        membership
    }

    /// What member 1 wants, where the others answer so.
    fn wanted(own: &str, others: [&str; 2], membership: &Membership) -> Wanted {
        let own = Version::parse(own).unwrap();
        look(
            (MemberId(1), &own),
            membership,
            &|id| match others[usize::try_from(id.0).unwrap() - 2] {
                "new" => Release::NotAsked,
                "silent" => Release::Unreachable,
                version => Release::Known(Version::parse(version).unwrap()),
            },
        )
    }

    fn version(minor: u64) -> Wanted {
        Wanted::Version(Version::new(3, minor, 0))
    }

    #[test]
    fn the_first_version_is_the_oldest_members_or_unknown() {
        let none = membership(None, None);
        assert_eq!(wanted("3.7.1", ["3.7.0", "3.7.2"], &none), version(7));
        assert_eq!(wanted("3.7.1", ["3.6.14", "3.7.2"], &none), version(6));
        assert_eq!(wanted("3.7.1", ["silent", "3.7.2"], &none), version(0));
        assert_eq!(wanted("3.7.1", ["new", "silent"], &none), Wanted::Patience);
    }

    #[test]
    fn a_version_rises_when_all_members_have_and_never_falls_by_itself() {
        let six = membership(Some("3.6.0"), None);
        assert_eq!(wanted("3.7.0", ["3.7.0", "3.7.1"], &six), version(7));
        for others in [["3.6.0", "3.7.0"], ["3.7.0", "silent"]] {
            assert_eq!(wanted("3.7.0", others, &six), Wanted::Nothing);
        }
        let seven = membership(Some("3.7.0"), None);
        let lower = wanted("3.7.0", ["3.6.0", "3.7.0"], &seven);
        assert_eq!(lower, Wanted::Nothing);
    }

    #[test]
    fn a_downgrade_lowers_the_version_once_and_ends_when_all_members_are_there() {
        let asked = membership(Some("3.7.0"), Some("3.6.0"));
        assert_eq!(wanted("3.7.0", ["3.7.0", "3.7.1"], &asked), version(6));
        let silent = wanted("3.7.0", ["3.7.0", "silent"], &asked);
        assert_eq!(silent, Wanted::Nothing);
        let lowered = membership(Some("3.6.0"), Some("3.6.0"));
        let half = wanted("3.7.0", ["3.6.14", "3.7.1"], &lowered);
        assert_eq!(half, Wanted::Nothing);
        let all = wanted("3.6.14", ["3.6.14", "3.6.13"], &lowered);
        assert_eq!(all, Wanted::EndDowngrade);
        let far = membership(Some("3.7.0"), Some("3.5.0"));
        assert_eq!(wanted("3.7.0", ["3.7.0", "3.7.1"], &far), Wanted::Nothing);
    }
}
