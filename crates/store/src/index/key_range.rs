//! The keys that a request names.

/// The keys that a request names by its `key` and `range_end`.
///
/// # Source
///
/// `RangeRequest` of etcd 3.7: an empty `range_end` is one key, a single zero byte is no bound, anything else is the
/// first key past the range. A `range_end` that is not above `key` leaves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRange<'a> {
    /// One key.
    Single(&'a [u8]),
    /// All keys from `start` on.
    Range {
        /// The first key, inclusive.
        start: &'a [u8],
        /// The first key past the range; `None` for no bound.
        end: Option<&'a [u8]>,
    },
}

impl<'a> KeyRange<'a> {
    /// The range that a request's two fields name.
    #[must_use]
    pub fn new(key: &'a [u8], range_end: &'a [u8]) -> KeyRange<'a> {
        match range_end {
            [] => KeyRange::Single(key),
            [0] => KeyRange::Range {
                start: key,
                end: None,
            },
            end => KeyRange::Range {
                start: key,
                end: Some(end),
            },
        }
    }

    /// Every key there can be, the empty one too.
    #[must_use]
    pub const fn all() -> KeyRange<'static> {
        KeyRange::Range {
            start: b"",
            end: None,
        }
    }

    /// Whether no key can lie in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, KeyRange::Range { start, end: Some(end) } if end <= start)
    }

    /// Whether `key` lies in it.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match *self {
            KeyRange::Single(single) => single == key,
            KeyRange::Range { start, end } => start <= key && end.is_none_or(|end| key < end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_end_has_the_meanings_of_etcd() {
        let single = KeyRange::new(b"a", b"");
        assert!(single.contains(b"a") && !single.contains(b"aa") && !single.is_empty());
        let open = KeyRange::new(b"a", b"\0");
        assert!(open.contains(b"a") && open.contains(b"\xff\xff") && !open.contains(b"A"));
        let half_open = KeyRange::new(b"a", b"c");
        assert!(half_open.contains(b"bzz") && !half_open.contains(b"c"));
        assert!(KeyRange::new(b"c", b"c").is_empty() && KeyRange::new(b"c", b"a").is_empty());
        assert!(!KeyRange::new(b"c", b"a").contains(b"b"));
        assert!(
            KeyRange::new(b"\0", b"\0").contains(b"\0")
                && !KeyRange::new(b"\0", b"\0").contains(b"")
        );
        assert!(KeyRange::all().contains(b""));
    }
}
