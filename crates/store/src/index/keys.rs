//! Sorted keys in one piece of memory, their common prefix once.

use std::cmp::Ordering;

/// Sorted, distinct keys, packed.
#[derive(Debug, Default)]
pub(super) struct PackedKeys {
    /// The prefix, then what is left of each key, in key order.
    bytes: Vec<u8>,
    /// Where each key's rest ends in `bytes`.
    ends: Vec<u32>,
    /// Length of the prefix. Every key begins with it; it may be shorter than it could be.
    prefix: u32,
}

/// Makes room for `more` elements without doubling: leaves are many and should be full.
pub(super) fn make_room<T>(of: &mut Vec<T>, more: usize) {
    if of.capacity() - of.len() < more {
        of.reserve_exact(more.max(of.len() / 8).max(64 / size_of::<T>().max(1)));
    }
}

fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The shortest key that lies above `left` and not above `right`.
pub(super) fn separator(left: &[u8], right: &[u8]) -> Vec<u8> {
    assert!(left < right, "keys rise");
    right[..=common(left, right)].to_vec()
}

fn offset(at: usize) -> u32 {
    u32::try_from(at).expect("a node splits long before its keys take 4 GiB")
}

impl PackedKeys {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of keys held, without slack.
    pub(super) fn used(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of heap taken.
    pub(super) fn heap(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u32>()
    }

    fn prefix(&self) -> &[u8] {
        &self.bytes[..self.prefix as usize]
    }

    fn start(&self, i: usize) -> usize {
        if i == 0 {
            self.prefix as usize
        } else {
            self.ends[i - 1] as usize
        }
    }

    fn rest(&self, i: usize) -> &[u8] {
        &self.bytes[self.start(i)..self.ends[i] as usize]
    }

    /// Replaces the content of `out` by key `i`.
    pub(super) fn copy(&self, i: usize, out: &mut Vec<u8>) {
        out.clear();
        self.append_to(i, out);
    }

    /// Appends key `i` to `out`.
    pub(super) fn append_to(&self, i: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(self.prefix());
        out.extend_from_slice(self.rest(i));
    }

    /// Key `i`, copied.
    pub(super) fn get(&self, i: usize) -> Vec<u8> {
        let mut key = Vec::new();
        self.copy(i, &mut key);
        key
    }

    /// Where `key` stands, or where it would.
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let Some(rest) = key.strip_prefix(self.prefix()) else {
            return Err(if key < self.prefix() { 0 } else { self.len() });
        };
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.rest(middle).cmp(rest) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// The first place whose key is not below `key`.
    pub(super) fn lower_bound(&self, key: &[u8]) -> usize {
        self.search(key).unwrap_or_else(|place| place)
    }

    /// Puts `key` at place `i`, where the order wants it.
    pub(super) fn insert(&mut self, i: usize, key: &[u8]) {
        if self.ends.is_empty() {
            self.bytes.clear();
            make_room(&mut self.bytes, key.len());
            self.bytes.extend_from_slice(key);
            self.prefix = offset(key.len());
        }
        let shared = common(self.prefix(), key);
        if shared < self.prefix as usize {
            self.shorten(shared);
        }
        let rest = &key[shared..];
        let start = self.start(i);
        let old_end = self.bytes.len();
        make_room(&mut self.bytes, rest.len());
        self.bytes.extend_from_slice(rest);
        if start != old_end {
            self.bytes.copy_within(start..old_end, start + rest.len());
            self.bytes[start..start + rest.len()].copy_from_slice(rest);
        }
        make_room(&mut self.ends, 1);
        self.ends.insert(i, offset(start));
        for end in &mut self.ends[i..] {
            *end = offset(*end as usize + rest.len());
        }
    }

    /// Takes out key `i`.
    pub(super) fn remove(&mut self, i: usize) {
        let (start, end) = (self.start(i), self.ends[i] as usize);
        self.bytes.drain(start..end);
        self.ends.remove(i);
        for later in &mut self.ends[i..] {
            *later -= offset(end - start);
        }
    }

    /// Keeps the keys whose place `keep` approves of, in as little memory as they need.
    pub(super) fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        *self = self.select((0..self.len()).filter(|&i| keep(i)));
    }

    /// Keeps the keys below place `at`, and returns the others.
    pub(super) fn split_off(&mut self, at: usize) -> PackedKeys {
        let right = self.select(at..self.len());
        *self = self.select(0..at);
        right
    }

