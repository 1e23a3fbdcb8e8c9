//! Members with their sockets, as a client sees them.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use keelson_proto::rpc::etcdserverpb::*;
use keelson_server::Member;
use keelson_server::config::Config;
use keelson_server::url::Url;

mod wire;

use wire::{Both, Client, Status, framed, start, start_with, within};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";

async fn client(member: &Member) -> Client {
    Client::connect(&member.client_urls()[0]).await
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> PutRequest {
    PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    }
}

fn all() -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(&[0]),
        range_end: Bytes::from_static(&[0]),
        ..RangeRequest::default()
    }
}

fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(work).join().unwrap()
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_stop_and_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut revision = 1;
    for round in 0..4 {
        let path = dir.path().to_owned();
        let member = off_thread(move || start(&path));
        let client = client(&member).await;
        let before: RangeResponse = client.call(RANGE, &all()).await.unwrap();
        assert_eq!(before.count, round * 10);
        assert_eq!(before.header.unwrap().revision, revision);
        for key in 0..10 {
            let request = put(format!("{round}/{key}"), "value");
            let response: PutResponse = client.call(PUT, &request).await.unwrap();
            revision += 1;
            assert_eq!(response.header.unwrap().revision, revision);
        }
        off_thread(move || match round % 2 {
            0 => member.kill(),
            _ => member.stop(),
        });
    }
}

#[test]
fn directories_without_a_log_are_those_of_a_member_that_never_started() {
    let dir = tempfile::tempdir().unwrap();
    // What a crash in the middle of the first start leaves.
    std::fs::create_dir_all(dir.path().join("member/snap")).unwrap();
    start(dir.path()).kill();
    start(dir.path()).stop();
}

#[tokio::test]
async fn every_one_of_many_writers_gets_its_own_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let member = off_thread(move || start(&path));
    let mut writers = Vec::new();
    for connection in 0..4 {
        let client = client(&member).await;
        for writer in 0..16 {
            let client = client.clone();
            writers.push(tokio::spawn(async move {
                let mut last = 0;
                for round in 0..10 {
                    let key = format!("{connection}/{writer}");
                    let request = PutRequest {
                        prev_kv: true,
                        ..put(key.clone(), format!("{key} {round}"))
                    };
                    let response: PutResponse = client.call(PUT, &request).await.unwrap();
                    let revision = response.header.unwrap().revision;
                    assert!(revision > last);
                    let prev = response.prev_kv;
                    assert_eq!(prev.is_some(), round > 0);
                    if let Some(prev) = prev {
                        assert_eq!(prev.value, format!("{key} {}", round - 1));
                        assert_eq!(prev.mod_revision, last);
                    }
                    last = revision;
                }
            }));
        }
    }
    for writer in writers {
        within(writer).await.unwrap();
    }
    let range: RangeResponse = client(&member).await.call(RANGE, &all()).await.unwrap();
    assert_eq!((range.count, range.header.unwrap().revision), (64, 641));
    off_thread(move || member.stop());
}

#[tokio::test]
async fn a_long_list_is_the_same_in_one_message_and_in_many() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let member = off_thread(move || start(&path));
    let client = client(&member).await;
    for key in 0..300 {
        let request = put(format!("{key:04}"), vec![b'x'; 20_000]);
        let _: PutResponse = client.call(PUT, &request).await.unwrap();
    }
    let whole: RangeResponse = within(client.call(RANGE, &all())).await.unwrap();
    assert_eq!(
        (whole.kvs.len(), whole.count, whole.more),
        (300, 300, false)
    );
    assert!(whole.kvs.iter().all(|kv| kv.value.len() == 20_000));
    let path = "/etcdserverpb.KV/RangeStream";
    let parts: Vec<RangeStreamResponse> = within(client.stream(path, None, framed(&all())))
        .await
        .unwrap();
    assert!(parts.len() > 1);
    let parts: Vec<_> = parts
        .into_iter()
        .map(|part| part.range_response.unwrap())
        .collect();
    let (last, others) = parts.split_last().unwrap();
    assert!(
        others
            .iter()
            .all(|part| part.header.is_none() && part.count == 0)
    );
    assert_eq!((last.count, last.more), (300, false));
    let joined: Vec<_> = parts.iter().flat_map(|part| part.kvs.clone()).collect();
    assert_eq!(joined, whole.kvs);
    let limited = RangeRequest { limit: 25, ..all() };
    let parts: Vec<RangeStreamResponse> = within(client.stream(path, None, framed(&limited)))
        .await
        .unwrap();
    let last = parts.last().unwrap().range_response.as_ref().unwrap();
    assert_eq!((last.count, last.more), (300, true));
    off_thread(move || member.stop());
}

