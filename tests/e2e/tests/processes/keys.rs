//! Keys, transactions, history, and what is refused.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use keelson_bench::Usage;
use keelson_client::etcdserverpb as pb;
use keelson_client::{
    ApiError, Client, Code, Compare, Delete, Get, Op, Order, Put, Relation, SortBy, Span, Txn,
};
use keelson_e2e::patient;

use crate::server::{server, write_and_compact};

/// Far more than anything here takes.
const PATIENCE: Duration = keelson_harness::wait::PATIENCE;

fn values(answer: &pb::RangeResponse) -> Vec<(&[u8], &[u8])> {
    answer
        .kvs
        .iter()
        .map(|kv| (&kv.key[..], &kv.value[..]))
        .collect()
}

fn revision(header: Option<pb::ResponseHeader>) -> i64 {
    header.unwrap().revision
}

#[tokio::test]
async fn keys_are_written_read_and_deleted() {
    let server = server();
    let client = server.client().await.unwrap();
    let first = client.put(Put::new("a", "1")).await.unwrap();
    assert_eq!(revision(first.header), 2);
    client.put(Put::new("b", "2")).await.unwrap();
    let again = client.put(Put::new("a", "3").prev_kv()).await.unwrap();
    assert_eq!(again.prev_kv.unwrap().value, "1");

    let one = client.get(Get::key("a")).await.unwrap();
    let kv = &one.kvs[0];
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 4, 2));
    let all = client.get(Get::all()).await.unwrap();
    assert_eq!(values(&all), [(&b"a"[..], &b"3"[..]), (b"b", b"2")]);
    let old = client.get(Get::all().revision(2)).await.unwrap();
    assert_eq!(values(&old), [(&b"a"[..], &b"1"[..])]);
    let page = client.get(Get::all().limit(1)).await.unwrap();
    assert_eq!((page.kvs.len(), page.more, page.count), (1, true, 2));
    let sorted = Get::all().sorted(SortBy::ModRevision, Order::Descending);
    assert_eq!(client.get(sorted).await.unwrap().kvs[0].key, "a");

    let deleted = client.delete(Delete::prefix("a").prev_kv()).await.unwrap();
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (1, 1));
    let count = client.get(Get::all().count_only().serializable()).await;
    assert_eq!(count.unwrap().count, 1);
}

#[tokio::test]
async fn a_transaction_runs_one_branch_at_one_revision() {
    let server = server();
    let client = server.client().await.unwrap();
    let txn = || {
        Txn::new()
            .when(Compare::version(Span::key("k"), Relation::Equal, 0))
            .then(Put::new("k", "new"))
            .then(Put::new("other", "x"))
            .then(Get::prefix("k"))
            .otherwise(Get::key("k"))
    };
    let first = client.txn(txn()).await.unwrap();
    assert!(first.succeeded);
    assert_eq!(first.responses.len(), 3);
    let second = client.txn(txn()).await.unwrap();
    assert!(!second.succeeded);
    let both = client.get(Get::all()).await.unwrap();
    assert!(both.kvs.iter().all(|kv| kv.mod_revision == 2));

    let nested = Txn::new().then(Op::from(txn().otherwise(Delete::all())));
    client.txn(nested).await.unwrap();
    assert_eq!(client.get(Get::all()).await.unwrap().count, 0);
}

#[tokio::test]
async fn the_answer_to_as_many_nested_transactions_as_a_server_takes_is_read() {
    let server = server();
    let client = server.client().await.unwrap();
    client.put(Put::new("k", "v")).await.unwrap();
    for nested in [49, 50, 128] {
        let mut txn = Txn::new().then(Get::key("k"));
        for _ in 1..nested {
            txn = Txn::new().then(Op::from(txn));
        }
        let mut answer = client.txn(txn).await.unwrap();
        for _ in 1..nested {
            let inner = answer.responses.pop().unwrap().response.unwrap();
            let pb::response_op::Response::ResponseTxn(inner) = inner else {
                unreachable!("{inner:?}")
            };
            answer = inner;
        }
        let range = answer.responses.pop().unwrap().response.unwrap();
        let pb::response_op::Response::ResponseRange(range) = range else {
            unreachable!("{range:?}")
        };
        assert_eq!(values(&range), [(&b"k"[..], &b"v"[..])]);
    }
}

