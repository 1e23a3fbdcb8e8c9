//! Rust source with its strings and comments blanked, so that braces and words can be counted.

/// `text` with the same lines, where the inside of strings, characters and comments is blank.
pub(crate) fn masked(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => line_end(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => comment_end(&chars, at),
            '"' => string_end(&chars, at),
            'r' | 'b' | 'c' if !in_word(&chars, at) => prefixed_end(&chars, at),
            '\'' => character_end(&chars, at),
            _ => at,
        };
        if end == at {
            out.push(chars[at]);
            at += 1;
            continue;
        }
        out.extend(
            chars[at..end]
                .iter()
                .map(|c| if *c == '\n' { '\n' } else { ' ' }),
        );
        at = end;
    }
    out
}

fn in_word(chars: &[char], at: usize) -> bool {
    at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_')
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..]
        .iter()
        .position(|c| *c == '\n')
        .map_or(chars.len(), |n| at + n)
}

/// Block comments nest.
fn comment_end(chars: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (0_u32, at);
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => {
                (depth, i) = (depth - 1, i + 2);
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    chars.len()
}

/// The end of a string whose first quote stands at `at`.
fn string_end(chars: &[char], at: usize) -> usize {
    let mut i = at + 1;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// The end of `r"..."`, `r#"..."#`, `b"..."`, `br#"..."#`, `b'x'`; `at` when it is none of them.
fn prefixed_end(chars: &[char], at: usize) -> usize {
    let mut i = at;
    while matches!(chars.get(i), Some('r' | 'b' | 'c')) && i < at + 2 {
        i += 1;
    }
    let raw = chars[at..i].contains(&'r');
    let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
    match chars.get(i + hashes) {
        Some('"') if raw => {
            let mut end = i + hashes + 1;
            while end < chars.len() {
                let closes = chars[end] == '"'
                    && chars[end + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
                if closes {
                    return end + 1 + hashes;
                }
                end += 1;
            }
            chars.len()
        }
        Some('"') if hashes == 0 => string_end(chars, i),
        Some('\'') if hashes == 0 && !raw => character_end(chars, i),
        _ => at,
    }
}

/// The end of a character; `at` when the quote begins a lifetime.
fn character_end(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), Some(_)) => {
            let close = chars[at + 3..].iter().take(10).position(|c| *c == '\'');
            close.map_or(at, |n| at + 3 + n + 1)
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at,
    }
}

/// The first line (from 0) of the tests that end a file, or the number of lines.
pub(crate) fn tests_begin(masked: &str) -> usize {
    let lines: Vec<&str> = masked.lines().collect();
    let opens =
        |line: &&str| line.trim_start().starts_with("mod ") && line.trim_end().ends_with('{');
    (0..lines.len())
        .find(|at| lines[*at].trim() == "#[cfg(test)]" && lines[at + 1..].iter().take(3).any(opens))
        .unwrap_or(lines.len())
}

/// A function with a body: its name, its first line (from 0) and its number of lines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) lines: usize,
}

/// The functions of masked source, inner ones too.
pub(crate) fn functions(masked: &str) -> Vec<Function> {
    let bytes = masked.as_bytes();
    let mut found = Vec::new();
    for (at, _) in masked.match_indices("fn ") {
        if at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_') {
            continue;
        }
        let rest = masked[at + 3..].trim_start();
        let name: String = rest
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if name.is_empty() {
            continue;
        }
        let Some(open) = body_start(bytes, at) else {
            continue;
        };
        let close = body_end(bytes, open);
        let line = masked[..at].matches('\n').count();
        let lines = masked[at..close].matches('\n').count() + 1;
        found.push(Function { name, line, lines });
    }
    found
}

/// The brace that opens the body; `None` for a declaration.
fn body_start(bytes: &[u8], at: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (i, b) in bytes.iter().enumerate().skip(at) {
        match b {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(i),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

fn body_end(bytes: &[u8], open: usize) -> usize {
    let mut depth = 0_i32;
    for (i, b) in bytes.iter().enumerate().skip(open) {
        match b {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_comments_are_blank_and_lines_stay() {
        let text = "let a = \"{\\\"\"; // {\nlet b = r#\"\"{\"#; /* { /* */ } */ let c = '{';\nlet d: &'a str = b\"{\"; let e = '\\''; let f = b'{';\n";
        let out = masked(text);
        assert!(!out.contains('{') && !out.contains('}'), "{out}");
        assert_eq!(out.lines().count(), text.lines().count());
        assert!(out.contains("let c =") && out.contains("&'a str") && out.contains("let f ="));
    }

    #[test]
    fn functions_are_measured_with_their_bodies() {
        let text = "trait T { fn declared(&self) -> [u8; 2]; }\npub fn one() {\n    {}\n}\nfn two<F: Fn()>(f: F)\nwhere\n    F: Copy,\n{ f() }\n";
        let found = functions(&masked(text));
        let names: Vec<_> = found
            .iter()
            .map(|f| (f.name.as_str(), f.line, f.lines))
            .collect();
        assert_eq!(names, [("one", 1, 3), ("two", 4, 4)]);
    }

    #[test]
    fn tests_at_the_end_are_found() {
        assert_eq!(
            tests_begin("fn a() {}\n\n#[cfg(test)]\nmod tests {\n}\n"),
            2
        );
        assert_eq!(tests_begin("fn a() {}\n#[cfg(test)]\nmod tests;\n"), 3);
    }
}
