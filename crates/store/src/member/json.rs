//! The JSON of members, configurations and downgrades, byte for byte as Go writes it.

use keelson_proto::entry::ConfState;
use keelson_proto::ids::MemberId;
use keelson_proto::rpc::membershippb::Attributes;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Downgrade, Member};
use crate::row::{RowError, bucket};

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Go writes lists that it does not have as `null`.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Serialize)]
struct MemberOut<'a> {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: Option<&'a [String]>,
    #[serde(rename = "isLearner", skip_serializing_if = "is_false")]
    is_learner: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "clientURLs", skip_serializing_if = "<[String]>::is_empty")]
    client_urls: &'a [String],
    #[serde(rename = "isPromote", skip_serializing_if = "is_false")]
    is_promote: bool,
}

#[derive(Deserialize)]
struct MemberIn {
    #[serde(default)]
    id: u64,
    #[serde(default, rename = "peerURLs", deserialize_with = "null_is_empty")]
    peer_urls: Vec<String>,
    #[serde(default, rename = "isLearner")]
    is_learner: bool,
    #[serde(default)]
    name: String,
    #[serde(default, rename = "clientURLs", deserialize_with = "null_is_empty")]
    client_urls: Vec<String>,
    #[serde(default, rename = "isPromote")]
    is_promote: bool,
}

#[derive(Serialize, Deserialize)]
struct DowngradeJson {
    #[serde(default, rename = "target-version")]
    target_version: String,
    #[serde(default)]
    enabled: bool,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct ConfStateJson {
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    voters: Vec<u64>,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    learners: Vec<u64>,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    voters_outgoing: Vec<u64>,
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    learners_next: Vec<u64>,
    auto_leave: bool,
}

/// Go escapes what browsers might take for markup, and two line ends. None of these can stand in
/// JSON outside of a string.
fn go_text(value: &impl Serialize) -> Vec<u8> {
    let text = serde_json::to_string(value)
        .expect("structs of numbers, strings and lists are always representable");
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(letter)));
            }
            _ => out.push(letter),
        }
    }
    out.into_bytes()
}

fn parse<'a, T: Deserialize<'a>>(
    place: &'static str,
    key: &[u8],
    expected: &'static str,
    value: &'a [u8],
) -> Result<T, RowError> {
    // serde would read structs from lists, too.
    if value.trim_ascii_start().first() != Some(&b'{') {
        return Err(RowError::value(place, key, expected, value));
    }
    serde_json::from_slice(value).map_err(|error| RowError::new(place, key, expected, error))
}

pub(super) fn member(member: &Member, is_promote: bool) -> Vec<u8> {
    let Member {
        id,
        peer_urls,
        is_learner,
        name,
        client_urls,
    } = member;
    go_text(&MemberOut {
        id: id.0,
        peer_urls: (!peer_urls.is_empty()).then_some(peer_urls),
        is_learner: *is_learner,
        name,
        client_urls,
        is_promote,
    })
}

/// A member, and whether it is the context of a promotion.
pub(super) fn parse_member(
    place: &'static str,
    key: &[u8],
    value: &[u8],
) -> Result<(Member, bool), RowError> {
    let MemberIn {
        id,
        peer_urls,
        is_learner,
        name,
        client_urls,
        is_promote,
    } = parse(place, key, "a member as JSON", value)?;
    let member = Member {
        id: MemberId(id),
        peer_urls,
        is_learner,
        name,
        client_urls,
    };
    Ok((member, is_promote))
}

#[derive(Deserialize)]
struct AttributesIn {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "clientURLs", deserialize_with = "null_is_empty")]
    client_urls: Vec<String>,
}

/// What a member tells of itself by the v2 API, at a path of its store.
pub(crate) fn attributes(path: &str, value: &[u8]) -> Result<Attributes, RowError> {
    let AttributesIn { name, client_urls } =
        parse("v2 request", path.as_bytes(), "attributes as JSON", value)?;
    Ok(Attributes { name, client_urls })
}

pub(super) fn downgrade(downgrade: &Downgrade) -> Vec<u8> {
    go_text(&DowngradeJson {
        target_version: downgrade.target_version.clone(),
        enabled: downgrade.enabled,
    })
}

pub(super) fn parse_downgrade(key: &[u8], value: &[u8]) -> Result<Downgrade, RowError> {
    let DowngradeJson {
        target_version,
        enabled,
    } = parse(bucket::CLUSTER, key, "a downgrade as JSON", value)?;
    Ok(Downgrade {
        enabled,
        target_version,
    })
}

/// The value of the row `confState` in the bucket `meta`.
#[must_use]
pub fn conf_state_to_json(state: &ConfState) -> Vec<u8> {
    let numbers = |ids: &[MemberId]| ids.iter().map(|id| id.0).collect();
    let ConfState {
        voters,
        learners,
        voters_outgoing,
        learners_next,
        auto_leave,
    } = state;
    go_text(&ConfStateJson {
        voters: numbers(voters),
        learners: numbers(learners),
        voters_outgoing: numbers(voters_outgoing),
        learners_next: numbers(learners_next),
        auto_leave: *auto_leave,
    })
}

/// Reads the value of the row `confState` in the bucket `meta`.
///
/// # Errors
///
/// [`RowError`] where it is not such JSON.
pub fn conf_state_from_json(value: &[u8]) -> Result<ConfState, RowError> {
    let ids = |numbers: Vec<u64>| numbers.into_iter().map(MemberId).collect();
    let state: ConfStateJson = parse("meta", b"confState", "a ConfState as JSON", value)?;
    let ConfStateJson {
        voters,
        learners,
        voters_outgoing,
        learners_next,
        auto_leave,
    } = state;
    Ok(ConfState {
        voters: ids(voters),
        learners: ids(learners),
        voters_outgoing: ids(voters_outgoing),
        learners_next: ids(learners_next),
        auto_leave,
    })
}