#[tokio::test]
async fn compaction_ends_history_and_keeps_what_is_current() {
    let server = server();
    let client = server.client().await.unwrap();
    write_and_compact(&client).await;
    let error = client.get(Get::key("k").revision(2)).await.unwrap_err();
    assert_eq!(error.api(), Some(ApiError::Compacted));
    let error = client.get(Get::key("k").revision(99)).await.unwrap_err();
    assert_eq!(error.api(), Some(ApiError::FutureRev));
    let error = client.compact(2, false).await.unwrap_err();
    assert_eq!(error.api(), Some(ApiError::Compacted));
    let kept = client.get(Get::key("k").revision(3)).await.unwrap();
    assert_eq!(kept.kvs[0].value, "2");
    assert_eq!(client.get(Get::key("k")).await.unwrap().kvs[0].value, "3");
}

#[tokio::test]
async fn a_large_range_comes_whole_in_pieces() {
    let server = server();
    let client = server.client().await.unwrap();
    let value = Bytes::from(vec![b'v'; 100_000]);
    for number in 0..60 {
        let key = format!("big/{number:03}");
        client.put(Put::new(key, value.clone())).await.unwrap();
    }
    let mut stream = client.range_stream(Get::prefix("big/")).await.unwrap();
    let mut pieces = 0;
    let mut keys = Vec::new();
    while let Some(piece) = stream.next().await.unwrap() {
        pieces += 1;
        keys.extend(piece.kvs.into_iter().map(|kv| kv.key));
    }
    assert!(pieces > 1);
    assert!(keys.is_sorted());
    assert_eq!(keys.len(), 60);
    let whole = client.range_stream(Get::prefix("big/")).await.unwrap();
    let whole = whole.collect().await.unwrap();
    assert_eq!(whole, client.get(Get::prefix("big/")).await.unwrap());
}

