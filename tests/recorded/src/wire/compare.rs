//! Compares an answer with the recorded one, and knows what may differ.
//!
//! What varies between two runs of the same program (the recordings' README): lease ids and tokens
//! that the server chooses, terms, log indexes, database sizes, remaining times. The first are
//! learned where they appear and expected from then on; the others must be there but may differ.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A remaining time-to-live may differ from the recorded one by this many seconds.
const TTL_SLACK_SECONDS: i64 = 5;

/// One field that is not as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The field, such as `kvs[2].mod_revision`; empty for the whole answer.
    pub path: String,
    /// What was recorded.
    pub expected: String,
    /// What the server answered.
    pub got: String,
}

/// The values that the server chose where the recorded one chose others: recorded to actual.
#[derive(Debug, Default)]
pub struct Learned {
    values: BTreeMap<String, String>,
    /// Revisions from the first number on are further by the second.
    shift: (i64, i64),
}

impl Learned {
    /// What stands for a recorded value in this run.
    #[must_use]
    pub fn translate<'a>(&'a self, recorded: &'a str) -> &'a str {
        self.values.get(recorded).map_or(recorded, String::as_str)
    }

    /// Says what stands for a recorded value in this run.
    pub fn expect(&mut self, recorded: &str, actual: &str) {
        self.values.insert(recorded.to_owned(), actual.to_owned());
    }

    /// A request with the ids of this run where it has recorded ones.
    ///
    /// Only fields at the top of the message are looked at, so no length changes with them.
    #[must_use]
    pub fn request(&self, json: &Value, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for name in ["ID", "targetID"] {
            let Some(recorded) = json[name].as_str() else {
                continue;
            };
            let (Ok(from), Ok(to)) = (
                recorded.parse::<u64>(),
                self.translate(recorded).parse::<u64>(),
            ) else {
                continue;
            };
            let (from, to) = (varint(from), varint(to));
            if from == to {
                continue;
            }
            // The tag of the field, then the id: these requests have it as their first field.
            if bytes.get(1..1 + from.len()) == Some(from.as_slice()) {
                bytes.splice(1..1 + from.len(), to);
            }
        }
        bytes
    }

    /// Says that recorded revisions from `first` on are `by` further in this run, and that a delete
    /// finds as many keys more.
    pub fn shift_revisions(&mut self, first: i64, by: i64) {
        self.shift = (first, by);
    }

    /// What stands for a recorded revision in this run.
    #[must_use]
    pub fn revision(&self, recorded: i64) -> i64 {
        let (first, by) = self.shift;
        if recorded >= first {
            recorded + by
        } else {
            recorded
        }
    }

    fn learn(&mut self, recorded: &str, actual: &str) {
        self.values.insert(recorded.to_owned(), actual.to_owned());
        // A key that the server made ends with the id of its lease in hex.
        if let (Some(recorded), Some(actual)) = (lease_in_key(recorded), lease_in_key(actual)) {
            self.values.insert(recorded, actual);
        }
    }

    fn number(&self, path: &str, recorded: &str) -> Option<String> {
        let field = path.rsplit('.').next().unwrap_or(path);
        let number = recorded.parse::<i64>().ok()?;
        match field {
            "revision" | "create_revision" | "mod_revision" => {
                Some(self.revision(number).to_string())
            }
            "deleted" => Some((number + self.shift.1).to_string()),
            _ => None,
        }
    }
}

fn varint(value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(value, &mut bytes);
    bytes
}

fn lease_in_key(base64: &str) -> Option<String> {
    let key = String::from_utf8(STANDARD.decode(base64).ok()?).ok()?;
    let (_, lease) = key.rsplit_once('/')?;
    Some(i64::from_str_radix(lease, 16).ok()?.to_string())
}

/// How one field is compared.
enum Rule {
    /// Equal, after translation of what was learned.
    Equal,
    /// Both there and not zero.
    Present,
    /// Chosen by the server: remember it.
    Learn,
    /// Seconds that are left: about equal.
    Remaining,
    /// As recorded, or already the version it is raised to.
    Raised,
}

