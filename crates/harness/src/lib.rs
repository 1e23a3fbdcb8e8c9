//! In-process members for tests.
