//! Members that come to a cluster: how they find themselves in it, whom they can answer before they have
//! its state, and what they say of themselves meanwhile.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use keelson_client::{Client, Get, Put};
use keelson_e2e::{Launch, ProcessCluster, launch, metrics};
use keelson_harness::{DiskState, Part, TestCluster, wait};
use keelson_proto::ids::{MemberId, Term};
use keelson_proto::message::{Message, MessageKind};
use keelson_server::config::{ClusterState, Config};

/// For members of which nobody is to be elected because the machine has other work.
fn unhurried(config: &mut Config) {
    config.heartbeat_ms = 500;
    config.election_ms = 5000;
}

/// Adds a member to a cluster, which is to be started as one of all.
async fn add(cluster: &mut TestCluster, client: &Client) -> (keelson_harness::Room, u64) {
    let room = cluster.make_room().unwrap();
    let added = client.member_add(vec![room.peer_url().to_owned()], true);
    let id = added.await.unwrap().member.unwrap().id;
    (room, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_finds_itself_by_addresses_where_the_list_has_other_names() {
    let mut cluster = TestCluster::start_with(1, |config| {
        unhurried(config);
        // The first member too: what it advertises is the address.
        let listed = config.initial_cluster.take().unwrap();
        config.initial_cluster = Some(listed.replace("127.0.0.1", "localhost"));
    })
    .unwrap();
    let client = cluster.client().await.unwrap();
    client.put(Put::new("before", "it came")).await.unwrap();
    let (room, id) = add(&mut cluster, &client).await;
    let number = room.number();
    // The cluster knows it by the address, and the list names the host.
    assert!(room.peer_url().starts_with("http://127.0.0.1:"));
    cluster.join(room, &[0]).unwrap();
    let node = cluster.member(number).unwrap().node();
    assert_eq!(node.member_id(), MemberId(id));
    wait::until(|| (node.shared().revision() >= 2).then_some(())).unwrap();
    let listed = client.member_list().await.unwrap().members;
    let name = |id: u64| {
        let member = listed.iter().find(|member| member.id == id);
        member.unwrap().name.clone()
    };
    assert_eq!(name(id), "m1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_list_is_not_that_of_the_cluster_does_not_join() {
    let mut cluster = TestCluster::start_with(1, |config| {
        unhurried(config);
        if config.initial_cluster_state == ClusterState::Existing {
            let listed = config.initial_cluster.take().unwrap();
            config.initial_cluster = Some(format!("{listed},more=http://127.0.0.1:1"));
        }
    })
    .unwrap();
    let client = cluster.client().await.unwrap();
    let (room, _) = add(&mut cluster, &client).await;
    let data_dir = cluster.data_dir(room.number()).to_owned();
    let refused = format!("{:#}", cluster.join(room, &[0]).unwrap_err());
    assert!(refused.contains("member count is unequal"), "{refused}");
    assert!(!data_dir.join("member/wal").exists());
    client.put(Put::new("goes", "on")).await.unwrap();
}

/// What is asked of the false member.
struct Asked {
    line: String,
    body: Vec<u8>,
}

/// A member of the test's, which leads a cluster of two, and hears what the other says.
struct False {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    over: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

const CLUSTER: &str = "c1";
const LEADER: MemberId = MemberId(0xf);
const NEW: MemberId = MemberId(0xa);

impl False {
    /// `newcomer` gives the peer URL of the other member, once it is known.
    fn start(newcomer: Arc<Mutex<String>>) -> False {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let over = Arc::new(AtomicBool::new(false));
        let (of, until, own) = (Arc::clone(&asked), Arc::clone(&over), url.clone());
        let accepting = std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                if until.load(Ordering::SeqCst) {
                    return;
                }
                let (of, own) = (Arc::clone(&of), own.clone());
                let newcomer = newcomer.lock().unwrap().clone();
                // It ends with its connection.
                std::thread::spawn(move || serve(socket, &own, &newcomer, &of));
            }
        });
        False {
            url,
            asked,
            over,
            accepting: Some(accepting),
        }
    }

    /// The messages that were sent to it by requests.
    fn heard(&self) -> Vec<Message> {
        let asked = self.asked.lock().unwrap();
        let posts = asked.iter().filter(|it| it.line.starts_with("POST /raft "));
        let decode = |it: &Asked| Message::decode(it.body.clone().into()).ok();
        posts.filter_map(decode).collect()
    }
}

impl Drop for False {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _woken = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let Some(accepting) = self.accepting.take() {
            accepting.join().unwrap();
        }
    }
}

