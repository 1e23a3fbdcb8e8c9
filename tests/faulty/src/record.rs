//! What clients did and saw, as it happens, in the form in which `keelson_sim` checks it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use keelson_client::mvccpb::event::EventType;
use keelson_client::mvccpb::{Event, KeyValue};
use keelson_client::{Client, Compare, Delete, Error, Get, Op, Put, Relation, Span, Txn};
use keelson_sim::history::{Change, Expected, Operation, Request, Response, Row, Write};

/// Records the calls of all clients, on one clock.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    /// By their beginning; none where the call was refused for certain.
    operations: Mutex<Vec<Option<Operation>>>,
    unique: AtomicU64,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder {
            began: Instant::now(),
            operations: Mutex::default(),
            unique: AtomicU64::default(),
        }
    }
}

impl Recorder {
    /// A number that nobody else gets.
    pub fn unique(&self) -> u64 {
        self.unique.fetch_add(1, Ordering::Relaxed)
    }

    /// Everything so far, by beginning. What has no answer now has none.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        self.lock().iter().flatten().cloned().collect()
    }

    /// Calls, and records when, and what came of it. Where this is dropped before it ends, nobody knows
    /// whether the request happened.
    ///
    /// # Errors
    /// What the client says.
    pub async fn call(
        &self,
        who: u64,
        client: &Client,
        request: Request,
    ) -> Result<Response, Error> {
        let number = self.begin(who, request.clone());
        let answer = send(client, &request).await;
        let at = self.now();
        let mut operations = self.lock();
        match &answer {
            Ok(response) => {
                if let Some(operation) = &mut operations[number] {
                    operation.answer = Some((at, response.clone()));
                }
            }
            // Whatever a server says of a write that failed, it may have happened.
            Err(error) if is_read(&request) || error.is_not_sent() => operations[number] = None,
            Err(_) => {}
        }
        answer
    }

    fn begin(&self, client: u64, request: Request) -> usize {
        let mut operations = self.lock();
        operations.push(Some(Operation {
            client,
            called: self.now(),
            answer: None,
            request,
        }));
        operations.len() - 1
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Operation>>> {
        self.operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

fn is_read(request: &Request) -> bool {
    matches!(request, Request::Read { .. })
}

/// A put of a value under a key.
#[must_use]
pub fn put(key: String, value: String) -> Write {
    Write::Put {
        key: key.into_bytes(),
        value: value.into_bytes(),
        lease: 0,
    }
}

async fn send(client: &Client, request: &Request) -> Result<Response, Error> {
    let mut response = Response {
        revision: 0,
        deleted: 0,
        succeeded: false,
        rows: Vec::new(),
    };
    let header = match request {
        Request::Write(Write::Put { key, value, lease }) => {
            let put = Put::new(key.clone(), value.clone()).lease(*lease);
            client.put(put).await?.header
        }
        Request::Write(Write::Delete { key }) => {
            let answer = client.delete(Delete::key(key.clone())).await?;
            response.deleted = answer.deleted;
            answer.header
        }
        Request::Txn {
            key,
            expected,
            then,
            otherwise,
        } => {
            let mut txn = Txn::new().when(compare(key, expected));
            for write in then {
                txn = txn.then(operation(write));
            }
            for write in otherwise {
                txn = txn.otherwise(operation(write));
            }
            let answer = client.txn(txn).await?;
            response.succeeded = answer.succeeded;
            answer.header
        }
        Request::Read { key, serializable } => {
            let get = key.clone().map_or_else(Get::all, Get::key);
            let get = if *serializable {
                get.serializable()
            } else {
                get
            };
            let answer = client.get(get).await?;
            response.rows = answer.kvs.iter().map(row).collect();
            answer.header
        }
    };
    response.revision = header.map_or(0, |header| header.revision);
    Ok(response)
}

fn compare(key: &[u8], expected: &Expected) -> Compare {
    let span = Span::key(key.to_vec());
    match expected {
        Expected::ModRevision(revision) => Compare::mod_revision(span, Relation::Equal, *revision),
        Expected::Value(value) => Compare::value(span, Relation::Equal, value.clone()),
    }
}

fn operation(write: &Write) -> Op {
    match write {
        Write::Put { key, value, lease } => {
            Put::new(key.clone(), value.clone()).lease(*lease).into()
        }
        Write::Delete { key } => Delete::key(key.clone()).into(),
    }
}

fn row(kv: &KeyValue) -> Row {
    Row {
        key: kv.key.to_vec(),
        value: kv.value.to_vec(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

/// What an event of a watch says, with its revision.
#[must_use]
pub fn change(event: &Event) -> (i64, Change) {
    let kv = event.kv.clone().unwrap_or_default();
    let change = if event.r#type() == EventType::Delete {
        Change::Delete(kv.key.to_vec())
    } else {
        Change::Put(row(&kv))
    };
    (kv.mod_revision, change)
}
