//! One line of the log, in each form.

use std::fmt::Write;
use std::time::SystemTime;

use super::{LogLevel, Parts, Value, since_epoch};
use crate::config::{Checked, Config};

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// zap's JSON.
    Json,
    /// zap's console form: the parts separated by tabs.
    Console,
    /// For people on a terminal.
    People,
}

impl Style {
    /// The form that `config` asks for.
    #[must_use]
    pub fn of(config: &Config) -> Style {
        match (config.for_people, config.log_format.as_str()) {
            (true, _) => Style::People,
            (false, "console") => Style::Console,
            (false, _) => Style::Json,
        }
    }

    /// The whole line with its end.
    pub(super) fn line(
        self,
        level: LogLevel,
        time: SystemTime,
        caller: &str,
        parts: &Parts,
    ) -> String {
        let mut line = String::with_capacity(256);
        match self {
            Style::Json => json_line(&mut line, level, time, caller, parts),
            Style::Console => console_line(&mut line, level, time, caller, parts),
            Style::People => people_line(&mut line, level, time, parts),
        }
        line.push('\n');
        line
    }
}

fn json_line(line: &mut String, level: LogLevel, time: SystemTime, caller: &str, parts: &Parts) {
    line.push_str("{\"level\":\"");
    line.push_str(level.name());
    line.push_str("\",\"ts\":\"");
    push_time(line, time);
    line.push('"');
    if let Some(logger) = &parts.logger {
        line.push_str(",\"logger\":");
        push_json(line, logger);
    }
    line.push_str(",\"caller\":");
    push_json(line, caller);
    line.push_str(",\"msg\":");
    push_json(line, &parts.message);
    push_fields(line, parts, ",", ":");
    line.push('}');
}

fn console_line(line: &mut String, level: LogLevel, time: SystemTime, caller: &str, parts: &Parts) {
    push_time(line, time);
    for part in [Some(level.name()), parts.logger.as_deref(), Some(caller)]
        .into_iter()
        .flatten()
    {
        line.push('\t');
        line.push_str(part);
    }
    line.push('\t');
    line.push_str(&parts.message);
    if !parts.fields.is_empty() {
        line.push_str("\t{");
        let mut fields = String::new();
        push_fields(&mut fields, parts, ", ", ": ");
        line.push_str(&fields[2..]);
        line.push('}');
    }
}

/// `separator "name"between value` for each field.
fn push_fields(line: &mut String, parts: &Parts, separator: &str, between: &str) {
    for (name, value) in &parts.fields {
        line.push_str(separator);
        push_json(line, name);
        line.push_str(between);
        match value {
            Value::Text(text) => push_json(line, text),
            Value::Raw(text) => line.push_str(text),
        }
    }
}

fn people_line(line: &mut String, level: LogLevel, time: SystemTime, parts: &Parts) {
    let (seconds, micros) = since_epoch(time);
    let (h, m, s, ms) = (
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
        micros / 1000,
    );
    let (color, word) = match level {
        LogLevel::Debug => ("\x1b[2m", "debug"),
        LogLevel::Info => ("\x1b[32m", "info "),
        LogLevel::Warn => ("\x1b[33m", "warn "),
        LogLevel::Error => ("\x1b[31m", "error"),
        _ => ("\x1b[1;31m", "fatal"),
    };
    let prefix = format!("\x1b[2m{h:02}:{m:02}:{s:02}.{ms:03}\x1b[0m {color}{word}\x1b[0m ");
    line.push_str(&prefix);
    push_plain(line, &parts.message);
    for (name, value) in &parts.fields {
        line.push_str("  \x1b[2m");
        line.push_str(name);
        line.push_str("=\x1b[0m");
        let (Value::Text(text) | Value::Raw(text)) = value;
        push_plain(line, text);
    }
}

/// Text for a terminal: controls are shown, never sent.
fn push_plain(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default())
        } else {
            line.push(c)
        }
    }
}

/// A JSON string, escaped as zap does: quotes, backslashes and controls; the rest stays.
fn push_json(line: &mut String, text: &str) {
    line.push('"');
    for c in text.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if u32::from(c) < 0x20 => {
                write!(line, "\\u{:04x}", u32::from(c)).expect("writing to a string cannot fail");
            }
            c => line.push(c),
        }
    }
    line.push('"');
}

/// RFC 3339 in UTC, with microseconds.
pub(super) fn push_time(line: &mut String, time: SystemTime) {
    let (seconds, micros) = since_epoch(time);
    let (year, month, day) = civil(seconds / 86_400);
    let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    write!(
        line,
        "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{micros:06}Z"
    )
    .expect("writing to a string cannot fail");
}

/// Year, month and day of a day counted from 1970, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 1 March of the year 0, so that the leap day ends a year.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// What a person should know when a member has started.
pub(super) fn announcement(config: &Checked) -> String {
    let urls: Vec<_> = config
        .listen_client_urls
        .iter()
        .map(|url| url.as_str())
        .collect();
    let data = config.data_dir.display();
    let endpoint = config
        .advertise_client_urls
        .first()
        .map_or("", |url| url.as_str());
    let option = match endpoint {
        crate::config::DEFAULT_CLIENT_URL => String::new(),
        url => format!(" --endpoints={url}"),
    };
    let listens = urls.join(", ");
    let mut line = String::from("\x1b[1mready\x1b[0m ");
    let text =
        format!("listening on {listens}, data in {data}; try: etcdctl{option} put hello world");
    push_plain(&mut line, &text);
    line.push('\n');
    line
}
