//! The two members of the recordings that ask a learner and a follower.
//!
//! They reach each other at the addresses they announce, so these are free ports of this run, and the
//! ids of the cluster and of the first member, which are made of the addresses, are others too.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use prost::encoding::{bool as boolean, int64, string, uint64};
use serde_json::Value;

use super::call::Connection;
use super::compare::Learned;
use super::schema::Schema;
use super::script::{Script, Status};
use super::server::{Ports, Server};

/// No answer after this long is an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// Until the second member has everything, and until it may be promoted.
const CAUGHT_UP_DEADLINE: Duration = Duration::from_secs(120);

const RECORDED_CLUSTER: &str = "12101053776118486841";
const RECORDED_VOTER: &str = "15985099378392235387";
const RECORDED_ASKED: &str = "11029323473690158072";

/// The recorded ports: clients and peer of the first member, then of the second.
const RECORDED_PORTS: [&str; 4] = ["12379", "12380", "22379", "22380"];

/// The revision after what is written through the first member.
const WRITTEN: &str = "4";

/// A voter and a learner that has caught up: the learner first, then what must run beside it.
///
/// # Errors
/// When a member does not start, or the cluster does not come to that.
pub(super) async fn learner(
    script: &Script,
    schema: &Schema,
    learned: &mut Learned,
) -> Result<(Server, Vec<Server>)> {
    let pair = Pair::start(script, schema, learned).await?;
    Ok((pair.asked, vec![pair.voter]))
}

/// Two voters: the follower first, then the leader.
///
/// # Errors
/// When a member does not start, or the cluster does not come to that.
pub(super) async fn follower(
    script: &Script,
    schema: &Schema,
    learned: &mut Learned,
) -> Result<(Server, Vec<Server>)> {
    let pair = Pair::start(script, schema, learned).await?;
    let id = learned.translate(RECORDED_ASKED).parse::<u64>()?;
    let mut promote = Vec::new();
    uint64::encode(1, &id, &mut promote);
    let voter = Client::open(&pair.voter, schema).await?;
    let started = Instant::now();
    // A learner that is not yet known to be in step is refused.
    while let Err(status) = voter
        .ask("/etcdserverpb.Cluster/MemberPromote", &promote)
        .await?
    {
        ensure!(
            status.code == 9 && started.elapsed() < CAUGHT_UP_DEADLINE,
            "the learner is not promoted: {status:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let asked = Client::open(&pair.asked, schema).await?;
    asked
        .wait_for_status("a follower", |status| {
            status["isLearner"].is_null() && status["leader"].is_string()
        })
        .await?;
    Ok((pair.asked, vec![pair.voter]))
}

struct Pair {
    voter: Server,
    asked: Server,
}

impl Pair {
    async fn start(script: &Script, schema: &Schema, learned: &mut Learned) -> Result<Self> {
        let (first, second) = (Ports::free()?, Ports::free()?);
        let ports = [first.client, first.peer, second.client, second.peer];
        for (recorded, actual) in RECORDED_PORTS.into_iter().zip(ports) {
            learned.expect(&url(recorded), &url(&actual.to_string()));
        }
        let voter = Server::start_at(&voter_args(first), first).await?;
        let client = Client::open(&voter, schema).await?;
        client.write().await?;
        let mut add = Vec::new();
        string::encode(1, &url(&second.peer.to_string()), &mut add);
        boolean::encode(2, &true, &mut add);
        let added = client.get("/etcdserverpb.Cluster/MemberAdd", &add).await?;
        for (recorded, actual) in [
            (RECORDED_CLUSTER, &added["header"]["cluster_id"]),
            (RECORDED_VOTER, &added["header"]["member_id"]),
            (RECORDED_ASKED, &added["member"]["ID"]),
        ] {
            learned.expect(recorded, actual.as_str().context("no id")?);
        }
        let args: Vec<_> = script
            .server_args
            .iter()
            .map(|arg| {
                let pairs = RECORDED_PORTS.into_iter().zip(ports);
                pairs.fold(arg.clone(), |arg, (recorded, actual)| {
                    arg.replace(&url(recorded), &url(&actual.to_string()))
                })
            })
            .collect();
        let asked = Server::start_at(&args, second).await?;
        let client = Client::open(&asked, schema).await?;
        client
            .wait_for_status("a learner that has everything", |status| {
                status["header"]["revision"] == WRITTEN && status["leader"].is_string()
            })
            .await?;
        Ok(Self { voter, asked })
    }
}

fn url(port: &str) -> String {
    format!("http://127.0.0.1:{port}")
}

fn voter_args(ports: Ports) -> Vec<String> {
    let (client, peer) = (url(&ports.client.to_string()), url(&ports.peer.to_string()));
    let cluster = format!("m1={peer}");
    [
        "etcd",
        "--name",
        "m1",
        "--data-dir",
        "data",
        "--listen-client-urls",
        &client,
        "--advertise-client-urls",
        &client,
        "--listen-peer-urls",
        &peer,
        "--initial-advertise-peer-urls",
        &peer,
        "--initial-cluster",
        &cluster,
        "--initial-cluster-state",
        "new",
    ]
    .map(str::to_owned)
    .to_vec()
}

struct Client<'a> {
    connection: Connection,
    schema: &'a Schema,
}

impl<'a> Client<'a> {
    async fn open(server: &Server, schema: &'a Schema) -> Result<Self> {
        Ok(Self {
            connection: Connection::open(server.address()).await?,
            schema,
        })
    }

    async fn ask(&self, rpc: &str, request: &[u8]) -> Result<Result<Value, Status>> {
        let (messages, status) = self
            .connection
            .call(rpc, &[], request, None, PATIENCE)
            .await
            .with_context(|| rpc.to_owned())?;
        let [message] = messages.as_slice() else {
            return Ok(Err(status));
        };
        let method = self.schema.method(rpc).context("not in the schema")?;
        Ok(Ok(self.schema.to_json(&method.output, message)?))
    }

    async fn get(&self, rpc: &str, request: &[u8]) -> Result<Value> {
        match self.ask(rpc, request).await? {
            Ok(answer) => Ok(answer),
            Err(status) => bail!("{rpc}: {status:?}"),
        }
    }

    /// `a`, `b`, and a key of lease 77.
    async fn write(&self) -> Result<()> {
        const LEASE: i64 = 77;
        let mut grant = Vec::new();
        int64::encode(1, &600, &mut grant);
        int64::encode(2, &LEASE, &mut grant);
        self.get("/etcdserverpb.Lease/LeaseGrant", &grant).await?;
        for (key, lease) in [("a", 0), ("b", 0), ("leased", LEASE)] {
            let mut put = Vec::new();
            // Text and bytes look the same on the wire.
            string::encode(1, &key.to_owned(), &mut put);
            string::encode(2, &"1".to_owned(), &mut put);
            int64::encode(3, &lease, &mut put);
            self.get("/etcdserverpb.KV/Put", &put).await?;
        }
        Ok(())
    }

    async fn wait_for_status(&self, what: &str, reached: impl Fn(&Value) -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            let status = self.get("/etcdserverpb.Maintenance/Status", &[]).await?;
            if reached(&status) {
                return Ok(());
            }
            ensure!(
                started.elapsed() < CAUGHT_UP_DEADLINE,
                "no {what}: {status}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
