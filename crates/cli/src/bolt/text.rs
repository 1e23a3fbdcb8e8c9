//! Bytes as texts, in the forms that bbolt offers, and numbers as Go prints them.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use sha2::{Digest, Sha256};

/// Bytes in one of the output formats.
pub(super) fn format_bytes(bytes: &[u8], format: &str) -> Result<Vec<u8>> {
    Ok(match format {
        "ascii-encoded" => quote(bytes).into_bytes(),
        "hex" => hex(bytes).into_bytes(),
        "bytes" => bytes.to_vec(),
        "auto" => text_or_hex(bytes).into_bytes(),
        "redacted" => {
            let sum = hex(&Sha256::digest(bytes));
            format!("<redacted len:{} sha256:{sum}>", bytes.len()).into_bytes()
        }
        other => bail!("formatBytes: unsupported format: {other}"),
    })
}

/// Bytes from one of the input formats.
pub(super) fn parse_bytes(text: &str, format: &str) -> Result<Vec<u8>> {
    match format {
        "ascii-encoded" => Ok(text.as_bytes().to_vec()),
        "hex" => unhex(text),
        other => bail!("parseBytes: unsupported format: {other}"),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    if let Some(byte) = text.bytes().find(|byte| !byte.is_ascii_hexdigit()) {
        let shown = char::from(byte);
        bail!("encoding/hex: invalid byte: U+{byte:04X} {shown:?}");
    }
    if !text.len().is_multiple_of(2) {
        bail!("encoding/hex: odd length hex string");
    }
    let pairs = (0..text.len()).step_by(2);
    Ok(pairs
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16))
        .collect::<Result<_, _>>()?)
}

/// The text, if all of it can be printed, else its bytes in hex.
pub(super) fn text_or_hex(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(is_print) => text.to_owned(),
        _ => hex(bytes),
    }
}

/// A key on a page: quoted if it can be printed, else in hex.
pub(super) fn key_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(is_print) => quote(bytes),
        _ => hex(bytes),
    }
}

/// Whether Go counts it among what can be printed: letters, marks, numbers, punctuation, symbols,
/// and of the spaces only the ASCII one.
fn is_print(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    // The standard library escapes exactly the others, but for a mark at a text's beginning.
    let text = format!("a{c}");
    text.escape_debug().eq(text.chars())
}

/// As Go quotes a text: what cannot be printed is escaped.
pub(super) fn quote(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                '\x07' => out += "\\a",
                '\x08' => out += "\\b",
                '\x0c' => out += "\\f",
                '\n' => out += "\\n",
                '\r' => out += "\\r",
                '\t' => out += "\\t",
                '\x0b' => out += "\\v",
                c if is_print(c) => out.push(c),
                c if c.is_ascii() => out += &format!("\\x{:02x}", u32::from(c)),
                c if u32::from(c) < 0x1_0000 => out += &format!("\\u{:04x}", u32::from(c)),
                c => out += &format!("\\U{:08x}", u32::from(c)),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out.push('"');
    out
}

/// A text in JSON, as Go writes it: safe inside of HTML, and what is no text is replaced.
pub(super) fn json(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                '\x08' => out += "\\b",
                '\x0c' => out += "\\f",
                '\n' => out += "\\n",
                '\r' => out += "\\r",
                '\t' => out += "\\t",
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\x1f' => {
                    let _ = write!(out, "\\u{:04x}", u32::from(c));
                }
                c => out.push(c),
            }
        }
        for _ in chunk.invalid() {
            out += "\\ufffd";
        }
    }
    out.push('"');
    out
}

/// A time as Go prints it: in the largest unit that leaves a whole number in front.
pub(super) fn duration(nanos: u128) -> String {
    let decimal = |unit: u128, name: &str| {
        let (whole, rest) = (nanos / unit, nanos % unit);
        let digits = unit.ilog10() as usize;
        let rest = format!("{rest:0digits$}");
        let rest = rest.trim_end_matches('0');
        match rest {
            "" => format!("{whole}{name}"),
            rest => format!("{whole}.{rest}{name}"),
        }
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => decimal(1_000, "\u{b5}s"),
        1_000_000..1_000_000_000 => decimal(1_000_000, "ms"),
        1_000_000_000..60_000_000_000 => decimal(1_000_000_000, "s"),
        _ => {
            let seconds = nanos / 1_000_000_000;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let below = duration_seconds(nanos % 60_000_000_000);
            match hours {
                0 => format!("{minutes}m{below}"),
                hours => format!("{hours}h{minutes}m{below}"),
            }
        }
    }
}

/// Less than a minute, in seconds.
fn duration_seconds(nanos: u128) -> String {
    let rest = format!("{:09}", nanos % 1_000_000_000);
    let whole = nanos / 1_000_000_000;
    match rest.trim_end_matches('0') {
        "" => format!("{whole}s"),
        rest => format!("{whole}.{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_as_go_does() {
        assert_eq!(quote(b"a\"\\\n\x00\x7f\xff"), r#""a\"\\\n\x00\x7f\xff""#);
        assert_eq!(
            quote("\u{e9}\u{a0}\u{200b}\u{1f600}".as_bytes()),
            "\"\u{e9}\\u00a0\\u200b\u{1f600}\""
        );
        assert_eq!(text_or_hex(b"ok then"), "ok then");
        assert_eq!(text_or_hex(b"a\n"), "610a");
        assert_eq!(json(b"<a>\xff"), r#""\u003ca\u003e\ufffd""#);
    }

    #[test]
    fn times_are_printed_as_go_does() {
        let texts: Vec<String> = [
            0,
            999,
            1_500,
            20_000_000,
            1_000_000_001,
            61_500_000_000,
            3_600_000_000_000,
        ]
        .map(duration)
        .to_vec();
        assert_eq!(
            texts,
            [
                "0s",
                "999ns",
                "1.5\u{b5}s",
                "20ms",
                "1.000000001s",
                "1m1.5s",
                "1h0m0s"
            ]
        );
    }
}
