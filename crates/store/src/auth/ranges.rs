//! What a user may read, or write: merged intervals of keys.

use std::cmp::Ordering;

use keelson_proto::rpc::authpb::{Permission, permission::Type};

use super::tree::{Tree, compare_ends};

/// An interval of keys, not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Interval {
    begin: Box<[u8]>,
    end: Option<Box<[u8]>>,
}

/// A set of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    /// Sorted intervals of which no two touch.
    merged: Box<[Interval]>,
    /// Every interval as it was given: what etcd finds of ranges that end before they begin.
    tree: Tree,
}

/// Whether `range_end` asks for every key from the first on.
fn is_open(range_end: &[u8]) -> bool {
    range_end == [0]
}

impl Interval {
    /// `None` for what matches no key: an empty key (which lies past every key where intervals are
    /// compared), or an end that is not behind the key.
    fn of(permission: &Permission) -> Option<Interval> {
        let begin: Box<[u8]> = permission.key[..].into();
        if begin.is_empty() {
            return None;
        }
        let end = if permission.range_end.is_empty() {
            // The first key past the one key is that key with a zero byte.
            Some([&permission.key[..], &[0]].concat().into())
        } else if is_open(&permission.range_end) {
            None
        } else {
            Some(permission.range_end[..].into())
        };
        (end.as_ref().is_none_or(|end| begin < *end)).then_some(Interval { begin, end })
    }

    fn reaches(&self, key: &[u8]) -> bool {
        self.end.as_deref().is_none_or(|end| key < end)
    }
}

