//! Sizes as people read them.

use std::fmt;

/// A number of bytes in steps of a thousand, as etcd's log shows it: `16 kB`, `2.1 GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HumanBytes(pub u64);

const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut scale: u64 = 1;
        let mut unit = 0;
        while self.0 / scale >= 1000 {
            scale *= 1000;
            unit += 1;
        }
        // In tenths, rounded half up.
        let tenths = (u128::from(self.0) * 10 + u128::from(scale) / 2) / u128::from(scale);
        let unit = UNITS[unit];
        if self.0 < 10 {
            write!(f, "{} {unit}", self.0)
        } else if tenths < 100 {
            write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
        } else {
            // Of tenths that end in five, Go's `%.0f` takes the even neighbour.
            let (whole, rest) = (tenths / 10, tenths % 10);
            let up = rest > 5 || (rest == 5 && whole % 2 == 1);
            write!(f, "{} {unit}", whole + u128::from(up))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_etcd_writes_them() {
        let cases = [
            (0, "0 B"),
            (9, "9 B"),
            (82, "82 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (16_384, "16 kB"),
            (20_480, "20 kB"),
            (300_000, "300 kB"),
            (10_485_760, "10 MB"),
            (2_147_483_648, "2.1 GB"),
            (8_589_934_592, "8.6 GB"),
            (u64::MAX, "18 EB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(HumanBytes(bytes).to_string(), text, "{bytes}");
        }
    }
}
