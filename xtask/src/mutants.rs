//! Planted bugs: each patch of `crates/sim/mutants` is applied to a copy of the sources, and the
//! simulator must find it: `cargo xtask mutants`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};

/// Seeds that a bug may take.
const SEEDS: u64 = 3_000;

/// Says of each bug which seed has found it. `only`: those with this in their names. False if one was
/// not found.
pub(crate) fn run(only: Option<&str>) -> anyhow::Result<bool> {
    let root = root()?;
    let mut patches = patches(&root.join("crates/sim/mutants"))?;
    if let Some(only) = only {
        patches.retain(|patch| name(patch).contains(only));
    }
    ensure!(!patches.is_empty(), "there are no such mutants");
    let scratch = Scratch::new(&root)?;
    let mut all = true;
    for patch in &patches {
        let begun = Instant::now();
        let found = scratch.hunt(patch)?;
        let took = begun.elapsed().as_secs();
        match &found {
            Some(line) => eprintln!("found      {} ({took} s): {line}", name(patch)),
            None => eprintln!("NOT FOUND  {} ({took} s): {SEEDS} seeds", name(patch)),
        }
        all &= found.is_some();
    }
    eprintln!("mutants: {} planted", patches.len());
    Ok(all)
}

fn root() -> anyhow::Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.parent().context("xtask lies in the workspace")?;
    Ok(root.to_owned())
}

fn name(patch: &Path) -> String {
    let name = patch.file_stem().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn patches(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let mut patches = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "patch") {
            patches.push(path);
        }
    }
    patches.sort();
    Ok(patches)
}

/// A work tree in a temporary folder; it goes with this value.
struct Scratch {
    root: PathBuf,
    dir: PathBuf,
    target: PathBuf,
}

impl Scratch {
    /// The sources as they are committed. What is compiled goes to the folder of the workspace, so that
    /// crates of others are not compiled again.
    fn new(root: &Path) -> anyhow::Result<Scratch> {
        let dir = std::env::temp_dir().join(format!("keelson-mutants-{}", std::process::id()));
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let scratch = Scratch {
            root: root.to_owned(),
            target: target.unwrap_or_else(|| root.join("target")),
            dir,
        };
        let mut add = git(root);
        add.args(["worktree", "add", "--quiet", "--detach"]);
        done(add.arg(&scratch.dir).arg("HEAD"))?;
        Ok(scratch)
    }

    /// Plants a bug, and lets seeds run until one fails. The line that tells which.
    fn hunt(&self, patch: &Path) -> anyhow::Result<Option<String>> {
        done(git(&self.dir).arg("apply").arg(patch))
            .with_context(|| format!("{} does not fit the sources any more", name(patch)))?;
        let found = self.build().and_then(|()| self.search());
        done(git(&self.dir).args(["checkout", "--quiet", "."]))?;
        found
    }

    fn cargo(&self) -> Command {
        let mut command = Command::new("cargo");
        command
            .current_dir(&self.dir)
            .env("CARGO_TARGET_DIR", &self.target);
        command
    }

    fn build(&self) -> anyhow::Result<()> {
        let mut build = self.cargo();
        build.args(["build", "--quiet", "--locked", "-p", "keelson-sim"]);
        // Seeds cost a tenth of what they do unoptimized, and some bugs take a thousand.
        done(build.args(["--profile", "sim"]))
    }

    fn search(&self) -> anyhow::Result<Option<String>> {
        let mut program = Command::new(self.target.join("sim/keelson-sim"));
        let seeds = format!("0..{SEEDS}");
        let output = program
            .args(["--once", "--first", "--seeds", &seeds])
            .output()
            .context("start the simulator")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            return Ok(None);
        }
        let line = text.lines().find(|line| line.starts_with("seed "));
        match line {
            Some(line) => Ok(Some(line.chars().take(200).collect())),
            None => bail!(
                "the simulator ended by {}: {}",
                output.status,
                said(&output)
            ),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut remove = git(&self.root);
        remove.args(["worktree", "remove", "--force"]);
        if let Err(error) = done(remove.arg(&self.dir)) {
            eprintln!("mutants: {} stays behind: {error:#}", self.dir.display());
        }
    }
}

fn git(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(dir);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn done(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    let status: ExitStatus = output.status;
    ensure!(status.success(), "{command:?}: {status}: {}", said(&output));
    Ok(())
}
