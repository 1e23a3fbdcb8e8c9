//! What hostile and broken clients send: each call gets an answer, memory is bounded, nothing
//! panics, and a good client never notices.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Write as _;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use keelson_proto::rpc::etcdserverpb::request_op::Request;
use keelson_proto::rpc::etcdserverpb::*;
use keelson_server::Member;
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};

#[path = "wire/frames.rs"]
mod frames;
mod wire;

use frames::{PREFACE, h2_fields, h2_frame, h2_start};
use wire::{Answers, Both, Client, Status, framed, request, start, start_with, within};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// How long one test sends damaged input.
const TIME_BOX: Duration = Duration::from_secs(4);
/// How much memory may be in use past what there was before, in bytes: far less than what any of
/// these tests could make a server take that puts no bound to it.
const GROWTH_MAX: u64 = 192 << 20;

/// Every method that takes one message; none of them ends what the good client needs.
const UNARY: [&str; 28] = [
    RANGE,
    PUT,
    TXN,
    "/etcdserverpb.KV/DeleteRange",
    "/etcdserverpb.KV/Compact",
    "/etcdserverpb.KV/RangeStream",
    "/etcdserverpb.Lease/LeaseGrant",
    "/etcdserverpb.Lease/LeaseRevoke",
    "/etcdserverpb.Lease/LeaseTimeToLive",
    "/etcdserverpb.Lease/LeaseLeases",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Cluster/MemberUpdate",
    "/etcdserverpb.Auth/AuthEnable",
    "/etcdserverpb.Auth/AuthStatus",
    "/etcdserverpb.Auth/Authenticate",
    "/etcdserverpb.Auth/UserGet",
    "/etcdserverpb.Auth/UserList",
    "/etcdserverpb.Auth/UserGrantRole",
    "/etcdserverpb.Auth/RoleAdd",
    "/etcdserverpb.Auth/RoleGet",
    "/etcdserverpb.Auth/RoleGrantPermission",
    "/etcdserverpb.Auth/RoleRevokePermission",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/HashKV",
    "/etcdserverpb.Maintenance/MoveLeader",
    "/etcdserverpb.Maintenance/Downgrade",
    "/grpc.health.v1.Health/Check",
    "/no.such.Service/Method",
];

/// Methods that take or give many.
const STREAMS: [&str; 4] = [
    WATCH,
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/grpc.health.v1.Health/Watch",
    "/v3electionpb.Election/Observe",
];

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Counts panics on every thread from here on.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(info);
        }));
    });
}

/// `SplitMix64`: every run is the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn of<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    fn hurt(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        match self.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 => bytes.truncate(at),
            2 => {
                let len = 1 + self.below(12);
                let new = self.bytes(len);
                bytes.splice(at..at, new).for_each(drop);
            }
            3 => bytes.splice(at..at, [0xff; 9]).for_each(drop),
            _ => {
                let levels = self.below(300);
                bytes.splice(at..at, vec![0x0b; levels]).for_each(drop);
            }
        }
    }
}

/// Memory in use by this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() << 10
}

fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(work).join().unwrap()
}

/// The message of an answer as it came: for those that nest deeper than can be read here.
async fn bytes_of(client: &Client, path: &str, body: Bytes) -> Result<Bytes, Status> {
    let request = request(path, None, Full::new(body));
    let response = client.0.clone().send_request(request).await.unwrap();
    let mut answers = Answers::of(response);
    let message = answers.next_bytes().await?;
    assert!(message.is_some() && answers.next_bytes().await?.is_none());
    Ok(message.unwrap())
}

/// Sends any body, and gives the status that ends the answer; `None` where the answer does not end
/// with one. Endless answers are left after a moment, and count as good.
async fn raw_call(
    client: &Client,
    path: &str,
    content_type: &str,
    encoding: Option<&str>,
    body: Bytes,
) -> Option<u16> {
    let mut request = http::Request::post(format!("http://member{path}"))
        .header("content-type", content_type)
        .header("te", "trailers");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    let request = request.body(Full::new(body)).unwrap();
    let response = client.0.clone().send_request(request).await.ok()?;
    let code = |fields: &http::HeaderMap| fields.get("grpc-status")?.to_str().ok()?.parse().ok();
    let first = code(response.headers());
    if first.is_some() {
        return first;
    }
    let collected = response.into_body().collect();
    match tokio::time::timeout(Duration::from_secs(1), collected).await {
        Ok(body) => body.ok()?.trailers().and_then(code),
        Err(_) => Some(0),
    }
}

