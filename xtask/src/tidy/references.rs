//! Paths that documents name and that do not exist.

use super::{Finding, Source};

/// Folders at the root whose paths are looked for in code spans.
const FOLDERS: [&str; 8] = [
    "crates/",
    "docs/",
    "tests/",
    "xtask/",
    "testdata/",
    "bench/",
    ".ci/",
    ".cargo/",
];

/// `exists` says whether a path from the root is there.
pub(super) fn check(sources: &[Source], exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| source.path.ends_with(".md")) {
        if source.path.contains("testdata/") {
            continue;
        }
        let mut fenced = false;
        for (number, line) in source.text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
                continue;
            }
            if fenced {
                continue;
            }
            let missing = spans(line)
                .chain(links(line, &source.path))
                .filter(|path| !exists(path) && !exists(&beside(&source.path, path)));
            for path in missing {
                let place = format!("{}:{}", source.path, number + 1);
                findings.push(Finding::fail(place, format!("`{path}` does not exist")));
            }
        }
    }
    findings
}

/// Paths in code spans: those that begin with a folder of the root and are no patterns.
fn spans(line: &str) -> impl Iterator<Item = String> {
    let inside = line.split('`').skip(1).step_by(2);
    let words = inside.filter(|span| !span.contains(char::is_whitespace));
    words
        .map(|span| span.trim_start_matches("./"))
        .filter(|span| FOLDERS.iter().any(|folder| span.starts_with(folder)))
        .filter(|span| !span.contains(['*', '<', '{', '$', '|', '(']))
        .map(|span| span.split(['#', ':']).next().unwrap_or(span).to_owned())
}

/// Targets of links that are not elsewhere, from the root.
fn links(line: &str, document: &str) -> impl Iterator<Item = String> {
    let folder = document.rsplit_once('/').map_or("", |(folder, _)| folder);
    let targets = line
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'));
    let local = targets.map(|(target, _)| target.split('#').next().unwrap_or(target));
    local
        .filter(|target| {
            !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:")
        })
        .map(|target| normal(&format!("{folder}/{target}")))
        .collect::<Vec<_>>()
        .into_iter()
}

/// A path as seen from the folder of the document, for what a crate's page says of its tests.
fn beside(document: &str, path: &str) -> String {
    let folder = document.rsplit_once('/').map_or("", |(folder, _)| folder);
    normal(&format!("{folder}/{path}"))
}

/// The path without `.` and `..`.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_has_to_exist() {
        let text = "See `crates/a/src/x.rs`, `crates/a/src/gone.rs`, `crates/*/y` and `x.rs`.\n\
                    [a](../README.md) [b](gone.md#part) [c](https://a.example) [d](#here)\n\
                    ```\n`crates/in/a/fence`\n```\n`crates/a/src/x.rs:12` `tests/own.rs`\n";
        let source = Source {
            path: "docs/a.md".to_owned(),
            text: text.to_owned(),
        };
        let there = ["crates/a/src/x.rs", "README.md", "docs/tests/own.rs"];
        let findings = check(&[source], |path| there.contains(&path));
        let texts: Vec<_> = findings
            .iter()
            .map(|f| (f.place.as_str(), f.text.as_str()))
            .collect();
        assert_eq!(
            texts,
            [
                ("docs/a.md:1", "`crates/a/src/gone.rs` does not exist"),
                ("docs/a.md:2", "`docs/gone.md` does not exist"),
            ]
        );
    }
}
