//! Questions to peers, and answers as etcd gives them.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use keelson_proto::ids::{ClusterId, LeaseId, MemberId};
use keelson_transport::{ClientError, HashKv, PeerClient};

const SOON: Duration = Duration::from_secs(120);

/// A peer that answers one question; gives its URL, and the question once it was asked.
fn peer(answer: &[u8]) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = answer.to_vec();
    let asked = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut question = vec![0; 4096];
        let read = socket.read(&mut question).unwrap();
        socket.write_all(&answer).unwrap();
        String::from_utf8_lossy(&question[..read]).into_owned()
    });
    (url, asked)
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn run<T>(question: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(question)
}

fn client() -> PeerClient {
    PeerClient::new(None, SOON)
}

#[test]
fn members_come_with_the_cluster_of_whoever_answers() {
    let body = b"[{\"id\":2185233399518806002,\"peerURLs\":[\"http://127.0.0.1:13380\"],\
                 \"name\":\"m1\",\"clientURLs\":[\"http://127.0.0.1:13379\"]},{\"id\":7,\
                 \"peerURLs\":[\"http://b:1\"],\"isLearner\":true,\"name\":\"\"}]\n";
    let (url, _) = peer(&answer(
        "200 OK",
        "X-Etcd-Cluster-Id: ec7835e433d9e2c0\r\n",
        body,
    ));
    let found = run(client().members(&url, SOON)).unwrap();
    assert_eq!(found.cluster, ClusterId(0xec78_35e4_33d9_e2c0));
    let ids: Vec<u64> = found.members.iter().map(|member| member.id).collect();
    assert_eq!(ids, [2_185_233_399_518_806_002, 7]);
    assert!(found.members[1].is_learner && found.members[1].client_urls.is_empty());
    let (url, _) = peer(&answer("200 OK", "", body));
    let error = run(client().members(&url, SOON)).unwrap_err();
    assert!(matches!(error, ClientError::Unreadable { .. }), "{error}");
}

#[test]
fn versions_are_told_as_texts() {
    let body = b"{\"etcdserver\":\"3.5.33\",\"etcdcluster\":\"not_decided\"}";
    let (url, _) = peer(&answer("200 OK", "", body));
    let version = run(client().version(&url, SOON)).unwrap();
    assert_eq!(version.etcdserver, "3.5.33");
    assert_eq!(
        (&version.etcdcluster[..], &version.storage[..]),
        ("not_decided", "")
    );
}

#[test]
fn a_hash_is_asked_for_with_the_cluster_and_a_body() {
    let body = b"{\"header\":{\"revision\":162},\"hash\":1040156551,\"compact_revision\":116,\"hash_revision\":150}";
    let (url, asked) = peer(&answer("200 OK", "X-Etcd-Cluster-Id: 5\r\n", body));
    let hash = run(client().hash_kv(&url, ClusterId(5), 150, SOON)).unwrap();
    let expected = HashKv {
        revision: 162,
        hash: 1_040_156_551,
        compact_revision: 116,
        hash_revision: 150,
    };
    assert_eq!(hash, expected);
    let asked = asked.join().unwrap();
    assert!(
        asked.starts_with("GET /members/hashkv HTTP/1.1\r\n"),
        "{asked}"
    );
    assert!(asked.contains("x-etcd-cluster-id: 5\r\n"), "{asked}");
    assert!(asked.ends_with("{\"revision\":150}"), "{asked}");
}

#[test]
fn refusals_keep_their_words() {
    let refusal = answer("404 Not Found", "", b"membership: ID not found\n");
    let (url, asked) = peer(&refusal);
    let error = run(client().promote(&url, MemberId(10), Some("token.1"), SOON)).unwrap_err();
    assert_eq!(error.to_string(), "membership: ID not found");
    assert!(matches!(error, ClientError::Answer { status: 404, .. }));
    let asked = asked.join().unwrap();
    assert!(
        asked.starts_with("POST /members/promote/10 HTTP/1.1\r\n"),
        "{asked}"
    );
    assert!(asked.contains("authorization: token.1\r\n"), "{asked}");
}

#[test]
fn leases_are_answered_for_the_lease_that_was_asked_for() {
    let body = b"\x10\x81\x20\x18\x80\xdd\xdb\x01";
    let (url, _) = peer(&answer("200 OK", "", body));
    assert_eq!(
        run(client().renew_lease(&url, LeaseId(0x1001), SOON)).unwrap(),
        3_600_000
    );
    let (url, _) = peer(&answer("200 OK", "", body));
    let error = run(client().renew_lease(&url, LeaseId(1), SOON)).unwrap_err();
    assert!(error.to_string().ends_with("renew id mismatch"), "{error}");
    let body =
        b"\x0a\x18\x0a\x00\x10\x81\x20\x18\xff\xdc\xdb\x01\x20\x80\xdd\xdb\x01\x2a\x07lease/a";
    let (url, _) = peer(&answer("200 OK", "", body));
    let lease = run(client().lease_time_to_live(&url, LeaseId(0x1001), true, SOON)).unwrap();
    assert_eq!(lease.keys, [&b"lease/a"[..]]);
}

#[test]
fn a_peer_that_says_nothing_is_waited_for_no_longer_than_it_may_take() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let error = run(client().version(&url, Duration::from_millis(50))).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    drop(listener);
    let error = run(client().version(&url, SOON)).unwrap_err();
    assert!(matches!(error, ClientError::Io { .. }), "{error}");
    let error = run(client().version("ftp://x", SOON)).unwrap_err();
    assert!(matches!(error, ClientError::Url(_)), "{error}");
}

#[test]
fn an_answer_past_the_limit_is_not_read() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n";
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        // An answer before the question would be no answer.
        let asked = socket.read(&mut [0; 4096]).unwrap();
        assert_ne!(asked, 0);
        socket.write_all(head).unwrap();
        let piece = vec![b' '; 1 << 20];
        while socket.write_all(&piece).is_ok() {}
    });
    let error = run(client().version(&url, SOON)).unwrap_err();
    assert!(matches!(error, ClientError::Io { .. }), "{error}");
    assert!(format!("{error}").contains("too long"), "{error}");
}
