//! Text in quotes as Go's `%q` prints it; many of etcd's error texts carry it.

use std::fmt::Write;

/// `text` in double quotes, with quotes, backslashes and what cannot be printed escaped.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => {
                write!(out, "\\x{:02x}", u32::from(c)).expect("writing to a string cannot fail");
            }
            c if c.is_control() => {
                write!(out, "\\u{:04x}", u32::from(c)).expect("writing to a string cannot fail");
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_controls_are_escaped() {
        assert_eq!(quote("plain"), "\"plain\"");
        assert_eq!(
            quote("a\"b\\c\nd\u{1}\u{85}\u{e9}"),
            "\"a\\\"b\\\\c\\nd\\x01\\u0085\u{e9}\""
        );
    }
}
