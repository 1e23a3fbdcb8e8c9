//! The server's flags: one table from which the command, the help, the variables, the keys of the
//! file and `docs/configuration.md` come.
//!
//! A flag is taken as Go's flag package takes it: `-x v`, `--x v` or `--x=v`, booleans without a
//! value or with `=`, the last of a repeated one wins. [`normalise`] brings an argument list into
//! the one form `--x=v`, which clap then checks against the table.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};
use keelson_server::config::{Config, ConfigError, GoDuration, go_bool, quote};
use keelson_server::url::Url;

mod environment;
mod help;
mod number;
mod table;

pub use environment::{EnvironmentError, Note, apply_environment};
pub use help::{help, markdown, usage};
pub use table::FLAGS;

/// A flag of the server.
#[derive(Debug)]
pub struct Flag {
    /// Its name without dashes; unique.
    pub name: &'static str,
    /// Where its value goes.
    pub target: Target,
    /// The default as help shows it.
    pub default: &'static str,
    /// The part of the help it stands in.
    pub group: Group,
    /// Its key in the file.
    pub key: Key,
    /// What it does.
    pub help: &'static str,
}

/// Parts of the help, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// This member.
    Member,
    /// It and the others.
    Clustering,
    /// TLS and who may connect.
    Security,
    /// Users.
    Auth,
    /// Profiling and metrics.
    Monitoring,
    /// The log.
    Logging,
    /// Distributed tracing.
    Tracing,
    /// Intervals, limits and checks.
    Features,
    /// What can lose data.
    Unsafe,
    /// Not shown: accepted for old command lines, without effect.
    Hidden,
}

/// A flag's key in the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The flag's name.
    Name,
    /// Sections and key, separated by dots.
    At(&'static str),
    /// The file cannot set it.
    None,
}

/// Where a value goes: a field of [`Config`] by its type, or what else happens with it.
#[derive(Clone, Copy)]
pub enum Target {
    /// A text.
    Text(fn(&mut Config) -> &mut String),
    /// A path.
    Path(fn(&mut Config) -> &mut PathBuf),
    /// A boolean; the value may be left out.
    Bool(fn(&mut Config) -> &mut bool),
    /// A number from 0.
    U32(fn(&mut Config) -> &mut u32),
    /// A number from 0.
    U64(fn(&mut Config) -> &mut u64),
    /// A number.
    I64(fn(&mut Config) -> &mut i64),
    /// A duration from 0.
    Duration(fn(&mut Config) -> &mut Duration),
    /// URLs separated by commas.
    Urls(fn(&mut Config) -> &mut Vec<Url>),
    /// Texts separated by commas.
    List(fn(&mut Config) -> &mut Vec<String>),
    /// Whatever the function makes of it.
    Own(fn(&mut Config, &str) -> Result<(), String>),
    /// No function yet: its default is accepted, anything else is refused when the configuration
    /// is checked.
    NotYet(Form),
    /// Read by the program itself (`config-file`).
    Program,
    /// Read by the program itself, a boolean (`version`).
    ProgramBool,
    /// Accepted and without effect, with or without a value.
    Ignored,
}

/// What the value of a flag without a function looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A boolean.
    Bool,
    /// A number from 0.
    Unsigned,
    /// A number.
    Signed,
    /// A duration.
    Duration,
    /// A text.
    Text,
    /// Texts separated by commas.
    List,
    /// `exit` or `proxy`.
    Fallback,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.go_type())
    }
}

impl Target {
    /// Whether the value may be left out, which means true.
    fn is_bool(self) -> bool {
        use Target::{Bool, Ignored, NotYet, ProgramBool};
        matches!(self, Bool(_) | ProgramBool | Ignored | NotYet(Form::Bool))
    }

    /// Go's name of the type, for error texts of the file.
    pub(crate) fn go_type(self) -> &'static str {
        match self {
            Target::Bool(_) | Target::ProgramBool | Target::NotYet(Form::Bool) => "bool",
            Target::U32(_) | Target::NotYet(Form::Unsigned) => "uint",
            Target::U64(_) => "uint64",
            Target::I64(_) => "int64",
            Target::NotYet(Form::Signed) => "int",
            Target::Duration(_) | Target::NotYet(Form::Duration) => "time.Duration",
            Target::List(_) | Target::NotYet(Form::List) => "[]string",
            _ => "string",
        }
    }
}

impl Flag {
    /// The environment variable that sets it.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("ETCD_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }

