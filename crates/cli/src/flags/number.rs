//! Whole numbers as Go's flag package reads them: with a base prefix and underscores.

/// A number from 0.
///
/// # Errors
/// Go's two texts.
pub(super) fn unsigned<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let value = magnitude(text)?;
    T::try_from(value).map_err(|_| out_of_range())
}

/// A number with an optional sign.
///
/// # Errors
/// Go's two texts.
pub(super) fn signed<T: TryFrom<i64>>(text: &str) -> Result<T, String> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let value = i128::from(magnitude(digits)?);
    let value = i64::try_from(if negative { -value } else { value });
    value
        .ok()
        .and_then(|value| T::try_from(value).ok())
        .ok_or_else(out_of_range)
}

fn out_of_range() -> String {
    "value out of range".to_owned()
}

fn magnitude(text: &str) -> Result<u64, String> {
    let wrong = || "parse error".to_owned();
    let lower = text.to_ascii_lowercase();
    let (base, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    // A base prefix may be followed by an underscore; otherwise one stands between digits.
    let prefixed = digits.len() < lower.len();
    let inner = if prefixed {
        digits.strip_prefix('_').unwrap_or(digits)
    } else {
        digits
    };
    if inner.is_empty() || inner.split('_').any(str::is_empty) {
        return Err(wrong());
    }
    let mut value: u64 = 0;
    for c in inner.chars().filter(|c| *c != '_') {
        let digit = c.to_digit(base).ok_or_else(wrong)?;
        let next = value
            .checked_mul(u64::from(base))
            .and_then(|v| v.checked_add(digit.into()));
        value = next.ok_or_else(out_of_range)?;
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        for (text, value) in [
            ("0", 0),
            ("10", 10),
            ("0x1F", 31),
            ("010", 8),
            ("0o17", 15),
            ("0b11", 3),
            ("1_000", 1000),
            ("0x_f", 15),
        ] {
            assert_eq!(unsigned::<u64>(text), Ok(value), "{text}");
            assert_eq!(
                signed::<i64>(&format!("-{text}")),
                Ok(-(value.cast_signed())),
                "{text}"
            );
        }
        assert_eq!(unsigned::<u64>(&u64::MAX.to_string()), Ok(u64::MAX));
        assert_eq!(signed::<i64>("-9223372036854775808"), Ok(i64::MIN));
    }

    #[test]
    fn other_texts_are_refused_in_the_words_of_go() {
        for text in [
            "", "x", "-1", "+1", "1.5", "1_", "_1", "1__0", "08", "0x", " 1",
        ] {
            assert_eq!(
                unsigned::<u64>(text),
                Err("parse error".to_owned()),
                "{text}"
            );
        }
        for text in ["18446744073709551616", "99999999999999999999999"] {
            assert_eq!(
                unsigned::<u64>(text),
                Err("value out of range".to_owned()),
                "{text}"
            );
        }
        assert_eq!(
            unsigned::<u32>("4294967296"),
            Err("value out of range".to_owned())
        );
        assert_eq!(
            signed::<i64>("9223372036854775808"),
            Err("value out of range".to_owned())
        );
    }
}
