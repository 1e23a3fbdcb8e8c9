//! Streams, requests and snapshots, from the bytes that went over the wire.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use flate2::read::GzDecoder;
use keelson_proto::ids::MemberId;
use keelson_proto::message::Message;
use keelson_recorded::data_folder;
use keelson_transport::codec::{Decoder, Encoder, StreamKind, is_link_heartbeat};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

const RELEASES: [&str; 3] = ["3.5", "3.6", "3.7"];

fn folder(release: &str) -> PathBuf {
    data_folder().unwrap().join("peer").join(release)
}

/// A file, which may lie there packed.
fn bytes_of(path: &Path) -> Vec<u8> {
    if path.exists() {
        return fs::read(path).unwrap();
    }
    let packed = fs::File::open(format!("{}.gz", path.display())).unwrap();
    let mut bytes = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    bytes
}

/// The recorded messages, without signs of life.
fn messages(release: &str) -> Vec<Value> {
    let text = bytes_of(&folder(release).join("messages.jsonl"));
    let text = String::from_utf8(text).unwrap();
    let parsed = text.lines().map(|line| serde_json::from_str(line).unwrap());
    parsed
        .filter(|line: &Value| line.get("message").is_some())
        .collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

fn member(text: &str) -> MemberId {
    MemberId(u64::from_str_radix(text, 16).unwrap())
}

fn assert_is(message: &Message, recorded: &Value, place: &str) {
    let number = |name: &str| recorded[name].as_u64().unwrap_or_default();
    let id = |name: &str| recorded[name].as_str().map_or(MemberId(0), member);
    let kind = format!("Msg{:?}", message.kind);
    assert_eq!(kind, recorded["type"].as_str().unwrap(), "{place}");
    assert_eq!(message.from, id("from"), "{place}");
    assert_eq!(message.to, id("to"), "{place}");
    assert_eq!(message.term.0, number("term"), "{place}");
    assert_eq!(message.log_term.0, number("log_term"), "{place}");
    assert_eq!(message.index.0, number("index"), "{place}");
    assert_eq!(message.commit.0, number("commit"), "{place}");
    assert_eq!(message.reject_hint.0, number("reject_hint"), "{place}");
    let reject = recorded["reject"].as_bool().unwrap_or_default();
    assert_eq!(message.reject, reject, "{place}");
    let context = unhex(recorded["context_hex"].as_str().unwrap_or_default());
    assert_eq!(message.context, context, "{place}");
    let none = Vec::new();
    let entries = recorded["entries"].as_array().unwrap_or(&none);
    assert_eq!(message.entries.len(), entries.len(), "{place}");
    for (entry, recorded) in message.entries.iter().zip(entries) {
        let number = |name: &str| recorded[name].as_u64().unwrap_or_default();
        assert_eq!(entry.index.0, number("index"), "{place}");
        assert_eq!(entry.term.0, number("term"), "{place}");
        assert_eq!(entry.data.len() as u64, number("data_len"), "{place}");
        if let Some(hash) = recorded["data_sha256"].as_str() {
            assert_eq!(Sha256::digest(&entry.data)[..], unhex(hash), "{place}");
        }
    }
}

/// `NNN-<type>-<sender>-to-<receiver id>.bin`
struct Name {
    kind: StreamKind,
    from: MemberId,
    to: MemberId,
}

impl Name {
    fn parse(file: &str, ids: &Value) -> Name {
        let parts: Vec<&str> = file.trim_end_matches(".bin").split('-').collect();
        let [_, kind, sender, _, receiver] = parts[..] else {
            unreachable!("{file}");
        };
        Name {
            kind: match kind {
                "message" => StreamKind::Message,
                _ => StreamKind::Append,
            },
            from: member(ids[sender].as_str().unwrap()),
            to: member(receiver),
        }
    }
}

/// Whole messages of a stream, signs of life among them; the last frame may be torn.
fn read_stream(name: &Name, bytes: &[u8], step: usize) -> Vec<Message> {
    let mut decoder = Decoder::new(name.kind, name.to, name.from);
    let mut messages = Vec::new();
    for piece in bytes.chunks(step) {
        decoder.push(piece);
        while let Some(message) = decoder.next_message().unwrap() {
            messages.push(message);
        }
    }
    messages
}

#[test]
fn streams_of_every_release_are_read_as_they_were_meant() {
    for release in RELEASES {
        let folder = folder(release);
        let scenario: Value =
            serde_json::from_slice(&bytes_of(&folder.join("scenario.json"))).unwrap();
        let mut streams: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for message in messages(release) {
            if let Some(file) = message["stream_file"].as_str() {
                streams.entry(file.to_owned()).or_default().push(message);
            }
        }
        assert!(
            streams.len() > 20,
            "{release} has {} streams",
            streams.len()
        );
        for (file, recorded) in streams {
            let bytes = bytes_of(&folder.join(&file));
            let name = Name::parse(
                file.rsplit('/').next().unwrap(),
                &scenario["member_ids_hex"],
            );
            let all = read_stream(&name, &bytes, 4096);
            assert_eq!(all, read_stream(&name, &bytes, 101), "{release}/{file}");
            let real: Vec<&Message> = all.iter().filter(|m| !is_link_heartbeat(m)).collect();
            assert_eq!(real.len(), recorded.len(), "{release}/{file}");
            for (at, (message, recorded)) in real.iter().zip(&recorded).enumerate() {
                let place = format!("{release}/{file}, message {at}");
                assert_is(message, &recorded["message"], &place);
            }
            written_again(release, &name, &all, &recorded, &file);
        }
    }
}

/// Writes a stream as ours would be: in the same forms, read the same again, and where the form has
/// no choice in the same bytes as 3.7.
fn written_again(release: &str, name: &Name, all: &[Message], recorded: &[Value], file: &str) {
    let mut encoder = Encoder::new(name.kind);
    let (mut whole, mut recorded) = (BytesMut::new(), recorded.iter());
    for (at, message) in all.iter().enumerate() {
        let start = whole.len();
        if is_link_heartbeat(message) {
            encoder.heartbeat(&mut whole);
            continue;
        }
        encoder.encode(message, &mut whole);
        let recorded = recorded.next().unwrap();
        let place = format!("{release}/{file}, message {at}");
        if let Some(codec) = recorded["codec"].as_u64() {
            assert_eq!(u64::from(whole[start]), codec, "{place}");
            if codec == 1 && release == "3.7" {
                // Of long ones the recording has the beginning.
                let hex = recorded["bytes_hex"].as_str().unwrap();
                let end = hex.find(|digit: char| !digit.is_ascii_hexdigit());
                let bytes = unhex(&hex[..end.unwrap_or(hex.len())]);
                let written = &whole[start..];
                match end {
                    None => assert_eq!(written, bytes, "{place}"),
                    Some(_) => assert!(written.starts_with(&bytes), "{place}"),
                }
            }
        }
    }
    assert_eq!(read_stream(name, &whole, 4096), all, "{release}/{file}");
}

#[test]
fn messages_in_requests_are_read_as_they_were_meant() {
    for release in RELEASES {
        let mut count = 0;
        for line in messages(release) {
            if line["channel"] != "pipeline" {
                continue;
            }
            let bytes = Bytes::from(unhex(line["bytes_hex"].as_str().unwrap()));
            let message = Message::decode(bytes).unwrap();
            let place = format!("{release}, message {}", line["n"]);
            assert_is(&message, &line["message"], &place);
            let again = Message::decode(message.encode()).unwrap();
            assert_eq!(again, message, "{place}");
            count += 1;
        }
        assert!(count > 5, "{release} has {count}");
    }
}

#[test]
fn snapshots_of_every_release_are_taken_whole() {
    for release in RELEASES {
        let mut count = 0;
        for line in messages(release) {
            if line["channel"] != "snapshot" {
                continue;
            }
            let bytes = bytes_of(&folder(release).join(line["file"].as_str().unwrap()));
            let recorded = &line["message"];
            let to = member(recorded["to"].as_str().unwrap());
            let taken = super::port::post_snapshot(to, &bytes);
            assert_is(&taken.message, recorded, release);
            let snapshot = taken.message.snapshot.unwrap();
            let meant = &recorded["snapshot"];
            assert_eq!(snapshot.data, meant["data"].as_str().unwrap().as_bytes());
            assert_eq!(taken.bytes, line["db_len"].as_u64().unwrap(), "{release}");
            let hash = unhex(line["db_sha256"].as_str().unwrap());
            assert_eq!(taken.sha256, hash, "{release}");
            count += 1;
        }
        assert!(count > 0, "{release} has none");
    }
}
