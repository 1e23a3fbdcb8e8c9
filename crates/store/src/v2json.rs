//! The membership as etcd 3.5 and 3.6 read it from a `.snap` file: a dump of their v2 store.
//!
//! 3.7 writes it for them and does not read it; so do we. Only what these versions look at is in
//! it: members, removed members, and the cluster's version, below `/0`. See section 4.1 of the
//! formats and `docs/format/snap.md`.

use std::collections::BTreeMap;

use keelson_proto::ids::MemberId;
use serde::{Deserialize, Serialize};

/// A time that is never reached: nothing here expires.
const NEVER: &str = "0001-01-01T00:00:00Z";
/// How many events the v2 store remembers; the list is written in full, whatever is in it.
const EVENTS: usize = 1000;
/// The version of the v2 store's own format.
const STORE_VERSION: u64 = 2;
/// The index of nodes that a member made; those of the store itself have 0.
const NODE_INDEX: u64 = 1;

/// A member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: MemberId,
    /// Its name; empty before it has started for the first time.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty before it has started for the first time.
    pub client_urls: Vec<String>,
    /// Whether it does not vote.
    pub is_learner: bool,
}

/// A membership, as the dump holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// The members, in any order; read back by the text of their ids.
    pub members: Vec<Member>,
    /// Ids that were removed and may never come back.
    pub removed: Vec<MemberId>,
    /// The cluster's version, as `3.6.0`; `None` before it was agreed upon.
    pub cluster_version: Option<String>,
    /// The v2 store's index. Any number will do; it only ever grew.
    pub index: u64,
}

/// Why a dump cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The dump, or a value in it, is not the JSON that it should be.
    #[error("v2 store: {what}: {source}")]
    Json {
        /// What was read: the dump, or a node's path.
        what: String,
        /// What was found.
        source: serde_json::Error,
    },
    /// A member's node is not named by an id.
    #[error("v2 store: {name:?} is no member id")]
    MemberId {
        /// The node's name.
        name: String,
    },
}

