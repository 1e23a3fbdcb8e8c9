//! `ETCD_*` variables: each flag has one (api.md 5.2).

use std::collections::BTreeSet;

use keelson_server::config::{Config, quote};
use tracing::{error, info, warn};

use super::FLAGS;

/// What was found on the way to a configuration, for the log, which is set up only after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A variable set a flag.
    Used {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// A variable that looks like a flag's and is none: `name=value`.
    Unrecognized(String),
    /// `ETCD_VERSION`, which stands in many environments and sets nothing.
    Special(String),
    /// The file that everything came from.
    File(String),
}

impl Note {
    /// Writes it to the log in etcd's words.
    pub fn log(&self) {
        match self {
            Note::Used { name, value } => info!(
                "variable-name" = name.as_str(),
                "variable-value" = value.as_str(),
                "recognized and used environment variable"
            ),
            Note::Unrecognized(pair) => {
                warn!(
                    "environment-variable" = pair.as_str(),
                    "unrecognized environment variable"
                );
            }
            Note::Special(value) => warn!(
                "key" = "ETCD_VERSION",
                "value" = value.as_str(),
                "cannot set special environment variable"
            ),
            Note::File(path) => info!(
                "path" = path.as_str(),
                "loaded server configuration, other configuration command line flags and \
                 environment variables will be ignored if provided"
            ),
        }
    }
}

/// Why the environment cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvironmentError {
    /// A variable and its flag are both set.
    Shadowed(String),
    /// A value that its flag does not take, in etcd's words.
    Value(String),
}

impl EnvironmentError {
    /// Writes the line of a conflict; a wrong value is told with the other verification errors.
    pub fn log_shadowed(name: &str) {
        error!(
            level = "fatal",
            "environment-variable" = name,
            "conflicting environment variable is shadowed by corresponding command-line flag \
             (either unset environment variable or disable flag))"
        );
    }
}

/// Sets from `environment` what the command line did not set. Empty variables set nothing.
///
/// # Errors
/// When a variable and its flag are both set, or a value is wrong.
pub fn apply_environment(
    config: &mut Config,
    environment: &[(String, String)],
) -> Result<Vec<Note>, EnvironmentError> {
    let mut notes = Vec::new();
    let value_of = |name: &str| {
        environment
            .iter()
            .find(|(key, value)| key == name && !value.is_empty())
            .map(|(_, v)| v)
    };
    if let Some(value) = value_of("ETCD_VERSION") {
        notes.push(Note::Special(value.clone()));
    }
    let by_flag: BTreeSet<String> = FLAGS
        .iter()
        .filter(|f| config.is_set(f.name))
        .map(super::Flag::variable)
        .collect();
    let mut used = BTreeSet::from(["ETCD_VERSION".to_owned()]);
    for flag in FLAGS {
        let name = flag.variable();
        if by_flag.contains(&name) || used.contains(&name) {
            continue;
        }
        let Some(value) = value_of(&name) else {
            continue;
        };
        flag.set(config, value).map_err(|cause| {
            EnvironmentError::Value(format!(
                "invalid value {} for {name}: {cause}",
                quote(value)
            ))
        })?;
        notes.push(Note::Used {
            name: name.clone(),
            value: value.clone(),
        });
        used.insert(name);
    }
    for (name, value) in environment {
        if by_flag.contains(name) {
            return Err(EnvironmentError::Shadowed(name.clone()));
        }
        if name.starts_with("ETCD_") && !used.contains(name) {
            notes.push(Note::Unrecognized(format!("{name}={value}")));
        }
    }
    if config.is_set("listen-client-urls") && !config.is_set("advertise-client-urls") {
        config.advertise_client_urls.clear();
    }
    Ok(notes)
}
