//! Checks of the repository that no compiler does: `cargo xtask tidy` and `cargo xtask mutants`.

use std::process::ExitCode;

mod mutants;
mod source;
mod tidy;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (name, result) = match words.as_slice() {
        ["tidy"] => ("tidy", tidy::run()),
        ["mutants"] => ("mutants", mutants::run(None)),
        ["mutants", only] => ("mutants", mutants::run(Some(only))),
        _ => {
            eprintln!("usage: cargo xtask tidy | mutants [NAME]");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