/// A node of the v2 store: a directory, or a file, which has no children at all.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Node {
    path: String,
    created_index: u64,
    modified_index: u64,
    expire_time: String,
    value: String,
    children: Option<BTreeMap<String, Node>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Store {
    root: Node,
    #[serde(skip_deserializing)]
    watcher_hub: WatcherHub,
    current_index: u64,
    #[serde(skip_deserializing)]
    stats: Stats,
    current_version: u64,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct WatcherHub {
    event_history: EventHistory,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct EventHistory {
    queue: Queue,
    start_index: u64,
    last_index: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Queue {
    events: Vec<Option<()>>,
    size: usize,
    front: usize,
    back: usize,
    capacity: usize,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue {
            events: vec![None; EVENTS],
            size: 0,
            front: 0,
            back: 0,
            capacity: EVENTS,
        }
    }
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    gets_success: u64,
    gets_fail: u64,
    sets_success: u64,
    sets_fail: u64,
    delete_success: u64,
    delete_fail: u64,
    update_success: u64,
    update_fail: u64,
    create_success: u64,
    create_fail: u64,
    compare_and_swap_success: u64,
    compare_and_swap_fail: u64,
    compare_and_delete_success: u64,
    compare_and_delete_fail: u64,
    expire_count: u64,
    watchers: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct RaftAttributes {
    #[serde(rename = "peerURLs")]
    peer_urls: Option<Vec<String>>,
    #[serde(rename = "isLearner", skip_serializing_if = "is_false")]
    is_learner: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Attributes {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(rename = "clientURLs", skip_serializing_if = "Option::is_none")]
    client_urls: Option<Vec<String>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Node {
    fn file(path: String, value: String) -> Node {
        Node {
            path,
            created_index: NODE_INDEX,
            modified_index: NODE_INDEX,
            expire_time: NEVER.to_owned(),
            value,
            children: None,
        }
    }

    fn dir(path: String, children: BTreeMap<String, Node>) -> Node {
        Node {
            children: Some(children),
            ..Node::file(path, String::new())
        }
    }

    /// A directory that every store has from the start.
    fn first(path: &str, children: BTreeMap<String, Node>) -> Node {
        Node {
            created_index: 0,
            modified_index: 0,
            ..Node::dir(path.to_owned(), children)
        }
    }

    fn child(&self, name: &str) -> Option<&Node> {
        self.children.as_ref()?.get(name)
    }

    /// The names and nodes below; none for a file.
    fn below(&self) -> impl Iterator<Item = (&String, &Node)> {
        self.children.iter().flatten()
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain structs of text and numbers are always JSON")
}

fn read<'a, T: Deserialize<'a>>(what: &str, text: &'a [u8]) -> Result<T, Malformed> {
    serde_json::from_slice(text).map_err(|source| Malformed::Json {
        what: what.to_owned(),
        source,
    })
}

fn member_id(name: &str) -> Result<MemberId, Malformed> {
    u64::from_str_radix(name, 16)
        .map(MemberId)
        .map_err(|_| Malformed::MemberId {
            name: name.to_owned(),
        })
}

impl Member {
    fn to_node(&self) -> Node {
        let path = format!("/0/members/{}", self.id);
        let raft = RaftAttributes {
            peer_urls: Some(self.peer_urls.clone()),
            is_learner: self.is_learner,
        };
        let raft_path = format!("{path}/raftAttributes");
        let mut children = BTreeMap::from([(
            "raftAttributes".to_owned(),
            Node::file(raft_path, json(&raft)),
        )]);
        // A member that never started has published nothing.
        if !self.client_urls.is_empty() {
            let attributes = Attributes {
                name: self.name.clone(),
                client_urls: Some(self.client_urls.clone()),
            };
            children.insert(
                "attributes".to_owned(),
                Node::file(format!("{path}/attributes"), json(&attributes)),
            );
        }
        Node::dir(path, children)
    }

    fn from_node(name: &str, node: &Node) -> Result<Member, Malformed> {
        let raft: RaftAttributes = match node.child("raftAttributes") {
            Some(file) => read(&file.path, file.value.as_bytes())?,
            None => RaftAttributes::default(),
        };
        let attributes: Attributes = match node.child("attributes") {
            Some(file) => read(&file.path, file.value.as_bytes())?,
            None => Attributes::default(),
        };
        Ok(Member {
            id: member_id(name)?,
            name: attributes.name,
            peer_urls: raft.peer_urls.unwrap_or_default(),
            client_urls: attributes.client_urls.unwrap_or_default(),
            is_learner: raft.is_learner,
        })
    }
}

impl Dump {
    /// The dump's bytes: what a `.snap` file's data is.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut cluster = BTreeMap::new();
        let members = self.members.iter();
        let members = members.map(|member| (member.id.to_string(), member.to_node()));
        cluster.insert(
            "members".to_owned(),
            Node::dir("/0/members".to_owned(), members.collect()),
        );
        if !self.removed.is_empty() {
            let path = "/0/removed_members";
            let removed = self.removed.iter().map(|id| {
                let file = Node::file(format!("{path}/{id}"), String::new());
                (id.to_string(), file)
            });
            cluster.insert(
                "removed_members".to_owned(),
                Node::dir(path.to_owned(), removed.collect()),
            );
        }
        if let Some(version) = &self.cluster_version {
            cluster.insert(
                "version".to_owned(),
                Node::file("/0/version".to_owned(), version.clone()),
            );
        }
        let top = BTreeMap::from([
            ("0".to_owned(), Node::first("/0", cluster)),
            ("1".to_owned(), Node::first("/1", BTreeMap::new())),
        ]);
        let store = Store {
            root: Node::first("/", top),
            current_index: self.index,
            current_version: STORE_VERSION,
            ..Store::default()
        };
        json(&store).into_bytes()
    }

    /// Reads a dump of any version of etcd; what it has beyond the membership is passed over, and
    /// what is absent is empty.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Dump, Malformed> {
        let store: Store = read("dump", bytes)?;
        let mut dump = Dump {
            index: store.current_index,
            ..Dump::default()
        };
        let Some(cluster) = store.root.child("0") else {
            return Ok(dump);
        };
        if let Some(members) = cluster.child("members") {
            for (name, node) in members.below() {
                dump.members.push(Member::from_node(name, node)?);
            }
        }
        if let Some(removed) = cluster.child("removed_members") {
            for (name, _) in removed.below() {
                dump.removed.push(member_id(name)?);
            }
        }
        dump.cluster_version = cluster
            .child("version")
            .map(|version| version.value.clone());
        Ok(dump)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// What a single member of etcd 3.6.14 wrote, but for the empty places of its event list.
    const ETCD_3_6: &str = include_str!("v2json/etcd-3.6.json");

    fn one_member() -> Dump {
        Dump {
            members: vec![Member {
                id: MemberId(0xddd6_7b31_2462_fd7b),
                name: "m1".to_owned(),
                peer_urls: vec!["http://127.0.0.1:12380".to_owned()],
                client_urls: vec!["http://127.0.0.1:12379".to_owned()],
                is_learner: false,
            }],
            removed: Vec::new(),
            cluster_version: Some("3.6.0".to_owned()),
            index: 3,
        }
    }

    /// Takes out what may have any value: indexes, counts, and remembered events.
    fn without_numbers(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if name == "Events" {
                        *value = Value::Null;
                    }
                    without_numbers(value);
                }
            }
            Value::Number(_) => *value = Value::Null,
            _ => {}
        }
    }

    #[test]
    fn a_dump_has_the_form_of_etcds() {
        let mut theirs: Value = serde_json::from_str(ETCD_3_6).unwrap();
        let mut ours: Value = serde_json::from_slice(&one_member().encode()).unwrap();
        assert_eq!(
            ours["WatcherHub"]["EventHistory"]["Queue"]["Events"]
                .as_array()
                .unwrap()
                .len(),
            EVENTS
        );
        assert_eq!(ours["CurrentIndex"], theirs["CurrentIndex"]);
        assert_eq!(ours["CurrentVersion"], theirs["CurrentVersion"]);
        without_numbers(&mut theirs);
        without_numbers(&mut ours);
        assert_eq!(ours, theirs);
    }

    #[test]
    fn etcds_dump_is_read() {
        assert_eq!(Dump::decode(ETCD_3_6.as_bytes()).unwrap(), one_member());
    }

    #[test]
    fn members_that_never_started_learners_and_removed_ones_come_back() {
        let mut dump = one_member();
        dump.members.insert(
            0,
            Member {
                id: MemberId(0x1f),
                peer_urls: vec!["http://a".to_owned(), "http://b".to_owned()],
                is_learner: true,
                ..Member::default()
            },
        );
        dump.removed = vec![MemberId(5), MemberId(u64::MAX)];
        let bytes = dump.encode();
        assert_eq!(Dump::decode(&bytes).unwrap(), dump);
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        let cluster = &value["Root"]["Children"]["0"]["Children"];
        let learner = &cluster["members"]["Children"]["1f"]["Children"];
        assert_eq!(
            learner["raftAttributes"]["Value"],
            r#"{"peerURLs":["http://a","http://b"],"isLearner":true}"#
        );
        assert!(learner.get("attributes").is_none());
        let removed = &cluster["removed_members"]["Children"]["5"];
        assert_eq!(removed["Path"], "/0/removed_members/5");
        assert_eq!(removed["Children"], Value::Null);
    }

    #[test]
    fn what_is_absent_is_empty_and_what_is_wrong_is_an_error() {
        assert_eq!(Dump::decode(b"{}").unwrap(), Dump::default());
        assert_eq!(
            Dump::decode(&Dump::default().encode()).unwrap(),
            Dump::default()
        );
        assert!(matches!(
            Dump::decode(b"[1"),
            Err(Malformed::Json { what, .. }) if what == "dump"
        ));
        let text = String::from_utf8(one_member().encode()).unwrap();
        let bad_id = text.replace(r#""ddd67b312462fd7b""#, r#""member""#);
        assert!(matches!(
            Dump::decode(bad_id.as_bytes()),
            Err(Malformed::MemberId { name }) if name == "member"
        ));
        let bad_value = text.replace("peerURLs", r"\u0022");
        assert!(matches!(
            Dump::decode(bad_value.as_bytes()),
            Err(Malformed::Json { what, .. }) if what.ends_with("raftAttributes")
        ));
    }
}
