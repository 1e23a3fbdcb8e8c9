//! What a member that is new asks of others before it begins.
//!
//! # Source
//!
//! `spec/formats.md` 7.9.

use std::time::Duration;

use keelson_node::Beginning;
use keelson_proto::ids::{ClusterId, MemberId};
use keelson_store::member::member_id;
use keelson_transport::{MemberInfo, MembersAnswer, PeerClient};
use semver::Version;
use tokio::time::sleep;

use crate::Error;
use crate::addresses::Addresses;
use crate::config::{Bootstrap, ClusterState};
use crate::url::Url;

/// How long one URL may take when a cluster is joined.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);
/// The same when a new cluster is begun, and nobody need be there.
const NEW_PATIENCE: Duration = Duration::from_secs(1);
/// How often the members are asked for, should none answer yet.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(500);
/// The oldest cluster that can be joined.
const MIN_CLUSTER: Version = Version::new(3, 0, 0);

/// What was found out.
pub(crate) struct Found {
    pub(crate) beginning: Beginning,
    /// The others of a cluster that is joined, with their peer URLs.
    pub(crate) others: Vec<(MemberId, Vec<String>)>,
}

/// How a member without a log begins.
///
/// # Errors
///
/// [`Error::Join`].
pub(crate) async fn beginning(
    client: &PeerClient,
    born: &Bootstrap,
    own_version: &Version,
    learners_max: usize,
) -> Result<Found, Error> {
    let others = || born.members.iter().filter(|(name, _)| *name != born.name);
    let mut urls: Vec<&Url> = others().flat_map(|(_, urls)| urls).collect();
    urls.sort();
    match born.state {
        ClusterState::New => {
            check_not_begun(client, born, &urls).await?;
            Ok(Found {
                beginning: Beginning::New,
                others: Vec::new(),
            })
        }
        ClusterState::Existing => {
            let listed = ask_for_members(client, &urls).await?;
            let (cluster, member) =
                matched(born, &listed, learners_max, &mut Addresses::of_system())?;
            check_versions(client, &urls, own_version).await?;
            let others = listed.members.into_iter();
            let others = others.map(|it| (MemberId(it.id), it.peer_urls));
            Ok(Found {
                beginning: Beginning::Join { cluster, member },
                others: others.filter(|(id, _)| *id != member).collect(),
            })
        }
    }
}

/// A member that the others know as started must not begin anew: it would vote twice.
async fn check_not_begun(
    client: &PeerClient,
    born: &Bootstrap,
    others: &[&Url],
) -> Result<(), Error> {
    let own_urls: Vec<String> = born.peer_urls().iter().map(Url::to_string).collect();
    let own = member_id(&own_urls, &born.token, None);
    // All at once: whoever starts at the same time does not answer yet.
    let asked = others
        .iter()
        .map(|url| client.members(url.as_str(), NEW_PATIENCE));
    for listed in futures_util::future::join_all(asked).await.iter().flatten() {
        let mut members = listed.members.iter();
        if members.any(|member| member.id == own.0 && !member.client_urls.is_empty()) {
            let text = format!("member {own} has already been bootstrapped");
            return Err(Error::Join(text));
        }
    }
    Ok(())
}

async fn ask_for_members(client: &PeerClient, urls: &[&Url]) -> Result<MembersAnswer, Error> {
    let mut last = String::from("there is no other member in --initial-cluster");
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(PAUSE).await;
        }
        for url in urls {
            match client.members(url.as_str(), JOIN_PATIENCE).await {
                Ok(listed) => return Ok(listed),
                Err(error) => {
                    tracing::warn!(address = %url, %error, "failed to get cluster response");
                    last = error.to_string();
                }
            }
        }
    }
    Err(Error::Join(format!(
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from the \
         given URLs ({last})"
    )))
}

/// Finds each of their members among ours by its URLs, and so our own id. Where texts differ, the
/// resolver is asked whether they name the same addresses.
fn matched(
    born: &Bootstrap,
    listed: &MembersAnswer,
    learners_max: usize,
    addresses: &mut Addresses,
) -> Result<(ClusterId, MemberId), Error> {
    let refuse = |why: String| Err(Error::Join(format!("error validating peerURLs: {why}")));
    if born.members.len() != listed.members.len() {
        return refuse(format!(
            "member count is unequal ({} in --initial-cluster, {} in the cluster)",
            born.members.len(),
            listed.members.len()
        ));
    }
    let mut own = None;
    for member in &listed.members {
        let Some(name) = find(born, member, addresses) else {
            return refuse(format!(
                "PeerURLs: no match found for existing member ({}, {:?})",
                MemberId(member.id),
                member.peer_urls
            ));
        };
        if name == born.name {
            own = Some(MemberId(member.id));
        }
    }
    let learners = listed.members.iter().filter(|it| it.is_learner).count();
    if learners > learners_max {
        return Err(Error::Join(
            "membership: too many learner members in cluster".to_owned(),
        ));
    }
    match own {
        Some(own) => Ok((listed.cluster, own)),
        None => refuse(format!("couldn't find local name {:?}", born.name)),
    }
}

/// The name in `--initial-cluster` of a member of the cluster.
fn find<'a>(
    born: &'a Bootstrap,
    member: &MemberInfo,
    addresses: &mut Addresses,
) -> Option<&'a str> {
    let theirs: Result<Vec<Url>, _> = member.peer_urls.iter().map(|it| Url::parse(it)).collect();
    let theirs = theirs.ok()?;
    // The same texts first: that asks nobody.
    let named = |urls: &[Url]| {
        let sorted = |urls: &[Url]| {
            let mut urls = urls.to_vec();
            urls.sort();
            urls
        };
        sorted(urls) == sorted(&theirs)
    };
    let by_text = born.members.iter().find(|(_, urls)| named(urls));
    let found = by_text.or_else(|| {
        let mut members = born.members.iter();
        members.find(|(_, urls)| addresses.are_same(urls, &theirs))
    });
    found.map(|(name, _)| name.as_str())
}

