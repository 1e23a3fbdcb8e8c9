//! `cargo xtask tidy`: what reviewers should not have to look for.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

mod arrows;
mod length;
mod references;
mod words;

/// Something that is not tidy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Where: a path from the root of the repository, with a line where there is one.
    pub(crate) place: String,
    /// What.
    pub(crate) text: String,
    /// Whether it fails the check or is only told.
    pub(crate) fails: bool,
}

impl Finding {
    pub(crate) fn fail(place: impl Into<String>, text: impl Into<String>) -> Finding {
        Finding {
            place: place.into(),
            text: text.into(),
            fails: true,
        }
    }

    pub(crate) fn warn(place: impl Into<String>, text: impl Into<String>) -> Finding {
        Finding {
            place: place.into(),
            text: text.into(),
            fails: false,
        }
    }
}

/// A text file of the repository.
pub(crate) struct Source {
    /// From the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// Runs every check over the repository, prints what they found, and says whether all is tidy.
pub(crate) fn run() -> anyhow::Result<bool> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .exec()
        .context("cargo metadata")?;
    let root = metadata.workspace_root.clone().into_std_path_buf();
    let paths = tracked(&root)?;
    let sources = read(&root, &paths);
    let mut findings = length::check(&sources);
    findings.extend(words::check(&sources));
    findings.extend(references::check(&sources, |path| root.join(path).exists()));
    findings.extend(arrows::check(&arrows::edges(&metadata)));
    findings.sort_by(|a, b| (a.fails, &a.place).cmp(&(b.fails, &b.place)));
    for finding in &findings {
        let kind = if finding.fails { "error" } else { "warning" };
        eprintln!("{kind}: {}: {}", finding.place, finding.text);
    }
    let failed = findings.iter().filter(|finding| finding.fails).count();
    let warned = findings.len() - failed;
    eprintln!(
        "tidy: {} files, {failed} errors, {warned} warnings",
        sources.len()
    );
    Ok(failed == 0)
}

/// The files that belong to the repository, committed or about to be.
fn tracked(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = [
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ];
    let output = Command::new("git")
        .args(list)
        .current_dir(root)
        .output()
        .context("git ls-files")?;
    ensure!(
        output.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    Ok(names
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .collect())
}

/// Those that are text. One that was deleted, but not yet in the index, is skipped.
fn read(root: &Path, paths: &[PathBuf]) -> Vec<Source> {
    let one = |path: &PathBuf| {
        let text = String::from_utf8(std::fs::read(root.join(path)).ok()?).ok()?;
        Some(Source {
            path: path.to_str()?.replace('\\', "/"),
            text,
        })
    };
    paths.iter().filter_map(one).collect()
}