#[tokio::test]
async fn transactions_are_answered_with_rows_from_where_they_lie() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let member = off_thread(move || start(&path));
    let client = client(&member).await;
    for key in 0..100 {
        let request = put(format!("k{key:03}"), vec![b'v'; 20_000]);
        let _: PutResponse = client.call(PUT, &request).await.unwrap();
    }
    let op = |request| RequestOp {
        request: Some(request),
    };
    let range = || op(request_op::Request::RequestRange(all()));
    let delete = op(request_op::Request::RequestDeleteRange(
        DeleteRangeRequest {
            key: "k".into(),
            range_end: "l".into(),
            prev_kv: true,
        },
    ));
    let request = TxnRequest {
        compare: Vec::new(),
        success: vec![range(), delete, range()],
        failure: Vec::new(),
    };
    let response: TxnResponse = within(client.call("/etcdserverpb.KV/Txn", &request))
        .await
        .unwrap();
    let mut found = response
        .responses
        .into_iter()
        .map(|op| op.response.unwrap());
    match (found.next(), found.next(), found.next()) {
        (
            Some(response_op::Response::ResponseRange(before)),
            Some(response_op::Response::ResponseDeleteRange(deleted)),
            Some(response_op::Response::ResponseRange(after)),
        ) => {
            assert_eq!((before.count, after.count, deleted.deleted), (100, 0, 100));
            assert_eq!(before.kvs, deleted.prev_kvs);
        }
        other => panic!("{other:?}"),
    }
    off_thread(move || member.stop());
}

#[tokio::test]
async fn messages_past_the_limit_and_broken_ones_are_refused_in_gos_words() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let member = off_thread(move || start(&path));
    let client = client(&member).await;
    let large = framed(&put("k", vec![0; 2_097_152]));
    let error = client.send::<PutResponse>(PUT, None, large.clone()).await;
    let text = format!(
        "grpc: received message larger than max ({} vs. 2097152)",
        large.len() - 5
    );
    assert_eq!(error, Err(Status { code: 8, text }));
    let request = framed(&put("k", vec![0; 1_600_000]));
    let error = client.send::<PutResponse>(PUT, None, request).await;
    let text = "etcdserver: request is too large".into();
    assert_eq!(error, Err(Status { code: 3, text }));
    let broken = Bytes::from_static(&[0, 0, 0, 0, 3, 0xff, 0xff, 0xff]);
    let error = client.send::<PutResponse>(PUT, None, broken).await;
    let text = "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data";
    let text = text.into();
    assert_eq!(error, Err(Status { code: 13, text }));
    // The connection is none the worse for it.
    let _: PutResponse = client.call(PUT, &put("k", "v")).await.unwrap();
    off_thread(move || member.stop());
}

#[tokio::test]
async fn a_call_ends_when_its_client_wants_it_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let member = off_thread(move || start(&path));
    let client = client(&member).await;
    let lock = "/v3lockpb.Lock/Lock";
    let request = |lease| keelson_proto::rpc::v3lockpb::LockRequest {
        name: "l".into(),
        lease,
    };
    for id in [1, 2] {
        let grant = LeaseGrantRequest { id, ttl: 600 };
        let path = "/etcdserverpb.Lease/LeaseGrant";
        let _: LeaseGrantResponse = client.call(path, &grant).await.unwrap();
    }
    type Response = keelson_proto::rpc::v3lockpb::LockResponse;
    let _: Response = client.call(lock, &request(1)).await.unwrap();
    let error = client
        .send::<Response>(lock, Some("50m"), framed(&request(2)))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code, error.text.as_str()),
        (4, "context deadline exceeded")
    );
    // The key that waited is taken back.
    within(async {
        loop {
            let range: RangeResponse = client.call(RANGE, &all()).await.unwrap();
            if range.count == 1 {
                return;
            }
        }
    })
    .await;
    off_thread(move || member.stop());
}