/// A member, and a client that has to be served whatever happens.
struct Rig {
    member: Member,
    good: Client,
    puts: i64,
    before: u64,
    /// Those of other tests.
    panics: usize,
    _dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Rig {
    async fn start() -> Rig {
        Rig::start_by(start).await
    }

    async fn start_by(start: impl FnOnce(&Path) -> Member + Send + 'static) -> Rig {
        static ALONE: Mutex<()> = Mutex::const_new(());
        // They look at the memory of the process, so one at a time.
        let alone = ALONE.lock().await;
        count_panics();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let member = off_thread(move || start(&path));
        let good = Client::connect(&member.client_urls()[0]).await;
        Rig {
            good,
            puts: 0,
            before: resident(),
            panics: PANICS.load(Ordering::Relaxed),
            member,
            _dir: dir,
            _alone: alone,
        }
    }

    async fn socket(&self) -> TcpStream {
        let address = self.member.client_urls()[0].authority().to_owned();
        TcpStream::connect(address).await.unwrap()
    }

    /// The member serves as before, on the connection that was there from the start and on a new one.
    async fn serves(&mut self) {
        self.puts += 1;
        let request = put("good", format!("{}", self.puts));
        let _: PutResponse = within(self.good.call(PUT, &request)).await.unwrap();
        let new = Client::connect(&self.member.client_urls()[0]).await;
        let request = RangeRequest {
            key: "good".into(),
            ..RangeRequest::default()
        };
        let range: RangeResponse = within(new.call(RANGE, &request)).await.unwrap();
        assert_eq!(range.kvs[0].value, format!("{}", self.puts));
        assert_eq!(self.member.failure(), None);
        assert_eq!(PANICS.load(Ordering::Relaxed), self.panics);
        let grown = resident().saturating_sub(self.before);
        assert!(grown < GROWTH_MAX, "{grown} bytes more than before");
    }

    async fn end(mut self) {
        self.serves().await;
        let Rig { member, _alone, .. } = self;
        off_thread(move || member.stop());
    }
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> PutRequest {
    PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    }
}

fn operation(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn frame(flag: u8, len: usize, message: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(flag);
    out.put_u32(u32::try_from(len).unwrap());
    out.extend_from_slice(message);
    out.freeze()
}

/// `bytes`, again and again, packed.
fn gzip(bytes: &[u8], times: usize) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    (0..times).for_each(|_| encoder.write_all(bytes).unwrap());
    encoder.finish().unwrap()
}

fn seeds() -> Vec<Vec<u8>> {
    let lease = LeaseGrantRequest { id: 77, ttl: 60 };
    let watch = WatchRequest {
        request_union: Some(watch_request::RequestUnion::CreateRequest(
            WatchCreateRequest {
                key: "a".into(),
                range_end: "z".into(),
                start_revision: 1,
                ..WatchCreateRequest::default()
            },
        )),
    };
    let txn = TxnRequest {
        success: vec![operation(Request::RequestPut(put("k", "v")))],
        ..TxnRequest::default()
    };
    vec![
        Vec::new(),
        put("key", vec![3; 500]).encode_to_vec(),
        lease.encode_to_vec(),
        watch.encode_to_vec(),
        txn.encode_to_vec(),
    ]
}

/// A body that is wrong in some way, with the encoding that it says to have.
fn broken_body(random: &mut Random, seeds: &[Vec<u8>]) -> (Bytes, Option<&'static str>) {
    let mut message = random.of(seeds);
    for _ in 0..random.below(4) {
        random.hurt(&mut message);
    }
    let len = message.len();
    match random.below(8) {
        0 => {
            let claimed = (random.next() >> 32) as usize;
            (frame(0, claimed, &message), None)
        }
        1 => (frame(0, len / 2, &message), None),
        2 => (frame(random.next() as u8, len, &message), None),
        3 => (frame(1, len, &message), Some("gzip")),
        4 => {
            let mut packed = gzip(&message, 1);
            random.hurt(&mut packed);
            (frame(1, packed.len(), &packed), Some("gzip"))
        }
        5 => {
            let len = random.below(40);
            (random.bytes(len).into(), random.of(&[None, Some("snappy")]))
        }
        _ => (frame(0, len, &message), None),
    }
}

#[tokio::test]
async fn every_broken_call_gets_a_status() {
    let mut rig = Rig::start().await;
    let seeds = seeds();
    let (started, mut cases) = (Instant::now(), 0);
    let url = rig.member.client_urls()[0].clone();
    let mut client = Client::connect(&url).await;
    while cases < 300 || started.elapsed() < TIME_BOX {
        let mut random = Random(cases);
        let (body, encoding) = broken_body(&mut random, &seeds);
        let kind = random.of(&[
            "application/grpc",
            "application/grpc+json",
            "application/grpc;",
        ]);
        let path = random.of(&UNARY);
        let status = within(raw_call(&client, path, kind, encoding, body)).await;
        assert!(status.is_some_and(|code| code <= 16), "{path}: {status:?}");
        if cases % 100 == 0 {
            rig.serves().await;
            client = Client::connect(&url).await;
        }
        cases += 1;
    }
    rig.end().await;
}

#[tokio::test]
async fn broken_streams_end_alone() {
    let mut rig = Rig::start().await;
    let seeds = seeds();
    let url = rig.member.client_urls()[0].clone();
    let (started, mut cases) = (Instant::now(), 0);
    while cases < 100 || started.elapsed() < TIME_BOX {
        let mut random = Random(cases + (1 << 40));
        cases += 1;
        let path = random.of(&STREAMS);
        let first = broken_body(&mut random, &seeds).0;
        let begun = Both::begun(&url, path, Some(first));
        // Some say nothing before they have a whole message.
        let Ok(stream) = tokio::time::timeout(Duration::from_millis(30), begun).await else {
            continue;
        };
        for _ in 0..random.below(5) {
            stream.send_raw(broken_body(&mut random, &seeds).0);
        }
        drop(stream);
        if cases % 50 == 0 {
            rig.serves().await;
        }
    }
    rig.end().await;
}

#[tokio::test]
async fn a_bomb_is_unpacked_no_further_than_the_limit() {
    let rig = Rig::start().await;
    // A quarter of a gigabyte.
    let packed = gzip(&[0; 1 << 16], 4096);
    let peak_before = resident();
    assert!(packed.len() < 2 << 20, "{}", packed.len());
    for _ in 0..5 {
        let body = frame(1, packed.len(), &packed);
        let status = raw_call(&rig.good, PUT, "application/grpc", Some("gzip"), body);
        assert_eq!(within(status).await, Some(8));
        assert!(resident() < peak_before + (64 << 20));
    }
    rig.end().await;
}

#[tokio::test]
async fn nesting_of_every_kind_is_bounded() {
    let mut rig = Rig::start().await;
    let groups = vec![0x0b; (2 << 20) - 64];
    for path in UNARY.iter().chain(&STREAMS) {
        let body = frame(0, groups.len(), &groups);
        let status = raw_call(&rig.good, path, "application/grpc", None, body);
        // Some take messages without reading them.
        let status = within(status).await;
        assert!(
            matches!(status, Some(0 | 3 | 8 | 9 | 12 | 13)),
            "{path}: {status:?}"
        );
    }
    rig.serves().await;
    rig.end().await;
}

fn nested(levels: usize) -> TxnRequest {
    let mut txn = TxnRequest {
        success: vec![operation(Request::RequestPut(put("deep", "v")))],
        ..TxnRequest::default()
    };
    for _ in 1..levels {
        txn = TxnRequest {
            success: vec![operation(Request::RequestTxn(txn))],
            ..TxnRequest::default()
        };
    }
    txn
}

#[tokio::test]
async fn transactions_are_bounded_in_width_and_depth() {
    let rig = Rig::start().await;
    let wide = |count: usize| TxnRequest {
        success: (0..count)
            .map(|key| operation(Request::RequestPut(put(format!("w{key}"), "v"))))
            .collect(),
        ..TxnRequest::default()
    };
    let too_many = Status {
        code: 3,
        text: "etcdserver: too many operations in txn request".into(),
    };
    let code = async |txn: TxnRequest| {
        let answer = within(bytes_of(&rig.good, TXN, framed(&txn))).await;
        answer.map(drop)
    };
    assert_eq!(code(wide(128)).await, Ok(()));
    assert_eq!(code(wide(129)).await, Err(too_many.clone()));
    assert_eq!(code(nested(128)).await, Ok(()));
    assert_eq!(code(nested(129)).await, Err(too_many.clone()));
    // A million operations that ask for nothing.
    let mut empty = BytesMut::new();
    (0..1_000_000).for_each(|_| empty.extend_from_slice(&[0x12, 0]));
    let answer = bytes_of(&rig.good, TXN, frame(0, empty.len(), &empty));
    assert_eq!(within(answer).await.unwrap_err(), too_many);
    rig.end().await;
}

#[tokio::test]
async fn the_deepest_transaction_that_is_read_is_also_applied() {
    let rig = Rig::start_by(|dir| start_with(dir, |config| config.max_txn_ops = 10_000)).await;
    // Encoded without recursion: the test's own stack is small.
    let encoded = |levels: usize| {
        let mut inner = nested(1).encode_to_vec();
        for _ in 1..levels {
            for field in [4, 2] {
                let mut outer = Vec::new();
                let wire_type = prost::encoding::WireType::LengthDelimited;
                prost::encoding::encode_key(field, wire_type, &mut outer);
                prost::encoding::encode_varint(inner.len() as u64, &mut outer);
                outer.extend_from_slice(&inner);
                inner = outer;
            }
        }
        frame(0, inner.len(), &inner)
    };
    for levels in [300, 990] {
        within(bytes_of(&rig.good, TXN, encoded(levels)))
            .await
            .unwrap();
    }
    for levels in [1_100, 100_000] {
        let error = within(bytes_of(&rig.good, TXN, encoded(levels))).await;
        assert_eq!(error.unwrap_err().code, 13, "{levels}");
    }
    rig.end().await;
}

#[tokio::test]
async fn requests_at_the_border_of_their_size_are_told_apart() {
    let rig = Rig::start().await;
    let request_max: usize = 1_572_864;
    let message_max = request_max + (512 << 10);
    let of_size = |size: usize| {
        let mut request = put("k", vec![0; size - 32]);
        request.value = vec![0; size - (request.encoded_len() - request.value.len())].into();
        assert_eq!(request.encoded_len(), size);
        framed(&request)
    };
    let answer = async |body| within(rig.good.send::<PutResponse>(PUT, None, body)).await;
    // What surrounds a put in the log is its number, and a few bytes more.
    assert!(answer(of_size(request_max - 32)).await.is_ok());
    let too_large = Err(Status {
        code: 3,
        text: "etcdserver: request is too large".into(),
    });
    assert_eq!(answer(of_size(request_max)).await, too_large);
    assert_eq!(answer(of_size(message_max)).await, too_large);
    let past = message_max + 1;
    let text = format!("grpc: received message larger than max ({past} vs. {message_max})");
    assert_eq!(answer(of_size(past)).await, Err(Status { code: 8, text }));
    // A key may be as large as a value.
    let key = Bytes::from(vec![7; 1 << 20]);
    let _: PutResponse = within(rig.good.call(PUT, &put(key.clone(), "v")))
        .await
        .unwrap();
    let request = RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    };
    let range: RangeResponse = within(rig.good.call(RANGE, &request)).await.unwrap();
    assert!(range.kvs[0].key == key);
    rig.end().await;
}

