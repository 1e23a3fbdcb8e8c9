//! Wire types of the etcd v3 API, consensus messages, log records, and the error table.
