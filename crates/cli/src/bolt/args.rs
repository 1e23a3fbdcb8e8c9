//! Flags and arguments as bbolt's command line reads them.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};

use super::commands::{Arity, Command, Flag, Kind};

/// What a command line asks for.
pub(super) enum Parsed {
    Help,
    Version,
    Call(Call),
}

/// The arguments of a command.
pub(super) struct Call {
    pub(super) arguments: Vec<String>,
    given: BTreeMap<&'static str, String>,
    flags: &'static [Flag],
}

impl Call {
    /// The text of flag `name`, or its default.
    pub(super) fn text(&self, name: &str) -> &str {
        match self.given.get(name) {
            Some(value) => value,
            None => {
                let flag = self.flags.iter().find(|flag| flag.name == name);
                flag.expect("a flag of the command").default
            }
        }
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        self.text(name) == "true"
    }

    /// The number of flag `name`; 0 by default.
    pub(super) fn number<T: std::str::FromStr + Default>(&self, name: &str) -> T {
        // The parser has seen that it is one.
        self.text(name).parse().unwrap_or_default()
    }
}

/// Reads `rest`, the arguments behind the command's name.
pub(super) fn parse(command: &'static Command, path: &str, rest: &[String]) -> Result<Parsed> {
    let mut call = Call {
        arguments: Vec::new(),
        given: BTreeMap::new(),
        flags: command.flags,
    };
    let mut rest = rest.iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            call.arguments.extend(rest.by_ref().cloned());
        } else if let Some(long) = argument.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            match (name, command.is_root()) {
                ("help", _) => return Ok(Parsed::Help),
                ("version", true) => return Ok(Parsed::Version),
                _ => {}
            }
            let flag = command.flags.iter().find(|flag| flag.name == name);
            let flag = flag.ok_or_else(|| anyhow!("unknown flag: --{name}"))?;
            let missing = || anyhow!("flag needs an argument: --{name}");
            set(&mut call, flag, value, &mut rest, missing)?;
        } else if argument.len() > 1 && argument.starts_with('-') {
            let shorts = &argument[1..];
            let Some(short) = shorts.chars().next() else {
                continue;
            };
            match (short, command.is_root()) {
                ('h', _) => return Ok(Parsed::Help),
                ('v', true) => return Ok(Parsed::Version),
                _ => {}
            }
            let flag = command.flags.iter().find(|flag| flag.short == Some(short));
            let flag =
                flag.ok_or_else(|| anyhow!("unknown shorthand flag: {short:?} in -{shorts}"))?;
            let tail = &shorts[short.len_utf8()..];
            let tail = tail.strip_prefix('=').unwrap_or(tail);
            let value = (!tail.is_empty()).then(|| tail.to_owned());
            let missing = || anyhow!("flag needs an argument: {short:?} in -{shorts}");
            set(&mut call, flag, value, &mut rest, missing)?;
        } else {
            call.arguments.push(argument.clone());
        }
    }
    if command.is_root() && call.arguments.is_empty() || command.is_group() && !command.is_root() {
        return Ok(Parsed::Help);
    }
    arity(command, path, &call)?;
    let unset = command.flags.iter().filter(|flag| flag.required);
    let unset: Vec<String> = unset
        .filter(|flag| !call.given.contains_key(flag.name))
        .map(|flag| format!("\"{}\"", flag.name))
        .collect();
    if !unset.is_empty() {
        bail!("required flag(s) {} not set", unset.join(", "));
    }
    Ok(Parsed::Call(call))
}

/// Takes a flag's value, which may be the next argument.
fn set(
    call: &mut Call,
    flag: &Flag,
    value: Option<String>,
    rest: &mut std::slice::Iter<'_, String>,
    missing: impl FnOnce() -> anyhow::Error,
) -> Result<()> {
    let value = match (value, flag.kind) {
        (Some(value), _) => value,
        (None, Kind::Bool) => "true".to_owned(),
        (None, _) => rest.next().ok_or_else(missing)?.clone(),
    };
    let checked = match flag.kind {
        Kind::Text | Kind::Texts => Ok(()),
        Kind::Bool => number("ParseBool", &value, go_bool(&value).is_some()),
        Kind::Int => number("ParseInt", &value, value.parse::<i64>().is_ok()),
        Kind::Uint => number("ParseUint", &value, value.parse::<u64>().is_ok()),
        Kind::Uint32 => number("ParseUint", &value, value.parse::<u32>().is_ok()),
        Kind::Float => number("ParseFloat", &value, value.parse::<f64>().is_ok()),
    };
    if let Err(error) = checked {
        let name = match flag.short {
            Some(short) => format!("-{short}, --{}", flag.name),
            None => format!("--{}", flag.name),
        };
        bail!("invalid argument {value:?} for {name:?} flag: {error}");
    }
    let value = match flag.kind {
        Kind::Bool => go_bool(&value).unwrap_or_default().to_string(),
        _ => value,
    };
    call.given.insert(flag.name, value);
    Ok(())
}

fn go_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// What Go says of a text that is no number.
fn number(parser: &str, value: &str, fits: bool) -> Result<()> {
    if fits {
        return Ok(());
    }
    let digits = value.strip_prefix(['-', '+']).unwrap_or(value);
    let whole = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let negative = parser == "ParseUint" && value.starts_with(['-', '+']);
    let what = if whole && !negative {
        "value out of range"
    } else {
        "invalid syntax"
    };
    bail!("strconv.{parser}: parsing {value:?}: {what}")
}

/// A number among the arguments.
pub(super) fn parse_uint(value: &str) -> Result<u64> {
    number(
        "ParseUint",
        value,
        value.parse::<u64>().is_ok() && !value.starts_with('+'),
    )?;
    Ok(value.parse()?)
}

fn arity(command: &Command, path: &str, call: &Call) -> Result<()> {
    let n = call.arguments.len();
    match command.arity {
        Arity::Group => {
            let first = call.arguments.first().map_or("", String::as_str);
            bail!("unknown command {first:?} for {path:?}")
        }
        Arity::Exactly(want) if n != want => bail!("accepts {want} arg(s), received {n}"),
        Arity::AtLeast(want) if n < want => {
            bail!("requires at least {want} arg(s), only received {n}")
        }
        Arity::Between(least, most) if n < least || n > most => {
            bail!("accepts between {least} and {most} arg(s), received {n}")
        }
        _ => Ok(()),
    }
}
