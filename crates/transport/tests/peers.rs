//! Two members and what goes between them.

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Member, Setup, append, pair, wait_for};
use keelson_proto::ids::{ClusterId, MemberId};
use keelson_proto::message::MessageKind;
use keelson_transport::listener::{ListenOptions, Listener};

#[test]
fn messages_of_every_kind_arrive_in_order_both_ways() {
    let (a, b) = pair();
    a.reaches(&b);
    b.reaches(&a);
    wait_for("both are in reach", || {
        a.peers.active_count() == 1 && b.peers.active_since(a.id).is_some()
    });
    b.heard.messages.lock().unwrap().clear();
    let votes: Vec<_> = (1..=100)
        .map(|index| a.message(b.id, MessageKind::Vote, index))
        .collect();
    a.peers.send(votes);
    wait_for("all have arrived", || b.heard.count() == 100);
    assert_eq!(b.heard.indexes(), (1..=100).collect::<Vec<_>>());
    b.heard.messages.lock().unwrap().clear();
    let appends: Vec<_> = (1..=100)
        .map(|index| append(a.id, b.id, index, b"entry"))
        .collect();
    a.peers.send(appends.clone());
    wait_for("all have arrived", || b.heard.count() == 100);
    assert_eq!(*b.heard.messages.lock().unwrap(), appends);
}

#[test]
fn a_large_append_arrives_whole() {
    let (a, b) = pair();
    a.reaches(&b);
    b.heard.messages.lock().unwrap().clear();
    let message = append(a.id, b.id, 1, &vec![9; 8 << 20]);
    a.peers.send(vec![message.clone()]);
    wait_for("it has arrived", || b.heard.count() == 1);
    assert_eq!(b.heard.messages.lock().unwrap()[0], message);
}

#[test]
fn whoever_is_not_known_yet_is_answered_by_requests() {
    let (a, b) = (Member::start(0xa), Member::start(0xb));
    a.knows(&b);
    // There is no stream: b does not dial somebody unknown.
    a.reaches(&b);
    // By what a said of itself, b can answer.
    b.reaches(&a);
    assert_eq!(b.peers.active_count(), 0, "a is no peer of b");
}

#[test]
fn a_remote_is_sent_to_before_it_has_said_anything() {
    let (a, b) = (Member::start(0xa), Member::start(0xb));
    a.peers
        .add_remote(b.id, std::slice::from_ref(&b.url))
        .unwrap();
    a.reaches(&b);
    assert_eq!(a.peers.active_count(), 0, "b is no peer of a");
}

#[test]
fn a_member_that_comes_back_is_dialled_again() {
    let a = Member::start(0xa);
    let listener = Listener::bind_tcp("127.0.0.1:0", ListenOptions::default()).unwrap();
    let setup = Setup {
        listener: Some(Arc::new(listener)),
        ..Setup::default()
    };
    let b = Member::with(0xb, setup.clone());
    a.knows(&b);
    b.knows(&a);
    a.reaches(&b);
    drop(b);
    wait_for("its loss is reported", || {
        a.heard.unreachable.lock().unwrap().contains(&MemberId(0xb))
    });
    wait_for("it is out of reach", || a.peers.active_count() == 0);
    let b = Member::with(0xb, setup);
    b.knows(&a);
    a.reaches(&b);
    b.reaches(&a);
}

#[test]
fn a_removed_peer_is_sent_nothing_more() {
    let (a, b) = pair();
    a.reaches(&b);
    a.peers.remove_peer(b.id);
    assert!(a.peers.active_since(b.id).is_none());
    b.heard.messages.lock().unwrap().clear();
    a.send(&b, MessageKind::Vote, 1);
    a.knows(&b);
    a.reaches(&b);
    assert!(!b.heard.kinds().contains(&MessageKind::Vote));
}

#[test]
fn other_urls_of_a_peer_are_used_from_then_on() {
    let (a, b) = (Member::start(0xa), Member::start(0xb));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let wrong = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    a.peers.add_peer(b.id, &[wrong]).unwrap();
    b.knows(&a);
    a.peers
        .update_peer(b.id, std::slice::from_ref(&b.url))
        .unwrap();
    a.reaches(&b);
    b.reaches(&a);
}

