//! The peer port: what etcd answered, asked of ours. Only what the transport answers by itself; the
//! rest of the recording is about the member behind it.

use std::collections::BTreeMap;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use keelson_proto::ids::{ClusterId, MemberId};
use keelson_proto::message::Message;
use keelson_recorded::data_folder;
use keelson_transport::listener::{ListenOptions, Listener};
use keelson_transport::{
    Config, Inbound, Peers, RouteAnswer, Routes, SILENCE_MAX, SnapshotRefused, StepRefused,
    Version, Versions,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A snapshot that was taken in.
pub(crate) struct Taken {
    pub(crate) message: Message,
    pub(crate) bytes: u64,
    pub(crate) sha256: Vec<u8>,
}

/// A member that takes what is for it.
struct Fake {
    member: MemberId,
    taken: Mutex<Option<Taken>>,
}

impl Inbound for Fake {
    fn step(&self, message: Message) -> Result<(), StepRefused> {
        if message.to == self.member {
            Ok(())
        } else {
            Err(StepRefused::OtherMember)
        }
    }

    fn stepped(&self) {}

    fn receive_snapshot(
        &self,
        message: Message,
        body: &mut dyn Read,
    ) -> Result<(), SnapshotRefused> {
        self.step(message.clone())?;
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        let mut buffer = vec![0; 1 << 16];
        loop {
            match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    hash.update(&buffer[..read]);
                    bytes += read as u64;
                }
                Err(error) => return Err(SnapshotRefused::Save(error.to_string())),
            }
        }
        *self.taken.lock().unwrap() = Some(Taken {
            message,
            bytes,
            sha256: hash.finalize().to_vec(),
        });
        Ok(())
    }

    fn is_removed(&self, _member: MemberId) -> bool {
        false
    }

    fn report_unreachable(&self, _member: MemberId) {}

    fn removed_from_cluster(&self) {}
}

impl Routes for Fake {
    fn route(&self, _request: Request<Bytes>) -> RouteAnswer {
        Box::pin(async { Response::new(Bytes::from_static(b"another's part\n")) })
    }
}

struct Port {
    peers: Peers,
    fake: Arc<Fake>,
    address: String,
}

impl Port {
    fn start(member: MemberId, cluster: ClusterId) -> Port {
        let fake = Arc::new(Fake {
            member,
            taken: Mutex::default(),
        });
        let config = Config {
            member,
            cluster,
            versions: Versions {
                server: Version::new(3, 7, 1),
                min_cluster: Version::new(3, 0, 0),
            },
            advertised_urls: vec!["http://127.0.0.1:1".to_owned()],
            connections_max: keelson_transport::CONNECTIONS_MAX,
            election_timeout: Duration::from_secs(1),
            read_timeout: SILENCE_MAX,
            write_timeout: SILENCE_MAX,
            tls: None,
        };
        let peers = Peers::start(config, Arc::clone(&fake) as _, Arc::clone(&fake) as _).unwrap();
        let listener = Listener::bind_tcp("127.0.0.1:0", ListenOptions::default()).unwrap();
        let address = listener.local_address();
        peers.serve(listener, false).unwrap();
        Port {
            peers,
            fake,
            address,
        }
    }

    /// Sends a request, and gives what comes until the connection ends.
    fn ask(&self, head: &str, body: &[u8]) -> Answer {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let request = format!(
            "{head}Host: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(request.as_bytes()).unwrap();
        socket.write_all(body).unwrap();
        let mut bytes = Vec::new();
        // A cut connection is an answer too.
        let _ = socket.read_to_end(&mut bytes);
        Answer::parse(&String::from_utf8(bytes).unwrap())
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.peers.stop();
    }
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: u64,
    headers: BTreeMap<String, String>,
    body: String,
    cut: bool,
}

impl Answer {
    fn parse(text: &str) -> Answer {
        let (head, rest) = text.split_once("\r\n\r\n").unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let headers: BTreeMap<_, _> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let (mut body, mut cut) = (rest.to_owned(), false);
        if headers.contains_key("transfer-encoding") {
            (body, cut) = unchunk(rest);
        }
        Answer {
            status: status.parse().unwrap(),
            headers,
            body,
            cut,
        }
    }

    /// Without what differs between any two answers.
    fn settle(&mut self) {
        for name in ["date", "connection"] {
            self.headers.remove(name);
        }
        if let Some(at) = self.body.find("\"Now\":\"") {
            self.body.truncate(at);
            self.headers.remove("content-length");
        }
    }
}

fn unchunk(mut text: &str) -> (String, bool) {
    let mut body = String::new();
    loop {
        let Some((size, rest)) = text.split_once("\r\n") else {
            return (body, true);
        };
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, false);
        }
        body.push_str(&rest[..size]);
        text = rest[size..].strip_prefix("\r\n").unwrap();
    }
}

fn recorded() -> Vec<Value> {
    let path = data_folder().unwrap().join("wire/peer-port.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter(|line: &Value| {
            line["path"]
                .as_str()
                .is_some_and(|path| path.starts_with("/raft"))
        })
        .collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

#[test]
fn the_peer_port_answers_as_etcds() {
    let member = MemberId(2_185_233_399_518_806_002);
    let port = Port::start(member, ClusterId(0xec78_35e4_33d9_e2c0));
    let steps = recorded();
    assert!(steps.len() > 20);
    for step in steps {
        let mut head = format!(
            "{} {} HTTP/1.1\r\n",
            step["method"].as_str().unwrap(),
            step["path"].as_str().unwrap()
        );
        for (name, value) in step["request_headers"].as_object().unwrap() {
            head.push_str(&format!("{name}: {}\r\n", value.as_str().unwrap()));
        }
        let body = unhex(step["request_body_hex"].as_str().unwrap());
        let mut answer = port.ask(&head, &body);
        let headers = step["response_headers"].as_object().unwrap().iter();
        let mut expected = Answer {
            status: step["status"].as_u64().unwrap(),
            headers: headers
                .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
                .collect(),
            body: step["response_body"].as_str().unwrap().to_owned(),
            cut: step.get("note").is_some(),
        };
        answer.settle();
        expected.settle();
        assert_eq!(answer, expected, "{step}");
    }
}

/// Posts a recorded snapshot to a member, as etcd posted it.
pub(crate) fn post_snapshot(to: MemberId, bytes: &[u8]) -> Taken {
    let port = Port::start(to, ClusterId(0xa9));
    let head = "POST /raft/snapshot HTTP/1.1\r\nX-Etcd-Cluster-Id: a9\r\n\
                X-Server-Version: 3.7.1\r\nX-Min-Cluster-Version: 3.0.0\r\n";
    let answer = port.ask(head, bytes);
    assert_eq!(answer.status, 204, "{answer:?}");
    port.fake.taken.lock().unwrap().take().unwrap()
}
