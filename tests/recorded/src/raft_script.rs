//! The scripts of etcd-io/raft: commands with their expected output, one after the other.
//!
//! ```text
//! command argument key=value key=(value, value)
//! further input
//! ----
//! expected output, up to an empty line
//! ```

use std::path::Path;

use anyhow::{Context, bail, ensure};

/// One command.
#[derive(Debug)]
pub struct Command {
    /// Where it stands, from 1.
    pub line: usize,
    /// What to do.
    pub name: String,
    /// With what.
    pub arguments: Vec<Argument>,
    /// The lines between the command and the separator.
    pub input: String,
    /// What must come out, every line with its end.
    pub expected: String,
}

/// `key`, `key=value` or `key=(value, value)`.
#[derive(Debug)]
pub struct Argument {
    /// What stands before the `=`, or all of it.
    pub key: String,
    /// What stands behind it.
    pub values: Vec<String>,
}

impl Command {
    /// The numbers among the arguments without values.
    ///
    /// # Errors
    ///
    /// If one of them is no number.
    pub fn numbers(&self) -> anyhow::Result<Vec<u64>> {
        let bare = self.arguments.iter().filter(|one| one.values.is_empty());
        bare.map(|one| one.key.parse().with_context(|| one.key.clone()))
            .collect()
    }

    /// The first argument, which is a number.
    ///
    /// # Errors
    ///
    /// If it is none.
    pub fn first_number(&self) -> anyhow::Result<u64> {
        let first = self.arguments.first().context("a number is missing")?;
        first.key.parse().with_context(|| first.key.clone())
    }

    /// The value of `key`, if it is there once.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        let argument = self.arguments.iter().find(|one| one.key == key)?;
        match argument.values.as_slice() {
            [value] => Some(value),
            _ => None,
        }
    }
}

/// Reads a script.
///
/// # Errors
///
/// If the file cannot be read, or a command has no separator.
pub fn read(path: &Path) -> anyhow::Result<Vec<Command>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut commands = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let directive = line.trim();
        if directive.is_empty() || directive.starts_with('#') {
            continue;
        }
        let mut words = words(directive).into_iter();
        let mut command = Command {
            line: number + 1,
            name: words.next().unwrap_or_default(),
            arguments: words.map(|word| argument(&word)).collect(),
            input: String::new(),
            expected: String::new(),
        };
        loop {
            match lines.next() {
                Some((_, "----")) => break,
                Some((_, line)) => command.input += &format!("{line}\n"),
                None => bail!("{}: line {}: no ----", path.display(), command.line),
            }
        }
        for (_, line) in lines.by_ref().take_while(|(_, line)| !line.is_empty()) {
            command.expected += &format!("{line}\n");
        }
        commands.push(command);
    }
    Ok(commands)
}

/// Splits at spaces that are in no parentheses.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut depth = 0_usize;
    for char in line.chars() {
        match char {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        match words.last_mut() {
            Some(last) if char != ' ' || depth > 0 => last.push(char),
            _ => words.push(String::new()),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn argument(word: &str) -> Argument {
    let (key, values) = word.split_once('=').unwrap_or((word, ""));
    let inner = values.strip_prefix('(').and_then(|v| v.strip_suffix(')'));
    let values = inner.unwrap_or(values).split(',').map(str::trim);
    Argument {
        key: key.to_owned(),
        values: values
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
            .collect(),
    }
}

/// Runs a script; every command must give exactly what is expected.
///
/// # Errors
///
/// The first command that gives something else, with both texts.
pub fn replay(
    path: &Path,
    mut run: impl FnMut(&Command) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let commands = read(path)?;
    ensure!(!commands.is_empty(), "{}: no commands", path.display());
    for command in commands {
        let place = || format!("{}:{}: {}", path.display(), command.line, command.name);
        let mut given = run(&command).with_context(place)?;
        if !given.is_empty() && !given.ends_with('\n') {
            given.push('\n');
        }
        ensure!(
            given == command.expected,
            "{}\n--- expected\n{}--- given\n{given}",
            place(),
            command.expected
        );
    }
    Ok(())
}
