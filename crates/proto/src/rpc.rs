//! Generated messages and client stubs, one module a protobuf package.
//!
//! The sources are in `proto/`; nothing generated is committed.
#![expect(
    missing_docs,
    clippy::missing_errors_doc,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the contract of each field is that of the etcd API"
)]

/// Keys, values and events.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// Users, roles and permissions as stored.
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// Membership as it goes through the log.
pub mod membershippb {
    tonic::include_proto!("membershippb");
}

/// Leases as stored.
pub mod leasepb {
    tonic::include_proto!("leasepb");
}

/// The client API, and the requests that log entries hold.
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// Locks.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

/// Elections.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// gRPC health.
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// Consensus messages as they lie on the wire; [`crate::entry`] and [`crate::message`] are what
/// the rest of the code speaks.
pub mod raftpb {
    tonic::include_proto!("raftpb");
}

/// Log records as they lie on the disk.
pub mod walpb {
    tonic::include_proto!("walpb");
}

/// The envelope of `.snap` files.
pub mod snappb {
    tonic::include_proto!("snappb");
}

/// The compiled descriptors of all packages above: an encoded `FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
