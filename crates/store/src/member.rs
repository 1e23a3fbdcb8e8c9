//! Membership: who is in the cluster, who was, and the versions they agreed on.

use std::collections::{BTreeMap, BTreeSet};

use keelson_proto::ApiError;
use keelson_proto::entry::{ConfChange, ConfChangeKind, ConfState, Entry, EntryKind};
use keelson_proto::ids::{ClusterId, MemberId};
use keelson_proto::rpc::membershippb::{
    Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest, DowngradeInfoSetRequest,
};
use semver::Version;
use sha1::{Digest as _, Sha1};
use thiserror::Error;

use crate::row::{RowChange, RowError, bucket};

mod from_v2;
mod json;

pub(crate) use json::attributes as attributes_from_json;
pub use json::{conf_state_from_json, conf_state_to_json};

const VERSION_KEY: &[u8] = b"clusterVersion";
const DOWNGRADE_KEY: &[u8] = b"downgrade";
const REMOVED: &[u8] = b"removed";

/// A member, as stored and as sent to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Never 0, never used again.
    pub id: MemberId,
    /// Where other members reach it. Sorted where a member is made by [`Member::new`]; kept as given
    /// where an entry brings others.
    pub peer_urls: Vec<String>,
    /// Whether it has no vote.
    pub is_learner: bool,
    /// Empty until the member has started and told its attributes.
    pub name: String,
    /// Where clients reach it; empty as long as the name.
    pub client_urls: Vec<String>,
}

impl Member {
    /// A member with an id of its own: see [`member_id`].
    #[must_use]
    pub fn new(
        name: String,
        mut peer_urls: Vec<String>,
        token: &str,
        unix_seconds: Option<i64>,
        is_learner: bool,
    ) -> Member {
        peer_urls.sort_unstable();
        Member {
            id: member_id(&peer_urls, token, unix_seconds),
            peer_urls,
            is_learner,
            name,
            client_urls: Vec::new(),
        }
    }

    /// Whether it has ever told its name.
    #[must_use]
    pub fn is_started(&self) -> bool {
        !self.name.is_empty()
    }

    /// The JSON of the bucket `members`, of conf-change contexts and of `GET /members`.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        json::member(self, false)
    }

    /// The context of the conf change that adds it.
    #[must_use]
    pub fn add_context(&self) -> Vec<u8> {
        self.to_json()
    }

    /// The context of the conf change that makes a learner a voter.
    #[must_use]
    pub fn promote_context(id: MemberId) -> Vec<u8> {
        let member = Member {
            id,
            ..Member::default()
        };
        json::member(&member, true)
    }

    /// Reads what [`Member::to_json`] and other members write.
    ///
    /// # Errors
    ///
    /// [`RowError`] where it is not such JSON.
    pub fn from_json(bytes: &[u8]) -> Result<Member, RowError> {
        json::parse_member("member JSON", b"", bytes).map(|(member, _)| member)
    }

    fn row(&self) -> RowChange {
        RowChange::put(bucket::MEMBERS, self.id.to_string(), self.to_json())
    }
}

/// The id of a member: the first 8 bytes of the SHA-1 of its sorted peer URLs, the token, and, for
/// members that are added to a running cluster (with an empty token), the decimal unix seconds.
#[must_use]
pub fn member_id(peer_urls: &[String], token: &str, unix_seconds: Option<i64>) -> MemberId {
    let mut urls: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    urls.sort_unstable();
    let mut digest = Sha1::new();
    for url in urls {
        digest.update(url.as_bytes());
    }
    digest.update(token.as_bytes());
    if let Some(seconds) = unix_seconds {
        digest.update(seconds.to_string().as_bytes());
    }
    MemberId(first_number(digest))
}

/// The id of a cluster: the first 8 bytes of the SHA-1 of its first members' ids, ascending.
#[must_use]
pub fn cluster_id(members: impl IntoIterator<Item = MemberId>) -> ClusterId {
    let mut ids: Vec<MemberId> = members.into_iter().collect();
    ids.sort_unstable();
    let mut digest = Sha1::new();
    for id in ids {
        digest.update(id.0.to_be_bytes());
    }
    ClusterId(first_number(digest))
}