impl Ranges {
    /// Those who may be read and those who may be written, by all the permissions of a user.
    pub(super) fn merged<'a>(
        permissions: impl Iterator<Item = &'a Permission>,
    ) -> (Ranges, Ranges) {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for permission in permissions {
            // A number that names no type gives nothing.
            let (reads, writes) = match Type::try_from(permission.perm_type) {
                Ok(Type::Read) => (true, false),
                Ok(Type::Write) => (false, true),
                Ok(Type::Readwrite) => (true, true),
                Err(_) => (false, false),
            };
            let Some(interval) = Interval::of(permission) else {
                continue;
            };
            if reads {
                read.push(interval.clone());
            }
            if writes {
                write.push(interval);
            }
        }
        (Ranges::from_intervals(read), Ranges::from_intervals(write))
    }

    fn from_intervals(mut intervals: Vec<Interval>) -> Ranges {
        let mut tree = Tree::default();
        for interval in &intervals {
            tree.insert(&interval.begin, interval.end.as_deref());
        }
        intervals.sort_unstable_by(|left, right| left.begin.cmp(&right.begin));
        let mut merged: Vec<Interval> = Vec::new();
        for interval in intervals {
            match merged.last_mut() {
                // Intervals that only touch make one, too.
                Some(last) if last.end.as_ref().is_none_or(|end| interval.begin <= *end) => {
                    if compare_ends(last.end.as_deref(), interval.end.as_deref()).is_lt() {
                        last.end = interval.end;
                    }
                }
                Some(_) | None => merged.push(interval),
            }
        }
        Ranges {
            merged: merged.into(),
            tree,
        }
    }

    /// Whether all of `[key, range_end)` is in the set. An empty `range_end` stands for the one
    /// key, `0x00` for every key from `key` on. Of a range that ends before it begins the key alone
    /// must be in the set, and found as etcd looks for it; an empty key never is.
    pub(super) fn contain(&self, key: &[u8], range_end: &[u8]) -> bool {
        if key.is_empty() {
            return false;
        }
        let merged = &self.merged;
        let behind = merged.partition_point(|interval| *interval.begin <= *key);
        let Some(interval) = behind.checked_sub(1).and_then(|at| merged.get(at)) else {
            return false;
        };
        if !interval.reaches(key) {
            return false;
        }
        if range_end.is_empty() {
            return true;
        }
        if is_open(range_end) {
            return interval.end.is_none();
        }
        if *range_end <= *key {
            return self.tree.finds_backwards(key, range_end);
        }
        compare_ends(interval.end.as_deref(), Some(range_end)) != Ordering::Less
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn permission(perm_type: i32, key: &[u8], range_end: &[u8]) -> Permission {
        Permission {
            perm_type,
            key: key.to_vec().into(),
            range_end: range_end.to_vec().into(),
        }
    }

    fn readable(list: &[(&str, &str)]) -> Ranges {
        let list: Vec<_> = list
            .iter()
            .map(|(key, end)| permission(0, key.as_bytes(), end.as_bytes()))
            .collect();
        Ranges::merged(list.iter()).0
    }

    #[test]
    fn two_ranges_that_touch_permit_what_lies_across() {
        let ranges = readable(&[("c", "e"), ("a", "c")]);
        assert!(ranges.contain(b"b", b"d"));
        assert!(ranges.contain(b"a", b"e"));
        assert!(!ranges.contain(b"a", b"e\0"));
        assert!(!readable(&[("a", "c"), ("c\0", "e")]).contain(b"b", b"d"));
    }

    #[test]
    fn single_keys_that_are_neighbours_make_a_range() {
        let ranges = readable(&[("k", ""), ("k\0", "")]);
        assert!(ranges.contain(b"k", b"k\0\0"));
        assert!(!ranges.contain(b"k", b"l"));
    }

    #[test]
    fn an_open_end_holds_every_later_key() {
        let ranges = readable(&[("m", "\0"), ("b", "c")]);
        assert!(ranges.contain(b"m", b"\0"));
        assert!(ranges.contain(b"zz", b""));
        assert!(!ranges.contain(b"b", b"\0"));
        assert!(readable(&[("\0", "\0")]).contain(b"\0", b"\0"));
        assert!(!readable(&[("\0", "\0")]).contain(b"", b"\0"));
    }

    #[test]
    fn of_a_range_that_ends_before_it_begins_the_key_decides() {
        let ranges = readable(&[("b", "d")]);
        assert!(ranges.contain(b"c", b"a"));
        assert!(ranges.contain(b"c", b"c"));
        assert!(!ranges.contain(b"d", b"a"));
    }

    #[test]
    fn a_type_without_a_name_permits_nothing() {
        let (read, write) = Ranges::merged([permission(7, b"a", b"b")].iter());
        assert!(!read.contain(b"a", b"") && !write.contain(b"a", b""));
    }

    /// Short keys over two letters: every one that could tell two sets apart.
    fn universe() -> Vec<Vec<u8>> {
        let mut keys = vec![vec![]];
        for _ in 0..4 {
            let longer: Vec<Vec<u8>> = keys
                .iter()
                .flat_map(|key| [0, b'a', b'b'].map(|letter| [&key[..], &[letter]].concat()))
                .collect();
            keys.extend(longer);
        }
        keys.sort();
        keys.dedup();
        keys.retain(|key| !key.is_empty());
        keys
    }

    fn matches(permission: &Permission, key: &[u8]) -> bool {
        match &permission.range_end[..] {
            b"" => key == permission.key,
            b"\0" => key >= &permission.key[..],
            end => key >= &permission.key[..] && key < end,
        }
    }

    fn short_key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0), Just(b'a'), Just(b'b')], 1..3)
    }

    fn short_end() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![Just(vec![]), Just(vec![0]), short_key()]
    }

    proptest! {
        #[test]
        fn containment_is_that_of_the_keys_one_by_one(
            list in proptest::collection::vec((0..3, short_key(), short_end()), 0..6),
            key in short_key(),
            end in short_end(),
        ) {
            let list: Vec<_> = list.iter().map(|(kind, key, end)| permission(*kind, key, end)).collect();
            let (read, write) = Ranges::merged(list.iter());
            let asked = permission(0, &key, &end);
            let asked_keys: Vec<_> = universe().into_iter().filter(|key| matches(&asked, key)).collect();
            prop_assume!(!asked_keys.is_empty());
            for (ranges, kinds) in [(&read, [0, 2]), (&write, [1, 2])] {
                let expected = asked_keys.iter().all(|key| {
                    list.iter().any(|one| kinds.contains(&one.perm_type) && matches(one, key))
                });
                prop_assert_eq!(ranges.contain(&key, &end), expected);
            }
        }
    }
}
