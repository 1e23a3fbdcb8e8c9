//! What clients did and saw, as plain data: of a simulated cluster or of real processes.

use std::collections::BTreeMap;

/// A key, or a value.
pub type Bytes = Vec<u8>;

/// A key with what is stored under it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The revision that made it.
    pub create_revision: i64,
    /// The revision that changed it last.
    pub mod_revision: i64,
    /// Changes since it was made, from 1 on.
    pub version: i64,
    /// The lease that it is attached to, or 0.
    pub lease: i64,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// The key has this now.
    Put(Row),
    /// The key is gone.
    Delete(Bytes),
}

impl Change {
    /// Whose change it is.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self {
            Change::Put(row) => &row.key,
            Change::Delete(key) => key,
        }
    }
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put {
        /// The key.
        key: Bytes,
        /// Its value.
        value: Bytes,
        /// Its lease, or 0.
        lease: i64,
    },
    /// Deletes a key, if there is one.
    Delete {
        /// The key.
        key: Bytes,
    },
}

/// What a transaction asks of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It was changed last at this revision; 0: it does not exist.
    ModRevision(i64),
    /// It has this value.
    Value(Bytes),
}

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// One write.
    Write(Write),
    /// Writes that depend on a key.
    Txn {
        /// The key that is looked at.
        key: Bytes,
        /// What it must be.
        expected: Expected,
        /// What to do then.
        then: Vec<Write>,
        /// What to do else.
        otherwise: Vec<Write>,
    },
    /// A read of all keys, or of one.
    Read {
        /// Which, if not all.
        key: Option<Bytes>,
        /// Whether an old state will do.
        serializable: bool,
    },
}

/// What a client was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The header's revision.
    pub revision: i64,
    /// Keys deleted, by a single deletion.
    pub deleted: i64,
    /// Whether the condition of a transaction held.
    pub succeeded: bool,
    /// What a read found, in key order.
    pub rows: Vec<Row>,
}

/// One request. Those that were refused for certain, and changed nothing, are left out.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Who asked, for messages.
    pub client: u64,
    /// When, on a clock that all clients share.
    pub called: u64,
    /// When the answer came, and what it was; `None` where nobody knows whether it happened.
    pub answer: Option<(u64, Response)>,
    /// What for.
    pub request: Request,
}

/// What clients did, and what is known of the revisions otherwise.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// All requests.
    pub operations: Vec<Operation>,
    /// What revisions changed, as far as it was seen by other means, such as a watch of all keys.
    pub observed: BTreeMap<i64, Vec<Change>>,
}

/// The store as a history builds it: revision 1 is the empty one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Model {
    /// The current revision.
    pub revision: i64,
    rows: BTreeMap<Bytes, Row>,
}

impl Default for Model {
    fn default() -> Model {
        Model {
            revision: 1,
            rows: BTreeMap::new(),
        }
    }
}

impl Model {
    /// What is stored under a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&Row> {
        self.rows.get(key)
    }

    /// What a read finds.
    #[must_use]
    pub fn read(&self, key: Option<&Bytes>) -> Vec<Row> {
        match key {
            Some(key) => self.rows.get(key).into_iter().cloned().collect(),
            None => self.rows.values().cloned().collect(),
        }
    }

    /// Whether the condition of a transaction holds.
    #[must_use]
    pub fn holds(&self, key: &[u8], expected: &Expected) -> bool {
        let row = self.rows.get(key);
        match expected {
            Expected::ModRevision(revision) => row.map_or(0, |row| row.mod_revision) == *revision,
            Expected::Value(value) => row.is_some_and(|row| row.value == *value),
        }
    }

    /// What writes of one revision, the next one, would change: nothing at all, perhaps.
    #[must_use]
    pub fn changes(&self, writes: &[Write]) -> Vec<Change> {
        let revision = self.revision + 1;
        let change = |write: &Write| match write {
            Write::Put { key, value, lease } => {
                let before = self.rows.get(key);
                Some(Change::Put(Row {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: before.map_or(revision, |row| row.create_revision),
                    mod_revision: revision,
                    version: before.map_or(1, |row| row.version + 1),
                    lease: *lease,
                }))
            }
            Write::Delete { key } => {
                let exists = self.rows.contains_key(key);
                exists.then(|| Change::Delete(key.clone()))
            }
        };
        writes.iter().filter_map(change).collect()
    }

    /// What a request would change. Each key is written once, at most.
    #[must_use]
    pub fn changes_of(&self, request: &Request) -> Vec<Change> {
        match request {
            Request::Write(write) => self.changes(std::slice::from_ref(write)),
            Request::Txn {
                key,
                expected,
                then,
                otherwise,
            } => {
                let holds = self.holds(key, expected);
                self.changes(if holds { then } else { otherwise })
            }
            Request::Read { .. } => Vec::new(),
        }
    }

    /// Carries changes out, as the next revision.
    pub fn apply(&mut self, changes: &[Change]) {
        self.revision += 1;
        for change in changes {
            match change {
                Change::Put(row) => {
                    self.rows.insert(row.key.clone(), row.clone());
                }
                Change::Delete(key) => {
                    self.rows.remove(key);
                }
            }
        }
    }

    /// Whether an answer is what a request must get that changes nothing, or has changed `changes` from
    /// this state on.
    #[must_use]
    pub fn agrees(&self, request: &Request, response: &Response, changes: &[Change]) -> bool {
        let revision = self.revision + i64::from(!changes.is_empty());
        if response.revision != revision {
            return false;
        }
        match request {
            Request::Write(Write::Put { .. }) => !changes.is_empty(),
            Request::Write(Write::Delete { .. }) => {
                usize::try_from(response.deleted) == Ok(changes.len())
            }
            Request::Txn { key, expected, .. } => response.succeeded == self.holds(key, expected),
            Request::Read { key, .. } => response.rows == self.read(key.as_ref()),
        }
    }
}
