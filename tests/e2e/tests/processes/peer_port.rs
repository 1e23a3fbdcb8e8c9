//! Whoever speaks to a peer port and is no member, or does not speak as one: refused in etcd's words,
//! with a line in the log, and the cluster never notices.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use keelson_e2e::{Launch, ProcessCluster};
use keelson_proto::entry::{ConfState, Snapshot};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};

use crate::port::{Head, PATIENCE, Rig, break_off, dial, exchange, lines, room, until};

fn id(hex: &str) -> MemberId {
    MemberId(u64::from_str_radix(hex, 16).unwrap())
}

/// A message from member 1 to member 0.
fn message(rig: &Rig, kind: MessageKind) -> Message {
    Message {
        kind,
        from: id(&rig.ids[1]),
        to: id(&rig.ids[0]),
        ..Message::default()
    }
}

/// A length and a message, and then a file.
fn with_file(message: &Message, file: &[u8]) -> Vec<u8> {
    let message = message.encode();
    let length = (message.len() as u64).to_be_bytes();
    [&length[..], &message[..], file].concat()
}

/// A snapshot far ahead of the cluster.
fn snapshot(rig: &Rig) -> Message {
    let ids = rig.ids.iter().map(|it| id(it)).collect();
    Message {
        term: Term(2),
        snapshot: Some(Box::new(Snapshot {
            index: LogIndex(1 << 40),
            term: Term(2),
            conf_state: ConfState {
                voters: ids,
                ..ConfState::default()
            },
            ..Snapshot::default()
        })),
        ..message(rig, MessageKind::Snap)
    }
}

/// In place of a status: the sender breaks off, and hears nothing.
const BROKEN_OFF: u16 = 0;

/// What is sent, and what is to come of it.
struct Case {
    what: &'static str,
    request: Vec<u8>,
    status: u16,
    text: &'static str,
    /// The message of the line in the log.
    line: &'static str,
}

fn check(rig: &Rig, cases: Vec<Case>) {
    for case in cases {
        let Case { what, line, .. } = case;
        let before = rig.lines(0, line);
        if case.status == BROKEN_OFF {
            // Whoever sent it is gone.
            break_off(rig.cluster.member(0), &case.request);
        } else {
            let answer = rig.ask(0, &case.request);
            let status = format!("HTTP/1.1 {} ", case.status);
            assert!(answer.starts_with(&status), "{what}: {answer:?}");
            assert!(answer.contains(case.text), "{what}: {answer:?}");
        }
        until(what, || rig.lines(0, line) > before);
        assert_eq!(rig.lines(0, line), before + 1, "{what}: one line");
    }
}

