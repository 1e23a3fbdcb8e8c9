//! The program as the tests run it, so that they never meet one that was built before them.

use std::process::ExitCode;

fn main() -> ExitCode {
    keelson_cli::run(std::env::args_os())
}