fn rule(rpc: &str, path: &str, chosen_by_server: bool) -> Rule {
    let field = path.rsplit('.').next().unwrap_or(path);
    match (rpc, field) {
        (_, "raft_term") => Rule::Present,
        (
            "/etcdserverpb.Maintenance/Status",
            "dbSize" | "dbSizeInUse" | "raftIndex" | "raftTerm" | "raftAppliedIndex",
        )
        // The hash of the whole file covers the consistent index and the like.
        | ("/etcdserverpb.Maintenance/Hash", "hash") => Rule::Present,
        // A joined member takes the storage version some seconds after its start.
        ("/etcdserverpb.Maintenance/Status", "storageVersion") => Rule::Raised,
        ("/etcdserverpb.Lease/LeaseTimeToLive", "TTL") => Rule::Remaining,
        ("/etcdserverpb.Auth/Authenticate", "token") => Rule::Learn,
        ("/etcdserverpb.Lease/LeaseGrant", "ID") | ("/v3lockpb.Lock/Lock", "key") if chosen_by_server => Rule::Learn,
        _ => Rule::Equal,
    }
}

/// Every difference between two messages in JSON form.
///
/// `chosen_by_server` says that the request left the id of a lease to the server.
pub fn compare(
    rpc: &str,
    expected: &Value,
    got: &Value,
    chosen_by_server: bool,
    learned: &mut Learned,
) -> Vec<Difference> {
    if let ("/etcdserverpb.Cluster/MemberAdd", Some(recorded), Some(actual)) = (
        rpc,
        expected["member"]["ID"].as_str(),
        got["member"]["ID"].as_str(),
    ) {
        // The id of a member that is added contains the time.
        learned.expect(recorded, actual);
    }
    let mut walk = Walk {
        rpc,
        chosen_by_server,
        learned,
        differences: Vec::new(),
    };
    let got = in_recorded_order(rpc, expected, got, walk.learned);
    walk.value(String::new(), Some(expected), Some(&got));
    walk.differences
}

/// Lists whose order is open: members by ids that differ, leases that end in the same second, keys of a lease (a Go map).
fn in_recorded_order(rpc: &str, expected: &Value, got: &Value, learned: &Learned) -> Value {
    let mut got = got.clone();
    let list = match rpc {
        "/etcdserverpb.Lease/LeaseLeases" => "leases",
        "/etcdserverpb.Lease/LeaseTimeToLive" => "keys",
        // By id, and ids differ.
        _ if rpc.starts_with("/etcdserverpb.Cluster/") => "members",
        _ => return got,
    };
    if let (Some(expected), Some(got)) = (
        expected[list].as_array(),
        got.get_mut(list).and_then(Value::as_array_mut),
    ) {
        let id = |item: &Value| {
            item["ID"]
                .as_str()
                .or(item.as_str())
                .unwrap_or_default()
                .to_owned()
        };
        let place = |item: &Value| {
            let item = id(item);
            expected
                .iter()
                .position(|other| learned.translate(&id(other)) == item)
                .unwrap_or(usize::MAX)
        };
        got.sort_by_key(place);
    }
    got
}

struct Walk<'a> {
    rpc: &'a str,
    chosen_by_server: bool,
    learned: &'a mut Learned,
    differences: Vec<Difference>,
}

