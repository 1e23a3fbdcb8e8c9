//! A member that sends the others what no member sends, over the streams that they dial, and one that
//! takes nothing from those that it dials itself.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use keelson_client::Put;
use keelson_e2e::ProcessCluster;
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};

use crate::port::{Head, PATIENCE, Rig, dial, exchange, lines, room, unhurried, until};

/// What the false member answers with when a stream is dialled.
#[derive(Clone)]
enum Answer {
    /// These bytes on streams of one kind, and the end where it says so.
    Stream {
        folder: &'static str,
        bytes: Vec<u8>,
        ends: bool,
    },
    /// Instead of a stream.
    Raw(Vec<u8>),
    /// Bytes of a frame that never ends, as fast as they are taken.
    Endless,
}

/// A member of the test's: a port that answers as it is told.
struct False {
    url: String,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    answer: Mutex<Answer>,
    /// What its clock says to probes, which fail as long as it has none.
    clock: Mutex<Option<&'static str>>,
    /// When streams were dialled.
    dialled: Mutex<Vec<Instant>>,
    over: AtomicBool,
}

impl False {
    fn start() -> False {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            answer: Mutex::new(Answer::Raw(Vec::new())),
            clock: Mutex::default(),
            dialled: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let of = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                if of.over.load(Ordering::SeqCst) {
                    return;
                }
                let of = Arc::clone(&of);
                // It ends with its connection.
                std::thread::spawn(move || of.serve(socket));
            }
        });
        False {
            url,
            shared,
            accepting: Some(accepting),
        }
    }

    fn answers(&self, answer: Answer) {
        *self.shared.answer.lock().unwrap() = answer;
    }
}

impl Drop for False {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _woken = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let Some(accepting) = self.accepting.take() {
            accepting.join().unwrap();
        }
    }
}

impl Shared {
    /// Answers one request, whichever way its connection ends.
    fn serve(&self, mut socket: TcpStream) -> Option<()> {
        socket.set_read_timeout(Some(PATIENCE)).ok()?;
        socket.set_write_timeout(Some(PATIENCE)).ok()?;
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            socket.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).ok()?;
        let clock = *self.clock.lock().unwrap();
        if let Some(now) = clock.filter(|_| head.starts_with("GET /raft/probing ")) {
            let body = format!("{{\"OK\":true,\"Now\":\"{now}\"}}\n");
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
            return socket.write_all(answer.as_bytes()).ok();
        }
        let Some(rest) = head.strip_prefix("GET /raft/stream/") else {
            let absent = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
            return socket.write_all(absent).ok();
        };
        self.dialled.lock().unwrap().push(Instant::now());
        let answer = self.answer.lock().unwrap().clone();
        let begin = b"HTTP/1.1 200 OK\r\nX-Server-Version: 3.7.1\r\n\r\n";
        match answer {
            Answer::Raw(bytes) => socket.write_all(&bytes).ok(),
            Answer::Stream {
                folder,
                bytes,
                ends,
            } => {
                socket.write_all(begin).ok()?;
                if rest.starts_with(&format!("{folder}/")) {
                    socket.write_all(&bytes).ok()?;
                }
                if ends {
                    return Some(());
                }
                self.wait_for_its_end(&mut socket)
            }
            Answer::Endless => {
                socket.write_all(begin).ok()?;
                // As long as may be, and a byte more than is ever sent.
                socket.write_all(&(512_u64 << 20).to_be_bytes()).ok()?;
                let piece = vec![0x0b; 64 << 10];
                for _ in 0..(48 << 20) / piece.len() {
                    socket.write_all(&piece).ok()?;
                }
                self.wait_for_its_end(&mut socket)
            }
        }
    }

    fn wait_for_its_end(&self, socket: &mut TcpStream) -> Option<()> {
        let mut byte = [0];
        let _ended = socket.read(&mut byte);
        Some(())
    }
}

