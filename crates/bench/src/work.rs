//! One client's operations.

use bytes::Bytes;
use keelson_client::{Client, Compare, Error, Get, Put, Relation, Renewal, Span, Txn};

use crate::Work;
use crate::load::{Data, PREFIX, mix};

/// Seconds to live of leases: no run lasts so long that one ends in it.
const LEASE_SECONDS: i64 = 7_200;

/// A client that does one operation after the other.
#[derive(Debug)]
pub(crate) struct Worker {
    client: Client,
    data: Data,
    task: Task,
}

#[derive(Debug)]
enum Task {
    Put,
    Get { serializable: bool },
    Count { serializable: bool },
    Mixed { writes: u64 },
    Update,
    List(List),
    KeepAlive(Box<Renewal>),
    Lease,
}

#[derive(Debug)]
struct List {
    page: i64,
    serializable: bool,
    stream: bool,
    /// Where the next page begins.
    begin: Bytes,
    /// Where the last one ends.
    end: Bytes,
}

impl Worker {
    /// Makes ready for work that is scheduled by operations: `None` if it is not.
    ///
    /// # Errors
    /// A lease that the server does not grant.
    pub(crate) async fn new(
        work: &Work,
        client: Client,
        data: Data,
    ) -> Result<Option<Worker>, Error> {
        let task = match *work {
            Work::Put => Task::Put,
            Work::Get { serializable } => Task::Get { serializable },
            Work::Count { serializable } => Task::Count { serializable },
            Work::Mixed { writes } => Task::Mixed { writes },
            Work::Update => Task::Update,
            Work::List {
                page,
                serializable,
                stream,
            } => Task::List(List {
                page: i64::try_from(page).unwrap_or(i64::MAX),
                serializable,
                stream,
                begin: Bytes::from_static(PREFIX.as_bytes()),
                // The prefix ends in a slash, and this is the byte after it.
                end: Bytes::from_static(b"bench0"),
            }),
            Work::KeepAlive => {
                let lease = client.lease_grant(LEASE_SECONDS, 0).await?.id;
                let mut renewal = client.renewal(lease);
                renewal.renew().await?;
                Task::KeepAlive(Box::new(renewal))
            }
            Work::Lease => Task::Lease,
            Work::Watch { .. } | Work::Lag { .. } => return Ok(None),
        };
        Ok(Some(Worker { client, data, task }))
    }

    /// Does operation `number` of the run. Answers with the keys it wrote or read, or the leases.
    pub(crate) async fn once(&mut self, number: u64) -> Result<u64, Error> {
        let (client, data) = (&self.client, &self.data);
        match &mut self.task {
            Task::Put => put(client, data, number).await,
            Task::Get { serializable } => get(client, data, number, *serializable).await,
            Task::Count { serializable } => {
                let get = Get::prefix(PREFIX).count_only();
                let answer = client.get(consistency(get, *serializable)).await?;
                Ok(answer.count.unsigned_abs())
            }
            Task::Mixed { writes } if mix(!number) % 100 < *writes => {
                put(client, data, number).await
            }
            Task::Mixed { .. } => get(client, data, number, false).await,
            Task::Update => update(client, data, number).await,
            Task::List(list) => list.once(client).await,
            Task::KeepAlive(renewal) => renewal.renew().await.map(|_seconds| 1),
            Task::Lease => {
                let lease = client.lease_grant(LEASE_SECONDS, 0).await?.id;
                let put = Put::new(data.any_key(number), data.value.clone());
                client.put(put.lease(lease)).await?;
                client.lease_revoke(lease).await?;
                Ok(1)
            }
        }
    }

    /// Takes back what it made ready.
    ///
    /// # Errors
    /// A lease that the server does not revoke.
    pub(crate) async fn end(self) -> Result<(), Error> {
        if let Task::KeepAlive(renewal) = self.task {
            self.client.lease_revoke(renewal.id()).await?;
        }
        Ok(())
    }
}

async fn put(client: &Client, data: &Data, number: u64) -> Result<u64, Error> {
    let put = Put::new(data.any_key(number), data.value.clone());
    client.put(put).await?;
    Ok(1)
}

async fn get(client: &Client, data: &Data, number: u64, serializable: bool) -> Result<u64, Error> {
    let get = Get::key(data.any_key(number));
    let answer = client.get(consistency(get, serializable)).await?;
    Ok(answer.kvs.len() as u64)
}

/// As Kubernetes changes an object: reads it, and writes it if nobody else has meanwhile. Somebody
/// else may have: that is no failure, but counts no key.
async fn update(client: &Client, data: &Data, number: u64) -> Result<u64, Error> {
    let key = data.any_key(number);
    let read = client.get(Get::key(key.clone())).await?;
    let seen = read.kvs.first().map_or(0, |kv| kv.mod_revision);
    let unchanged = Compare::mod_revision(Span::key(key.clone()), Relation::Equal, seen);
    let txn = Txn::new()
        .when(unchanged)
        .then(Put::new(key.clone(), data.value.clone()))
        .otherwise(Get::key(key));
    Ok(u64::from(client.txn(txn).await?.succeeded))
}

impl List {
    async fn once(&mut self, client: &Client) -> Result<u64, Error> {
        let span = Span::range(self.begin.clone(), self.end.clone());
        let get = consistency(Get::span(span).limit(self.page), self.serializable);
        if self.stream {
            // Piece by piece: the generator need not hold what the server does not.
            let mut stream = client.range_stream(get).await?;
            let mut keys = 0;
            while let Some(piece) = stream.next().await? {
                keys += piece.kvs.len() as u64;
            }
            return Ok(keys);
        }
        let answer = client.get(get).await?;
        self.begin = match answer.kvs.last() {
            Some(last) if answer.more => {
                let mut after = Vec::with_capacity(last.key.len() + 1);
                after.extend_from_slice(&last.key);
                after.push(0);
                Bytes::from(after)
            }
            _ => Bytes::from_static(PREFIX.as_bytes()),
        };
        Ok(answer.kvs.len() as u64)
    }
}

fn consistency(get: Get, serializable: bool) -> Get {
    if serializable {
        get.serializable()
    } else {
        get
    }
}
