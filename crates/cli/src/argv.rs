//! Which program is meant: by the name it was called by, then by the first argument.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Command;
use keelson_node::Env;

use crate::{bench, bolt, flags, serve, version};

/// Exit code of a wrong command line.
pub(crate) const WRONG_USE: u8 = 2;
/// Exit code of everything else that failed.
pub(crate) const FAILED: u8 = 1;

/// Runs the program on its arguments, of which the first is its name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    run_in(arguments, Env::real())
}

/// As [`run`], with a member, if it is one that is started, in a world of the caller's making.
pub fn run_in(arguments: impl IntoIterator<Item = OsString>, env: Env) -> ExitCode {
    let mut texts = Vec::new();
    for argument in arguments {
        match argument.into_string() {
            Ok(text) => texts.push(text),
            Err(argument) => {
                tell(&format!(
                    "an argument is not valid UTF-8: {}\n",
                    argument.to_string_lossy()
                ));
                return ExitCode::from(WRONG_USE);
            }
        }
    }
    let called = texts.first().map_or("keelson", String::as_str);
    let name = Path::new(called)
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("keelson");
    match name {
        "etcd" => etcd(&texts, env),
        "bbolt" => bolt::run("bbolt", texts.get(1..).unwrap_or_default()),
        "etcdctl" | "etcdutl" => not_yet(name),
        _ => keelson(&texts, env),
    }
}

/// etcd's own program: flags at once, or one of its proxies.
fn etcd(arguments: &[String], env: Env) -> ExitCode {
    match arguments.get(1).map(String::as_str) {
        Some(proxy @ ("gateway" | "grpc-proxy")) => not_yet(&format!("etcd {proxy}")),
        _ => serve::serve(
            &serve::Call {
                program: "etcd",
                arguments,
                flags: arguments.get(1..).unwrap_or_default(),
                as_etcd: true,
            },
            env,
        ),
    }
}

fn keelson(arguments: &[String], env: Env) -> ExitCode {
    match arguments.get(1).map(String::as_str) {
        Some("serve") => serve::serve(
            &serve::Call {
                program: "keelson serve",
                arguments,
                flags: &arguments[2..],
                as_etcd: false,
            },
            env,
        ),
        Some("bolt") => bolt::run("keelson bolt", &arguments[2..]),
        Some("version" | "--version" | "-V") => {
            print(&version::own());
            ExitCode::SUCCESS
        }
        Some(tool @ ("ctl" | "utl")) => not_yet(&format!("keelson {tool}")),
        _ => match command().try_get_matches_from(arguments) {
            Ok(matches) => match matches.subcommand() {
                Some(("bench", matches)) => report(bench::run(matches)),
                _ => ExitCode::SUCCESS,
            },
            Err(error) => {
                let _ = error.print();
                ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(WRONG_USE))
            }
        },
    }
}

/// The program with its sub-commands.
fn command() -> Command {
    Command::new("keelson")
        .about("A strongly consistent key-value store that speaks etcd's API")
        .version(version::VERSION)
        .disable_version_flag(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(flags::command())
        .subcommand(Command::new("version").about("Show the version"))
        .subcommand(bench::command())
        .subcommand(Command::new("bolt").about("Look at and mend database files, as bbolt does"))
}

fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("Error: {error:#}\n"));
            ExitCode::from(FAILED)
        }
    }
}

fn not_yet(what: &str) -> ExitCode {
    tell(&format!(
        "{what} is not part of this release of Keelson yet; etcd's own works against it meanwhile\n"
    ));
    ExitCode::from(FAILED)
}

/// Writes to stdout. A reader that went away is no error of ours.
pub(crate) fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}

/// Writes to stderr.
pub(crate) fn tell(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
