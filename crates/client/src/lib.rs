//! A client of the etcd v3 API.
