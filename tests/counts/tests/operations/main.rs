//! A fixed set of operations on the cores, and what each allocates, held against `table.txt`.
#![expect(clippy::unwrap_used, reason = "tests")]

mod engine;
mod log;
mod messages;
mod node;
mod raft;
mod store;
mod watch;

use std::fs;
use std::path::Path;

use bytes::Bytes;
use keelson_counts::{Build, Table};
use keelson_proto::rpc::etcdserverpb::{InternalRaftRequest, PutRequest};

/// Bytes of each value.
const VALUE: usize = 512;

/// A key of 64 bytes.
fn key(place: usize) -> Bytes {
    format!("/registry/pods/{place:049}").into()
}

fn put(place: usize) -> InternalRaftRequest {
    InternalRaftRequest {
        put: Some(PutRequest {
            key: key(place),
            value: vec![b'v'; VALUE].into(),
            ..PutRequest::default()
        }),
        ..InternalRaftRequest::default()
    }
}

#[test]
fn every_operation_allocates_as_the_table_says() {
    let mut found = Table::default();
    for part in [
        messages::add_to,
        raft::add_to,
        engine::add_to,
        log::add_to,
        store::add_to,
        watch::add_to,
        node::add_to,
    ] {
        part(&mut found);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("table.txt");
    let build = if cfg!(debug_assertions) {
        Build::Debug
    } else {
        Build::Release
    };
    if std::env::var_os("UPDATE").is_some() {
        assert_eq!(build, Build::Debug, "the table is of a debug build");
        return fs::write(path, found.to_string()).unwrap();
    }
    let accepted: Table = fs::read_to_string(path).unwrap().parse().unwrap();
    let differences = accepted.differences(&found, build);
    assert!(
        differences.is_empty(),
        "allocations are not those of tests/counts/table.txt:\n{}\n\
         Take the cause away, or accept what is (better, or worth it; say why in the commit) with\n\
         UPDATE=1 cargo test -p keelson-counts\n",
        differences.join("\n")
    );
}