fn first_number(digest: Sha1) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&digest.finalize()[..8]);
    u64::from_be_bytes(first)
}

/// What a conf change does to the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A member comes.
    Add {
        /// As it is stored.
        member: Member,
        /// Whether consensus adds it as a learner; the limit on learners counts only then.
        as_learner: bool,
    },
    /// A learner becomes a voter.
    Promote(MemberId),
    /// A member goes, for ever.
    Remove(MemberId),
    /// A member gets other peer URLs.
    Update {
        /// Which member.
        id: MemberId,
        /// The whole new list.
        peer_urls: Vec<String>,
    },
}

impl Change {
    /// Reads a conf change and its context.
    ///
    /// # Errors
    ///
    /// [`RowError`] where the context is no member's JSON, or of another member: such an entry stops
    /// etcd, and must stop us.
    pub fn decode(change: &ConfChange) -> Result<Change, RowError> {
        const PLACE: &str = "conf change";
        let id = change.member;
        let read = || {
            let key = id.to_string();
            let (member, is_promote) = json::parse_member(PLACE, key.as_bytes(), &change.context)?;
            if member.id == id {
                Ok((member, is_promote))
            } else {
                Err(RowError::new(
                    PLACE,
                    key.as_bytes(),
                    "the changed member as id",
                    member.id,
                ))
            }
        };
        Ok(match change.kind {
            ConfChangeKind::RemoveNode => Change::Remove(id),
            ConfChangeKind::UpdateNode => Change::Update {
                id,
                peer_urls: read()?.0.peer_urls,
            },
            ConfChangeKind::AddNode | ConfChangeKind::AddLearnerNode => match read()? {
                (_, true) => Change::Promote(id),
                (member, false) => Change::Add {
                    member,
                    as_learner: change.kind == ConfChangeKind::AddLearnerNode,
                },
            },
        })
    }

    /// Who is changed.
    #[must_use]
    pub fn member(&self) -> MemberId {
        match self {
            Change::Add { member, .. } => member.id,
            Change::Promote(id) | Change::Remove(id) | Change::Update { id, .. } => *id,
        }
    }
}

/// Why a change is not carried out: consensus then applies it as a change of nobody. The texts are
/// those that etcd logs.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ChangeRefused {
    /// The id was removed, and ids don't come back.
    #[error("membership: ID removed")]
    IdRemoved,
    /// The member is there already.
    #[error("membership: ID exists")]
    IdExists,
    /// There is no such member.
    #[error("membership: ID not found")]
    IdNotFound,
    /// Another member has the URL.
    #[error("membership: peerURL exists")]
    PeerUrlExists,
    /// The member to promote has a vote.
    #[error("membership: can only promote a learner member")]
    MemberNotLearner,
    /// There would be more learners than allowed.
    #[error("membership: too many learner members in cluster")]
    TooManyLearners,
}

impl From<ChangeRefused> for ApiError {
    fn from(refused: ChangeRefused) -> ApiError {
        match refused {
            ChangeRefused::IdRemoved | ChangeRefused::IdNotFound => ApiError::MemberNotFound,
            ChangeRefused::IdExists => ApiError::MemberExist,
            ChangeRefused::PeerUrlExists => ApiError::PeerUrlExist,
            ChangeRefused::MemberNotLearner => ApiError::MemberNotLearner,
            ChangeRefused::TooManyLearners => ApiError::TooManyLearners,
        }
    }
}

/// A downgrade that was asked for, or its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Downgrade {
    /// Whether it is on.
    pub enabled: bool,
    /// To which version, `X.Y.0`; empty while it is off.
    pub target_version: String,
}

/// What became of attributes that a member told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributesSet {
    /// They are stored.
    Stored,
    /// The member was removed: they are passed over, with a warning.
    Removed,
}

