//! What a run does, and the bounds that keep it finite.

use std::time::Duration;

use anyhow::ensure;

/// Where the server is when nothing is said: this machine.
pub const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";

/// Operations of a run at most.
const TOTAL_MAX: u64 = 1_000_000_000;
const DURATION_MAX: Duration = Duration::from_secs(3600);
/// Members, and processes, that a run may name.
const ENDPOINTS_MAX: usize = 100;
const CONNECTIONS_MAX: usize = 10_000;
const CLIENTS_MAX: usize = 100_000;
const WATCHERS_MAX: usize = 1_000_000;
const KEYS_MAX: u64 = 100_000_000;
const KEY_SIZE_MAX: usize = 4_096;
/// Below the largest request of a server with its defaults.
const VALUE_SIZE_MAX: usize = 1_500_000;
const THREADS_MAX: usize = 64;

/// One kind of work.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Work {
    /// Writes of single keys.
    Put,
    /// Reads of single keys.
    Get {
        /// Without asking whether what the member has is the latest.
        serializable: bool,
    },
    /// Reads of many keys.
    List {
        /// Keys of a page, of which each client walks one after the other; 0: all keys at once.
        page: u64,
        /// As for [`Work::Get`].
        serializable: bool,
        /// All keys, as a stream of pieces (`RangeStream`); `page` must be 0.
        stream: bool,
    },
    /// How many keys there are, of all that the run's keys could be.
    Count {
        /// As for [`Work::Get`].
        serializable: bool,
    },
    /// Puts, and linearizable gets, of single keys.
    Mixed {
        /// Puts among 100 operations.
        writes: u64,
    },
    /// A get of a key and a transaction that puts it if it is unchanged, as Kubernetes writes.
    Update,
    /// Renewals of leases, of which each client has one.
    KeepAlive,
    /// A lease granted, a key put with it, the lease revoked: one operation.
    Lease,
    /// Puts, beside watchers that come again and again from far behind; an operation is a put.
    Lag {
        /// Watchers, each of one key, each on a stream of its own.
        watchers: usize,
        /// Revisions that they are behind whenever they come.
        behind: u64,
        /// How long after it came each of them comes again, if it has caught up by then; with zero as soon
        /// as it has.
        every: Duration,
    },
    /// Writes that watchers see; an operation is an event at a watcher.
    Watch {
        /// Watchers, all of all keys.
        watchers: usize,
        /// Streams that carry them.
        streams: usize,
    },
}

impl Work {
    /// Its name on the command line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Work::Put => "put",
            Work::Get { .. } => "get",
            Work::List { .. } => "list",
            Work::Count { .. } => "count",
            Work::Mixed { .. } => "mixed",
            Work::Update => "update",
            Work::KeepAlive => "keep-alive",
            Work::Lease => "lease",
            Work::Watch { .. } => "watch",
            Work::Lag { .. } => "lag",
        }
    }

    /// Whether there must be keys before it begins.
    pub(crate) fn reads(&self) -> bool {
        matches!(
            self,
            Work::Get { .. }
                | Work::List { .. }
                | Work::Count { .. }
                | Work::Mixed { .. }
                | Work::Update
        )
    }
}

/// What a run does.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Where the members are; connections are spread over them. At least one.
    pub endpoints: Vec<String>,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// What is done.
    pub work: Work,
    /// Connections.
    pub connections: usize,
    /// Clients, each with one operation at a time, spread over the connections.
    pub clients: usize,
    /// Operations (writes, for [`Work::Watch`]); `None`: as many as `duration` allows.
    pub total: Option<u64>,
    /// After this no operation is begun; `None`: an hour.
    pub duration: Option<Duration>,
    /// Operations that are begun in a second, whether earlier ones are done or not as long as there
    /// are clients; `None`: each client begins when it is done.
    pub rate: Option<u64>,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value.
    pub value_size: usize,
    /// Different keys.
    pub keys: u64,
    /// Writes all keys before it reads any.
    pub populate: bool,
    /// The members' processes, for what they cost together; none: nothing is measured of them.
    pub pids: Vec<u32>,
    /// Threads of the generator.
    pub threads: usize,
    /// Connections beside those, over which nothing goes while the load runs.
    pub idle_connections: usize,
    /// Watchers beside the load, each of a key that nobody writes.
    pub idle_watchers: usize,
}

