//! `keelson serve`, and `etcd`: from arguments to a running member.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use keelson_node::Env;
use keelson_server::config::{Checked, Config, ConfigError, DEFAULT_PEER_URL, Stage, quote};
use keelson_server::logging;
use tracing::{debug, error, info, warn};

use crate::argv::{FAILED, WRONG_USE, print, tell};
use crate::flag_file::{self, FileError};
use crate::flags::{self, CommandLine, EnvironmentError, FlagError, Note};
use crate::version;

/// How the server was called.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Its name in the usage.
    pub program: &'a str,
    /// All arguments, for the log.
    pub arguments: &'a [String],
    /// Those that are flags.
    pub flags: &'a [String],
    /// Whether it has to behave as etcd itself.
    pub as_etcd: bool,
}

/// Starts a member in `env` and returns when it has ended, with etcd's exit codes (api.md 5.6).
#[must_use]
pub fn serve(call: &Call<'_>, env: Env) -> ExitCode {
    match configure(call) {
        Ok(config) => start(config, env),
        Err(code) => ExitCode::from(code),
    }
}

/// From flags, variables or the file to a configuration with its log set up; or the exit code
/// after the reason was told.
fn configure(call: &Call<'_>) -> Result<Checked, u8> {
    let line = flags::parse(call.flags).map_err(|error| tell_flag_error(call, &error))?;
    if let Some(extra) = line.rest.first() {
        let cause = format!("{} is not a valid flag", quote(extra));
        return Err(fail_to_verify(call, &cause));
    }
    if line.version {
        print(&if call.as_etcd {
            version::as_etcd()
        } else {
            version::own()
        });
        return Err(0);
    }
    let environment: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let (mut config, notes) = gather(line, &environment).map_err(|failure| match failure {
        Failure::Verify(cause) => fail_to_verify(call, &cause),
        Failure::Shadowed(name) => {
            default_log(call);
            EnvironmentError::log_shadowed(&name);
            FAILED
        }
        Failure::Plain(text) => {
            tell(&format!("{text}\n"));
            FAILED
        }
    })?;
    config.for_people = for_people(call, &config);
    if let Err(error) = logging::init(&config) {
        if error.stage() == Stage::Panic {
            tell(&format!("panic: {error}\n\n"));
            return Err(WRONG_USE);
        }
        return Err(fail_to_verify(call, &error.to_string()));
    }
    notes.iter().for_each(Note::log);
    let checked = config.check();
    log_arguments(call);
    checked.map_err(|error| tell_config_error(&error))
}

/// Why no configuration came together.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    /// `failed to verify flags`.
    Verify(String),
    /// A variable stands against a flag.
    Shadowed(String),
    /// A line that is printed as it is.
    Plain(String),
}

/// The file when there is one, or else flags and variables.
fn gather(
    line: CommandLine,
    environment: &[(String, String)],
) -> Result<(Config, Vec<Note>), Failure> {
    let by_variable = environment
        .iter()
        .find(|(name, value)| name == "ETCD_CONFIG_FILE" && !value.is_empty())
        .map(|(_, value)| value.clone());
    let by_flag = line.config_file.filter(|path| !path.is_empty());
    if let Some(path) = by_flag.or(by_variable) {
        let config = flag_file::load(Path::new(&path)).map_err(|error| match error {
            FileError::Verify(cause) => Failure::Verify(cause),
            FileError::Plain(text) => Failure::Plain(text),
        })?;
        return Ok((config, vec![Note::File(path)]));
    }
    let mut config = line.config;
    let notes =
        flags::apply_environment(&mut config, environment).map_err(|error| match error {
            EnvironmentError::Shadowed(name) => Failure::Shadowed(name),
            EnvironmentError::Value(cause) => Failure::Verify(cause),
        })?;
    Ok((config, notes))
}

/// People read the log of `keelson serve` on a terminal, unless its form was chosen.
fn for_people(call: &Call<'_>, config: &Config) -> bool {
    let to_stderr = config
        .log_outputs
        .iter()
        .all(|o| o == "default" || o == "stderr");
    !call.as_etcd && to_stderr && !config.is_set("log-format") && std::io::stderr().is_terminal()
}

/// Go's line, the nearest flag, the usage; or the help.
fn tell_flag_error(call: &Call<'_>, error: &FlagError) -> u8 {
    let usage = flags::usage(call.program);
    if *error == FlagError::Help {
        tell(&usage);
        print(&flags::help());
        return 0;
    }
    let nearest = match error {
        FlagError::Unknown {
            nearest: Some(nearest),
            ..
        } => {
            format!("did you mean --{nearest}?\n")
        }
        _ => String::new(),
    };
    tell(&format!("{error}\n{nearest}{usage}"));
    WRONG_USE
}

/// A log for what has to be said before the chosen one could be set up.
fn default_log(call: &Call<'_>) {
    let config = Config::default();
    let people = for_people(call, &config);
    // The defaults open stderr alone, which cannot fail.
    let _ = logging::init(&Config {
        for_people: people,
        ..config
    });
}