/// The most memory that a process has had for itself while something is done, in bytes; looked at again and
/// again.
async fn peak_of<T>(pid: u32, done: impl Future<Output = T>) -> (T, u64) {
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&over);
    let looking = tokio::task::spawn_blocking(move || {
        let mut peak = 0;
        while !seen.load(Ordering::Relaxed) {
            peak = peak.max(Usage::of(pid).unwrap().anonymous_bytes);
            std::thread::sleep(Duration::from_millis(1));
        }
        peak
    });
    let result = done.await;
    over.store(true, Ordering::Relaxed);
    (result, looking.await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_list_takes_the_member_no_memory_for_its_values() {
    const VALUE: usize = 256 << 10;
    const KEYS: usize = 256;
    let mut server = server();
    let client = server.client().await.unwrap();
    let value = Bytes::from(vec![b'v'; VALUE]);
    for number in 0..KEYS {
        let key = format!("big/{number:03}");
        client.put(Put::new(key, value.clone())).await.unwrap();
    }
    // What was written just now is in memory yet.
    server.stop().unwrap();
    server.restart().unwrap();
    let few = client.get(Get::prefix("big/").limit(2)).await.unwrap();
    assert_eq!(few.kvs.len(), 2);
    let pid = server.pid().unwrap();
    let before = Usage::of(pid).unwrap().anonymous_bytes;
    let (whole, peak) = peak_of(pid, client.get(Get::prefix("big/"))).await;
    assert_eq!(whole.unwrap().kvs.len(), KEYS);
    let grown = peak.saturating_sub(before);
    assert!(
        grown < (KEYS * VALUE / 4) as u64,
        "it took {grown} bytes for a list of {}",
        KEYS * VALUE
    );
}

#[tokio::test]
async fn what_is_refused_has_its_error_and_does_no_harm() {
    let server = server();
    let client = server.client().await.unwrap();
    let too_large = client.put(Put::new("k", vec![0; 1_600_000])).await;
    assert_eq!(
        too_large.unwrap_err().api(),
        Some(ApiError::RequestTooLarge)
    );
    let huge = client
        .put(Put::new("k", vec![0; 5 << 20]))
        .await
        .unwrap_err();
    assert_eq!(huge.code(), Code::ResourceExhausted);
    assert!(
        huge.to_string()
            .starts_with("grpc: received message larger than max")
    );
    let empty = client.put(Put::new("", "x")).await.unwrap_err();
    assert_eq!(empty.api(), Some(ApiError::EmptyKey));
    let twice = Txn::new().then(Put::new("a", "1")).then(Put::new("a", "2"));
    let twice = client.txn(twice).await.unwrap_err();
    assert_eq!(twice.api(), Some(ApiError::DuplicateKey));
    let many = (0..129).fold(Txn::new(), |txn, number| {
        txn.then(Put::new(format!("{number}"), ""))
    });
    let many = client.txn(many).await.unwrap_err();
    assert_eq!(many.api(), Some(ApiError::TooManyOps));
    let hollow = pb::TxnRequest {
        success: vec![pb::RequestOp { request: None }],
        ..pb::TxnRequest::default()
    };
    assert!(client.txn(hollow).await.is_err());
    let lease = client.put(Put::new("k", "x").lease(77)).await.unwrap_err();
    assert_eq!(lease.api(), Some(ApiError::LeaseNotFound));
    let gone = client.keep_alive_once(77).await.unwrap_err();
    assert_eq!(gone.api(), Some(ApiError::LeaseNotFound));

    let after = client.get(Get::all()).await.unwrap();
    assert_eq!((after.count, revision(after.header)), (0, 1));
}

#[tokio::test]
async fn bytes_that_are_no_request_do_not_disturb_the_others() {
    let server = server();
    let client = server.client().await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    for bytes in [
        b"\x00\x01\x02\x03\xff\xfe\xfd".to_vec(),
        b"GET / HTTP/1.1\r\nHost: \x00\r\n\r\n".to_vec(),
        [preface.as_slice(), &[0xff; 64]].concat(),
        [
            preface.as_slice(),
            &settings,
            &[0, 0, 9, 1, 4, 0, 0, 0, 1],
            &[0xff; 9],
        ]
        .concat(),
    ] {
        let mut socket = TcpStream::connect(("127.0.0.1", server.client_port())).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(&bytes).unwrap();
        // What it says to that is its own matter, and it may hang up while we speak.
        let _ended = socket.shutdown(std::net::Shutdown::Write);
        let _answer = socket.read(&mut [0; 4096]);
    }
    client.put(Put::new("k", "v")).await.unwrap();
    assert_eq!(client.get(Get::key("k")).await.unwrap().count, 1);
}

#[tokio::test]
async fn a_member_tells_of_itself() {
    let server = server();
    let client = server.client().await.unwrap();
    client.put(Put::new("k", "v")).await.unwrap();
    let status = client.status().await.unwrap();
    let members = client.member_list().await.unwrap().members;
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].client_ur_ls, [server.client_url()]);
    assert_eq!(status.leader, members[0].id);
    assert!(status.version.starts_with("3.7."));
    assert!(client.alarms().await.unwrap().alarms.is_empty());

    let before = client.hash_kv(0).await.unwrap();
    client.defragment().await.unwrap();
    assert_eq!(client.hash_kv(0).await.unwrap().hash, before.hash);
    assert_eq!(before.hash_revision, 2);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copy.db");
    let snapshot = client.snapshot().await.unwrap();
    let len = snapshot.save(&path).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), len);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn users_see_what_their_roles_let_them() {
    let server = server();
    let root = server.client().await.unwrap();
    root.user_add("root", "secret").await.unwrap();
    root.role_add("root").await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.user_add("bob", "bob").await.unwrap();
    root.role_add("reader").await.unwrap();
    let reads = keelson_client::Permission::Read;
    root.role_grant_permission("reader", reads, Span::prefix("pub/"))
        .await
        .unwrap();
    root.user_grant_role("bob", "reader").await.unwrap();
    root.put(Put::new("pub/a", "1")).await.unwrap();
    root.auth_enable().await.unwrap();

    let refused = root.get(Get::all()).await.unwrap_err();
    assert_eq!(refused.api(), Some(ApiError::UserEmpty));
    let wrong = root.authenticate("bob", "no").await.unwrap_err();
    assert_eq!(wrong.api(), Some(ApiError::AuthFailed));
    root.authenticate("root", "secret").await.unwrap();

    let mut options = patient();
    options.user = Some(("bob".to_owned(), "bob".to_owned()));
    let bob = Client::connect_with(&server.client_url(), options)
        .await
        .unwrap();
    assert_eq!(bob.get(Get::prefix("pub/")).await.unwrap().count, 1);
    let denied = bob.put(Put::new("pub/a", "2")).await.unwrap_err();
    assert_eq!(denied.api(), Some(ApiError::PermissionDenied));

    // The password changes: bob's token is void, and the client fetches another, in vain.
    root.user_change_password("bob", "new").await.unwrap();
    let out = bob.get(Get::prefix("pub/")).await.unwrap_err();
    assert_eq!(out.api(), Some(ApiError::AuthFailed));
    // Back again: now it helps.
    root.user_change_password("bob", "bob").await.unwrap();
    assert_eq!(bob.get(Get::prefix("pub/")).await.unwrap().count, 1);
    root.auth_disable().await.unwrap();
    assert!(!root.auth_status().await.unwrap().enabled);
}
