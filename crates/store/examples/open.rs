//! How long a store takes to open: `cargo run --release -p keelson-store --example open -- 1000000`.
#![expect(clippy::print_stdout, reason = "a measurement is told on stdout")]

use std::path::Path;
use std::time::Instant;

use keelson_proto::entry::{Entry, EntryKind};
use keelson_proto::ids::Term;
use keelson_proto::request;
use keelson_proto::rpc::etcdserverpb::{InternalRaftRequest, PutRequest};
use keelson_store::{Answer, Error, OpenOptions, Quota, SEGMENT_BYTES_MAX, hash, open};

const VALUE_BYTES: usize = 100;

fn options() -> OpenOptions {
    OpenOptions {
        bolt: OpenOptions::bolt(),
        quota: Quota::new(-1),
        lease_ttl_min: 2,
        lease_checkpoints: false,
    }
}

/// Puts as many keys, each once, in an order that jumps about.
fn fill(path: &Path, keys: u64) -> Result<(), Error> {
    let mut opened = open(path, &options())?;
    for nth in 0..keys {
        let key = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let put = PutRequest {
            key: format!("/registry/pods/{key:016x}").into(),
            value: vec![b'v'; VALUE_BYTES].into(),
            ..PutRequest::default()
        };
        let (index, term) = opened.store.applied();
        let entry = Entry {
            kind: EntryKind::Normal,
            term: term.max(Term(1)),
            index: index.next(),
            data: request::encode(&InternalRaftRequest {
                put: Some(put),
                ..InternalRaftRequest::default()
            }),
        };
        opened.store.apply(&entry, Answer::Unwanted)?;
        drop(opened.store.take_events());
        if opened.store.open_bytes() > SEGMENT_BYTES_MAX || nth + 1 == keys {
            let sealed = opened.store.seal();
            opened.committer.commit(&sealed)?;
        }
    }
    Ok(())
}

fn resident_kib() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.map_or_else(String::new, |line| {
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    })
}

fn main() -> Result<(), Error> {
    let keys = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let keys = keys.unwrap_or(1_000_000);
    let dir = std::env::temp_dir().join(format!("keelson-open-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory for temporary files can be written to");
    let path = dir.join("db");
    let start = Instant::now();
    fill(&path, keys)?;
    println!("{keys} keys applied and committed: {:?}", start.elapsed());
    for _ in 0..3 {
        let before = resident_kib();
        let start = Instant::now();
        let opened = open(&path, &options())?;
        let took = start.elapsed();
        println!(
            "opened: {took:?}, {before} before, {} after",
            resident_kib()
        );
        let start = Instant::now();
        if let Ok(hashed) = hash::hash_kv(opened.store.shared(), 0) {
            println!("hash {:08x} of all: {:?}", hashed.hash, start.elapsed());
        }
    }
    std::fs::remove_dir_all(&dir).expect("the directory was made by this process");
    Ok(())
}
