//! etcd's write-ahead log and snapshot files.