    /// Puts `text` into `config`.
    ///
    /// # Errors
    /// What is wrong with the text, as Go or etcd says it.
    pub fn set(&self, config: &mut Config, text: &str) -> Result<(), String> {
        match self.target {
            Target::Text(field) => text.clone_into(field(config)),
            Target::Path(field) => *field(config) = PathBuf::from(text),
            Target::Bool(field) => *field(config) = parse_bool(text)?,
            Target::U32(field) => *field(config) = number::unsigned(text)?,
            Target::U64(field) => *field(config) = number::unsigned(text)?,
            Target::I64(field) => *field(config) = number::signed(text)?,
            Target::Duration(field) => {
                let length = GoDuration::parse(text).map_err(|_| "parse error".to_owned())?;
                *field(config) = self.not_negative(length)?;
            }
            Target::Urls(field) => *field(config) = parse_urls(text)?,
            Target::List(field) => *field(config) = split(text),
            Target::Own(set) => set(config, text)?,
            Target::NotYet(form) => self.set_not_yet(config, form, text)?,
            Target::ProgramBool => drop(parse_bool(text)?),
            Target::Program | Target::Ignored => {}
        }
        config.set_flags.push(self.name);
        Ok(())
    }

    /// A length that a flag or the file gave; below zero it has no meaning anywhere.
    pub(crate) fn not_negative(&self, length: GoDuration) -> Result<Duration, String> {
        length.to_std().ok_or_else(|| match self.name {
            "compact-hash-check-time" => ConfigError::CompactHashCheckTime(length).to_string(),
            flag => ConfigError::Negative {
                flag,
                value: length,
            }
            .to_string(),
        })
    }

    /// Keeps a value without a function for the check, unless it is the default.
    fn set_not_yet(&self, config: &mut Config, form: Form, text: &str) -> Result<(), String> {
        let value = form.canonical(text)?;
        let default = form.canonical(self.default).unwrap_or_default();
        if value == default {
            config.not_yet.remove(self.name);
        } else {
            config.not_yet.insert(self.name, value);
        }
        Ok(())
    }
}

impl Form {
    /// The value in one form, so that it can be compared with the default.
    fn canonical(self, text: &str) -> Result<String, String> {
        match self {
            Form::Bool => parse_bool(text).map(|on| on.to_string()),
            Form::Unsigned => number::unsigned::<u64>(text).map(|n| n.to_string()),
            Form::Signed => number::signed::<i64>(text).map(|n| n.to_string()),
            Form::Duration => match GoDuration::parse(text) {
                Ok(length) => Ok(length.to_string()),
                Err(_) => Err("parse error".to_owned()),
            },
            Form::Text | Form::List => Ok(text.to_owned()),
            Form::Fallback if ["exit", "proxy"].contains(&text) => Ok(text.to_owned()),
            Form::Fallback => Err(format!("invalid value {}", quote(text))),
        }
    }
}

fn parse_bool(text: &str) -> Result<bool, String> {
    go_bool(text).ok_or_else(|| "parse error".to_owned())
}

/// An empty list is allowed and means none.
fn parse_urls(text: &str) -> Result<Vec<Url>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    Url::parse_list(text).map_err(|error| error.to_string())
}

/// Sorted, each once; empty is none.
fn split(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = text.split(',').map(str::to_owned).collect();
    parts.sort();
    parts.dedup();
    parts.retain(|part| !part.is_empty() || text.contains(','));
    parts
}

/// The flag of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// Why an argument list cannot be read. Prints the line of Go's flag package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlagError {
    /// `-h` or `--help`.
    Help,
    /// Neither flag nor value.
    Syntax(String),
    /// A flag that does not exist, and the nearest that does.
    Unknown {
        /// As it was given, without dashes.
        name: String,
        /// Without dashes.
        nearest: Option<String>,
    },
    /// The list ends where a value should stand.
    NoValue(String),
    /// A value that does not fit.
    Value {
        /// The flag.
        flag: &'static str,
        /// The value.
        value: String,
        /// Whether it is a boolean, of which Go speaks otherwise.
        boolean: bool,
        /// Why it does not fit.
        cause: String,
    },
}

impl std::fmt::Display for FlagError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FlagError::Help => f.write_str("flag: help requested"),
            FlagError::Syntax(argument) => write!(f, "bad flag syntax: {argument}"),
            FlagError::Unknown { name, .. } => {
                write!(f, "flag provided but not defined: -{name}")
            }
            FlagError::NoValue(name) => write!(f, "flag needs an argument: -{name}"),
            FlagError::Value {
                flag,
                value,
                boolean: true,
                cause,
            } => {
                write!(
                    f,
                    "invalid boolean value {} for -{flag}: {cause}",
                    quote(value)
                )
            }
            FlagError::Value {
                flag,
                value,
                boolean: false,
                cause,
            } => {
                write!(
                    f,
                    "invalid value {} for flag -{flag}: {cause}",
                    quote(value)
                )
            }
        }
    }
}