#[tokio::test]
async fn a_stop_does_not_wait_for_endless_streams() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let member = off_thread(move || start(&path));
    let url = member.client_urls()[0].clone();
    let mut stream = Both::open(&url, "/etcdserverpb.Lease/LeaseKeepAlive").await;
    stream.send(&LeaseKeepAliveRequest { id: 7 });
    let answer: LeaseKeepAliveResponse = stream.answers.next().await.unwrap().unwrap();
    assert_eq!((answer.id, answer.ttl), (7, 0));
    let started = Instant::now();
    let stopped = tokio::task::spawn_blocking(move || member.stop());
    let end = within(stream.answers.next::<LeaseKeepAliveResponse>()).await;
    assert_eq!(end.unwrap_err().code, 14);
    drop(stream);
    stopped.await.unwrap();
    // Far less than a stream may last.
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn a_snapshot_is_the_file_and_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let member = off_thread(move || start(&path));
    let client = client(&member).await;
    let _: PutResponse = client.call(PUT, &put("k", vec![1; 100_000])).await.unwrap();
    let path = "/etcdserverpb.Maintenance/Snapshot";
    let parts: Vec<SnapshotResponse> =
        within(client.stream(path, None, framed(&SnapshotRequest {})))
            .await
            .unwrap();
    let (last, blobs) = parts.split_last().unwrap();
    let file: Vec<u8> = blobs.iter().flat_map(|part| part.blob.to_vec()).collect();
    assert_eq!(file.len() % 4096, 0);
    assert_eq!(
        blobs[0].remaining_bytes as usize,
        file.len() - blobs[0].blob.len()
    );
    assert_eq!(last.blob.len(), 32);
    assert_eq!(last.remaining_bytes, 0);
    // What was put a moment ago is in it.
    assert!(file.windows(1000).any(|window| window == [1; 1000]));
    off_thread(move || member.stop());
}

#[tokio::test]
async fn clients_may_come_over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let socket = format!("unix://{}", dir.path().join("socket").display());
    let member = off_thread(move || {
        start_with(&path, |config| {
            config.client_listeners = Vec::new();
            config.listen_client_urls = vec![Url::parse(&socket).unwrap()];
        })
    });
    let client = client(&member).await;
    let _: PutResponse = client.call(PUT, &put("k", "v")).await.unwrap();
    off_thread(move || member.stop());
}

#[test]
fn a_second_member_in_the_directory_is_refused_and_leaves_the_first_alone() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path());
    let listener = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = Config {
        name: "one".into(),
        data_dir: dir.path().to_owned(),
        client_listeners: vec![listener()],
        peer_listeners: vec![listener()],
        ..Config::default()
    };
    let error = Member::start(config.check().unwrap()).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    assert_eq!(first.failure(), None);
    first.stop();
    start(dir.path()).stop();
}

#[tokio::test]
async fn compressed_requests_are_answered_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let member = off_thread(move || start(&path));
    let client = client(&member).await;
    let big = vec![b'x'; 100_000];
    let _: PutResponse = client.call(PUT, &put("big", big.clone())).await.unwrap();

    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &prost::Message::encode_to_vec(&all())).unwrap();
    let packed = packed.finish().unwrap();
    let mut body = vec![1];
    body.extend(u32::try_from(packed.len()).unwrap().to_be_bytes());
    body.extend(packed);
    let request = http::Request::post(format!("http://member{RANGE}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-encoding", "gzip")
        .body(http_body_util::Full::new(Bytes::from(body)))
        .unwrap();
    let response = client.0.clone().send_request(request).await.unwrap();
    assert_eq!(response.headers()["grpc-encoding"], "gzip");
    let body = http_body_util::BodyExt::collect(response.into_body());
    let body = within(body).await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    let body = body.to_bytes();
    let (prefix, packed) = body.split_at(5);
    assert_eq!(prefix[0], 1);
    assert_eq!(
        u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize,
        packed.len()
    );
    assert!(packed.len() < 2_000, "{}", packed.len());
    let mut plain = Vec::new();
    let mut unpacked = flate2::read::GzDecoder::new(packed);
    std::io::Read::read_to_end(&mut unpacked, &mut plain).unwrap();
    let range: RangeResponse = prost::Message::decode(&plain[..]).unwrap();
    assert_eq!(range.kvs[0].value, big);
    off_thread(move || member.stop());
}

#[tokio::test]
async fn a_member_held_at_3_6_raises_nothing_until_it_is_let_go() {
    const STATUS: &str = "/etcdserverpb.Maintenance/Status";
    let dir = tempfile::tempdir().unwrap();
    for (release, version, storage) in [("3.6", "3.6.14", "3.6.0"), ("3.7", "3.7.1", "3.7.0")] {
        let path = dir.path().to_owned();
        let member = off_thread(move || {
            start_with(&path, |config| config.announce_version = release.to_owned())
        });
        let client = client(&member).await;
        let deadline = Instant::now() + Duration::from_secs(120);
        let status = loop {
            let status: StatusResponse = client.call(STATUS, &StatusRequest {}).await.unwrap();
            if status.storage_version == storage {
                break status;
            }
            assert!(Instant::now() < deadline, "{status:?}");
            tokio::task::yield_now().await;
        };
        assert_eq!(status.version, version);
        off_thread(move || member.stop());
    }
}