#[test]
fn members_of_another_cluster_are_not_heard() {
    let a = Member::start(0xa);
    let b = Member::with(
        0xb,
        Setup {
            cluster: ClusterId(0xdead),
            ..Setup::default()
        },
    );
    a.knows(&b);
    b.knows(&a);
    wait_for("a message was refused", || {
        a.send(&b, MessageKind::Vote, 1);
        !a.heard.unreachable.lock().unwrap().is_empty()
    });
    assert_eq!((a.heard.count(), b.heard.count()), (0, 0));
    assert_eq!((a.peers.active_count(), b.peers.active_count()), (0, 0));
}

#[test]
fn a_member_that_was_removed_is_told_when_it_dials() {
    let (a, b) = (Member::start(0xa), Member::start(0xb));
    b.heard.removed.lock().unwrap().insert(a.id);
    a.knows(&b);
    wait_for("it was told", || {
        a.heard.removed_self.load(Ordering::SeqCst)
    });
    a.send(&b, MessageKind::Vote, 1);
    wait_for("its message was refused", || {
        !a.heard.unreachable.lock().unwrap().is_empty()
    });
    assert_eq!(b.heard.count(), 0);
}

#[test]
fn messages_to_a_peer_that_is_not_there_are_dropped_and_reported() {
    let a = Member::start(0xa);
    // Connections are taken by the kernel and never answered.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    a.peers.add_peer(MemberId(0xb), &[url]).unwrap();
    let messages = (0..10_000)
        .map(|index| a.message(MemberId(0xb), MessageKind::Heartbeat, index))
        .collect();
    a.peers.send(messages);
    assert!(a.heard.unreachable.lock().unwrap().len() > 9_000);
    let stats = a.peers.stats().peers();
    let (_, stats) = stats.iter().find(|(id, _)| *id == MemberId(0xb)).unwrap();
    assert!(stats.send_failures.load(Ordering::Relaxed) > 9_000);
}

#[test]
fn a_stream_that_goes_silent_is_dialled_again() {
    let timeout = Duration::from_millis(300);
    let a = Member::with(
        0xa,
        Setup {
            timeout,
            ..Setup::default()
        },
    );
    let half_open = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", half_open.local_addr().unwrap());
    a.peers.add_peer(MemberId(0xb), &[url]).unwrap();
    // Streams are begun, and then nothing comes over them, not even a sign of life.
    let (mut dials, mut sockets) = (0, Vec::new());
    while dials < 4 {
        let (mut socket, _) = half_open.accept().unwrap();
        let mut head = [0; 1024];
        let read = socket.read(&mut head).unwrap();
        if head[..read].starts_with(b"GET /raft/stream/") {
            dials += 1;
            let answer = "HTTP/1.1 200 OK\r\nX-Server-Version: 3.7.1\r\n\
                          X-Etcd-Cluster-ID: c1\r\nTransfer-Encoding: chunked\r\n\r\n";
            socket.write_all(answer.as_bytes()).unwrap();
        }
        sockets.push(socket);
    }
    let stats = a.peers.stats().peers();
    let (_, stats) = stats.iter().find(|(id, _)| *id == MemberId(0xb)).unwrap();
    assert!(stats.disconnects.load(Ordering::Relaxed) > 0);
}

#[test]
fn streams_live_by_their_signs_of_life() {
    let setup = Setup {
        timeout: Duration::from_secs(2),
        ..Setup::default()
    };
    let (a, b) = (Member::with(0xa, setup.clone()), Member::with(0xb, setup));
    a.knows(&b);
    b.knows(&a);
    // Where other work holds a thread for as long as a stream may be silent, it is lost for good reason, and
    // the next one tells.
    for _ in 0..10 {
        wait_for("both are in reach", || {
            a.peers.active_count() + b.peers.active_count() == 2
        });
        a.reaches(&b);
        let Some(since) = a.peers.active_since(b.id) else {
            continue;
        };
        // Longer than anything may be silent.
        wait_for("time goes by, or the stream is lost", || {
            a.peers.active_since(b.id) != Some(since) || since.elapsed() > Duration::from_secs(5)
        });
        if a.peers.active_since(b.id) == Some(since) {
            return;
        }
    }
    panic!("no stream lives for longer than it may be silent");
}

#[test]
fn after_the_stop_nothing_is_served_or_sent() {
    let (a, b) = pair();
    a.reaches(&b);
    b.peers.stop();
    b.peers.stop();
    let refused = std::net::TcpStream::connect(&b.address);
    assert!(refused.is_err(), "the port is free again");
    b.heard.messages.lock().unwrap().clear();
    b.send(&a, MessageKind::Vote, 1);
    a.send(&b, MessageKind::Vote, 1);
    assert_eq!(b.heard.count(), 0);
}
