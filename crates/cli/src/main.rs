//! The `keelson` program.
fn main() {}
