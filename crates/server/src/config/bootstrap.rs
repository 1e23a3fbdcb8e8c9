//! The first members of a cluster, for a data directory that holds none yet.

use std::collections::BTreeMap;

use super::check::join;
use super::{Checked, ClusterState, ConfigError, DEFAULT_NAME, quote};
use crate::addresses::Addresses;
use crate::url::Url;

/// What a new member is born with; its ids are made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// The member's name.
    pub name: String,
    /// Every first member, this one too, by name, with its peer URLs, sorted.
    pub members: Vec<(String, Vec<Url>)>,
    /// Whether the cluster is new, or these are the members of one that runs.
    pub state: ClusterState,
    /// The token that goes into the ids.
    pub token: String,
}

impl Checked {
    /// The initial cluster as text, as etcd logs it; when none was given, it is this member at
    /// its advertised peer URLs.
    #[must_use]
    pub fn initial_cluster(&self) -> String {
        match &self.config.initial_cluster {
            Some(members) => members.clone(),
            None => {
                let name = if self.name.is_empty() {
                    DEFAULT_NAME
                } else {
                    &self.name
                };
                named(name, &self.advertise_peer_urls)
            }
        }
    }

    /// What a new member is born with. To be called only for a directory without a member: one
    /// that has been started before does not look at these settings again (api.md 5.1). May wait for the
    /// resolver, for 30 s at most.
    ///
    /// # Errors
    /// When the list cannot be read, does not hold this member at its advertised peer URLs, or names a
    /// URL twice.
    pub fn bootstrap(&self) -> Result<Bootstrap, ConfigError> {
        let text = self.initial_cluster();
        let members = parse_members(&text).map_err(ConfigError::InitialCluster)?;
        let name = if self.name.is_empty() {
            DEFAULT_NAME
        } else {
            &self.name
        };
        let Some(listed) = members.get(name) else {
            return Err(ConfigError::NotInInitialCluster(name.to_owned()));
        };
        if self.initial_cluster_state == ClusterState::New {
            // A cluster that runs knows the member's URLs already, by which it finds itself there.
            compare(name, &self.advertise_peer_urls, listed)?;
        }
        let mut urls: Vec<&Url> = members.values().flatten().collect();
        urls.sort();
        if urls.windows(2).any(|pair| pair[0] == pair[1]) {
            let message = format!("initial cluster {text} has duplicate url");
            return Err(ConfigError::InitialClusterUrls(message));
        }
        let members = members
            .iter()
            .map(|(name, urls)| ((*name).to_owned(), urls.clone()))
            .collect();
        Ok(Bootstrap {
            name: name.to_owned(),
            members,
            state: self.initial_cluster_state,
            token: self.initial_cluster_token.clone(),
        })
    }
}

impl Bootstrap {
    /// This member's peer URLs.
    #[must_use]
    pub fn peer_urls(&self) -> &[Url] {
        let own = self.members.iter().find(|(name, _)| *name == self.name);
        own.map_or(&[], |(_, urls)| urls)
    }
}

/// The list of first members and what is advertised must name the same addresses.
fn compare(name: &str, advertised: &[Url], listed: &[Url]) -> Result<(), ConfigError> {
    let only = |urls: &[Url], others: &[Url]| -> Vec<Url> {
        urls.iter()
            .filter(|url| !others.contains(url))
            .cloned()
            .collect()
    };
    let (extra, missing) = (only(listed, advertised), only(advertised, listed));
    let same_texts = extra.is_empty() && missing.is_empty();
    if same_texts || Addresses::of_system().are_same(advertised, listed) {
        return Ok(());
    }
    let message = if extra.is_empty() {
        let (missing, members) = (join(&missing), named(name, advertised));
        format!(
            "--initial-advertise-peer-urls has {missing} but missing from --initial-cluster={members}"
        )
    } else {
        let (extra, given) = (named(name, &extra), join(advertised));
        let cause = format!("{} != {}", quote(&join(advertised)), quote(&join(listed)));
        format!(
            "--initial-cluster has {extra} but missing from --initial-advertise-peer-urls={given} ({cause})"
        )
    };
    Err(ConfigError::InitialClusterUrls(message))
}

fn named(name: &str, urls: &[Url]) -> String {
    urls.iter()
        .map(|url| format!("{name}={url}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// Reads `name=url,name=url`; a name may stand more than once, with a URL each time.
fn parse_members(text: &str) -> Result<BTreeMap<&str, Vec<Url>>, String> {
    let mut members: BTreeMap<&str, Vec<Url>> = BTreeMap::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (name, url) = pair.split_once('=').unwrap_or((pair, ""));
        let url = Url::parse(url).map_err(|cause| cause.to_string())?;
        members.entry(name).or_default().push(url);
    }
    members.values_mut().for_each(|urls| urls.sort());
    Ok(members)
}