impl std::error::Error for FlagError {}

/// Arguments in one form.
#[derive(Debug, PartialEq, Eq)]
pub struct Normalised {
    /// `--name=value` each.
    pub flags: Vec<String>,
    /// What follows the flags; the server takes none.
    pub rest: Vec<String>,
}

/// Brings arguments (without the program's name) into the form `--name=value`, by the rules of
/// Go's flag package. An unknown flag ends the reading: whether a value follows it is not known.
///
/// # Errors
/// When an argument is no flag at all, a value is missing, or help is asked for.
pub fn normalise(arguments: &[String]) -> Result<Normalised, FlagError> {
    let mut flags = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(body) = argument.strip_prefix('-').filter(|body| !body.is_empty()) else {
            let rest = std::iter::once(argument).chain(rest).cloned().collect();
            return Ok(Normalised { flags, rest });
        };
        if body == "-" {
            break;
        }
        let body = body.strip_prefix('-').unwrap_or(body);
        if body.is_empty() || body.starts_with(['-', '=']) {
            return Err(FlagError::Syntax(argument.clone()));
        }
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let Some(flag) = find(name) else {
            if matches!(name, "h" | "help") {
                return Err(FlagError::Help);
            }
            flags.push(format!("--{name}={}", value.unwrap_or_default()));
            return Ok(Normalised {
                flags,
                rest: Vec::new(),
            });
        };
        let value = match value {
            Some(value) => value,
            None if flag.target.is_bool() => "true".to_owned(),
            None => rest
                .next()
                .ok_or_else(|| FlagError::NoValue(name.to_owned()))?
                .clone(),
        };
        flags.push(format!("--{name}={value}"));
    }
    Ok(Normalised {
        flags,
        rest: rest.cloned().collect(),
    })
}

/// The command that takes the table's flags, in the form of [`normalise`].
#[must_use]
pub fn command() -> Command {
    let arguments = FLAGS.iter().map(|flag| {
        Arg::new(flag.name)
            .long(flag.name)
            .num_args(1)
            .require_equals(true)
            .action(ArgAction::Append)
            .hide(flag.group == Group::Hidden)
            .help(flag.help)
    });
    Command::new("serve")
        .about("Start a member")
        .no_binary_name(true)
        .disable_help_flag(true)
        .args(arguments)
}

/// What the flags of a command line say.
#[derive(Debug, Default)]
pub struct CommandLine {
    /// The configuration, with nothing but flags in it.
    pub config: Config,
    /// `config-file`.
    pub config_file: Option<String>,
    /// `version`.
    pub version: bool,
    /// What follows the flags.
    pub rest: Vec<String>,
}

/// Reads a command line without the program's name.
///
/// # Errors
/// The first thing that Go's flag package would not take.
pub fn parse(arguments: &[String]) -> Result<CommandLine, FlagError> {
    let normalised = normalise(arguments)?;
    let matches = command()
        .try_get_matches_from(&normalised.flags)
        .map_err(|e| reworded(&e))?;
    let mut line = CommandLine {
        rest: normalised.rest,
        ..CommandLine::default()
    };
    for flag in FLAGS {
        for value in matches.get_many::<String>(flag.name).into_iter().flatten() {
            flag.set(&mut line.config, value)
                .map_err(|cause| FlagError::Value {
                    flag: flag.name,
                    value: value.clone(),
                    boolean: flag.target.is_bool(),
                    cause,
                })?;
            match flag.name {
                "config-file" => line.config_file = Some(value.clone()),
                "version" => line.version = go_bool(value).unwrap_or(false),
                _ => {}
            }
        }
    }
    let config = &mut line.config;
    if config.is_set("listen-client-urls") && !config.is_set("advertise-client-urls") {
        config.advertise_client_urls.clear();
    }
    Ok(line)
}

/// clap's error in Go's words. In the normal form only an unknown flag can be one.
fn reworded(error: &clap::Error) -> FlagError {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    let bare = |text: String| {
        text.trim_start_matches('-')
            .split('=')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let given = text(ContextKind::InvalidArg).map(bare).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let nearest = text(ContextKind::SuggestedArg).map(bare);
            FlagError::Unknown {
                name: given,
                nearest,
            }
        }
        _ => FlagError::Syntax(format!("--{given}")),
    }
}

#[cfg(test)]
mod tests;
