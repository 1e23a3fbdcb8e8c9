//! The key of a changed node's item.

use std::cmp::Ordering;
use std::ops::Deref;

use bytes::Bytes;

/// A key, with its first bytes at hand: a search through a node then mostly stays in the array of
/// its items, and the keys themselves lie all over the memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Key {
    word: u64,
    bytes: Bytes,
}

impl Key {
    /// How it compares with another, whose first word is `word`.
    #[inline]
    pub(crate) fn order(&self, word: u64, key: &[u8]) -> Ordering {
        self.word.cmp(&word).then_with(|| self.bytes[..].cmp(key))
    }
}

impl From<Bytes> for Key {
    fn from(bytes: Bytes) -> Key {
        let word = first_word(&bytes);
        Key { word, bytes }
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The first eight bytes of a key as a number that orders as they do; zeros behind a shorter one.
/// Keys of which the numbers are the same can differ.
#[inline]
pub(crate) fn first_word(key: &[u8]) -> u64 {
    if let Some(bytes) = key.first_chunk() {
        return u64::from_be_bytes(*bytes);
    }
    let mut bytes = [0; 8];
    bytes[..key.len()].copy_from_slice(key);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_their_bytes() {
        let keys: [&[u8]; 9] = [
            b"",
            b"\0",
            b"\0\0\0\0\0\0\0\0",
            b"\0\0\0\0\0\0\0\0\0",
            b"a",
            b"a\0",
            b"abcdefgh",
            b"abcdefgh\xFF",
            b"\xFF",
        ];
        for (at, a) in keys.iter().enumerate() {
            let key = Key::from(Bytes::copy_from_slice(a));
            for (other, b) in keys.iter().enumerate() {
                assert_eq!(key.order(first_word(b), b), at.cmp(&other), "{a:?} {b:?}");
            }
        }
    }
}
