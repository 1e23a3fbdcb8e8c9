//! The commands of `keelson bolt`, called by the name `bbolt`: exit codes, output and written files
//! are those that bbolt 1.5.0 gave for the same arguments and files.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Calls that are answered differently on purpose: by the first words behind the program's name.
const OURS: [&[&str]; 2] = [
    // It names two programs.
    &["version"],
    // The real text is of an older command and tells of errors that this one does not look for.
    &["stats", "--help"],
];

/// Lines of the real list of commands that ours lacks, and of ours that the real one lacks.
const COMMANDS: [&str; 2] = ["  completion ", "  shrink "];

fn folder() -> PathBuf {
    let data = std::env::var("KEELSON_DATA").expect("KEELSON_DATA names the recorded data");
    PathBuf::from(data).join("bolt")
}

/// The contents of `name`, which may be packed.
fn contents(name: &Path) -> Vec<u8> {
    if let Ok(plain) = std::fs::read(name) {
        return plain;
    }
    let packed = std::fs::read(name.with_added_extension("gz")).unwrap();
    unpack(&packed)
}

fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut contents = Vec::new();
    flate2::read::GzDecoder::new(packed)
        .read_to_end(&mut contents)
        .unwrap();
    contents
}

fn hex_sum(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The program under the name `bbolt`, in `dir`.
fn program(dir: &Path) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().unwrap().parent().unwrap().join("keelson");
    assert!(
        built.exists(),
        "{} is missing: run `cargo build -p keelson-cli` first",
        built.display()
    );
    let link = dir.join("bbolt");
    std::os::unix::fs::symlink(built, &link).unwrap();
    link
}

/// Text without the lines that are known to differ.
fn comparable(text: &str) -> String {
    let kept = text.lines().filter(|line| {
        let known = COMMANDS.iter().any(|name| line.starts_with(name));
        !known
    });
    kept.fold(String::new(), |text, line| text + line + "\n")
}

struct Call<'a> {
    recorded: &'a Value,
    dir: &'a Path,
}

impl Call<'_> {
    /// Runs it and gives what differs.
    fn run(&self, bbolt: &Path) -> Vec<String> {
        let arguments: Vec<&str> = self.recorded["args"]
            .as_array()
            .unwrap()
            .iter()
            .skip(1)
            .map(|argument| argument.as_str().unwrap())
            .collect();
        if OURS.iter().any(|ours| arguments.starts_with(ours)) {
            return Vec::new();
        }
        let done = Command::new(bbolt)
            .args(&arguments)
            .current_dir(self.dir)
            .output()
            .unwrap();
        let mut differ = Vec::new();
        let mut compare = |what: &str, same: bool| {
            if !same {
                differ.push(format!("{arguments:?}: {what} differs"));
            }
        };
        let code = self.recorded["exit"].as_i64();
        compare("exit code", done.status.code().map(i64::from) == code);
        let stderr = String::from_utf8(done.stderr).unwrap();
        compare(
            "stderr",
            Some(&stderr[..]) == self.recorded["stderr"].as_str(),
        );
        match self.recorded["stdout_sha256"].as_str() {
            Some(sum) => compare("stdout", hex_sum(&done.stdout) == sum),
            None => {
                // Bytes that are no text were recorded escaped.
                let mut stdout = String::new();
                for chunk in done.stdout.utf8_chunks() {
                    stdout += chunk.valid();
                    stdout.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
                }
                let expected = self.recorded["stdout"].as_str().unwrap();
                compare("stdout", comparable(&stdout) == comparable(expected));
            }
        }
        let written = std::fs::read(self.dir.join("out.db")).ok();
        let recorded = &self.recorded["output_file"];
        compare(
            "whether a file is written",
            written.is_some() != recorded.is_null(),
        );
        if let Some(written) = written {
            // Where pages are allocated anew their numbers are another matter.
            let anew = arguments[0] == "compact" || arguments.contains(&"rebuild");
            let sum = recorded["file_sha256"].as_str().unwrap();
            compare("the written file", anew || hex_sum(&written) == sum);
            if anew {
                compare("what is in the written file", sound(written, recorded));
            }
        }
        differ
    }
}

/// Whether the written file passes the check and has the recorded number of keys in each bucket.
fn sound(contents: Vec<u8>, recorded: &Value) -> bool {
    let storage = keelson_bolt::MemStorage::with_contents(&contents);
    let options = keelson_bolt::Options {
        read_only: true,
        ..keelson_bolt::Options::default()
    };
    let db = keelson_bolt::Db::open_storage(Box::new(storage), options).unwrap();
    let tx = db.begin_read().unwrap();
    let buckets = recorded["buckets"].as_array().unwrap();
    let same = buckets.iter().all(|expected| {
        let name = expected["name_hex"].as_str().unwrap();
        let name: Vec<u8> = (0..name.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&name[at..at + 2], 16).unwrap())
            .collect();
        let bucket = tx.bucket(&name).unwrap().unwrap();
        let values = bucket
            .iter()
            .filter(|entry| entry.as_ref().unwrap().1.is_some());
        Some(values.count() as u64) == expected["keys"].as_u64()
    });
    same && tx.cursor().first().unwrap().is_some() != buckets.is_empty()
        && keelson_bolt::check(&tx).is_empty()
}

#[test]
fn every_recorded_call_of_bbolt_is_answered_alike() {
    let programs = tempfile::tempdir().unwrap();
    let bbolt = program(programs.path());
    let (mut calls, mut differ) = (0, Vec::new());
    for entry in std::fs::read_dir(folder().join("cli")).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        let (name, _) = file.split_once('.').unwrap();
        let mut lines = std::fs::read(&path).unwrap();
        if file.ends_with(".gz") {
            lines = unpack(&lines);
        }
        let db = (name != "help").then(|| contents(&folder().join(format!("{name}.db"))));
        for line in String::from_utf8(lines).unwrap().lines() {
            let recorded: Value = serde_json::from_str(line).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let copy = dir.path().join(format!("{name}.db"));
            if let Some(db) = &db {
                std::fs::write(&copy, db).unwrap();
            }
            let call = Call {
                recorded: &recorded,
                dir: dir.path(),
            };
            differ.extend(call.run(&bbolt));
            calls += 1;
            if let Some(db) = &db {
                let now = std::fs::read(&copy).unwrap();
                assert!(now == *db, "{line} changed its input");
            }
        }
    }
    assert!(calls > 500, "{calls} calls");
    assert!(
        differ.is_empty(),
        "{} of {calls}:\n{}",
        differ.len(),
        differ.join("\n")
    );
}
