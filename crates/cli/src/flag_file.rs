//! The configuration file: etcd's YAML or JSON (api.md 5.3).
//!
//! Keys match without regard to case, unknown ones pass, durations are whole nanoseconds, and a
//! list of URLs is one text with commas. With a file, nothing else is looked at.

use std::path::Path;

use keelson_server::config::{Config, GoDuration};
use keelson_server::url::Url;
use serde_json::{Map, Value};

use crate::flags::{FLAGS, Flag, Form, Key, Target};

/// A file larger than this is no configuration.
const LARGEST: u64 = 16 * 1024 * 1024;

/// Why a file gives no configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileError {
    /// It cannot be read, or a key does not fit; told as `failed to verify flags`.
    Verify(String),
    /// A list of URLs is wrong; etcd prints this line as it is and exits with 1.
    Plain(String),
}

/// Reads the file at `path`.
///
/// # Errors
/// When it cannot be read or is no YAML, or a value does not fit its key.
pub fn load(path: &Path) -> Result<Config, FileError> {
    let failed = |cause: String| FileError::Verify(format!("open {}: {cause}", path.display()));
    let size = std::fs::metadata(path)
        .map_err(|error| failed(go_error(&error)))?
        .len();
    if size > LARGEST {
        return Err(failed(format!("{size} bytes are no configuration")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(go_error(&error)))?;
    parse(&text)
}

/// An error of the system in the words of Go.
fn go_error(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => "no such file or directory".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        ErrorKind::IsADirectory => "is a directory".to_owned(),
        _ => error.to_string(),
    }
}

/// Reads the text of a file.
///
/// # Errors
/// When it is no YAML, or a value does not fit its key.
pub fn parse(text: &str) -> Result<Config, FileError> {
    let mut config = Config::default();
    let wrong =
        |cause: String| FileError::Verify(format!("error converting YAML to JSON: yaml: {cause}"));
    // An empty document, or one of comments alone, sets nothing.
    let value: Option<Value> =
        serde_saphyr::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let root = match value {
        None | Some(Value::Null) => return Ok(config),
        Some(Value::Object(root)) => root,
        Some(other) => return Err(mismatch(&other, "configYAML", "main.configYAML")),
    };
    for flag in FLAGS {
        let path = match flag.key {
            Key::Name => flag.name,
            Key::At(path) => path,
            Key::None => continue,
        };
        if let Some(value) = lookup(&root, path)? {
            set(&mut config, flag, path, value)?;
        }
    }
    Ok(config)
}

/// The value at a path of sections and key; `null` counts as absent.
fn lookup<'a>(root: &'a Map<String, Value>, path: &str) -> Result<Option<&'a Value>, FileError> {
    let mut section = root;
    let mut parts = path.split('.').peekable();
    while let Some(part) = parts.next() {
        let Some(value) = get(section, part).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        if parts.peek().is_none() {
            return Ok(Some(value));
        }
        section = match value {
            Value::Object(inner) => inner,
            _ if part == "peer-transport-security" => {
                return Err(FileError::Verify(format!("invalid {part}")));
            }
            other => return Err(mismatch(other, part, "struct")),
        };
    }
    Ok(None)
}

/// The exact key, or else one that differs in case alone.
fn get<'a>(section: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    section.get(key).or_else(|| {
        section
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value)
    })
}

/// Puts one value where its flag's value goes.
fn set(config: &mut Config, flag: &Flag, path: &str, value: &Value) -> Result<(), FileError> {
    let misfit = || mismatch(value, path, flag.target.go_type());
    let verify = |cause: String| FileError::Verify(cause);
    let text = match (flag.target, value) {
        (Target::Urls(field), Value::String(text)) => {
            if !text.is_empty() {
                *field(config) = parse_urls(flag.name, text)?;
                config.set_flags.push(flag.name);
            }
            return Ok(());
        }
        (Target::Duration(field), Value::Number(number)) => {
            let nanos = number.as_i64().ok_or_else(misfit)?;
            *field(config) = flag.not_negative(GoDuration(nanos)).map_err(verify)?;
            config.set_flags.push(flag.name);
            return Ok(());
        }
        (Target::NotYet(Form::Duration), Value::Number(number)) => {
            GoDuration(number.as_i64().ok_or_else(misfit)?).to_string()
        }
        (Target::List(_) | Target::NotYet(Form::List), Value::Array(items)) => {
            let items: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            items.ok_or_else(misfit)?.join(",")
        }
        (Target::Bool(_) | Target::NotYet(Form::Bool), Value::Bool(on)) => on.to_string(),
        (Target::Bool(_) | Target::NotYet(Form::Bool), Value::String(word)) => {
            old_boolean(word).ok_or_else(misfit)?.to_string()
        }
        (
            Target::U32(_)
            | Target::U64(_)
            | Target::I64(_)
            | Target::NotYet(Form::Unsigned | Form::Signed),
            Value::Number(number),
        ) => number.to_string(),
        (Target::Own(_), Value::Number(number)) if flag.name == "max-concurrent-streams" => {
            number.to_string()
        }
        (
            Target::Text(_) | Target::Path(_) | Target::Own(_) | Target::NotYet(Form::Text),
            Value::String(text),
        ) if flag.name != "max-concurrent-streams" => text.clone(),
        _ => return Err(misfit()),
    };
    set_text(config, flag, text.as_str()).map_err(|cause| match flag.target {
        Target::U32(_) | Target::U64(_) | Target::I64(_) | Target::NotYet(_) => misfit(),
        _ => FileError::Verify(cause),
    })
}

/// Values that the file takes, and the flag does not, or in other words.
fn set_text(config: &mut Config, flag: &Flag, text: &str) -> Result<(), String> {
    match (flag.name, text) {
        // Emptiness means the default here.
        (
            "initial-cluster-state"
            | "initial-cluster"
            | "v2-deprecation"
            | "cors"
            | "host-whitelist",
            "",
        ) => Ok(()),
        ("initial-cluster-state", other) if !["new", "existing"].contains(&other) => {
            Err(keelson_server::config::ConfigError::ClusterState(other.to_owned()).to_string())
        }
        ("self-signed-cert-validity", "0") => Ok(()),
        _ => flag.set(config, text),
    }
}

/// Booleans of YAML 1.1 that later ones read as text.
fn old_boolean(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "yes" | "on" | "y" => Some(true),
        "no" | "off" | "n" => Some(false),
        _ => None,
    }
}

/// A list of URLs. The file's list is sorted, too.
fn parse_urls(key: &str, text: &str) -> Result<Vec<Url>, FileError> {
    Url::parse_list(text)
        .map_err(|cause| FileError::Plain(format!("unexpected error setting up {key}: {cause}")))
}

/// The text of Go's JSON decoder.
fn mismatch(value: &Value, key: &str, go_type: &str) -> FileError {
    let kind = match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number) if number.is_i64() || number.is_u64() => "number".to_owned(),
        Value::Number(number) => format!("number {number}"),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    };
    FileError::Verify(format!(
        "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {kind} into Go \
         struct field configYAML.{key} of type {go_type}"
    ))
}

#[cfg(test)]
mod tests;