/// Answers requests until the other side has no more.
fn serve(socket: TcpStream, own: &str, newcomer: &str, asked: &Mutex<Vec<Asked>>) -> Option<()> {
    socket.set_read_timeout(Some(wait::PATIENCE)).ok()?;
    let mut answers = socket.try_clone().ok()?;
    let mut reader = BufReader::new(socket);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            let header = header.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let (status, text) = answer(&line, own, newcomer);
        asked.lock().unwrap().push(Asked { line, body });
        let head = format!(
            "HTTP/1.1 {status}\r\nX-Etcd-Cluster-Id: {CLUSTER}\r\nX-Server-Version: 3.7.1\r\n\
             Content-Length: {}\r\n\r\n{text}",
            text.len()
        );
        answers.write_all(head.as_bytes()).ok()?;
    }
}

fn answer(line: &str, own: &str, newcomer: &str) -> (&'static str, String) {
    let path = line.split(' ').nth(1).unwrap_or_default();
    match path {
        "/members" => {
            let member = |id: MemberId, url: &str, name: &str| {
                format!(
                    "{{\"id\":{},\"peerURLs\":[\"{url}\"],\"name\":\"{name}\"}}",
                    id.0
                )
            };
            let (leader, new) = (member(LEADER, own, "false"), member(NEW, newcomer, ""));
            ("200 OK", format!("[{leader},{new}]\n"))
        }
        "/version" => {
            let text = r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
            ("200 OK", text.to_owned())
        }
        "/downgrade/enabled" => ("200 OK", "false".to_owned()),
        "/raft" => ("204 No Content", String::new()),
        _ => ("404 Not Found", String::new()),
    }
}

fn newcomer() -> Launch {
    launch(env!("CARGO_BIN_EXE_keelson-under-test")).argument("--initial-cluster-state=existing")
}