impl Walk<'_> {
    fn value(&mut self, path: String, expected: Option<&Value>, got: Option<&Value>) {
        match (expected, got) {
            (Some(Value::Object(expected)), Some(Value::Object(got))) => {
                for (name, value) in expected {
                    self.value(join(&path, name), Some(value), got.get(name));
                }
                for (name, value) in got {
                    if !expected.contains_key(name) {
                        self.value(join(&path, name), None, Some(value));
                    }
                }
            }
            (Some(Value::Array(expected)), Some(Value::Array(got))) => {
                for index in 0..expected.len().max(got.len()) {
                    self.value(
                        format!("{path}[{index}]"),
                        expected.get(index),
                        got.get(index),
                    );
                }
            }
            _ => self.leaf(path, expected, got),
        }
    }

    fn leaf(&mut self, path: String, expected: Option<&Value>, got: Option<&Value>) {
        let equal = match (rule(self.rpc, &path, self.chosen_by_server), expected, got) {
            (Rule::Present, Some(_), Some(_)) => true,
            (Rule::Learn, Some(Value::String(recorded)), Some(Value::String(actual))) => {
                self.learned.learn(recorded, actual);
                true
            }
            (Rule::Remaining, Some(Value::String(recorded)), Some(Value::String(actual))) => {
                about_equal(recorded, actual)
            }
            (Rule::Raised, Some(Value::String(recorded)), Some(Value::String(actual))) => {
                recorded == actual || (recorded == "3.5.0" && actual == "3.7.0")
            }
            (_, Some(Value::String(recorded)), Some(Value::String(actual))) => {
                let shifted = self.learned.number(&path, recorded);
                shifted
                    .as_deref()
                    .unwrap_or_else(|| self.learned.translate(recorded))
                    == actual
                    || stands_for(recorded, actual)
                    || (path.starts_with("errors[") && same_text(recorded, actual))
            }
            (_, expected, got) => expected == got,
        };
        if !equal {
            self.differences.push(Difference {
                path,
                expected: show(expected),
                got: show(got),
            });
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn about_equal(recorded: &str, actual: &str) -> bool {
    let (Ok(recorded), Ok(actual)) = (recorded.parse::<i64>(), actual.parse::<i64>()) else {
        return false;
    };
    recorded == actual
        || (recorded > 0
            && actual > 0
            && recorded.abs_diff(actual) <= TTL_SLACK_SECONDS.unsigned_abs())
}

/// Go's protobuf package varies its spaces on purpose, so that nobody compares its texts.
#[must_use]
pub fn same_text(recorded: &str, actual: &str) -> bool {
    let words = |text: &str| {
        text.split([' ', '\u{a0}'])
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    words(recorded) == words(actual)
}

/// Long values are recorded as `<N characters, sha256=...>` of their base64 text.
fn stands_for(recorded: &str, actual: &str) -> bool {
    recorded.starts_with('<') && recorded == abbreviate(actual)
}

fn abbreviate(text: &str) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(text.as_bytes()) {
        let _ = write!(hex, "{byte:02x}");
    }
    format!("<{} characters, sha256={hex}>", text.len())
}

/// A value for people: text behind base64 is shown beside it.
fn show(value: Option<&Value>) -> String {
    match value {
        None => "(not there)".to_owned(),
        Some(Value::String(text)) if text.len() > 200 => abbreviate(text),
        Some(Value::String(text)) => match STANDARD.decode(text) {
            Ok(bytes) if !bytes.is_empty() && text.parse::<i64>().is_err() => {
                format!("{text:?} (b\"{}\")", bytes.escape_ascii())
            }
            _ => format!("{text:?}"),
        },
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn differences(rpc: &str, expected: &Value, got: &Value) -> Vec<String> {
        let found = compare(rpc, expected, got, false, &mut Learned::default());
        found
            .into_iter()
            .map(|difference| difference.path)
            .collect()
    }

    #[test]
    fn a_difference_carries_the_path_of_its_field() {
        let expected =
            json!({"header": {"revision": "2"}, "kvs": [{"key": "YQ=="}, {"key": "Yg=="}]});
        let got = json!({"header": {"revision": "3"}, "kvs": [{"key": "YQ==", "lease": "1"}]});
        assert_eq!(
            differences("/x", &expected, &got),
            ["header.revision", "kvs[0].lease", "kvs[1]"]
        );
    }

    #[test]
    fn a_chosen_token_is_learned_and_a_zero_term_is_not_enough() {
        let mut learned = Learned::default();
        let rpc = "/etcdserverpb.Auth/Authenticate";
        let found = compare(
            rpc,
            &json!({"header": {"raft_term": "2"}, "token": "a.1"}),
            &json!({"header": {}, "token": "b.2"}),
            false,
            &mut learned,
        );
        assert_eq!(found.first().unwrap().path, "header.raft_term");
        assert_eq!(learned.translate("a.1"), "b.2");
    }

    #[test]
    fn an_added_members_id_is_learned_and_put_into_requests() {
        let mut learned = Learned::default();
        let found = compare(
            "/etcdserverpb.Cluster/MemberAdd",
            &json!({"member": {"ID": "300"}, "members": [{"ID": "1"}, {"ID": "300"}]}),
            &json!({"member": {"ID": "0"}, "members": [{"ID": "0"}, {"ID": "1"}]}),
            false,
            &mut learned,
        );
        assert_eq!(found, []);
        // 300 takes two bytes, its stand-in one; what follows stays.
        let request = learned.request(&json!({"ID": "300"}), &[0x08, 0xac, 0x02, 0x12, 0x00]);
        assert_eq!(request, [0x08, 0x00, 0x12, 0x00]);
        let other = learned.request(&json!({"ID": "301"}), &[0x08, 0xad, 0x02]);
        assert_eq!(other, [0x08, 0xad, 0x02]);
    }

    #[test]
    fn a_remaining_time_may_differ_a_little_but_not_in_its_sign() {
        let rpc = "/etcdserverpb.Lease/LeaseTimeToLive";
        assert!(differences(rpc, &json!({"TTL": "599"}), &json!({"TTL": "597"})).is_empty());
        assert_eq!(
            differences(rpc, &json!({"TTL": "-1"}), &json!({"TTL": "1"})),
            ["TTL"]
        );
        assert_eq!(
            differences(rpc, &json!({"TTL": "599"}), &json!({"TTL": "500"})),
            ["TTL"]
        );
    }
}
