//! The `keelson` program.

use std::process::ExitCode;

/// Allocation is a tenth of a small request's cost, and this one is the cheapest.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    keelson_cli::run(std::env::args_os())
}