/// Its state is still empty, and nobody has said where the leader is to be found: the list of members that
/// it got before it began says it.
#[test]
fn a_member_that_joins_answers_whoever_it_was_told_of_before_its_first_snapshot() {
    let url = Arc::new(Mutex::new(String::new()));
    let leader = False::start(Arc::clone(&url));
    let others = [("false".to_owned(), leader.url.clone())];
    let mut cluster = ProcessCluster::prepared(vec![newcomer()], &others).unwrap();
    *url.lock().unwrap() = cluster.member(0).peer_url();
    cluster.spawn().unwrap();
    let member = cluster.member(0);
    // A leader's beat, without the header that says where the leader is.
    let beat = Message {
        kind: MessageKind::Heartbeat,
        from: LEADER,
        to: NEW,
        term: Term(3),
        ..Message::default()
    };
    let body = beat.encode();
    let head = format!(
        "POST /raft HTTP/1.1\r\nHost: member\r\nConnection: close\r\nX-Server-From: {LEADER}\r\n\
         X-Server-Version: 3.7.1\r\nX-Min-Cluster-Version: 3.0.0\r\nX-Etcd-Cluster-ID: {CLUSTER}\r\n\
         X-Raft-To: {NEW}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), &body].concat();
    let answered = wait::until(|| {
        let mut socket = TcpStream::connect(("127.0.0.1", member.peer_port())).ok()?;
        socket.set_read_timeout(Some(wait::PATIENCE)).ok()?;
        socket.write_all(&request).ok()?;
        let mut status = String::new();
        socket.read_to_string(&mut status).ok()?;
        assert!(status.starts_with("HTTP/1.1 204 "), "{status}");
        // It may tell its name as well, and that may come first.
        let answers = |it: &Message| (it.from, it.kind) == (NEW, MessageKind::HeartbeatResp);
        leader.heard().into_iter().find(answers)
    });
    let answer = answered.unwrap_or_else(|error| panic!("{error}\n{}", member.log().join("\n")));
    assert_eq!((answer.to, answer.term), (LEADER, Term(3)));
}

/// The lines of a metric of a member, without its name.
fn metric(cluster: &TestCluster, number: usize, name: &str) -> Vec<String> {
    let answer = metrics(&cluster.client_url(number)).unwrap();
    let lines = answer.lines().filter_map(|line| line.strip_prefix(name));
    lines.map(str::to_owned).collect()
}

fn known_peers(cluster: &TestCluster, number: usize) -> Vec<String> {
    let mut lines = metric(cluster, number, "etcd_network_known_peers");
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn each_member_says_whom_it_knows_and_who_is_gone() {
    let mut cluster = TestCluster::start_with(1, unhurried).unwrap();
    let client = cluster.client().await.unwrap();
    let (room, id) = add(&mut cluster, &client).await;
    let number = room.number();
    cluster.join(room, &[0]).unwrap();
    let first = cluster.member(0).unwrap().node().member_id();
    let expected = |local: MemberId, known: u8| {
        let mut lines = vec![
            format!("{{Local=\"{local}\",Remote=\"{first}\"}} 1"),
            format!("{{Local=\"{local}\",Remote=\"{}\"}} {known}", MemberId(id)),
        ];
        lines.sort();
        lines
    };
    for (number, local) in [(0, first), (number, MemberId(id))] {
        wait::until(|| (known_peers(&cluster, number) == expected(local, 1)).then_some(()))
            .unwrap_or_else(|error| panic!("{error}: {:?}", known_peers(&cluster, number)));
    }
    client.member_remove(id).await.unwrap();
    wait::until(|| (known_peers(&cluster, 0) == expected(first, 0)).then_some(()))
        .unwrap_or_else(|error| panic!("{error}: {:?}", known_peers(&cluster, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_says_that_a_snapshot_takes_the_place_of_its_state() {
    let cluster = TestCluster::start_with(3, |config| {
        unhurried(config);
        config.snapshot_count = 50;
        config.snapshot_catchup_entries = 50;
        config.set_flags.push("snapshot-count");
    })
    .unwrap();
    let in_progress = |number| {
        metric(
            &cluster,
            number,
            "etcd_server_snapshot_apply_in_progress_total",
        )
    };
    let leader = cluster.wait_for_leader().unwrap();
    let behind = (leader + 1) % 3;
    assert_eq!(in_progress(behind), [" 0"]);
    let client = cluster.client_of(leader).await.unwrap();
    cluster.isolate(behind);
    for number in 0..400 {
        client
            .put(Put::new(format!("k/{number}"), "v"))
            .await
            .unwrap();
    }
    // The file cannot take the place of the old one as long as its disk does not sync.
    let slow = DiskState {
        sync_takes: std::time::Duration::from_hours(1),
        ..DiskState::default()
    };
    cluster.faults(behind).set_disk(Part::Database, slow);
    cluster.heal();
    wait::until(|| (in_progress(behind) == [" 1"]).then_some(())).unwrap();
    cluster
        .faults(behind)
        .set_disk(Part::Database, DiskState::default());
    wait::until(|| (in_progress(behind) == [" 0"]).then_some(())).unwrap();
    let back = cluster.client_of(behind).await.unwrap();
    assert_eq!(back.get(Get::prefix("k/")).await.unwrap().count, 400);
}
