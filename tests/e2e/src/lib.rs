//! End-to-end tests over in-process members and processes.