#[tokio::test]
async fn slow_readers_of_long_lists_cost_no_memory() {
    let mut rig = Rig::start().await;
    for key in 0..48 {
        let request = put(format!("large{key:03}"), vec![b'x'; 1 << 20]);
        let _: PutResponse = within(rig.good.call(PUT, &request)).await.unwrap();
    }
    rig.before = resident();
    let all = RangeRequest {
        key: Bytes::from_static(&[0]),
        range_end: Bytes::from_static(&[0]),
        ..RangeRequest::default()
    };
    let url = rig.member.client_urls()[0].clone();
    let mut slow = Vec::new();
    for path in [
        RANGE,
        "/etcdserverpb.KV/RangeStream",
        "/etcdserverpb.Maintenance/Snapshot",
    ] {
        for _ in 0..4 {
            slow.push(within(Both::begun(&url, path, Some(framed(&all)))).await);
        }
    }
    rig.serves().await;
    // One of them wakes up, and gets all of it; the others go away in the middle.
    let mut first = slow.swap_remove(0);
    let answer = within(first.answers.next::<RangeResponse>()).await;
    assert_eq!(answer.unwrap().unwrap().kvs.len(), 48);
    drop(slow);
    drop(first);
    rig.serves().await;
    rig.end().await;
}

#[tokio::test]
async fn ten_thousand_watches_of_one_stream_are_made_and_left() {
    let mut rig = Rig::start().await;
    let url = rig.member.client_urls()[0].clone();
    let mut stream = Both::open(&url, WATCH).await;
    let create = WatchRequest {
        request_union: Some(watch_request::RequestUnion::CreateRequest(
            WatchCreateRequest {
                key: "watched".into(),
                ..WatchCreateRequest::default()
            },
        )),
    };
    for _ in 0..10_000 {
        stream.send(&create);
    }
    for id in 0..10_000 {
        let answer: WatchResponse = within(stream.answers.next()).await.unwrap().unwrap();
        assert!(answer.created && answer.watch_id == id);
    }
    let _: PutResponse = within(rig.good.call(PUT, &put("watched", "v")))
        .await
        .unwrap();
    for _ in 0..10_000 {
        let answer: WatchResponse = within(stream.answers.next()).await.unwrap().unwrap();
        assert_eq!(answer.events.len(), 1);
    }
    drop(stream);
    rig.serves().await;
    rig.end().await;
}

