//! Checks and fixtures of the repository.

fn main() {}
