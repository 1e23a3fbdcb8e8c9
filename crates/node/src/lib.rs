//! A member without sockets: the consensus loop, its threads, boot and snapshots.