fn log_arguments(call: &Call<'_>) {
    info!("args:json" = logging::json(call.arguments), "Running: ");
}

/// The two lines of a configuration that could not even be read.
fn fail_to_verify(call: &Call<'_>, cause: &str) -> u8 {
    default_log(call);
    log_arguments(call);
    warn!("error" = cause, "failed to verify flags");
    FAILED
}

/// A rule that the configuration breaks, told as etcd tells it.
fn tell_config_error(cause: &ConfigError) -> u8 {
    match cause.stage() {
        Stage::Panic => {
            tell(&format!("panic: {cause}\n\n"));
            WRONG_USE
        }
        Stage::Start => {
            error!(level = "fatal", "error" = %cause, "discovery failed");
            FAILED
        }
        Stage::Verify => {
            warn!("error" = %cause, "failed to verify flags");
            if *cause == ConfigError::AdvertiseClientUnset {
                warn!("error" = %cause, "advertise client URLs are not set");
            }
            FAILED
        }
    }
}

/// What lies in the data directory already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Member,
    Proxy,
    Both,
}

/// Looks into the data directory; files that do not belong there are warned of.
fn look_into(directory: &Path) -> std::io::Result<Found> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    let (mut member, mut proxy) = (false, false);
    for entry in entries {
        let name = entry?.file_name();
        match name.to_str() {
            Some("member") => member = true,
            Some("proxy") => proxy = true,
            _ => warn!(
                "filename" = %name.display(),
                "data-dir" = %directory.display(),
                "found invalid file under data directory"
            ),
        }
    }
    Ok(match (member, proxy) {
        (true, true) => Found::Both,
        (true, false) => Found::Member,
        (false, true) => Found::Proxy,
        (false, false) => Found::Nothing,
    })
}

/// Has the system give memory in its small pages. The allocator asks for pages of 2 MiB: each is cleared
/// as a whole when its first byte is touched, and so again after it was given back, which took a seventh of
/// a follower's time; and a store of a million keys took a quarter more memory.
fn take_small_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        debug!(%error, "large pages could not be switched off");
    }
}

/// Starts the member in its directory and waits for its end.
fn start(config: Checked, env: Env) -> ExitCode {
    take_small_pages();
    let directory = config.data_dir.display().to_string();
    let directory = directory.as_str();
    match look_into(&config.data_dir) {
        Err(cause) => {
            error!(
                level = "fatal",
                "dir" = directory,
                "error" = %cause,
                "failed to list data directory"
            );
            return ExitCode::from(FAILED);
        }
        Ok(Found::Both) => {
            let message = "invalid datadir; both member and proxy directories exist";
            error!(level = "fatal", "{message}");
            return ExitCode::from(FAILED);
        }
        Ok(Found::Proxy) => {
            let message = "v2 http proxy has already been deprecated in 3.6";
            error!(level = "panic", "dir-type" = "proxy", "{message}");
            return ExitCode::from(WRONG_USE);
        }
        Ok(Found::Member) => info!(
            "data-dir" = directory,
            "dir-type" = "member",
            "server has already been initialized"
        ),
        Ok(Found::Nothing) => info!(
            "data-dir" = directory,
            "dir-type" = "empty",
            "Initialize and start etcd server"
        ),
    }
    let hints = Hints::of(&config);
    match run_member(config, env) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            match cause.downcast_ref() {
                // It had started: nobody is to look for the cause in flags.
                Some(keelson_server::Error::Stopped(reason)) => {
                    error!(level = "fatal", "error" = reason, "server error");
                }
                _ => hints.tell(&cause.to_string()),
            }
            ExitCode::from(FAILED)
        }
    }
}

/// What an operator may have forgotten, when the initial cluster does not fit.
struct Hints {
    for_people: bool,
    initial_cluster_is_default: bool,
    peer_url_is_default: bool,
}

impl Hints {
    fn of(config: &Checked) -> Hints {
        let urls = &config.advertise_peer_urls;
        Hints {
            for_people: config.for_people,
            initial_cluster_is_default: config.initial_cluster.is_none(),
            peer_url_is_default: urls.len() == 1 && urls[0].as_str() == DEFAULT_PEER_URL,
        }
    }

    /// The last lines of a member that did not start.
    fn tell(&self, cause: &str) {
        if !(cause.contains("include") && cause.contains("--initial-cluster")) {
            // etcd says so of every error of a start; only programs look for it.
            let message = if self.for_people {
                "the member could not start"
            } else {
                "discovery failed"
            };
            error!(level = "fatal", "error" = cause, "{message}");
            return;
        }
        warn!("error" = cause, "failed to start");
        if self.initial_cluster_is_default {
            warn!("forgot to set --initial-cluster?");
        }
        if self.peer_url_is_default {
            warn!("forgot to set --initial-advertise-peer-urls?");
        }
    }
}

/// The one call into the server: runs a member until it is stopped.
fn run_member(config: Checked, env: Env) -> Result<(), anyhow::Error> {
    Ok(keelson_server::serve_in(config, env)?)
}

#[cfg(test)]
mod tests;
