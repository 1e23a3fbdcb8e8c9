//! A load generator for servers of the etcd v3 API.
