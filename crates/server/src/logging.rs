//! The log in zap's shape, as etcd writes it: one JSON object a line with `level`, `ts`,
//! `logger`, `caller`, `msg` and then the fields, flat (api.md 5.7). `console` is the same parts
//! separated by tabs; on a terminal there is a form for people.
//!
//! Events are written with `tracing`'s macros under etcd's field names:
//! `warn!("took" = %GoDuration::from(took), "apply request took too long")`. Some names are
//! special: `level` overrides the level (`fatal`, `panic`, `dpanic`), `logger` names the logger,
//! and a name that ends in `:json` (without it) holds JSON text, see [`json`].

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::reload;

use crate::config::{Checked, Config, ConfigError};

mod line;
mod sampling;

use sampling::Sampling;

pub use line::Style;

/// Levels by etcd's names. The last three are of `tracing`'s error level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What an operator follows.
    Info,
    /// What an operator should look at.
    Warn,
    /// What failed.
    Error,
    /// A broken invariant that is survived.
    Dpanic,
    /// A broken invariant.
    Panic,
    /// The last line of a program that gives up.
    Fatal,
}

impl LogLevel {
    /// All levels with their names.
    const NAMES: [(LogLevel, &'static str); 7] = [
        (LogLevel::Debug, "debug"),
        (LogLevel::Info, "info"),
        (LogLevel::Warn, "warn"),
        (LogLevel::Error, "error"),
        (LogLevel::Dpanic, "dpanic"),
        (LogLevel::Panic, "panic"),
        (LogLevel::Fatal, "fatal"),
    ];

    /// Reads a name, in lower case or in capitals; empty is `info`.
    ///
    /// # Errors
    /// With the text of zap's panic.
    pub fn parse(text: &str) -> Result<LogLevel, ConfigError> {
        if text.is_empty() {
            return Ok(LogLevel::Info);
        }
        let known = LogLevel::NAMES.into_iter();
        known
            .filter(|(_, name)| text == *name || text == name.to_ascii_uppercase())
            .map(|(level, _)| level)
            .next()
            .ok_or_else(|| ConfigError::LogLevel(text.to_owned()))
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        LogLevel::NAMES[self as usize].1
    }

    fn of(level: Level) -> LogLevel {
        match level {
            Level::ERROR => LogLevel::Error,
            Level::WARN => LogLevel::Warn,
            Level::INFO => LogLevel::Info,
            _ => LogLevel::Debug,
        }
    }

    /// Own events from this level on; of libraries only warnings, since their debug lines are
    /// written for their authors.
    fn targets(self) -> Targets {
        let own = match self {
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Warn => LevelFilter::WARN,
            _ => LevelFilter::ERROR,
        };
        Targets::new()
            .with_default(own.min(LevelFilter::WARN))
            .with_target("keelson", own)
            .with_target(RAFT, own)
    }
}

/// The target of what consensus tells, and its logger's name.
const RAFT: &str = "raft";

/// Checks the settings of logging without opening anything, in etcd's order.
pub(crate) fn check(config: &Config) -> Result<(), ConfigError> {
    match config.logger.as_str() {
        "zap" => {}
        "capnslog" => return Err(ConfigError::LoggerRemoved),
        other => return Err(ConfigError::Logger(other.to_owned())),
    }
    let outputs = &config.log_outputs;
    if outputs.len() > 1 && outputs.iter().any(|output| output == "default") {
        return Err(ConfigError::LogOutputs);
    }
    if config.not_yet.contains_key("enable-log-rotation") {
        let streams = ["default", "stderr", "stdout"];
        let files = outputs
            .iter()
            .filter(|output| !streams.contains(&output.as_str()))
            .count();
        if files != 1 {
            return Err(ConfigError::LogRotation);
        }
    }
    LogLevel::parse(&config.log_level)?;
    match config.log_format.as_str() {
        "" | "json" | "console" => Ok(()),
        other => Err(ConfigError::LogFormat(other.to_owned())),
    }
}

/// Where lines go; the same line to each.
enum Output {
    Stderr,
    Stdout,
    File(File),
}

impl Output {
    /// A line that cannot be written is lost: there is nowhere left to say so.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Output::Stderr => io::stderr().lock().write_all(line),
            Output::Stdout => io::stdout().lock().write_all(line),
            Output::File(file) => file.write_all(line),
        }
    }
}

/// Opens the outputs; a name stands for the same output only once.
fn open(names: &[String]) -> Result<Vec<Output>, ConfigError> {
    let mut seen: Vec<&str> = Vec::new();
    let mut outputs = Vec::new();
    for name in names {
        // The journal takes lines from stderr of a unit as well; etcd falls back to it too.
        let name = match name.as_str() {
            "default" | "stderr" | "systemd/journal" => "stderr",
            other => other,
        };
        if seen.contains(&name) {
            continue;
        }
        seen.push(name);
        outputs.push(match name {
            "stderr" => Output::Stderr,
            "stdout" => Output::Stdout,
            path => Output::File(append_to(Path::new(path))?),
        });
    }
    if outputs.is_empty() {
        outputs.push(Output::Stderr);
    }
    Ok(outputs)
}

fn append_to(path: &Path) -> Result<File, ConfigError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|cause| {
            let path = path.display().to_string();
            ConfigError::LogOpen {
                path,
                cause: cause.to_string(),
            }
        })
}

