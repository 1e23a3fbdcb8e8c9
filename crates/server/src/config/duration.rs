//! Durations as Go writes and reads them (`1h0m0.5s`): flags, log fields and error texts use this
//! grammar, which is not the one of any other program.

use std::fmt;
use std::time::Duration;

use super::quote::quote;

/// A signed length of time in nanoseconds, printed and parsed as Go's `time.Duration`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(pub i64);

/// Units and their length in nanoseconds. Go knows the micro sign and the Greek letter.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl GoDuration {
    /// Reads Go's grammar: an optional sign, then numbers with a unit each; a lone `0` needs none.
    ///
    /// # Errors
    /// The text of Go's `time.ParseDuration`, for example `time: invalid duration "x"`.
    pub fn parse(text: &str) -> Result<GoDuration, String> {
        let invalid = || format!("time: invalid duration {}", quote(text));
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(GoDuration(0));
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (part, tail) = one_part(rest, text)?;
            total = total
                .checked_add(part)
                .filter(|sum| *sum <= 1 << 63)
                .ok_or_else(invalid)?;
            rest = tail;
        }
        let nanos = if negative {
            -i128::from(total)
        } else {
            i128::from(total)
        };
        i64::try_from(nanos).map(GoDuration).map_err(|_| invalid())
    }

    /// The length, or `None` below zero.
    #[must_use]
    pub fn to_std(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }
}

/// One number and its unit at the start of `rest`, in nanoseconds, and what follows them.
fn one_part<'a>(rest: &'a str, whole: &str) -> Result<(u64, &'a str), String> {
    let invalid = || format!("time: invalid duration {}", quote(whole));
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let (integer, after) = rest.split_at(digits(rest));
    let (fraction, after) = match after.strip_prefix('.') {
        Some(tail) => tail.split_at(digits(tail)),
        None => ("", after),
    };
    if integer.is_empty() && fraction.is_empty() {
        return Err(invalid());
    }
    let length = after
        .find(|c: char| c == '.' || c.is_ascii_digit())
        .unwrap_or(after.len());
    let (unit, tail) = after.split_at(length);
    if unit.is_empty() {
        return Err(format!("time: missing unit in duration {}", quote(whole)));
    }
    let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        let (unit, whole) = (quote(unit), quote(whole));
        return Err(format!("time: unknown unit {unit} in duration {whole}"));
    };
    let integer: u64 = if integer.is_empty() {
        0
    } else {
        integer.parse().map_err(|_| invalid())?
    };
    let mut nanos = integer.checked_mul(*scale).ok_or_else(invalid)?;
    // Digits beyond the 18th are below a nanosecond in every unit.
    let fraction = &fraction[..fraction.len().min(18)];
    if !fraction.is_empty() {
        let value: u128 = fraction.parse().map_err(|_| invalid())?;
        let exponent = u32::try_from(fraction.len()).expect("at most 18 digits were kept");
        let part = value * u128::from(*scale) / 10u128.pow(exponent);
        let part = u64::try_from(part).expect("a fraction is below one unit");
        nanos = nanos.checked_add(part).ok_or_else(invalid)?;
    }
    Ok((nanos, tail))
}

impl From<Duration> for GoDuration {
    /// Lengths beyond Go's 292 years become the longest one.
    fn from(length: Duration) -> GoDuration {
        GoDuration(i64::try_from(length.as_nanos()).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let nanos = self.0.unsigned_abs();
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => decimal(f, nanos, 1_000, "\u{b5}s"),
            1_000_000..1_000_000_000 => decimal(f, nanos, 1_000_000, "ms"),
            _ => {
                let seconds = nanos / 1_000_000_000;
                let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if hours > 0 || minutes > 0 {
                    write!(f, "{minutes}m")?;
                }
                decimal(f, nanos % 60_000_000_000, 1_000_000_000, "s")
            }
        }
    }
}

/// `nanos / scale` with as many decimals as it has.
fn decimal(f: &mut fmt::Formatter<'_>, nanos: u64, scale: u64, unit: &str) -> fmt::Result {
    let (whole, part) = (nanos / scale, nanos % scale);
    if part == 0 {
        return write!(f, "{whole}{unit}");
    }
    let width = usize::try_from(scale.ilog10()).expect("at most 9 decimals");
    let decimals = format!("{part:0width$}");
    write!(f, "{whole}.{}{unit}", decimals.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_go_prints() {
        let cases: [(i64, &str); 12] = [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (2_200_000, "2.2ms"),
            (100_000_000, "100ms"),
            (3_300_000_000, "3.3s"),
            (60_000_000_000, "1m0s"),
            (245_000_000_000, "4m5s"),
            (7_200_000_000_000, "2h0m0s"),
            (3_600_500_000_000, "1h0m0.5s"),
            (-1_500_000_000, "-1.5s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ];
        for (nanos, text) in cases {
            assert_eq!(GoDuration(nanos).to_string(), text);
            assert_eq!(GoDuration::parse(text), Ok(GoDuration(nanos)), "{text}");
        }
    }

    #[test]
    fn parses_what_go_parses() {
        let cases: [(&str, i64); 9] = [
            ("0", 0),
            ("-0", 0),
            ("+5s", 5_000_000_000),
            ("5.s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1us", 1_000),
            ("1\u{3bc}s", 1_000),
            ("1h0m0.5s", 3_600_500_000_000),
            ("0.3333333333333333333h", 1_200_000_000_000 - 1),
        ];
        for (text, nanos) in cases {
            assert_eq!(GoDuration::parse(text), Ok(GoDuration(nanos)), "{text}");
        }
    }

    #[test]
    fn refuses_with_the_texts_of_go() {
        let cases = [
            ("", "time: invalid duration \"\""),
            ("x", "time: invalid duration \"x\""),
            ("-", "time: invalid duration \"-\""),
            (".s", "time: invalid duration \".s\""),
            ("3", "time: missing unit in duration \"3\""),
            ("3000h3", "time: missing unit in duration \"3000h3\""),
            ("1d", "time: unknown unit \"d\" in duration \"1d\""),
            ("9999999999h", "time: invalid duration \"9999999999h\""),
            (
                "9223372036854775808ns",
                "time: invalid duration \"9223372036854775808ns\"",
            ),
        ];
        for (text, error) in cases {
            assert_eq!(GoDuration::parse(text), Err(error.to_owned()), "{text}");
        }
    }
}
