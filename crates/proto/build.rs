//! Compiles the `.proto` files into `OUT_DIR` with no system `protoc`.

use std::path::PathBuf;

use prost::Message as _;

const FILES: [&str; 12] = [
    "auth.proto",
    "election.proto",
    "health.proto",
    "internal.proto",
    "kv.proto",
    "lease.proto",
    "lock.proto",
    "membership.proto",
    "raft.proto",
    "rpc.proto",
    "snap.proto",
    "wal.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .build_server(false)
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
