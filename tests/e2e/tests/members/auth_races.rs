//! What becomes of requests while users and permissions change beneath them. The disk is held, so that
//! what is signed before a change is applied after it; who comes first is no matter of luck.

use std::time::{Duration, Instant};

use keelson_client::etcdserverpb as pb;
use keelson_client::{ApiError, Client, Delete, Error, Get, Permission, Put, Txn};
use keelson_harness::{Faults, TestMember};
use tokio::task::JoinHandle;

/// Far more than anything here takes.
const PATIENCE: Duration = keelson_harness::wait::PATIENCE;
/// How often something that comes by itself is looked for.
const POLL: Duration = Duration::from_millis(2);

struct Guarded {
    faults: Faults,
    member: TestMember,
    root: Client,
    /// May do everything in `a/`.
    alice: Client,
}

/// A member with auth on.
async fn guarded() -> Guarded {
    let faults = Faults::default();
    let member = TestMember::start_faulty(&faults, |config| config.bcrypt_cost = 4).unwrap();
    let root = member.client().await.unwrap();
    for (user, password) in [("root", "root's"), ("alice", "alice's")] {
        root.user_add(user, password).await.unwrap();
    }
    root.user_grant_role("root", "root").await.unwrap();
    root.role_add("r").await.unwrap();
    let all = keelson_client::Span::prefix("a/");
    root.role_grant_permission("r", Permission::Readwrite, all)
        .await
        .unwrap();
    root.user_grant_role("alice", "r").await.unwrap();
    root.auth_enable().await.unwrap();
    root.authenticate("root", "root's").await.unwrap();
    let alice = member.client().await.unwrap();
    alice.authenticate("alice", "alice's").await.unwrap();
    Guarded {
        faults,
        member,
        root,
        alice,
    }
}

impl Guarded {
    /// Bytes of requests that wait for the disk.
    fn waiting(&self) -> u64 {
        let member = self.member.member().unwrap();
        member.node().depths().proposal_bytes
    }

    /// Starts a call, and returns when its request waits for the disk.
    async fn proposed<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let before = self.waiting();
        let call = tokio::spawn(call);
        let deadline = Instant::now() + PATIENCE;
        while self.waiting() == before {
            assert!(Instant::now() < deadline, "nothing was proposed");
            tokio::time::sleep(POLL).await;
        }
        call
    }

    /// Has `requests` proposed after `change`, and lets the disk go then. The change must succeed; the
    /// answers of the others are returned.
    async fn overtaken<C: Send + 'static, T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<C, Error>> + Send + 'static,
        requests: Vec<std::pin::Pin<Box<dyn Future<Output = T> + Send>>>,
    ) -> Vec<T> {
        self.faults.hold_syncs();
        let change = self.proposed(change).await;
        let mut calls = Vec::new();
        for request in requests {
            calls.push(self.proposed(request).await);
        }
        self.faults.release_syncs();
        change.await.unwrap().unwrap();
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await.unwrap());
        }
        answers
    }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Error>, with: ApiError) {
    assert_eq!(answer.unwrap_err().api(), Some(with));
}

macro_rules! call {
    ($client:expr, $method:ident($($argument:expr),*)) => {{
        let client = $client.clone();
        Box::pin(async move { client.$method($($argument),*).await.map(drop) })
    }};
}