fn wrong_heads(rig: &Rig) -> Vec<Case> {
    let mut cases = Vec::new();
    let stream = format!("GET /raft/stream/message/{}", rig.ids[1]);
    let append = format!("GET /raft/stream/msgapp/{}", rig.ids[1]);
    for line in ["POST /raft", "POST /raft/snapshot", &stream, &append] {
        let head = rig.head(line);
        let other_cluster = Head {
            cluster: "1".to_owned(),
            ..head.clone()
        };
        cases.push(Case {
            what: "another cluster",
            request: other_cluster.with(b""),
            status: 412,
            text: "\r\n\r\ncluster ID mismatch\n",
            line: "request cluster ID mismatch",
        });
        let versions = [
            ("2.3.0", "3.0.0"),
            ("3.7.1", "3.9.0"),
            ("", "3.0.0"),
            ("x", "y"),
        ];
        for (server, min_cluster) in versions {
            let other_release = Head {
                server: server.to_owned(),
                min_cluster: min_cluster.to_owned(),
                ..head.clone()
            };
            cases.push(Case {
                what: "a release that is too old, or wants a newer one",
                request: other_release.with(b""),
                status: 412,
                text: "\r\n\r\nincompatible version\n",
                line: "failed version compatibility check",
            });
        }
    }
    let to_other = Head {
        to: rig.ids[2].clone(),
        ..rig.head(&stream)
    };
    for (what, request, status, text, line) in [
        (
            "a stream of a stranger",
            rig.head("GET /raft/stream/message/abc").with(b""),
            404,
            "\r\n\r\nerror sender not found\n",
            "failed to find remote peer in cluster",
        ),
        (
            "a stream of no id",
            rig.head("GET /raft/stream/msgapp/+1").with(b""),
            404,
            "\r\n\r\ninvalid from\n",
            "failed to parse path into ID",
        ),
        (
            "a stream to another member",
            to_other.with(b""),
            412,
            "\r\n\r\nto field mismatch\n",
            "ignored streaming request; ID mismatch",
        ),
    ] {
        cases.push(Case {
            what,
            request,
            status,
            text,
            line,
        });
    }
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_of_another_cluster_release_or_name_is_refused() {
    let _room = room().await;
    let mut rig = Rig::start().await;
    check(&rig, wrong_heads(&rig));
    rig.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_removed_and_goes_on_talking_is_told_and_not_heard() {
    let _room = room().await;
    let mut rig = Rig::start().await;
    let client = rig.cluster.member(0).client().await.unwrap();
    let leader = client.status().await.unwrap().leader;
    let gone = [1, 2]
        .into_iter()
        .find(|number| id(&rig.ids[*number]).0 != leader)
        .unwrap();
    // Until all have known one another for long enough. Not by the one that goes: it may be gone before it has
    // answered.
    let begun = Instant::now();
    while let Err(error) = client.member_remove(id(&rig.ids[gone]).0).await {
        assert_eq!(error.to_string(), "etcdserver: unhealthy cluster");
        assert!(begun.elapsed() < PATIENCE);
    }
    rig.gone = Some(gone);
    let exit = rig.cluster.member_mut(gone).wait_for_end().unwrap();
    let text = exit.text();
    assert!(
        text.contains("the member has been permanently removed from the cluster"),
        "{text}"
    );
    let as_removed = |line: String| Head {
        from: rig.ids[gone].clone(),
        ..rig.head(&line)
    };
    let heartbeat = Message {
        from: id(&rig.ids[gone]),
        term: Term(1 << 40),
        ..message(&rig, MessageKind::Vote)
    };
    let mut cases = vec![Case {
        what: "a message",
        request: as_removed("POST /raft".to_owned()).with(&heartbeat.encode()),
        status: 500,
        text: "\r\nerror processing raft message\n",
        line: "rejected Raft message from removed member",
    }];
    for folder in ["message", "msgapp"] {
        let line = format!("GET /raft/stream/{folder}/{}", rig.ids[gone]);
        cases.push(Case {
            what: "a stream",
            request: as_removed(line).with(b""),
            status: 410,
            text: "\r\n\r\nremoved member\n",
            line: "rejected stream from remote peer because it was removed",
        });
    }
    let file = Message {
        from: id(&rig.ids[gone]),
        ..snapshot(&rig)
    };
    cases.push(Case {
        what: "a snapshot",
        request: as_removed("POST /raft/snapshot".to_owned()).with(&with_file(&file, b"file")),
        status: 500,
        text: "(cannot process message from removed member)\n",
        line: "failed to process Raft message",
    });
    check(&rig, cases);
    rig.is_unharmed().await;
}

fn broken_messages(rig: &Rig) -> Vec<Case> {
    let post = rig.head("POST /raft");
    let unreadable = |what, body: &[u8]| Case {
        what,
        request: post.with(body),
        status: 400,
        text: "\r\n\r\nerror unmarshalling raft message\n",
        line: "failed to unmarshal Raft message",
    };
    // Groups in groups, and a length past the end.
    let deep = vec![0x73; 1 << 20];
    let long = [&[0x3a][..], &[0xff; 9], &[1]].concat();
    let not_taken = |what, message: &Message| Case {
        what,
        request: post.with(&message.encode()),
        status: 500,
        text: "\r\nerror processing raft message\n",
        line: "failed to process Raft message",
    };
    let to_other = Message {
        to: id(&rig.ids[2]),
        ..message(rig, MessageKind::Heartbeat)
    };
    let from_storage = Message {
        from: MemberId(u64::MAX),
        ..message(rig, MessageKind::StorageAppendResp)
    };
    let cut = |what, claimed| Case {
        what,
        request: post.claiming(claimed, b"abc"),
        status: BROKEN_OFF,
        text: "",
        line: "failed to read Raft message",
    };
    vec![
        unreadable("no protobuf", b"\xff\xff\xff"),
        unreadable("deep nesting", &deep),
        unreadable("a length past the end", &long),
        not_taken("for another member", &to_other),
        not_taken("from a member's own storage", &from_storage),
        not_taken("a snapshot without its file", &snapshot(rig)),
        cut("it ends early", 4),
        cut("it ends very early", 1 << 40),
        Case {
            what: "it is too long",
            request: post.with(&vec![0; (64 << 20) + 1]),
            status: 400,
            text: "",
            line: "failed to read Raft message",
        },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_cannot_be_taken_change_nothing() {
    let _room = room().await;
    let mut rig = Rig::start().await;
    check(&rig, broken_messages(&rig));
    // What only a member itself may say is let pass, and not heard: etcd does so.
    for kind in [
        MessageKind::Hup,
        MessageKind::Beat,
        MessageKind::Unreachable,
        MessageKind::SnapStatus,
        MessageKind::CheckQuorum,
        MessageKind::StorageAppend,
        MessageKind::StorageApply,
    ] {
        let body = message(&rig, kind).encode();
        let answer = rig.ask(0, &rig.head("POST /raft").with(&body));
        assert!(answer.starts_with("HTTP/1.1 204 "), "{kind:?}: {answer}");
    }
    // Answers of somebody who is no member.
    let stranger = Message {
        from: MemberId(0xabc),
        index: LogIndex(1 << 40),
        ..message(&rig, MessageKind::AppResp)
    };
    for number in 0..3 {
        let to = id(&rig.ids[number]);
        let body = Message {
            to,
            ..stranger.clone()
        }
        .encode();
        let answer = rig.ask(number, &rig.head("POST /raft").with(&body));
        assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    }
    rig.is_unharmed().await;
}

fn broken_snapshots(rig: &Rig) -> Vec<Case> {
    let post = rig.head("POST /raft/snapshot");
    let undecoded = |what, body: &[u8], text| Case {
        what,
        request: post.with(body),
        status: 400,
        text,
        line: "failed to decode Raft message",
    };
    let unsaved = |what, request| Case {
        what,
        request,
        status: 500,
        text: "\r\n\r\nfailed to save KV snapshot (",
        line: "failed to save incoming database snapshot",
    };
    let limit = "failed to decode raft message (rafthttp: error limit exceeded)\n";
    let whole = with_file(&snapshot(rig), &[7; 100_000]);
    let hollow = Message {
        snapshot: None,
        ..snapshot(rig)
    };
    let to_other = Message {
        to: id(&rig.ids[2]),
        ..snapshot(rig)
    };
    let heartbeat = message(rig, MessageKind::Heartbeat);
    let promised = format!(
        "{}X-Keelson-Snapshot-Bytes: 100001\r\nContent-Length: {}\r\n\r\n",
        post.text(),
        whole.len()
    );
    vec![
        undecoded("nothing", b"", "(EOF)\n"),
        undecoded("half a length", &[0; 3], "(unexpected EOF)\n"),
        undecoded(
            "half a message",
            &[0, 0, 0, 0, 0, 0, 0, 9, 8],
            "(unexpected EOF)\n",
        ),
        undecoded("a length of 2^63", &[0x80, 0, 0, 0, 0, 0, 0, 0, 1], limit),
        undecoded(
            "a length just too large",
            &[0, 0, 0, 0, 4, 0, 0, 1, 1],
            limit,
        ),
        undecoded(
            "no protobuf",
            &[0, 0, 0, 0, 0, 0, 0, 1, 0xff],
            "failed to decode raft message (",
        ),
        Case {
            what: "no snapshot",
            request: post.with(&with_file(&heartbeat, b"")),
            status: 400,
            text: "\r\n\r\nwrong raft message type\n",
            line: "unexpected Raft message type",
        },
        Case {
            what: "for another member",
            request: post.with(&with_file(&to_other, b"file")),
            status: 500,
            text: "\r\n\r\nfailed to process raft message (",
            line: "failed to process Raft message",
        },
        unsaved(
            "without a snapshot",
            post.with(&with_file(&hollow, b"file")),
        ),
        unsaved("no database", post.with(&whole)),
        Case {
            status: BROKEN_OFF,
            ..unsaved("a file that ends early", post.claiming(1 << 30, &whole))
        },
        unsaved("an empty file", post.with(&with_file(&snapshot(rig), b""))),
        unsaved(
            "another length than promised",
            [promised.as_bytes(), &whole].concat(),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_that_are_none_are_not_installed_and_leave_no_file() {
    let _room = room().await;
    let mut rig = Rig::start().await;
    check(&rig, broken_snapshots(&rig));
    let snap = rig.cluster.member(0).data_dir().join("member/snap");
    let names: Vec<String> = std::fs::read_dir(snap)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["db"], "nothing of what came is left");
    rig.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_ends_its_own_connection_with_a_line() {
    let _room = room().await;
    let mut rig = Rig::start().await;
    let line = "rejected connection on peer endpoint";
    let mut before = rig.lines(0, line);
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200_000));
    let long = format!("GET / HTTP/1.1\r\nlong: {}\r\n\r\n", "x".repeat(8 << 20));
    let path = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    let cases: [(&[u8], &str); 8] = [
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            "HTTP/1.1 400 ",
        ),
        (b"\0\0\0\0\r\n\r\n", "HTTP/1.1 400 "),
        (b"GET / HTTP/9.9\r\n\r\n", "HTTP/1.1 400 "),
        (
            b"POST /raft HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 400 ",
        ),
        (
            b"POST /raft HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n",
            "HTTP/1.1 400 ",
        ),
        (many.as_bytes(), "HTTP/1.1 431 "),
        (long.as_bytes(), "HTTP/1.1 431 "),
        (path.as_bytes(), "HTTP/1.1 4"),
    ];
    for (bytes, status) in cases {
        let answer = rig.ask(0, bytes);
        // What was sent and not read may take the answer with it.
        assert!(
            answer.is_empty() || answer.starts_with(status),
            "{answer:?}"
        );
        until("a line", || rig.lines(0, line) > before);
        before = rig.lines(0, line);
    }
    // Within a body.
    let head = rig.head("POST /raft").text();
    let broken = format!("{head}Transfer-Encoding: chunked\r\n\r\nnot a length\r\n");
    let unread = "failed to read Raft message";
    let answer = rig.ask(0, broken.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
    until("a line", || rig.lines(0, unread) == 1);
    rig.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_are_closed_and_harm_nobody() {
    let _room = room().await;
    let mut rig = Rig::start().await;
    let begun = Instant::now();
    let mut silent: Vec<TcpStream> = Vec::new();
    for member in rig.cluster.members() {
        silent.extend((0..300).map(|_| dial(member)));
        // Some begin, and do not go on.
        for begin in ["GET /raft/pro", "POST /raft HTTP/1.1\r\nHost: m"] {
            silent.extend((0..50).map(|_| {
                let mut socket = dial(member);
                socket.write_all(begin.as_bytes()).unwrap();
                socket
            }));
        }
    }
    rig.puts_go_on().await;
    for socket in &mut silent {
        let mut answer = Vec::new();
        // It may be reset.
        let _read = socket.read_to_end(&mut answer);
    }
    assert!(begun.elapsed() < PATIENCE, "all were closed");
    for member in rig.cluster.members() {
        let line = "rejected connection on peer endpoint";
        until("it is said", || lines(member, line) > 0);
    }
    rig.is_unharmed().await;
}

/// Members that may open few files.
fn with_few_files() -> Launch {
    let script = "ulimit -n 400 && exec -a etcd \"$0\" \"$@\"";
    Launch::new("/bin/bash")
        .argument("-c")
        .argument(script)
        .argument(env!("CARGO_BIN_EXE_keelson-under-test"))
        .argument("--heartbeat-interval=500")
        .argument("--election-timeout=5000")
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_a_member_takes_wait_and_the_rest_of_it_goes_on() {
    let _room = room().await;
    let cluster = ProcessCluster::start(vec![with_few_files(); 3]).unwrap();
    let mut rig = Rig::of(cluster).await;
    let mut flood = Vec::new();
    for member in rig.cluster.members() {
        flood.extend((0..1000).map(|_| dial(member)));
    }
    for member in rig.cluster.members() {
        member
            .wait_for_log("too many connections on the peer endpoint")
            .unwrap();
    }
    // It has files for the log, for clients and for the other members.
    rig.is_unharmed().await;
    drop(flood);
    let probe = b"GET /raft/probing HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n";
    for member in rig.cluster.members() {
        let answer = exchange(member, probe);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    }
    rig.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_connections_are_borne() {
    let _room = room().await;
    let mut rig = Rig::start().await;
    for _ in 0..2 {
        let member = rig.cluster.member(0);
        let open: Vec<TcpStream> = (0..4000).map(|_| dial(member)).collect();
        rig.puts_go_on().await;
        drop(open);
    }
    let member = rig.cluster.member(0);
    for _ in 0..4000 {
        drop(dial(member));
    }
    rig.is_unharmed().await;
}