/// The cluster must be of a release that this member can serve.
async fn check_versions(client: &PeerClient, urls: &[&Url], own: &Version) -> Result<(), Error> {
    let downgrading = is_downgrading(client, urls).await;
    let mut answered = false;
    for url in urls {
        let Ok(answer) = client.version(url.as_str(), JOIN_PATIENCE).await else {
            continue;
        };
        // A cluster that has not decided yet is no reason to stay away.
        answered = true;
        let Ok(version) = Version::parse(&answer.etcdcluster) else {
            continue;
        };
        if !fits(&version, own, downgrading) {
            return Err(Error::Join(format!(
                "incompatible with current running cluster (it is at {version}, this member at {own})"
            )));
        }
    }
    if answered {
        Ok(())
    } else {
        Err(Error::Join("no member says its version".to_owned()))
    }
}

/// Whether the cluster is on its way to an older release, as the first says that answers.
async fn is_downgrading(client: &PeerClient, urls: &[&Url]) -> bool {
    for url in urls {
        match client.downgrade_enabled(url.as_str(), JOIN_PATIENCE).await {
            Ok(enabled) => return enabled,
            Err(error) => {
                tracing::warn!(address = %url, %error, "failed to get downgrade enabled status");
            }
        }
    }
    false
}

/// Whether a member may join a cluster of a version: of its own or an older one, but one minor above if
/// the cluster is taken down to this member's release.
fn fits(cluster: &Version, own: &Version, downgrading: bool) -> bool {
    if downgrading {
        return (cluster.major, cluster.minor) == (own.major, own.minor + 1);
    }
    (cluster.major, cluster.minor) <= (own.major, own.minor) && *cluster >= MIN_CLUSTER
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Knows `alias` as another name of `h`.
    fn addresses() -> Addresses {
        Addresses::of(|host| {
            let address = host.replace("alias", "10.0.0.1").replace('h', "10.0.0.1");
            address.parse().map_err(io::Error::other)
        })
    }

    fn born(members: &[(&str, &str)]) -> Bootstrap {
        Bootstrap {
            name: "new".to_owned(),
            members: members
                .iter()
                .map(|(name, url)| ((*name).to_owned(), vec![Url::parse(url).unwrap()]))
                .collect(),
            state: ClusterState::Existing,
            token: String::new(),
        }
    }

    fn listed(members: &[(u64, &str, bool)]) -> MembersAnswer {
        MembersAnswer {
            cluster: ClusterId(9),
            members: members
                .iter()
                .map(|(id, url, is_learner)| MemberInfo {
                    id: *id,
                    is_learner: *is_learner,
                    peer_urls: vec![(*url).to_owned()],
                    ..MemberInfo::default()
                })
                .collect(),
        }
    }

    #[test]
    fn a_member_finds_its_id_by_its_urls() {
        let born = born(&[("a", "http://h:1"), ("new", "http://h:2")]);
        let found = matched(
            &born,
            &listed(&[(7, "http://h:2", true), (8, "http://h:1", false)]),
            1,
            &mut addresses(),
        );
        assert_eq!(found.unwrap(), (ClusterId(9), MemberId(7)));
    }

    #[test]
    fn members_that_are_listed_by_other_names_are_found_by_their_addresses() {
        let born = born(&[("a", "http://alias:1"), ("new", "http://10.0.0.1:2")]);
        let theirs = listed(&[(7, "http://h:2", true), (8, "http://h:1", false)]);
        let found = matched(&born, &theirs, 1, &mut addresses());
        assert_eq!(found.unwrap(), (ClusterId(9), MemberId(7)));
    }

    #[test]
    fn a_cluster_is_joined_at_the_own_version_or_below_and_above_only_on_its_way_down() {
        let fits = |cluster, downgrading| {
            let own = Version::new(3, 7, 0);
            super::fits(&Version::parse(cluster).unwrap(), &own, downgrading)
        };
        for (cluster, normally, downgrading) in [
            ("2.3.0", false, false),
            ("3.0.0", true, false),
            ("3.6.0", true, false),
            ("3.7.0", true, false),
            ("3.8.0", false, true),
            ("3.9.0", false, false),
            ("4.8.0", false, false),
        ] {
            assert_eq!(fits(cluster, false), normally, "{cluster}");
            assert_eq!(
                fits(cluster, true),
                downgrading,
                "{cluster} on its way down"
            );
        }
    }

    #[test]
    fn lists_that_do_not_match_are_refused() {
        let two = born(&[("a", "http://h:1"), ("new", "http://h:2")]);
        let text = |listed: &MembersAnswer, learners| {
            let found = matched(&two, listed, learners, &mut addresses());
            found.unwrap_err().to_string()
        };
        assert!(text(&listed(&[(8, "http://h:1", false)]), 1).contains("member count is unequal"));
        let other = listed(&[(7, "http://h:3", false), (8, "http://h:1", false)]);
        assert!(
            text(&other, 1).contains("no match found for existing member (7, [\"http://h:3\"])")
        );
        let learner = listed(&[(7, "http://h:2", true), (8, "http://h:1", false)]);
        assert_eq!(
            text(&learner, 0),
            "membership: too many learner members in cluster"
        );
    }
}