type Calls = Vec<std::pin::Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>>;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_signed_before_a_change_of_auth_is_refused_when_it_is_applied() {
    let it = guarded().await;
    let lease = it.alice.lease_grant(60, 0).await.unwrap().id;
    let attached = Put::new("a/leased", "v").lease(lease);
    it.alice.put(attached).await.unwrap();
    let revision = it.root.get(Get::key("x")).await.unwrap().header.unwrap();
    let txn = Txn::new().then(Get::key("a/1")).then(Put::new("a/1", "v"));
    let calls: Calls = vec![
        call!(it.alice, put(Put::new("a/1", "v"))),
        call!(it.alice, delete(Delete::key("a/1"))),
        call!(it.alice, txn(txn)),
        call!(it.alice, lease_revoke(lease)),
        // What root asks of keys is no exception.
        call!(it.root, put(Put::new("a/1", "v"))),
    ];
    let answers = it.overtaken(call!(it.root, role_add("other")), calls).await;
    for answer in answers {
        refused(answer, ApiError::AuthOldRevision);
    }
    let after = it.root.get(Get::key("x")).await.unwrap().header.unwrap();
    assert_eq!(after.revision, revision.revision, "nothing was changed");
    it.alice.put(Put::new("a/1", "v")).await.unwrap();

    // An administrator's requests do not look at the revision; those on no key do not either.
    let calls: Calls = vec![
        call!(it.root, role_add("third")),
        call!(it.root, lease_revoke(lease)),
        call!(it.alice, lease_grant(60, 7)),
    ];
    let change = call!(it.root, role_delete("other"));
    for answer in it.overtaken(change, calls).await {
        answer.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_taken_away_meanwhile_permits_nothing_more() {
    let it = guarded().await;
    let change = call!(it.root, user_revoke_role("alice", "r"));
    let calls: Calls = vec![call!(it.alice, put(Put::new("a/1", "v")))];
    for answer in it.overtaken(change, calls).await {
        refused(answer, ApiError::AuthOldRevision);
    }
    // The token is good as before; what it stands for is less.
    refused(
        it.alice.put(Put::new("a/1", "v")).await,
        ApiError::PermissionDenied,
    );
    refused(
        it.alice.get(Get::key("a/1")).await,
        ApiError::PermissionDenied,
    );
    it.alice.lease_grant(60, 0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_end_with_their_user_and_with_the_password() {
    for delete in [true, false] {
        let it = guarded().await;
        let change: std::pin::Pin<Box<dyn Future<Output = Result<(), Error>> + Send>> = if delete {
            call!(it.root, user_delete("alice"))
        } else {
            call!(it.root, user_change_password("alice", "another"))
        };
        let calls: Calls = vec![call!(it.alice, put(Put::new("a/1", "v")))];
        for answer in it.overtaken(change, calls).await {
            refused(answer, ApiError::AuthOldRevision);
        }
        for answer in [
            it.alice.put(Put::new("a/1", "v")).await.map(drop),
            it.alice.get(Get::key("a/1")).await.map(drop),
            it.alice.lease_grant(60, 0).await.map(drop),
        ] {
            refused(answer, ApiError::InvalidAuthToken);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_with_a_password_that_changes_meanwhile_fails() {
    let it = guarded().await;
    let change = call!(it.root, user_change_password("alice", "another"));
    let newcomer = it.member.client().await.unwrap();
    let calls: Calls = vec![call!(newcomer, authenticate("alice", "alice's"))];
    for answer in it.overtaken(change, calls).await {
        refused(answer, ApiError::AuthFailed);
    }
    newcomer.authenticate("alice", "another").await.unwrap();
    newcomer.put(Put::new("a/1", "v")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_another_change_of_auth_overtakes_is_made_again() {
    let it = guarded().await;
    let newcomer = it.member.client().await.unwrap();
    let calls: Calls = vec![call!(newcomer, authenticate("alice", "alice's"))];
    let change = call!(it.root, role_add("other"));
    for answer in it.overtaken(change, calls).await {
        answer.unwrap();
    }
    newcomer.put(Put::new("a/1", "v")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_switch_that_counts_is_that_of_the_moment_of_applying() {
    let it = guarded().await;
    let calls: Calls = vec![call!(it.alice, put(Put::new("not hers", "v")))];
    for answer in it.overtaken(call!(it.root, auth_disable()), calls).await {
        answer.unwrap();
    }
    let nobody = it.member.client().await.unwrap();
    nobody.put(Put::new("x", "v")).await.unwrap();
    let calls: Calls = vec![call!(nobody, put(Put::new("x", "v")))];
    for answer in it.overtaken(call!(nobody, auth_enable()), calls).await {
        refused(answer, ApiError::UserEmpty);
    }
    // All tokens have gone with the switch.
    refused(
        it.alice.put(Put::new("a/1", "v")).await,
        ApiError::InvalidAuthToken,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_range_that_a_change_of_auth_overtakes_ends_with_an_error() {
    let it = guarded().await;
    let value = vec![b'v'; 100_000];
    for key in 0..40 {
        let put = Put::new(format!("a/{key:02}"), value.clone());
        it.alice.put(put).await.unwrap();
    }
    let mut stream = it.alice.range_stream(Get::prefix("a/")).await.unwrap();
    assert!(!stream.next().await.unwrap().unwrap().kvs.is_empty());
    // The rest does not fit into what a client takes unread: the server waits.
    it.root.role_add("other").await.unwrap();
    let end = loop {
        match stream.next().await {
            Ok(Some(_)) => {}
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    refused(end, ApiError::AuthOldRevision);
}

/// As etcd does: permissions are looked at when a watcher is made.
#[tokio::test(flavor = "multi_thread")]
async fn watchers_live_on_without_their_permission_and_none_is_made_any_more() {
    let it = guarded().await;
    let create = || pb::WatchCreateRequest {
        key: "a/".into(),
        range_end: "a0".into(),
        ..pb::WatchCreateRequest::default()
    };
    let mut watch = it.alice.watch_raw(create()).await.unwrap();
    assert!(watch.next().await.unwrap().unwrap().created);
    it.root.user_revoke_role("alice", "r").await.unwrap();
    it.root.put(Put::new("a/1", "v")).await.unwrap();
    let told = watch.next().await.unwrap().unwrap();
    assert_eq!(told.events.len(), 1);
    let second = pb::watch_request::RequestUnion::CreateRequest(create());
    watch.send(second).await.unwrap();
    let told = watch.next().await.unwrap().unwrap();
    assert!(told.created && told.canceled, "{told:?}");
    assert_eq!(
        told.cancel_reason,
        "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    );
    it.root.user_delete("alice").await.unwrap();
    let third = pb::watch_request::RequestUnion::CreateRequest(create());
    watch.send(third).await.unwrap();
    let told = watch.next().await.unwrap().unwrap();
    assert!(
        told.cancel_reason.contains("invalid auth token"),
        "{told:?}"
    );
    it.root.put(Put::new("a/2", "v")).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().events.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_renewed_as_long_as_their_keys_may_be_written() {
    let it = guarded().await;
    let lease = it.alice.lease_grant(60, 0).await.unwrap().id;
    it.alice
        .put(Put::new("a/1", "v").lease(lease))
        .await
        .unwrap();
    assert_eq!(it.alice.keep_alive_once(lease).await.unwrap(), 60);
    it.root.user_revoke_role("alice", "r").await.unwrap();
    refused(
        it.alice.keep_alive_once(lease).await,
        ApiError::PermissionDenied,
    );
    refused(
        it.alice.lease_time_to_live(lease, true).await,
        ApiError::PermissionDenied,
    );
    refused(it.alice.lease_list().await, ApiError::PermissionDenied);
    refused(
        it.alice.lease_revoke(lease).await,
        ApiError::PermissionDenied,
    );
    let left = it.alice.lease_time_to_live(lease, false).await.unwrap();
    assert_eq!(left.granted_ttl, 60);
    assert_eq!(it.root.keep_alive_once(lease).await.unwrap(), 60);
    it.root.user_delete("alice").await.unwrap();
    refused(
        it.alice.keep_alive_once(lease).await,
        ApiError::InvalidAuthToken,
    );
    let nobody = it.member.client().await.unwrap();
    refused(nobody.keep_alive_once(lease).await, ApiError::UserEmpty);
}
