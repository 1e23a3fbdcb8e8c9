//! The peer port and whoever does not keep to the protocol.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Member, Setup, wait_for};
use keelson_proto::ids::MemberId;
use keelson_proto::message::MessageKind;

#[test]
fn messages_that_cannot_be_read_are_refused_in_etcds_words() {
    let member = Member::start(0xb);
    let post = |body: &[u8]| {
        let head = member.head("POST /raft", MemberId(0xa));
        let mut request = format!(
            "{head}Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        member.raw(&request)
    };
    let answer = post(b"\xff\xff\xff");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\nerror unmarshalling raft message\n"));
    // For nobody: the answer breaks off.
    let answer = post(b"\x08\x08");
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert!(
        answer.contains("error processing raft message\n"),
        "{answer}"
    );
    assert!(!answer.ends_with("0\r\n\r\n"), "it is cut inside the body");
    let good = member.message(member.id, MessageKind::Vote, 3).encode();
    assert!(post(&good).starts_with("HTTP/1.1 204 "));
    assert_eq!(member.heard.indexes(), [3]);
}

#[test]
fn a_message_that_is_too_long_is_refused_while_it_comes() {
    let member = Member::start(0xb);
    let head = member.head("POST /raft", MemberId(0xa));
    let mut socket = TcpStream::connect(&member.address).unwrap();
    let head = format!("{head}Content-Length: {}\r\n\r\n", 1_u64 << 40);
    socket.write_all(head.as_bytes()).unwrap();
    let piece = vec![0; 1 << 20];
    let mut sent = 0;
    // The other end answers and closes, so that writing fails some time.
    while sent < 200 && socket.write_all(&piece).is_ok() {
        sent += 1;
    }
    assert!((64..200).contains(&sent), "{sent} MiB were taken");
    assert_eq!(member.heard.count(), 0);
}

#[test]
fn garbage_is_answered_and_the_port_serves_on() {
    let member = Member::start(0xb);
    let long = vec![b'a'; 1 << 20];
    let garbage: [&[u8]; 5] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        &long,
    ];
    for bytes in garbage {
        let answer = member.raw(bytes);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
    }
    let answer = member.raw(b"GET /raft/probing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.contains("{\"OK\":true,\"Now\":\""), "{answer}");
}

#[test]
fn a_route_is_given_what_is_asked_and_no_long_bodies() {
    let member = Member::start(0xb);
    let ask = |length: usize| {
        let head = "POST /leases HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
        let mut request = format!("{head}Content-Length: {length}\r\n\r\n").into_bytes();
        request.resize(request.len() + length, b'x');
        member.raw(&request)
    };
    assert!(ask(3).ends_with("\r\n\r\nPOST /leases\n"));
    let answer = ask((64 << 10) + 1);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.ends_with("request body too large\n"));
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let setup = Setup {
        timeout: Duration::from_millis(200),
        ..Setup::default()
    };
    let member = Member::with(0xb, setup);
    let start = Instant::now();
    assert!(
        !member
            .raw(b"GET /raft/probing HT")
            .starts_with("HTTP/1.1 200")
    );
    // A body that stays away.
    let head = member.head("POST /raft", MemberId(0xa));
    let answer = member.raw(format!("{head}Content-Length: 9\r\n\r\nabc").as_bytes());
    assert!(!answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert!(start.elapsed() >= Duration::from_millis(400));
}

/// Reads until the answer's head and `more` bytes are there.
fn head_of(socket: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(b"\r\n\r\n") {
        assert_eq!(socket.read(&mut byte).unwrap(), 1);
        read.push(byte[0]);
    }
    String::from_utf8(read).unwrap()
}

#[test]
fn a_newer_stream_takes_the_place_of_the_one_before() {
    let (member, other) = (Member::start(0xb), Member::start(0xa));
    // A peer that is known, and whose own streams never come: it knows nobody.
    member.knows(&other);
    let dial = || {
        let mut socket = TcpStream::connect(&member.address).unwrap();
        let head = member.head("GET /raft/stream/message/a", other.id);
        socket.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        let head = head_of(&mut socket);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("x-server-version: 3.7.1\r\n"), "{head}");
        socket
    };
    let mut first = dial();
    let mut second = dial();
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).unwrap();
    assert!(rest.ends_with(b"0\r\n\r\n"), "the first has ended well");
    member.send(&other, MessageKind::Vote, 5);
    let mut byte = [0];
    assert_eq!(second.read(&mut byte).unwrap(), 1, "the second lives");
}

#[test]
fn senders_with_bad_urls_are_not_answered_and_do_no_harm() {
    let member = Member::start(0xb);
    for urls in ["http://a:b", "x", "http://127.0.0.1:1/path", ",,"] {
        let head = member.head("GET /raft/stream/message/a", MemberId(0xa));
        let request = format!("{head}X-PeerURLs: {urls}\r\nConnection: close\r\n\r\n");
        let answer = member.raw(request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        assert!(answer.ends_with("error sender not found\n"), "{answer}");
    }
    let stranger = Member::start(0xa);
    let before = stranger.heard.count();
    let head = member.head("GET /raft/stream/message/a", MemberId(0xa));
    let request = format!(
        "{head}X-PeerURLs: {}\r\nConnection: close\r\n\r\n",
        stranger.url
    );
    member.raw(request.as_bytes());
    wait_for("the stranger is answered", || {
        member.send(&stranger, MessageKind::Vote, 1);
        stranger.heard.count() > before
    });
}

#[test]
fn connections_past_the_limit_wait_until_others_end() {
    let setup = Setup {
        connections_max: 3,
        timeout: Duration::from_secs(600),
        ..Setup::default()
    };
    let member = Member::with(0xb, setup);
    let probe = b"GET /raft/probing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut held: Vec<TcpStream> = (0..3)
        .map(|_| TcpStream::connect(&member.address).unwrap())
        .collect();
    let mut late = TcpStream::connect(&member.address).unwrap();
    late.write_all(probe).unwrap();
    late.set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let mut byte = [0];
    assert!(late.read(&mut byte).is_err(), "it is not served");
    held.pop();
    late.set_read_timeout(Some(Duration::from_secs(120)))
        .unwrap();
    let mut answer = String::new();
    late.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
