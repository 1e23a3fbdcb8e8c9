//! Files and functions that have grown too long. Tests are not counted.

use super::{Finding, Source};
use crate::source::{functions, masked, tests_begin};

const FILE_WARNS: usize = 800;
const FILE_FAILS: usize = 1_200;
const FUNCTION_WARNS: usize = 70;

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let counted = |source: &&Source| {
        source.is_rust() && !source.path.ends_with("/tests.rs") && !source.path.contains("/tests/")
    };
    sources.iter().filter(counted).flat_map(check_one).collect()
}

fn check_one(source: &Source) -> Vec<Finding> {
    let masked = masked(&source.text);
    let lines = tests_begin(&masked);
    let mut findings = Vec::new();
    if lines > FILE_FAILS {
        let text = format!("{lines} lines without tests, {FILE_FAILS} are allowed: split it");
        findings.push(Finding::fail(&source.path, text));
    } else if lines > FILE_WARNS {
        let text = format!("{lines} lines without tests ask for a split ({FILE_WARNS})");
        findings.push(Finding::warn(&source.path, text));
    }
    for function in functions(&masked) {
        if function.line < lines && function.lines > FUNCTION_WARNS {
            let place = format!("{}:{}", source.path, function.line + 1);
            let (name, lines) = (function.name, function.lines);
            findings.push(Finding::warn(place, format!("fn {name} has {lines} lines")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: String) -> Source {
        Source {
            path: path.to_owned(),
            text,
        }
    }

    #[test]
    fn files_fail_past_the_limit_and_tests_do_not_count() {
        let long = "// x\n".repeat(FILE_FAILS + 1);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{long}}}\n");
        let findings = check(&[
            source("crates/a/src/long.rs", long.clone()),
            source("crates/a/src/warned.rs", "// x\n".repeat(FILE_WARNS + 1)),
            source("crates/a/src/inline.rs", tests),
            source("crates/a/src/x/tests.rs", long.clone()),
            source("crates/a/tests/x.rs", long.clone()),
            source("docs/x.md", long),
        ]);
        let places: Vec<_> = findings
            .iter()
            .map(|f| (f.place.as_str(), f.fails))
            .collect();
        assert_eq!(
            places,
            [
                ("crates/a/src/long.rs", true),
                ("crates/a/src/warned.rs", false)
            ]
        );
    }

    #[test]
    fn long_functions_are_told() {
        let text = format!(
            "fn a() {{}}\nfn b() {{\n{}}}\n",
            "    x();\n".repeat(FUNCTION_WARNS)
        );
        let findings = check(&[source("crates/a/src/a.rs", text)]);
        assert_eq!(
            findings,
            [Finding::warn("crates/a/src/a.rs:2", "fn b has 72 lines")]
        );
    }
}