/// The layer that writes every event.
struct Lines {
    style: Style,
    least: LogLevel,
    sampling: Sampling,
    begun: Instant,
    outputs: Mutex<Vec<Output>>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut parts = Parts::default();
        event.record(&mut parts);
        if event.metadata().target() == RAFT {
            parts.logger = Some(RAFT.to_owned());
        }
        let level = parts
            .level
            .unwrap_or_else(|| LogLevel::of(*event.metadata().level()));
        let admits = || {
            self.sampling
                .admits(level, &parts.message, self.begun.elapsed())
        };
        if level < self.least || !admits() {
            return;
        }
        let caller = caller(event.metadata());
        let line = self.style.line(level, SystemTime::now(), &caller, &parts);
        // A writer that panicked in the middle of a line leaves nothing that matters behind.
        let mut outputs = self
            .outputs
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for output in outputs.iter_mut() {
            let _ = output.write(line.as_bytes());
        }
    }
}

/// File and line in short: `server/grpc/kv.rs:12`, or the last two parts of a library's path.
fn caller(metadata: &Metadata<'_>) -> String {
    let file = metadata.file().unwrap_or("unknown");
    let line = metadata.line().unwrap_or(0);
    let own = file
        .rsplit_once("crates/")
        .and_then(|(_, path)| path.split_once("/src/"));
    match own {
        Some((name, path)) => format!("{name}/{path}:{line}"),
        None => {
            let mut parts = file.rsplitn(3, '/');
            let (name, folder) = (parts.next().unwrap_or(file), parts.next());
            folder.map_or(format!("{name}:{line}"), |folder| {
                format!("{folder}/{name}:{line}")
            })
        }
    }
}

/// What an event carries.
#[derive(Default)]
struct Parts {
    message: String,
    logger: Option<String>,
    level: Option<LogLevel>,
    fields: Vec<(&'static str, Value)>,
}

/// A field's value as far as the forms treat it differently.
enum Value {
    Text(String),
    /// A number, a boolean or JSON text, written as it is.
    Raw(String),
}

impl Parts {
    fn text(&mut self, name: &'static str, value: String) {
        match name {
            "message" => self.message = value,
            "logger" => self.logger = Some(value),
            "level" => self.level = LogLevel::parse(&value).ok(),
            name => match name.strip_suffix(":json") {
                // What is not JSON would break the line; it is shown as text instead.
                Some(name) if serde_json::from_str::<serde::de::IgnoredAny>(&value).is_ok() => {
                    self.fields.push((name, Value::Raw(value)));
                }
                Some(name) => self.fields.push((name, Value::Text(value))),
                None => self.fields.push((name, Value::Text(value))),
            },
        }
    }
}

impl Visit for Parts {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field.name(), value.to_owned());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields
            .push((field.name(), Value::Raw(value.to_string())));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields
            .push((field.name(), Value::Raw(value.to_string())));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields
            .push((field.name(), Value::Raw(value.to_string())));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        let text = serde_json::Number::from_f64(value).map(|number| number.to_string());
        self.fields.push(match text {
            Some(text) => (field.name(), Value::Raw(text)),
            None => (field.name(), Value::Text(value.to_string())),
        });
    }
}

/// `value` as JSON text, for a field whose name ends in `:json`:
/// `info!("listen-client-urls:json" = json(&urls), "configuring client listeners")`.
#[must_use]
pub fn json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

/// A moment as lines begin with it, for a field.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let mut text = String::new();
    line::push_time(&mut text, time);
    text
}

/// The log that was set up: its level can be changed while it runs.
#[derive(Clone)]
pub struct LogHandle {
    targets: reload::Handle<Targets, Registry>,
}

impl LogHandle {
    /// Writes events from `level` on.
    pub fn set_level(&self, level: LogLevel) {
        // It fails only when the subscriber is gone, and then there is no log.
        let _ = self.targets.reload(level.targets());
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogHandle")
    }
}

/// Opens the outputs that `config` names and makes them the log of the process. When the process
/// has a log already (a second member, a test's own), that one stays and there is no handle.
///
/// # Errors
/// When a setting of the log is wrong or a file cannot be opened.
pub fn init(config: &Config) -> Result<Option<LogHandle>, ConfigError> {
    check(config)?;
    let style = Style::of(config);
    let outputs = open(&config.log_outputs)?;
    let level = LogLevel::parse(&config.log_level)?;
    let (subscriber, handle) = subscriber(style, level, outputs);
    Ok(tracing::subscriber::set_global_default(subscriber)
        .ok()
        .map(|()| handle))
}

fn subscriber(
    style: Style,
    level: LogLevel,
    outputs: Vec<Output>,
) -> (impl Subscriber + Send + Sync, LogHandle) {
    let (filter, targets) = reload::Layer::new(level.targets());
    let least = if level > LogLevel::Error {
        level
    } else {
        LogLevel::Debug
    };
    let lines = Lines {
        style,
        least,
        sampling: Sampling::new(),
        begun: Instant::now(),
        outputs: Mutex::new(outputs),
    };
    (
        tracing_subscriber::registry().with(filter).with(lines),
        LogHandle { targets },
    )
}

/// The last line of a start for people: where the member listens, where its data is and what to
/// type next. Does nothing when the log is written for programs.
pub fn announce(config: &Checked) {
    if config.for_people {
        let line = line::announcement(config);
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }
}

/// Seconds since 1970 and microseconds.
fn since_epoch(time: SystemTime) -> (u64, u32) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs(), since.subsec_micros())
}

#[cfg(test)]
mod tests;
