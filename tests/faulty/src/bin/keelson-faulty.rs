//! The program with a clock that jumps and files that are slow, full or failing. `KEELSON_FAULTS` names
//! the file that steers them (`keelson_harness::Faults::steered_by`).

use std::process::ExitCode;

use keelson_harness::Faults;

fn main() -> ExitCode {
    let steered = Faults::steered_by(std::env::var_os("KEELSON_FAULTS").unwrap_or_default());
    let faults = steered.expect("KEELSON_FAULTS names a file that can be understood");
    keelson_cli::run_in(std::env::args_os(), faults.env())
}
