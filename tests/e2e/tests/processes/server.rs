//! A server of the program under test, and what several tests write to it first.

use keelson_client::{Client, Put};
use keelson_e2e::{Launch, Process, launch};

/// How to start the program under test.
pub(crate) fn tested() -> Launch {
    launch(env!("CARGO_BIN_EXE_keelson-under-test"))
}

/// One that runs, with a directory of its own.
pub(crate) fn server() -> Process {
    Process::start(tested()).unwrap()
}

/// Writes `k` at the revisions 2, 3 and 4, and compacts to 3.
pub(crate) async fn write_and_compact(client: &Client) {
    for value in ["1", "2", "3"] {
        client.put(Put::new("k", value)).await.unwrap();
    }
    client.compact(3, true).await.unwrap();
}

/// Of a lease, in seconds: more than a few calls take, and than a machine with other work keeps a renewal
/// waiting.
pub(crate) const TTL: i64 = 10;

/// A lease of [`TTL`] that holds the keys `a` and `b`; its id.
pub(crate) async fn lease_of_two_keys(client: &Client) -> i64 {
    let lease = client.lease_grant(TTL, 0).await.unwrap();
    for key in ["a", "b"] {
        let put = Put::new(key, "x").lease(lease.id);
        client.put(put).await.unwrap();
    }
    lease.id
}
