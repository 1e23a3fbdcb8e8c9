//! What happened, as one number and, if wanted, as lines: two runs of a seed must have the same.

use std::fmt;

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// A running hash (FNV-1a, 64 bits) over text.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    hash: u64,
    lines: u64,
    /// Where lines are shown.
    shown: Option<Vec<String>>,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace {
            hash: OFFSET,
            lines: 0,
            shown: None,
        }
    }
}

impl Trace {
    /// One that keeps its lines.
    #[must_use]
    pub(crate) fn shown() -> Trace {
        Trace {
            shown: Some(Vec::new()),
            ..Trace::default()
        }
    }

    /// Takes in bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
    }

    /// Takes in a line.
    pub(crate) fn line(&mut self, line: fmt::Arguments<'_>) {
        self.lines += 1;
        if let Some(shown) = &mut self.shown {
            shown.push(line.to_string());
        }
        fmt::write(self, line).expect("a hash takes everything");
        self.bytes(b"\n");
    }

    /// The number.
    #[must_use]
    pub(crate) fn value(&self) -> u64 {
        self.hash
    }

    /// How many lines there were.
    #[must_use]
    pub(crate) fn lines(&self) -> u64 {
        self.lines
    }

    /// The lines that were kept.
    #[must_use]
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.shown.unwrap_or_default()
    }
}

impl fmt::Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes());
        Ok(())
    }
}
