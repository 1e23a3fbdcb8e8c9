//! Words that must not stand alone: open ends without an issue, and paths of somebody's machine.

use super::{Finding, Source};

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let own = |source: &&Source| !source.path.contains("testdata/") && source.path != "Cargo.lock";
    sources.iter().filter(own).flat_map(check_one).collect()
}

fn check_one(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        let place = || format!("{}:{}", source.path, number + 1);
        for word in open_ends() {
            if line
                .match_indices(&word)
                .any(|(at, _)| is_bare(line, at, word.len()))
            {
                findings.push(Finding::fail(
                    place(),
                    format!("{word} without an issue: {word}(#1)"),
                ));
            }
        }
        for path in machine_paths() {
            if line
                .match_indices(&path)
                .any(|(at, _)| begins_path(line, at))
            {
                findings.push(Finding::fail(
                    place(),
                    format!("a path of one machine: {path}"),
                ));
            }
        }
    }
    findings
}

/// In parts, so that this file does not hold them.
fn open_ends() -> [String; 2] {
    [["TO", "DO"].concat(), ["FIX", "ME"].concat()]
}

/// In parts, for the same reason.
fn machine_paths() -> [String; 4] {
    ["home", "Users", "root", "work"].map(|name| format!("/{name}/"))
}

/// A word of its own that is not followed by `(#123)` or ` #123`.
fn is_bare(line: &str, at: usize, length: usize) -> bool {
    let letter = |c: char| c.is_alphanumeric() || c == '_';
    let (before, after) = (&line[..at], &line[at + length..]);
    if before.ends_with(letter) || after.starts_with(letter) {
        return false;
    }
    let number = after.trim_start_matches(['(', ' ', ':']).strip_prefix('#');
    !number.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Whether a path starts here, rather than in the middle of one or of a URL.
fn begins_path(line: &str, at: usize) -> bool {
    let before = line[..at].chars().next_back();
    !before.is_some_and(|c| c.is_alphanumeric() || "._-/}$*>".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> usize {
        check(&[Source {
            path: "crates/a/src/a.rs".to_owned(),
            text: line.to_owned(),
        }])
        .len()
    }

    #[test]
    fn open_ends_name_their_issue() {
        let [word, other] = open_ends();
        assert_eq!(found(&format!("// {word}: later")), 1);
        assert_eq!(found(&format!("// {other}")), 1);
        assert_eq!(found(&format!("// {word}(#12): later")), 0);
        assert_eq!(found(&format!("// {word} #12")), 0);
        assert_eq!(found(&format!("let {word}_LIST = 1;")), 0);
    }

    #[test]
    fn paths_of_a_machine_are_found_where_they_begin() {
        let [home, _, root, _] = machine_paths();
        assert_eq!(found(&format!("\"{home}me/x\"")), 1);
        assert_eq!(found(&format!("cd {root}x")), 1);
        assert_eq!(found(&format!("crates/a{root}x")), 0);
        assert_eq!(found(&format!("https://a.example{home}x")), 0);
    }
}
