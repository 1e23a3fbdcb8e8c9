//! What a member that is new asks of others before it begins.
//!
//! # Source
//!
//! `spec/formats.md` 7.9.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use keelson_node::Beginning;
use keelson_proto::ids::{ClusterId, MemberId};
use keelson_store::member::{Member, member_id};
use semver::Version;
use tokio::time::sleep;

use super::{CLUSTER_ID, line, version_of};
use crate::Error;
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

/// The members of a cluster, as one of them knows them.
#[derive(Debug)]
struct Listed {
    cluster: ClusterId,
    members: Vec<Member>,
}

/// How a member without a log begins.
///
/// # Errors
///
/// [`Error::Join`].
pub(crate) async fn beginning(
    born: &Bootstrap,
    own_version: &Version,
    learners_max: usize,
) -> Result<Beginning, Error> {
    let others = || born.members.iter().filter(|(name, _)| *name != born.name);
    let mut urls: Vec<&Url> = others().flat_map(|(_, urls)| urls).collect();
    urls.sort();
    match born.state {
        ClusterState::New => {
            check_not_begun(born, &urls).await?;
            Ok(Beginning::New)
        }
        ClusterState::Existing => {
            let listed = ask_for_members(&urls).await?;
            let (cluster, member) = matched(born, &listed, learners_max)?;
            check_versions(&urls, own_version).await?;
            Ok(Beginning::Join { cluster, member })
        }
    }
}

/// A member that the others know as started must not begin anew: it would vote twice.
async fn check_not_begun(born: &Bootstrap, others: &[&Url]) -> Result<(), Error> {
    let own_urls: Vec<String> = born.peer_urls().iter().map(Url::to_string).collect();
    let own = member_id(&own_urls, &born.token, None);
    // All at once: whoever starts at the same time does not answer yet.
    let asked = others.iter().map(|url| members_at(url, NEW_PATIENCE));
    for listed in futures_util::future::join_all(asked).await.iter().flatten() {
        let started = |member: &Member| member.id == own && !member.client_urls.is_empty();
        if listed.members.iter().any(started) {
            let text = format!("member {own} has already been bootstrapped");
            return Err(Error::Join(text));
        }
    }
    Ok(())
}

async fn ask_for_members(urls: &[&Url]) -> Result<Listed, Error> {
    let mut last = String::from("there is no other member in --initial-cluster");
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(PAUSE).await;
        }
        for url in urls {
            match members_at(url, JOIN_PATIENCE).await {
                Ok(listed) => return Ok(listed),
                Err(error) => {
                    tracing::warn!(address = %url, %error, "failed to get cluster response");
                    last = format!("{url}: {error}");
                }
            }
        }
    }
    Err(Error::Join(format!(
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from the \
         given URLs ({last})"
    )))
}

async fn members_at(url: &Url, patience: Duration) -> io::Result<Listed> {
    let response = get(url, "/members", patience).await?;
    let cluster = response
        .headers()
        .get(CLUSTER_ID)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no cluster id"))?;
    let rows: Vec<serde_json::Value> = serde_json::from_slice(response.body())?;
    let member = |row: &serde_json::Value| {
        Member::from_json(row.to_string().as_bytes()).map_err(io::Error::other)
    };
    let members = rows.iter().map(member).collect::<io::Result<_>>()?;
    Ok(Listed {
        cluster: ClusterId(cluster),
        members,
    })
}

async fn get(url: &Url, path: &'static str, patience: Duration) -> io::Result<Response<Bytes>> {
    let mut request = Request::new(line::whole(""));
    *request.method_mut() = Method::GET;
    *request.uri_mut() = http::Uri::from_static(path);
    let response = line::once(url, request, patience).await?;
    match response.status() {
        StatusCode::OK => Ok(response),
        _ => Err(line::refused(&response)),
    }
}

/// Finds each of our members among theirs by its URLs, and so our own id.
fn matched(
    born: &Bootstrap,
    listed: &Listed,
    learners_max: usize,
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
    for (name, urls) in &born.members {
        let mut ours: Vec<&str> = urls.iter().map(Url::as_str).collect();
        ours.sort_unstable();
        let same = |member: &&Member| {
            let mut theirs: Vec<&str> = member.peer_urls.iter().map(String::as_str).collect();
            theirs.sort_unstable();
            theirs == ours
        };
        let Some(member) = listed.members.iter().find(same) else {
            return refuse(format!(
                "unmatched member while checking PeerURLs ({name}: {ours:?})"
            ));
        };
        if *name == born.name {
            own = Some(member.id);
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

/// The cluster must be of a release that this member can serve.
async fn check_versions(urls: &[&Url], own: &Version) -> Result<(), Error> {
    let mut answered = false;
    for url in urls {
        let Ok(response) = get(url, "/version", JOIN_PATIENCE).await else {
            continue;
        };
        let answer: serde_json::Value = serde_json::from_slice(response.body())
            .map_err(|error| Error::Join(format!("{url}: {error}")))?;
        let text = answer["etcdcluster"].as_str().unwrap_or_default();
        // A cluster that has not decided yet is no reason to stay away.
        answered = true;
        let Ok(version) = Version::parse(text) else {
            continue;
        };
        let above = (version.major, version.minor) > (own.major, own.minor);
        if above || version < MIN_CLUSTER {
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

/// The release of the member at a URL.
///
/// # Errors
///
/// Where it does not say so.
pub(super) async fn release(url: &Url, patience: Duration) -> io::Result<Version> {
    let response = get(url, "/version", patience).await?;
    let answer: serde_json::Value = serde_json::from_slice(response.body())?;
    version_of(answer["etcdserver"].as_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn listed(members: &[(u64, &str, bool)]) -> Listed {
        Listed {
            cluster: ClusterId(9),
            members: members
                .iter()
                .map(|(id, url, is_learner)| Member {
                    id: MemberId(*id),
                    is_learner: *is_learner,
                    ..Member::new(String::new(), vec![(*url).to_owned()], "", None, false)
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
        );
        assert_eq!(found.unwrap(), (ClusterId(9), MemberId(7)));
    }

    #[test]
    fn lists_that_do_not_match_are_refused() {
        let two = born(&[("a", "http://h:1"), ("new", "http://h:2")]);
        let text =
            |listed: &Listed, learners| matched(&two, listed, learners).unwrap_err().to_string();
        assert!(text(&listed(&[(8, "http://h:1", false)]), 1).contains("member count is unequal"));
        let other = listed(&[(7, "http://h:3", false), (8, "http://h:1", false)]);
        assert!(text(&other, 1).contains("unmatched member while checking PeerURLs"));
        let learner = listed(&[(7, "http://h:2", true), (8, "http://h:1", false)]);
        assert_eq!(
            text(&learner, 0),
            "membership: too many learner members in cluster"
        );
    }
}
