//! Snapshots from one member to another.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Member, Sevens, pair, snapshot, wait_for};
use keelson_proto::ids::MemberId;

const SIZE: u64 = 64 << 20;

/// What may lie between reader and writer: channels of both, and the socket's buffers in the kernel.
const BETWEEN_MAX: u64 = 20 << 20;

#[test]
fn a_snapshot_is_streamed_and_never_whole_in_memory() {
    let (a, b) = pair();
    let body = Sevens::new(SIZE);
    let (finished, given) = (Arc::clone(&body.finished), Arc::clone(&body.given));
    let (taken, over) = (Arc::clone(&b.heard.taken), Arc::new(AtomicBool::new(false)));
    let most = Arc::new(AtomicU64::new(0));
    let watch = std::thread::spawn({
        let (over, most) = (Arc::clone(&over), Arc::clone(&most));
        move || {
            while !over.load(Ordering::SeqCst) {
                let taken = taken.load(Ordering::SeqCst);
                let between = given.load(Ordering::SeqCst).saturating_sub(taken);
                most.fetch_max(between, Ordering::SeqCst);
                std::thread::park_timeout(std::time::Duration::from_millis(1));
            }
        }
    });
    let message = snapshot(a.id, b.id);
    a.peers.send_snapshot(message.clone(), Box::new(body));
    wait_for("it has ended", || finished.lock().unwrap().is_some());
    over.store(true, Ordering::SeqCst);
    watch.join().unwrap();
    assert_eq!(*finished.lock().unwrap(), Some(true));
    assert_eq!(*b.heard.snapshots.lock().unwrap(), [(message, Ok(SIZE))]);
    let most = most.load(Ordering::SeqCst);
    assert!(most < BETWEEN_MAX, "{most} bytes were on their way at once");
    let stats = a.peers.stats().peers();
    let sent = &stats[0].1.snapshots_sent;
    assert_eq!(sent.successes.load(Ordering::Relaxed), 1);
    assert_eq!(sent.in_flight.load(Ordering::Relaxed), 0);
}

#[test]
fn a_snapshot_that_cannot_be_read_to_its_end_is_not_taken() {
    let (a, b) = pair();
    let breaks = Sevens {
        fails_at: Some(1 << 20),
        ..Sevens::new(SIZE)
    };
    // It promises more than it has.
    let short = Sevens {
        left: 1 << 20,
        ..Sevens::new(SIZE)
    };
    for body in [breaks, short] {
        let finished = Arc::clone(&body.finished);
        b.heard.snapshots.lock().unwrap().clear();
        a.peers.send_snapshot(snapshot(a.id, b.id), Box::new(body));
        wait_for("it has ended", || finished.lock().unwrap().is_some());
        assert_eq!(*finished.lock().unwrap(), Some(false));
        wait_for("the other end has heard of it", || {
            !b.heard.snapshots.lock().unwrap().is_empty()
        });
        assert!(b.heard.snapshots.lock().unwrap()[0].1.is_err());
    }
}

#[test]
fn a_snapshot_for_nobody_has_failed() {
    let a = Member::start(0xa);
    let body = Sevens::new(1);
    let finished = Arc::clone(&body.finished);
    a.peers
        .send_snapshot(snapshot(a.id, MemberId(9)), Box::new(body));
    assert_eq!(*finished.lock().unwrap(), Some(false));
}

#[test]
fn a_snapshot_for_another_member_is_refused_before_its_file_comes() {
    let (a, b) = pair();
    *b.heard.member.lock().unwrap() = MemberId(0xf);
    let body = Sevens::new(SIZE);
    let (finished, given) = (Arc::clone(&body.finished), Arc::clone(&body.given));
    a.peers.send_snapshot(snapshot(a.id, b.id), Box::new(body));
    wait_for("it has ended", || finished.lock().unwrap().is_some());
    assert_eq!(*finished.lock().unwrap(), Some(false));
    assert!(given.load(Ordering::SeqCst) < SIZE);
    assert!(b.heard.snapshots.lock().unwrap().is_empty());
}

/// A request as etcd sends it: neither length nor checksum.
fn from_etcd(b: &Member, frame: &[u8], file: &[u8], end: &[u8]) -> String {
    request(b, "", frame, file, end)
}

fn request(b: &Member, headers: &str, frame: &[u8], file: &[u8], end: &[u8]) -> String {
    let head = b.head("POST /raft/snapshot", MemberId(0xa));
    let mut request =
        format!("{head}{headers}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
            .into_bytes();
    for part in [frame, file] {
        if !part.is_empty() {
            request.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
            request.extend_from_slice(part);
            request.extend_from_slice(b"\r\n");
        }
    }
    request.extend_from_slice(end);
    b.raw(&request)
}

/// What goes before the file.
fn frame(b: &Member) -> Vec<u8> {
    let message = snapshot(MemberId(0xa), b.id).encode();
    let mut frame = (message.len() as u64).to_be_bytes().to_vec();
    frame.extend_from_slice(&message);
    frame
}

#[test]
fn a_snapshot_is_refused_where_length_or_checksum_are_not_what_was_announced() {
    let b = Member::start(0xb);
    let send = |bytes: usize, file: &[u8], sum: Option<&str>| {
        let headers =
            format!("X-Keelson-Snapshot-Bytes: {bytes}\r\nTrailer: X-Keelson-Snapshot-Sum\r\n");
        let trailer = sum.map_or(String::new(), |sum| {
            format!("X-Keelson-Snapshot-Sum: {sum}\r\n")
        });
        let end = format!("0\r\n{trailer}\r\n");
        request(&b, &headers, &frame(&b), file, end.as_bytes())
    };
    let file = vec![7; 100_000];
    let refused = |answer: &str, reason: &str| {
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.contains(reason), "{answer}");
    };
    refused(
        &send(100_001, &file, Some("")),
        "100000 bytes came of 100001",
    );
    refused(&send(100_000, &file, None), "did not come");
    let answer = send(100_000, &file, Some("00"));
    refused(&answer, "the sender's is 00");
    // It says what the right one is.
    let (_, rest) = answer.split_once("the checksum is ").unwrap();
    let (right, _) = rest.split_once(',').unwrap();
    let answer = send(100_000, &file, Some(right));
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    let taken = b.heard.snapshots.lock().unwrap();
    let good: Vec<bool> = taken.iter().map(|(_, taken)| taken.is_ok()).collect();
    assert_eq!(good, [false, false, false, true]);
}

#[test]
fn snapshots_of_etcd_are_taken_without_length_and_checksum() {
    let b = Member::start(0xb);
    let frame = frame(&b);
    let answer = from_etcd(&b, &frame, &[7; 100_000], b"0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    assert_eq!(b.heard.snapshots.lock().unwrap()[0].1, Ok(100_000));
}

#[test]
fn envelopes_that_cannot_be_read_are_refused_in_etcds_words() {
    let b = Member::start(0xb);
    let text = |frame: &[u8]| {
        let answer = from_etcd(&b, frame, b"", b"0\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        answer.rsplit("\r\n\r\n").next().unwrap().to_owned()
    };
    assert_eq!(text(b""), "failed to decode raft message (EOF)\n");
    assert_eq!(
        text(b"abc"),
        "failed to decode raft message (unexpected EOF)\n"
    );
    assert_eq!(
        text(&[0xff; 8]),
        "failed to decode raft message (rafthttp: error limit exceeded)\n"
    );
    assert_eq!(text(&[0; 8]), "wrong raft message type\n");
    assert!(b.heard.snapshots.lock().unwrap().is_empty());
}