#[tokio::test]
async fn ten_thousand_leases_are_kept_alive_in_one_breath() {
    let rig = Rig::start().await;
    let url = rig.member.client_urls()[0].clone();
    let mut stream = Both::open(&url, "/etcdserverpb.Lease/LeaseKeepAlive").await;
    for id in 1..=10_000 {
        stream.send(&LeaseKeepAliveRequest { id });
    }
    for id in 1..=10_000 {
        let answer: LeaseKeepAliveResponse = within(stream.answers.next()).await.unwrap().unwrap();
        assert_eq!((answer.id, answer.ttl), (id, 0));
    }
    drop(stream);
    rig.end().await;
}

/// Reads until the other side closes, for a moment at most.
async fn read_for(socket: &mut TcpStream, most: Duration) -> Vec<u8> {
    let mut all = Vec::new();
    drop(tokio::time::timeout(most, socket.read_to_end(&mut all)).await);
    all
}

#[tokio::test]
async fn garbage_on_the_clients_port_ends_its_own_connection_alone() {
    let mut rig = Rig::start().await;
    let mut call = h2_start();
    call.extend(h2_frame(1, 4, 1, &h2_fields(PUT)));
    call.extend(h2_frame(0, 1, 1, &framed(&put("k", "v"))));
    call.extend(h2_frame(6, 0, 0, &[0; 8]));
    let http1 = b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".to_vec();
    let (started, mut cases) = (Instant::now(), 0);
    while cases < 150 || started.elapsed() < TIME_BOX {
        let mut random = Random(cases + (1 << 41));
        let mut bytes = random.of(&[call.clone(), http1.clone(), PREFACE.to_vec(), Vec::new()]);
        for _ in 0..random.below(4) {
            random.hurt(&mut bytes);
        }
        if random.below(4) == 0 {
            let len = random.below(2_000);
            bytes.extend(random.bytes(len));
        }
        let mut socket = rig.socket().await;
        // It may be closed from the other side before all is written.
        drop(socket.write_all(&bytes).await);
        if random.below(2) == 0 {
            read_for(&mut socket, Duration::from_millis(5)).await;
        }
        drop(socket);
        if cases % 50 == 0 {
            rig.serves().await;
        }
        cases += 1;
    }
    rig.end().await;
}