/// Two members, and a false third one.
async fn with_a_false_member() -> (Rig, False) {
    let other = False::start();
    let others = [("false".to_owned(), other.url.clone())];
    let mut cluster = ProcessCluster::prepared(vec![unhurried(); 2], &others).unwrap();
    cluster.spawn().unwrap();
    for number in 0..2 {
        cluster.member_mut(number).wait_until_ready().unwrap();
    }
    (Rig::of(cluster).await, other)
}

const LOST: &str = "lost TCP streaming connection with remote peer";

/// How many streams a member has lost for a reason.
fn lost(rig: &Rig, number: usize, reason: &str) -> usize {
    let reason = format!("\"error\":\"{reason}");
    let log = rig.cluster.member(number).log();
    log.iter()
        .filter(|line| line.contains(LOST) && line.contains(&reason))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_no_member_sends_end_their_stream_with_the_reason() {
    let _room = room().await;
    let (mut rig, other) = with_a_false_member().await;
    let length = |bytes: u64| bytes.to_be_bytes().to_vec();
    let of = |parts: &[&[u8]]| parts.concat();
    let limit = "rafthttp: error limit exceeded";
    let just_over = length((512 << 20) + 1);
    for (folder, bytes, reason) in [
        ("message", length(1 << 63), limit),
        ("message", just_over.clone(), limit),
        ("message", of(&[&length(3), b"\xff\xff\xff"]), ""),
        ("message", of(&[&length(9), b"half"]), "unexpected EOF"),
        (
            "msgapp",
            vec![9],
            "failed to parse type 9 in msgappv2 stream",
        ),
        ("msgapp", of(&[&[2], &length(1 << 63)]), limit),
        ("msgapp", of(&[&[2], &just_over]), limit),
        // So many entries, and an entry so long.
        ("msgapp", of(&[&[1], &length(1 << 63)]), limit),
        ("msgapp", of(&[&[1], &length(1), &length(1 << 63)]), limit),
        (
            "msgapp",
            of(&[&[1], &length(1), &length(2), b"\xff\xff"]),
            "",
        ),
        ("msgapp", of(&[&[1], &length(1)]), "unexpected EOF"),
    ] {
        let before: Vec<usize> = (0..2).map(|it| lost(&rig, it, reason)).collect();
        other.answers(Answer::Stream {
            folder,
            bytes,
            ends: reason == "unexpected EOF",
        });
        for (number, before) in before.into_iter().enumerate() {
            until(reason, || lost(&rig, number, reason) > before);
        }
        rig.puts_go_on().await;
    }
    rig.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_answers_nonsense_is_dialled_no_faster_than_one_that_is_away() {
    let _room = room().await;
    let (mut rig, other) = with_a_false_member().await;
    for answer in [
        &b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..],
        b"HTTP/1.1 500 Internal Server Error\r\nX-Server-Version: 3.7.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Server-Version: none\r\n\r\n",
    ] {
        other.answers(Answer::Raw(answer.to_vec()));
        let begun = Instant::now();
        other.shared.dialled.lock().unwrap().clear();
        until("it is dialled again and again", || {
            other.shared.dialled.lock().unwrap().len() >= 20
        });
        // Two members with two streams each, ten times a second at most.
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(350), "20 times in {took:?}");
    }
    rig.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_takes_no_more_memory_than_has_come_of_it() {
    let _room = room().await;
    let (mut rig, other) = with_a_false_member().await;
    other.answers(Answer::Endless);
    // It stops in the middle, and says nothing more.
    let reason = "read: i/o timeout";
    for number in 0..2 {
        until(reason, || lost(&rig, number, reason) > 0);
    }
    rig.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_for_others_that_come_by_thousands_do_not_fill_the_log() {
    let _room = room().await;
    let (mut rig, other) = with_a_false_member().await;
    let message = Message {
        kind: MessageKind::Heartbeat,
        from: MemberId(1),
        to: MemberId(2),
        ..Message::default()
    };
    let message = message.encode();
    let frame = [&(message.len() as u64).to_be_bytes()[..], &message].concat();
    other.answers(Answer::Stream {
        folder: "message",
        bytes: frame.repeat(100_000),
        ends: false,
    });
    let line = "rejected Raft message to mismatch member";
    for number in 0..2 {
        until(line, || rig.lines(number, line) >= 100);
    }
    rig.puts_go_on().await;
    for number in 0..2 {
        let written = rig.lines(number, line);
        assert!(written < 20_000, "{written} lines");
    }
    rig.is_unharmed().await;
}

async fn id_of_the_false_one(rig: &Rig) -> MemberId {
    let listed = rig.client.member_list().await.unwrap();
    let own = listed.members.iter().find(|it| it.name == "false").unwrap();
    MemberId(own.id)
}

/// Waits until both members have said something of the false one. Members look at one another every half
/// minute; whoever waits for that takes no room.
async fn until_it_is_named(rig: &Rig, message: &str, field: &str) {
    let named = format!("\"remote-peer-id\":\"{}\"", id_of_the_false_one(rig).await);
    for number in 0..2 {
        until(message, || {
            let log = rig.cluster.member(number).log();
            log.iter()
                .any(|line| line.contains(message) && line.contains(&named) && line.contains(field))
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_answer_probes_is_named() {
    let (mut rig, _other) = with_a_false_member().await;
    let status = "got unexpected HTTP status code 404 Not Found";
    until_it_is_named(&rig, "prober detected unhealthy status", status).await;
    rig.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_clock_is_behind_is_named() {
    let (mut rig, other) = with_a_false_member().await;
    *other.shared.clock.lock().unwrap() = Some("2001-02-03T04:05:06.5Z");
    until_it_is_named(&rig, "prober found high clock drift", "\"clock-drift\":").await;
    rig.is_unharmed().await;
}

/// The members in which the false one has a part, by the leader's number first.
async fn leader_of(rig: &Rig) -> usize {
    let member = &rig.cluster.members()[0];
    let status = member.client().await.unwrap().status().await.unwrap();
    let leader = format!("{:x}", status.leader);
    rig.ids.iter().position(|it| *it == leader).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_dials_and_never_reads_costs_the_leader_no_more_than_its_queue() {
    let _room = room().await;
    let (mut rig, other) = with_a_false_member().await;
    let leader = leader_of(&rig).await;
    let own = id_of_the_false_one(&rig).await;
    let client = rig.cluster.member(leader).client().await.unwrap();
    let head = |line: &str| Head {
        from: format!("{own}"),
        to: rig.ids[leader].clone(),
        ..rig.head(line)
    };
    let member = rig.cluster.member(leader);
    let stream = |folder: &str| {
        let mut socket = dial(member);
        let request = head(&format!("GET /raft/stream/{folder}/{own}")).with(b"");
        socket.write_all(&request).unwrap();
        socket
    };
    let held = [stream("msgapp"), stream("message")];
    until("the streams are there", || {
        lines(
            member,
            "established TCP streaming connection with remote peer",
        ) >= 4
    });
    // It says that it has everything, so that it gets what comes.
    let status = client.status().await.unwrap();
    let acknowledged = Message {
        kind: MessageKind::AppResp,
        from: own,
        to: MemberId(u64::from_str_radix(&rig.ids[leader], 16).unwrap()),
        term: Term(status.raft_term),
        index: LogIndex(status.raft_index),
        ..Message::default()
    };
    let post = head("POST /raft").with(&acknowledged.encode());
    let answer = exchange(member, &post);
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    let value = vec![b'v'; 1 << 20];
    for number in 0..300 {
        let put = Put::new(format!("large {}", number % 4), value.clone());
        tokio::time::timeout(PATIENCE, client.put(put))
            .await
            .expect("puts go on")
            .unwrap();
    }
    // Nothing was taken for so long that it is given up.
    until("it is given up", || lines(member, LOST) > 0);
    drop(held);
    drop(other);
    rig.is_unharmed().await;
}
