//! The `etcd-client` crate against an endpoint: put, get, transaction, watch, lease, authorization.
//!
//! Usage: `rustclient http://127.0.0.1:2379`; exit 0 when every answer is the expected one. The server
//! must be fresh.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, PutOptions, Txn, TxnOp,
    WatchOptions,
};

/// Nothing here takes longer on a server that works.
const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let endpoint = std::env::args()
        .nth(1)
        .context("usage: rustclient <endpoint>")?;
    tokio::time::timeout(DEADLINE, run(&endpoint))
        .await
        .context("took too long")?
}

async fn run(endpoint: &str) -> Result<()> {
    let mut client = Client::connect([endpoint], None).await?;
    keys(&mut client).await.context("keys")?;
    transactions(&mut client).await.context("transactions")?;
    watches(&mut client).await.context("watches")?;
    leases(&mut client).await.context("leases")?;
    maintenance(&mut client).await.context("maintenance")?;
    authorization(&mut client, endpoint)
        .await
        .context("authorization")
}

async fn keys(client: &mut Client) -> Result<()> {
    client.put("a", "1", None).await?;
    let previous = client
        .put("a", "2", Some(PutOptions::new().with_prev_key()))
        .await?;
    ensure!(
        previous.prev_key().context("no previous")?.value() == b"1",
        "previous value"
    );
    client.put("b", "3", None).await?;
    let all = client
        .get("", Some(GetOptions::new().with_all_keys()))
        .await?;
    ensure!(
        all.count() == 2 && all.kvs()[0].value() == b"2",
        "get: {all:?}"
    );
    let one = client
        .get("a", Some(GetOptions::new().with_prefix().with_limit(1)))
        .await?;
    ensure!(
        one.kvs().len() == 1 && one.kvs()[0].version() == 2,
        "limit: {one:?}"
    );
    let deleted = client.delete("b", None).await?;
    ensure!(deleted.deleted() == 1, "delete: {deleted:?}");
    let Err(error) = client.put("", "x", None).await else {
        bail!("a put without key")
    };
    ensure!(
        error
            .to_string()
            .contains("etcdserver: key is not provided"),
        "{error}"
    );
    Ok(())
}

async fn transactions(client: &mut Client) -> Result<()> {
    let txn = Txn::new()
        .when([Compare::value("a", CompareOp::Equal, "2")])
        .and_then([TxnOp::put("a", "4", None), TxnOp::get("a", None)])
        .or_else([TxnOp::delete("a", None)]);
    let answer = client.txn(txn).await?;
    ensure!(
        answer.succeeded() && answer.op_responses().len() == 2,
        "{answer:?}"
    );
    Ok(())
}

async fn watches(client: &mut Client) -> Result<()> {
    let options = WatchOptions::new().with_prefix().with_prev_key();
    let mut stream = client.watch("w/", Some(options)).await?;
    client.put("w/1", "x", None).await?;
    client.delete("w/1", None).await?;
    let mut events = Vec::new();
    let mut watcher = 0;
    while events.len() < 2 {
        let response = stream.message().await?.context("the watch ended")?;
        watcher = response.watch_id();
        for event in response.events() {
            let key = event.kv().context("an event without key")?.key().to_vec();
            events.push((
                event.event_type(),
                key,
                event.prev_kv().map(|kv| kv.value().to_vec()),
            ));
        }
    }
    ensure!(
        events[0] == (EventType::Put, b"w/1".to_vec(), None),
        "{events:?}"
    );
    ensure!(
        events[1] == (EventType::Delete, b"w/1".to_vec(), Some(b"x".to_vec())),
        "{events:?}"
    );
    stream.cancel(watcher).await?;
    Ok(())
}

async fn leases(client: &mut Client) -> Result<()> {
    let lease = client.lease_grant(60, None).await?.id();
    client
        .put("leased", "1", Some(PutOptions::new().with_lease(lease)))
        .await?;
    let (mut keeper, mut stream) = client.lease_keep_alive(lease).await?;
    keeper.keep_alive().await?;
    let kept = stream.message().await?.context("no answer")?;
    ensure!(kept.ttl() == 60, "{kept:?}");
    let left = client.lease_time_to_live(lease, None).await?;
    ensure!(left.granted_ttl() == 60 && left.ttl() > 50, "{left:?}");
    ensure!(client.leases().await?.leases().len() == 1, "list of leases");
    client.lease_revoke(lease).await?;
    ensure!(
        client.get("leased", None).await?.count() == 0,
        "the key outlives its lease"
    );
    Ok(())
}

async fn maintenance(client: &mut Client) -> Result<()> {
    let status = client.status().await?;
    ensure!(
        status.version() == "3.7.1" && status.leader() != 0,
        "{status:?}"
    );
    let members = client.member_list().await?;
    ensure!(members.members().len() == 1, "{members:?}");
    let mut snapshot = client.snapshot().await?;
    let mut length = 0;
    while let Some(part) = snapshot.message().await? {
        length += part.blob().len();
    }
    ensure!(
        length > 32 && length % 512 == 32,
        "a snapshot of {length} bytes"
    );
    Ok(())
}

async fn authorization(client: &mut Client, endpoint: &str) -> Result<()> {
    client.role_add("root").await?;
    client.user_add("root", "pw", None).await?;
    client.user_grant_role("root", "root").await?;
    client.auth_enable().await?;
    let Err(error) = client.get("a", None).await else {
        bail!("a read without user")
    };
    ensure!(
        error.to_string().contains("etcdserver: user name is empty"),
        "{error}"
    );
    let options = ConnectOptions::new().with_user("root", "pw");
    let mut root = Client::connect([endpoint], Some(options)).await?;
    ensure!(root.get("a", None).await?.count() == 1, "root reads");
    root.auth_disable().await?;
    Ok(())
}