impl Spec {
    /// `work` in a small, short run on this machine.
    #[must_use]
    pub fn new(work: Work) -> Spec {
        Spec {
            endpoints: vec![DEFAULT_ENDPOINT.to_owned()],
            user: None,
            work,
            connections: 1,
            clients: 16,
            total: Some(10_000),
            duration: None,
            rate: None,
            key_size: 32,
            value_size: 256,
            keys: 10_000,
            populate: true,
            pids: Vec::new(),
            threads: 1,
            idle_connections: 0,
            idle_watchers: 0,
        }
    }

    /// # Errors
    /// A number that is out of its bounds, by name.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        within("endpoints", self.endpoints.len(), 1, ENDPOINTS_MAX)?;
        within("pids", self.pids.len(), 0, ENDPOINTS_MAX)?;
        within("connections", self.connections, 1, CONNECTIONS_MAX)?;
        within("clients", self.clients, 1, CLIENTS_MAX)?;
        within("threads", self.threads, 1, THREADS_MAX)?;
        within(
            "idle-connections",
            self.idle_connections,
            0,
            CONNECTIONS_MAX,
        )?;
        within("idle-watchers", self.idle_watchers, 0, WATCHERS_MAX)?;
        within("value-size", self.value_size, 0, VALUE_SIZE_MAX)?;
        within("keys", self.keys, 1, KEYS_MAX)?;
        within("total", self.total.unwrap_or(1), 1, TOTAL_MAX)?;
        within("rate", self.rate.unwrap_or(1), 1, TOTAL_MAX)?;
        within("key-size", self.key_size, self.key_size_min(), KEY_SIZE_MAX)?;
        let duration = self.duration.unwrap_or(DURATION_MAX);
        ensure!(
            !duration.is_zero() && duration <= DURATION_MAX,
            "duration must be above 0 and at most {} s",
            DURATION_MAX.as_secs()
        );
        if let Work::Watch { watchers, streams } = self.work {
            within("watchers", watchers, 1, WATCHERS_MAX)?;
            within("streams", streams, 1, watchers)?;
            within("value-size", self.value_size, 8, VALUE_SIZE_MAX)?;
        }
        if let Work::List { page, stream, .. } = self.work {
            within("page", page, 0, if stream { 0 } else { KEYS_MAX })?;
        }
        if let Work::Mixed { writes } = self.work {
            within("writes", writes, 0, 100)?;
        }
        if let Work::Lag {
            watchers, behind, ..
        } = self.work
        {
            let keys = usize::try_from(self.keys).unwrap_or(usize::MAX);
            within("watchers", watchers, 1, keys.min(WATCHERS_MAX))?;
            within("behind", behind, 1, KEYS_MAX)?;
        }
        Ok(())
    }

    /// The number of a key must fit into it, behind the prefix.
    fn key_size_min(&self) -> usize {
        let digits = (self.keys - 1).checked_ilog10().unwrap_or(0) as usize + 1;
        crate::load::PREFIX.len() + digits
    }

    /// The longest that operations are begun.
    pub(crate) fn time_box(&self) -> Duration {
        self.duration.unwrap_or(DURATION_MAX)
    }
}

fn within<N: PartialOrd + std::fmt::Display>(
    name: &str,
    value: N,
    min: N,
    max: N,
) -> anyhow::Result<()> {
    ensure!(
        min <= value && value <= max,
        "{name} must be from {min} to {max}, not {value}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_named() {
        let refused = |change: fn(&mut Spec), text: &str| {
            let mut spec = Spec::new(Work::Put);
            change(&mut spec);
            assert_eq!(spec.check().unwrap_err().to_string(), text);
        };
        Spec::new(Work::Put).check().unwrap();
        refused(
            |spec| spec.clients = 0,
            "clients must be from 1 to 100000, not 0",
        );
        refused(
            |spec| spec.keys = 0,
            "keys must be from 1 to 100000000, not 0",
        );
        refused(
            |spec| spec.key_size = 9,
            "key-size must be from 10 to 4096, not 9",
        );
        refused(
            |spec| spec.total = Some(0),
            "total must be from 1 to 1000000000, not 0",
        );
        refused(
            |spec| spec.duration = Some(Duration::ZERO),
            "duration must be above 0 and at most 3600 s",
        );
    }
}
