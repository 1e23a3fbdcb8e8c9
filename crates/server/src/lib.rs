//! Sockets around a member: gRPC, HTTP, metrics, configuration.
