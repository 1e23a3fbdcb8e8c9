//! One client's operations.

use bytes::Bytes;
use keelson_client::{Client, Error, Get, Put, Span};

use crate::Work;
use crate::load::{Data, PREFIX};

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
    List(List),
}

#[derive(Debug)]
struct List {
    page: i64,
    serializable: bool,
    /// Where the next page begins.
    begin: Bytes,
    /// Where the last one ends.
    end: Bytes,
}

impl Worker {
    /// `None` if the work is not of this kind.
    pub(crate) fn new(work: &Work, client: Client, data: Data) -> Option<Worker> {
        let task = match *work {
            Work::Put => Task::Put,
            Work::Get { serializable } => Task::Get { serializable },
            Work::List { page, serializable } => Task::List(List {
                page: i64::try_from(page).unwrap_or(i64::MAX),
                serializable,
                begin: Bytes::from_static(PREFIX.as_bytes()),
                // The prefix ends in a slash, and this is the byte after it.
                end: Bytes::from_static(b"bench0"),
            }),
            Work::Watch { .. } => return None,
        };
        Some(Worker { client, data, task })
    }

    /// Does operation `number` of the run. Answers with the keys it wrote or read.
    pub(crate) async fn once(&mut self, number: u64) -> Result<u64, Error> {
        match &mut self.task {
            Task::Put => {
                let put = Put::new(self.data.any_key(number), self.data.value.clone());
                self.client.put(put).await?;
                Ok(1)
            }
            Task::Get { serializable } => {
                let get = Get::key(self.data.any_key(number));
                let answer = self.client.get(consistency(get, *serializable)).await?;
                Ok(answer.kvs.len() as u64)
            }
            Task::List(list) => list.once(&self.client).await,
        }
    }
}

impl List {
    async fn once(&mut self, client: &Client) -> Result<u64, Error> {
        let span = Span::range(self.begin.clone(), self.end.clone());
        let get = Get::span(span).limit(self.page);
        let answer = client.get(consistency(get, self.serializable)).await?;
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