/// What a new cluster version means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionSet {
    /// It is the first one, the same, or a higher one.
    Kept,
    /// It is lower: a snapshot must be made at once, so that the lower release can start.
    Lowered,
}

/// The cluster's members and versions: replicated, changed by entries alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    members: BTreeMap<MemberId, Member>,
    removed: BTreeSet<MemberId>,
    version: Option<Version>,
    downgrade: Option<Downgrade>,
}

/// A row's key and value.
type Row<'a> = (&'a [u8], &'a [u8]);

impl Membership {
    /// The membership from the rows of the buckets `members`, `members_removed` and `cluster`.
    ///
    /// # Errors
    ///
    /// [`RowError`] where a row is not what etcd writes.
    pub fn restore<'a>(
        members: impl IntoIterator<Item = Row<'a>>,
        removed: impl IntoIterator<Item = Row<'a>>,
        cluster: impl IntoIterator<Item = Row<'a>>,
    ) -> Result<Membership, RowError> {
        let mut membership = Membership::default();
        for (key, value) in members {
            let id = parse_id(bucket::MEMBERS, key)?;
            let (member, _) = json::parse_member(bucket::MEMBERS, key, value)?;
            if member.id != id {
                let expected = "the key as id";
                return Err(RowError::new(bucket::MEMBERS, key, expected, member.id));
            }
            membership.members.insert(id, member);
        }
        for (key, _) in removed {
            let id = parse_id(bucket::MEMBERS_REMOVED, key)?;
            membership.removed.insert(id);
        }
        for (key, value) in cluster {
            match key {
                VERSION_KEY => membership.version = Some(parse_version(key, value)?),
                DOWNGRADE_KEY => membership.downgrade = Some(json::parse_downgrade(key, value)?),
                // Rows of versions to come are left alone.
                _ => {}
            }
        }
        Ok(membership)
    }

    /// All members, by id.
    pub fn members(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.members.values()
    }

    /// The member of this id.
    #[must_use]
    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// Members with a vote, by id.
    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members().filter(|member| !member.is_learner)
    }

    /// Ids that were removed, ascending.
    pub fn removed(&self) -> impl ExactSizeIterator<Item = MemberId> {
        self.removed.iter().copied()
    }

    /// Whether this id was removed.
    #[must_use]
    pub fn is_removed(&self, id: MemberId) -> bool {
        self.removed.contains(&id)
    }

    /// The version that all members can speak; `None` until it has been decided.
    #[must_use]
    pub fn version(&self) -> Option<&Version> {
        self.version.as_ref()
    }

    /// The last downgrade that was asked for or ended; off where there never was one.
    #[must_use]
    pub fn downgrade(&self) -> Downgrade {
        self.downgrade.clone().unwrap_or_default()
    }

    /// The configuration that consensus has by this membership.
    #[must_use]
    pub fn conf_state(&self) -> ConfState {
        let ids = |learners: bool| {
            self.members()
                .filter(|member| member.is_learner == learners)
                .map(|member| member.id)
                .collect()
        };
        ConfState {
            voters: ids(false),
            learners: ids(true),
            ..ConfState::default()
        }
    }

    /// Whether a change may be carried out. The limit on learners must be the same on all members.
    ///
    /// # Errors
    ///
    /// [`ChangeRefused`].
    pub fn check(&self, change: &Change, learners_max: usize) -> Result<(), ChangeRefused> {
        let id = change.member();
        if self.is_removed(id) {
            return Err(ChangeRefused::IdRemoved);
        }
        let current = self.member(id);
        match change {
            Change::Promote(_) => {
                let member = current.ok_or(ChangeRefused::IdNotFound)?;
                if !member.is_learner {
                    return Err(ChangeRefused::MemberNotLearner);
                }
            }
            Change::Add { member, as_learner } => {
                if current.is_some() {
                    return Err(ChangeRefused::IdExists);
                }
                self.check_urls(id, &member.peer_urls)?;
                let learners = self.members().filter(|member| member.is_learner).count();
                if *as_learner && member.is_learner && learners >= learners_max {
                    return Err(ChangeRefused::TooManyLearners);
                }
            }
            Change::Remove(_) => {
                current.ok_or(ChangeRefused::IdNotFound)?;
            }
            Change::Update { peer_urls, .. } => {
                current.ok_or(ChangeRefused::IdNotFound)?;
                self.check_urls(id, peer_urls)?;
            }
        }
        Ok(())
    }

    /// No other member has one of these.
    fn check_urls(&self, id: MemberId, peer_urls: &[String]) -> Result<(), ChangeRefused> {
        let taken = self
            .members()
            .filter(|member| member.id != id)
            .flat_map(|member| &member.peer_urls)
            .any(|url| peer_urls.contains(url));
        if taken {
            Err(ChangeRefused::PeerUrlExists)
        } else {
            Ok(())
        }
    }

    /// Carries out a change that [`Membership::check`] let through.
    pub fn apply(&mut self, change: Change, rows: &mut Vec<RowChange>) {
        match change {
            Change::Add { member, .. } => {
                rows.push(member.row());
                self.members.insert(member.id, member);
            }
            Change::Promote(id) => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.is_learner = false;
                    rows.push(member.row());
                }
            }
            Change::Remove(id) => {
                self.members.remove(&id);
                self.removed.insert(id);
                let key = id.to_string();
                rows.push(RowChange::delete(bucket::MEMBERS, key.clone()));
                rows.push(RowChange::put(bucket::MEMBERS_REMOVED, key, REMOVED));
            }
            Change::Update { id, peer_urls } => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.peer_urls = peer_urls;
                    rows.push(member.row());
                }
            }
        }
    }

    /// The membership after the configuration changes among these entries. Those that
    /// [`Membership::check`] refuses change nothing, nor do those that do not decode: they stop the
    /// member when they are applied, with a better text.
    #[must_use]
    pub fn after<'a>(
        &self,
        entries: impl IntoIterator<Item = &'a Entry>,
        learners_max: usize,
    ) -> Membership {
        let mut after = self.clone();
        let changes = entries
            .into_iter()
            .filter(|entry| entry.kind == EntryKind::ConfChange)
            .filter_map(|entry| ConfChange::decode(entry.data.clone()).ok())
            .filter_map(|change| Change::decode(&change).ok());
        for change in changes {
            if after.check(&change, learners_max).is_ok() {
                after.apply(change, &mut Vec::new());
            }
        }
        after
    }

    /// Stores what a member told of itself.
    ///
    /// # Errors
    ///
    /// [`RowError`] for a member that never was: such an entry stops etcd, and must stop us.
    pub fn set_attributes(
        &mut self,
        request: &ClusterMemberAttrSetRequest,
        rows: &mut Vec<RowChange>,
    ) -> Result<AttributesSet, RowError> {
        let ClusterMemberAttrSetRequest {
            member_id,
            member_attributes,
        } = request;
        let id = MemberId(*member_id);
        let Some(member) = self.members.get_mut(&id) else {
            if self.removed.contains(&id) {
                return Ok(AttributesSet::Removed);
            }
            return Err(RowError::new(
                "attributes",
                id.to_string().as_bytes(),
                "a member of the cluster",
                "failed to update; member unknown",
            ));
        };
        let Attributes { name, client_urls } = member_attributes.clone().unwrap_or_default();
        member.name = name;
        member.client_urls = client_urls;
        rows.push(member.row());
        Ok(AttributesSet::Stored)
    }

    /// Sets the cluster's version.
    ///
    /// # Errors
    ///
    /// [`RowError`] where it is no version: such an entry stops etcd, and must stop us.
    pub fn set_version(
        &mut self,
        request: &ClusterVersionSetRequest,
        rows: &mut Vec<RowChange>,
    ) -> Result<VersionSet, RowError> {
        let ClusterVersionSetRequest { ver } = request;
        let version = parse_version(VERSION_KEY, ver.as_bytes())?;
        let lowered = self
            .version
            .as_ref()
            .is_some_and(|before| version < *before);
        rows.push(RowChange::put(
            bucket::CLUSTER,
            VERSION_KEY,
            version.to_string(),
        ));
        self.version = Some(version);
        Ok(if lowered {
            VersionSet::Lowered
        } else {
            VersionSet::Kept
        })
    }

    /// Starts or ends a downgrade.
    pub fn set_downgrade(&mut self, request: &DowngradeInfoSetRequest, rows: &mut Vec<RowChange>) {
        let DowngradeInfoSetRequest { enabled, ver } = request;
        let downgrade = Downgrade {
            enabled: *enabled,
            target_version: if *enabled { ver.clone() } else { String::new() },
        };
        rows.push(RowChange::put(
            bucket::CLUSTER,
            DOWNGRADE_KEY,
            json::downgrade(&downgrade),
        ));
        self.downgrade = Some(downgrade);
    }

    /// Whether a downgrade to `target` (`X.Y` or `X.Y.Z`) may start; answers the target as it is
    /// stored, `X.Y.0`.
    ///
    /// # Errors
    ///
    /// [`ApiError::WrongDowngradeVersionFormat`], [`ApiError::ClusterVersionUnavailable`],
    /// [`ApiError::InvalidDowngradeTargetVersion`] but for the minor version below the cluster's,
    /// [`ApiError::DowngradeInProcess`].
    pub fn check_downgrade(&self, target: &str) -> Result<Version, ApiError> {
        let wrong = ApiError::WrongDowngradeVersionFormat;
        let padded = if target.matches('.').count() == 1 {
            format!("{target}.0")
        } else {
            target.to_owned()
        };
        let target = Version::parse(&padded).map_err(|_| wrong)?;
        let target = Version::new(target.major, target.minor, 0);
        let version = self.version().ok_or(ApiError::ClusterVersionUnavailable)?;
        let allowed = version.minor.checked_sub(1);
        if target.major != version.major || Some(target.minor) != allowed {
            return Err(ApiError::InvalidDowngradeTargetVersion);
        }
        if self.downgrade().enabled {
            return Err(ApiError::DowngradeInProcess);
        }
        Ok(target)
    }

    /// Whether enough voters have started for one more that has not.
    #[must_use]
    pub fn may_add_voter(&self) -> bool {
        let (started, voters) = self.started_voters(None);
        // One member may always get a second one: that is how a restored cluster grows again.
        started == 1 && voters == 1 || started > voters.saturating_add(1) / 2
    }

    /// Whether enough of the other voters have started for this one to go.
    #[must_use]
    pub fn may_remove_voter(&self, id: MemberId) -> bool {
        let (started, voters) = self.started_voters(Some(id));
        started > voters / 2
    }

    /// Whether enough voters have started for one more that has, too.
    #[must_use]
    pub fn may_promote(&self) -> bool {
        let (started, voters) = self.started_voters(None);
        started.saturating_add(1) > voters.saturating_add(1) / 2
    }

    /// How many voters but `except` have started, and how many there are.
    fn started_voters(&self, except: Option<MemberId>) -> (usize, usize) {
        let others = || self.voters().filter(|member| Some(member.id) != except);
        let started = others().filter(|member| member.is_started()).count();
        (started, others().count())
    }
}

fn parse_id(place: &'static str, key: &[u8]) -> Result<MemberId, RowError> {
    std::str::from_utf8(key)
        .ok()
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .map(MemberId)
        .ok_or_else(|| RowError::value(place, key, "an id in hex as key", key))
}

fn parse_version(key: &[u8], value: &[u8]) -> Result<Version, RowError> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| Version::parse(text).ok())
        .ok_or_else(|| RowError::value(bucket::CLUSTER, key, "a version X.Y.Z", value))
}

#[cfg(test)]
mod tests;