#[tokio::test]
async fn endless_header_fields_are_not_collected() {
    let mut rig = Rig::start().await;
    // HTTP/2: fields that go on and on.
    let mut socket = rig.socket().await;
    let mut start = h2_start();
    start.extend(h2_frame(1, 0, 1, &h2_fields(PUT)));
    socket.write_all(&start).await.unwrap();
    // A name of one byte, a value of 8000.
    let mut field = vec![0, 1, b'x', 0x7f, 0xc1, 61];
    field.resize(6 + 8_000, b'y');
    for _ in 0..16_000 {
        if socket.write_all(&h2_frame(9, 0, 1, &field)).await.is_err() {
            break;
        }
    }
    drop(socket);
    rig.serves().await;
    // HTTP/1: the same, and one that never ends.
    for line in ["x: y\r\n".repeat(2_000_000), "z".repeat(16 << 20)] {
        let mut socket = rig.socket().await;
        socket.write_all(b"GET /health HTTP/1.1\r\n").await.unwrap();
        drop(socket.write_all(line.as_bytes()).await);
        let answer = read_for(&mut socket, Duration::from_secs(20)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
            "{answer}"
        );
    }
    rig.serves().await;
    rig.end().await;
}

#[tokio::test]
async fn thousands_of_half_open_and_of_cancelled_streams_are_borne() {
    let mut rig = Rig::start().await;
    for cancel in [false, true] {
        let mut socket = rig.socket().await;
        socket.write_all(&h2_start()).await.unwrap();
        let (mut reader, mut writer) = socket.into_split();
        let drain = tokio::spawn(async move {
            let mut sink = vec![0; 64 << 10];
            while reader.read(&mut sink).await.is_ok_and(|count| count > 0) {}
        });
        for number in 0..5_000_u32 {
            let stream = 2 * number + 1;
            let mut bytes = h2_frame(1, 4, stream, &h2_fields(WATCH));
            // A message that has begun.
            bytes.extend(h2_frame(0, 0, stream, &[0, 0, 0, 1, 0, 9]));
            if cancel {
                bytes.extend(h2_frame(3, 0, stream, &8_u32.to_be_bytes()));
            }
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        rig.serves().await;
        drop(writer);
        within(drain).await.unwrap();
        rig.serves().await;
    }
    rig.end().await;
}

/// Reads frames until the one that ends `stream`; whether the connection goes on.
async fn read_answer(socket: &mut TcpStream, stream: u32) -> bool {
    loop {
        let mut head = [0; 9];
        if within(socket.read_exact(&mut head)).await.is_err() {
            return false;
        }
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; len as usize];
        within(socket.read_exact(&mut payload)).await.unwrap();
        let [kind, flags] = [head[3], head[4]];
        let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if kind == 7 {
            return false;
        }
        // Fields that end the stream: the trailers.
        if kind == 1 && flags & 1 != 0 && of == stream {
            return true;
        }
    }
}

#[tokio::test]
async fn clients_that_end_their_side_behind_the_answer_keep_their_connection() {
    let rig = Rig::start().await;
    let mut socket = rig.socket().await;
    socket.set_nodelay(true).unwrap();
    socket.write_all(&h2_start()).await.unwrap();
    // More often than a connection is borne on which clients are at fault.
    for number in 0..1_500_u32 {
        let stream = 2 * number + 1;
        let mut call = h2_frame(1, 4, stream, &h2_fields(RANGE));
        let message = RangeRequest {
            key: "k".into(),
            ..RangeRequest::default()
        };
        call.extend(h2_frame(0, 0, stream, &framed(&message)));
        socket.write_all(&call).await.unwrap();
        assert!(read_answer(&mut socket, stream).await, "call {number}");
        let end = h2_frame(0, 1, stream, &[]);
        socket.write_all(&end).await.unwrap();
    }
    rig.end().await;
}
