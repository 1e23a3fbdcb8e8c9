//! `keelson bolt`: looking at and mending database files, with bbolt's commands, arguments and
//! output (formats 1.19). Called by the name `bbolt` the program is this.

mod args;
mod bench;
mod commands;
mod content;
mod pages;
mod surgery;
mod text;
mod whole;

use std::ffi::OsStr;
use std::io::Write;
use std::process::ExitCode;

use args::Parsed;

/// What a command writes to: its answer and its remarks.
struct Output<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

/// Runs the command line `arguments`, which begin behind the program's name; that is `program` in
/// the texts.
#[must_use]
pub fn run(program: &str, arguments: &[String]) -> ExitCode {
    let stdout = std::io::stdout().lock();
    let mut out = std::io::BufWriter::new(stdout);
    let mut err = std::io::stderr();
    let output = &mut Output {
        out: &mut out,
        err: &mut err,
    };
    let code = answer(program, arguments, output);
    // A reader that went away is no error of ours.
    let _ = out.flush();
    code
}

fn answer(program: &str, arguments: &[String], output: &mut Output<'_>) -> ExitCode {
    let (command, path, rest) = commands::find(program, arguments);
    let outcome = match args::parse(command, &path, rest) {
        Ok(Parsed::Help) => {
            let _ = write!(output.out, "{}", commands::help(command, &path));
            return ExitCode::SUCCESS;
        }
        Ok(Parsed::Version) => version(output),
        Ok(Parsed::Call(call)) => (command.run)(&call, output),
        Err(error) if command.is_group() => {
            let _ = writeln!(output.err, "Error: {error}\nRun '{path} --help' for usage.");
            return ExitCode::FAILURE;
        }
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = output.out.flush();
            let usage = commands::usage(command, &path);
            let _ = writeln!(output.err, "Error: {error:#}\n{usage}");
            ExitCode::FAILURE
        }
    }
}

fn version(output: &mut Output<'_>) -> anyhow::Result<()> {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    write!(
        output.out,
        "bbolt Version: 1.5.0 (compatible)\nKeelson Version: {}\nOS/Arch: {os}/{arch}\n",
        crate::version::VERSION
    )?;
    Ok(())
}

/// A path as given.
fn path(argument: &str) -> &std::path::Path {
    std::path::Path::new(OsStr::new(argument))
}