    /// Adds the keys of `right`, all of which lie above those here.
    pub(super) fn append(&mut self, right: &PackedKeys) {
        let mut key = Vec::new();
        for i in 0..right.len() {
            right.copy(i, &mut key);
            self.insert(self.len(), &key);
        }
    }

    /// Puts the first bytes from `shared` on of the prefix back in front of each key.
    fn shorten(&mut self, shared: usize) {
        let moved = self.prefix as usize - shared;
        let mut bytes = Vec::new();
        make_room(&mut bytes, self.bytes.len() + moved * self.len());
        bytes.extend_from_slice(&self.bytes[..shared]);
        for i in 0..self.len() {
            bytes.extend_from_slice(&self.bytes[shared..shared + moved]);
            bytes.extend_from_slice(self.rest(i));
        }
        // The prefix itself loses `moved` bytes and each key up to and including this one gains as many.
        for (i, end) in self.ends.iter_mut().enumerate() {
            *end = offset(*end as usize + i * moved);
        }
        self.bytes = bytes;
        self.prefix = offset(shared);
    }

    /// The keys at some places, which rise, under the longest prefix that they share.
    fn select(&self, places: impl Iterator<Item = usize> + Clone) -> PackedKeys {
        let (Some(first), Some(last)) = (places.clone().next(), places.clone().last()) else {
            return PackedKeys::default();
        };
        let more = if first == last {
            self.rest(first).len()
        } else {
            common(self.rest(first), self.rest(last))
        };
        let mut selected = PackedKeys {
            bytes: Vec::with_capacity(
                self.prefix as usize
                    + more
                    + places
                        .clone()
                        .map(|i| self.rest(i).len() - more)
                        .sum::<usize>(),
            ),
            ends: Vec::with_capacity(places.clone().count()),
            prefix: self.prefix + offset(more),
        };
        selected.bytes.extend_from_slice(self.prefix());
        selected.bytes.extend_from_slice(&self.rest(first)[..more]);
        for i in places {
            selected.bytes.extend_from_slice(&self.rest(i)[more..]);
            selected.ends.push(offset(selected.bytes.len()));
        }
        selected
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn all(keys: &PackedKeys) -> Vec<Vec<u8>> {
        (0..keys.len()).map(|i| keys.get(i)).collect()
    }

    #[test]
    fn keys_that_share_a_prefix_hold_it_once() {
        let mut keys = PackedKeys::default();
        for (i, key) in [&b"/registry/a"[..], b"/registry/b", b"/registry/c"]
            .into_iter()
            .enumerate()
        {
            keys.insert(i, key);
        }
        assert_eq!(keys.used(), "/registry/".len() + 3);
        let right = keys.split_off(1);
        assert_eq!(
            (all(&keys), all(&right).len()),
            (vec![b"/registry/a".to_vec()], 2)
        );
    }

    #[test]
    fn a_separator_is_as_short_as_can_be() {
        assert_eq!(separator(b"abc", b"abzzz"), b"abz");
        assert_eq!(separator(b"abc", b"abcd"), b"abcd");
        assert_eq!(separator(b"", b"xyz"), b"x");
    }

    proptest! {
        #[test]
        fn prop_packed_keys_are_a_sorted_set(
            steps in prop::collection::vec((any::<bool>(), prop::collection::vec(0u8..3, 0..6)), 0..60),
            split in any::<prop::sample::Index>(),
        ) {
            let mut keys = PackedKeys::default();
            let mut model = BTreeSet::new();
            for (insert, key) in steps {
                match keys.search(&key) {
                    Ok(i) => {
                        prop_assert!(model.contains(&key));
                        if !insert {
                            keys.remove(i);
                            model.remove(&key);
                        }
                    }
                    Err(i) => {
                        prop_assert!(!model.contains(&key));
                        prop_assert_eq!(i, model.range(..key.clone()).count());
                        if insert {
                            keys.insert(i, &key);
                            model.insert(key);
                        }
                    }
                }
                prop_assert_eq!(all(&keys), model.iter().cloned().collect::<Vec<_>>());
            }
            let at = split.index(keys.len() + 1);
            let right = keys.split_off(at);
            prop_assert_eq!(keys.len(), at);
            keys.append(&right);
            prop_assert_eq!(all(&keys), model.iter().cloned().collect::<Vec<_>>());
            keys.retain(|i| i % 3 == 1);
            prop_assert_eq!(all(&keys), model.iter().skip(1).step_by(3).cloned().collect::<Vec<_>>());
        }
    }
}
